"""What a run does or has done, from its events: progress, rate, time left, ranks that stall, what failed.

Works on running, killed and finished runs, without MPI, from any machine that
sees the folder. Whatever events hold, of another version or damaged, is read as
far as it makes sense.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiimg.engine.log.activity import Activity, interrupted_at, last_activity, read_activities
from mpiimg.engine.log.events import rank_files, record_of
from mpiimg.engine.log.overall import StagePart, fraction, seconds_left
from mpiimg.engine.log.rank_log import RankLog
from mpiimg.engine.mpi.processes import process_stat
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, Exit

#: Seconds without a word from any rank after which a run is not taken to be alive; each looks every 5 s.
SILENCE = 120.0

#: Seconds without a finished chunk after which no time left is predicted: ranks tell of chunks every 5 s, and
#: a chunk of our own steps takes about ten at most.
IDLE = 60.0

#: Ranks that are named.
SLOWEST = 3

#: Events that tell of progress.
_PROGRESS = ("start", "stage", "chunks", "ended")

#: What a run's end is called, by its exit status; another one is that of a run that failed.
STATES = {
    Exit.DONE: "done",
    Exit.PARTIAL: "done",
    Exit.STOPPED: "stopped",
    Exit.FAILED: "failed",
    Exit.BAD_INPUT: "failed",
}


@dataclass
class StageStatus:
    """A stage: its chunks, how many earlier runs and this one have done, and since when (s since the epoch).

    `rate` is in chunks per second, of a running stage until now, and None where nothing says; `idle` says for
    how many seconds no chunk of a running stage has come to its end.
    """

    name: str
    chunks: int
    resumed: int = 0
    done: int = 0
    began: float | None = None
    ended: float | None = None
    rate: float | None = None
    seconds_left: float | None = None
    idle: float | None = None


@dataclass
class RankStatus:
    """A rank: where it runs, what it was last known to do and since when, and its chunks of that stage.

    `idle` says for how many seconds a rank of a running run has made no progress, and `waits` whether it only
    waits for others; it is `stalled` where it has been at work on one thing for :data:`IDLE`, or its process
    is gone.
    """

    rank: int
    host: str
    doing: str
    since: float
    heard: float
    done: int
    share: int
    memory: int
    progressed: float
    idle: float | None = None
    waits: bool = False
    stalled: bool = False


@dataclass
class RunStatus:
    """A run: "running", "done", "stopped", "failed", or "lost" where it died without a word; and why.

    Times are seconds since the epoch. `percent` is of all stages, weighted by what each was predicted to
    take; `idle` the seconds since any rank has made progress. `slowest` holds the ranks with most left to do
    of the stage at hand, `by_rank` all of them.
    """

    folder: str
    tool: str
    command: str
    state: str
    why: str
    began: float
    heard: float
    ranks: int
    hosts: list[str]
    percent: float
    seconds_left: float | None
    idle: float | None
    stalled: bool
    stages: list[StageStatus]
    slowest: list[RankStatus]
    by_rank: list[RankStatus]
    errors: list[str]

    @property
    def current(self) -> StageStatus | None:
        """The stage at hand."""
        begun = [stage for stage in self.stages if stage.began is not None and stage.ended is None]
        return begun[-1] if begun else None


# --- Reading ----------------------------------------------------------------------------------------------


def run_status(events: Path) -> RunStatus:
    """Return the status of the run whose events lie in folder `events`.

    Raises
    ------
    BadInput
        No run has left events there.
    """
    return RunReader(events).status()


class RunReader:
    """Reads the status of a run again and again: of its events only what has come since the last time.

    Parameters
    ----------
    events : Path
        Their folder.
    """

    def __init__(self, events: Path):
        self.events = events
        self._logs: dict[int, RankLog] = {}

    def status(self) -> RunStatus:
        """Return how the run is now; raises as :func:`run_status` does."""
        events = self.events
        for path in rank_files(events):
            self._logs.setdefault(int(path.stem), RankLog(path)).look()
        logs = {rank: log.events for rank, log in sorted(self._logs.items()) if log.events}
        start = next((e for log in logs.values() for e in log if e["event"] == "start"), None)
        if start is None:
            raise BadInput(
                f"{shown(events)}: no events of a run; give the folder that a tool was given as --out"
            )
        heard = max(log[-1]["time"] for log in logs.values())
        state, why = _state(logs, start, heard)
        record = record_of(events)
        if state == "done" and not record.exists():
            state, why = (
                "lost",
                f"it was done, and its record {shown(record)} is gone: nothing tells its results",
            )
        if state == "lost" and (died_at := last_activity(events)):
            why += f"; {died_at}"
        stages = _stages(logs, start, state)
        ranks = [_rank(rank, log) for rank, log in logs.items()]
        activities = read_activities(events) if state in ("running", "lost") else {}
        _say_what_they_are_at(ranks, activities)
        if state == "running":
            _look_for_stalls(ranks, activities)
        parts = _parts(logs, start, stages)
        behind = sorted(ranks, key=lambda r: (r.done - r.share, r.since))
        idle = min((rank.idle for rank in ranks if rank.idle is not None), default=None)
        is_idle = idle is not None and idle >= IDLE
        return RunStatus(
            folder=str(events.parent),
            tool=start["tool"],
            command=start["command"],
            state=state,
            why=why,
            began=start["time"],
            heard=heard,
            ranks=start["ranks"],
            hosts=sorted({rank.host for rank in ranks}),
            percent=100.0 if state == "done" else round(100 * fraction(parts), 1),
            seconds_left=round(seconds_left(parts), 1) if state == "running" and not is_idle else None,
            idle=idle,
            stalled=is_idle or any(rank.stalled for rank in ranks),
            stages=stages,
            slowest=[] if state == "done" else behind[:SLOWEST],
            by_rank=ranks,
            errors=[e["report"] for log in logs.values() for e in log if e["event"] in ("error", "hang")],
        )


def _state(logs: Mapping[int, list[dict]], start: Mapping, heard: float) -> tuple[str, str]:
    """Return the state of a run, and why it is so."""
    ends = [e for log in logs.values() for e in log if e["event"] == "end"]
    if ends:
        # Where ranks differ, one that failed says more than those that had finished.
        end = max(ends, key=lambda e: STATES.get(e["status"], "failed") == "failed")
        return STATES.get(end["status"], "failed"), end["why"]
    hung = [e for log in logs.values() for e in log if e["event"] == "hang"]
    if hung:
        # Ranks that only waited for another say which.
        event = min(hung, key=lambda e: bool(e["culprits"]))
        if event["culprits"]:
            return "failed", f"hung: {event['culprits'][0]}"
        rank = next(rank for rank, log in logs.items() if event in log)
        return "failed", f"rank {rank} on {event['host']} hung: {event['what']}"
    if start["host"] == socket.gethostname() and not _runs(start["pid"], start["time"]):
        return "lost", "the process is gone without a word: killed, out of memory, or its node died"
    silence = time.time() - heard
    if silence > SILENCE:
        job = f"; squeue -j {start['job']} tells whether it still runs" if start["job"] else ""
        return "lost", f"no rank has said anything for {silence:.0f} s: killed, or all hang{job}"
    return "running", ""


def _runs(pid: int, began: float) -> bool:
    """Say whether the process that wrote its first event at `began` still runs on this machine."""
    stat = process_stat(pid)
    return stat is not None and stat.state != "Z" and stat.started < began + 1


def _stages(logs: Mapping[int, list[dict]], start: Mapping, state: str) -> list[StageStatus]:
    stages = {name: StageStatus(name, chunks) for name, chunks in start["stages"] if name}
    through: dict[str, list[float]] = {}
    last: dict[str, float] = {}
    for log in logs.values():
        for event in log:
            name = event["stage"]
            if event["event"] == "stage" and name:
                stage = stages.setdefault(name, StageStatus(name, event["chunks"]))
                stage.chunks, stage.resumed = event["chunks"], event["done"]
                stage.began = min(stage.began or event["time"], event["time"])
            elif event["event"] == "chunks" and name in stages:
                stages[name].done += event["chunks"]
                last[name] = max(last.get(name, 0.0), event["time"])
            elif event["event"] == "ended":
                through.setdefault(name, []).append(event["time"])
    for name, stage in stages.items():
        if len(through.get(name, ())) >= max(1, start["ranks"]):
            stage.ended = max(through[name])
        if stage.began is not None:
            _progressed(stage, last.get(name), state == "running")
    # Some stages are laid out before the run and then not needed.
    return [stage for stage in stages.values() if state != "done" or stage.began is not None]


def _progressed(stage: StageStatus, last: float | None, running: bool) -> None:
    """Note how fast a stage goes or went, and what that says of its end."""
    now = time.time()
    runs = running and stage.ended is None
    if runs:
        stage.idle = max(0.0, now - (last or stage.began))
    until = now if runs else stage.ended or last
    if stage.done and until > stage.began:
        stage.rate = stage.done / (until - stage.began)
        if runs and stage.idle < IDLE:
            stage.seconds_left = max(0, stage.chunks - stage.resumed - stage.done) / stage.rate


def _parts(logs: Mapping[int, list[dict]], start: Mapping, stages: Sequence[StageStatus]) -> list[StagePart]:
    """Return the stages as parts of the run; a run that predicts nothing has stages of one weight."""
    weights = {name: seconds for (name, _), seconds in zip(start["stages"], start["seconds"], strict=False)}
    planned = {e["stage"]: e["planned"] for log in logs.values() for e in log if e["event"] == "stage"}
    now = time.time()
    parts = []
    for stage in stages:
        left = stage.chunks - stage.resumed
        part = StagePart(stage.name, weights.get(stage.name, 0.0 if weights else 1.0))
        if stage.began is not None:
            part.begun, part.planned = True, planned.get(stage.name, 0.0)
            part.resumed = stage.resumed / stage.chunks if stage.chunks else 0.0
            part.done = 1.0 if stage.ended or left <= 0 else min(1.0, stage.done / left)
            part.spent = max(0.0, (stage.ended or now) - stage.began)
        parts.append(part)
    return parts


def _rank(rank: int, log: list[dict]) -> RankStatus:
    last, share, done, stage = log[-1], 0, 0, ""
    for event in log:
        if event["event"] == "stage":
            share, done, stage = event["mine"], 0, event["stage"]
        elif event["event"] == "chunks" and event["stage"] == stage:
            done += event["chunks"]
    doing = last["what"] or f"stage {last['stage'] or stage}"
    if last["event"] == "chunks":
        doing += f", after chunk {last['chunk']}"
    progressed = max((event["time"] for event in log if event["event"] in _PROGRESS), default=last["time"])
    return RankStatus(
        rank, last["host"], doing, last["since"], last["time"], done, share, last["memory"], progressed
    )


def _say_what_they_are_at(ranks: Sequence[RankStatus], activities: Mapping[int, Activity]) -> None:
    """Note of each rank what it is at, or was when it died, where that is later than its last event."""
    for rank in ranks:
        activity = activities.get(rank.rank)
        if activity is not None and activity.since >= rank.progressed:
            rank.doing, rank.since, rank.waits = activity.what, activity.since, activity.waits


def _look_for_stalls(ranks: Sequence[RankStatus], activities: Mapping[int, Activity]) -> None:
    """Note of the ranks of a running run how long each is at what it is at, and which are stuck there."""
    now = time.time()
    for rank in ranks:
        activity = activities.get(rank.rank)
        rank.idle = max(0.0, now - max(rank.progressed, activity.since if activity else 0.0))
        if (
            activity is not None
            and activity.host == socket.gethostname()
            and not _runs(activity.pid, activity.since)
        ):
            rank.stalled, rank.doing = True, f"{rank.doing}; its process is gone"
        rank.stalled = rank.stalled or (rank.idle >= IDLE and not rank.waits)
    # Where all wait, it is for the one that waits longest.
    if activities and not any(rank.stalled for rank in ranks):
        at = {activity.rank for activity in interrupted_at(activities)}
        for rank in ranks:
            rank.stalled = rank.idle >= IDLE and rank.rank in at
