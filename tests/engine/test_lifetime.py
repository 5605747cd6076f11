"""From its first line to its last a tool is watched, can be told to stop, and is ended by nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import launch, sabotage, warm

from mpiimg.engine.log.activity import ActivityFile, last_activity, read_activities
from mpiimg.engine.log.run_status import run_status
from mpiimg.engine.mpi.processes import RankProcess, process_stat
from mpiimg.errors import Exit

#: Seconds within which what is stopped or broken must have ended, on a loaded machine.
SOON = 60

#: A life whose grace is short.
LIVE = """
import ctypes, os, signal, sys, threading, time
from mpiimg.engine.mpi import lifetime
lifetime.GRACE = 0.3
from mpiimg.engine.mpi.lifetime import living
"""


def lived(script, **how):
    done = subprocess.run(
        [sys.executable, "-c", LIVE + script], capture_output=True, text=True, timeout=SOON, **how
    )
    return done.returncode, done.stdout, done.stderr


# What a signal does.


def test_a_library_that_takes_signals_while_it_starts_swallows_none():
    """As MPI does: its handlers are gone again afterwards, and what came meanwhile is heard."""
    status, said, _ = lived("""
with living() as life:
    with life.stop.held_back():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGUSR1)
    print(life.stop.requested)
    life.stop.requested = False
    os.kill(os.getpid(), signal.SIGUSR1)
    print(life.stop.requested)
""")
    assert (status, said) == (0, "True\nTrue\n")


@pytest.mark.parametrize("where", ["before", "within"])
def test_before_the_first_stage_a_main_thread_that_is_stuck_in_c_is_not_waited_for(where):
    """system() of the C library goes on whatever signal comes, and no handler of Python's is called in it."""
    held = "with life.stop.held_back(): " if where == "within" else ""
    started = time.monotonic()
    status, said, complaint = lived(f"""
with living(owner=True) as life:
    life.command = "mpiimg-fit again"
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    {held}ctypes.CDLL(None).system(b"exec sleep 20 < /dev/null > /dev/null 2>&1")
print("went on")
""")
    assert (status, said) == (Exit.STOPPED, "")
    assert complaint.startswith("mpiimg: stopped: before the first stage")
    assert complaint.endswith("the same command starts anew: mpiimg-fit again\n")
    assert time.monotonic() - started < 15


def test_an_interrupt_again_ends_what_is_stuck_in_c_at_once():
    status, _, said = lived("""
lifetime.GRACE = 50
with living(owner=True) as life:
    for after in (0.3, 0.8):
        threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    libc = ctypes.CDLL(None)
    libc.usleep.restype = None
    lock = ctypes.create_string_buffer(64)
    libc.sem_init(lock, 0, 0)
    while libc.sem_wait(lock): pass
""")
    assert status == -signal.SIGINT, said


def test_a_run_from_python_leaves_handlers_and_process_to_their_owner():
    status, said, _ = lived("""
handler = lambda *what: None
signal.signal(signal.SIGTERM, handler)
ends = os._exit
with living() as life:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    print(life.stop.requested)
print(signal.getsignal(signal.SIGTERM) is handler, os._exit is ends, threading.active_count())
""")
    assert (status, said) == (0, "True\nTrue True 1\n")


def test_workers_that_a_function_forks_end_as_they_are_told():
    """A pool ends its workers with SIGTERM, and waits for them."""
    status, said, _ = lived("""
import multiprocessing
with living(owner=True):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map(abs, [-1]))
    pool.join()
    if not os.fork(): os._exit(7)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
""")
    assert (status, said) == (0, "[1]\n7\n")


SLEEPS = """
import pathlib, time
def f(block):
    pathlib.Path({marker!r}).touch()
    time.sleep(30)
"""


def run_words(function, simulated, out):
    return ["mpiimg-run", "--udf", f"{function}:f", simulated.dwi, "--out", out, "--slices", 6]


@pytest.mark.tool
@pytest.mark.site
@pytest.mark.parametrize("ranks", [2, None])
def test_a_signal_in_a_trial_ends_a_job_that_goes_on_later(simulated, tmp_path, ranks):
    marker, function = tmp_path / "marker", tmp_path / "slow.py"
    function.write_text(SLEEPS.format(marker=str(marker)))
    words = run_words(function, simulated, tmp_path / "out")
    run = sabotage.start(*words, sabotaged=tmp_path, ranks=ranks, forked=False)
    sabotage.wait_for(marker, run)
    run.send_signal(signal.SIGUSR1)
    status, said = sabotage.finish(run, SOON)
    assert status == Exit.STOPPED, said
    assert said.count("mpiimg: stopped: before the first stage") == 1
    assert "Traceback" not in said and "the same command starts anew: mpiimg-run" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.tool
