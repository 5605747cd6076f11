"""Scripts of a user's under MPI: their ranks end together, whatever one of them does, and say it once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import launch, sabotage

from mpiimg.errors import Exit

pytestmark = [pytest.mark.tool, pytest.mark.site]

#: Seconds within which what is broken must have ended, on a loaded machine.
SOON = 30

#: What a script of these tests begins with: its rank as the launcher says, and a collective call.
HEAD = """
import os, sys, time
import mpiimg as mi
from mpiimg.engine.mpi import scripts
from mpiimg.errors import BadInput, RunFailed
code = '''
def compute(digest="graph", kind="compute"):
    with scripts.collective(kind, digest) as comm:
        return comm.rank
'''
space = {"__name__": "mpiimg.stands_in", "scripts": scripts}
exec(code, space)
compute = space["compute"]
variables = "OMPI_COMM_WORLD_RANK", "PMI_RANK"
rank = next((int(os.environ[name]) for name in variables if name in os.environ), 0)
"""


def written(folder: Path, body: str, head: str = HEAD) -> Path:
    """Write a script, whose body begins at line 101."""
    script = folder / "script.py"
    script.write_text(head.strip() + "\n" * (100 - head.strip().count("\n")) + body.strip() + "\n")
    return script


def command(script: Path, ranks: int | None) -> list[str]:
    launcher = [] if ranks is None else launch.mpiexec(ranks, sys.executable)
    return [*launcher, sys.executable, str(script)]


PATH = {"PYTHONPATH": str(launch.REPOSITORY)}


def ran(folder: Path, body: str, ranks: int | None) -> subprocess.CompletedProcess:
    """Run a script to its end."""
    return launch.run(command(written(folder, body), ranks), timeout=SOON, check=False, env=PATH)


#: What a script does, on how many ranks, with what status it ends, and what it says.
DIFFER = {
    "skips": (
        3,
        "if rank != 1: compute()\ncompute(kind='write')",
        Exit.BAD_INPUT,
        "rank 1 called mi.write at script.py:102 where the others called mi.compute at script.py:101: every",
    ),
    "adds": (
        4,
        "compute()\nif rank == 2:\n    compute()",
        Exit.BAD_INPUT,
        "the others left the script after mi.compute at script.py:101",
    ),
    "on-rank-0-only": (
        2,
        "if rank == 0:\n    compute()",
        Exit.BAD_INPUT,
        "rank 1 left the script before any call where rank 0 called mi.compute at script.py:102: every",
    ),
    "leaves-first": (
        3,
        "if rank == 2: sys.exit()\ncompute()",
        Exit.BAD_INPUT,
        "rank 2 left the script before any call where the others called mi.compute at script.py:102",
    ),
    "leaves": (
        4,
        "compute()\nif rank == 3: sys.exit(0)\ncompute()",
        Exit.BAD_INPUT,
        "rank 3 called sys.exit(0) at script.py:102 where the others called mi.compute at script.py:103",
    ),
    "raises-first": (
        2,
        "if rank == 1: raise ValueError('early')\ncompute()",
        Exit.FAILED,
        "rank 1 ended with ValueError: early at ",
    ),
    "raises": (
        3,
        "compute()\nif rank == 1: 1 / 0\ncompute()",
        Exit.FAILED,
        "rank 1 ended with ZeroDivisionError: division by zero at script.py:102 "
        "where the others called mi.compute at script.py:103",
    ),
    "another-graph": (
        2,
        "compute(digest=str(rank))",
        Exit.BAD_INPUT,
        "rank 1 called mi.compute at script.py:101 with another graph than rank 0: every rank must read",
    ),
    "another-line": (
        3,
        "if rank == 1:\n    compute()\nelse:\n    compute()",
        Exit.BAD_INPUT,
        "rank 1 called mi.compute at script.py:102 where the others called mi.compute at script.py:104",
    ),
    "loop": (
        3,
        "for turn in range(4):\n    if (rank, turn) != (0, 2): compute()",
        Exit.BAD_INPUT,
        "rank 0 left the script after mi.compute at script.py:102 where the others called mi.compute at",
    ),
    "caught": (
        2,
        "for turn in 1, 2:\n    try: compute(digest=str(rank))\n    except BadInput: pass",
        Exit.BAD_INPUT,
        "rank 1 called mi.compute at script.py:102 with another graph than rank 0",
    ),
    "bad-input-of-one": (
        2,
        "compute()\nif rank == 1: raise BadInput('a.nii: is not there')\ncompute()",
        Exit.BAD_INPUT,
        "mpiimg: error: rank 1 ended with BadInput: a.nii: is not there at script.py:102 where rank 0",
    ),
}

#: Those of which one install is enough.
SIBLINGS = ("another-line", "adds", "caught", "loop", "bad-input-of-one")


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.long] * (how in SIBLINGS)) for how in DIFFER]
)
def test_ranks_that_differ_end_together_and_name_both_places(tmp_path, how):
    ranks, body, status, said = DIFFER[how]
    started = time.monotonic()
    done = ran(tmp_path, body, ranks)
    # Hydra may tell of a rank that it killed, since another had ended.
    assert done.returncode in (status, signal.SIGKILL), done.stderr
    assert said in done.stderr
    assert done.stderr.count("mpiimg: ") == 1, done.stderr
    assert done.stderr.count("Traceback") == ("raises" in how), done.stderr
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("ranks", [None, 2, 3])
def test_what_ends_all_ranks_alike_is_said_once(tmp_path, ranks):
    done = ran(tmp_path, "compute()\nraise BadInput('a.nii: is not there')", ranks)
    assert done.returncode == Exit.BAD_INPUT
    assert done.stderr.startswith("mpiimg: error: a.nii: is not there (script.py:102)\n")
    assert done.stderr.count("is not there") == 1
    done = ran(tmp_path, "compute()\n1 / 0", ranks)
    assert done.returncode == Exit.FAILED
    assert done.stderr.count("Traceback") == done.stderr.count("ZeroDivisionError") == 1


def test_an_error_of_one_rank_ends_others_that_wait_for_it_elsewhere(tmp_path):
    """In a call of MPI of the script's own, which no rendezvous can see."""
    body = "from mpi4py import MPI\ncompute()\nif rank == 1: 1 / 0\nMPI.COMM_WORLD.barrier()"
    done = ran(tmp_path, body, 2)
    assert done.returncode != 0
    assert done.stderr.count("ZeroDivisionError") == 1 and "mpiimg: rank 1 on" in done.stderr


