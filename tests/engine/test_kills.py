"""Pipelines killed again and again at seeded steps, and gone on with on other ranks and the other install."""

from __future__ import annotations

import fcntl
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import astro_data, launch, toy
from support.subjects import EVERYTHING, digests
from support.zygote import Zygote

from mpiimg.engine import results
from mpiimg.engine.checkpoint import read_marks
from mpiimg.errors import Exit
from mpiimg.simulate.astro import SimulatedSurvey

pytestmark = pytest.mark.tool

#: Seconds that one life may take on a loaded machine.
PATIENCE = 120


@dataclass
class Pipeline:
    """What is run, and how its results are checked.

    Parameters
    ----------
    words : called as words(out), the command
    work : the work folder below out
    check : called as check(out), of a finished run
    steps : that a run in one go takes, about
    """

    words: Callable[[Path], list]
    work: str
    check: Callable[[Path], None]
    steps: int


class Lives:
    """Lets a pipeline live and die, and asserts after each life what must hold."""

    def __init__(self, pipeline: Pipeline, zygotes: list[Zygote], folder: Path, seed: int):
        self._pipeline, self._zygotes, self._chance = pipeline, zygotes, random.Random(seed)
        self._folder, self.kills, self.ends = folder, 0, 0
        self._seed = seed
        self._new_run()

    def _new_run(self):
        self._out = self._folder / f"out-{self.ends}"

    def marked(self) -> set[tuple[str, int]]:
        return {(m.stage, m.chunk) for m in read_marks(self._out / self._pipeline.work / "journal")}

    def live(self) -> None:
        """One life: to a random step, or to the end if that is nearer."""
        chance = self._chance
        ranks, zygote = chance.choice([1, 1, 2, 3]), chance.choice(self._zygotes)
        # A death soon, often, so that runs die many times before they end.
        step = chance.randrange(1, self._pipeline.steps // 2 // ranks)
        delay = chance.choice([0.0, 0.0, chance.uniform(1e-4, 5e-3)])
        who = chance.choice([-1, 0, 1, 2])
        diary = self._folder / "diary"
        diary.unlink(missing_ok=True)
        before = self.marked()
        words = [diary, step, delay, who, "--", *self._pipeline.words(self._out)]
        command = [
            *(launch.mpiexec(ranks, zygote.python) if ranks > 1 else []),
            *zygote.rank("support.lives", *words),
        ]
        done = launch.run(command, timeout=PATIENCE, check=False)
        with open(diary, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a launcher may be gone before the last of its ranks is
        told = (
            f"seed {self._seed}, kill {self.kills}, {ranks} ranks: {' '.join(map(str, words))}\n{done.stderr}"
        )
        entries = [json.loads(line) for line in diary.read_text().splitlines()]
        again = [entry for entry in entries if tuple(entry) in before]
        assert not again, f"computed again: {again}\n{told}"
        assert "were altered" not in done.stderr, told
        if "already done" in done.stderr:
            # It had died when it had published all, and what it left is removed.
            assert done.returncode == Exit.DONE, told
            self._ended()
        elif done.returncode:
            assert "Traceback" not in done.stderr, told
            assert not any(entry[0] == "end" for entry in entries) or ranks > 1, told
            self.kills += 1
        else:
            assert len([entry for entry in entries if entry[0] == "end"]) == ranks, told
            self._ended()

    def _ended(self):
        self._pipeline.check(self._out)
        shutil.rmtree(self._out)
        self.ends += 1
        self._new_run()

    def end(self) -> None:
        """Let the run at hand come to its end, with another number of ranks than it may have begun with."""
        ends = self.ends
        self._pipeline.steps *= 1000
        while self.ends == ends:
            self.live()


def survives(pipeline, zygotes, folder, kills, seed):
    lives = Lives(pipeline, zygotes, folder, seed)
    while lives.kills < kills:
        lives.live()
    lives.end()
    return lives


def toy_pipeline(name) -> Pipeline:
    made = toy.TOYS[name](**toy.LONG[name])

    def check(out):
        assert (out / toy.OUTPUT).read_bytes() == made.bytes
        for file, data in made.files.items():
            assert (out / file).read_bytes() == data
        assert not (out / "work").exists()

    sync, steps = {
        "smooth": (0.0, 600),
        "transpose": (0.01, 400),
        "regroup": (5.0, 162),
        "ragged": (0.01, 700),
    }[name]
    return Pipeline(lambda out: ["toy", name, out, sync], f"work/{name}.toy", check, steps)


@pytest.mark.parametrize("name, kills", [("smooth", 26), ("transpose", 12), ("regroup", 12), ("ragged", 10)])
def test_toys_survive_60_kills(name, kills, zygotes, tmp_path):
    assert survives(toy_pipeline(name), zygotes, tmp_path, kills, seed=11).ends > 0


@pytest.mark.long
@pytest.mark.parametrize("name", toy.TOYS)
@pytest.mark.parametrize("seed", [1, 2])
def test_toys_survive_200_kills(name, seed, zygotes, tmp_path):
    survives(toy_pipeline(name), zygotes, tmp_path, 34, seed)


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


@pytest.fixture
def head(simulated, alone) -> Pipeline:
    """A simulated head."""

    def words(out):
        return ["mpiimg-neuro", *simulated.arguments, "--out", out, *EVERYTHING]

    def check(out):
        assert digests(out) == digests(alone)

    return Pipeline(words, "work/dwi.neuro", check, 1600)


@pytest.fixture
def survey(tmp_path_factory) -> Pipeline:
    """A simulated survey of three small exposures, of which some stars are seen by several patches."""
    folder = tmp_path_factory.mktemp("survey")
    night = astro_data.observe(folder / "night", SimulatedSurvey(3, 1, (260, 300), seed=5, density=50.0))
    tract = ("--patch", 160, "--border", 30)
    expected = astro_data.astro(night.exposures, folder / "expected", *tract)

    def words(out):
        return ["mpiimg-astro", *night.exposures, "--out", out, *tract]

    def check(out):
        assert digests(out) == digests(expected)

    return Pipeline(words, "work/survey.astro", check, 700)


@pytest.mark.parametrize("name", ["head", "survey"])
def test_real_pipelines_survive_5_kills(name, request, zygotes, tmp_path):
    survives(request.getfixturevalue(name), zygotes, tmp_path, 5, seed=3)
