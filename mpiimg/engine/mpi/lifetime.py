"""The life of this process from the first line of a tool, or of a run, to its last.

Over all of it the same holds: a hang ends the job and says where, a crash prints where, a signal asks to
stop, and nothing that is called can end the process as if the run were done.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import signal
import time
from collections.abc import Iterator, Sequence

from mpiimg.engine.log.watchdog import DEFAULT_TIMEOUT, Reporter, Watchdog
from mpiimg.engine.mpi.exits import ExitGuard, leave_now
from mpiimg.engine.mpi.job import launched_rank
from mpiimg.engine.mpi.processes import RankProcess
from mpiimg.engine.mpi.stop import GRACE, GRACE_OF_OTHERS, StopRequest
from mpiimg.errors import Exit

#: Signals of limits that end a process which does not handle them: of CPU time, and timers.
_LIMITS = (signal.SIGXCPU, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)


class Lifetime:
    """What watches this process.

    Parameters
    ----------
    timeout : float
        Seconds that one step of it may take; 0 for ever.
    owner : bool
        Whether all of the process is ours, as a tool's is: then a signal may end it before the first stage.
    """

    def __init__(self, timeout: float, owner: bool):
        reporter = Reporter(launched_rank())
        self.rank, self.who = reporter.rank, reporter.who
        #: What to give again to go on; empty where it was no command.
        self.command = ""
        #: Whether threads and processes that are left at the end are a script's own, which Python waits for.
        self.is_of_script = False
        #: Bytes that a rank may use, where the user has said so.
        self.memory: int | None = None
        # Whoever speaks for all ends first.
        grace = GRACE + (GRACE_OF_OTHERS if self.rank else 0.0)
        self.stop = StopRequest(self._end_stopped if owner else None, grace)
        self.watchdog = Watchdog(timeout, reporter, self.stop)
        self.exits = ExitGuard(self._ended_from_inside)
        self._owner, self._begun, self._own_traces = owner, False, False

    @property
    def how_to_begin_anew(self) -> str:
        """What to do after a stop before the first stage."""
        again = f": {self.command}" if self.command else ""
        return f"before the first stage, so that nothing is lost; the same command starts anew{again}"

    def begin(self) -> None:
        """Watch from here on."""
        _forget_in_forks()
        self._own_traces = not faulthandler.is_enabled()
        if self._own_traces:
            faulthandler.enable(2)
            for number in _LIMITS:
                faulthandler.register(number, 2, all_threads=False, chain=True)
        self.stop.install()
        with self.stop.held_back():  # the thread has them masked: the main one gets them
            self.watchdog.start()
        self.exits.arm()
        self._begun = True

    def mpi_has_started(self, processes: Sequence[RankProcess]) -> None:
        """Take precedence again of what MPI has installed for the end and for crashes.

        Parameters
        ----------
        processes : sequence of RankProcess
            Those of the other ranks on this node.
        """
        if not self._begun:
            return
        self.watchdog.reporter.processes = processes
        if self._own_traces:
            faulthandler.disable()
            faulthandler.enable(2)
        self.exits.arm()

    def end(self) -> None:
        """Watch no longer, and leave all as it was; also once more."""
        self._begun = False
        self.exits.disarm()
        self.watchdog.cancel()
        self.stop.restore()
        if self._own_traces and not self._owner:
            faulthandler.disable()
            for number in _LIMITS:
                faulthandler.unregister(number)

    def _end_stopped(self) -> None:
        """End the process, in the thread of the watchdog."""
        with contextlib.suppress(OSError):
            os.write(2, f"mpiimg: stopped: {self.how_to_begin_anew}\n".encode())
        time.sleep(0.1)  # a launcher drops what it has not passed on when the first rank ends
        leave_now(Exit.STOPPED)

    def _ended_from_inside(self, how: str) -> str:
        what = self.watchdog.what
        said = f"{self.who}: a user's function or a library called {how} in {what}, which is no end of a run"
        with contextlib.suppress(Exception):
            self.watchdog.reporter.died(said)
        return f"mpiimg: failed: {said}\n"


_current: Lifetime | None = None
_nothing: Lifetime | None = None


@functools.cache
def _forget_in_forks() -> None:
    """Leave processes that are forked from this one to themselves: a pool's workers die of a SIGTERM."""
    os.register_at_fork(after_in_child=lambda: _current is not None and _current.stop.restore())


def lifetime() -> Lifetime:
    """Return the life that this process is in; one that watches nothing, where none has begun."""
    global _nothing
    if _current is not None:
        return _current
    if _nothing is None:
        _nothing = Lifetime(0.0, False)
    return _nothing


@contextlib.contextmanager
def living(timeout: float = DEFAULT_TIMEOUT, owner: bool = False) -> Iterator[Lifetime]:
    """Watch this process over a block; within another such block that one goes on, with this timeout.

    Parameters
    ----------
    timeout : float
        Seconds that one step may take; 0 for ever.
    owner : bool
        Whether all of the process is ours, as a tool's is.
    """
    global _current
    if _current is not None:
        _current.watchdog.seconds = timeout
        yield _current
        return
    _current = life = Lifetime(timeout, owner)
    try:
        life.begin()
        yield life
    finally:
        _current = None
        life.end()
