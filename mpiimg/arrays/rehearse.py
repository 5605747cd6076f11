"""Run a function of a user in a fresh interpreter, with limits, before it may run where it can do harm.

An interpreter that has MPI must not be forked. The new one is no rank, gets the function by cloudpickle, and
has this one's sys.path. Whatever happens there (an exception, an exit, a crash, a hang, too much memory) is
an error of one line here that says what, in which function and where.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import inspect
import io
import json
import linecache
import marshal
import os
import pickle
import re
import selectors
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpiimg.arrays import modules, rehearsal_child
from mpiimg.engine.mpi.job import environment_of_no_rank
from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.memory import anonymous_now
from mpiimg.engine.mpi.nodes import share_of_node
from mpiimg.engine.mpi.processes import memory_status
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, RunStopped

#: The longest that a rehearsal may take, in seconds, whatever one step of a run may.
MAX_SECONDS = 300.0

#: Of the time that one step of a run may take, what a rehearsal may.
SHARE = 0.25

#: Bytes that a rehearsal may take in any case: an interpreter with common libraries.
MIN_MEMORY = 384 << 20

#: Seconds between looks at what the child takes, and whether somebody asks to stop.
_LOOK = 0.05

#: Seconds after its time in which the child says where it hangs.
_LAST_WORDS = 2.0

#: Bytes that a function may print in a rehearsal.
_MAX_OUTPUT = 1 << 20


class RehearsalFailed(BadInput):
    """A function did not come to its end in the fresh interpreter.

    Parameters
    ----------
    line : str
        All of it in one line.
    what : str
        What happened, without where.
    stack : sequence of (str, int, str)
        File, line and function of the frames that it happened in, the innermost last.
    details : str
        The traceback, or what faulthandler said.
    hung : bool
        Whether its time was over.
    """

    def __init__(self, line: str, what: str = "", stack=(), details: str = "", hung: bool = False):
        super().__init__(line)
        self.what, self.details, self.hung = what, details, hung
        self.stack = tuple(tuple(frame) for frame in stack)

    @property
    def summary(self) -> traceback.StackSummary:
        """The stack as the traceback module has it."""
        frames = [traceback.FrameSummary(*frame, lookup_line=False) for frame in self.stack]
        return traceback.StackSummary.from_list(frames)


def seconds_for(timeout: float) -> float:
    """Return the seconds for a rehearsal where one step of a run may take `timeout`; 0 is for ever."""
    return min(SHARE * timeout, MAX_SECONDS) if timeout else MAX_SECONDS


def memory_for(share: int | None) -> int:
    """Return the bytes that a rehearsal may take: of a rank's share what this process does not have yet.

    What is too little for the libraries alone is for the plan to say, which knows how much would do.

    Parameters
    ----------
    share : int, optional
        Bytes that a rank may use; by default its share of the node's.
    """
    return max(MIN_MEMORY, (share_of_node() if share is None else share) - anonymous_now())


def in_fresh_interpreter(
    task: Callable[..., Any],
    *arguments: Any,
    timeout: float,
    memory: int | None = None,
    name: str = "",
    when: str = "",
    quiet: bool = False,
) -> Any:
    """Call `task(*arguments)` in an interpreter that was started for that, and return what it returns.

    Parameters
    ----------
    task : callable
        Taken there by cloudpickle: by its name if it is of a module, else by value.
    *arguments : object
        Likewise.
    timeout : float
        Seconds that it may take, the start of the interpreter and imports included.
    memory : int, optional
        Bytes of anonymous memory that the other process may take, libraries included.
    name : str
        What to call the function in messages; by default its own name.
    when : str
        Said behind a message, as "tried on a block of 64 x 64 x 4 int16".
    quiet : bool
        Whether what it prints is dropped; else it goes to stderr.

    Raises
    ------
    RehearsalFailed
        It raises, ends or crashes the interpreter, takes too much memory, or does not return in time.
    BadInput
        It, or its result, cannot be carried to another process; or it raises BadInput itself.
    RunStopped
        A signal asks this process to stop.
    """
    name = name or getattr(task, "__qualname__", type(task).__qualname__)
    setting = {"timeout": timeout, "memory": memory, "path": _search_path(), "argv": sys.argv}
    payload = json.dumps(setting).encode() + b"\n" + _packed(task, arguments, name)
    with _Child(payload, timeout, memory, quiet) as child:
        ended = child.wait()
    if ended.answer is not None and "returned" in ended.answer:
        return pickle.loads(ended.answer["returned"])
    if ended.answer is not None and "refused" in ended.answer:
        raise BadInput(ended.answer["refused"])
    raise _failed(ended, name, when, timeout, memory, _defined_at(task))


# --- What goes there --------------------------------------------------------------------------------------


def _search_path() -> list[str]:
    here = os.getcwd()
    return [here if not one else os.path.abspath(one) for one in sys.path if isinstance(one, str)]


def _packed(task: Any, arguments: tuple, name: str) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, value):
            # cloudpickle leaves out in which file code is, which a message of an error has to say.
            if isinstance(value, types.CodeType):
                return marshal.loads, (marshal.dumps(value),)
            return super().reducer_override(value)

    with _by_value(cloudpickle), io.BytesIO() as file:
        try:
            Pickler(file, 5).dump((task, arguments))
            return file.getvalue()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(
                f"{name}: cannot be carried to another process, where it is tried before the run: {reason}; "
                "open files, connections and locks inside the function"
            ) from None


@contextlib.contextmanager
def _by_value(cloudpickle) -> Iterator[None]:
    """Let functions of modules that another interpreter would not find go there as code."""
    own = [
        module
        for name, module in list(sys.modules.items())
        if name != "__main__"
        and getattr(module, "__name__", None) == name
        and modules.is_local_module(name)
        and not modules.can_be_found(name, getattr(module, "__file__", None))
        and _holds_functions(module)
    ]
    registered = cloudpickle.list_registry_pickle_by_value()
    own = [module for module in own if module.__name__ not in registered]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _holds_functions(module: types.ModuleType) -> bool:
    """Say whether a module holds code of Python: those that compiled libraries make for themselves do not."""
    own = [one for one in vars(module).values() if getattr(one, "__module__", None) == module.__name__]
    inner = [one for kind in own if isinstance(kind, type) for one in vars(kind).values()]
    return any(isinstance(one, types.FunctionType) for one in [*own, *inner])


# --- The process ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Ended:
    """How the child ended.

    Parameters
    ----------
    status : int
        Its exit status, or the negative number of a signal.
    answer : dict, optional
        What it told; None if that is not whole.
    stacks : str
        What faulthandler wrote.
    limit : str
        The limit that it was ended for: "time", "memory" or none.
    """

    status: int
    answer: dict | None
    stacks: str
    limit: str


class _Child:
    """A fresh interpreter in a process group of its own, of which nothing is left when the block ends."""

    def __init__(self, payload: bytes, timeout: float, memory: int | None, quiet: bool):
        self._timeout, self._memory, self._quiet = timeout, memory, quiet
        self._payload, self._printed = payload, 0
        self._pipes: dict[str, int] = {}
        self._read: dict[str, bytearray] = {name: bytearray() for name in ("result", "stacks", "output")}

    def __enter__(self) -> _Child:
        ends = {name: tuple(map(_above_stderr, os.pipe())) for name in self._read}  # to read, to write
        self._pipes = {name: end[0] for name, end in ends.items()}
        try:
            with open(_above_stderr(os.memfd_create("rehearsal")), "w+b") as file:
                file.write(self._payload)
                file.flush()
                os.lseek(file.fileno(), 0, os.SEEK_SET)
                passed = (file.fileno(), ends["result"][1], ends["stacks"][1])
                self._process = subprocess.Popen(
                    [*_interpreter(), "-c", rehearsal_child.COMMAND, *map(str, (*passed, os.getpid()))],
                    env=environment_of_no_rank(Path(__file__).parents[2]),
                    stdin=subprocess.DEVNULL,
                    stdout=ends["output"][1],
                    stderr=ends["output"][1],
                    pass_fds=passed,
                    process_group=0,
                )
        except OSError as error:
            self._close()
            raise BadInput(
                f"{sys.executable}: cannot be started to try a function: {error.strerror}"
            ) from None
        except BaseException:
            self._close()
            raise
        finally:
            for _, end in ends.values():
                os.close(end)
        self._payload = b""
        return self

    def __exit__(self, *error) -> None:
        # The group goes with it: what a function has started ends with the rehearsal.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        for descriptor in self._pipes.values():
            os.close(descriptor)
        self._pipes.clear()

    def wait(self) -> _Ended:
        """Wait for its end, or for that of its time or memory."""
        deadline = time.monotonic() + self._timeout + _LAST_WORDS
        limit = ""
        with selectors.DefaultSelector() as selector:
            for name, descriptor in self._pipes.items():
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, name)
            while self._process.poll() is None and not limit:
                for key, _ in selector.select(_LOOK):
                    if not self._take(key.data):
                        selector.unregister(key.fd)
                if lifetime().stop.requested:
                    raise RunStopped(lifetime().how_to_begin_anew)
                if self._memory is not None and _anonymous(self._process.pid) > self._memory:
                    limit = "memory"
                elif time.monotonic() > deadline:
                    limit = "time"
                if not selector.get_map():
                    time.sleep(_LOOK)
        if limit:
            self._process.kill()
        status = self._process.wait()
        for name in self._read:
            while self._take(name):
                pass
        stacks = self._read["stacks"].decode("utf-8", "replace")
        if stacks.startswith("Timeout"):
            limit = "time"
        return _Ended(status, self._answer(status), stacks, limit)

    def _take(self, name: str) -> bool:
        """Read what is there; return whether there may be more."""
        try:
            data = os.read(self._pipes[name], 1 << 20)
        except BlockingIOError:
            return self._process.returncode is None
        if name == "output":
            self._pass_on(data)
        else:
            self._read[name] += data
        return bool(data)

    def _pass_on(self, data: bytes) -> None:
        """Print what the function prints, up to a limit, where it cannot be taken for an answer."""
        room, self._printed = max(0, _MAX_OUTPUT - self._printed), self._printed + len(data)
        if data[:room] and not self._quiet:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.write(shown(data[:room].decode("utf-8", "replace"), lines=True))
                sys.stderr.flush()

    def _answer(self, status: int) -> dict | None:
        data = self._read["result"]
        if len(data) < 8 or len(data) - 8 != int.from_bytes(data[:8], "little"):
            return None
        answer = pickle.loads(memoryview(data)[8:])
        return answer if status == 0 or answer.get("left") else None


def _above_stderr(descriptor: int) -> int:
    """Return a descriptor that is none of the first three, which may be free where stdin was closed."""
    if descriptor > 2:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved


def _interpreter() -> list[str]:
    """Return the words that start an interpreter as this one was, which looks in no folder of its own."""
    if not sys.executable:
        raise BadInput(
            "Python does not know where it is (sys.executable), and starts no other to try a function"
        )
    return [sys.executable, "-P", *["-O"] * sys.flags.optimize]


def _anonymous(process: int) -> int:
    """Return the bytes of anonymous memory of a process; 0 where there is none."""
    with contextlib.suppress(OSError, KeyError):
        return memory_status(process)["RssAnon"]
    return 0


# --- How it ended ------------------------------------------------------------------------------------------


def _failed(
    ended: _Ended, name: str, when: str, timeout: float, memory: int | None, defined_at: list
) -> RehearsalFailed:
    answer, stack, details = ended.answer, stack_of(ended.stacks), ended.stacks
    if answer is not None:
        stack, details = answer["stack"], answer["traceback"]
        of_name, of_when = answer.get("of", ("", ""))
        name, when = of_name or name, of_when or when
        text = " ".join(answer["message"].split())
        what = f"{answer['raised']}: {text or 'no message'}"
        if answer["left"]:
            how = f"sys.exit({text})" if answer["raised"] == "SystemExit" else answer["raised"]
            what = f"calls {how}, which is no end of a function"
    elif ended.limit == "time":
        what = f"has not returned after {timeout:g} s"
    elif ended.limit == "memory":
        what = f"takes more than the {memory >> 20} MiB of memory that are left for it; give more --memory"
    elif ended.status < 0:
        what = f"crashes the interpreter: {_signal_name(-ended.status)}"
        if -ended.status == signal.SIGKILL:
            what = "was killed (SIGKILL), as the system does where memory is short"
    else:
        what = f"ended the process with status {ended.status}, without a word"
    place, quoted = place_in([*defined_at, *stack])
    line = f"{place}{name}: {what}" + (f" ({when})" if when else "") + (f": {quoted}" if quoted else "")
    return RehearsalFailed(line, what, stack, details, ended.limit == "time")


def _defined_at(task: Any) -> list[tuple[str, int, str]]:
    """Return where a function begins, as a frame; none where that is not known."""
    code = getattr(inspect.unwrap(getattr(task, "func", task)), "__code__", None)
    return [(code.co_filename, code.co_firstlineno, code.co_name)] if code is not None else []


def place_in(stack) -> tuple[str, str]:
    """Return "FILE:LINE: " of the innermost frame that is the user's own, and that line; or nothing."""
    for path, number, _ in reversed(list(stack)):
        if modules.is_own_file(path):
            return f"{path}:{number}: ", linecache.getline(path, number).strip()
    return "", ""


def stack_of(text: str) -> list[tuple[str, int, str]]:
    """Return the frames of the thread that faulthandler says most of: the one that ran the task."""
    threads = re.split(r"^(?=(?:Current thread|Thread) )", text, flags=re.MULTILINE)[1:]
    frames = [
        [(path, int(line), name) for path, line, name in re.findall(_FRAME, thread, re.MULTILINE)][::-1]
        for thread in threads
    ]
    ours = [one for one in frames if any(path == rehearsal_child.__file__ for path, _, _ in one)]
    current = [one for one, thread in zip(frames, threads, strict=True) if thread.startswith("Current")]
    return (current or ours or frames or [[]])[-1]


_FRAME = r'^  File "(.*)", line (\d+) in (.*)$'


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        return f"signal {number}"
