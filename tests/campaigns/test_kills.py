"""Pipelines killed again and again at seeded steps, and gone on with on other ranks and the other install.

Under srun it is tests/slurm/test_kills.py that does so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from campaigns.pipelines import PIPELINES
from support import launch, toy
from support.killing import PATIENCE, Lives, Pipeline, launchers

from mpiimg.engine import results

pytestmark = pytest.mark.tool

#: Kills of each pipeline in make test, and on each install in make test-long.
FEW, MANY = 9, 45


@pytest.fixture
def campaign(zygotes, tmp_path, capsys):
    """Return a function that kills a pipeline so many times, and says what it came to."""

    def run(pipeline: Pipeline, kills: int, seed: int) -> None:
        figures = Lives(pipeline, launchers(zygotes), tmp_path / "lives", seed).until(kills)
        with capsys.disabled():
            print(f"\nseed {seed}, {figures}")

    (tmp_path / "lives").mkdir()
    return run


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_survive_45_kills(name, campaign, tmp_path):
    campaign(PIPELINES[name](tmp_path), FEW, seed=3)


@pytest.mark.long
@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_survive_450_kills(name, campaign, tmp_path):
    """Half of them where the tests run on one install, half where they run on the other."""
    alone = launch.other_install() is None
    seed = {".venv": 1, ".venv-mpi": 2}.get(Path(sys.prefix).name, 1)
    campaign(PIPELINES[name](tmp_path), 2 * MANY if alone else MANY, seed)


def toy_pipeline(name: str) -> Pipeline:
    """Return a toy, whose result must also be that of plain NumPy."""
    made = toy.TOYS[name](**toy.LONG[name])
    sync = {"smooth": 0.0, "transpose": 0.01, "regroup": 5.0, "ragged": 0.01, "records": 0.0}[name]

    def check(out):
        assert (out / toy.OUTPUT).read_bytes() == made.bytes
        for file, data in made.files.items():
            assert (out / file).read_bytes() == data
        assert not (out / "work").exists()

    return Pipeline(name, lambda out: ["toy", name, out, sync], check)


@pytest.mark.parametrize("name", toy.TOYS)
def test_toys_survive_8_kills(name, campaign):
    campaign(toy_pipeline(name), 2, seed=11)


@pytest.mark.long
@pytest.mark.parametrize("name", toy.TOYS)
@pytest.mark.parametrize("seed", [1, 2])
def test_toys_survive_272_kills(name, seed, campaign):
    campaign(toy_pipeline(name), 34, seed)


def publish(zygote, folder, seed, step, ranks=1):
    """Let a run replace the results in a folder, killed at a step of publishing; return how it ended."""
    diary = folder / "diary"
    diary.unlink(missing_ok=True)
    launcher = launch.mpiexec(ranks, zygote.python) if ranks > 1 else []
    words = zygote.rank("support.lives", diary, step, 0, 0, "--", "publishing", folder / "out", seed)
    return launch.run([*launcher, *words], timeout=PATIENCE, check=False)


def check_published(out, seed):
    made = toy.published(seed)
    assert (out / toy.OUTPUT).read_bytes() == made.bytes
    assert {name: (out / name).read_bytes() for name in made.files} == made.files
    assert list(results.verify(out / "run-toy.json")) == []
    assert not (out / "work").exists()


@pytest.mark.parametrize("ranks", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_death_at_any_step_of_publishing_is_made_good_by_the_same_command(ranks, zygotes, tmp_path):
    """Whatever is there beside a record is what the record says, at every moment."""
    out, record = tmp_path / "out", tmp_path / "out" / "run-toy.json"
    assert publish(zygotes[0], tmp_path, 0, 0).returncode == 0
    step, seed, ends = 1, 0, []
    while True:
        done = publish(zygotes[0], tmp_path, 1 - seed, step, ranks)
        if done.returncode == 0:
            break
        assert "Traceback" not in done.stderr
        if record.exists():
            assert list(results.verify(record)) == []
            seed = results.read_record(record)["parameters"]["seed"]
        ends.append(record.exists())
        # Of a run that had not begun to publish all is as it was; the other ones are brought to their end.
        done = publish(zygotes[0], tmp_path, 1 - seed if not record.exists() else seed, 0)
        assert done.returncode == 0, done.stderr
        seed = results.read_record(record)["parameters"]["seed"]
        check_published(out, seed)
        step += 3 if ranks == 1 else 5
    assert True in ends and False in ends
