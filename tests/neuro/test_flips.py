"""Bits that flip in what a run keeps: between two runs and in the middle of one, and never a wrong byte."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from support import sabotage, warm
from support.subjects import EVERYTHING, PATIENCE, digests

pytestmark = pytest.mark.tool

#: Flips of each kind: in make test, and in make test-long.
FEW, MANY = 10, 100

#: Keeps the run busy until it is killed, at the first chunk that is denoised.
SLOWLY = """
import pathlib, time
pathlib.Path({marker!r}).touch()
time.sleep(60)
"""

#: Lets nothing stay in memory, and flips a bit of a file of the run as it turns to stage number `turn`.
IN_A_RUN = """
import random
import mpiimg.engine.executor as module
original, turns = module.Executor._turn_to, 0

def changed(self, *arguments):
    global turns
    self.arrays.spill(list(self.arrays.placements))
    turns += 1
    if turns == {turn} and self.comm.rank == 0:
        chosen = random.Random({seed})
        path = chosen.choice(sorted(self.work.glob(chosen.choice(["*.h5", "*.h5", "*.sums", "*.json"]))))
        data = bytearray(path.read_bytes())
        place = chosen.randrange(max(len(data), 1))
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes([data[place] ^ 1 << chosen.randrange(8)]) if data else b"")
    return original(self, *arguments)

module.Executor._turn_to = changed
"""

#: How the runs ended in which a bit has flipped.
ENDS: list[int] = []

SEEDS = [pytest.param(seed, marks=[pytest.mark.long] * (seed >= FEW)) for seed in range(MANY)]


def words(subject, out):
    return ["mpiimg-neuro", *subject.arguments, "--out", out, *EVERYTHING]


@pytest.fixture(scope="module")
def killed(simulated, tmp_path_factory) -> Path:
    """The folder that a run has left which was killed half way."""
    folder = tmp_path_factory.mktemp("killed")
    out, marker = folder / "out", folder / "marker"
    slow = sabotage.install(folder / "slow", SLOWLY.format(marker=str(marker)))
    run = sabotage.start(*words(simulated, out), sabotaged=slow)
    sabotage.wait_for(marker, run)
    sabotage.kill(sabotage.rank_processes(run))
    sabotage.finish(run, PATIENCE)
    return out


def until_done(subject, out, ranks=None) -> list:
    """Give the same command until it is done, which it is the second time at the latest."""
    runs = [warm.run_tool(*words(subject, out), ranks=ranks, check=False, timeout=PATIENCE)]
    if runs[-1].returncode == 75:
        runs.append(warm.run_tool(*words(subject, out), check=False, timeout=PATIENCE))
    return runs


def check(runs, out, alone) -> None:
    told = "\n".join(f"exit {run.returncode}\n{run.stdout}{run.stderr}" for run in runs)
    assert "Traceback" not in told, told
    assert runs[-1].returncode == 0, told
    assert digests(out) == digests(alone), told


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bit_that_flips_between_two_runs(seed, simulated, alone, killed, tmp_path):
    """Of staged arrays, their records, marks, owner, events, request: each kind as often as another."""
    chosen, out = random.Random(seed), tmp_path / "out"
    shutil.copytree(killed, out)
    kinds = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size):
        kinds.setdefault((path.parent.name, path.suffix), []).append(path)
    path = chosen.choice(kinds[chosen.choice(sorted(kinds))])
    data = bytearray(path.read_bytes())
    data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
    path.write_bytes(data)
    check(until_done(simulated, out, ranks=chosen.choice([None, 2])), out, alone)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bit_that_flips_while_a_run_is_on(seed, simulated, alone, tmp_path):
    chosen, out = random.Random(seed), tmp_path / "out"
    code = IN_A_RUN.format(seed=seed, turn=chosen.randrange(2, 24))
    broken = sabotage.install(tmp_path / "broken", "", where=code.replace("{", "{{").replace("}", "}}"))
    run = sabotage.start(*words(simulated, out), sabotaged=broken, ranks=chosen.choice([None, 2]))
    _, err = run.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    assert run.returncode in (0, 75), err
    ENDS.append(run.returncode)
    if run.returncode:
        (line,) = [line for line in err.splitlines() if "stopped: " in line]
        assert "is not what was written" in line and "the same command goes on" in line
        check(until_done(simulated, out), out, alone)
    assert digests(out) == digests(alone)


def test_some_bits_flipped_where_they_were_read():
    if len(ENDS) < FEW:
        pytest.skip("the tests above were not run")
    assert 0 < ENDS.count(75) < len(ENDS)
