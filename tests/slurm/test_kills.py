"""The campaign of kills under srun: each life is a job on two nodes, of one install or the other."""

from __future__ import annotations

import pytest
from campaigns.pipelines import PIPELINES
from slurm.conftest import INSTALLS, settings
from slurm.test_cluster import MPI
from support import launch, warm
from support.killing import Launcher, Lives

pytestmark = pytest.mark.slurm


@pytest.fixture
def sruns(cluster) -> list[Launcher]:
    """What starts ranks of each install on the cluster."""
    return [
        Launcher(
            "srun",
            warm.zygote(str(launch.REPOSITORY / install / "bin" / "python")),
            (2, 3),
            lambda ranks, install=install: ["srun", "-N2", f"-n{ranks}", f"--mpi={MPI[install]}"],
            {**cluster.environment, **settings(install), "SLURM_KILL_BAD_EXIT": "1"},
        )
        for install in INSTALLS
    ]


@pytest.mark.parametrize(
    ("kills", "seed"), [(1, 5), pytest.param(10, 6, marks=pytest.mark.long)], ids=["few", "many"]
)
@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_survive_under_srun(name, kills, seed, sruns, tmp_path, capsys):
    (tmp_path / "lives").mkdir()
    figures = Lives(PIPELINES[name](tmp_path), sruns, tmp_path / "lives", seed).until(kills)
    with capsys.disabled():
        print(f"\nseed {seed}, {figures}")
