"""The watchdog: ends the job when a rank hangs, and says what every rank was doing."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from mpiimg.engine.mpi.processes import RankProcess
from mpiimg.errors import Exit

#: Seconds that one step may take where nobody says so.
DEFAULT_TIMEOUT = 3600.0

#: How this package ends its own process, whoever stands in for it later (engine/mpi/exits.py).
_leave_now = os._exit


class Reporter:
    """What a watchdog asks, and tells: here for a process in which no run has begun yet.

    Parameters
    ----------
    rank : int
        This rank.
    processes : sequence of RankProcess
        Those of the other ranks on this node.
    """

    def __init__(self, rank: int = 0, processes: Sequence[RankProcess] = ()):
        self.rank, self.processes = rank, processes

    @property
    def who(self) -> str:
        """This rank and its machine."""
        return f"rank {self.rank} on {socket.gethostname()}"

    def others_work(self, seconds: float) -> bool:
        """Say whether another rank has done something within the last `seconds`."""
        return False

    def turned_to(self, what: str, waits: bool) -> None:
        """Note what this rank turns to."""

    def looked(self) -> None:
        """Be told, every few seconds, that the watchdog has looked."""

    def note(self, what: str, since: float) -> None:
        """Note, once, what has been going on for some seconds; `since` the epoch."""

    def last_words(self, what: str, since: float, waits: bool, stack: str, limit: float) -> str:
        """Return what to print when the job is about to end, since nothing has happened for `limit` seconds.

        Which rank has hung comes first: not the one that waits for it.
        """
        culprits = self.culprits() if waits else []
        lines = [f"mpiimg: {culprit} (--timeout {limit:g})" for culprit in culprits]
        if culprits:
            lines.append(f"mpiimg: {self.who}, which waits for it, ends the job: {what}")
        else:
            hung = f"{time.time() - since:.0f} s (--timeout {limit:g})"
            lines.append(f"mpiimg: {self.who} has hung for {hung} and ends the job: {what}")
        return "\n".join([*lines, *self.others(), stack])

    def culprits(self) -> list[str]:
        """Say which other ranks make no progress while this one waits."""
        host = socket.gethostname()
        troubles = [(process, process.trouble()) for process in self.processes]
        return [f"rank {p.rank} on {host} (process {p.pid}) {trouble}" for p, trouble in troubles if trouble]

    def others(self) -> list[str]:
        """Say what the other ranks were last known to do."""
        return []

    def missed(self) -> str:
        """Say which other rank is gone, so that waiting for it is in vain; nothing where none is."""
        for process in self.processes:
            if process.is_gone:
                where = f"{socket.gethostname()} (process {process.pid})"
                return f"rank {process.rank} on {where} is gone without a word"
        return ""

    def died(self, why: str) -> None:
        """Note that this process is about to end, and why."""


class Watchdog:
    """End the job when nothing happens for too long; the launcher ends the other ranks.

    Call it whenever the rank turns to something: a chunk, an exchange, reading headers. A rank
    at work has `seconds` for it. A rank that waits for others waits on as long
    as one of them is at work, so that no wait is taken for a hang, and somewhat longer than the others may
    work, so that who hangs speaks first; but not for a rank whose process is gone and is not missed by the
    launcher.

    A thread looks every few seconds. Where it gets no turn, since a kernel
    hangs that never lets go of the interpreter, or is itself stuck in a file
    system, faulthandler's own ends the process a little later.

    Parameters
    ----------
    seconds : float
        For one chunk or exchange; 0 to wait for ever.
    reporter : Reporter, optional
        Whom to ask and to tell.
    stop : StopRequest, optional
        Which the thread looks at too (:mod:`mpiimg.engine.mpi.stop`).
    """

    #: Seconds between looks, and after which something going on is noted.
    LOOK = 5.0

    #: A rank that waits may do so for this many times the seconds of one that works.
    PATIENCE = 1.25

    #: Seconds in which a launcher ends the job of a rank that is gone, if it ever does.
    LAUNCHER = 10.0

    #: What a rank is at that nobody watches.
    _RESTS = ("", 0.0, False)

    def __init__(self, seconds: float, reporter: Reporter | None = None, stop=None):
        self.seconds = seconds
        self.reporter = reporter or Reporter()
        self._own_reporter = self.reporter
        self._stop = stop
        self._now = ("start", time.monotonic(), False)
        self._limit: tuple | None = None
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, what: str, waits: bool = False) -> None:
        """Note what this rank turns to; `waits`: for others, who may take longer."""
        self._now = (what, time.monotonic(), waits)
        self.reporter.turned_to(what, waits)

    @contextlib.contextmanager
    def limited(
        self, what: str, share: float, answer: Callable[[traceback.StackSummary, float], str]
    ) -> Iterator[None]:
        """Give the block a share of the usual time; if it takes longer, the input of the run is to blame.

        Parameters
        ----------
        what : str
        share : float
            Of the seconds that one step may take.
        answer : callable
            Called as answer(stack, seconds) when these seconds are over; returns the line to print.
        """
        self(what)
        self._limit = self._now, share, answer
        try:
            yield
        finally:
            self._limit = None
            self(f"what comes after {what}")

    def start(self) -> None:
        """Begin to watch the thread that calls this."""
        self._watched = threading.get_ident()
        self._now = ("start", time.monotonic(), False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def report_to(self, reporter: Reporter | None) -> None:
        """Ask and tell this one from now on; None for the one that it was made with."""
        self.reporter = reporter or self._own_reporter

    @property
    def what(self) -> str:
        """What this rank is at."""
        return self._now[0]

    def rest(self) -> None:
        """Watch nothing until the next call."""
        self._now = self._RESTS

    def cancel(self) -> None:
        """Stop watching."""
        self._ended.set()
        if self._stop is not None:
            self._stop.wake()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        noted, ask_again, armed_at, missed_since = None, 0.0, 0.0, time.monotonic()
        while True:
            now, seconds, time_now = self._now, self.seconds, time.monotonic()
            look = min(self.LOOK, seconds / 20) if seconds else self.LOOK
            if time_now > armed_at + look / 2:
                armed_at = time_now
                if seconds and now is not self._RESTS:
                    faulthandler.dump_traceback_later(1.5 * seconds + look, exit=True, file=2)
                else:
                    faulthandler.cancel_dump_traceback_later()
            if self._pause(look):
                return
            self.reporter.looked()
            now = self._now
            what, began, waits = now
            if now is self._RESTS:
                continue
            idle = time.monotonic() - began
            since = time.time() - idle
            if seconds and (limit := self._limit) and limit[0] is now and idle > limit[1] * seconds:
                self._refuse(limit[1] * seconds, limit[2])
            if seconds and idle > seconds and not waits:
                self._end(what, since, waits)
            # To look at what all other ranks do is dear: not every few seconds.
            if seconds and idle > seconds * self.PATIENCE and time.monotonic() > ask_again:
                ask_again = time.monotonic() + seconds / 20
                if not self.reporter.others_work(seconds):
                    self._end(what, since, waits)
            if not (idle > look and waits and (missed := self.reporter.missed())):
                missed_since = time.monotonic()
            elif time.monotonic() > missed_since + self.LAUNCHER:
                self._give_up(what, missed)
            if idle > look and noted is not now:
                noted = now
                self.reporter.note(what, since)

    def _pause(self, seconds: float) -> bool:
        """Sleep until the next look; return whether the watch is over."""
        if self._stop is None:
            return self._ended.wait(seconds)
        self._stop.pause(seconds)
        if not self._ended.is_set():
            self._stop.look()
        return self._ended.is_set()

    def _end(self, what: str, since: float, waits: bool) -> None:
        stack = "".join(traceback.format_stack(sys._current_frames()[self._watched]))
        self._say(lambda: self.reporter.last_words(what, since, waits, stack, self.seconds))
        _leave_now(Exit.FAILED)

    def _refuse(self, seconds: float, answer: Callable[[traceback.StackSummary, float], str]) -> None:
        stack = traceback.extract_stack(sys._current_frames()[self._watched])
        self._say(lambda: f"mpiimg: error: {answer(stack, seconds)}\n")
        time.sleep(0.1)  # a launcher drops what it has not passed on when the first rank ends
        _leave_now(Exit.BAD_INPUT)

    def _give_up(self, what: str, missed: str) -> None:
        who = self.reporter.who
        self._say(lambda: f"mpiimg: failed: {missed}; {who} waits for it and ends the job: {what}\n")
        self.reporter.died(missed)
        _leave_now(Exit.FAILED)

    @staticmethod
    def _say(text: Callable[[], str]) -> None:
        with contextlib.suppress(Exception):
            # In one piece, unbuffered: several ranks may speak at once.
            os.write(2, text().encode())
