"""Scripts that import mpiimg: what they get at their first collective call, and how their ranks end together.

A script needs no launcher of ours: `mpiexec -n 64 python script.py` will do. MPI starts with its first
collective call. From there on it is watched as a tool is; between two calls its own code may be interrupted
as ever. It ends as a tool does: one line for bad input, a traceback once, and the exit status says which. In
a notebook, and wherever else somebody waits at a prompt, exceptions stay exceptions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import socket
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import NoReturn

from mpiimg.engine.mpi import rendezvous, runtime
from mpiimg.engine.mpi.script import Script, record_of, text_of
from mpiimg.engine.names import shown
from mpiimg.engine.settings import Settings
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

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


def settings() -> Settings:
    """Return how the script of this process is run."""
    return _script.settings


def note(status: Exit) -> None:
    """Note how a run of the script has ended: where units were left out, the script's status says so."""
    _script.worst = max(_script.worst, status)


def run_file(path: str, arguments: list[str], given: Settings) -> int:
    """Run a script as the program of this process, as Python does; return its exit status.

    Parameters
    ----------
    path : str
    arguments : list of str
        What it finds in sys.argv.
    given : Settings
        How it is run; its record is added.

    Raises
    ------
    BadInput
        The file cannot be read.
    """
    try:
        with io.open_code(path) as file:
            text = file.read()
    except OSError as error:
        raise BadInput(f"{shown(path)}: {error.strerror}") from None
    main = types.ModuleType("__main__")
    main.__file__ = os.path.abspath(path)
    sys.modules["__main__"], sys.argv = main, [path, *arguments]
    if not sys.flags.safe_path:
        # As for `python script.py`, what lies beside it can be imported.
        sys.path[0:1] = [os.path.dirname(os.path.realpath(path))]
    _script.begin(dataclasses.replace(given, script=record_of(path)))
    try:
        exec(compile(text, main.__file__, "exec"), main.__dict__)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        return _script.end_by_exit(end)
    except BaseException as raised:
        error = raised
        # The first frame is that of this function.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        # As Python has it for what looks whether the program has failed.
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        return _script.end_by(error, lambda: traceback.print_exception(error))
    return _script.end()


def when_ended(close: Callable[[], object]) -> None:
    """Have `close` called at the end of this process, once no rank makes a call any more."""
    _script.closers.append(close)


def is_first_rank() -> bool:
    """Say whether this is the rank that does for all what one does, also when MPI has ended."""
    return _script.rank == 0


def end_planned() -> NoReturn:
    """End a script of which only the plan is wanted, where it goes on with what a call would return."""
    if is_first_rank():
        where = rendezvous.last_call().rpartition(" at ")[2]
        runtime.put(f"mpiimg: the plan ends at {where}: what comes next may depend on the result", sys.stderr)
    sys.exit(0)


def communicator():
    """Return the communicator of the calls so far; None before the first one."""
    return _script.comm


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
            runtime.put(f"mpiimg: {who} aborts the job:\n{text_of(error).rstrip()}", sys.stderr)
            runtime.abort(comm, Exit.FAILED)
        raise
    finally:
        leave()
