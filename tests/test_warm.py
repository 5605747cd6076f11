"""Warming compiles all that a run will call: no rank compiles after it."""

import pytest
from numba.core.dispatcher import Dispatcher

from mpiimg import cli
from mpiimg.kernels import median, nlmeans, otsu, tensor, vmath, warm


def signatures():
    """Return how many types each kernel is compiled for."""
    return {
        f"{module.__name__}.{name}": len(kernel.signatures)
        for module in (median, nlmeans, otsu, tensor, vmath)
        for name, kernel in vars(module).items()
        if isinstance(kernel, Dispatcher)
    }


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Simulate a head with more voxels a line than a tile of the median filter has."""
    folder = tmp_path_factory.mktemp("head")
    arguments = ["neuro", "--shape", "56x52x8", "--volumes", "8", "--out", str(folder), "--quiet"]
    assert cli.main("mpiimg-simulate", arguments) == 0
    return folder


def test_a_run_compiles_nothing_after_warming(head, tmp_path):
    warm.compile_all()
    before = signatures()
    assert sum(before.values()) >= 10
    gradients = [
        str(head / "dwi.nii.gz"),
        "--bvals",
        str(head / "dwi.bval"),
        "--bvecs",
        str(head / "dwi.bvec"),
    ]
    arguments = [*gradients, "--out", str(tmp_path), "--fit-residual", "--quiet"]
    assert cli.main("mpiimg-neuro", arguments) == 0
    mask = str(tmp_path / "dwi_desc-brain_mask.nii.gz")
    arguments = [*gradients, "--mask", mask, "--out", str(tmp_path / "ols"), "--method", "ols", "--quiet"]
    assert cli.main("mpiimg-fit", arguments) == 0
    assert signatures() == before
