"""What this rank is doing, told to the watchdog and to the log of the run."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.log.activity import ActivityFile, interrupted_at, read_activities
from mpiimg.engine.log.events import EventLog, any_recent, last_events
from mpiimg.engine.log.progress import Progress, progress_of
from mpiimg.engine.log.watchdog import Reporter, Watchdog
from mpiimg.engine.mpi.exits import forks_end_here
from mpiimg.engine.mpi.job import slurm_facts
from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.nodes import processes_of_node
from mpiimg.engine.plan import StagePlan
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.stage import Stage, Stream
from mpiimg.errors import Exit, LeftInside
from mpiimg.version import __version__


class Logbook(Reporter):
    """Tells what this rank turns to, and what it has done; and the watchdog what the others do. Collective.

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
        super().__init__(comm.rank, processes_of_node(comm))
        self._ranks, self._folder = comm.size, folder
        self._options = options
        self._log = EventLog(folder, comm.rank)
        self._activity = ActivityFile(folder, comm.rank)
        self._watchdog = lifetime().watchdog
        self._watchdog.report_to(self)
        self._began = time.monotonic()
        self._stage, self._is_stream = "", False
        self._progress = Progress(None)

    def start(self, recipe: Recipe, stages: Sequence[Stage], seconds: Sequence[float]) -> None:
        """Note what is going to run, and show how far it is from here on.

        `seconds` are those that each stage takes, as predicted.
        """
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
            seconds=[float(f"{one:.4g}") for one in seconds],
        )
        self._log.flush()
        names = [stage.name for stage in stages]
        self._progress = progress_of(self._options, self.rank, list(zip(names, seconds, strict=True)))

    def stage(self, stage: Stage, planned: StagePlan, todo: Sequence[int]) -> None:
        """Note that a stage begins, of which chunks `todo` are not done yet."""
        self._stage = stage.name
        owners = planned.partition.owners()
        mine = int(np.count_nonzero(owners[list(todo)] == self.rank))
        total = len(stage.grid)
        done = total - len(todo)
        planned_seconds = float(f"{planned.seconds:.4g}")
        self._log.write(
            "stage", stage=stage.name, chunks=total, done=done, mine=mine, planned=planned_seconds
        )
        self._log.flush()
        self._is_stream = isinstance(stage, Stream)
        if self._is_stream:  # it is read from its beginning, and to its end, in any case
            mine, done = total, 0
        self._progress.turn_to(stage.name, planned.seconds, done / max(total, 1), mine)

    def turn_to(self, stage: Stage, number: int) -> None:
        """Begin with a chunk."""
        self._began = time.monotonic()
        self._watchdog(f"stage {stage.name}, chunk {number}")

    def at_work(self, function: Callable, *arguments: Any) -> Any:
        """Call what works on the chunk that this rank turned to, in a frame that tracebacks know by it.

        So the traces that a crash leaves say in which stage and chunk of which rank it was.

        Raises
        ------
        LeftInside
            The function calls sys.exit(): that is an error of it, and no end of the run.
        """

        def frame():
            return function(*arguments)

        frame.__code__ = frame.__code__.replace(co_name=f"{self.who}, {self._watchdog.what}")
        try:
            with forks_end_here():
                return frame()
        except SystemExit as error:
            raise LeftInside(f"sys.exit({error.code!r}) was called") from error

    def wait(self, what: str) -> None:
        """Begin with something in which this rank may have to wait for others."""
        self._watchdog(f"stage {self._stage}, {what}" if self._stage else what, waits=True)

    def done(self, stage: Stage, number: int, nbytes: int) -> None:
        """Note that the chunk that this rank turned to is done."""
        self._log.chunk(stage.name, number, time.monotonic() - self._began, nbytes)
        if not self._is_stream:
            self._progress.advance()

    def streamed(self, blocks: int) -> None:
        """Note, on the rank that reads a stream, how many blocks have been read."""
        self._progress.advance(blocks)

    def stage_done(self, stage: Stage) -> None:
        """Note that this rank is through with a stage."""
        self._log.write("ended", stage=stage.name)

    def error(self, error: BaseException) -> None:
        """Note an unexpected error of this rank, and in the error what the rank was at."""
        error.add_note(f"in {self._watchdog.what}")
        report = "".join(traceback.format_exception(error))
        self._log.write("error", what=self._watchdog.what, report=report)

    def end(self, status: Exit, why: str = "", details: str = "") -> None:
        """Note that the run is over, with `details` once. Nothing is noted after it."""
        self._watchdog.report_to(None)
        self._progress.close()
        more = {"details": details} if details and self.rank == 0 else {}
        self._log.write("end", run=self._options.run_id, status=int(status), why=why, **more)
        self._log.close()
        self._activity.close()

    # --- What the watchdog asks and tells, in its own thread but for turned_to -----------------------

    def turned_to(self, what: str, waits: bool) -> None:
        """Note what this rank turns to, where it is found after a death."""
        self._activity.write(what, waits)

    def looked(self) -> None:
        """Show how far the run is, where a chunk takes long."""
        self._progress.look()

    def others_work(self, seconds: float) -> bool:
        """Say whether another rank has written anything within the last `seconds`."""
        return self._folder is not None and any_recent(self._folder, seconds, but=self.rank)

    def note(self, what: str, since: float) -> None:
        """Note what has been going on for some seconds."""
        self._log.write("doing", what=what, since=round(since, 3))
        self._log.flush()

    def died(self, why: str) -> None:
        """Note that this process is about to end, and why."""
        self._progress.close()
        self._log.write("end", run=self._options.run_id, status=int(Exit.FAILED), why=why)
        self._log.flush()

    def last_words(self, what: str, since: float, waits: bool, stack: str, limit: float) -> str:
        """Return what there is to say when this rank ends the job, and note it."""
        self._progress.close()
        # Others need time to note what they are at.
        time.sleep(Watchdog.LOOK if limit > 4 * Watchdog.LOOK else 0)
        said = super().last_words(what, since, waits, stack, limit)
        culprits = self.culprits() if waits else []
        self._log.write("hang", what=what, since=round(since, 3), report=stack, culprits=culprits)
        self._log.flush()
        return said

    def culprits(self) -> list[str]:
        """Say which other ranks make no progress while this one waits, at most three, oldest first."""
        activities = read_activities(self._folder) if self._folder is not None else {}
        others = {rank: activity for rank, activity in activities.items() if rank != self.rank}
        trouble = {process.rank: process.trouble() for process in self.processes}
        in_trouble = [others[rank] for rank, state in trouble.items() if state and rank in others]
        at_work = [activity for activity in interrupted_at(others) if not activity.waits]
        return [
            f"{activity} has made no progress for {time.time() - activity.since:.0f} s: {activity.what}"
            + (f"; it {trouble[activity.rank]}" if trouble.get(activity.rank) else "")
            for activity in list(dict.fromkeys([*in_trouble, *at_work]))[:3]
        ]

    def others(self) -> list[str]:
        """Say what the other ranks were last known to do."""
        if self._folder is None or self._ranks == 1:
            return []
        return [f"mpiimg: {line}" for line in _others(self._folder, self.rank)]


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
