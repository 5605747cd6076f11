"""The watchdog: ends the job when a rank hangs, and says what every rank was doing."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from mpiimg.errors import Exit


class Watchdog:
    """End the job when nothing happens for too long; the launcher ends the other ranks.

    Call it whenever the rank turns to something: a chunk, an exchange. A rank
    at work has `seconds` for it. A rank that waits for others waits on as long
    as one of them is at work, so that no wait is taken for a hang.

    A thread looks every few seconds. Where it gets no turn, since a kernel
    hangs that never lets go of the interpreter, or is itself stuck in a file
    system, faulthandler's own ends the process a little later.

    Parameters
    ----------
    seconds : float
        For one chunk or exchange; 0 to wait for ever.
    others_work : callable
        Called as others_work(seconds); says whether another rank has done something within these.
    noted : callable
        Called as noted(what, since) once for what has been going on for some seconds; `since` the epoch.
    hung : callable
        Called as hung(what, since, stack) when the job is about to end; returns what to print.
    """

    #: Seconds between looks, and after which something going on is noted.
    LOOK = 5.0

    def __init__(
        self,
        seconds: float,
        others_work: Callable[[float], bool] = lambda seconds: False,
        noted: Callable[[str, float], None] = lambda what, since: None,
        hung: Callable[[str, float, str], str] = lambda what, since, stack: f"{what}\n{stack}",
    ):
        self._seconds, self._others_work, self._noted, self._hung = seconds, others_work, noted, hung
        self._now = ("start", time.monotonic(), False)
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, what: str, waits: bool = False) -> None:
        """Note what this rank turns to; `waits`: for others, who may take longer."""
        self._now = (what, time.monotonic(), waits)
        if self._thread is None and self._seconds:
            self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
            self._thread.start()

    @property
    def what(self) -> str:
        """What this rank is at."""
        return self._now[0]

    def cancel(self) -> None:
        """Stop watching."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        look, noted = min(self.LOOK, self._seconds / 20), None
        while True:
            faulthandler.dump_traceback_later(1.5 * self._seconds + look, exit=True, file=sys.__stderr__)
            if self._ended.wait(look):
                return
            now = self._now
            what, began, waits = now
            idle = time.monotonic() - began
            since = time.time() - idle
            if idle > self._seconds and not (waits and self._others_work(self._seconds)):
                self._end(what, since)
            if idle > look and noted is not now:
                noted = now
                self._noted(what, since)

    def _end(self, what: str, since: float) -> None:
        stack = "".join(traceback.format_stack(sys._current_frames()[self._watched]))
        with contextlib.suppress(Exception):
            # In one piece, unbuffered: several ranks may speak at once.
            os.write(2, self._hung(what, since, stack).encode())
        os._exit(Exit.FAILED)
