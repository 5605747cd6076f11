"""What people see of a run while it runs: a bar on the terminal, else a line now and then.

Rank 0 alone shows it, from its own share of each stage: no rank asks another, and a chunk costs a look at
the clock. Where a chunk takes long the thread of the watchdog shows it instead.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from mpiimg.engine.log.overall import Portion, StagePart, fraction, position, seconds_left
from mpiimg.engine.log.wording import about
from mpiimg.engine.mpi import runtime
from mpiimg.engine.mpi.terminal import Terminal, terminal
from mpiimg.engine.names import shown

#: Seconds between two drawings of a bar.
REDRAWN = 0.5

#: Columns of a terminal that does not tell.
USUAL_WIDTH = 80

#: Seconds until the first line, and between lines at least and at most.
FIRST, LAST = 10.0, 600.0

#: Of the time that a run has taken until now, so much passes until the next line.
LATER = 0.25


class Bar:
    """A bar on a terminal, which steps aside for whatever else is printed."""

    def __init__(self, place: Terminal):
        self._place, self._bar = place, None

    def draw(self, percent: float, text: str, elapsed: float) -> float:
        """Draw it, and return the seconds until it is to be drawn again."""
        if not self._place.is_ours():
            self.clear()
            return REDRAWN
        if self._bar is None:
            from tqdm import tqdm

            class Quiet(tqdm):
                monitor_interval = 0  # no thread of its own

            # Some terminals do not tell how large they are, and tqdm would draw nothing there.
            size = {"dynamic_ncols": True} if self._place.columns else {"ncols": USUAL_WIDTH, "nrows": 24}
            form = "{percentage:3.0f} %|{bar:24}| {desc}"
            # With a delay nothing is drawn before there is a text.
            self._bar = Quiet(
                total=100,
                file=self._place.stream,
                bar_format=form,
                leave=False,
                delay=1e-9,
                **size,
            )
            runtime.steps_aside(self.clear)
        self._bar.n = int(percent)
        self._bar.set_description_str(text, refresh=False)
        self._bar.refresh()
        return REDRAWN

    def clear(self) -> None:
        """Leave the line to others."""
        if self._bar is not None:
            self._bar.clear()

    def close(self) -> None:
        """Be gone."""
        runtime.steps_aside(None)
        if self._bar is not None:
            self._bar.close()
        self._place.close()


class Lines:
    """A line on stderr after ten seconds, and then less and less often."""

    def draw(self, percent: float, text: str, elapsed: float) -> float:
        """Print a line, if one is due, and return the seconds until the next."""
        if elapsed < FIRST:
            return FIRST - elapsed
        runtime.put(f"mpiimg: {int(percent)} %, {text}", sys.stderr)
        return min(max(LATER * elapsed, FIRST), LAST)

    def close(self) -> None:
        """Say nothing more."""


class Progress:
    """How far a run is, told by rank 0.

    Parameters
    ----------
    show : Bar or Lines, optional
        None to show nothing.
    stages : sequence of (str, float)
        Names of the stages that may come, with the seconds that each takes as predicted.
    label : str
        What begins each text, where several runs speak.
    portion : Portion, optional
        What part of its job the run is.
    """

    def __init__(
        self,
        show: Bar | Lines | None,
        stages: Sequence[tuple[str, float]] = (),
        label: str = "",
        portion: Portion | None = None,
    ):
        self._show, self._label, self._portion = show, label, portion or Portion()
        self._parts = [StagePart(name, seconds) for name, seconds in stages]
        self._places = {part.name: number for number, part in enumerate(self._parts)}
        self._now: StagePart | None = None
        self._share = 1
        self._done = 0
        self._began = self._turned = time.monotonic()
        self._next = self._began if show is not None else float("inf")
        self._lock = threading.Lock()

    def turn_to(self, stage: str, planned: float, resumed: float, share: int) -> None:
        """Note that a stage begins.

        Parameters
        ----------
        stage : str
        planned : float
            Seconds predicted for what is left of it.
        resumed : float
            Share of its chunks that earlier runs have done.
        share : int
            Chunks that this rank is to do.
        """
        if self._show is None:
            return
        self._settle()
        if self._now is not None:
            self._now.done = 1.0
        number = self._places.get(stage)
        self._now = StagePart(stage, 0.0) if number is None else self._parts[number]
        self._now.begun, self._now.planned, self._now.resumed = True, planned, resumed
        self._share, self._done, self._turned = max(share, 1), 0, time.monotonic()
        self.look()

    def advance(self, done: int | None = None) -> None:
        """Note that this rank has done one more chunk of the stage, or `done` in all."""
        self._done = self._done + 1 if done is None else done
        if time.monotonic() >= self._next:
            self.look()

    def look(self) -> None:
        """Show how far the run is, if that is due."""
        # The watchdog looks too: whichever of the two comes second leaves it to the first.
        if self._show is None or not self._lock.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            if now >= self._next:
                self._settle()
                percent, text = self._words(now)
                self._next = now + self._show.draw(percent, text, now - (self._portion.began or self._began))
        except (OSError, ValueError):
            self._next = float("inf")  # whoever looked on is gone
        finally:
            self._lock.release()

    def close(self) -> None:
        """Show nothing any more."""
        show, self._show, self._next = self._show, None, float("inf")
        if show is not None:
            show.close()

    def _settle(self) -> None:
        """Bring what is known of the stage at hand up to now."""
        if self._now is not None:
            self._now.spent = time.monotonic() - self._turned
            self._now.done = min(1.0, self._done / self._share)

    def _words(self, now: float) -> tuple[float, str]:
        """Return the percentage, and what there is to say besides."""
        portion = self._portion
        have = portion.before + portion.size * fraction(self._parts)
        left = seconds_left(self._parts)
        if portion.what:
            elapsed = now - portion.began
            left = elapsed * (1 - have) / have if have > 0.01 else float("inf")
        words = [f"{about(left)} left"] if left < float("inf") and now - self._began >= 1.0 else []
        words += filter(None, [portion.what])
        if self._now is not None:
            place = f" ({position(self._parts) + 1} of {len(self._parts)})"
            words.append(f"{self._label}{self._now.name}{place} {int(100 * self._now.share)} %")
        return 100 * have, shown("; ".join(words))


def progress_of(options, rank: int, stages: Sequence[tuple[str, float]]) -> Progress:
    """Return what shows the progress of a run with these options, on this rank."""
    if not options.progress or rank != 0:
        return Progress(None)
    place = terminal() if options.portion.alone else None
    return Progress(Bar(place) if place else Lines(), stages, options.label, options.portion)
