"""What is decided about ranks without several of them: refusals, ranks before MPI, signals, exits."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from mpiimg.engine.mpi import job, runtime
from mpiimg.engine.mpi.agreement import Agreement
from mpiimg.engine.mpi.lifetime import living
from mpiimg.engine.mpi.nodes import _cgroup_limits, _node_memory, memory_per_rank, once_per_node
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped


@pytest.fixture
def alone():
    """The communicator of this process."""
    from mpi4py import MPI

    return MPI.COMM_SELF


# Who is launched how (see the MPI part of docs/install.md).


@pytest.mark.parametrize(
    ("size", "environment", "refused"),
    [
        (1, {}, False),
        # A serial python in sbatch -n4: four tasks in the job, none in a step.
        (1, {"SLURM_NTASKS": "4"}, False),
        # mpiexec -n 2 in sbatch.
        (2, {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, False),
        # srun -n4 with the --mpi that fits.
        (4, {"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4"}, False),
        (4, {"SLURM_STEP_NUM_TASKS": "4"}, False),
        # srun -n4 with the wrong --mpi: four worlds of one.
        (1, {"SLURM_STEP_NUM_TASKS": "4"}, True),
        (1, {"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4"}, True),
        (1, {"SLURM_STEP_NUM_TASKS": "4", "OMPI_COMM_WORLD_SIZE": "4"}, True),
        # mpiexec -n 1 inside a step of four: it was told that it is alone.
        (1, {"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "1"}, False),
        (1, {"SLURM_STEP_NUM_TASKS": "4", "OMPI_COMM_WORLD_SIZE": "1"}, False),
        # srun -n1.
        (1, {"SLURM_STEP_NUM_TASKS": "1"}, False),
    ],
)
def test_singletons_are_refused(size, environment, refused):
    if refused:
        with pytest.raises(BadInput, match=r"srun started 4 tasks.*--mpi=pmi2.*--mpi=pmix"):
            runtime.refuse_singletons(size, environment)
    else:
        runtime.refuse_singletons(size, environment)


@pytest.mark.parametrize(
    ("size", "environment", "warned"),
    [
        (4, {"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4"}, True),
        (4, {"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4", "SLURM_KILL_BAD_EXIT": "0"}, True),
        (4, {"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4", "SLURM_KILL_BAD_EXIT": "1"}, False),
        (1, {"SLURM_STEP_NUM_TASKS": "1"}, False),
        (2, {}, False),
        # mpiexec in sbatch on two nodes, a launcher and a rank on each: the wheel's, then Open MPI's.
        (2, {"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "1"}, False),
        (2, {"SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "2"}, False),
    ],
)
def test_srun_that_lets_ranks_wait_for_a_dead_one_is_noticed(size, environment, warned):
    assert runtime.lets_a_death_hang(size, environment) == warned


@pytest.mark.parametrize(
    ("environment", "wheel", "chosen"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2", "PMI_FD": "11"}, True, "ofi"),
        ({"SLURM_STEP_NUM_TASKS": "2", "PMI_FD": "11"}, False, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "PMI_FD": "11", "MPIR_CVAR_CH4_NETMOD": "ucx"}, True, "ucx"),
        # mpiexec, in a batch job and without one; a run without a launcher.
        ({"SLURM_STEP_NUM_TASKS": "2", "PMI_FD": "5", "MPI_LOCALNRANKS": "1"}, True, None),
        ({"PMI_FD": "5", "MPI_LOCALNRANKS": "1"}, True, None),
        ({}, True, None),
    ],
)
def test_the_wheels_mpi_keeps_its_addresses_short_for_pmi2(tmp_path, environment, wheel, chosen):
    if wheel:
        (tmp_path / "lib").mkdir()
        (tmp_path / "lib" / "libmpi.so.12").touch()
    runtime.avoid_long_addresses(environment, str(tmp_path))
    assert environment.get("MPIR_CVAR_CH4_NETMOD") == chosen


MAPS = """\
7f00-7f01 r-xp 00000000 08:01 1 {folder}/libmpi.so.12
7f01-7f02 r--p 00000000 08:01 1 {folder}/libmpi.so.12
7f02-7f03 r-xp 00000000 08:01 2 /usr/lib/libc.so.6
7f03-7f04 rw-p 00000000 00:00 0 [heap]
7f04-7f05 rw-p 00000000 00:00 0
7f05-7f06 r-xp 00000000 08:01 3 /usr/lib/libmpifort.so.40
"""


def test_one_mpi_library_is_fine(tmp_path):
    """One library under two names is one library; Fortran bindings are none of their own."""
    library = tmp_path / "libmpi.so.12"
    library.touch()
    (tmp_path / "libmpich.so.12").symlink_to(library)
    maps = tmp_path / "maps"
    maps.write_text(
        MAPS.format(folder=tmp_path) + f"7f06-7f07 r-xp 00000000 08:01 1 {tmp_path}/libmpich.so.12\n"
    )
    runtime.refuse_two_mpi_libraries(maps)


def test_two_mpi_libraries_are_refused(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        MAPS.format(folder=tmp_path) + "7f06-7f07 r-xp 0 08:01 4 /opt/openmpi/lib/libmpi.so.40.30\n"
    )
    with pytest.raises(BadInput) as caught:
        runtime.refuse_two_mpi_libraries(maps)
    assert "two MPI libraries in one process" in str(caught.value)
    assert f"{tmp_path}/libmpi.so.12" in str(caught.value)
    assert "/opt/openmpi/lib/libmpi.so.40.30" in str(caught.value)


def test_without_proc_nothing_is_refused(tmp_path):
    runtime.refuse_two_mpi_libraries(tmp_path / "missing")


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"OMPI_COMM_WORLD_RANK": "3"}, 3),
        ({"PMIX_RANK": "2"}, 2),
        ({"PMI_RANK": "5"}, 5),
        ({"SLURM_PROCID": "4"}, 4),
        # mpiexec inside an sbatch script: the launcher nearest to the process counts.
        ({"SLURM_PROCID": "0", "PMI_RANK": "1"}, 1),
    ],
)
def test_rank_before_mpi(monkeypatch, environment, rank):
    for name in job.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert job.launched_rank() == rank


# Exit codes, and who speaks.


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (None, Exit.DONE, ""),
        (Exit.PARTIAL, Exit.PARTIAL, ""),
        (BadInput("x.nii: what is this"), Exit.BAD_INPUT, "mpiimg: error: x.nii: what is this\n"),
        (
            RunFailed("rank 1 on h, chunk 3:\nboom"),
            Exit.FAILED,
            "mpiimg: failed: rank 1 on h, chunk 3:\nboom\n",
        ),
        (RunStopped("go on"), Exit.STOPPED, "mpiimg: stopped: go on\n"),
    ],
)
def test_exits(alone, capsys, outcome, code, said):
    def function():
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert runtime.guard(alone, function) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "error, said, is_one_line",
    [
        (KeyError("in an exchange"), "KeyError: 'in an exchange'", False),
        (
            OSError(errno.EMFILE, "", "run.py"),
            "run.py: Too many open files; raise the limit on",
            True,
        ),
    ],
    ids=["error", "refused"],
)
def test_anything_else_aborts_the_job(capsys, error, said, is_one_line):
    """With its traceback, but what the system refuses is said in a line."""
    aborted = []

    class Comm:
        rank = 2

        def Abort(self, code):
            aborted.append(code)

    def function():
        raise error

    with pytest.raises(SystemExit) as ended:
        runtime.guard(Comm(), function)
    assert ended.value.code == Exit.FAILED
    assert aborted == [Exit.FAILED]
    err = capsys.readouterr().err
    assert "rank 2 on" in err and said in err
    assert (len(err.splitlines()) == 1) == is_one_line


def test_exit_codes_are_those_of_the_documentation():
    assert [int(code) for code in Exit] == [0, 1, 2, 3, 75]


def test_what_one_rank_a_node_does_wrong_fails_the_run(alone):
    done = []
    once_per_node(alone, lambda: done.append(1), "compiling")
    assert done == [1]
    with pytest.raises(RunFailed, match=r"(?s)rank 0 on .*, compiling:\n.*ZeroDivisionError"):
        once_per_node(alone, lambda: 1 / 0, "compiling")


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_asks_to_stop_and_is_handed_back_afterwards(alone, number):
    before = signal.getsignal(number)
    agreement = Agreement(alone)
    with living():
        assert not agreement.interrupted()
        os.kill(os.getpid(), number)
        assert agreement.interrupted()
        with pytest.raises(RunStopped):
            agreement.agree()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_interrupt_ends_at_once(first):
    """By the system itself, since in a kernel or a collective no handler of Python's would run."""
    script = f"""
import os, signal
from mpiimg.engine.mpi.lifetime import living
with living():
    os.kill(os.getpid(), {int(first)})
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still there", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "goes on\n"
    assert done.returncode == -signal.SIGINT


# Memory.


def test_memory_is_the_least_of_node_job_and_cgroup():
    node = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < _node_memory({}) <= node
    assert _node_memory({"SLURM_MEM_PER_NODE": "64"}) == 64 << 20
    assert _node_memory({"SLURM_MEM_PER_NODE": "lots"}) == _node_memory({})
    assert _node_memory({"SLURM_MEM_PER_NODE": "0"}) == _node_memory({})
    assert _node_memory({"SLURM_MEM_PER_CPU": "10", "SLURM_CPUS_ON_NODE": "4"}) == 40 << 20


def test_the_limit_of_a_nested_cgroup_is_looked_for_up_to_the_root(tmp_path):
    table = tmp_path / "cgroup"
    table.write_text("0::/slurm/job_7/step_0\n")
    found = [str(path) for path in _cgroup_limits(str(table))]
    for name in ("slurm/job_7/step_0/", "slurm/job_7/", "slurm/", ""):
        assert f"/sys/fs/cgroup/{name}memory.max" in found
    assert not any("/sys/fs/memory.max" in path for path in found)


def test_a_rank_alone_gets_nine_tenths(alone, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert memory_per_rank(alone) == (100 << 20) * 9 // 10


def test_a_reader_that_is_gone_is_no_failure():
    """As with head: what is said after it left goes nowhere, and no traceback is printed."""
    code = (
        "import sys\nfrom mpiimg.engine.mpi import runtime\n"
        "for _ in range(3): runtime.put('x' * 99999, sys.stdout)"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize(
    "stream, status, said",
    [
        ("stdout", 1, "mpiimg: failed: standard output: No space left on device; send it elsewhere\n"),
        ("stderr", 0, None),
    ],
)
def test_a_full_disk_fails_an_answer_and_no_run(stream, status, said):
    """What a batch log has no room for the record of the run says."""
    code = (
        "import sys\nfrom mpiimg.engine.mpi import runtime\n"
        f"for _ in range(3): runtime.put('x', sys.{stream})\n"
        "sys.exit(runtime.check_printed(0))"
    )
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, stream: full}
        done = subprocess.run([sys.executable, "-c", code], text=True, check=False, **streams)
    assert (done.returncode, done.stderr) == (status, said)