@pytest.mark.site
def test_a_signal_while_kernels_are_compiled_ends_the_compiler_too(simulated, tmp_path):
    """Of ranks, of whom one waits for it and the others for that one; the lease goes with them."""
    out = tmp_path / "out"
    command = launch.tool_command("mpiimg-mask", *simulated.arguments, "--out", out, ranks=3)
    environment = launch.environment(NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    run = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    said = run.stderr.readline()
    while "compiling kernels" not in said:
        assert run.poll() is None, said
        said = run.stderr.readline()
    time.sleep(0.5)
    run.send_signal(signal.SIGUSR1)
    status, said = sabotage.finish(run, SOON)
    assert status == Exit.STOPPED, said
    assert "the same command goes on from there: mpiimg-mask" in said
    assert not [pid for pid in compilers() if str(tmp_path) in environment_of(pid)]
    assert run_status(out / "events-mask").state == "stopped"


def compilers() -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if "mpiimg.engine.precompile" in read(f"/proc/{pid}/cmdline")]


def environment_of(pid: int) -> str:
    return read(f"/proc/{pid}/environ")


def read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.tool
def test_a_signal_while_results_are_published_lets_them_be_published(simulated, tmp_path):
    """Also where that takes longer than what a start is given."""
    where = sabotage.IN_DENOISING.replace("mpiimg.neuro.kernels.nlmeans", "mpiimg.engine.run")
    broken = sabotage.install(
        tmp_path / "told",
        "import signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(3.5)",
        where.replace("nonlocal_means", "publish"),
    )
    out = tmp_path / "out"
    run = sabotage.start("mpiimg-mask", *simulated.arguments, "--out", out, sabotaged=broken)
    status, said = sabotage.finish(run, SOON)
    assert status == 0, said
    assert (out / "run-mask.json").exists() and not (out / "work").exists()


# What ends a process that is not at its end.

ENDS = """
import ctypes, os, sys
calls = 0
def f(block):
    global calls
    calls += 1
    if calls == {call}:
        {end}
    return block
"""

WAYS = {
    "exit-of-c": ("ctypes.CDLL(None).exit(0)", "exit()"),
    "exit-of-c-with-the-lock": ("ctypes.PyDLL(None).exit(75)", "exit()"),
    "quick-exit-of-c": ("ctypes.CDLL(None).quick_exit(0)", "exit()"),
    "os-exit": ("os._exit(3)", "os._exit()"),
    "posix-exit": ("import posix; posix._exit(75)", "os._exit()"),
    "exec": ("os.execlp('true', 'true')", "os.execv()"),
}


@pytest.mark.tool
@pytest.mark.site
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ranks", [None, 2])
def test_an_end_from_inside_is_a_failure_that_names_its_place(simulated, tmp_path, way, ranks):
    end, how = WAYS[way]
    function, out = tmp_path / "ends.py", tmp_path / "out"
    function.write_text(ENDS.format(end=end, call=3))
    done = warm.run_tool(
        *run_words(function, simulated, out), ranks=ranks, python=sys.executable, check=False
    )
    # Hydra may tell of the rank that it killed.
    assert done.returncode in ((Exit.FAILED,) if ranks is None else (Exit.FAILED, signal.SIGKILL)), (
        done.stderr
    )
    assert f"a user's function or a library called {how} in stage udf-f, chunk" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "run.json").exists()
    status = run_status(out / "events")
    assert status.state == "failed" and how in status.why


@pytest.mark.tool
@pytest.mark.parametrize(("call", "status"), [(1, Exit.BAD_INPUT), (3, Exit.FAILED)], ids=["trial", "stage"])
def test_sys_exit_in_a_function_is_an_error_of_it(simulated, tmp_path, call, status):
    function = tmp_path / "ends.py"
    function.write_text(ENDS.format(end="sys.exit(0)", call=call))
    words = run_words(function, simulated, tmp_path / "out")
    done = warm.run_tool(*words, python=sys.executable, check=False)
    assert done.returncode == status, done.stderr
    assert f"{function}:8" in done.stderr or f'{function}", line 8' in done.stderr


FORKS = """
import os, sys
calls = 0
def f(block):
    global calls
    calls += 1
    if calls == 1:
        child = os.fork()
        if not child:
            {end}
        with open({log!r}, "a") as log:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=log)
    return block
"""


