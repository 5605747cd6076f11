"""Campaigns of kills: a pipeline dies at seeded steps again and again, and must end as if it never had.

    lives = Lives(pipeline, launchers, folder, seed)
    lives.until(50)
    print(lives.figures)

Each life is a run of the same command, on other ranks, by another launcher, and of another install
than the one before it. It is killed at a step of its way (lives.py), or ends before.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import launch
from support.zygote import Zygote

from mpiimg.engine.checkpoint import read_marks

#: Seconds that one life may take on a loaded machine, and that its processes may outlive it.
PATIENCE = 120
LINGER = 30


@dataclass(frozen=True)
class Pipeline:
    """What is run, and what of its results must always be the same.

    Parameters
    ----------
    name : for the figures
    words : called as words(out), the command
    contents : called as contents(out), of a finished run: what is compared with the run that nobody killed
    """

    name: str
    words: Callable[[Path], Sequence]
    contents: Callable[[Path], object]


@dataclass(frozen=True)
class Launcher:
    """How ranks of an install are started.

    Parameters
    ----------
    name : "none", "mpiexec" or "srun"
    zygote : that the ranks are forked from
    ranks : numbers of ranks that it may be told to start
    before : called as before(ranks), what stands before the command
    environment : of the command, on top
    """

    name: str
    zygote: Zygote
    ranks: tuple[int, ...]
    before: Callable[[int], list]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def install(self) -> str:
        return Path(self.zygote.python).parts[-3]


def launchers(zygotes: Sequence[Zygote]) -> list[Launcher]:
    """Return what starts ranks here: nothing, and the mpiexec of each install; half of the runs each."""
    return [
        launcher
        for zygote in zygotes
        for launcher in (
            Launcher("none", zygote, (1,), lambda ranks: []),
            Launcher(
                "mpiexec", zygote, (2, 3), lambda ranks, python=zygote.python: launch.mpiexec(ranks, python)
            ),
        )
    ]


@dataclass
class Figures:
    """What a campaign came to.

    Parameters
    ----------
    kills : of lives, by (pipeline, launcher, install)
    ends : lives that came to the end of the work, with the bytes of the run that nobody killed
    computed, redone : chunks that were computed, and how many of them had been before, but were not marked
    """

    kills: Counter = field(default_factory=Counter)
    ends: int = 0
    computed: int = 0
    redone: int = 0

    def __str__(self):
        by_way = Counter()
        for (_, launcher, install), count in self.kills.items():
            by_way[launcher, install] += count
        ways = ", ".join(
            f"{count} by {launcher} of {install}" for (launcher, install), count in sorted(by_way.items())
        )
        name = " and ".join(sorted({name for name, _, _ in self.kills}))
        return (
            f"{name}: {self.kills.total()} killed ({ways}), {self.ends} times ended with the same bytes, "
            f"{self.redone} of {self.computed} chunks computed once more, none that was marked"
        )


class Lives:
    """Lets a pipeline live and die, and asserts after each life what must hold.

    Parameters
    ----------
    pipeline : Pipeline
    launchers : those to choose from
    folder : for all files, empty
    seed : of all choices
    """

    def __init__(self, pipeline: Pipeline, launchers: Sequence[Launcher], folder: Path, seed: int):
        self.figures = Figures()
        self._pipeline, self._launchers, self._folder = pipeline, launchers, folder
        self._chance, self._seed = random.Random(f"{seed} {pipeline.name}"), seed
        self._out = self._folder / "out"
        self._seen: set = set()
        # The one that nobody kills.
        done, diary = self._run(launchers[0], launchers[0].ranks[0], 0, 0.0, 0)
        assert done.returncode == 0, done.stderr
        self._steps = sum(diary.steps)
        self._expected = pipeline.contents(self._out)
        shutil.rmtree(self._out)

    def until(self, kills: int) -> Figures:
        """Kill so many lives, let the last work come to its end, and return what it all came to."""
        while self.figures.kills.total() < kills:
            self._live()
        ends = self.figures.ends
        while self.figures.ends == ends:
            self._live(mortal=False)
        return self.figures

    def _live(self, mortal: bool = True) -> None:
        """One life: to a random step, or to the end if that is nearer, or if it is not mortal."""
        chance = self._chance
        launcher = chance.choice(self._launchers)
        ranks = chance.choice(launcher.ranks)
        # A death soon, often, so that runs die many times before they end.
        step = chance.randrange(1, max(2, self._steps // 2 // ranks)) if mortal else 0
        delay = chance.choice([0.0, 0.0, chance.uniform(1e-4, 5e-3)])
        who = chance.choice([-1, 0, 1, 2])
        before = self._marked()
        done, diary = self._run(launcher, ranks, step, delay, who)
        told = (
            f"seed {self._seed}, kill {self.figures.kills.total()}, {ranks} ranks by {launcher.name} of "
            f"{launcher.install}, step {step}, delay {delay}, rank {who}\n{done.stderr}"
        )
        assert "Traceback" not in done.stderr, told
        assert "were altered" not in done.stderr, told
        again = [chunk for chunk in diary.chunks if chunk in before]
        assert not again, f"marked, and computed again: {again}\n{told}"
        self.figures.computed += len(diary.chunks)
        self.figures.redone += sum(chunk in self._seen for chunk in diary.chunks)
        self._seen.update(diary.chunks)
        if done.returncode == 0:
            assert len(diary.steps) == ranks, told
            self._ended()
        else:
            assert mortal, told
            assert len(diary.steps) < ranks or ranks > 1, told
            self.figures.kills[self._pipeline.name, launcher.name, launcher.install] += 1

    def _run(self, launcher, ranks, step, delay, who):
        """Run a life to its end, see all its processes gone, and return it and its diary."""
        path = self._folder / "diary"
        path.unlink(missing_ok=True)
        words = [path, step, delay, who, "--", *self._pipeline.words(self._out)]
        command = [*launcher.before(ranks), *launcher.zygote.rank("support.lives", *words)]
        done = launch.run(command, timeout=PATIENCE, check=False, env=launcher.environment)
        diary = Diary(path)
        deadline = time.monotonic() + LINGER
        # A launcher may be gone before the last of its ranks is.
        while alive := [pid for pid in diary.pids if _lives(pid)]:
            if time.monotonic() > deadline:
                pytest.fail(f"processes are left: {alive}\n{done.stderr}")
            time.sleep(0.01)
        return done, Diary(path)

    def _marked(self) -> set[tuple[str, str, int]]:
        """Return the chunks that are marked: work folder, stage, number."""
        return {
            (str(journal.parent), mark.stage, mark.chunk)
            for journal in self._out.rglob("journal")
            for mark in read_marks(journal)
        }

    def _ended(self) -> None:
        assert self._pipeline.contents(self._out) == self._expected
        shutil.rmtree(self._out)
        self.figures.ends += 1
        self._seen.clear()


class Diary:
    """What the ranks of a life have written.

    Parameters
    ----------
    path : of the file
    """

    def __init__(self, path: Path):
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.pids = [entry[1] for entry in entries if entry[0] == "process"]
        #: Of each rank that came to the end.
        self.steps = [entry[1] for entry in entries if entry[0] == "end"]
        #: Work folder, stage and number of what was computed.
        self.chunks = [tuple(entry[1:]) for entry in entries if entry[0] == "chunk"]


def _lives(pid: int) -> bool:
    """Return whether a process is there that has not ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
