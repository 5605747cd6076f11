"""A pipeline killed again and again, and gone on with on other ranks and on the other install."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import launch
from mpi import toy

from mpiimg.io.journal import read_marks

PROGRAM = pathlib.Path(toy.__file__)
CHUNK_PAUSE = 0.01


def command(out, ranks, python=sys.executable):
    return [*launch.mpiexec(ranks, python), python, str(PROGRAM), str(out), "--pause", str(CHUNK_PAUSE)]


def marked(out):
    """The chunks that are marked as done so far."""
    return {(mark.stage, mark.chunk) for mark in read_marks(out / "work" / "smooth.toy" / "journal")}


def ranks_in(out):
    """Process ids of the ranks that work in a folder; the launcher may have put each into its own session."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[1:3] == [os.fsencode(PROGRAM), os.fsencode(out)]:
                found.append(int(pid))
    return sorted(found)


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


def killed_run(out, ranks, more, pause, one_rank):
    """Start a run and kill it a moment after it has marked `more` chunks.

    `one_rank` kills one of the ranks, and the launcher must end the others; else all are killed at once.
    Returns what was marked before the run, and after its death.
    """
    before = marked(out)
    process = subprocess.Popen(
        command(out, ranks),
        env=launch.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or len(marked(out)) >= len(before) + more)
        assert process.poll() is None, "ended by itself"
        time.sleep(pause)
        pids = ranks_in(out)
        assert len(pids) == ranks
        kill(pids[-1:] if one_rank else pids)
        assert process.wait(timeout=30) != 0
        # The launcher may end before the last rank does.
        wait_until(lambda: not ranks_in(out), 10)
    finally:
        kill(ranks_in(out))
        launch.kill_session(process)
    return before, marked(out)


def test_killed_at_any_moment_on_any_ranks_it_goes_on(tmp_path):
    """Five times SIGKILL, each time on another number of ranks; the end comes on the other install, if any.

    What was marked before a kill is not computed again, and the file is that of a plain loop.
    """
    chance, out = random.Random(11), tmp_path / "out"
    for number, ranks in zip(range(5), itertools.cycle((2, 3, 1)), strict=False):
        more, pause = chance.randint(1, 12), chance.uniform(0, 4 * CHUNK_PAUSE)
        before, after = killed_run(out, ranks, more, pause, one_rank=number % 2 == 1)
        assert after > before
        assert not (out / toy.OUTPUT).exists()
    launch.run(command(out, 2, launch.other_install() or sys.executable), timeout=90)
    assert (out / toy.OUTPUT).read_bytes() == toy.smooth(depth=40).bytes
    report = json.loads((out / "run-toy.json").read_text())
    assert sum(stage["resumed_chunks"] for stage in report["stages"]) == len(after)
    assert report["warnings"] == ["toy: a warning"], "nothing that was marked had been altered"
    assert sorted(path.name for path in out.iterdir()) == [
        "events-toy",
        toy.OUTPUT,
        "run-toy.json",
        "total.txt",
    ]
