"""What the environment says of the job and the user: the one place that reads it, beside the MPI start."""

from __future__ import annotations

import os
from pathlib import Path

#: What launchers call the variables by which a process knows that it is a rank, or a step of a job.
OF_RANKS = ("PMI", "OMPI_", "PRTE_", "SLURM_", "MPI_LOCAL", "HYDRA_", "HYDI_")

#: Environment variables by which launchers tell a process its rank, before MPI is initialised.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


def launched_rank() -> int:
    """Return this process's rank as its launcher says, without starting MPI; 0 where nothing launched it."""
    for name in RANK_VARIABLES:
        if name in os.environ:
            return int(os.environ[name])
    return 0


def slurm_facts() -> dict[str, str | None]:
    """Return SLURM's numbers of this job, its step and its restarts; None where SLURM did not start it."""
    return {name: os.environ.get(f"SLURM_{name.upper()}") for name in ("job_id", "step_id", "restart_count")}


def cache_folder() -> Path:
    """Return the user's folder for what mpiimg keeps between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpiimg"


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
