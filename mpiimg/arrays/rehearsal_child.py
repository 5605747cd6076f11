"""The fresh interpreter that a rehearsal runs in: it calls one thing, tells what came of it, and ends.

It imports nothing but what the task needs, and little before that: it is started for each rehearsal. Whatever
ends it early is told to the parent through pipes that neither the task nor what it starts can write to.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import pickle
import resource
import signal
import sys
import traceback
from typing import Any

from mpiimg.engine.mpi.exits import ExitGuard, forks_end_here, leave_now
from mpiimg.errors import BadInput

#: Bytes of address space beside what a task may take: stacks and arenas of threads that stay empty.
_EMPTY = 4 << 30

#: prctl: the signal that a process gets when its parent ends.
_SET_DEATH_SIGNAL = 1


def main() -> None:
    """Run what the parent has put into the file that argv names, and leave."""
    payload, result, stacks, parent = map(int, sys.argv[1:5])
    _die_with(parent)
    for descriptor in (payload, result, stacks):
        os.set_inheritable(descriptor, False)
    faulthandler.enable(stacks)
    with open(payload, "rb") as file:
        setting = json.loads(file.readline())
        faulthandler.dump_traceback_later(setting["timeout"], exit=True, file=stacks)
        _limit_memory(setting["memory"])
        sys.path[:], sys.argv[:] = setting["path"], setting["argv"]
        packed = file.read()
    guard = ExitGuard(lambda how: _told_of_end(result, how))
    guard.arm()
    try:
        with forks_end_here():
            task, arguments = pickle.loads(packed)
            del packed
            answer = {"returned": _pickled(task(*arguments))}
    except BaseException as error:
        answer = _of_error(error)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    guard.disarm()
    _tell(result, answer)
    # Threads of the task, and what libraries do at the end, are of no interest.
    leave_now(0)


def _die_with(parent: int) -> None:
    """End when the parent does, however that ends; and before it, where memory is short."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != parent:
        leave_now(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _limit_memory(size: int | None) -> None:
    """Let what is far too large be refused as a MemoryError; the parent looks at what is really taken."""
    if size is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (size + _EMPTY, resource.RLIM_INFINITY))


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, 5)
    except Exception:
        import cloudpickle

        try:
            return cloudpickle.dumps(value, 5)
        except Exception as error:
            raise BadInput(f"its result cannot be carried to another process: {error}") from None


def _of_error(error: BaseException) -> dict[str, Any]:
    """Return what to tell of an exception."""
    if isinstance(error, BadInput):
        return {"refused": str(error)}
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        frames.append(
            traceback.FrameSummary(error.filename, error.lineno or 0, "<module>", lookup_line=False)
        )
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else kind.__name__
    with contextlib.suppress(Exception):
        return {
            "raised": name,
            "message": str(error),
            "left": isinstance(error, SystemExit),
            "of": getattr(error, "rehearsed", ("", "")),
            "stack": [(frame.filename, frame.lineno or 0, frame.name) for frame in frames],
            "traceback": "".join(traceback.format_exception(error)),
        }
    return {"raised": name, "message": "", "left": False, "stack": [], "traceback": ""}


def _told_of_end(result: int, how: str) -> str:
    """Tell the parent that the task ends the process; nothing is to be printed."""
    frames = traceback.extract_stack()
    stack = [(frame.filename, frame.lineno or 0, frame.name) for frame in frames]
    _tell(result, {"raised": how, "message": "", "left": True, "stack": stack, "traceback": ""})
    return ""


def _tell(result: int, answer: dict[str, Any]) -> None:
    data = memoryview(pickle.dumps(answer, 5))
    for part in (len(data.obj).to_bytes(8, "little"), data):
        sent, part = 0, memoryview(part)
        while sent < len(part):
            sent += os.write(result, part[sent : sent + (1 << 20)])


#: What the parent runs in the new interpreter, whose own __main__ stays empty.
COMMAND = f"from {__name__} import main; main()"
