"""The script that this process runs: what watches it, and how its ranks end together, whatever ends one."""

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
import types
from collections.abc import Callable
from pathlib import Path

from mpiimg.engine.mpi import job, rendezvous, runtime
from mpiimg.engine.mpi.exits import leave_now
from mpiimg.engine.mpi.lifetime import Lifetime, lifetime, living
from mpiimg.engine.names import shown
from mpiimg.engine.settings import Settings
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

#: Seconds that a rank which fails waits for the others, which may fail alike, before it ends them.
PATIENCE = 3.0


class Script:
    """The script that this process runs."""

    def __init__(self):
        #: The process that it was when it was first seen to be one: not one that is forked later.
        self._process: int | None = None
        self.comm, self.rank = None, 0
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
        #: The worst status of its runs that came to their ends.
        self.worst = Exit.DONE
        #: What is called once all ranks have come to their ends.
        self.closers: list[Callable[[], object]] = []
        self._settings: Settings | None = None

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
        self._open.append(site)
        try:
            self._meet(kind, digest)
        except BaseException:
            self.leave()
            raise
        return self.comm

    def _meet(self, kind: str, digest: str) -> None:
        self.comm = self.comm or self._start()
        rendezvous.rendezvous(self.comm, kind, digest)
        if not self._settled:
            self.rank = self.comm.rank
            runtime.settle(self.comm)
            self._settled = True

    def _start(self):
        """Start MPI; say in one line what keeps it from starting."""
        try:
            return runtime.start_world()
        except ImportError as error:
            raise BadInput(
                f"MPI cannot be loaded: {error}; install mpi4py and an MPI (docs/install.md)"
            ) from None

    def leave(self) -> None:
        """End the innermost call."""
        if self._open:
            self._open.pop()
        # What functions did with sys.exit() in the call has become of the call.
        self._left, self._status = "", 0
        if not self._open and self._life is not None:
            self._between_calls()

    def _between_calls(self) -> None:
        """Leave the process to the script's own code."""
        if self._is_alone():
            self._life.watchdog.rest()
            self._life.exits.disarm()
        else:
            self._life.watchdog(f"the script, {_after()}")
        self._life.stop.between_calls(lambda: RunStopped(self._stopped()))

    def _begin(self) -> None:
        """Watch the process, if all of it is the script's."""
        if self._life is None and not is_interactive() and is_script():
            self._life = self._stack.enter_context(living(self.settings.timeout, owner=True))
            self._life.command = self.settings.command

    def _stopped(self) -> str:
        how = "goes on from there" if rendezvous.last_call() else "starts anew"
        return f"{_after()}, by a signal; the same command {how}: {self.settings.command}"

    @property
    def settings(self) -> Settings:
        """How it is run."""
        if self._settings is None:
            self._settings = Settings(
                progress=not is_interactive(),
                command=shlex.join(sys.orig_argv),
                run_id=job.run_word(),
                script=record_of(rendezvous.program()),
            )
        return self._settings

    def begin(self, settings: Settings) -> None:
        """Begin a script that a tool runs in this process."""
        self._settings, self.ended = settings, False
        lifetime().is_of_script = True
        self.hook()
        self._begin()
        self._between_calls()

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
        self._status = _status_of(status)
        self._exit_before(status)

    def _uncaught(self, kind: type, error: BaseException, trace: types.TracebackType | None) -> None:
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
            comm = self.comm = self.comm or runtime.start_world()
            shared = rendezvous.shared_error()
            known = error is shared and rendezvous.all_know(comm, error)
            if known and comm.rank == 0 and not rendezvous.was_said(error):
                say()
            digest = hashlib.sha256((line or text_of(error)).encode(errors="replace")).hexdigest()
            found = rendezvous.farewell(comm, in_words(error), status, say, digest=digest, patience=PATIENCE)
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
                flush()
                leave_now(self._status or int(getattr(sys, "last_value", None) is not None))
            return
        status = Exit.DONE
        if not self.ended and (is_script() or rendezvous.open_channels()):
            status = self.end()
        while self.closers:
            self.closers.pop()()
        if status:
            # No handler of the interpreter can set its status.
            flush()
            runtime.end_world()
            leave_now(status)
        self._stack.close()

    def end(self) -> int:
        """End the script of a rank that has not failed, as far as it knows; return the status of its runs."""
        self.ended = True
        if self._life is not None:
            self._life.stop.ignore()
        status = Exit.DONE
        if not self._is_alone():
            with contextlib.suppress(BadInput):  # many copies where one job was meant: nobody waits
                status = self._take_leave()
        # One that says itself how it ends is right about that.
        says = self._left or getattr(sys, "last_value", None) is not None
        return status or (Exit.DONE if says else self.worst)

    def end_by_exit(self, error: SystemExit) -> int:
        """End the script by what sys.exit() raises; return the exit status."""
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        self._status = _status_of(error.code)
        self._left = self._left or f"left the script at {_site_of(error)}"
        return self.end() or self._status

    def _take_leave(self) -> int:
        """Tell the others that this rank ends; return the status of what they raise, if this one has too."""
        comm = self.comm or runtime.start_world()
        why, status = self._left or f"left the script {_after()}", self._status
        if (error := getattr(sys, "last_value", None)) is not None and not is_interactive():
            # It was raised before anything of this package was used, and Python has shown it.
            why, status = in_words(error), Exit.FAILED
        lifetime().watchdog("the end of the script, waits for the other ranks to come to it", waits=True)
        raised = rendezvous.shared_error()
        found = rendezvous.farewell(comm, why, status, _say)
        if raised is None:
            # Those that have made a call end with a status that says so.
            return Exit.DONE
        # The script has gone on though its call had failed.
        if comm.rank == 0 and not rendezvous.was_said(found):
            _say(found)
        return runtime.verdict(raised)[0]

    def _is_alone(self) -> bool:
        """Say whether no other rank can wait for this one."""
        if self.comm is not None:
            return runtime.has_ended() or self.comm.size == 1
        return job.launched_size() == 1 or runtime.has_ended() or job.is_child_of_rank()


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


def _after() -> str:
    last = rendezvous.last_call()
    return f"after {last}" if last else "before any call"


def _status_of(code: object) -> int:
    """Return the status that sys.exit(code) asks for."""
    return (code or 0) & 0xFF if isinstance(code, int | None) else 1


def record_of(path: str) -> dict[str, str]:
    """Return what records say of a script; nothing where it is no file."""
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return {}
    return {"path": os.path.abspath(path), "sha256": digest}


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def in_words(error: BaseException) -> str:
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
