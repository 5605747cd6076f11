"""Scripts that import mpiimg: what they get at their first collective call, and how their ranks end together.

A script needs no launcher of ours: `mpiexec -n 64 python script.py` will do. MPI starts with its first
collective call. From there on it is watched as a tool is; between two calls its own code may be interrupted
as ever. It ends as a tool does: one line for bad input, a traceback once, and the exit status says which. In
a notebook, and wherever else somebody waits at a prompt, exceptions stay exceptions.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import os
import shlex
import socket
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType

from mpiimg.engine.mpi import job, rendezvous, runtime
from mpiimg.engine.mpi.exits import leave_now
from mpiimg.engine.mpi.lifetime import Lifetime, lifetime, living
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

#: Seconds that a rank which fails waits for the others, which may fail alike, before it ends them.
PATIENCE = 3.0


class Script:
    """The script that this process runs."""

    def __init__(self):
        #: The process that it was when it was first seen to be one: not one that is forked later.
        self._process: int | None = None
        self._comm = None
        self._settled = False
        self._life: Lifetime | None = None
        self._stack = contextlib.ExitStack()
        self._open: list[str] = []
        self._hook_before = sys.excepthook
        self._exit_before = sys.exit
        self._hooked = False
        #: Where sys.exit() was called since the last call, in words, and the status that it asks for.
        self._left, self._status = "", 0
        #: Whether its end is being seen to, or is no matter of ours.
        self.ended = False

    # --- Calls ----------------------------------------------------------------------------------------------

    def enter(self, kind: str, digest: str):
        """Begin a collective call; return the communicator of all ranks. Collective."""
        rendezvous.refuse_elsewhere(kind)
        site = rendezvous.call_site()
        if self._open and site not in self._open:
            raise BadInput(
                f"mi.{kind} at {site}: called within the call at {self._open[0]}; a function that works on "
                "blocks or items cannot make collective calls itself"
            )
        self._process = self._process or os.getpid()
        self.hook()
        self._begin()
        self._left, self._status = "", 0
        if self._life is not None and not self._open:
            self._life.exits.arm()
            self._life.stop.install()
        first, self._comm = not self._settled, self._comm or runtime.start_world()
        rendezvous.rendezvous(self._comm, kind, digest)
        if first:
            runtime.settle(self._comm)
            self._settled = True
        self._open.append(site)
        return self._comm

    def leave(self) -> None:
        """End the innermost call."""
        if self._open:
            self._open.pop()
        if self._open or self._life is None:
            return
        after = rendezvous.last_call()
        if self._comm is not None and self._comm.size > 1:
            self._life.watchdog(f"the script, after {after}")
        else:
            self._life.watchdog.rest()
            self._life.exits.disarm()
        self._life.stop.between_calls(lambda: RunStopped(self._stopped()))

    def _begin(self) -> None:
        """Watch the process, if all of it is the script's."""
        if self._life is None and not is_interactive() and is_script():
            self._life = self._stack.enter_context(living(owner=True))
            self._life.command = self._life.command or shlex.join(sys.orig_argv)

    def _stopped(self) -> str:
        again = shlex.join(sys.orig_argv) if self._life is None else self._life.command
        return f"after {rendezvous.last_call()}, by a signal; the same command goes on from there: {again}"

    # --- The end --------------------------------------------------------------------------------------------

    def hook(self) -> None:
        """See to it that what a script is ended by is said once."""
        if self._hooked or is_interactive() or not is_script():
            return
        self._hooked, self._process = True, self._process or os.getpid()
        self._hook_before, sys.excepthook = sys.excepthook, self._uncaught
        self._exit_before, sys.exit = sys.exit, self._noted_exit

    def _noted_exit(self, status: object = None, /) -> None:
        """Stand in for sys.exit, and note where it was called."""
        said = "" if status is None else repr(status)
        self._left = f"called sys.exit({said}) at {rendezvous.call_site()}"
        self._status = (status or 0) & 0xFF if isinstance(status, int | None) else 1
        self._exit_before(status)

    def _uncaught(self, kind: type, error: BaseException, trace: TracebackType | None) -> None:
        """Stand in for sys.excepthook: end the script of all ranks."""
        show = lambda: self._hook_before(kind, error, trace)  # noqa: E731
        if os.getpid() != self._process or self.ended or is_interactive():
            show()
            return
        raise SystemExit(int(self.end_by(error, show)))

    def end_by(self, error: BaseException, show: Callable[[], object]) -> int:
        """End all ranks of the script by what was raised; return the exit status.

        Parameters
        ----------
        error : BaseException
        show : callable
            Prints it, if it is none of ours and this rank speaks.
        """
        self.ended = True
        if self._life is not None:
            self._life.stop.ignore()
        if isinstance(error, KeyboardInterrupt):
            error = RunStopped(self._stopped()).with_traceback(error.__traceback__)
        status, line = Exit.FAILED, ""
        if isinstance(error, BadInput | RunFailed | RunStopped):
            status, line = runtime.verdict(error)
        site = _site_of(error)
        if isinstance(error, BadInput) and site and site not in line:
            line = f"{line} ({site})"
        shared = None

        def say(found: Exception | None = None) -> None:
            if not line:
                with contextlib.suppress(Exception):
                    show()
            elif found is None or error is shared or isinstance(error, RunFailed):
                runtime.put(line, sys.stderr)
            if found is not None and error is not shared:
                _say(found)

        if self._is_alone():
            say()
            return status
        try:
            comm = self._comm = self._comm or runtime.start_world()
            shared = rendezvous.shared_error()
            known = error is shared and rendezvous.all_know(comm, error)
            if known and comm.rank == 0 and not rendezvous.was_said(error):
                say()
            digest = hashlib.sha256((line or _text(error)).encode(errors="replace")).hexdigest()
            found = rendezvous.farewell(comm, _in_words(error), status, say, digest=digest, patience=PATIENCE)
            if found is None and comm.rank == 0:
                say()
        except TimeoutError:
            say()
            runtime.put(f"mpiimg: rank {comm.rank} on {socket.gethostname()} ends the job", sys.stderr)
            runtime.abort(comm, status)
        return status

    def at_exit(self) -> None:
        """See to it that no other rank waits for this one: at the end of the interpreter."""
        if self._process not in (None, os.getpid()):
            if runtime.has_started():
                # It was forked, and would take leave of MPI in place of its parent.
                _flush()
                leave_now(self._status or int(getattr(sys, "last_value", None) is not None))
            return
        if not self.ended and not self._is_alone() and (is_script() or rendezvous.open_channels()):
            self.ended = True
            with contextlib.suppress(BadInput):  # many copies where one job was meant: nobody waits
                self._end()
        self._stack.close()

    def _end(self) -> None:
        """Tell the others that this rank ends without having failed, as far as it knows."""
        comm = self._comm or runtime.start_world()
        after = rendezvous.last_call()
        why = self._left or f"left the script {f'after {after}' if after else 'before any call'}"
        status = self._status
        if (error := getattr(sys, "last_value", None)) is not None and not is_interactive():
            # It was raised before anything of this package was used, and Python has shown it.
            why, status = _in_words(error), Exit.FAILED
        lifetime().watchdog("the end of the script, waits for the other ranks to come to it", waits=True)
        raised = rendezvous.shared_error()
        found = rendezvous.farewell(comm, why, status, _say)
        if raised is None:
            # Those that have made a call end with a status that says so.
            return
        # The script has gone on though its call had failed.
        if comm.rank == 0 and not rendezvous.was_said(found):
            _say(found)
        _flush()
        runtime.end_world()
        leave_now(runtime.verdict(raised)[0])

    def _is_alone(self) -> bool:
        """Say whether no other rank can wait for this one."""
        if self._comm is not None:
            return self._comm.size == 1 or runtime.has_ended()
        return job.launched_size() == 1 or runtime.has_ended() or job.is_child_of_rank()


