"""A signal asks this process to stop: noted from the first line of a tool to its last."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

#: The signals that ask for it; after any of them a SIGINT ends the process at once.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

#: Those for which MPI libraries install handlers of their own when they start.
_TAKEN_BY_MPI = (signal.SIGTERM, signal.SIGUSR1)

#: Seconds in which the main thread may come to a point where the ranks stop together, before the first stage.
GRACE = 3.0

#: Further seconds for all ranks but the one that speaks for them.
GRACE_OF_OTHERS = 7.0

#: Seconds between looks while somebody asks, or might without our being told.
_PAUSE = 0.2


class StopRequest:
    """Whether a signal has asked this process to stop.

    The handler notes it. Whoever comes to a point where the ranks can stop together reads it there: in
    :class:`mpiimg.engine.mpi.agreement.Agreement`. Before the first stage nothing can be lost, and the main
    thread may be in C for ever, as in a file system that is gone, where no handler of Python's is called. So
    the watchdog's thread, which the C handler wakes through a pipe, ends the process there after a grace.

    Parameters
    ----------
    end : callable, optional
        Called in that thread, to end the process; without it nobody but the main thread acts.
    grace : float
        Seconds after which it is called, before the first stage.
    """

    def __init__(self, end: Callable[[], None] | None = None, grace: float = GRACE):
        self.requested = False
        self._end, self._grace = end, grace
        self._asked_at = 0.0
        self._by_chunks = self._masked = False
        self._raised: Callable[[], Exception] | None = None
        self._before: dict[int, object] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup_before = -1
        self._woken = threading.Event()

    def request(self) -> None:
        """Note that this process is to stop; what a signal does."""
        if not self.requested:
            self._asked_at = time.monotonic()
            self.requested = True

    def look_at_chunks(self) -> None:
        """Note that from now on the main thread looks at chunk boundaries, and alone decides how to end."""
        self._by_chunks = True

    def between_calls(self, raised: Callable[[], Exception]) -> None:
        """Let a signal end the user's own code from now on, until :meth:`install`.

        Handlers that the user had installed are called as before, an interrupt is a KeyboardInterrupt, and
        the others raise an exception in the main thread, which the process ends by; it is ended after the
        grace where that does not help.

        Parameters
        ----------
        raised : callable
            Returns what is raised.
        """
        self._by_chunks = False
        for number, handler in self._before.items():
            if handler not in (signal.SIG_DFL, signal.SIG_IGN, None):
                signal.signal(number, handler)
        self._raised = raised

    def install(self) -> None:
        """Install the handlers, in the main thread only; also anew where a library has installed its own."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._raised = None
        if self._end is not None and self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            if number == signal.SIGINT and self.requested:
                continue  # it ends the process at once by now
            handler = signal.signal(number, self._note)
            if handler != self._note:
                self._before[number] = handler

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._before.clear()
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None

    def ignore(self) -> None:
        """Let no signal change any more how the process ends, but for SIGINT, which ends it at once."""
        if self._before:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
            self._before.clear()
        self._by_chunks = True

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Let signals wait meanwhile, and install the handlers anew at the end.

        For the start of MPI, whose library has handlers of its own for a while, and threads.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN_BY_MPI)
        self._masked = True
        try:
            yield
        finally:
            if self._before:
                self.install()
            self._masked = False
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    # --- Of the watchdog's thread ---------------------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        """Sleep for so long, or until a signal comes."""
        if self._masked or (self.requested and not self._by_chunks):
            seconds = min(seconds, _PAUSE)
        if self._pipe is None:
            self._woken.wait(seconds)
        else:
            select.select([self._pipe[0]], [], [], seconds)

    def wake(self) -> None:
        """End this pause, and all to come."""
        self._woken.set()
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                os.write(self._pipe[1], b"\0")

    def look(self) -> None:
        """Note what the C handler was told, and end the process where it is time."""
        if self._pipe is None:
            return
        numbers: tuple[int, ...] = ()
        with contextlib.suppress(BlockingIOError):
            numbers = tuple(os.read(self._pipe[0], 64))
        for number in numbers:
            if number == signal.SIGINT and self.requested and time.monotonic() > self._asked_at + 0.01:
                _die_of_interrupt()
            if number in SIGNALS:
                self.request()
        if self._masked and signal.sigpending() & set(_TAKEN_BY_MPI):
            self.request()
        if self.requested and not self._by_chunks and time.monotonic() > self._asked_at + self._grace:
            self._end()

    def _note(self, number, frame) -> None:
        self.request()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._raised is not None:
            raise self._raised()


def _die_of_interrupt() -> None:
    """End as by a SIGINT that nobody handles, from any thread."""
    ctypes.CDLL(None).signal(int(signal.SIGINT), None)
    os.kill(os.getpid(), signal.SIGINT)
