"""A function is tried in a fresh interpreter: what it returns, and every way in which it does not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support import launch

from mpiimg.arrays import rehearse
from mpiimg.arrays.rehearse import RehearsalFailed, in_fresh_interpreter, seconds_for
from mpiimg.errors import BadInput

#: Enough for an interpreter on a busy machine.
PATIENCE = 30.0


def called(task, *arguments, timeout=PATIENCE, **how):
    return in_fresh_interpreter(task, *arguments, timeout=timeout, **how)


def times(k):
    return lambda block: block * k


class Twice:
    def __call__(self, block):
        return block * 2


class Found(ValueError):
    """An exception of the user's own."""


# What it returns.


def test_arrays_closures_and_classes_go_there_and_back():
    block = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(called(times(3), block), 3 * block)
    made, again = called(lambda b: (Twice(), {"sum": Twice()(b).sum()}), block)
    assert isinstance(made, Twice) and again == {"sum": 30.0}
    assert called(len, "abc") == 3


def test_it_is_another_interpreter_that_knows_no_rank_and_finds_the_same_modules(tmp_path, monkeypatch):
    for name in (
        "PMI_RANK",
        "PMIX_RANK",
        "OMPI_COMM_WORLD_RANK",
        "SLURM_PROCID",
        "I_MPI_HYDRA",
        "MPI_LOCALRANKID",
    ):
        monkeypatch.setenv(name, "3")
    (tmp_path / "own_helper.py").write_text("K = 5\n")
    monkeypatch.syspath_prepend(tmp_path)

    def look():
        import own_helper

        of_ranks = ("PMI", "OMPI", "SLURM", "I_MPI", "MPI_LOCAL")
        return own_helper.K, os.getpid(), [n for n in os.environ if n.startswith(of_ranks)], os.getcwd()

    k, process, of_ranks, folder = called(look)
    assert (k, of_ranks, folder) == (5, [], os.getcwd()) and process != os.getpid()


def test_what_it_prints_goes_to_stderr(capfd):
    called(lambda: print("said \x1b[2J"))
    called(lambda: os.system("echo by another program"))
    out, err = capfd.readouterr()
    assert out == "" and "said " in err and "by another program" in err and "\x1b" not in err
    called(lambda: print("said"), quiet=True)
    assert capfd.readouterr() == ("", "")


def test_a_process_that_is_forked_in_it_ends_there():
    def forks():
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return "of the child"

    assert called(forks) == 0


def test_what_cannot_go_there_or_come_back_is_said():
    lock = threading.Lock()
    with pytest.raises(BadInput, match=r"locked: cannot be carried to another process.* lock"):
        called(lambda: lock, name="locked")
    with pytest.raises(BadInput, match="its result cannot be carried to another process"):
        called(lambda: __import__("threading").Lock())


# How it fails.


def raises():
    return 1 + np.ones(3)[7]  # the line


def raises_its_own():
    raise Found("no\nsuch thing")


def asks_to_leave():
    sys.exit(0)


def leaves():
    os._exit(0)


def leaves_to_be_resumed():
    os._exit(75)


def leaves_in_c():
    ctypes.CDLL(None).exit(0)


def leaves_at_once_in_c():
    ctypes.CDLL(None)._exit(0)


def crashes():
    ctypes.string_at(0)


def aborts():
    os.abort()


def crashes_on_the_stack():
    import json

    sys.setrecursionlimit(10**9)
    nested: list = []
    for _ in range(10**6):
        nested = [nested]
    return json.dumps(nested)


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def becomes_another_program():
    os.execlp("true", "true")


def becomes_another_program_in_c():
    words = (ctypes.c_char_p * 2)(b"true", None)
    ctypes.CDLL(None).execv(b"/bin/true", words)


FAILURES = {
    raises: "raises: IndexError: index 7 .*: return 1 .*# the line",
    raises_its_own: r"raises_its_own: Found: no such thing .*: raise Found",
    asks_to_leave: r"calls sys.exit\(0\), which is no end of a function .*: sys.exit\(0\)",
    leaves: r"calls os._exit\(\), which is no end of a function .*: os._exit\(0\)",
    leaves_to_be_resumed: r"calls os._exit\(\), which is no end",
    leaves_in_c: r"calls exit\(\), which is no end of a function .*: ctypes.CDLL\(None\).exit\(0\)",
    leaves_at_once_in_c: "ended the process with status 0, without a word",
    crashes: r"crashes the interpreter: SIGSEGV \(Segmentation fault\) .*: ctypes.string_at\(0\)",
    aborts: r"crashes the interpreter: SIGABRT \(Aborted\) .*: os.abort\(\)",
    crashes_on_the_stack: "crashes the interpreter: SIGSEGV|RecursionError",
    is_killed: r"was killed \(SIGKILL\)",
    becomes_another_program: r"calls os.execv\(\), which is no end of a function",
    becomes_another_program_in_c: "ended the process with status 0, without a word",
}


@pytest.mark.parametrize("task", FAILURES, ids=lambda task: task.__name__)
def test_how_it_fails_is_said_in_one_line_with_the_function_and_the_line(task):
    with pytest.raises(RehearsalFailed, match=FAILURES[task]) as caught:
        called(task, when="tried on nothing")
    line = str(caught.value)
    assert re.match(rf"{re.escape(__file__)}:\d+: {task.__name__}: ", line) and "\n" not in line
    assert "(tried on nothing)" in line
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.stack) == (line, caught.value.stack)


def test_a_failure_has_its_traceback():
    with pytest.raises(RehearsalFailed) as caught:
        called(raises)
    assert "Traceback" in caught.value.details and "in raises" in caught.value.details
    assert caught.value.summary[-1].name == "raises" and caught.value.what.startswith("IndexError: ")


