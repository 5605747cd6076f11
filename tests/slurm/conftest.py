"""A cluster for the session, subjects and surveys to run on it, and what one process makes of them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support import launch, sabotage, warm
from support.astro_data import TRACT, observe
from support.cluster import SYSTEM_PATH, Cluster
from support.subjects import PATIENCE, Subject

from mpiimg.simulate.astro import SimulatedSurvey

#: Seconds that a job may take on a loaded machine.
SOON = 240

INSTALLS = [name for name in (".venv", ".venv-mpi") if (launch.REPOSITORY / name / "bin/python").exists()]


def settings(install: str) -> dict[str, str]:
    """Return what a job of this install finds in its environment."""
    return {
        "MPIIMG_VENV": str(launch.REPOSITORY / install),
        # The kernels that make install compiled, and not the first node's to compile anew.
        "NUMBA_CACHE_DIR": "",
        # "Nodes" that share a host do not share the memory that Open MPI would use between its ranks.
        **launch.MPI_SETTINGS,
        "OMPI_MCA_btl": "self,tcp",
    }


class Jobs:
    """Batch jobs on a cluster, run from the checkout as a user would."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder

    def submit(self, script: str, *words, install=".venv", options=(), env=None) -> str:
        """Submit a script of slurm/ and return the number of the job."""
        said = self.cluster.run(
            *("sbatch", "--parsable", "--ntasks=2", "--chdir", launch.REPOSITORY),
            *("--output", self.folder / "%j.log", *options, launch.REPOSITORY / "slurm" / script, *words),
            MPIIMG_HOME=str(launch.REPOSITORY),
            **{**settings(install), **(env or {})},
        )
        return said.stdout.strip()

    def log(self, number: str) -> str:
        path = self.folder / f"{number}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, number: str, condition, what: str, seconds: float = SOON) -> dict[str, str]:
        """Wait until `condition` holds of what SLURM says of a job, and return that."""
        self.until(lambda: condition(self.cluster.job(number)), number, what, seconds, pause=0.5)
        return self.cluster.job(number)

    def until(self, condition, number: str, what: str, seconds: float = SOON, pause: float = 0.05) -> None:
        """Wait until `condition()` holds, which a job brings about."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                job = self.cluster.job(number)
                pytest.fail(f"job {number}: not {what} in {seconds} s: {job}\n{self.log(number)}")
            time.sleep(pause)

    def end(self, number: str, state: str = "COMPLETED") -> dict[str, str]:
        """Wait until a job has ended, in `state`, and return what SLURM says of it."""
        running = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        job = self.wait(number, lambda job: job["JobState"] not in running, "over")
        assert job["JobState"] == state, self.log(number)
        return job


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Three nodes of two CPUs each."""
    lacking = [
        name for name in ("munged", "slurmctld", "slurmd", "srun") if not shutil.which(name, path=SYSTEM_PATH)
    ]
    if lacking or os.getuid() != 0:
        pytest.skip(f"NO SLURM: it takes root and {', '.join(lacking) or 'all its daemons'}")
    made = Cluster(tmp_path_factory.mktemp("slurm"), 3, 2)
    # An interrupted run ends as a failed one does: with what this fixture does last.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def jobs(cluster, tmp_path) -> Jobs:
    return Jobs(cluster, tmp_path)


@pytest.fixture(scope="session")
def head(tmp_path_factory) -> Subject:
    """A simulated head, 12 x 14 x 16 voxels and 8 volumes."""
    out = tmp_path_factory.mktemp("head")
    size = ("--shape", "12x14x16", "--volumes", 8)
    warm.run_tool("mpiimg-simulate", "neuro", *size, "--out", out, timeout=PATIENCE)
    return Subject(out / "dwi.nii.gz", out / "dwi.bval", out / "dwi.bvec")


@pytest.fixture(scope="session")
def maps(head, tmp_path_factory) -> Path:
    """What one process of mpiimg-neuro makes of it."""
    out = tmp_path_factory.mktemp("maps") / "out"
    warm.run_tool("mpiimg-neuro", *head.arguments, "--out", out, timeout=PATIENCE)
    return out


@pytest.fixture(scope="session")
def exposures(tmp_path_factory) -> list[Path]:
    """Two simulated exposures of one field."""
    return observe(
        tmp_path_factory.mktemp("sky") / "night", SimulatedSurvey(2, 1, (300, 320), seed=3)
    ).exposures


@pytest.fixture(scope="session")
def coadds(exposures, tmp_path_factory) -> Path:
    """What one process of mpiimg-astro makes of them."""
    out = tmp_path_factory.mktemp("coadds") / "out"
    warm.run_tool("mpiimg-astro", *exposures, "--out", out, *TRACT, timeout=PATIENCE)
    return out


class Brake:
    """Holds a run in its first chunks of denoising, until it is let go.

    Parameters
    ----------
    folder : for its files, made
    """

    def __init__(self, folder: Path):
        self.folder, self.on = folder, folder / "on"
        body = f"""
            import pathlib, signal, time
            folder = pathlib.Path({str(folder)!r})
            if not (folder / f"reached-{{rank}}").exists():
                def tell(number, frame, handler):
                    handler(number, frame)
                    (folder / f"told-{{rank}}").touch()
                for number in (signal.SIGUSR1, signal.SIGTERM):
                    handler = signal.getsignal(number)
                    signal.signal(number, lambda n, frame, handler=handler: tell(n, frame, handler))
                (folder / f"reached-{{rank}}").touch()
            while (folder / "on").exists():
                time.sleep(0.05)
        """
        self.environment = sabotage.environment(sabotage.install(folder, body))
        self.put_on()

    def put_on(self) -> None:
        for path in (*self.folder.glob("reached-*"), *self.folder.glob("told-*")):
            path.unlink()
        self.on.touch()

    def wait(self, jobs: Jobs, number: str, what: str, ranks: int = 2) -> None:
        """Wait until all ranks have "reached" it, or were "told" by a signal to stop."""
        jobs.until(lambda: len(list(self.folder.glob(f"{what}-*"))) == ranks, number, what)

    def release(self) -> None:
        self.on.unlink()


@pytest.fixture
def brake(tmp_path) -> Brake:
    return Brake(tmp_path / "brake")
