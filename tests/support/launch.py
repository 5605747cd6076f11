"""Start tools and MPI runs from tests, as a user would: in processes of their own, under a time limit."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

#: Settings of MPI that a small, shared test machine needs; a name that an MPI does not know does no harm.
MPI_SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # More ranks than cores, which yield while they wait and are tied to no core: Open MPI 4, then 5.
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    # Containers forbid the single-copy path, and Open MPI would say so in every run.
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "OMPI_MCA_btl_base_warn_component_unused": "0",
}


def mpiexec(n: int, python: str = sys.executable) -> list[str]:
    """Return the command that starts `n` ranks with the MPI of the environment that `python` belongs to."""
    beside = pathlib.Path(python).with_name("mpiexec")
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        pytest.fail(f"no mpiexec beside {python} or on PATH: run make install")
    return [launcher, "-n", str(n)]


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment for a run under MPI, with `extra` on top."""
    return {**os.environ, **MPI_SETTINGS, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **extra}


def other_install() -> str | None:
    """Return the Python of the install that does not run these tests, or None if it is not there."""
    for name in (".venv", ".venv-mpi"):
        python = REPOSITORY / name / "bin" / "python"
        if python.exists() and (REPOSITORY / name) != pathlib.Path(sys.prefix):
            return str(python)
    return None


def run(command, *, timeout=60, check=True, env=None, cwd=None) -> subprocess.CompletedProcess:
    """Run `command` and return it with its text output, or fail the test with what it printed.

    Parameters
    ----------
    command : list of str or path
    timeout : float
        Seconds, after which the command and all that it started are killed.
    check : bool
        Fail the test if the exit code is not 0.
    env : dict, optional
        Variables on top of :func:`environment`.
    cwd : path, optional
    """
    command = [str(word) for word in command]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment(**(env or {})),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = kill_session(process)
        pytest.fail(f"no end within {timeout} s\n{_transcript(command, out, err)}")
    except BaseException:
        kill_session(process)
        raise
    if check and process.returncode != 0:
        pytest.fail(f"exit code {process.returncode}\n{_transcript(command, out, err)}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def tool_command(tool, *args, ranks=None, python=None) -> list[str]:
    """Return the command that runs ``bin/<tool>``, under ``mpiexec`` if `ranks` is given."""
    python = python or sys.executable
    launcher = [] if ranks is None else mpiexec(ranks, python)
    return [*launcher, python, str(REPOSITORY / "bin" / tool), *(str(arg) for arg in args)]


def run_tool(
    tool, *args, ranks=None, timeout=60, check=True, env=None, cwd=None, python=None
) -> subprocess.CompletedProcess:
    """Run ``bin/<tool> args`` and return it with its text output; see :func:`run`.

    Parameters
    ----------
    tool : str
        Such as ``mpiimg-fit``.
    *args
        Its arguments; paths and numbers are turned into text.
    ranks : int, optional
        Run it under ``mpiexec -n ranks``; without it, no launcher.
    python : str, optional
        The Python to run it with, as from :func:`other_install`; the one of the tests by default.
    """
    command = tool_command(tool, *args, ranks=ranks, python=python)
    return run(command, timeout=timeout, check=check, env=env, cwd=cwd)


def kill_session(process: subprocess.Popen) -> tuple[str, str]:
    """Kill a process started in a session of its own and all of that session; return what they printed.

    The session and not the process group: Open MPI puts each rank into a group of its own.
    """
    for pid in [process.pid, *_session_members(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return process.communicate(timeout=10)


def _session_members(session: int) -> list[int]:
    members = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (command) state parent group session ..., where the command may hold spaces
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                members.append(int(stat.parent.name))
    return members


def _transcript(command: list[str], out: str, err: str) -> str:
    return f"$ {' '.join(command)}\n--- stdout\n{out}\n--- stderr\n{err}"