def test_bad_input_in_it_is_bad_input_here():
    def refuses():
        raise BadInput("mask.nii: has another shape")

    with pytest.raises(BadInput, match=r"^mask.nii: has another shape$"):
        called(refuses)


def hanging():
    """Functions that go there as code: their time is not that of the imports of this module."""

    def hangs():
        while True:
            pass

    def hangs_in_c():
        ctypes.PyDLL(None).pause()  # and keeps the interpreter to itself

    def hangs_deaf():
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)

    return hangs, hangs_in_c, hangs_deaf


@pytest.mark.parametrize("task", hanging(), ids=lambda task: task.__name__)
def test_a_hang_is_ended_and_says_where(task):
    began = time.monotonic()
    with pytest.raises(RehearsalFailed, match=r"has not returned after 1.5 s") as caught:
        called(task, timeout=1.5)
    assert time.monotonic() - began < PATIENCE
    assert caught.value.hung and task.__name__ in [frame.name for frame in caught.value.summary]


def test_the_time_of_a_rehearsal_follows_from_that_of_a_step():
    assert (seconds_for(20.0), seconds_for(3600.0), seconds_for(0.0)) == (5.0, 300.0, 300.0)


def test_memory_is_limited():
    def takes(size):
        taken = bytearray(size)
        time.sleep(PATIENCE)
        return len(taken)

    with pytest.raises(RehearsalFailed, match="takes more than the 100 MiB of memory"):
        called(takes, 200 << 20, memory=100 << 20)
    with pytest.raises(RehearsalFailed, match="MemoryError"):
        called(takes, 1 << 40, memory=100 << 20)


# Nothing is left behind.


def test_no_process_and_no_descriptor_is_left():
    def starts():
        return subprocess.Popen(["sleep", "1000"]).pid

    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = len(os.listdir("/proc/self/fd")), children.read_text()
    started = called(starts)
    for task in (crashes, leaves):
        with pytest.raises(RehearsalFailed):
            called(task)
    assert (len(os.listdir("/proc/self/fd")), children.read_text()) == before
    assert is_gone(started)


def is_gone(process: int) -> bool:
    for _ in range(200):
        stat = Path(f"/proc/{process}/stat")
        try:
            if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


PARENT = """
import os, sys, time
from mpiimg.arrays.rehearse import in_fresh_interpreter
def hangs(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)
in_fresh_interpreter(hangs, sys.argv[1], timeout=1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_parent(tmp_path, number):
    script, note = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, script, note], env=launch.environment(PYTHONPATH=str(launch.REPOSITORY))
    ) as parent:
        for _ in range(400):
            if note.exists() and note.read_text():
                break
            time.sleep(0.05)
        parent.send_signal(number)
        parent.wait(PATIENCE)
    assert is_gone(int(note.read_text()))


# Where it is called from.

CALLER = r"""
import numpy as np
from mpiimg.arrays.rehearse import in_fresh_interpreter
class Method:
    k = 3
def task(block, method=Method()):
    return {"value": (block * method.k).sum(), "method": method}
if MPI:
    from mpi4py import MPI
found = in_fresh_interpreter(task, np.arange(4), timeout=60)
assert isinstance(found["method"], Method)
print(f"value {found['value']}\n", end="")
"""


@pytest.mark.parametrize("ranks", [None, 2])
def test_from_a_script_with_stdin_closed_and_under_mpiexec(tmp_path, ranks):
    script = tmp_path / "script.py"
    script.write_text(CALLER.replace("MPI:", f"{ranks}:"))
    launcher = [] if ranks is None else launch.mpiexec(ranks, sys.executable)
    words = ["bash", "-c", 'exec "$@" <&-', "bash", *launcher, sys.executable, script]
    done = launch.run(words, env={"PYTHONPATH": str(launch.REPOSITORY)})
    assert done.stdout.splitlines() == ["value 18"] * (ranks or 1)


def test_from_a_notebook(tmp_path):
    """Whose cells are files of nowhere, and whose __main__ has none."""
    cell = f"""
    import linecache, sys
    sys.modules["__main__"].__dict__.pop("__file__", None)
    text = {CALLER.replace("MPI:", "None:")!r} + "def bad(b):\\n    return b.nothing\\n"
    linecache.cache["<ipython-input-1-x>"] = len(text), None, text.splitlines(True), "<ipython-input-1-x>"
    exec(compile(text, "<ipython-input-1-x>", "exec"), globals())
    try:
        in_fresh_interpreter(bad, 3, timeout=60)
    except Exception as error:
        print(error)
    """
    done = launch.run(
        [sys.executable, "-c", textwrap.dedent(cell)],
        env={"PYTHONPATH": str(launch.REPOSITORY)},
        cwd=tmp_path,
    )
    said = done.stdout.splitlines()
    assert said[0] == "value 18" and said[1].endswith("has no attribute 'nothing': return b.nothing")
    assert said[1].startswith("<ipython-input-1-x>:")


def test_functions_of_a_module_that_was_run_from_text_go_there_as_code():
    import types

    module = types.ModuleType("own_of_text")
    sys.modules["own_of_text"] = module
    try:
        exec("K = 4\ndef f(b):\n    return b * K\n", module.__dict__)
        assert called(module.f, 2) == 8
    finally:
        del sys.modules["own_of_text"]


def test_the_place_is_that_of_the_users_own_code_not_of_libraries():
    stack = [(__file__, 3, "f"), (np.__file__, 5, "g"), (rehearse.__file__, 7, "h"), ("<frozen x>", 1, "i")]
    place, quoted = rehearse.place_in(stack)
    assert place == f"{__file__}:3: " and quoted == Path(__file__).read_text().splitlines()[2].strip()
