"""Shared memory that killed ranks of MPICH have left on a node, in the way of the job that goes on there."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from mpiimg.engine.mpi.processes import process_stat


def segment_names(job: str, node: str) -> list[str]:
    """Return the names of the segments that MPICH makes on a node of a step, such as mpich_shm_f4999f4a_0.

    They follow from the step's name, 3877260.0, and so are those of the same job before it was requeued.

    Parameters
    ----------
    job : str
        Name of the step, as pmi2 tells it in PMI_JOBID.
    node : str
        Number of the node in it.
    """
    number = 2166136261
    for byte in job.encode():  # FNV-1a, of 32 bits
        number = (number ^ byte) * 16777619 & 0xFFFFFFFF
    return [f"mpich_{kind}_{number:x}_{node}" for kind in ("shm", "vci")]


def remove_stale_segments(
    environment=os.environ, folder: str = "/dev/shm", born: float | None = None
) -> None:
    """Remove what a killed run of this same step left; on every rank that srun started by pmi2, before MPI.

    MPICH takes a segment that is there for its own: it fails with "Out of memory" where that is too small,
    and otherwise finds in it the messages and the counters of ranks that are dead.

    Parameters
    ----------
    born : float, optional
        When SLURM began this step on this node, in seconds since 1970; by default as slurmstepd says. All
        ranks of the step start after that, so that what is older belongs to none of them.
    """
    if not {"SLURM_STEP_NUM_TASKS", "PMI_FD", "PMI_JOBID", "SLURM_NODEID"} <= environment.keys():
        return
    names = segment_names(environment["PMI_JOBID"], environment["SLURM_NODEID"])
    for path in (Path(folder, name) for name in names):
        with contextlib.suppress(OSError), open(path, "rb") as segment:
            # The ranks of a node come here in no order. One alone looks and removes at a time: another that
            # has opened the old one would remove the new one, of a rank whose MPI has started already.
            fcntl.flock(segment, fcntl.LOCK_EX)
            opened, named = os.fstat(segment.fileno()), os.stat(path)
            born = step_birth() if born is None else born
            if os.path.samestat(opened, named) and opened.st_uid == os.getuid() and opened.st_mtime < born:
                os.unlink(path)


def step_birth(process: int | None = None) -> float:
    """Return when the slurmstepd above this process was started, in seconds since 1970; 0 if none is seen."""
    process = os.getppid() if process is None else process
    while process > 1 and (stat := process_stat(process)) is not None:
        if stat.command.startswith("slurmstepd"):
            return stat.started
        process = stat.parent
    return 0.0
