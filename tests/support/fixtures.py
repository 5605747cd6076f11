"""Subjects that all tests of the tools share, each made once a session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dipy.data import get_fnames
from support import launch, warm
from support.subjects import EVERYTHING, PATIENCE, Subject, neuro

#: Real data of a spinal cord, outside this repository.
SCT_DMRI = launch.REPOSITORY.parent / "shared" / "data" / "sct-dmri"

DATASETS = ("simulated", "small_64D", "small_101D", "sct_dmri")


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Subject:
    """A simulated head with its truth beside it, 24 x 28 x 20 voxels and 12 volumes, sigma 40."""
    out = tmp_path_factory.mktemp("simulated")
    size = ("--shape", "24x28x20", "--volumes", 12, "--sigma", 40, "--seed", 7)
    warm.run_tool("mpiimg-simulate", "neuro", *size, "--out", out, timeout=PATIENCE)
    return Subject(out / "dwi.nii.gz", out / "dwi.bval", out / "dwi.bvec")


@pytest.fixture(scope="session")
def small_64D() -> Subject:
    """Real data inside dipy: 10 x 10 x 10 voxels, 65 volumes, int16, uncompressed."""
    return Subject(*map(Path, get_fnames(name="small_64D")))


@pytest.fixture(scope="session")
def small_101D() -> Subject:
    """Real data inside dipy: 6 x 10 x 10 voxels, 102 volumes, uint16, compressed."""
    return Subject(*map(Path, get_fnames(name="small_101D")))


@pytest.fixture(scope="session")
def sct_dmri() -> Subject:
    """Real data of a spinal cord, oblique, 40 x 42 x 5 voxels, 7 volumes."""
    if not (SCT_DMRI / "dmri.nii.gz").exists():
        pytest.skip(f"NO REAL DATA: {SCT_DMRI} is not there, and nothing is tested on it")
    return Subject(SCT_DMRI / "dmri.nii.gz", SCT_DMRI / "bvals.txt", SCT_DMRI / "bvecs.txt")


@pytest.fixture(scope="session")
def results_of(request, tmp_path_factory):
    """Return what one process of mpiimg-neuro makes of a data set, all files that it can write: made once."""
    made = {}
    # The real ones are cut out of a body: the mask is that of dipy's function all the same.
    options = {"simulated": EVERYTHING}
    cut_out = (*EVERYTHING[:2], "--mask-method", "dipy")

    def results(name: str) -> Path:
        if name not in made:
            subject = request.getfixturevalue(name)
            made[name] = neuro(
                subject,
                tmp_path_factory.mktemp(f"results-{name}") / "out",
                *options.get(name, cut_out),
            )
        return made[name]

    return results


@pytest.fixture(params=DATASETS)
def dataset(request) -> tuple[Subject, Path]:
    """Every data set in turn, and what mpiimg-neuro made of it."""
    return request.getfixturevalue(request.param), request.getfixturevalue("results_of")(request.param)


@pytest.fixture(scope="session")
def alone(results_of) -> Path:
    """What one process of mpiimg-neuro, without a launcher, makes of the simulated subject."""
    return results_of("simulated")


@pytest.fixture(scope="session")
def zygotes():
    """What forks ranks, for this install and for the other where it is there."""
    return [warm.zygote(python) for python in filter(None, [sys.executable, launch.other_install()])]


@pytest.fixture
def small_disk(tmp_path_factory):
    """Return a function that makes a file system of a size; only root may mount one."""
    mounted = []

    def mount(size):
        folder = tmp_path_factory.mktemp("disk")
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("NO SMALL DISK: mounting one takes root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)
