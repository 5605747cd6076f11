"""Against the truth of simulated heads. How far the methods themselves are off is told in docs/truth.md."""

from __future__ import annotations

import importlib.util

import nibabel
import numpy as np
import pytest
from dipy.reconst.dti import design_matrix
from dipy.segment.mask import median_otsu
from support import launch, warm
from support.subjects import PATIENCE, Subject, read, tool

pytestmark = pytest.mark.tool


@pytest.fixture(scope="module")
def truth():
    """The script that measures, from benchmarks/."""
    path = launch.REPOSITORY / "benchmarks" / "truth.py"
    spec = importlib.util.spec_from_file_location("truth", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def noisy(truth, tmp_path_factory):
    """A head of 48 x 56 x 40 voxels and 20 volumes at sigma 120, processed, and what was measured of it."""
    folder = tmp_path_factory.mktemp("noisy")
    truth.make(folder, "48x56x40", 20, 120)
    return folder, truth.measure(folder)


def of_truth(folder, what) -> np.ndarray:
    return np.asarray(nibabel.load(folder / f"dwi_desc-truth_{what}.nii.gz").get_fdata())


def simulate(folder, *words) -> Subject:
    warm.run_tool("mpiimg-simulate", "neuro", *words, "--out", folder, timeout=PATIENCE)
    return Subject(folder / "dwi.nii.gz", folder / "dwi.bval", folder / "dwi.bvec")


def assert_mask_overlaps_as_dipys(subject, folder, truth):
    """Assert the Dice of dipy's own mask, from the same mean b0, to the last digit."""
    b0 = np.flatnonzero(subject.gradients().b0s_mask)
    mean = subject.data[..., b0].mean(axis=-1).astype(np.float32)
    _, theirs = median_otsu(mean, median_radius=4, numpass=4)
    brain = of_truth(subject.dwi.parent, "mask") != 0
    ours = read(folder, "mask") != 0
    assert truth.dice(ours, brain) == truth.dice(theirs, brain)
    return truth.dice(ours, brain)


def test_mask_is_as_near_the_brain_as_dipys(simulated, truth, tmp_path):
    out = tool("mpiimg-mask", simulated, tmp_path / "out", "--mask-method", "dipy", ranks=2)
    assert_mask_overlaps_as_dipys(simulated, out, truth)


@pytest.mark.long
def test_mask_of_a_larger_head_is_as_near_the_brain_as_dipys(noisy, truth):
    folder, found = noisy
    subject = Subject(folder / "dwi.nii.gz", folder / "dwi.bval", folder / "dwi.bvec")
    assert assert_mask_overlaps_as_dipys(subject, folder / "denoised", truth) == found["dice"]


def test_without_noise_the_fit_is_the_truth_but_for_rounding(tmp_path):
    """Voxels are rounded to whole numbers, so that each logarithm is off by at most 0.5 / (S - 0.5).

    The rows of the pseudo-inverse carry that into the tensor as at most `off`. FA, sqrt(3/2) times the norm
    of the deviatoric over the norm of the tensor, then moves by at most 2 sqrt(3/2) |off| / (|D| - |off|).
    """
    subject = simulate(tmp_path / "in", "--shape", "20x24x16", "--volumes", 20, "--sigma", 0)
    inside = of_truth(tmp_path / "in", "mask") != 0
    mask = tmp_path / "in" / "dwi_desc-truth_mask.nii.gz"
    out = tool("mpiimg-fit", subject, tmp_path / "out", "--mask", mask, "--method", "ols")

    signal = subject.data[inside]
    inverse = np.abs(np.linalg.pinv(design_matrix(subject.gradients())))[:6]
    off = (0.5 / (signal - 0.5)) @ inverse.T
    tensor = of_truth(tmp_path / "in", "tensor")[inside]
    # float32 of the tensors, theirs and ours, on top.
    error = np.abs(read(out, "tensor")[inside] - tensor)
    assert (error <= off + 3e-7 * np.abs(tensor).max(axis=1, keepdims=True)).all()

    size, moved = norm(tensor), norm(off)
    limit = 2 * np.sqrt(1.5) * moved / (size - moved) + 1e-6
    fa = of_truth(tmp_path / "in", "fa")[inside]
    assert (np.abs(read(out, "fa")[inside] - fa) <= limit).all()
    assert np.median(limit) < 0.02
    assert fa.max() > 0.7


def norm(tensors) -> np.ndarray:
    """Return the Frobenius norm of tensors (n, 6): xx, xy, yy, xz, yz, zz."""
    return np.sqrt((tensors**2 * [1, 2, 1, 2, 2, 1]).sum(axis=1))


def test_noise_level_is_found(noisy):
    """PIESNO on a slice of 48 x 56 voxels and 20 volumes; the median over slices."""
    assert noisy[1]["sigma"] == pytest.approx(120, rel=0.05)


def test_denoising_brings_signals_and_directions_nearer_the_truth(noisy):
    """In white matter, every volume and the fibres; FA is another matter: docs/truth.md."""
    folder, found = noisy
    white = (of_truth(folder, "tissue") == 1) & (read(folder / "denoised", "mask") != 0)
    expected = noise_free(folder)[white]
    raw = np.asarray(nibabel.load(folder / "dwi.nii.gz").dataobj)[white]
    denoised = read(folder / "denoised", "denoised")[white]
    before, after = (np.sqrt(((image - expected) ** 2).mean(axis=0)) for image in (raw, denoised))
    assert (after < before).all()
    assert found["angle"]["denoised"] < found["angle"]["raw"]


def noise_free(folder) -> np.ndarray:
    """Return the signals (x, y, z, volume) before noise, from tensors and S0."""
    bvals, g = np.loadtxt(folder / "dwi.bval"), np.loadtxt(folder / "dwi.bvec")
    products = np.stack(
        [g[0] * g[0], 2 * g[0] * g[1], g[1] * g[1], 2 * g[0] * g[2], 2 * g[1] * g[2], g[2] * g[2]]
    )
    return of_truth(folder, "s0")[..., None] * np.exp(-bvals * (of_truth(folder, "tensor") @ products))


def test_tables_can_be_printed(noisy, truth):
    rows = truth.tables({(20, 120): noisy[1]}).splitlines()
    assert rows[2].startswith("| 20 | 120 | 12")
    assert sum("white matter" in row for row in rows) == 1
    assert rows[-1].startswith("| 20 | 120 | 1000 | ")
