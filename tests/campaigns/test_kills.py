"""Pipelines killed again and again at seeded steps, and gone on with on other ranks and the other install.

Under srun it is tests/slurm/test_kills.py that does so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from campaigns.pipelines import PIPELINES
from support import launch, toy
from support.killing import Lives, Pipeline, launchers

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
    sync = {"smooth": 0.0, "transpose": 0.01, "regroup": 5.0, "ragged": 0.01}[name]

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
