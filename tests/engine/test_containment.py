"""One unit that fails is left out, and the others go on; what is no fault of a unit ends the run."""

from __future__ import annotations

import dataclasses
import errno
import json
import pathlib

import numpy as np
import pytest
from engine.test_executor import options
from support import toy
from support.ranks import COMM

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.containment import Fault, Units, ends_run, fault_of, place_of, systematic
from mpiimg.engine.needs import Part
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute, Files, Reduce
from mpiimg.errors import BadInput, Exit, RunFailed

NAMES = "abcdefghijkl"


def raised(error):
    """Return an error as it is once it has been raised."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ValueError("odd"), False),
        (BadInput("odd"), False),
        (OSError("Header missing END card."), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (PermissionError(errno.EACCES, "closed"), False),
        (OSError(errno.EINVAL, "seek to nowhere"), False),
        (RecursionError("deep"), False),
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((1 << 60,), np.dtype("u1")), True),
        *(
            (OSError(getattr(errno, name), name), True)
            for name in ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "ESTALE")
        ),
        (TimeoutError(errno.ETIMEDOUT, "NFS"), True),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_fault_of_a_unit_ends_the_run(error, ends):
    """Also where a library has put an error of its own around it."""
    assert ends_run(raised(error)) is ends
    outer = ValueError("cannot read")
    outer.__cause__ = raised(error)
    assert ends_run(raised(outer)) is ends
    outer = ValueError("cannot read")
    outer.__context__ = raised(error)
    assert ends_run(raised(outer)) is ends
    outer.__suppress_context__ = True
    assert ends_run(raised(outer)) is False


def test_a_fault_is_known_by_its_type_and_line_and_is_said_in_one_line():
    def fails(text):
        raise ValueError(text)

    def caught(text):
        with pytest.raises(ValueError) as info:
            fails(text)
        return info.value

    fault = fault_of(caught("one\ntwo \x1b[31m"), "unit-1", "stage make")
    assert fault.reason == r"unit-1: ValueError: one two \x1b[31m (stage make)"
    assert fault.place == place_of(caught("another text"))
    assert fault.place.startswith(f"ValueError at {__name__}:")
    assert "Traceback" in fault.traceback and "fails" in fault.traceback
    bad = fault_of(raised(BadInput("a.fits: is\nodd")), "unit-1", "stage make")
    assert (bad.reason, bad.place, bad.traceback) == (r"a.fits: is\nodd", "", "")


@pytest.mark.parametrize(
    ("units", "most"), [(1, 3), (12, 3), (30, 3), (31, 3), (40, 4), (49, 4), (1000, 100)]
)
def test_so_many_units_may_fail_alike(units, most):
    """max(3, 10 %) are contained; one more is a fault of the program. A unit counts once."""
    faults = [Fault(str(n), "make", "odd", "ValueError at here:1", "...") for n in range(most)]
    others = [Fault(str(n), "make", "odd", f"ValueError at here:{n}", "...") for n in range(2, units)]
    bad = [Fault(str(n), "make", "no data") for n in range(units)]
    assert systematic([*faults, *faults, *others, *bad], units) is None
    assert (
        systematic([*bad, *faults, Fault("new", "make", "odd", faults[0].place, "...")], units) is faults[0]
    )


# --- In runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path):
    return pathlib.Path(COMM.bcast(str(tmp_path))) / "out"


def odd(name):
    raise ValueError(f"{name} is odd")


def bad(name):
    raise BadInput(f"{name} is bad")


def full(name):
    raise OSError(errno.ENOSPC, "No space left on device")


def memory(name):
    raise MemoryError


def pipeline(how, strict=False, at="make"):
    """Make a number of each item, sum them, write a file for each; `how` makes items fail at a stage."""
    grid = ChunkGrid("e", (len(NAMES),), (1,))
    data = Array("data", "e", (len(NAMES),), "float64")
    units = Units(lambda number: NAMES[number], len(NAMES), "item", strict, kept=True)
    seen = []

    def at_stage(stage, number):
        if stage == at and NAMES[number] in how:
            how[NAMES[number]](NAMES[number])

    def make(chunk):
        at_stage("make", chunk.number)
        return (np.array([float(chunk.number)]),)

    def partial(chunk, block):
        at_stage("sum", chunk.number)
        return block[0]

    def save(chunk, folder, block):
        path = folder / f"{NAMES[chunk.number]}.raw"
        path.write_bytes(block.tobytes())
        at_stage("save", chunk.number)

    def stages():
        lost = yield Compute(
            "make", grid, writes=(data,), work=make, units=units, without=lambda chunk: (np.array([np.nan]),)
        )
        seen.append(lost)
        rows = yield Reduce(
            "sum", grid, reads=(Part(data),), work=partial, row=((), "float64"), units=units, without=-1.0
        )
        lost = yield Files(
            "save",
            grid,
            reads=(Part(data),),
            work=save,
            names=tuple(f"{name}.raw" for name in NAMES),
            units=units,
            of_chunk=lambda number: (f"{NAMES[number]}.raw",),
        )
        seen.append(lost)
        return rows

    return dataclasses.replace(toy.recipe("items", stages, command="items"), sources={}), seen


def record(out):
    return json.loads((out / "run-toy.json").read_text())


def said(entry):
    return [(fault["unit"], fault["stage"], fault["reason"]) for fault in entry["faults"]]


@pytest.mark.ranks
@pytest.mark.parametrize("in_memory", [False, True])
def test_units_that_fail_are_left_out_and_the_record_has_their_tracebacks(out, in_memory):
    recipe, seen = pipeline({"c": odd, "k": bad})
    outcome = run(recipe, COMM, options(out, in_memory=in_memory))
    reasons = {"c": "c: ValueError: c is odd (stage make)", "k": "k is bad"}
    assert outcome.status is Exit.PARTIAL
    assert outcome.left_out == reasons
    assert {2: reasons["c"], 10: reasons["k"]} in seen
    entry = record(out)
    assert entry["left_out"] == reasons
    assert said(entry) == [(name, "stage make", reason) for name, reason in reasons.items()]
    first, second = entry["faults"]
    assert first["place"].startswith(f"ValueError at {__name__}:")
    assert "Traceback" in first["traceback"] and second["traceback"] == ""
    assert [f"left out: {reason}" for reason in reasons.values()] == entry["warnings"]
    expected = [np.nan if name in reasons else number for number, name in enumerate(NAMES)]
    assert np.array_equal(outcome.state, expected, equal_nan=True)


@pytest.mark.ranks
def test_the_same_command_tries_them_again_and_says_the_same(out):
    """Nothing but what failed is made again; what fails again is recorded as before."""
    first = run(pipeline({"c": odd, "k": bad})[0], COMM, options(out))
    before = COMM.bcast(said(record(out)))
    second = run(pipeline({"c": odd, "k": bad})[0], COMM, options(out))
    assert (second.left_out, said(record(out))) == (first.left_out, before)
    assert record(out)["stages"][0]["resumed_chunks"] == len(NAMES) - 2
    COMM.Barrier()
    last = run(pipeline({})[0], COMM, options(out))
    assert (last.status, last.left_out, last.state.tolist()) == (Exit.DONE, {}, list(range(len(NAMES))))
    assert record(out)["stages"][0]["resumed_chunks"] == len(NAMES) - 2


@pytest.mark.ranks
def test_nothing_is_left_of_the_files_of_a_unit_that_fails_while_they_are_written(out):
    run(pipeline({})[0], COMM, options(out))
    outcome = run(pipeline({"d": odd}, at="save")[0], COMM, options(out, force=True))
    assert list(outcome.left_out) == ["d"]
    assert sorted(path.name for path in out.glob("*.raw")) == [f"{name}.raw" for name in NAMES if name != "d"]


@pytest.mark.ranks
def test_a_row_stands_for_a_unit_that_fails_in_a_reduction(out):
    outcome = run(pipeline({"d": odd}, at="sum")[0], COMM, options(out))
    assert list(outcome.left_out) == ["d"]
    assert outcome.state[3] == -1


@pytest.mark.ranks
@pytest.mark.parametrize("fault", [full, memory])
@pytest.mark.parametrize("at", ["make", "sum", "save"])
def test_a_full_disk_and_memory_that_runs_out_are_contained_nowhere(out, fault, at):
    with pytest.raises(RunFailed, match=r"No space|MemoryError"):
        run(pipeline({"c": fault}, at=at)[0], COMM, options(out))


@pytest.mark.ranks
def test_one_type_of_error_at_one_line_in_too_many_units_ends_the_run(out):
    """Of twelve, three are contained. It is counted over all ranks, and the first is told."""
    assert run(pipeline(dict.fromkeys("cfi", odd))[0], COMM, options(out / "few")).status is Exit.PARTIAL
    for _ in range(2):
        with pytest.raises(
            RunFailed, match=r"in 4 of 12 items: a fault of the program.*the first of them, c"
        ) as info:
            run(pipeline(dict.fromkeys("cfil", odd))[0], COMM, options(out))
        assert "Traceback" in str(info.value) and "c is odd" in str(info.value)
    assert run(pipeline(dict.fromkeys("cfil", bad))[0], COMM, options(out / "bad")).status is Exit.PARTIAL


@pytest.mark.ranks
def test_strict_units_end_the_run_by_the_first(out):
    for faults in ({"k": odd, "c": bad}, {"c": bad}):
        with pytest.raises(BadInput, match=r"^c is bad$"):
            run(pipeline(faults, strict=True)[0], COMM, options(out))
    with pytest.raises(RunFailed, match=r"c, stage make:\nTraceback"):
        run(pipeline({"c": odd, "k": bad}, strict=True)[0], COMM, options(out))


@pytest.mark.ranks
def test_a_run_of_which_no_unit_is_left_ends(out):
    with pytest.raises(BadInput, match=r"^a is bad$"):
        run(pipeline(dict.fromkeys(NAMES, bad))[0], COMM, options(out))
