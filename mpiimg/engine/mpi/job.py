"""What the environment says of the job and the user: the one place that reads it, beside the MPI start."""

from __future__ import annotations

import functools
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from mpiimg.engine.mpi.processes import process_stat

#: What launchers call the variables by which a process knows that it is a rank, or a step of a job.
OF_RANKS = (
    *("PMI", "OMPI_", "PRTE_", "SLURM_", "MPI_LOCAL", "HYDRA_", "HYDI_"),
    *("I_MPI_", "MV2_COMM_", "MVP_COMM_", "PALS_", "ALPS_", "FLUX_"),
)

#: Environment variables by which launchers tell a process its rank, before MPI is initialised.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


def launched_rank() -> int:
    """Return this process's rank as its launcher says, without starting MPI; 0 where nothing launched it."""
    for name in RANK_VARIABLES:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


#: The environment variable with the word that tells a run from all others, where a script gives it one.
RUN_VARIABLE = "MPIIMG_RUN"


def run_word() -> str:
    """Return the word that a batch script has given to this run; empty where none has."""
    return os.environ.get(RUN_VARIABLE, "")


def launched_size() -> int:
    """Return how many ranks a launcher of MPI has started, without starting MPI; 1 where none has."""
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
    if "PMIX_RANK" in os.environ:
        names.append("SLURM_STEP_NUM_TASKS")
    sizes = (os.environ.get(name, "") for name in names)
    return next((int(size) for size in sizes if size.isdecimal()), 1)


def is_child_of_rank() -> bool:
    """Say whether a rank, or another program in Python that a launcher started, has started this process.

    Such a process has the variables of a rank, and is none.
    """
    name = next((name for name in RANK_VARIABLES if name in os.environ), None)
    if name is None:
        return False
    rank, process = f"{name}={os.environ[name]}".encode(), os.getppid()
    while process > 1 and (stat := process_stat(process)) is not None:
        try:
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            return False  # of another user, as launchers may be
        if rank not in environment:
            return False
        if "python" in os.path.basename(os.path.realpath(f"/proc/{process}/exe")):
            return True
        process = stat.parent
    return False


#: SLURM's numbers of a job, its step, its restarts and its place in an array, and the name of its cluster.
FACTS = ("job_id", "step_id", "restart_count", "cluster_name", "array_task_id")

#: Seconds for which an answer of SLURM is taken for the present: thousands of scans ask of a few jobs.
ANSWER_AGE = 10.0

#: States of a job in which its processes may be there; not that of one that waits in the queue again.
WITH_PROCESSES = "running,completing,suspended,stopped,signaling,stage_out"


def slurm_facts() -> dict[str, str | None]:
    """Return what SLURM tells of this job, by the names in FACTS; None where SLURM did not start it."""
    return {name: os.environ.get(f"SLURM_{name.upper()}") for name in FACTS}


def remembered(seconds: float) -> Callable:
    """Let a function be asked anew for the same once its last answer is so many seconds old."""

    def decorate(function: Callable) -> Callable:
        answers = {}

        @functools.wraps(function)
        def ask(*arguments):
            now = time.monotonic()
            if arguments not in answers or now - answers[arguments][0] > seconds:
                answers[arguments] = now, function(*arguments)
            return answers[arguments][1]

        ask.cache_clear = answers.clear
        return ask

    return decorate


@remembered(ANSWER_AGE)
def slurm_running(job: str, steps: bool) -> frozenset[str] | None:
    """Ask SLURM what runs of a job: its steps, or the job itself; None if it does not answer.

    Python starts it by vfork, which copies nothing of a process that has MPI's memory.
    """
    form = ["-s", "-o", "%i"] if steps else ["-o", "%A", "-t", WITH_PROCESSES]
    command = ["squeue", "--noheader", "-j", job, *form]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode:
        return frozenset() if "Invalid job id" in answer.stderr else None
    return frozenset(answer.stdout.split())


def cache_folder() -> Path:
    """Return the user's folder for what mpiimg keeps between runs.

    Raises
    ------
    FileNotFoundError
        The user has no home.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        raise FileNotFoundError("neither XDG_CACHE_HOME nor HOME names a folder")
    return Path(home) / "mpiimg"


def environment_of_no_rank(package: Path) -> dict[str, str]:
    """Return an environment in which a process is no rank, and finds `package` and the same cache.

    Parameters
    ----------
    package : Path
        The folder that our package lies in.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}
    others = os.environ.get("PYTHONPATH")
    return clean | {"PYTHONPATH": f"{package}{os.pathsep}{others}" if others else str(package)}


def pages_wanted() -> bool:
    """Return whether runs write a page about their results: not where MPIIMG_REPORT says off."""
    return os.environ.get("MPIIMG_REPORT", "").lower() not in ("0", "off", "no", "false")
