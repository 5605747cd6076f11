"""Killed, stopped, out of disk or broken, a run ends soon, leaves no half result, and can go on."""

from __future__ import annotations

import re
import signal

import pytest
from support import sabotage, warm
from support.subjects import EVERYTHING, PATIENCE, digests, neuro, record

from mpiimg.engine.staged_file import dataset_offset

pytestmark = pytest.mark.tool

#: Seconds within which a broken run must have ended, on a loaded machine.
SOON = 60

SLOWLY = """
import pathlib, time
pathlib.Path({marker!r}).touch()
time.sleep({seconds})
"""


def words(subject, out):
    return ["mpiimg-neuro", *subject.arguments, "--out", out, *EVERYTHING]


def resumed(out) -> dict[str, int]:
    """Return how many chunks of each stage were found done."""
    return {entry["stage"]: entry["resumed_chunks"] for entry in record(out)["stages"]}


def only_work(out) -> bool:
    return sorted(p.name for p in out.iterdir()) == ["events", "work"]


def test_killed_after_marks_goes_on_from_there(simulated, alone, tmp_path):
    out, marker = tmp_path / "out", tmp_path / "marker"
    slow = sabotage.install(tmp_path / "slow", SLOWLY.format(marker=str(marker), seconds=30))
    run = sabotage.start(*words(simulated, out), sabotaged=slow, ranks=3, forked=False)
    sabotage.wait_for(marker, run)
    sabotage.kill(sabotage.rank_processes(run))
    status, _ = sabotage.finish(run, SOON)
    assert status != 0
    assert only_work(out)
    neuro(simulated, out, *EVERYTHING, ranks=2)
    assert digests(out) == digests(alone)
    assert resumed(out)["read-dwi"] == 12
    assert resumed(out)["mask.median-4"] > 0


def test_altered_chunks_are_found_and_made_again(simulated, alone, tmp_path):
    """A staged byte that changed after its chunk was marked does not reach the results."""
    out, marker = tmp_path / "out", tmp_path / "marker"
    slow = sabotage.install(tmp_path / "slow", SLOWLY.format(marker=str(marker), seconds=30))
    run = sabotage.start(*words(simulated, out), sabotaged=slow)
    sabotage.wait_for(marker, run)
    sabotage.kill(sabotage.rank_processes(run))
    sabotage.finish(run, SOON)
    staged = out / "work" / "dwi.neuro" / "dwi.h5"
    raw = bytearray(staged.read_bytes())
    raw[dataset_offset(staged) + 100_000] ^= 1
    staged.write_bytes(bytes(raw))
    done = warm.run_tool(*words(simulated, out), ranks=2, timeout=PATIENCE)
    assert "warning: stage read-dwi: 1 chunks were altered" in done.stderr
    assert resumed(out)["read-dwi"] == 11
    assert digests(out) == digests(alone)


def test_another_command_does_not_take_the_marks(simulated, alone, tmp_path):
    """A run with another parameter starts over where that parameter matters, and only there."""
    out, marker = tmp_path / "out", tmp_path / "marker"
    slow = sabotage.install(tmp_path / "slow", SLOWLY.format(marker=str(marker), seconds=30))
    run = sabotage.start(*words(simulated, out), "--passes", 2, sabotaged=slow)
    sabotage.wait_for(marker, run)
    sabotage.kill(sabotage.rank_processes(run))
    sabotage.finish(run, SOON)
    neuro(simulated, out, *EVERYTHING)
    assert digests(out) == digests(alone)
    assert resumed(out)["mask.median-2"] > 0
    assert resumed(out)["mask.otsu"] == 0


@pytest.mark.parametrize("number, ranks", [(signal.SIGINT, None), (signal.SIGTERM, 3)], ids=str)
def test_signals_stop_a_run_that_can_go_on(simulated, alone, tmp_path, number, ranks):
    """Open MPI's mpirun answers both with SIGKILL, so this is said of the wheel's MPI alone."""
    out, marker = tmp_path / "out", tmp_path / "marker"
    slow = sabotage.install(tmp_path / "slow", SLOWLY.format(marker=str(marker), seconds=0.3))
    run = sabotage.start(*words(simulated, out), sabotaged=slow, ranks=ranks)
    sabotage.wait_for(marker, run)
    run.send_signal(number)
    status, err = sabotage.finish(run, SOON)
    assert status == 75, err
    (line,) = ends(err)
    assert line.startswith("mpiimg: stopped: ")
    assert "the same command goes on" in line
    assert "Traceback" not in err
    assert only_work(out)
    neuro(simulated, out, *EVERYTHING, ranks=2)
    assert digests(out) == digests(alone)
    assert resumed(out)["mask.median-4"] > 0


@pytest.mark.parametrize("ranks", [None, 3])
def test_a_kernel_that_raises_ends_all_ranks_with_one_report(simulated, alone, tmp_path, ranks):
    out = tmp_path / "out"
    broken = sabotage.install(
        tmp_path / "broken",
        f"""
        global calls
        calls += 1
        if calls == 3 and rank == {1 if ranks else 0}:
            raise ArithmeticError("made up")
        """,
    )
    run = sabotage.start(*words(simulated, out), sabotaged=broken, ranks=ranks)
    status, err = sabotage.finish(run, SOON)
    assert status == 1, err
    assert_one_report(err, 1 if ranks else 0, "denoise", "ArithmeticError: made up")
    assert only_work(out)
    neuro(simulated, out, *EVERYTHING, ranks=2)
    assert digests(out) == digests(alone)
    assert resumed(out)["mask.median-4"] > 0


def ends(err):
    """Return what is said of how a run ended; before that notes are given of what it has found."""
    return [line for line in err.splitlines() if re.match("mpiimg: (?!warning)[a-z]+: ", line)]


def assert_one_report(err, rank, stage, error):
    """Assert one traceback, headed by rank, host, stage and chunk."""
    assert err.count("Traceback") == 1, err
    (head,) = ends(err)
    assert head.startswith(f"mpiimg: failed: rank {rank} on "), err
    assert f"stage {stage}" in head
    assert "chunk" in head
    assert error in err


FULL = """
global calls
calls += len(arguments) > 1 or len(arguments[0]) > 10_000
if calls == {call}:
    with open({ballast!r}, "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
"""


@pytest.mark.parametrize(
    "where, call, stage",
    [
        pytest.param(sabotage.IN_DENOISING, 2, "denoise", id="staging", marks=pytest.mark.site),
        pytest.param(sabotage.IN_COMPRESSION, 3, "write-", id="output"),
    ],
)
def test_full_disk(simulated, alone, tmp_path, small_disk, where, call, stage):
    """The disk fills up while the run goes on; with room again, the same command goes on."""
    disk = small_disk("6m")
    out, ballast = disk / "out", disk / "ballast"
    filling = sabotage.install(tmp_path / "full", FULL.format(call=call, ballast=str(ballast)), where)
    run = sabotage.start(*words(simulated, out), sabotaged=filling, ranks=2)
    status, err = sabotage.finish(run, SOON)
    assert status == 1, err
    assert "Traceback" not in err, err
    (head,) = ends(err)
    assert head.startswith("mpiimg: failed: rank ")
    assert re.search(rf"stage (\w+\.)?{stage}", head)
    assert "No space left on device; free some space there" in head and str(out) in head
    assert only_work(out)
    ballast.unlink()
    neuro(simulated, out, *EVERYTHING, ranks=3)
    assert digests(out) == digests(alone)
    assert resumed(out)["mask.median-4"] > 0