@pytest.mark.tool
@pytest.mark.parametrize(("end", "status"), [("sys.exit(5)", "5"), ("return block", "0"), ("1 / 0", "1")])
def test_a_process_that_a_function_forks_does_not_go_on_with_the_run(simulated, tmp_path, end, status):
    function, log = tmp_path / "forks.py", tmp_path / "log"
    function.write_text(FORKS.format(end=end, log=str(log)))
    done = warm.run_tool(
        *run_words(function, simulated, tmp_path / "out"), python=sys.executable, check=False
    )
    assert done.returncode == Exit.DONE, done.stderr
    assert log.read_text().split() == [status, status]  # in the trial, and in a chunk


LEAVES = """
import multiprocessing, threading, time
def f(block):
    if threading.active_count() < 4:
        {start}
    return block
"""


@pytest.mark.tool
@pytest.mark.parametrize(
    "start",
    [
        "threading.Thread(target=time.sleep, args=(1e6,)).start()",
        "multiprocessing.get_context('fork').Process(target=time.sleep, args=(1e6,)).start()",
    ],
    ids=["thread", "process"],
)
def test_what_a_function_leaves_running_keeps_no_job_from_its_end(simulated, tmp_path, start):
    function, out = tmp_path / "leaves.py", tmp_path / "out"
    function.write_text(LEAVES.format(start=start))
    launch.run_tool(*run_words(function, simulated, out))
    assert (out / "run.json").exists()


@pytest.mark.tool
@pytest.mark.parametrize("way", [*WAYS, "crash"])
def test_an_end_from_inside_a_trial_says_so(simulated, tmp_path, way):
    end, how = WAYS.get(way, ("ctypes.string_at(0)", ""))
    what = f"calls {how}, which is no end" if how else "crashes the interpreter: SIGSEGV (Segmentation fault)"
    function = tmp_path / "ends.py"
    function.write_text(ENDS.format(end=end, call=1))
    words = run_words(function, simulated, tmp_path / "out")
    done = warm.run_tool(*words, python=sys.executable, check=False)
    assert done.returncode == Exit.BAD_INPUT
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mpiimg: error: {function}:8: f: {what}") and line.endswith(f": {end}")
    assert not (tmp_path / "out").exists()


def test_an_import_that_does_not_return_is_answered_with_the_line_it_is_in(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import time\ndef f(block):\n    pass\nwhile True:\n    time.sleep(0.01)\n"
    )
    status, _, said = lived(f"""
from pathlib import Path
from mpiimg.functions.load import from_text

with living(2.0):
    from_text("mine.py:f", Path({str(tmp_path)!r}), {{}})
""")
    assert status == Exit.BAD_INPUT, said
    assert said == (
        f"mpiimg: error: {tmp_path}/mine.py:5: f: has not returned after 0 s (when it was imported); "
        "an import has a quarter of --timeout\n"
    )


def test_nothing_of_ours_is_called_once_the_interpreter_is_gone():
    """Also where MPI was started, or the block left by an exception."""
    for script in (
        "life = lifetime.Lifetime(0, True); life.begin()",
        "with living(owner=True): raise SystemExit(0)",
        "from mpiimg.engine.mpi import runtime\nruntime.world()",
    ):
        assert lived(script)[0] == 0, script


# What is known after a death.


@pytest.mark.tool
def test_a_crash_says_stage_and_chunk_and_so_do_status_and_the_next_run(simulated, tmp_path):
    function, out = tmp_path / "ends.py", tmp_path / "out"
    function.write_text(ENDS.format(end="ctypes.string_at(1)", call=3))
    words = run_words(function, simulated, out)
    done = warm.run_tool(*words, python=sys.executable, check=False)
    assert done.returncode in (-signal.SIGSEGV, 128 + signal.SIGSEGV), done.stderr
    assert "Segmentation fault" in done.stderr and "in f\n" in done.stderr
    assert ", stage udf-f, chunk 2\n" in done.stderr
    status = run_status(out / "events")
    assert status.state == "lost" and "was at stage udf-f, chunk 2" in status.why
    function.write_text(ENDS.format(end="pass", call=3))
    again = warm.run_tool(*words)
    assert "the last run here died: rank 0 on" in again.stderr
    assert "was at stage udf-f, chunk 2" in again.stderr
    assert "died" not in warm.run_tool(*words, "--force").stderr


