"""Runs that take up what an earlier one left out: what others gave serves again, wherever it is to lie."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from engine.test_executor import Calls, first_ranks, options
from support import toy
from support.ranks import COMM

from mpiimg.errors import BadInput
from mpiimg.io.store import Array
from mpiimg.partition import ChunkGrid
from mpiimg.pipeline.run import run
from mpiimg.stages.stage import Need, Stage, reduction

pytestmark = pytest.mark.ranks

#: Items of a list by name, and how long each is.
LENGTHS = {"a": 5, "b": 3, "c": 0, "d": 7, "e": 3, "f": 1}


@pytest.fixture
def out(tmp_path):
    return pathlib.Path(COMM.bcast(str(tmp_path))) / "out"


def listed(names, bad="", version="", hook=toy.nothing, command="list"):
    """A pipeline over a list of items: each is made on its own, but for those that are bad."""
    lengths = [LENGTHS[name] for name in names]
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    grid = ChunkGrid("e", (len(names),), (1,))
    data = Array("data", "n", (starts[-1],), "float64")
    state = Array("state", "ek", (len(names), 1), "int64")

    def box(chunk):
        return ((starts[chunk.number], starts[chunk.number + 1]),)

    def work(chunk):
        name = names[chunk.number]
        hook("make", name)
        if name in bad:
            return np.full(lengths[chunk.number], np.nan), np.ones((1, 1))
        return values(name), np.zeros((1, 1))

    def partial(chunk, block, flags):
        hook("sum", names[chunk.number])
        return block[0].sum(), flags[0, 0]

    def finish(rows):
        bad_ones = {names[i]: "is bad" for i in np.flatnonzero(rows[:, 1])}
        return {"total": rows[rows[:, 1] == 0, 0].tolist(), "left_out": bad_ones}

    def save(chunk, folder, block):
        (folder / "data.raw").write_bytes(block.tobytes())

    make = Stage(
        "make",
        "map",
        grid,
        (),
        (data, state),
        work,
        chunk_parameters=lambda number: {"name": names[number], "version": version},
        left_out=lambda block, flag: bool(flag.any()),
        place={"data": box},
    )
    needs = (Need(data, place=lambda chunk: (box(chunk),)), Need(state))
    steps = [
        toy.constantly(make),
        toy.constantly(reduction("sum", grid, needs, partial, ((2,), "float64"), finish)),
        toy.constantly(
            Stage(
                "save", "files", ChunkGrid("k", (1,), (1,)), (Need(data),), work=save, outputs=("data.raw",)
            )
        ),
    ]
    sources = {name: f"{version}{'-bad' * (name in bad)}" for name in names}
    return dataclasses.replace(toy.recipe("list", steps, command=command), sources=sources)


def values(name):
    return np.random.default_rng(ord(name)).normal(size=LENGTHS[name])


def go(out, names, bad="", comm=COMM, **how):
    """Run; return what was made, what was summed, and what the record says of the first stage."""
    calls = Calls()
    fields = {key: how.pop(key) for key in ("force", "keep_work", "in_memory") if key in how}
    run(listed(names, bad, hook=calls, **how), comm, options(out, **fields))
    expected = [values(n) if n not in bad else np.full(LENGTHS[n], np.nan) for n in names]
    assert (out / "data.raw").read_bytes() == np.concatenate(expected).tobytes()
    seen = calls.all()
    assert len(seen) == len(set(seen))
    (entry,) = [e for e in json.loads((out / "run-toy.json").read_text())["stages"] if e["stage"] == "make"]
    made = "".join(name for stage, name in seen if stage == "make")
    assert entry["resumed_chunks"] == len(names) - len(made)
    return made, "".join(name for stage, name in seen if stage == "sum")


def kept(out):
    """Return the files of the work folder."""
    COMM.Barrier()  # all look at the folder before the next run changes it
    work = out / "work" / "list.toy"
    found = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
    COMM.Barrier()
    return found


def test_what_was_left_out_is_taken_up_and_nothing_else(out):
    """Without --force: the same command goes on. What depends on the whole list is made again."""
    assert go(out, "abcdef", bad="d") == ("abcdef", "abcdef")
    marks = ["journal/0-kept.jsonl", "left-out", "request"]
    assert kept(out) == ["claims/1/end.json", "claims/1/owner.json", "data.h5", *marks, "state.h5"]
    assert go(out, "abcdef") == ("d", "abcdef")
    assert not (out / "work").exists()


def test_what_stays_bad_is_tried_again_and_alone(out):
    go(out, "abcdef", bad="bd")
    assert go(out, "abcdef", bad="bd") == ("bd", "abcdef")
    assert go(out, "abcdef", bad="d") == ("bd", "abcdef")
    assert go(out, "abcdef") == ("d", "abcdef")


@pytest.mark.parametrize("names", ["abcdefx", "abcdex", "xabdef", "axbf", "fedcba", "abxe"])
def test_other_lists_use_what_is_there_wherever_it_is_to_lie(out, names, monkeypatch):
    monkeypatch.setitem(LENGTHS, "x", 7)
    go(out, "abcdef", bad="d", keep_work=True)
    made, _ = go(out, names, force=True, keep_work=True)
    assert set(made) == {name for name in names if name in "dx"}
    # Back again: what the second list had is there, wherever it lay.
    made, _ = go(out, "abcdef", force=True)
    assert not set(made) & set(names)


def test_on_fewer_ranks_and_with_another_version(out):
    go(out, "abcdef", bad="d")
    with first_ranks(max(1, COMM.size - 1)) as comm:
        if comm is not None:
            calls = []
            recipe = listed("abef", hook=lambda stage, name: calls.append((stage, name)))
            run(recipe, comm, options(out, force=True, keep_work=True))
            made = comm.allgather([name for stage, name in calls if stage == "make"])
            assert not any(made)
    assert set(go(out, "abef", version="2", force=True)[0]) == set("abef")


def test_another_command_needs_force(out):
    go(out, "abcdef", bad="d")
    with pytest.raises(BadInput, match="exists; use --force"):
        run(listed("abcdef", command="other"), COMM, options(out))
    go(out, "abcdef")
    with pytest.raises(BadInput, match="exists; use --force"):
        run(listed("abcde"), COMM, options(out))


def test_damaged_blocks_are_made_again(out):
    go(out, "abcdef", bad="d")
    if COMM.rank == 0:
        path = out / "work/list.toy/data.h5"
        data = bytearray(path.read_bytes())
        place = data.find(values("b").tobytes())
        data[place] ^= 1
        path.write_bytes(data)
    COMM.Barrier()
    assert set(go(out, "abcdef")[0]) == {"b", "d"}


def test_in_memory_nothing_is_kept(out):
    go(out, "abcdef", bad="d", in_memory=True)
    assert not (out / "work").exists()


def test_a_list_that_has_grown_is_the_same_command(out):
    go(out, "abcde", bad="d")
    assert go(out, "abcdef") == ("df", "abcdef")
