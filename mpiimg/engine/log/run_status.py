"""What a run does or has done, from its events: progress, rate, time left, slowest ranks, what failed.

Works on running, killed and finished runs, without MPI, from any machine that
sees the folder. Whatever events hold, of another version or damaged, is read as
far as it makes sense.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.log.activity import last_activity
from mpiimg.engine.log.events import MAX_TIME, rank_files, read_events, record_of
from mpiimg.engine.log.wording import clock, span
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

#: What a run's end is called, by its exit status; another one is that of a run that failed.
STATES = {
    Exit.DONE: "done",
    Exit.PARTIAL: "done",
    Exit.STOPPED: "stopped",
    Exit.FAILED: "failed",
    Exit.BAD_INPUT: "failed",
}

#: Fields of events that hold text, numbers that count, and times in seconds since the epoch.
_TEXTS = ("tool", "command", "host", "event", "why", "what", "stage", "report", "job")
_COUNTS = ("ranks", "pid", "chunks", "done", "mine", "chunk", "memory", "status")
_TIMES = ("time", "since")

#: No count is larger.
_MAX_COUNT = 1 << 53


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
    """A rank: where it runs, what it was last known to do and since when, and its chunks of that stage."""

    rank: int
    host: str
    doing: str
    since: float
    heard: float
    done: int
    share: int
    memory: int


@dataclass
class RunStatus:
    """A run: "running", "done", "stopped", "failed", or "lost" where it died without a word; and why.

    Times are seconds since the epoch. `slowest` holds the ranks with most left to do of the stage at hand.
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
    stages: list[StageStatus]
    slowest: list[RankStatus]
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
    logs = {int(path.stem): _log(path) for path in rank_files(events)}
    logs = {rank: log for rank, log in logs.items() if log}
    start = next((e for log in logs.values() for e in log if e["event"] == "start"), None)
    if start is None:
        raise BadInput(f"{shown(events)}: no events of a run; give the folder that a tool was given as --out")
    heard = max(log[-1]["time"] for log in logs.values())
    state, why = _state(logs, start, heard)
    record = record_of(events)
    if state == "done" and not record.exists():
        state, why = "lost", f"it was done, and its record {shown(record)} is gone: nothing tells its results"
    if state == "lost" and (died_at := last_activity(events)):
        why += f"; {died_at}"
    stages = _stages(logs, start, state)
    ranks = [_rank(rank, log) for rank, log in sorted(logs.items())]
    behind = sorted(ranks, key=lambda r: (r.done - r.share, r.since))
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
        stages=stages,
        slowest=[] if state == "done" else behind[:SLOWEST],
        errors=[e["report"] for log in logs.values() for e in log if e["event"] in ("error", "hang")],
    )


def _log(path: Path) -> list[dict[str, Any]]:
    """Return the events of a rank with all fields that any has, of their types."""
    with contextlib.suppress(OSError):
        return [_of_types(event) for event in read_events(path)]
    return []


def _of_types(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event with fields of their types, "" or 0 for those that are missing or of another."""
    fields: dict[str, Any] = {}
    for name in _TEXTS:
        value = event.get(name)
        fields[name] = value if isinstance(value, str) else ""
    for name in _COUNTS:
        fields[name] = _within(event.get(name), _MAX_COUNT, int)
    for name in _TIMES:
        fields[name] = _within(event.get(name), MAX_TIME, int | float)
    fields["since"] = fields["since"] or fields["time"]
    stages = event.get("stages")
    fields["stages"] = [_planned(one) for one in stages] if isinstance(stages, list) else []
    return fields


def _within(value: Any, limit: float, kind: Any) -> Any:
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= limit else 0


def _planned(stage: Any) -> tuple[str, int]:
    """Return name and chunks of a stage as the start of a run says it."""
    if isinstance(stage, list) and len(stage) == 3 and isinstance(stage[0], str):
        return stage[0], _within(stage[2], _MAX_COUNT, int)
    return "", 0


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
        event = min(hung, key=lambda e: bool(e.get("culprits")))
        if event.get("culprits"):
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
    return RankStatus(rank, last["host"], doing, last["since"], last["time"], done, share, last["memory"])


# --- In words ---------------------------------------------------------------------------------------------


def describe(run: RunStatus) -> str:
    """Return the status of a run in some lines of text, which a terminal may be shown."""
    lines = [
        f"{run.tool}: {run.state}" + (f": {run.why}" if run.why else ""),
        f"  {run.command or run.folder}",
        f"  {run.ranks} ranks on {', '.join(run.hosts)}; began {clock(run.began)}, "
        f"last heard of {span(time.time() - run.heard)} ago",
    ]
    width = max((len(stage.name) for stage in run.stages), default=0)
    for stage in run.stages:
        lines.append(f"  {stage.name:<{width}} {_progress(stage)}")
    if run.state != "done":
        for rank in run.slowest:
            lines.append(
                f"  rank {rank.rank} on {rank.host}: {rank.done} of its {rank.share} chunks, "
                f"{rank.memory >> 20} MB; since {clock(rank.since)}: {rank.doing}"
            )
    return "\n".join([*(shown(line, lines=True) for line in [*lines, *run.errors])])


def _progress(stage: StageStatus) -> str:
    if stage.began is None:
        return f"{'to do':>9}  {stage.chunks} chunks"
    have = stage.resumed + stage.done
    percent = min(100, 100 * have // stage.chunks) if stage.chunks else 100
    text = f"{'done' if stage.ended else f'{percent} %':>9}  {have} of {stage.chunks} chunks"
    if stage.resumed:
        text += f", {stage.resumed} of them in earlier runs"
    if stage.ended:
        return f"{text}, {span(stage.ended - stage.began)}"
    if stage.idle is not None and stage.idle >= IDLE:
        return f"{text}, no progress for {span(stage.idle)}"
    if stage.rate:
        text += f", {stage.rate:.3g} per second"
    if stage.seconds_left is not None:
        text += f", {span(stage.seconds_left)} left"
    return text
