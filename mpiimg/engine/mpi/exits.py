"""Code that a run calls may not end the process as if the run itself had: exit(), os._exit(), os.exec*()."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import posix
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

from mpiimg.errors import Exit

#: How this package ends its own process, whoever stands in for it later.
leave_now = os._exit


#: What ends this process, or puts another in its place, by its name in os and posix.
_ENDS = {"_exit": leave_now, "execv": os.execv, "execve": os.execve}


@contextlib.contextmanager
def forks_end_here() -> Iterator[None]:
    """End, at the end of the block, every process that was forked within: of one rank there are never two.

    Such a process shares its connections with the rank, and would go on with the run beside it.
    """
    process, status = os.getpid(), 1
    try:
        yield
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except BaseException:
        if os.getpid() != process:
            traceback.print_exc()
        raise
    finally:
        if os.getpid() != process:
            leave_now(status & 0xFF)


def leave_what_is_left(status: int) -> None:
    """End this process with `status` at once where threads or processes of a user's function are still there.

    Python would wait for them, and some never end. Nothing is to be done any more but that.
    """
    threads = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    processes = getattr(sys.modules.get("multiprocessing"), "active_children", list)()
    if not threads and not processes:
        return
    for process in processes:
        process.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    leave_now(status)


class ExitGuard:
    """Turns an end from inside a user's function or a library into a failure that says so.

    exit() and quick_exit() of C call what was registered with them: a callback of ours, which comes first if
    it was registered last, and so again once MPI has started. It never outlives the interpreter, since it is
    taken back under an address of our own as that of a library is. What Python has to end the process without
    that, or to put another program in its place, is stood in for. What C code does so cannot be seen from
    inside: the run's record is missing.

    Parameters
    ----------
    say : callable
        Called as say(how) before the process ends, with "exit()", "os._exit()" or the like; returns what to
        print.
    """

    def __init__(self, say: Callable[[str], str]):
        self._say, self._process = say, -1
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._in_exit)
        self._handle = ctypes.create_string_buffer(1)
        self._library: ctypes.CDLL | None = None

    def arm(self) -> None:
        """Register with exit(), also once more, and stand in for os._exit and os.exec*."""
        self._process = os.getpid()
        atexit.register(self.disarm)  # the interpreter may end before we are asked to
        with contextlib.suppress(ValueError, OSError, AttributeError):
            os.confstr("CS_GNU_LIBC_VERSION")  # others do not take a callback back
            library = ctypes.CDLL(None)
            for register in ("__cxa_atexit", "__cxa_at_quick_exit"):
                getattr(library, register)(self._callback, None, self._handle)
            self._library = library
        if os._exit is leave_now:
            for module in (os, posix):
                for name, function in _ENDS.items():
                    setattr(module, name, functools.partial(self._in_place_of, name, function))

    def disarm(self) -> None:
        """Let the process end however it likes."""
        atexit.unregister(self.disarm)
        for module in (os, posix):
            for name, function in _ENDS.items():
                setattr(module, name, function)
        self._process = -1
        if self._library is not None:
            getattr(self._library, "__cxa_finalize")(self._handle)
            self._library = None

    def _in_exit(self, nothing) -> None:
        self._fail("exit()")

    def _in_place_of(self, name: str, function: Callable, *arguments) -> None:
        self._fail(f"os.{name}()")
        function(*arguments)

    def _fail(self, how: str) -> None:
        # Processes that were forked from this one end as they like.
        if os.getpid() == self._process:
            with contextlib.suppress(Exception):
                os.write(2, self._say(how).encode())
            leave_now(Exit.FAILED)