def test_a_process_that_leaves_by_itself_ends_the_job(tmp_path):
    done = ran(tmp_path, "compute()\nif rank == 1: os._exit(0)\ncompute()", 3)
    assert done.returncode in (Exit.FAILED, signal.SIGKILL)
    assert "called os._exit() in the script, after mi.compute at script.py:101" in done.stderr


@pytest.mark.parametrize("ranks", [None, 2])
def test_code_that_ends_the_process_within_a_later_call_is_no_success(tmp_path, ranks):
    body = "import ctypes\ncompute()\nwith scripts.collective('write', 'graph'): ctypes.CDLL(None).exit(0)"
    done = ran(tmp_path, body, ranks)
    assert done.returncode in (Exit.FAILED, signal.SIGKILL)
    assert "called exit() in " in done.stderr and "which is no end of a run" in done.stderr


def test_a_rank_that_hangs_between_two_calls_ends_the_job(tmp_path):
    body = """
compute()
from mpiimg.engine.mpi.lifetime import lifetime
lifetime().watchdog.seconds = 4.0
if rank == 1: time.sleep(60)
compute()
"""
    done = ran(tmp_path, body, 2)
    assert done.returncode not in (0, Exit.BAD_INPUT)
    assert (
        "mpiimg: rank 1 on" in done.stderr and "the script, after mi.compute at script.py:101" in done.stderr
    )
    assert ", line 104, in <module>" in done.stderr


