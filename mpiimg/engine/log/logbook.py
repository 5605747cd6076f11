"""What this rank is doing, told to the watchdog and to the log of the run."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpiimg.engine.log.events import EventLog, any_recent, last_events
from mpiimg.engine.log.watchdog import Watchdog
from mpiimg.engine.mpi.job import slurm_facts
from mpiimg.engine.plan import StagePlan
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.stage import Stage
from mpiimg.errors import Exit
from mpiimg.version import __version__


class Logbook:
    """Tells what this rank turns to, and what it has done.

    Parameters
    ----------
    comm : communicator
        Of the ranks.
    options : Options
        Of the run; its timeout is the watchdog's.
    folder : Path, optional
        Of the events, made already; None to write none.
    """

    def __init__(self, comm, options: Options, folder: Path | None):
        self._rank, self._ranks, self._folder = comm.rank, comm.size, folder
        self._options = options
        self._log = EventLog(folder, comm.rank)
        self._watchdog = Watchdog(options.timeout, self._others_work, self._note, self._last_words)
        self._began = time.monotonic()
        self._stage = ""

    def start(self, recipe: Recipe, stages: Sequence[Stage]) -> None:
        """Note what is going to run."""
        self._log.write(
            "start",
            tool=recipe.tool,
            run=self._options.run_id,
            version=__version__,
            command=self._options.command,
            ranks=self._ranks,
            pid=os.getpid(),
            job=slurm_facts()["job_id"],
            stages=[[stage.name, stage.kind, len(stage.grid)] for stage in stages],
        )
        self._log.flush()

    def stage(self, stage: Stage, planned: StagePlan, todo: Sequence[int]) -> None:
        """Note that a stage begins, of which chunks `todo` are not done yet."""
        self._stage = stage.name
        owners = planned.partition.owners()
        mine = int(np.count_nonzero(owners[list(todo)] == self._rank))
        total = len(stage.grid)
        self._log.write("stage", stage=stage.name, chunks=total, done=total - len(todo), mine=mine)
        self._log.flush()

    def turn_to(self, stage: Stage, number: int) -> None:
        """Begin with a chunk."""
        self._began = time.monotonic()
        self._watchdog(f"stage {stage.name}, chunk {number}")

    def wait(self, what: str) -> None:
        """Begin with something in which this rank may have to wait for others."""
        self._watchdog(f"stage {self._stage}, {what}" if self._stage else what, waits=True)

    def done(self, stage: Stage, number: int, nbytes: int) -> None:
        """Note that the chunk that this rank turned to is done."""
        self._log.chunk(stage.name, number, time.monotonic() - self._began, nbytes)

    def stage_done(self, stage: Stage) -> None:
        """Note that this rank is through with a stage."""
        self._log.write("ended", stage=stage.name)

    def error(self, error: BaseException) -> None:
        """Note an unexpected error of this rank, and in the error what the rank was at."""
        error.add_note(f"in {self._watchdog.what}")
        report = "".join(traceback.format_exception(error))
        self._log.write("error", what=self._watchdog.what, report=report)

    def end(self, status: Exit, why: str = "", details: str = "") -> None:
        """Note that the run is over, with `details` once. Nothing is noted or watched after it."""
        self._watchdog.cancel()
        more = {"details": details} if details and self._rank == 0 else {}
        self._log.write("end", run=self._options.run_id, status=int(status), why=why, **more)
        self._log.close()

    def rest(self) -> None:
        """Watch no longer."""
        self._watchdog.cancel()

    def _others_work(self, seconds: float) -> bool:
        return self._folder is not None and any_recent(self._folder, seconds, but=self._rank)

    def _note(self, what: str, since: float) -> None:
        self._log.write("doing", what=what, since=round(since, 3))
        self._log.flush()

    def _last_words(self, what: str, since: float, stack: str) -> str:
        """Return what there is to say when this rank ends the job."""
        # Others need time to note what they are at.
        time.sleep(Watchdog.LOOK if self._options.timeout > 4 * Watchdog.LOOK else 0)
        lines = [
            f"mpiimg: rank {self._rank} on {socket.gethostname()} has hung for "
            f"{time.time() - since:.0f} s (--timeout {self._options.timeout:g}) and ends the job: {what}"
        ]
        if self._folder is not None and self._ranks > 1:
            lines += [f"mpiimg: {line}" for line in _others(self._folder, self._rank)]
        self._log.write("hang", what=what, since=round(since, 3), report=stack)
        self._log.flush()
        return "\n".join([*lines, stack])


def _others(folder: Path, but: int) -> list[str]:
    """Say what the other ranks were last known to do, those that do the same in one line."""
    alike: dict[tuple[str, str], list[int]] = {}
    for rank, event in last_events(folder).items():
        if rank != but:
            what = event.get("what") or ", ".join(
                f"{key} {event[key]}" for key in ("stage", "chunk") if key in event
            )
            since = time.strftime("%H:%M:%S", time.localtime(event.get("since", event["time"])))
            alike.setdefault((what or event["event"], since), []).append(rank)
    return [f"ranks {_ranges(ranks)} since {since}: {what}" for (what, since), ranks in alike.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Return e.g. 0-3, 7 for 0, 1, 2, 3, 7."""
    from mpiimg.engine.boxes import runs

    return ", ".join(str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in runs(numbers))
