"""Nodes: which ranks share one, what its memory gives each of them, and work done once on each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from mpiimg.engine.mpi.agreement import failure
from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.processes import RankProcess, cgroup_names
from mpiimg.engine.mpi.waiting import soft_barrier
from mpiimg.errors import WORK_ERRORS


def _ranks_of_this_node(comm):
    """Return a communicator of the ranks that share this rank's node; to be freed. Collective."""
    from mpi4py import MPI

    soft_barrier(comm)
    return comm.Split_type(MPI.COMM_TYPE_SHARED)


def processes_of_node(comm) -> list[RankProcess]:
    """Return the processes of the other ranks on this node. Collective."""
    node = _ranks_of_this_node(comm)
    processes = node.allgather(RankProcess.own(comm.rank))
    node.Free()
    return [process for process in processes if process.rank != comm.rank]


def once_per_node(
    comm, function: Callable[[], None], where: str, meanwhile: Callable[[], object] | None = None
) -> None:
    """Call `function` on one rank of each node, while the others sleep. Collective.

    Parameters
    ----------
    comm : communicator
    function : callable
    where : str
        For reports.
    meanwhile : callable, optional
        Called by ranks that wait, again and again.

    Raises
    ------
    RunFailed
        It raised on some node.
    """
    node = _ranks_of_this_node(comm)
    failed = None
    watchdog = lifetime().watchdog
    if node.rank == 0:
        watchdog(where)
        try:
            function()
        except WORK_ERRORS as error:
            failed = failure(comm, where, error)
    watchdog(f"{where}, on one rank of each node", waits=True)
    soft_barrier(comm, meanwhile)
    node.Free()
    failures = list(filter(None, comm.allgather(failed)))
    if failures:
        raise failures[0]


def node_count(comm) -> int:
    """Return how many nodes the ranks of `comm` are on. Collective."""
    node = _ranks_of_this_node(comm)
    count = comm.allreduce(int(node.rank == 0))
    node.Free()
    return count


def memory_per_rank(comm, ranks_per_node: int | None = None) -> int:
    """Return the bytes that a rank may use: its share of what SLURM, a cgroup or the node gives. Collective.

    Parameters
    ----------
    comm : communicator
        Of the ranks.
    ranks_per_node : int, optional
        How many ranks share a node; by default those of `comm` that do.
    """
    from mpi4py import MPI

    node = _ranks_of_this_node(comm)
    share = _node_memory() * 9 // 10 // (ranks_per_node or node.size)
    node.Free()
    return comm.allreduce(share, MPI.MIN)


def share_of_node() -> int:
    """Return the bytes that this rank may use, as far as it knows which other ranks are on its node."""
    return _node_memory() * 9 // 10 // (1 + len(lifetime().watchdog.reporter.processes))


def _node_memory(environment=os.environ, cgroups: str = "/proc/self/cgroup") -> int:
    """Return the bytes that this job may use on this node: the least of what node, SLURM and cgroups give."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    per_node, per_cpu, cpus = (
        int(value) if (value := environment.get(name, "")).isdigit() else 0
        for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE")
    )
    # SLURM counts in MiB; 0 means all of the node.
    limits += [share << 20 for share in (per_node, per_cpu * cpus) if share]
    for path in _cgroup_limits(cgroups):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)


def _cgroup_limits(cgroups: str) -> list[Path]:
    """Return the files that may limit the memory of this process: version 2 up to its root, and version 1."""
    root = Path("/sys/fs/cgroup")
    files = [root / "memory" / "memory.limit_in_bytes"]
    for name in cgroup_names(cgroups):
        own = root / name.lstrip("/")
        files += [folder / "memory.max" for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return files
