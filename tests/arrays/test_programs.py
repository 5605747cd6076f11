"""The programs of docs/examples/programs, as users run them, beside NumPy."""

import sys

import nibabel
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import ndimage
from support import launch

PROGRAMS = launch.REPOSITORY / "docs" / "examples" / "programs"

pytestmark = pytest.mark.tool

RNG = np.random.default_rng(11)
SERIES = (RNG.normal(500, 20, (7, 6, 5, 4)) + 300 * RNG.integers(-1, 2, (7, 6, 5, 1))).astype("f4")
VOLUME = ndimage.gaussian_filter(RNG.normal(size=(20, 18, 16)), 2).astype("f4")
STACK = RNG.integers(0, 4000, (2, 3, 24, 20), "uint16")
FRAMES = RNG.normal(100, 5, (3, 20, 22)).astype("f4")
POSITIONS = np.array([[5, 6], [0, 21], [12, 3]])


@pytest.fixture
def folder(tmp_path):
    nibabel.save(nibabel.Nifti1Image(SERIES, np.diag([2.0, 2, 3, 1])), tmp_path / "dwi.nii.gz")
    np.save(tmp_path / "volume.npy", VOLUME)
    zarr.create_array(tmp_path / "stack.zarr", data=STACK, dimension_names=["c", "z", "y", "x"])
    np.savetxt(tmp_path / "positions.txt", POSITIONS)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(FRAMES):
        np.save(tmp_path / "frames" / f"frame-{number}.npy", frame)
    return tmp_path


def tsnr_qc(results):
    mean, spread = SERIES.mean(-1, dtype="f8"), SERIES.std(-1, dtype="f8")
    found = nibabel.load(results / "tsnr.nii.gz")
    np.testing.assert_allclose(found.get_fdata(), mean / spread, rtol=1e-4)
    np.testing.assert_array_equal(found.affine, np.diag([2.0, 2, 3, 1]))
    from astropy.table import Table

    table = Table.read(results / "quality.ecsv")
    centre = (np.indices(SERIES.shape[:3])[1] * SERIES[..., 2]).sum() / SERIES[..., 2].sum()
    assert table["t"].tolist() == [0, 1, 2, 3] and table["y"][2] == pytest.approx(centre, rel=1e-5)


def otsu_slabs(results):
    smooth = ndimage.gaussian_filter(VOLUME, 1.0)
    np.testing.assert_array_equal(np.load(results / "smooth.npy"), smooth)
    counts, edges = np.histogram(smooth, 256, range=(float(smooth.min()), float(smooth.max())))
    middle = (edges[1:] + edges[:-1]) / 2
    inside = [
        counts[:n].sum() * counts[n:].sum()
        * (np.average(middle[:n], weights=counts[:n]) - np.average(middle[n:], weights=counts[n:])) ** 2
        for n in range(1, 256)
    ]  # fmt: skip
    above = smooth > middle[np.argmax(inside)]
    slabs = pd.read_csv(results / "slabs.csv")
    assert slabs["voxels"].tolist() == [above[n : n + 8].sum() for n in (0, 8, 16)]
    assert slabs["count"].tolist() == [ndimage.label(above[n : n + 8])[1] for n in (0, 8, 16)]


def kmeans(results):
    series = SERIES.reshape(-1, 4).astype("f8")
    centres = np.outer([200.0, 500.0, 800.0], np.ones(4))
    for _ in range(20):
        kinds, before = ((series[:, None] - centres) ** 2).sum(-1).argmin(1), centres
        centres = np.array([series[kinds == k].mean(0) for k in range(3)])
        if abs(centres - before).max() < 1e-3:
            break
    np.testing.assert_allclose(np.load(results / "centres.npy"), centres, rtol=1e-12)
    found = nibabel.load(results / "kinds.nii.gz").get_fdata()
    np.testing.assert_array_equal(found.ravel(), ((series[:, None] - centres) ** 2).sum(-1).argmin(1))


def pyramid(results):
    import tifffile

    level = STACK
    for number in range(3):
        np.testing.assert_array_equal(zarr.open_group(results / "pyramid.zarr")[str(number)][:], level)
        by_plane = tifffile.imread(results / f"level-{number}.tif")
        np.testing.assert_array_equal(by_plane.reshape(level.shape), level)
        height, width = (length // 2 for length in level.shape[-2:])
        cut = level[..., : 2 * height, : 2 * width].reshape(2, 3, height, 2, width, 2)
        level = cut.mean((-3, -1)).round().astype("uint16")
    assert not (results / "level-3.tif").exists()


def cutouts(results):
    stamps = [np.load(results / "stamps" / f"source-{n}.npy") for n in range(3)]
    np.testing.assert_array_equal(stamps[0], np.median(FRAMES[:, 2:9, 3:10], axis=0))
    assert [stamp.shape for stamp in stamps] == [(7, 7), (4, 4), (7, 7)]
    light = pd.read_parquet(results / "light.parquet")
    assert light["frame"].tolist() == ["frame-0", "frame-1", "frame-2"] * 3
    assert light["flux"][4] == pytest.approx(FRAMES[1, :4, 18:].sum(dtype="f8"))


SLOW = [pytest.param(check, marks=pytest.mark.long) for check in (otsu_slabs, kmeans)]


@pytest.mark.parametrize("check", [tsnr_qc, pyramid, cutouts, *SLOW])
def test_a_program_of_the_examples(check, folder):
    command = [*launch.mpiexec(2), sys.executable, PROGRAMS / f"{check.__name__}.py"]
    launch.run(command, env={"PYTHONPATH": str(launch.REPOSITORY)}, cwd=folder, timeout=120)
    check(folder / "results")
    assert not (folder / ".mpiimg").exists()
