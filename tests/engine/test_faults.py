"""Whatever goes wrong on one rank, the job ends soon and says what; the same command then goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from support import launch, sabotage, toy, warm
from support.subjects import gunzipped

from mpiimg.engine.lease import Kind, read_lease
from mpiimg.engine.log.events import read_events
from mpiimg.engine.log.run_status import run_status
from mpiimg.errors import Exit

pytestmark = pytest.mark.tool

#: Seconds within which a broken run must have ended, on a loaded machine.
SOON = 60

PYTHON = sys.executable
WHEEL = os.path.exists(os.path.join(os.path.dirname(PYTHON), "mpiexec.hydra"))


@pytest.fixture(scope="module")
def faulty(zygotes):
    """Return a function that gives the command of a run with a fault."""
    zygote = zygotes[0]

    def command(rank, stage, chunk, fault, what="", run=(), ranks=3):
        words = [rank, stage, chunk, fault, what, "--", *run]
        return [*(launch.mpiexec(ranks) if ranks else []), *zygote.rank("support.faulty", *words)]

    return command


def toy_run(name, out, timeout=60):
    return ["toy", name, out, timeout]


def goes_on(faulty, name, out):
    """The same run without a fault ends with the bytes of a plain loop."""
    launch.run(faulty(0, "nowhere", 0, "die", run=toy_run(name, out), ranks=None), timeout=SOON)
    assert (out / toy.OUTPUT).read_bytes() == toy.TOYS[name](**toy.LONG[name]).bytes


def lock(out, name="smooth") -> Kind:
    """Return what the last run of a toy has left of its lock."""
    return read_lease(out / "work" / f"{name}.toy").kind


@pytest.mark.site
@pytest.mark.parametrize(
    ("name", "rank", "stage", "chunk"),
    [
        # What the others wait for: the agreement, a halo, a stream, the end of a reduce, places in a file.
        pytest.param("smooth", 1, "blur-2", 5, id="agreement"),
        pytest.param("smooth", 2, "exchange", 1, id="exchange"),
        pytest.param("transpose", 0, "read", 7, id="stream"),
        pytest.param("smooth", 0, "finish", 0, id="end-of-reduce"),
        pytest.param("regroup", 0, "write", 0, id="sink"),
    ],
)
def test_a_rank_that_is_killed_ends_the_job(faulty, tmp_path, name, rank, stage, chunk):
    out = tmp_path / "out"
    done = launch.run(faulty(rank, stage, chunk, "die", run=toy_run(name, out)), timeout=SOON, check=False)
    assert done.returncode != 0
    assert not (out / toy.OUTPUT).exists()
    # A launcher may be gone before the last of its ranks is.
    deadline = time.monotonic() + 20
    while run_status(out / "events-toy").state not in ("lost", "failed"):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.05)
    assert lock(out, name) in (Kind.DIED, Kind.IN_WORK)  # as above, of rank 0
    goes_on(faulty, name, out)


def one_report(done, rank, where, error):
    """Exit status 1, and one traceback, headed by rank, host, stage and chunk."""
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("Traceback") == 1, done.stderr
    (head,) = [line for line in done.stderr.splitlines() if line.startswith("mpiimg: failed")]
    assert head.startswith(f"mpiimg: failed: rank {rank} on {socket.gethostname()}, {where}"), head
    assert error in done.stderr


def test_a_rank_that_runs_out_of_memory_ends_the_job_with_one_report(faulty, tmp_path):
    out = tmp_path / "out"
    command = faulty(1, "blur-2", 5, "run_out_of_memory", run=toy_run("smooth", out))
    one_report(launch.run(command, timeout=SOON, check=False), 1, "stage blur-2, chunk 5", "MemoryError")
    status = run_status(out / "events-toy")
    assert status.state == "failed"
    assert "stage blur-2, chunk 5" in status.why and "MemoryError" in status.why
    assert lock(out) is Kind.FAILED
    goes_on(faulty, "smooth", out)


@pytest.mark.site
def test_memory_that_lacks_inside_an_exchange_aborts_the_job_and_says_where(faulty, tmp_path):
    """The others are in the exchange already: there is nothing to agree on any more."""
    out = tmp_path / "out"
    command = faulty(1, "exchange", 1, "run_out_of_memory", run=toy_run("smooth", out))
    done = launch.run(command, timeout=SOON, check=False)
    assert done.returncode != 0
    assert f"mpiimg: rank 1 on {socket.gethostname()} aborts the job" in done.stderr
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert "MemoryError" in done.stderr and "in stage blur-2, an exchange" in done.stderr
    status = run_status(out / "events-toy")
    assert status.state == "failed"
    assert any("MemoryError" in error for error in status.errors)
    goes_on(faulty, "smooth", out)


def test_a_quota_ends_the_job_with_one_line(faulty, tmp_path):
    """Neither arrays nor marks can be written by one rank; those of the others count."""
    out = tmp_path / "out"
    command = faulty(1, "blur-1", 5, "reach_a_quota", run=toy_run("smooth", out))
    done = launch.run(command, timeout=SOON, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpiimg: ")]
    assert "Traceback" not in done.stderr
    assert line.startswith(f"mpiimg: failed: rank 1 on {socket.gethostname()}, stage blur-1")
    assert "File too large" in line
    goes_on(faulty, "smooth", out)


# The watchdog.


def hangs(faulty, tmp_path, rank, stage, chunk, fault, name="smooth", what=""):
    out = tmp_path / "out"
    done = launch.run(
        faulty(rank, stage, chunk, fault, what, run=toy_run(name, out, timeout=3)), timeout=SOON, check=False
    )
    assert done.returncode != 0
    assert "ends the job" in done.stderr, done.stderr
    status = run_status(out / "events-toy")
    assert status.state == "failed" and "hung" in status.why
    return out, done.stderr


@pytest.mark.site
def test_a_hanging_read_ends_the_job_and_says_what_each_rank_was_doing(faulty, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    out, said = hangs(faulty, tmp_path, 1, "blur-2", 5, "hang_in_read", what=tmp_path / "pipe")
    assert f"mpiimg: rank 1 on {socket.gethostname()} has hung for" in said
    assert "stage blur-2, chunk 5" in said
    assert "in hang_in_read" in said
    assert "mpiimg: ranks 0, 2 since" in said or "mpiimg: ranks 0 since" in said
    assert "for the other ranks" in said
    goes_on(faulty, "smooth", out)


@pytest.mark.site
def test_a_rank_that_never_arrives_ends_the_job(faulty, tmp_path):
    """It can say nothing itself; those that wait for it say which it is, where, and what keeps it."""
    out, said = hangs(faulty, tmp_path, 2, "blur-2", 7, "freeze")
    first = next(line for line in said.splitlines() if line.startswith("mpiimg: "))
    assert re.match(rf"mpiimg: rank 2 on {socket.gethostname()} \(process \d+\) has made no progress", first)
    assert "stage blur-2, chunk 7; it is stopped by a signal (state T) (--timeout 3)" in first
    assert re.search(r"mpiimg: rank [01] on .*, which waits for it, ends the job", said)
    goes_on(faulty, "smooth", out)


@pytest.mark.site
def test_a_reader_that_hangs_ends_those_who_wait_for_blocks(faulty, tmp_path):
    _, said = hangs(faulty, tmp_path, 0, "read", 7, "freeze", name="transpose")
    assert "waits for blocks" in said


def test_a_timeout_below_what_a_step_may_take_is_refused(simulated, tmp_path):
    words = ["mpiimg-neuro", *simulated.arguments, "--out", tmp_path / "out", "--timeout", 20]
    done = warm.run_tool(*words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mpiimg: error: --timeout 20: ")
    assert not (tmp_path / "out").exists()


# Signals.


def signalled(faulty, out, marker, ranks, numbers):
    """Start a slow run, send the launcher signals once it works, and return its exit status and stderr."""
    command = faulty(0, "any", 0, "pause", marker, run=toy_run("smooth", out), ranks=ranks)
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=launch.environment(),
        start_new_session=True,
    )
    sabotage.wait_for(marker, process)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.05)
    return sabotage.finish(process, SOON)


STOPPING = [(3, signal.SIGUSR1), (None, signal.SIGUSR1)]
if WHEEL:
    # Open MPI's mpirun answers these with SIGKILL.
    STOPPING += [(3, signal.SIGTERM), (3, signal.SIGINT), (None, signal.SIGTERM), (None, signal.SIGINT)]


@pytest.mark.site
@pytest.mark.parametrize(("ranks", "number"), STOPPING, ids=str)
def test_a_signal_stops_at_a_chunk_boundary_and_says_how_to_go_on(faulty, tmp_path, ranks, number):
    out = tmp_path / "out"
    status, said = signalled(faulty, out, tmp_path / "marker", ranks, [number])
    assert status == 75, said
    (line,) = [line for line in said.splitlines() if line.startswith("mpiimg: stopped: ")]
    assert line.endswith("the same command goes on from there: toy again")
    assert "Traceback" not in said
    found = run_status(out / "events-toy")
    assert found.state == "stopped"
    assert 0 < sum(stage.done for stage in found.stages) < 30
    assert lock(out) is Kind.STOPPED
    goes_on(faulty, "smooth", out)


@pytest.mark.site
@pytest.mark.parametrize("ranks", [3, None])
def test_a_second_interrupt_ends_at_once(faulty, tmp_path, ranks):
    out = tmp_path / "out"
    status, said = signalled(faulty, out, tmp_path / "marker", ranks, [signal.SIGINT] * 2)
    assert "stopped:" not in said
    assert not (out / toy.OUTPUT).exists()
    # Where all ranks die while it passes on the second signal, Hydra now and then fails too, with status 0.
    assert status == -signal.SIGINT if ranks is None else status != Exit.STOPPED, said
    goes_on(faulty, "smooth", out)


# Two runs at once.


def test_of_two_runs_in_one_folder_the_second_is_refused_and_the_first_goes_on(faulty, tmp_path):
    out, pipe = tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    command = faulty(0, "blur-2", 5, "hang_in_read", pipe, run=toy_run("smooth", out), ranks=None)
    first = subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, text=True, env=launch.environment()
    )
    with open(pipe, "wb"):  # which waits for the reader
        second = faulty(0, "nowhere", 0, "die", run=toy_run("smooth", out), ranks=2)
        done = launch.run(second, timeout=SOON, check=False)
        there = sorted(path.name for path in out.iterdir())
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpiimg: ")]
    assert "Traceback" not in done.stderr
    assert line.startswith(
        f"mpiimg: error: {out}: another run is at work there ({socket.gethostname()}, process"
    )
    assert "wait until it has ended or choose another --out" in line
    assert there == ["events-toy", "work"]
    status, said = sabotage.finish(first, SOON)
    assert status == 0, said
    assert (out / toy.OUTPUT).read_bytes() == toy.smooth(**toy.LONG["smooth"]).bytes
    assert run_status(out / "events-toy").state == "done"
    assert not (out / "work").exists()


# Inputs.


@pytest.mark.parametrize(
    ("fault", "stage", "says"),
    [("shrink", "mask.b0-mean", "ends at byte"), ("touch", "mask.otsu", "changed while the run read it")],
)
def test_an_input_that_changes_under_the_reader(faulty, simulated, tmp_path, fault, stage, says):
    """One line, and nothing that was made of it is published."""
    subject = gunzipped(simulated, tmp_path / "plain")
    run = ["mpiimg-mask", *subject.arguments, "--out", tmp_path / "out", "--median-radius", 2]
    command = faulty(0, stage, 0, fault, subject.dwi, run=run, ranks=2)
    done = launch.run(command, timeout=SOON, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpiimg: error")]
    assert str(subject.dwi) in line and says in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_log_of_every_rank_is_there(faulty, tmp_path):
    """With the time, host, stage, chunk, seconds, bytes and memory of what it did, and no more than that."""
    out = tmp_path / "out"
    launch.run(faulty(0, "nowhere", 0, "die", run=toy_run("smooth", out), ranks=2), timeout=SOON)
    for rank in (0, 1):
        events = list(read_events(out / "events-toy" / f"{rank}.jsonl"))
        assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
        chunks = [event for event in events if event["event"] == "chunks"]
        for event in chunks:
            assert event.keys() >= {"time", "host", "rank", "stage", "chunk", "seconds", "bytes", "memory"}
        begun = [event for event in events if event["event"] == "stage"]
        assert sum(event["chunks"] for event in chunks) == sum(event["mine"] for event in begun)
    assert run_status(out / "events-toy").state == "done"
