"""Directions on oblique images, against the truth and MRtrix3; and images that other programs accept."""

from __future__ import annotations

import subprocess

import nibabel
import numpy as np
import pytest
from support import launch
from support.subjects import digests, path, read, tool, write_subject

pytestmark = pytest.mark.tool

SHAPE = (4, 5, 3)

#: Diffusivities along and across the fibres, mm^2/s.
ALONG, ACROSS = 1.7e-3, 0.3e-3

#: Where each order of tensor elements finds them in the matrix.
ORDERS = {
    "dipy": [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)],
    "fsl": [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)],
    "mrtrix": [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)],
}


def rotation(*degrees) -> np.ndarray:
    """Return a rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, j, i, j], [i, j, j, i]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


class Oblique:
    """A fibre of its own in each voxel of an oblique image, drawn in scanner axes.

    Parameters
    ----------
    sign : of the determinant of the affine
    noise : standard deviation, of a signal of 1000
    """

    def __init__(self, folder, sign, noise=0.0):
        rng = np.random.default_rng(11)
        self.axes = rotation(20, -35, 25) @ np.diag([sign, 1.0, 1.0])
        affine = np.eye(4)
        affine[:3, :3] = self.axes * [2.0, 2.5, 3.0]
        affine[:3, 3] = [-11, 7, 23]
        assert np.sign(np.linalg.det(affine)) == sign
        #: From the frame of FSL's bvecs to the scanner's.
        self.to_scanner = self.axes @ np.diag([-sign, 1.0, 1.0])

        directions = rng.normal(size=(24, 3))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        directions[:2] = 0
        bvals = np.where(np.arange(24) < 2, 0.0, 1000.0)
        self.fibres = rng.normal(size=(*SHAPE, 3))
        self.fibres /= np.linalg.norm(self.fibres, axis=-1)[..., None]
        outer = self.fibres[..., :, None] * self.fibres[..., None, :]
        self.tensors = ACROSS * np.eye(3) + (ALONG - ACROSS) * outer
        along = np.einsum("vi,xyzij,vj->xyzv", directions, self.tensors, directions)
        signal = 1000 * np.exp(-bvals * along) + rng.normal(0, noise or 1e-12, (*SHAPE, 24))
        bvecs = directions @ self.to_scanner
        self.subject = write_subject(folder, signal.astype(np.float32), affine, bvals, bvecs)
        self.mask = folder / "mask.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), affine), self.mask)

    def fit(self, out, *options):
        return tool("mpiimg-fit", self.subject, out, "--mask", self.mask, *options)


@pytest.fixture(scope="module", params=[1, -1], ids=["positive", "negative"])
def oblique(request, tmp_path_factory):
    return Oblique(tmp_path_factory.mktemp("oblique") / "in", request.param)


@pytest.fixture(scope="module")
def fitted(oblique, tmp_path_factory):
    """What mpiimg-fit makes of it in each frame, with another order of elements in each."""
    folder = tmp_path_factory.mktemp("fitted")
    return {
        "bvec": oblique.fit(folder / "bvec"),
        "scanner": oblique.fit(folder / "scanner", "--frame", "scanner", "--tensor-order", "mrtrix"),
    }


def assert_parallel(vectors, expected, tolerance):
    """Assert that (..., 3) unit vectors agree but for their signs."""
    sign = np.sign((vectors * expected).sum(axis=-1))[..., None]
    np.testing.assert_allclose(vectors * sign, expected, atol=tolerance)


def elements(tensors, order) -> np.ndarray:
    """Return the six elements of (..., 3, 3) tensors."""
    return np.stack([tensors[..., i, j] for i, j in ORDERS[order]], axis=-1)


def test_v1_is_the_fibre_in_either_frame(oblique, fitted):
    assert_parallel(read(fitted["scanner"], "v1"), oblique.fibres, 1e-5)
    assert_parallel(read(fitted["bvec"], "v1"), oblique.fibres @ oblique.to_scanner, 1e-5)


def test_tensor_is_the_fibres_in_either_frame(oblique, fitted):
    expected = elements(oblique.tensors, "mrtrix")
    np.testing.assert_allclose(read(fitted["scanner"], "tensor"), expected, atol=1e-6 * ALONG)
    turned = oblique.to_scanner.T @ oblique.tensors @ oblique.to_scanner
    np.testing.assert_allclose(read(fitted["bvec"], "tensor"), elements(turned, "dipy"), atol=1e-6 * ALONG)


def test_order_of_fsl(oblique, fitted, tmp_path):
    out = oblique.fit(tmp_path / "out", "--tensor-order", "fsl")
    dipys = dict(zip(ORDERS["dipy"], np.moveaxis(read(fitted["bvec"], "tensor"), -1, 0), strict=True))
    expected = np.stack([dipys[place] for place in ORDERS["fsl"]], axis=-1)
    np.testing.assert_array_equal(read(out, "tensor"), expected)


def test_colours_are_of_scanner_axes_in_either_frame(oblique, fitted):
    fa = read(fitted["bvec"], "fa")
    spread = np.sqrt(3 / 2 * (1 - (ALONG + 2 * ACROSS) ** 2 / (3 * (ALONG**2 + 2 * ACROSS**2))))
    np.testing.assert_allclose(fa, spread, atol=1e-6)
    np.testing.assert_allclose(read(fitted["bvec"], "rgb"), fa[..., None] * abs(oblique.fibres), atol=1e-5)
    assert path(fitted["bvec"], "rgb").read_bytes() == path(fitted["scanner"], "rgb").read_bytes()


def test_numbers_do_not_depend_on_the_frame(fitted):
    bvec, scanner = (digests(fitted[frame]) for frame in ("bvec", "scanner"))
    different = {name for name in bvec if bvec[name] != scanner[name]}
    assert {name.split("param-")[1] for name in different if "gz" in name} == {
        "tensor_dwimap.nii.gz",
        "v1_dwimap.nii.gz",
    }


def mrtrix(command, *words):
    """Run a program of MRtrix3 and return what it prints."""
    done = subprocess.run(
        [command, "-quiet", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def mrtrix_maps(oblique, folder, *options) -> dict[str, np.ndarray]:
    """Return tensor, FA, v1 and colours of MRtrix3, checked to be in the voxels of the input."""
    subject = oblique.subject
    files = {name: folder / f"{name}.nii.gz" for name in ("tensor", "fa", "v1", "rgb")}
    mrtrix("dwi2tensor", "-fslgrad", subject.bvecs, subject.bvals, *options, subject.dwi, files["tensor"])
    mrtrix("tensor2metric", files["tensor"], "-fa", files["fa"])
    mrtrix("tensor2metric", files["tensor"], "-vector", files["v1"], "-modulate", "none")
    mrtrix("tensor2metric", files["tensor"], "-vector", files["rgb"], "-modulate", "fa")
    images = {name: nibabel.load(file) for name, file in files.items()}
    for image in images.values():
        np.testing.assert_allclose(image.affine, subject.affine, atol=1e-4)
    return {name: np.asarray(image.get_fdata()) for name, image in images.items()}


@pytest.mark.needs_mrtrix
def test_mrtrix_agrees(oblique, fitted, tmp_path):
    theirs = mrtrix_maps(oblique, tmp_path)
    np.testing.assert_allclose(read(fitted["scanner"], "tensor"), theirs["tensor"], atol=1e-5 * ALONG)
    np.testing.assert_allclose(read(fitted["scanner"], "fa"), theirs["fa"], atol=1e-5)
    assert_parallel(read(fitted["scanner"], "v1"), theirs["v1"], 1e-5)
    np.testing.assert_allclose(read(fitted["bvec"], "rgb"), abs(theirs["rgb"]), atol=1e-5)


@pytest.mark.needs_mrtrix
def test_mrtrix_agrees_on_noisy_data(tmp_path):
    noisy = Oblique(tmp_path / "in", -1, noise=20.0)
    theirs = mrtrix_maps(noisy, tmp_path, "-ols", "-iter", 0)
    out = noisy.fit(tmp_path / "out", "--method", "ols", "--frame", "scanner", "--tensor-order", "mrtrix")
    np.testing.assert_allclose(read(out, "tensor"), theirs["tensor"], atol=1e-5 * ALONG)
    np.testing.assert_allclose(read(out, "fa"), theirs["fa"], atol=1e-5)
    assert_parallel(read(out, "v1"), theirs["v1"], 1e-4)
    assert np.abs(theirs["tensor"] - elements(noisy.tensors, "mrtrix")).max() > 1e-2 * ALONG


@pytest.mark.needs_mrtrix
def test_mrtrix_reads_every_output(simulated, alone):
    transform = mrtrix("mrinfo", "-transform", simulated.dwi)
    for file in alone.glob("*.nii.gz"):
        expected = " ".join(map(str, nibabel.load(file).shape))
        assert mrtrix("mrinfo", "-size", file) == expected
        assert mrtrix("mrinfo", "-transform", file) == transform
    # mrstats says six digits.
    assert mrtrix("mrstats", path(alone, "fa"), "-output", "max") == f"{read(alone, 'fa').max():.6g}"


@pytest.mark.needs_mrtrix
def test_mrtrix_reads_gradients_beside_the_denoised_image(alone):
    table = [path(alone, "denoised", ending) for ending in (".bvec", ".bval")]
    shells = mrtrix("mrinfo", "-fslgrad", *table, "-shell_bvalues", path(alone, "denoised"))
    assert [round(float(b)) for b in shells.split()] == [0, 1000]


def test_gzip_accepts_every_output(alone):
    files = sorted(alone.glob("*.nii.gz"))
    assert len(files) == 13
    launch.run(["gzip", "-t", *files])


def test_nibabel_reads_every_voxel_of_every_output(simulated, alone):
    for file in alone.glob("*.nii.gz"):
        image = nibabel.load(file)
        assert image.shape[:3] == simulated.image.shape[:3]
        assert np.isfinite(image.get_fdata()).all()