def test_what_a_rank_is_at_is_in_its_file_until_it_is_through(tmp_path):
    files = [ActivityFile(tmp_path, rank) for rank in (0, 1)]
    files[0].write("stage fit, waits for the other ranks", True)
    files[1].write("stage fit, chunk 7, of a name that is long " * 20, False)
    files[1].write("stage fit, chunk 8 of \x1b\xe9", False)
    assert read_activities(tmp_path)[1].what == "stage fit, chunk 8 of \\x1b\\xe9".replace("\\x1b", "\x1b")
    assert last_activity(tmp_path).endswith(f"(process {os.getpid()}) was at stage fit, chunk 8 of \x1b\\xe9")
    (tmp_path / "2.at").write_bytes(b"torn")
    assert set(read_activities(tmp_path)) == {0, 1}
    for file in files:
        file.close()
    (tmp_path / "2.at").unlink()
    assert last_activity(tmp_path) == ""
    ActivityFile(None, 0).write("nowhere", False)


def test_of_the_process_of_a_rank_is_known_whether_it_goes_on():
    with subprocess.Popen(["sleep", "50"]) as sleeper:
        ticks = process_stat(sleeper.pid).ticks
        rank = RankProcess(1, sleeper.pid, ticks, RankProcess.own(0).namespace)
        assert not rank.is_gone and rank.trouble() == ""
        assert RankProcess(1, sleeper.pid, ticks + 1, rank.namespace).is_gone  # its number was given again
        assert not RankProcess(1, sleeper.pid, ticks + 1, "another").is_gone
        sleeper.send_signal(signal.SIGSTOP)
        while not rank.trouble():
            time.sleep(0.01)
        assert "(state T)" in rank.trouble()
        sleeper.kill()
        while not rank.is_gone:
            time.sleep(0.01)
        assert rank.trouble() == "is gone"


def test_a_rank_that_is_gone_is_not_waited_for():
    """Where no launcher takes note, as Open MPI's does not of every end: after the time that those have."""
    with subprocess.Popen(["sleep", "0"]) as gone:
        pass
    status, _, said = lived(f"""
from mpiimg.engine.log.watchdog import Reporter, Watchdog
from mpiimg.engine.mpi.processes import RankProcess
Watchdog.LAUNCHER, Watchdog.LOOK = 0.3, 0.1
dog = Watchdog(0, Reporter(0, [RankProcess(3, {gone.pid}, 1, RankProcess.own(0).namespace)]))
dog.start()
dog("a chunk"); time.sleep(1); print("a rank at work goes on", flush=True)
dog("an exchange", waits=True); time.sleep(20)
""")
    assert status == Exit.FAILED
    assert f"(process {gone.pid}) is gone without a word; rank 0 on" in said
    assert said.endswith("waits for it and ends the job: an exchange\n")


def test_who_waits_before_the_first_stage_names_the_rank_that_is_stopped():
    with subprocess.Popen(["sleep", "50"]) as sleeper:
        ticks = process_stat(sleeper.pid).ticks
        sleeper.send_signal(signal.SIGSTOP)
        status, _, said = lived(f"""
from mpiimg.engine.mpi.processes import RankProcess
with living(0.5) as life:
    own = RankProcess.own(0)
    life.mpi_has_started([RankProcess(3, {sleeper.pid}, {ticks}, own.namespace)])
    life.watchdog("the inspection of inputs, on rank 3", waits=True)
    time.sleep(20)
""")
        sleeper.kill()
    assert status == Exit.FAILED
    assert (
        f"(process {sleeper.pid}) is stopped by a signal (state T) (--timeout 0.5)\n"
        in said.splitlines(True)[0]
    )
    assert "which waits for it, ends the job: the inspection of inputs, on rank 3" in said


@pytest.mark.tool
def test_a_plan_and_a_header_are_watched(simulated, tmp_path):
    """Everything but what has no time to keep to."""
    where = sabotage.IN_DENOISING.replace("mpiimg.neuro.kernels.nlmeans", "mpiimg.neuro.subject")
    broken = sabotage.install(
        tmp_path / "hangs",
        "from mpiimg.engine.mpi.lifetime import lifetime\nimport time\n"
        "lifetime().watchdog.seconds = 1.0\ntime.sleep(30)",
        where.replace("nonlocal_means", "open_image"),
    )
    words = ("mpiimg-mask", *simulated.arguments, "--out", tmp_path / "out", "--plan")
    done = warm.run_tool(*words, sabotaged=broken, ranks=2, check=False)
    assert done.returncode != 0
    assert "mpiimg: rank 0 on" in done.stderr
    assert "ends the job: the inspection of inputs" in done.stderr
    assert "in open_image" in done.stderr or "in changed" in done.stderr


def test_the_words_of_a_death_are_records(tmp_path):
    file = ActivityFile(tmp_path, 3)
    file.write("stage fit, chunk 7", False)
    line = json.loads((tmp_path / "3.at").read_text())
    assert (line["rank"], line["what"], line["pid"]) == (3, "stage fit, chunk 7", os.getpid())
