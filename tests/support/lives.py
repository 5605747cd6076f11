"""A run that dies at a chosen step of the way, in the middle of what it does.

    python -m support.lives DIARY STEP DELAY WHO -- toy OUT SYNC
    python -m support.lives DIARY STEP DELAY WHO -- publishing OUT SEED
    python -m support.lives DIARY STEP DELAY WHO -- mpiimg-neuro ...

Steps are counted where a death might hurt: when a chunk begins, before and
after its blocks are written, when it is marked, on each side of a sync, in
the middle of a mark, in a sink, around every rename, when the work folder is
removed; of a run that is `publishing`, only where results are moved and the work
folder is removed. At step number STEP of rank WHO mod ranks the process is killed, or
DELAY seconds later, then wherever it is, kernels included. With WHO below 0 all
ranks are killed at once; with a STEP of 0 nobody is. The processes, what they
computed, and the number of steps of those that got to the end, go to the file
DIARY, a JSON list a line.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterable

from mpiimg.engine.records import RecordFile


class Death:
    """Counts the steps of this rank, and kills it, or all, when it is time."""

    def __init__(self, diary: str, step: int, delay: float, who: int, comm):
        pids = comm.allgather(os.getpid())
        self._file = os.open(diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.write("process", os.getpid())
        # Its own death comes last, or the others would live on.
        self._victims = sorted(pids, key=lambda pid: pid == os.getpid()) if who < 0 else [os.getpid()]
        self._step = step if comm.rank == abs(who) % comm.size else -1
        self._delay, self.count = delay, 0

    def write(self, *entry) -> None:
        os.write(self._file, (json.dumps(entry) + "\n").encode())

    def step(self) -> bool:
        """Die if this is the step; say whether the next one is."""
        self.count += 1
        if self.count == self._step:
            if self._delay:
                # What SIGALRM does by default is to end the process, in the middle of a kernel too.
                signal.setitimer(signal.ITIMER_REAL, self._delay)
            else:
                for pid in self._victims:
                    os.kill(pid, signal.SIGKILL)
        return self.count + 1 == self._step and not self._delay


def arm(death: Death) -> None:
    """Count a step at each place where a death might hurt."""
    from mpiimg.engine import checkpoint, executor, record_store, writing
    from mpiimg.engine import stores as store
    from mpiimg.engine.log import logbook

    def around(owner, name: str) -> None:
        _around(death, owner, name)

    around(store.StagedStore, "write")
    around(store.StagedStore, "sync")
    around(store, "create_staged")
    around(record_store.RecordStore, "append")
    around(record_store.RecordStore, "sync")
    around(checkpoint.Journal, "mark")
    around(checkpoint.Journal, "sync")
    around(writing, "write_fully")
    around(pathlib.Path, "replace")
    around(shutil, "rmtree")
    around(logbook.Logbook, "turn_to")
    checkpoint.RecordFile = functools.partial(Torn, death)

    keep = executor.Executor._keep

    def noted(self, stage, planned, number, *rest):
        death.write("chunk", str(self.work), stage.name, number)
        return keep(self, stage, planned, number, *rest)

    executor.Executor._keep = noted


def _around(death: Death, owner, name: str) -> None:
    """Count a step before and after each call of a function."""
    original = getattr(owner, name)

    def stepping(*arguments, **named):
        death.step()
        result = original(*arguments, **named)
        death.step()
        return result

    setattr(owner, name, stepping)


def arm_publishing(death: Death) -> None:
    """Count a step at each change of a folder, from when all results are there to the end of the run."""
    from mpiimg.engine import results
    from mpiimg.engine import run as running

    publish = running.publish

    def stepping(*arguments):
        for owner, name in (
            (pathlib.Path, "replace"),
            (pathlib.Path, "unlink"),
            (pathlib.Path, "mkdir"),
            (results, "sync"),
            (results, "write_record"),
            (shutil, "rmtree"),
        ):
            _around(death, owner, name)
        return publish(*arguments)

    running.publish = stepping


class Torn(RecordFile):
    """The file of a journal: a mark may be written in part, and syncs take no time."""

    def __init__(self, death: Death, path: pathlib.Path):
        super().__init__(path)
        self._death = death

    def append(self, lines: Iterable[bytes]) -> None:
        data = b"".join(lines)
        if self._death.step():
            os.write(self._descriptor, data[: len(data) // 2])
        self._death.step()
        super().append([data])

    def sync(self) -> None:
        """Do nothing: what a process has written outlives it, and only power loss takes more."""


def main(words: list[str]) -> int:
    from mpi4py import MPI

    diary, step, delay, who, _, name, *rest = words
    death = Death(diary, int(step), float(delay), int(who), MPI.COMM_WORLD)
    os.fdatasync = lambda descriptor: None
    (arm_publishing if name == "publishing" else arm)(death)
    code = _program(name)(rest)
    death.write("end", death.count)
    return code


def _program(name: str) -> Callable:
    if name not in ("toy", "publishing"):
        from mpiimg.tools import cli

        return lambda words: cli.main(name, words)
    from mpi4py import MPI
    from support import toy

    from mpiimg.engine.mpi import runtime
    from mpiimg.engine.recipe import Options
    from mpiimg.engine.run import run

    def published(words):
        """Replace what is there: a run that was asked for without it goes on with what was begun."""
        out, seed = words
        options = Options(pathlib.Path(out), toy.PLENTY, force=not pathlib.Path(out, "work").exists())
        recipe = toy.published(int(seed)).recipe
        return runtime.guard(MPI.COMM_WORLD, lambda: run(recipe, MPI.COMM_WORLD, options) and 0)

    def toys(words):
        which, out, sync = words
        options = Options(pathlib.Path(out), toy.PLENTY, sync_every=float(sync))
        made = toy.TOYS[which](**toy.LONG[which])
        return runtime.guard(MPI.COMM_WORLD, lambda: run(made.recipe, MPI.COMM_WORLD, options) and 0)

    return toys if name == "toy" else published