_script = Script()


def used() -> None:
    """Note that a script uses this package; before its first collective call too it ends in good order."""
    if not _script.ended:
        _script.hook()


def at_exit() -> None:
    """See to the end of a script."""
    _script.at_exit()


def not_a_script() -> None:
    """Leave this process alone: it is that of a tool."""
    _script.ended = True


def enter(kind: str, digest: str):
    """Begin a collective call of a script; return the communicator of all ranks. Collective.

    Every call is ended by :func:`leave`: :func:`collective` does both.

    Parameters
    ----------
    kind : str
        Name of the call, such as "write".
    digest : str
        Of all that it is given, which must be alike on all ranks.

    Raises
    ------
    BadInput, RunFailed, RunStopped
        As :func:`mpiimg.engine.mpi.rendezvous.rendezvous` does.
    """
    return _script.enter(kind, digest)


def leave() -> None:
    """End the collective call that was begun last; the script's own code comes next."""
    _script.leave()


@contextlib.contextmanager
def collective(kind: str, digest: str) -> Iterator:
    """Make a collective call in the block; yields the communicator of all ranks. Collective.

    What one rank alone raises within it would leave the others waiting: it ends the job.
    """
    comm = enter(kind, digest)
    try:
        yield comm
    except (BadInput, RunFailed, RunStopped):
        raise
    except BaseException as error:
        if comm.size > 1:
            who = f"rank {comm.rank} on {socket.gethostname()}"
            runtime.put(f"mpiimg: {who} aborts the job:\n{_text(error).rstrip()}", sys.stderr)
            runtime.abort(comm, Exit.FAILED)
        raise
    finally:
        leave()


def is_interactive() -> bool:
    """Say whether somebody waits at a prompt for what comes of it: a notebook, IPython, a terminal."""
    return (
        hasattr(sys, "ps1")
        or bool(sys.flags.interactive or sys.flags.inspect)
        or hasattr(builtins, "__IPYTHON__")
    )


def is_script() -> bool:
    """Say whether the program of this process is the user's, and none that is installed as a library is."""
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
    place = os.path.realpath(rendezvous.program())
    return not any(place.startswith(os.path.realpath(folder) + os.sep) for folder in folders)


def _say(error: Exception) -> None:
    runtime.put(runtime.verdict(error)[1], sys.stderr)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _in_words(error: BaseException) -> str:
    """Return what a rank does that ends by an error, as in "rank 2 ..."."""
    site, line = _site_of(error), str(error).partition("\n")[0]
    at = f" at {site}" if site and site not in line else ""
    return shown(f"ended with {type(error).__name__}: {line}{at}")


def _site_of(error: BaseException) -> str:
    """Return the innermost place in code that is not ours which an error came through."""
    site, trace = "", error.__traceback__
    while trace is not None:
        if rendezvous.is_users(trace.tb_frame):
            site = rendezvous.site_of(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return site


def communicator():
    """Return the communicator of the calls so far; None before the first one."""
    return _script._comm
