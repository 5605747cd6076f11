"""What a plan comes to: whether the run fits, how long it takes, and how many ranks are worth having."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.log.wording import about, many, megabytes, size
from mpiimg.engine.plan import Resources, StagePlan
from mpiimg.engine.raw import free_bytes
from mpiimg.engine.recipe import Recipe, staged_bytes
from mpiimg.engine.stage import Stage, Stream

#: Of the time of all ranks, so much must be work for their number to be worth having.
WORTH = 0.5

#: Seconds until a rank has loaded its libraries and met the others, however many there are.
START = 2.0

#: Numbers of ranks up to here are all looked at, and above them so many more.
_EVERY = 4096
_MORE = 200


@dataclass(frozen=True)
class Disk:
    """What a run may write into its work folder, and what is free there; both in bytes."""

    needed: int
    free: int


def disk_of(recipe: Recipe, resources: Resources, folder: Path) -> Disk | None:
    """Return what a run stages, and what is free where its results go; None where it stages nothing."""
    if resources.in_memory:
        return None
    existing = next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), None)
    return None if existing is None else Disk(staged_bytes(recipe), free_bytes(existing))


@dataclass(frozen=True)
class Verdict:
    """What a plan comes to, as --plan=json has it.

    Parameters
    ----------
    fits : bool
    peak_per_rank, memory_per_rank : int
        Bytes that a rank needs, and that it may use.
    disk_needed, disk_free : int or None
        Bytes that are written to the work folder, and that are free there; None where that is not known.
    seconds : float
        With the ranks of the plan.
    ranks_worth : int
        With more than these, over half of the time of all ranks would be idle.
    seconds_with_these : float
        That they take.
    """

    fits: bool
    peak_per_rank: int
    memory_per_rank: int
    disk_needed: int | None
    disk_free: int | None
    seconds: float
    ranks_worth: int
    seconds_with_these: float

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in asdict(self).items()}


def verdict(
    plan: Sequence[tuple[Stage, StagePlan]], resources: Resources, disk: Disk | None = None
) -> Verdict:
    """Return what a plan comes to."""
    peak = max((planned.peak for _, planned in plan), default=0)
    worth, then = ranks_worth(plan)
    return Verdict(
        peak <= resources.memory and (disk is None or disk.needed <= disk.free),
        peak,
        resources.memory,
        disk and disk.needed,
        disk and disk.free,
        sum(planned.seconds for _, planned in plan),
        worth,
        then,
    )


def ranks_worth(plan: Sequence[tuple[Stage, StagePlan]]) -> tuple[int, float]:
    """Return the most ranks that work for half of their time or more, and the seconds that they take.

    The chunks of a stage are taken for equal, and the traffic for that of the plan. A stream is read by one
    rank, and each rank takes some seconds to start.
    """
    alone = np.array([planned.seconds for stage, planned in plan if isinstance(stage, Stream)])
    shared = [planned for stage, planned in plan if not isinstance(stage, Stream) and planned.chunks]
    chunks = np.array([planned.chunks for planned in shared], np.int64)
    work = np.array([planned.cpu_seconds for planned in shared])
    largest = int(chunks.max(initial=1))
    counts = np.arange(1, min(largest, _EVERY) + 1)
    if largest > _EVERY:
        counts = np.concatenate([counts, np.geomspace(_EVERY, largest, _MORE).astype(np.int64)[1:]])
    share = -(-chunks[:, None] // counts) / chunks[:, None]
    seconds = START + alone.sum() + (work[:, None] * share).sum(axis=0)
    best = int(np.flatnonzero(counts * seconds * WORTH <= seconds[0]).max())
    return int(counts[best]), float(seconds[best])


def of_scans(it: Verdict, seconds: float, ranks: int) -> str:
    """Return in a line what a cohort comes to whose largest scan comes to this, and that takes so long."""
    return f"{_fits(it)}: {_memory(it)}; {about(seconds)} for all scans on {many(ranks, 'rank')}"


def _fits(it: Verdict) -> str:
    return "fits" if it.fits else "does not fit"


def _memory(it: Verdict) -> str:
    return f"a rank needs {megabytes(it.peak_per_rank)} MB of its {it.memory_per_rank >> 20}"


def in_words(it: Verdict, ranks: int) -> list[str]:
    """Return a verdict in two lines."""
    facts = [_memory(it), f"{about(it.seconds)} on {many(ranks, 'rank')}"]
    if it.disk_needed is not None:
        facts.insert(1, f"{size(it.disk_needed)} go to a disk with {size(it.disk_free)} free")
    lines = [f"{_fits(it)}: {'; '.join(facts)}"]
    if it.disk_needed is not None and it.disk_needed > it.disk_free:
        lines[0] += ": free some, choose another --out or --work-dir, or use --in-memory"
    most = "1" if it.ranks_worth == 1 else f"up to {it.ranks_worth}"
    then = "" if it.ranks_worth == ranks else f" ({about(it.seconds_with_these)})"
    lines.append(f"ranks worth having: {most}{then}; more would be idle for over half of the time")
    return lines