def test_what_ranks_share_is_put_away_when_the_last_is_through(tmp_path):
    body = """
compute()
marker = os.path.dirname(__file__) + "/marker"
def close():
    if rank == 0: print(os.path.exists(marker))
scripts.when_ended(close)
if rank == 1:
    time.sleep(0.5)
    open(marker, "w").close()
"""
    assert ran(tmp_path, body, 2).stdout == "True\n"


WAITS = """
compute()
open({marker!r}, "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize(("ranks", "number"), [(None, signal.SIGTERM), (2, signal.SIGUSR1)])
def test_a_signal_between_two_calls_stops_the_script(tmp_path, ranks, number):
    marker = tmp_path / "marker"
    script = written(tmp_path, WAITS.format(marker=str(marker)))
    run = subprocess.Popen(
        command(script, ranks),
        stderr=subprocess.PIPE,
        text=True,
        env=launch.environment(**PATH),
        start_new_session=True,
    )
    sabotage.wait_for(marker, run)
    run.send_signal(number)
    status, said = sabotage.finish(run, SOON)
    assert status == Exit.STOPPED, said
    assert said.count("mpiimg: stopped: after mi.compute at script.py:101, by a signal; the same") == 1
    assert "Traceback" not in said


FORKS = """
compute()
import multiprocessing, subprocess
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(abs, [-1]))
if not (child := os.fork()): sys.exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
program = "import mpiimg as mi; mi.run; print('another program')"
print(subprocess.run([sys.executable, "-c", program], timeout=20, stdout=subprocess.PIPE).stdout)
compute()
"""


@pytest.mark.parametrize("ranks", [None, 2])
def test_processes_that_a_rank_starts_are_no_ranks(tmp_path, ranks):
    done = ran(tmp_path, FORKS, ranks)
    assert done.returncode == 0, done.stderr
    said = "[1]\n4\nb'another program\\n'\n"
    assert sorted(done.stdout) == sorted(said * (ranks or 1)), done.stderr


def test_a_script_that_computes_nothing_ends_as_it_is(tmp_path):
    """By itself without MPI; under a launcher it looks whether others wait for it."""
    body = "print('mpi4py' in sys.modules)"
    assert ran(tmp_path, body, None).stdout == "False\n"
    done = ran(tmp_path, body, 2)
    # Open MPI may begin a line of one rank within that of another.
    assert (done.returncode, sorted(done.stdout)) == (0, sorted("False\n" * 2))


def test_a_script_is_watched_only_while_it_calls(tmp_path):
    """On one rank; what the user has set up is there between two calls, and at the end."""
    body = """
import signal
def mine(*what): print("mine")
signal.signal(signal.SIGTERM, mine)
ends = os._exit
compute()
os.kill(os.getpid(), signal.SIGTERM)
print(os._exit is ends, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    done = ran(tmp_path, body, None)
    assert (done.returncode, done.stdout) == (0, "mine\nTrue True\n"), done.stderr


def test_at_a_prompt_exceptions_stay_exceptions(tmp_path):
    body = """
import builtins
builtins.__IPYTHON__ = True
hook = sys.excepthook
compute()
print(sys.excepthook is hook)
raise BadInput("a.nii: is not there")
"""
    done = ran(tmp_path, body.strip(), None)
    assert (done.returncode, done.stdout) == (1, "True\n")
    assert done.stderr.endswith("mpiimg.errors.BadInput: a.nii: is not there\n")
    assert "Traceback" in done.stderr


def test_a_call_within_a_call_is_refused(tmp_path):
    body = "with scripts.collective('write', 'graph'):\n    compute()"
    done = ran(tmp_path, body, None)
    assert done.returncode == Exit.BAD_INPUT
    assert "mi.compute at script.py:102: called within the call at script.py:101" in done.stderr


def test_the_package_alone_loads_little():
    """A script that only imports it pays nothing, and does not start MPI."""
    heavy = ("numpy", "mpi4py", "subprocess")
    code = f"import sys, mpiimg; print([name for name in {heavy} if name in sys.modules])"
    done = launch.run([sys.executable, "-c", code], env=PATH, timeout=SOON)
    assert done.stdout == "[]\n"
    assert "PMI_RANK" not in os.environ
