"""How far a run is in all, and what time is left: arithmetic over its stages, weighted by what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Seconds that a stage counts for at least, so that runs of which nothing is predicted come to their end too.
_LEAST = 1e-3

#: A stage's own speed is believed once so much of it is done, in so many seconds.
_SEEN, _SEEN_SECONDS = 0.05, 2.0

#: Seconds of a run that goes as predicted, which stand beside what is measured: so little of it says little.
_PRIOR = 5.0


@dataclass
class StagePart:
    """A stage as a part of its run.

    Parameters
    ----------
    name : str
    weight : float
        Seconds that it takes, as predicted before the run.
    planned : float
        Seconds predicted for what was left to do when it began.
    resumed : float
        Share of its chunks that earlier runs have done.
    done : float
        Share of what was left that is done.
    spent : float
        Seconds since it began, or that it took.
    begun : bool
    """

    name: str
    weight: float
    planned: float = 0.0
    resumed: float = 0.0
    done: float = 0.0
    spent: float = 0.0
    begun: bool = False

    @property
    def share(self) -> float:
        """Share of all its chunks that is done."""
        return self.resumed + (1.0 - self.resumed) * self.done


@dataclass(frozen=True)
class Portion:
    """What part of a job a run is, where the job has many such runs.

    Parameters
    ----------
    before, size : float
        Share of the job that was done before it, and that it is.
    what : str
        Which of the runs it is, in words; empty where it is the only one.
    began : float
        When the job began, by time.monotonic().
    alone : bool
        Whether no other runs go on at the same time.
    """

    before: float = 0.0
    size: float = 1.0
    what: str = ""
    began: float = 0.0
    alone: bool = True


def position(parts: Sequence[StagePart]) -> int:
    """Return the number of the stage at hand, the last that has begun; -1 before the first."""
    return max((number for number, part in enumerate(parts) if part.begun), default=-1)


def fraction(parts: Sequence[StagePart]) -> float:
    """Return how much of a run is done, from 0 to 1; stages that were passed by count as done."""
    now = position(parts)
    weights = [max(part.weight, _LEAST) for part in parts]
    if now < 0:
        return 0.0
    return min(1.0, (sum(weights[:now]) + weights[now] * parts[now].share) / sum(weights))


def seconds_left(parts: Sequence[StagePart]) -> float:
    """Return the seconds until a run ends: what was predicted, as far as it has been right until now."""
    now = position(parts)
    later = sum(part.weight for part in parts[now + 1 :])
    if now < 0:
        return later
    begun = [part for part in parts[: now + 1] if part.begun]
    spent = sum(part.spent for part in begun)
    predicted = sum(part.planned * part.done for part in begun)
    ratio = (spent + _PRIOR) / (predicted + _PRIOR)
    part = parts[now]
    if part.done >= _SEEN and part.spent >= _SEEN_SECONDS:
        return part.spent * (1.0 - part.done) / part.done + ratio * later
    return ratio * (part.planned * (1.0 - part.done) + later)
