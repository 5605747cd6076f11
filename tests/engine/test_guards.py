"""Guards of the engine that no other test names: each stands beside the comment that says why it is there."""

from __future__ import annotations

import builtins
import ctypes
import fcntl
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mpiimg.engine import lease, plugins
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.checkpoint import Checkpoint, Journal, Mark, checksum
from mpiimg.engine.folders import Folders
from mpiimg.engine.lease import Kind, WorkLease
from mpiimg.engine.log import run_status
from mpiimg.engine.log.events import EventLog, read_events
from mpiimg.engine.mpi import memory, processes
from mpiimg.engine.mpi.agreement import Agreement
from mpiimg.engine.mpi.stale_shm import remove_stale_segments
from mpiimg.engine.needs import Part
from mpiimg.engine.provenance import Provenance
from mpiimg.engine.stage import Compute
from mpiimg.engine.staged_file import create_staged, dataset_offset
from mpiimg.errors import RunFailed


@pytest.fixture
def alone():
    """The communicator of this process."""
    from mpi4py import MPI

    return MPI.COMM_SELF


# Leases and work folders.


def test_a_lease_that_is_released_between_two_looks_is_no_death(tmp_path, monkeypatch):
    number = lease.acquire(tmp_path, lease.read_lease(tmp_path), lease.sign("run", 100.0))

    def released_meanwhile(*arguments):
        lease.release(tmp_path, number, Kind.DONE)
        return False

    monkeypatch.setattr(lease, "is_alive", released_meanwhile)
    state = lease.read_lease(tmp_path)
    assert (state.kind, state.deaths) == (Kind.DONE, 0)


@pytest.mark.parametrize(("number", "stays"), [(1, False), (2, True)])
def test_a_refused_run_leaves_the_marks_of_one_that_began_at_the_same_time(tmp_path, number, stays):
    """Both found no work folder, and both take it for new."""
    work, events = tmp_path / "work" / "dwi.neuro", tmp_path / "events"
    (work / "journal").mkdir(parents=True)
    events.mkdir()
    (work / "journal" / "marks.jsonl").touch()
    Folders(work, events, (events, work, work.parent), WorkLease(work, number)).remove_new()
    assert (work / "journal" / "marks.jsonl").exists() == stays
    assert not events.exists()


# Marks.


def test_of_marks_of_one_chunk_the_newest_counts(tmp_path, alone):
    """Also where it was chunk 5 of one run, chunk 3 of the next, and chunk 5 again."""
    for chunk_before, value in ((5, 1.0), (3, 2.0), (5, 3.0)):
        journal = Journal(tmp_path, 0, lambda: None, every=1e9)
        journal.mark(Mark("s", chunk_before, "p", ((checksum(np.array([value])), 8),)))
        journal.sync()
        journal.close()
    checkpoint = Checkpoint(alone, tmp_path, None, None, 5.0)
    checkpoint.load()
    array = Array("a", "z", (1,), "float64")
    stage = Compute("s", ChunkGrid("z", (1,), (1,)), reads=(Part(array),), writes=(array,), work=None)
    newest = checkpoint.marked(stage, Provenance("whole", ("p",)))[0]
    assert newest.blocks == ((checksum(np.array([3.0])), 8),)


def test_a_staged_file_has_its_full_length_before_anything_is_written(tmp_path):
    """Else a box behind the end would be missing, and the disk could fill up half way."""
    array = Array("a", "zy", (50, 40), "float32")
    create_staged(tmp_path / "a.h5", array)
    assert os.path.getsize(tmp_path / "a.h5") >= dataset_offset(tmp_path / "a.h5") + array.nbytes


# What a run says of itself.


def _ended(status: int, why: str) -> list[dict]:
    return [{"event": "end", "status": status, "why": why, "time": 1.0}]


def test_where_ranks_differ_the_one_that_failed_says_how_a_run_ended():
    logs = {0: _ended(0, ""), 1: _ended(1, "no space left"), 2: _ended(0, "")}
    assert run_status._state(logs, {}, 1.0) == ("failed", "no space left")


def test_a_planned_stage_that_was_not_needed_is_not_in_a_finished_run():
    begun = {"event": "stage", "stage": "smooth", "chunks": 2, "done": 0, "time": 1.0}
    start = {"stages": [["smooth", 2], ["estimate", 1]], "ranks": 1}
    names = {
        state: [stage.name for stage in run_status._stages({0: [begun]}, start, state)]
        for state in ("done", "running")
    }
    assert names == {"done": ["smooth"], "running": ["smooth", "estimate"]}


def test_a_flush_that_meets_the_watchdogs_loses_no_line(tmp_path):
    log = EventLog(tmp_path, 0)
    log.write("start")
    with log._lock:
        log.flush()
        assert list(read_events(tmp_path / "0.jsonl")) == []
    log.close()
    assert [event["event"] for event in read_events(tmp_path / "0.jsonl")] == ["start"]


# Processes and memory.


def test_the_name_of_a_program_may_hold_spaces_and_brackets(tmp_path):
    program = tmp_path / "a) S (b c"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "5"]) as sleeper:
        while (stat := processes.process_stat(sleeper.pid)).command != program.name:
            assert time.sleep(0.01) is None  # it has not become the program yet
        sleeper.kill()
    assert stat.parent == os.getpid() and stat.is_alive


def test_a_c_library_that_gives_no_memory_back_is_done_without(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.give_back()


def test_a_container_that_does_not_let_peaks_be_forgotten_tells_the_highest_so_far(monkeypatch):
    opened = builtins.open

    def refused(path, *arguments, **named):
        if path == "/proc/self/clear_refs":
            raise PermissionError(path)
        return opened(path, *arguments, **named)

    monkeypatch.setattr(builtins, "open", refused)
    before = memory.resident_peak()
    memory.restart_peak()
    # The kernel counts pages a batch at a time.
    assert memory.resident_peak() > before - (4 << 20) > 0


def test_a_rank_that_waited_for_its_turn_does_not_remove_what_another_has_made_since(tmp_path):
    """Ranks of a node come in no order: one may start MPI while the next has opened the stale segment."""
    step = {"SLURM_STEP_NUM_TASKS": "4", "PMI_FD": "11", "PMI_JOBID": "3877260.0", "SLURM_NODEID": "1"}
    segment = tmp_path / "mpich_shm_f4999f4a_1"
    segment.touch()
    with open(segment, "rb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        later = threading.Thread(
            target=remove_stale_segments, args=(step, str(tmp_path), time.time() + 100), daemon=True
        )
        later.start()
        time.sleep(0.3)
        assert later.is_alive() and segment.exists()
        segment.unlink()
        segment.write_bytes(b"of MPI that has started")
    later.join(10)
    assert segment.read_bytes() == b"of MPI that has started"


# Failures and plugins.


def test_what_a_group_has_agreed_on_is_reported_to_the_job_as_it_is(alone):
    agreement = Agreement(alone)
    agreement.record(RunFailed("rank 3 on n2, stage fit"), "group 1")
    with pytest.raises(RunFailed, match=r"^rank 3 on n2, stage fit$"):
        agreement.agree()
    agreement.close()


def test_a_requirement_for_another_system_has_no_version():
    class Package:
        name, version = "plugin", "1.0"
        requires = ("numpy>=1", 'no-such-package; sys_platform == "plan9"', "pytest; extra == 'test'")

    assert plugins._versions(Package) == {"plugin": "1.0", "numpy": np.__version__}


def test_kernels_run_where_numba_is_told_not_to_compile():
    code = "from mpiimg.kernels.jit import kernel; print(kernel(lambda x: x + 1)(1))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr
