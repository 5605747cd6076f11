"""The status of a run in words: whole, or as much of it as a screen holds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from mpiimg.engine.log.run_status import IDLE, RankStatus, RunStatus, StageStatus
from mpiimg.engine.log.wording import about, clock, columns, many, span, step_of
from mpiimg.engine.names import shown

#: What turns a text on a terminal red, and back.
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def describe(run: RunStatus, colour: bool = False) -> str:
    """Return the status of a run in some lines of text, which a terminal may be shown.

    Parameters
    ----------
    run : RunStatus
    colour : bool
        What has failed or stalled is red.
    """
    lines = [_stage_row(stage) for stage in run.stages]
    lines = [f"  {line}" for line in columns(lines, left=(0, 2))] if lines else []
    ranks = [] if run.state == "done" else [_of_rank(rank, colour) for rank in run.slowest]
    errors = [shown(error, lines=True) for error in run.errors]
    return "\n".join([*_head(run, colour), *map(shown, lines), *ranks, *errors])


def screenful(run: RunStatus, height: int, width: int, colour: bool) -> str:
    """Return the status of a run as far as it fits into a screen: steps, and ranks that stall first."""
    lines = _head(run, colour, width)
    steps = columns(_step_rows(run.stages), left=(0, 2)) if run.stages else []
    lines += [f"  {shown(line)[: width - 3]}" for line in steps]
    if run.state in ("done", "stopped") or not run.by_rank:
        return "\n".join(lines)
    order = sorted(run.by_rank, key=lambda rank: (not rank.stalled, rank.rank))
    room = max(3, height - len(lines) - 3)
    listed = order[:room]
    head = ("rank", "host", "chunks", "MB", "last progress", "at")
    rows = columns([head, *map(_rank_row, listed)], left=(1, 5))
    lines.append(f"  {rows[0][: width - 3]}")
    for rank, row in zip(listed, rows[1:], strict=True):
        lines.append(painted(f"  {shown(row)[: width - 3]}", rank.stalled and colour))
    if len(order) > len(listed):
        lines.append(f"  and {len(order) - len(listed)} more ranks")
    return "\n".join(lines)


def in_a_line(run: RunStatus) -> str:
    """Return the status of a run in a line, for a log."""
    stalls = [rank.rank for rank in run.by_rank if rank.stalled]
    at = run.current
    parts = [
        f"{run.tool}: {_state(run)}",
        f"stage {at.name}, {at.resumed + at.done} of {at.chunks} chunks" if at else "",
        f"no progress on rank {', '.join(map(str, stalls[:3]))}{', ...' * (len(stalls) > 3)}"
        if stalls
        else "",
    ]
    return shown("; ".join(filter(None, parts)))


def painted(text: str, red: bool) -> str:
    """Return a text that is fit to be shown, in red or as it is."""
    return f"{_RED}{text}{_PLAIN}" if red else text


def _state(run: RunStatus) -> str:
    """Return the state of a run, and how far it is."""
    if run.state != "running":
        return f"{run.state}: {run.why}" if run.why else run.state
    words = [f"{int(run.percent)} % in all"]
    if run.seconds_left is not None:
        words.append(f"{about(run.seconds_left)} left")
    if run.idle is not None:
        words.append(f"last progress {span(run.idle)} ago")
    return f"running: {', '.join(words)}"


def _head(run: RunStatus, colour: bool, width: int | None = None) -> list[str]:
    lines = [
        f"{run.tool}: {_state(run)}",
        f"  {run.command or run.folder}",
        f"  {run.ranks} ranks on {', '.join(run.hosts)}; began {clock(run.began)}, "
        f"last heard of {span(time.time() - run.heard)} ago",
    ]
    if width is None:
        lines = [shown(line, lines=True) for line in lines]
    else:
        lines = [shown(line.partition("\n")[0])[: width - 1] for line in lines]
    lines[0] = painted(lines[0], colour and (run.stalled or run.state in ("failed", "lost")))
    return lines


def _of_rank(rank: RankStatus, colour: bool) -> str:
    line = (
        f"  rank {rank.rank} on {rank.host}: {rank.done} of its {rank.share} chunks, "
        f"{rank.memory >> 20} MB; since {clock(rank.since)}: {rank.doing}"
    )
    return painted(shown(line), colour and rank.stalled)


def _rank_row(rank: RankStatus) -> Sequence[object]:
    ago = "" if rank.idle is None else f"{span(rank.idle)} ago"
    chunks = f"{rank.done} of {rank.share}"
    return (rank.rank, rank.host, chunks, rank.memory >> 20, ago, rank.doing)


def _stage_row(stage: StageStatus) -> Sequence[object]:
    if stage.began is None:
        return (stage.name, "to do", f"{stage.chunks} chunks")
    have = stage.resumed + stage.done
    percent = min(100, 100 * have // stage.chunks) if stage.chunks else 100
    return (stage.name, "done" if stage.ended else f"{percent} %", _progress(stage, have))


def _progress(stage: StageStatus, have: int) -> str:
    text = f"{have} of {stage.chunks} chunks"
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


def _step_rows(stages: Sequence[StageStatus]) -> list[Sequence[object]]:
    """Return a row for each step but those that were not needed; of the one at hand that of its stage."""
    last = max((number for number, stage in enumerate(stages) if stage.began is not None), default=-1)
    rows = []
    for step, group in itertools.groupby(enumerate(stages), key=lambda one: step_of(one[1].name)):
        numbers, of_step = zip(*group, strict=True)
        begun = [stage for stage in of_step if stage.began is not None]
        at_hand = [stage for stage in begun if stage.ended is None]
        if at_hand:
            rows.append(_stage_row(at_hand[-1]))
        elif begun and numbers[-1] <= last:
            took = span(begun[-1].ended - begun[0].began)
            rows.append((step, "done", f"{many(len(begun), 'stage')}, {took}"))
        elif numbers[-1] > last:
            rows.append((step, "to do", many(len(of_step) - len(begun), "stage")))
    return rows
