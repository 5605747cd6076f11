"""The executor by toy pipelines: the bytes of a plain loop on any ranks, whatever happened on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import signal
import socket

import h5py
import numpy as np
import pytest
from support import toy
from support.ranks import COMM, LAST

from mpiimg.engine import executor, plan, provenance, raw, results, system_errors, writing
from mpiimg.engine.checkpoint import Journal, read_marks
from mpiimg.engine.log.events import read_events
from mpiimg.engine.mpi import nodes
from mpiimg.engine.mpi.agreement import Agreement, on_root
from mpiimg.engine.mpi.nodes import memory_per_rank
from mpiimg.engine.plan import Resources, plan_recipe
from mpiimg.engine.recipe import Options
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute, Records, Reduce, Stream
from mpiimg.engine.staged_file import dataset_offset
from mpiimg.engine.stores import StagedStore
from mpiimg.errors import BadInput, DamagedData, RunFailed, RunStopped
from mpiimg.kernels import jit

pytestmark = pytest.mark.ranks


@pytest.fixture
def out(tmp_path):
    """One folder for all ranks, to be made by the run."""
    return pathlib.Path(COMM.bcast(str(tmp_path))) / "out"


def options(out, **fields):
    return Options(**{"out": out, "memory": toy.PLENTY, "timeout": 60.0, **fields})


def go(made, out, comm=COMM, **fields):
    """Run a toy; return what its run.json says."""
    run(made.recipe, comm, options(out, **fields))
    return json.loads((out / "run-toy.json").read_text())


def work_folder(made, out):
    return out / "work" / f"{made.recipe.stem}.toy"


def check(made, out):
    """The file that a run left is the one that a plain loop makes, on every rank."""
    assert (out / toy.OUTPUT).read_bytes() == made.bytes
    for name, data in made.files.items():
        assert (out / name).read_bytes() == data


class Calls:
    """Counts the work on each chunk, on all ranks together."""

    def __init__(self, then=toy.nothing):
        self.seen, self.then = [], then

    def __call__(self, stage, chunk):
        self.seen.append((stage, chunk))
        self.then(stage, chunk)

    def all(self):
        """Every call on every rank, sorted. Collective."""
        return sorted(call for calls in COMM.allgather(self.seen) for call in calls)


def at(stage, chunk, action):
    """A hook that does something at the work on one chunk."""

    def hook(here, number):
        if (here, number) == (stage, chunk):
            action()

    return hook


def throw(error):
    raise error


@contextlib.contextmanager
def first_ranks(count):
    """A communicator of the first `count` ranks; None on the others."""
    from mpi4py import MPI

    comm = COMM.Split(0 if COMM.rank < count else MPI.UNDEFINED)
    yield None if comm == MPI.COMM_NULL else comm
    if comm != MPI.COMM_NULL:
        comm.Free()
    COMM.Barrier()  # all ranks look at the folder only when the first ones have left it


# Results.


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
@pytest.mark.parametrize("name", toy.TOYS)
def test_every_toy_gives_the_bytes_of_a_plain_loop(name, in_memory, out):
    calls = Calls()
    made = toy.TOYS[name](calls)
    report = go(made, out, in_memory=in_memory)
    check(made, out)
    assert len(set(calls.all())) == len(calls.all()), "a chunk or a finish ran on two ranks"
    names = {toy.OUTPUT, "run-toy.json", "total.txt", "events-toy", *made.files}
    assert {path.name for path in out.iterdir()} == names
    assert report["ranks"] == COMM.size
    assert [entry["resumed_chunks"] for entry in report["stages"]] == [0] * len(report["stages"])


@pytest.mark.parametrize(
    "made",
    [
        toy.smooth(depth=1),
        toy.smooth(depth=3),
        toy.smooth(depth=40, passes=1),
        toy.transpose(volumes=1, depth=1),
        toy.transpose(volumes=2, depth=9),
        toy.regroup(exposures=1, strips=3),
        *(toy.regroup(exposures=9, strips=4, seed=seed) for seed in (1, 2)),
        toy.ragged(shapes=((3, 2),)),
        toy.ragged(shapes=((0, 0), (1, 1))),
        toy.ragged(shapes=((9, 9), (2, 3), (0, 1), (4, 4)) * 5, seed=1),
    ],
    ids=lambda made: f"{made.recipe.stem}-{made.result.shape[0]}",
)
def test_few_and_many_chunks(made, out):
    """More ranks than chunks among the cases."""
    go(made, out)
    check(made, out)


@pytest.mark.parametrize("name", toy.TOYS)
def test_in_small_rounds(name, out, monkeypatch):
    """Inputs are gathered chunk by chunk, and a sink writes chunk by chunk, as if they were huge."""
    monkeypatch.setattr(plan, "IN_FLIGHT", 32)
    made = toy.TOYS[name]()
    report = go(made, out)
    check(made, out)
    assert all(entry["bytes_moved"] == entry["planned"]["bytes_moved"] for entry in report["stages"])


@pytest.mark.parametrize("name", toy.TOYS)
def test_in_the_least_memory(name, out):
    """Nothing is kept in memory between stages: all goes through the staged files."""
    made = toy.TOYS[name]()
    memory, _ = plan.min_memory(made.recipe)
    planned = plan_recipe(made.recipe, Resources(COMM.size, memory))
    assert not all(p.memory for _, stage_plan in planned for p in stage_plan.placements)
    go(made, out, memory=memory)
    check(made, out)


@pytest.mark.parametrize("name", toy.TOYS)
def test_bytes_moved_are_as_planned(name, out):
    """What ranks really sent each other, stage by stage, is what the plan said, in bytes and messages."""
    report = go(toy.TOYS[name](), out, in_memory=True)
    for key in ("bytes_moved", "messages", "bytes_per_rank", "messages_per_rank"):
        moved = [entry[key] for entry in report["stages"]]
        assert moved == [entry["planned"][key] for entry in report["stages"]]
        assert (sum(moved) > 0) == (COMM.size > 1)


def test_staged_arrays_are_left_on_request(out):
    for make in toy.TOYS.values():
        made = make()
        go(made, out / made.recipe.stem, keep_work=True)
        for name, expected in made.staged.items():
            with h5py.File(
                work_folder(made, out / made.recipe.stem) / f"{name}.h5", "r", locking=False
            ) as file:
                assert (file["data"][...] == expected).all()
                assert file["data"].dtype == expected.dtype


def test_warnings_and_notes_are_said_once_and_recorded(out, capfd):
    report = go(toy.smooth(), out)
    said = capfd.readouterr().err
    for line in ("mpiimg: warning: toy: a warning\n", "mpiimg: toy: a note\n"):
        assert said.count(line) == (COMM.rank == 0)
    assert (report["warnings"], report["notes"]) == (["toy: a warning"], ["toy: a note"])


def test_nothing_is_overwritten_without_force(out):
    made = toy.smooth()
    go(made, out)
    with pytest.raises(BadInput, match=r"result\.gz exists; use --force to overwrite, or another --out"):
        go(toy.smooth(scale=2.0), out)
    check(made, out)
    go(toy.smooth(scale=2.0), out, force=True)
    check(toy.smooth(scale=2.0), out)


# Failures: every rank ends in the same way, and says who, where and what, once.


def fails(made, out, where, what="RuntimeError: on purpose", **fields):
    with pytest.raises(RunFailed) as caught:
        go(made, out, **fields)
    report = str(caught.value)
    assert COMM.allgather(report) == [report] * COMM.size
    rank = int(report.split()[1])
    assert 0 <= rank < COMM.size
    assert report.startswith(f"rank {rank} on {socket.gethostname()}, {where}")
    assert report.count("Traceback (most recent call last)") == ("\n" in report)
    assert what in report.splitlines()[-1]
    assert not (out / toy.OUTPUT).exists()
    assert not (out / "run-toy.json").exists()
    return report


ON_PURPOSE = RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("name", "stage", "chunk", "where", "in_memory"),
    [
        ("smooth", "make", 0, "stage make, chunk 0 {'z': (0, 2)}", False),
        ("smooth", "blur-2", 5, "stage blur-2, chunk 5 {'z': (10, 11)}", True),
        ("smooth", "sum", 3, "stage sum, chunk 3 {'z': (6, 8)}", False),
        ("smooth", "finish", 0, "stage sum, end", True),
        ("smooth", "write", 2, "stage write, chunk 2", True),
        ("transpose", "read", 4, "stage read, chunk 4", False),
        ("transpose", "read", 9, "stage read, chunk 9", True),
        ("regroup", "warp", 3, "stage warp, chunk 3 {'e': (3, 4)}", True),
        ("regroup", "combine", 4, "stage combine, chunk 4 {'b': (4, 5)}", False),
        ("regroup", "save", 3, "stage save, chunk 3", False),
        ("ragged", "blur", 2, "stage blur, chunk 2 {'e': (0, 1), 'y': (4, 6)}", True),
        ("ragged", "cut", 7, "stage cut, chunk 7 {'e': (7, 8)}", False),
        ("records", "scatter", 3, "stage scatter, chunk 3 {'e': (3, 4)}", False),
        ("records", "add-up", 1, "stage add-up, chunk 1 {'g': (1, 2)}", True),
    ],
)
def test_an_exception_in_a_chunk_ends_all_ranks(name, stage, chunk, where, in_memory, out):
    fails(toy.TOYS[name](at(stage, chunk, lambda: throw(ON_PURPOSE))), out, where, in_memory=in_memory)
    made = toy.TOYS[name]()
    go(made, out, in_memory=in_memory)
    check(made, out)


def test_exceptions_everywhere_are_reported_once(out):
    fails(toy.smooth(lambda stage, chunk: throw(ON_PURPOSE)), out, "stage make, chunk ")


@pytest.mark.parametrize("of_first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize(
    ("make", "number"),
    [(lambda: toy.smooth(depth=16), 1), (lambda: toy.transpose(volumes=8), 2)],
    ids=["map", "stream"],
)
def test_a_full_disk_ends_all_ranks(make, number, of_first, out, monkeypatch):
    """A rank cannot write its n-th block any more: in a map, and while others wait for a stream."""
    write, count, rank = StagedStore.write, [0], 0 if of_first else LAST

    def full(self, *args):
        count[0] += COMM.rank == rank
        if count[0] > number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(StagedStore, "write", full)
        report = fails(make(), out, "stage ", "No space left on device; free some space there")
    assert report.startswith(f"rank {rank} ") and "\n" not in report
    made = make()
    go(made, out)
    check(made, out)


def test_a_failed_write_of_rank_0_names_its_chunk(out, monkeypatch):
    """Not the next one of the stream, which was not yet read."""
    write = StagedStore.write

    def full(self, name, number, block):
        if number == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, name, number, block)

    monkeypatch.setattr(StagedStore, "write", full)
    fails(toy.transpose(), out, "stage read, chunk 0", "No space left on device")


@pytest.mark.parametrize(
    ("writer", "name", "where"),
    [(writing, "write_fully", "stage write"), (StagedStore, "sync", "stage warp")],
    ids=["sink", "marks"],
)
def test_a_full_disk_under_what_is_no_array_ends_all_ranks(writer, name, where, out, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, name, full)
        fails(toy.regroup(), out, where, "No space left on device")
    made = toy.regroup()
    go(made, out)
    check(made, out)


@pytest.mark.parametrize(
    ("where", "number"),
    [
        *(("sink", number) for number in system_errors.ADVICE),
        *((where, errno.EDQUOT) for where in ("array", "marks", "files", "publishing")),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_said_in_one_line_and_all_goes_on(where, number, out, monkeypatch):
    """With the file; the traceback is in the events."""
    made = toy.regroup()

    def refuse(*arguments, **named):
        raise OSError(number, os.strerror(number))

    owner, name, file = {
        "array": (raw, "write_fully", "pieces."),  # with parallel HDF5 it is the file of the sums
        "sink": (writing, "write_fully", toy.OUTPUT),
        "marks": (os, "fdatasync", ".h5"),
        "files": (results, "sum_of_file", ""),
        "publishing": (results, "sync", ""),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        report = fails(made, out, "", f"{os.strerror(number)}; ")
    assert "\n" not in report and file in report
    assert report.endswith(f"; {system_errors.ADVICE[number]}, then give the same command again")
    (events,) = out.glob("events*")
    ends = [event for event in read_events(events / "0.jsonl") if event["event"] == "end"]
    assert "Traceback" in ends[-1]["details"] and ends[-1]["why"] == report
    COMM.Barrier()
    go(made, out)
    check(made, out)


@pytest.mark.parametrize(
    ("made", "in_memory"),
    [
        (toy.smooth(at("blur-2", 3, lambda: throw(BadInput("x.nii: no good")))), False),
        (toy.smooth(at("finish", 0, lambda: throw(BadInput("x.nii: no good")))), False),
        (toy.transpose(fail=BadInput("x.nii: no good")), False),
        (toy.transpose(fail=BadInput("x.nii: no good")), True),
        (toy.regroup(at("write", 0, lambda: throw(BadInput("x.nii: no good")))), True),
    ],
    ids=["map", "finish", "stream", "stream-in-memory", "sink"],
)
def test_bad_input_ends_all_ranks_and_leaves_nothing(made, in_memory, out):
    with pytest.raises(BadInput) as caught:
        go(made, out, in_memory=in_memory)
    assert str(caught.value) == "x.nii: no good"
    assert not out.exists()


def test_bad_input_leaves_what_was_there(out):
    """Only what the run made is taken back."""
    if COMM.rank == 0:
        out.mkdir()
        (out / "mine").write_text("keep")
    COMM.Barrier()  # the folder is there before any rank goes on
    with pytest.raises(BadInput):
        go(toy.transpose(fail=BadInput("no good")), out)
    assert [path.name for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("fail", [RuntimeError("on purpose"), EOFError()], ids=["raises", "ends"])
def test_a_stream_that_fails_in_the_middle_ends_all_ranks(fail, out):
    """Also one that just ends: ranks that wait for blocks are told that none will come."""
    half = len(toy.blocks(5, 2)) * 7 // 2
    with pytest.raises(RunFailed, match=f"^rank 0 on .*, stage read, chunk {half}:"):
        go(toy.transpose(fail=fail), out)
    made = toy.transpose()
    go(made, out)
    check(made, out)


# Stop and resume.


def total_chunks(made):
    """How many chunks have a mark of their own: all but those of sinks and files."""
    return sum(
        len(stage.grid)
        for stage in made.recipe.expected
        if isinstance(stage, Stream | Compute | Reduce | Records)
    )


def marked(made, out):
    """How many chunks are marked as done."""
    return len(list(read_marks(work_folder(made, out) / "journal")))


def resumes(before, calls, made, out, comm=COMM, **fields):
    """Run again: what is marked is not computed again, and the result is that of a plain loop."""
    report = go(made, out, comm, **fields)
    check(made, out)
    resumed = sum(entry["resumed_chunks"] for entry in report["stages"])
    assert resumed == before
    again = [call for call in calls.all() if call[0] not in ("write", "save", "finish")]
    assert len(set(again)) == len(again) == total_chunks(made) - resumed
    assert not work_folder(made, out).exists()


@pytest.mark.parametrize(
    ("name", "stage", "chunk"),
    [
        ("smooth", "blur-2", 4),
        ("smooth", "sum", 0),
        ("smooth", "write", 1),
        ("regroup", "combine", 1),
        ("ragged", "blur", 6),
        ("ragged", "gather", 1),
        ("records", "scatter", 6),
        ("records", "add-up", 2),
    ],
)
def test_marked_chunks_are_not_computed_again(name, stage, chunk, out):
    made = toy.TOYS[name](at(stage, chunk, lambda: throw(ON_PURPOSE)))
    fails(made, out, f"stage {stage}, chunk {chunk}")
    before = marked(made, out)
    assert before > 0
    calls = Calls()
    resumes(before, calls, toy.TOYS[name](calls), out)


def test_a_stream_is_read_again_only_as_far_as_needed(out):
    """Blocks that are staged are not handed out again; behind the last that is missing nothing is read."""
    made = toy.transpose(at("turn", 1, lambda: throw(ON_PURPOSE)))
    fails(made, out, "stage turn")
    calls = Calls()
    go(toy.transpose(calls), out)
    check(made, out)
    assert not any(stage in ("read", "negate") for stage, _ in calls.all())


@pytest.mark.parametrize("name", toy.TOYS)
def test_resume_on_any_number_of_ranks(name, out):
    """Begun on one rank, gone on with on two, and so on to all, and each fails a little later."""
    stops = {
        "smooth": [("blur-1", 2), ("blur-2", 1), ("blur-3", 5)],
        "transpose": [("negate", 3), ("turn", 1), ("write", 0)],
        "regroup": [("warp", 4), ("combine", 1), ("write", 0)],
        "ragged": [("blur", 5), ("cut", 2), ("both", 0)],
        "records": [("scatter", 5), ("combine", 2), ("add-up", 1)],
    }[name]
    for count, (stage, chunk) in enumerate(stops[:LAST], start=1):
        with first_ranks(count) as comm:
            if comm is not None:
                with pytest.raises(RunFailed, match=f"stage {stage}, chunk {chunk}"):
                    go(toy.TOYS[name](at(stage, chunk, lambda: throw(ON_PURPOSE))), out, comm)
    calls = Calls()
    made = toy.TOYS[name](calls)
    if LAST:
        before = len({(mark.stage, mark.chunk) for mark in read_marks(work_folder(made, out) / "journal")})
        assert before > 0
        COMM.Barrier()  # all have counted before the next run marks more
        report = go(made, out)
        assert sum(entry["resumed_chunks"] for entry in report["stages"]) == before
    else:
        go(made, out)
    check(made, out)


def test_resume_on_fewer_ranks(out):
    """Begun on all ranks, finished by the first alone."""
    fails(toy.smooth(at("blur-3", 1, lambda: throw(ON_PURPOSE))), out, "stage blur-3")
    with first_ranks(1) as comm:
        if comm is not None:
            report = go(toy.smooth(), out, comm)
            assert sum(entry["resumed_chunks"] for entry in report["stages"]) > 0
    check(toy.smooth(), out)


def test_altered_bytes_are_found_and_computed_again(out, capfd):
    """One byte of one marked chunk was flipped in the staged file since."""
    fails(toy.smooth(at("sum", 0, lambda: throw(ON_PURPOSE))), out, "stage sum")
    if COMM.rank == 0:
        path = work_folder(toy.smooth(), out) / "pass-1.h5"
        with h5py.File(path, "r+", locking=False) as file:
            values = file["data"][5].view("uint8")
            values[7] ^= 1
            file["data"][5] = values.view("float32")
    COMM.Barrier()  # the byte is flipped before any rank reads it
    capfd.readouterr()
    calls = Calls()
    go(toy.smooth(calls), out)
    check(toy.smooth(), out)
    stages = {"make", "blur-1", "blur-2", "blur-3"}
    assert [call for call in calls.all() if call[0] in stages] == [("blur-1", 2)]
    said = "mpiimg: warning: stage blur-1: 1 chunks were altered since they were marked"
    assert capfd.readouterr().err.count(said) == (COMM.rank == 0)


def test_a_lost_staged_file_is_made_anew(out):
    fails(toy.smooth(at("sum", 0, lambda: throw(ON_PURPOSE))), out, "stage sum")
    if COMM.rank == 0:
        (work_folder(toy.smooth(), out) / "pass-2.h5").unlink()
    COMM.Barrier()  # the file is gone before any rank looks for it
    calls = Calls()
    go(toy.smooth(calls), out)
    check(toy.smooth(), out)
    assert {stage for stage, _ in calls.all()} & {"make", "blur-1", "blur-2", "blur-3"} == {"blur-2"}


def test_a_stream_that_is_not_what_was_marked_is_refused(out):
    """Its size, time and samples may be the same: it is compared block by block where it is read again."""
    with pytest.raises(RunFailed):
        go(toy.transpose(at("read", 9, lambda: throw(ON_PURPOSE))), out)
    made = toy.transpose()
    blocks = made.recipe.expected[0].blocks

    def stages():
        below = made.recipe.stages()
        yield dataclasses.replace(next(below), blocks=lambda: (block + 1 for block in blocks()))
        return (yield from below)

    altered = dataclasses.replace(made.recipe, stages=stages)
    with pytest.raises(BadInput, match=r"stage read, chunk 0: the input is not what an earlier run read"):
        run(altered, COMM, options(out))
    go(made, out)
    check(made, out)


def test_another_parameter_voids_the_marks(out):
    """Of the stage that has it, and of all that depend on it."""
    fails(toy.smooth(at("divide", 3, lambda: throw(ON_PURPOSE))), out, "stage divide")
    calls = Calls()
    made = toy.smooth(calls, scale=2.0)
    report = go(made, out)
    check(made, out)
    assert sum(entry["resumed_chunks"] for entry in report["stages"]) == 0
    assert len([call for call in calls.all() if call[0] not in ("write", "save", "finish")]) == total_chunks(
        made
    )


@pytest.mark.parametrize("name", ["mpiimg", *provenance.RESULT_LIBRARIES, "CPU", "plugin"])
def test_marks_of_another_version_or_cpu_are_void(name, out, monkeypatch):
    """Of ours, of each library that results come from, of a plugin; and what another CPU computed."""
    fails(toy.smooth(at("sum", 0, lambda: throw(ON_PURPOSE))), out, "stage sum")
    calls = Calls()
    made = toy.smooth(calls)
    versions = provenance.versions
    if name == "mpiimg":
        monkeypatch.setattr(provenance, "__version__", "0.0.1")
    elif name == "CPU":
        monkeypatch.setattr(jit, "cpu_target", lambda: "another")
    elif name == "plugin":
        made = dataclasses.replace(made, recipe=dataclasses.replace(made.recipe, packages={"p": "1"}))
    else:
        monkeypatch.setattr(provenance, "versions", lambda names: {**versions(names), name: "0.0.1"})
    report = go(made, out)
    check(made, out)
    assert sum(entry["resumed_chunks"] for entry in report["stages"]) == 0
    stages = ["make", *(f"blur-{k}" for k in (1, 2, 3)), "sum", "divide"]
    assert {call for call in calls.all() if call[0] in stages} == {(s, n) for s in stages for n in range(6)}


@pytest.mark.parametrize(("of_first", "number"), [(True, signal.SIGTERM), (False, signal.SIGUSR1)])
def test_a_signal_to_one_rank_stops_all_at_a_chunk_boundary(of_first, number, out):
    sent, rank = [], 0 if of_first else LAST

    def send(stage, chunk):
        if stage == "blur-2" and COMM.rank == rank and not sent:
            sent.append(chunk)
            os.kill(os.getpid(), number)

    calls = Calls(send)
    made = toy.smooth(calls, depth=40)
    with pytest.raises(RunStopped, match="the same command goes on from there"):
        go(made, out)
    assert COMM.allreduce(len(sent)) == 1
    assert ("sum", 0) not in calls.all()
    before = marked(made, out)
    assert before >= 40
    calls = Calls()
    resumes(before, calls, toy.smooth(calls, depth=40), out)


def test_what_a_stopped_run_marks_last_is_durable(out, monkeypatch):
    """The last marks are written while the arrays they speak of are open and can be synced."""
    files, synced = [], []
    sync, mark = StagedStore.sync, Journal.sync

    def sync_data(store):
        files.append(len(store._files))
        sync(store)

    def sync_marks(journal):
        if journal._pending:
            before = len(files)
            mark(journal)
            synced.extend(files[before:])

    monkeypatch.setattr(StagedStore, "sync", sync_data)
    monkeypatch.setattr(Journal, "sync", sync_marks)
    hook = at("blur-2", 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunStopped):
        go(toy.smooth(hook, depth=40), out, sync_every=1e9)
    assert synced and 0 not in synced


def test_a_signal_stops_a_stream(out):
    """The reader stops, and ranks that wait for blocks are told."""
    calls = Calls(at("read", 3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(RunStopped):
        go(toy.transpose(calls, volumes=9), out)
    assert max(chunk for _, chunk in calls.all()) < 9
    made = toy.transpose(volumes=9)
    go(made, out)
    check(made, out)


def test_a_run_in_memory_that_stops_starts_over(out):
    hook = at("blur-2", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunStopped, match="it starts over"):
        go(toy.smooth(hook), out, in_memory=True)
    calls = Calls()
    made = toy.smooth(calls)
    go(made, out, in_memory=True)
    check(made, out)
    assert len({call for call in calls.all() if call[0] not in ("write", "save", "finish")}) == total_chunks(
        made
    )


# Staged bytes that are not what was written.


#: Of each toy: an array that is in its file by the time that a stage begins which reads it.
READ_BACK = {
    "smooth": ("pass-1", "blur-2"),
    "transpose": ("negative", "turn"),
    "regroup": ("pieces", "combine"),
    "ragged": ("soft", "subtract"),
    "records": ("coadd", "write"),
}


def flip(path):
    """Flip a bit of the first item of a staged array, or of the sum of its first page."""
    place = dataset_offset(path) if path.suffix == ".h5" else 0
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 16]))


def spoiling(monkeypatch, spoil, array, reader):
    """Let a rank spoil an array that has to be read from its file, once, when a stage begins which does."""
    turn_to, spoilt = executor.Executor._turn_to, []

    def spoil_first(self, stage, *arguments):
        if stage.name == reader and not spoilt:
            spoilt.append(stage)
            self.arrays.spill([array])
            COMM.Barrier()  # all have come to an end with the stage before
            if COMM.rank == LAST:
                spoil()
            COMM.Barrier()  # nobody reads before it is spoilt
        return turn_to(self, stage, *arguments)

    monkeypatch.setattr(executor.Executor, "_turn_to", spoil_first)


@pytest.mark.parametrize("kind", ["h5", "sums"])
@pytest.mark.parametrize("name", toy.TOYS)
def test_a_bit_that_flips_while_the_run_is_on_ends_it_and_the_next_one_mends_it(name, kind, out, monkeypatch):
    """All ranks stop, with one line that says where; whether the bytes or their sums are damaged."""
    array, reader = READ_BACK[name]
    made = toy.TOYS[name]()
    path = work_folder(made, out) / f"{array}.{kind}"
    with monkeypatch.context() as patch:
        spoiling(patch, lambda: flip(path), array, reader)
        with pytest.raises(DamagedData) as caught:
            go(made, out)
    assert COMM.allgather(str(caught.value)) == [str(caught.value)] * COMM.size
    said = str(caught.value)
    assert f"of array {array} is not what was written" in said and "the same command goes on" in said
    assert said.startswith(f"{path.with_suffix('.h5')}: what is there of chunk ")
    calls = Calls()
    again = toy.TOYS[name](calls)
    report = go(again, out)
    check(again, out)
    resumed = {entry["stage"]: entry["resumed_chunks"] for entry in report["stages"]}
    made_again = {call for call in calls.all() if call[0] == made_by(again, array)}
    assert len(made_again) == (kind == "h5")
    assert sum(resumed.values()) > 0
    assert not work_folder(made, out).exists()


def made_by(made, array):
    """The stage that writes an array."""
    return next(
        stage.name for stage in made.recipe.expected if array in [written.name for written in stage.arrays]
    )


def test_the_rows_of_a_reduction_are_verified_too(out, monkeypatch):
    """Rank 0 alone reads them, and all ranks end."""
    made = toy.smooth()
    finish, rows = executor.Executor._finish, work_folder(made, out)

    def spoilt(self, stage):
        if COMM.rank == 0:
            flip(rows / f"{stage.rows.name}.h5")
        self.arrays.spill([stage.rows.name])
        return finish(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(executor.Executor, "_finish", spoilt)
        with pytest.raises(DamagedData, match="is not what was written"):
            go(made, out)
    go(made, out)
    check(made, out)


# What ranks agree on.


def test_one_rank_speaks_for_all():
    assert on_root(COMM, lambda: COMM.rank) == 0
    raised = ((BadInput("no"), BadInput), (DamagedData("no"), DamagedData), (KeyError("no"), RunFailed))
    for error, expected in raised:
        with pytest.raises(expected, match="no"):
            on_root(COMM, throw, error)


STATES = {
    "go": lambda agreement: None,
    "stop": lambda agreement: setattr(agreement, "stop_requested", True),
    "damaged": lambda agreement: agreement.record(DamagedData("damaged"), "here"),
    "bad": lambda agreement: agreement.record(BadInput("bad"), "here"),
    "fail": lambda agreement: agreement.record(ValueError("worse"), "there"),
}


@pytest.mark.parametrize(
    ("states", "outcome"),
    [
        (["go"], None),
        (["stop"], RunStopped),
        (["stop", "go"], RunStopped),
        (["go", "go", "stop"], RunStopped),
        (["go", "damaged"], DamagedData),
        (["stop", "damaged"], DamagedData),
        (["damaged", "bad"], BadInput),
        (["damaged", "fail"], RunFailed),
        (["go", "bad"], BadInput),
        (["stop", "bad"], BadInput),
        (["bad", "fail"], RunFailed),
        (["fail", "bad", "stop", "go"], RunFailed),
        (["fail", "fail", "fail", "fail"], RunFailed),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_the_worst_of_all_states_decides(states, outcome):
    """Ranks in the given states, repeated as often as there are ranks (those that fit on so few)."""
    if len(states) > COMM.size:
        pytest.skip("needs more ranks")
    agreement = Agreement(COMM)
    for turn in range(2):
        STATES[states[COMM.rank % len(states)]](agreement)
        if turn == 0:
            agreement.interrupted()
        if outcome is None:
            agreement.agree()
            continue
        with pytest.raises(outcome) as caught:
            agreement.agree()
        assert COMM.allgather(str(caught.value)) == [str(caught.value)] * COMM.size
        if outcome is RunFailed:
            first = next(r for r in range(COMM.size) if states[r % len(states)] == "fail")
            assert str(caught.value) == f"rank {first} on {socket.gethostname()}, there:\nValueError: worse"
        if outcome in (BadInput, DamagedData):
            assert str(caught.value) == {BadInput: "bad", DamagedData: "damaged"}[outcome]


def test_a_failure_is_noticed_by_ranks_that_work_on():
    """Who fails warns the others, who look at every chunk boundary; then all agree, with no message left."""
    agreement = Agreement(COMM)
    if COMM.rank == LAST:
        agreement.record(ValueError("on purpose"), "here")
    else:
        while not agreement.interrupted():
            pass
    with pytest.raises(RunFailed, match="on purpose"):
        agreement.agree()
    # All have agreed before anyone looks for a message that should not be there.
    COMM.Barrier()
    assert COMM.rank == LAST or not agreement.interrupted()


def test_memory_is_agreed_on(monkeypatch):
    monkeypatch.setattr(nodes, "_node_memory", lambda: (1 + COMM.rank) << 30)
    assert memory_per_rank(COMM) == (1 << 30) * 9 // 10 // COMM.size


def test_results_do_not_depend_on_the_number_of_ranks(out):
    """The sum of the toy really depends on its order: added up backwards it is another number."""
    made = toy.smooth()
    go(made, out)
    rows = [made.result[a:b] for a, b in toy.blocks(11, 2)]
    assert np.concatenate(rows).shape == made.result.shape
    total = np.float32(eval((out / "total.txt").read_text(), {"np": np}))
    image = made.result * np.float64(total)
    partial = np.array([np.float32(image[a:b].sum(dtype=np.float32)) for a, b in toy.blocks(11, 2)])
    assert toy.in_order(partial[::-1]) != toy.in_order(partial)
