"""What MPI says of itself, and how fast ranks reach each other: for mpiimg-doctor."""

from __future__ import annotations

import os
import re
import statistics
import time

import numpy as np

#: Bytes of the messages by which the rate is measured, and how many are sent.
MESSAGE, ROUNDS = 8 << 20, 5

#: Small messages by which the latency is measured.
PINGS = 50


def library() -> str:
    """Return name and version of the MPI library."""
    from mpi4py import MPI

    text = MPI.Get_library_version()
    version = re.search(r"MPICH Version:\s*(\S+)", text)
    if version:
        device = re.search(r"MPICH Device:\s*(\S+)", text)
        return f"MPICH {version[1]}" + (f", device {device[1]}" if device else "")
    return text.split("\n")[0].split(",")[0].strip(" \0")


def thread_level() -> str:
    """Return the level of thread support that MPI was started with."""
    from mpi4py import MPI

    names = ("single", "funneled", "serialized", "multiple")
    levels = (MPI.THREAD_SINGLE, MPI.THREAD_FUNNELED, MPI.THREAD_SERIALIZED, MPI.THREAD_MULTIPLE)
    return names[levels.index(MPI.Query_thread())]


def launcher(environment=os.environ) -> str:
    """Return what started this process, as its environment tells."""
    if "PMIX_NAMESPACE" in environment and "SLURM_STEP_ID" in environment:
        return "srun --mpi=pmix"
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return "mpirun of Open MPI"
    if "HYDI_CONTROL_FD" in environment or "HYDRA_PMI_ID" in environment or "PMI_PORT" in environment:
        return "mpiexec of MPICH (hydra)"
    if "PMI_RANK" in environment:
        return "srun --mpi=pmi2" if "SLURM_STEP_ID" in environment else "mpiexec of MPICH (hydra)"
    if "SLURM_STEP_NUM_TASKS" in environment:
        return "srun"
    return "none: one rank"


def transport(environment=os.environ) -> str:
    """Return the settings that choose how messages travel, or "" where MPI chooses."""
    names = (
        "FI_PROVIDER",
        "UCX_TLS",
        "UCX_NET_DEVICES",
        "OMPI_MCA_btl",
        "OMPI_MCA_pml",
        "MPIR_CVAR_CH4_NETMOD",
    )
    return " ".join(f"{name}={environment[name]}" for name in names if name in environment)


def partner(rank: int, size: int) -> int | None:
    """Return the rank, half of all away, that `rank` exchanges with; None for an odd one left over."""
    half = size // 2
    other = rank + half if rank < half else rank - half
    return other if rank < 2 * half else None


def exchange_rates(comm) -> tuple[float, float, int] | None:
    """Exchange messages with a partner, all pairs at once. Collective.

    Returns
    -------
    (float, float, int) or None
        Seconds that a small message takes, bytes per second each way, and the partner; None without one.
    """
    other = partner(comm.rank, comm.size)
    small, large = np.zeros(1, np.uint8), np.zeros(MESSAGE, np.uint8)
    received = {count: np.empty(count, np.uint8) for count in (small.nbytes, large.nbytes)}

    def once(message) -> float:
        started = time.perf_counter()
        comm.Sendrecv(message, other, recvbuf=received[message.nbytes], source=other)
        return time.perf_counter() - started

    # All begin together: a pair alone on the fabric would look faster than a job is.
    comm.Barrier()
    if other is None:
        return None
    once(large)
    latency = statistics.median(once(small) for _ in range(PINGS))
    seconds = statistics.median(once(large) for _ in range(ROUNDS))
    return latency, MESSAGE / seconds, other
