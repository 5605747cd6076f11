"""Warming compiles all that a run will call: no rank compiles after it."""

import pytest
from numba.core.dispatcher import Dispatcher

from mpiimg import cli
from mpiimg.kernels import coadd, cosmics, median, nlmeans, otsu, tensor, vmath, warm, warp


def signatures():
    """Return how many types each kernel is compiled for."""
    return {
        f"{module.__name__}.{name}": len(kernel.signatures)
        for module in (median, nlmeans, otsu, tensor, vmath, cosmics, warp, coadd)
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


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Simulate two exposures of one field."""
    folder = tmp_path_factory.mktemp("sky")
    arguments = ["astro", "--visits", "2", "--sensors", "1", "--shape", "200x220", "--out", str(folder)]
    assert cli.main("mpiimg-simulate", [*arguments, "--quiet"]) == 0
    return sorted(map(str, folder.glob("*.fits")))


def test_a_survey_compiles_nothing_after_warming(sky, tmp_path):
    warm.compile_all()
    before = signatures()
    assert min(before["mpiimg.kernels.cosmics._repair"], before["mpiimg.kernels.cosmics._gather"]) > 0
    tract = ["--patch", "300", "--border", "20", "--quiet"]
    for weights in ("exposure", "pixel"):
        arguments = [*sky, "--out", str(tmp_path / weights), *tract, "--weights", weights]
        assert cli.main("mpiimg-astro", arguments) == 0
    calibrated = tmp_path / "calibrated"
    assert cli.main("mpiimg-calibrate", [*sky, "--out", str(calibrated), "--quiet"]) == 0
    exposures = sorted(map(str, calibrated.glob("*.fits")))
    assert cli.main("mpiimg-warp", [*exposures, "--out", str(tmp_path / "warps"), *tract]) == 0
    out = ["--out", str(tmp_path / "patches"), "--quiet"]
    assert cli.main("mpiimg-coadd", [str(tmp_path / "warps"), *out]) == 0
    assert signatures() == before


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
