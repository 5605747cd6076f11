"""The median filter against scipy's and a sorted cube, bit for bit, and against itself cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from dipy.data import get_fnames
from dipy.io.image import load_nifti_data
from support import reference

from mpiimg.neuro.kernels import median
from mpiimg.neuro.kernels.median import median_filter


def filtered(volume, radius, thickness=None):
    """Filter a whole volume, cut into z-blocks of at most `thickness`, as the frame does."""
    halo = radius if isinstance(radius, int) else radius[0]
    extended = np.pad(volume, [(halo, halo), (0, 0), (0, 0)], mode="symmetric")
    nz = volume.shape[0]
    step = thickness or nz
    blocks = [median_filter(extended[z : min(z + step, nz) + 2 * halo], radius) for z in range(0, nz, step)]
    return np.concatenate(blocks)


def values(kind, shape, seed=0):
    """Values of one kind: continuous, or such as make ties, or hard to spread over codes."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape).astype(np.float32)
    if kind == "rounded":
        return np.rint(3 * noise)
    if kind == "two":
        return (noise > 0.3).astype(np.float32)
    if kind == "wide":
        return np.sign(noise) * np.float32(10) ** (8 * noise)
    if kind == "ramp":
        return np.arange(noise.size, dtype=np.float32).reshape(shape) * np.float32(1e-3) + 1000
    if kind == "outliers":
        noise.ravel()[:: max(noise.size // 5, 1)] = np.float32(3e38)
        return noise
    if kind == "clustered":
        # All but a few values within a sliver of the range: many share one code.
        return np.where(noise > 2, 1e9 * noise, 1 + np.float32(1e-5) * noise).astype(np.float32)
    return 1000 + 40 * noise


KINDS = ["continuous", "rounded", "two", "wide", "ramp", "outliers", "clustered"]

SHAPES = [(1, 1, 1), (1, 12, 9), (11, 2, 8), (9, 13, 1), (3, 3, 3), (6, 37, 41), (19, 10, 35)]


def assert_same_bits(result, expected):
    """Same dtype, shape and bits."""
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1, 4])
def test_same_bits_as_scipy(shape, radius, kind):
    volume = values(kind, shape)
    # Zeros come out positive; scipy may return either zero of a tie. Here all zeros are positive.
    volume = np.where(volume == 0, np.float32(0), volume)
    expected = scipy.ndimage.median_filter(volume, size=2 * radius + 1, mode="reflect")
    assert_same_bits(filtered(volume, radius), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_as_sorted_cubes(kind):
    volume = np.abs(values(kind, (5, 7, 6), seed=3))
    for radius in (1, 2, 3):
        assert_same_bits(filtered(volume, radius), reference.median_filter(volume, radius))


@pytest.mark.parametrize("kind", ["continuous", "rounded", "clustered"])
@pytest.mark.parametrize(
    "radii", [(0, 0, 1), (1, 0, 0), (0, 2, 0), (0, 3, 4), (2, 4, 4), (4, 1, 0), (3, 8, 8), (8, 3, 1)], ids=str
)
def test_each_axis_has_its_own_radius(radii, kind):
    """As voxels that are longer along one axis need; blocks as thin as they come, and several tiles."""
    volume = values(kind, (7, 11, median.TILE[2] + 5))
    volume = np.where(volume == 0, np.float32(0), volume)
    expected = scipy.ndimage.median_filter(volume, size=[2 * r + 1 for r in radii], mode="reflect")
    assert_same_bits(filtered(volume, radii), expected)
    assert_same_bits(filtered(volume, radii, thickness=2), expected)


@pytest.mark.parametrize("radius", [7, 8])
def test_wide_windows_need_wider_counts(radius):
    volume = values("continuous", (4, 19, 5))
    expected = scipy.ndimage.median_filter(volume, size=2 * radius + 1, mode="reflect")
    assert_same_bits(filtered(volume, radius), expected)
    # Nearly all of a window in one bin: its count is above 255.
    two = (volume > 930).astype(np.float32)
    assert_same_bits(filtered(two, radius), np.ones_like(two))


@pytest.mark.parametrize("kind", ["continuous", "rounded"])
def test_four_passes_of_a_volume_of_several_tiles(kind):
    volume = ours = np.abs(values(kind, (median.TILE[0] + 3, median.TILE[1] + 5, 2 * median.TILE[2] + 1)))
    for _ in range(4):
        volume = scipy.ndimage.median_filter(volume, size=9, mode="reflect")
        ours = filtered(ours, 4, thickness=12)
        assert_same_bits(ours, volume)


def test_real_b0():
    data = load_nifti_data(get_fnames(name="small_64D")[0])
    volume = ours = np.ascontiguousarray(data[..., 0].T, np.float32)
    for _ in range(4):
        volume = scipy.ndimage.median_filter(volume, size=9, mode="reflect")
        ours = filtered(ours, 4, thickness=3)
        assert_same_bits(ours, volume)


@pytest.mark.parametrize("thickness", [1, 2, 3, 7, 16, 17, 23])
def test_any_cut_gives_the_same_bits(thickness):
    volume = values("continuous", (23, 34, 21))
    assert_same_bits(filtered(volume, 4, thickness), filtered(volume, 4))


def test_any_tile_gives_the_same_bits(monkeypatch):
    volume = values("continuous", (13, 40, 33))
    expected = filtered(volume, 2)
    for tile in [(1, 1, 1), (5, 64, 7), (64, 64, 64)]:
        monkeypatch.setattr(median, "TILE", tile)
        assert_same_bits(filtered(volume, 2), expected)


def test_zeros_come_out_positive():
    rng = np.random.default_rng(5)
    volume = rng.choice(np.array([-0.0, 0.0, -1.0, 1.0], np.float32), (5, 12, 11), p=[0.4, 0.2, 0.2, 0.2])
    result = filtered(volume, 1)
    np.testing.assert_array_equal(result, scipy.ndimage.median_filter(volume, size=3, mode="reflect"))
    assert not np.signbit(result[result == 0]).any()
    assert not np.signbit(filtered(np.full((3, 4, 5), -0.0, np.float32), 1)).any()
    assert not np.signbit(filtered(np.full((3, 4, 5), -0.0, np.float32), 0)).any()


def test_infinities_are_values():
    volume = values("continuous", (6, 9, 8))
    volume[::2, ::2] = np.inf
    volume[1, 3:] = -np.inf
    expected = scipy.ndimage.median_filter(volume, size=3, mode="reflect")
    assert_same_bits(filtered(volume, 1), expected)


def test_the_input_is_left_alone_and_may_be_strided():
    volume = values("rounded", (9, 16, 14))
    volume[volume == 0] = -0.0
    before = volume.copy()
    strided = median_filter(volume[:, ::2], 2)
    assert_same_bits(volume, before)
    assert_same_bits(strided, median_filter(np.ascontiguousarray(volume[:, ::2]), 2))
    assert_same_bits(median_filter(volume, 0), volume + np.float32(0))


def test_refusals():
    with pytest.raises(TypeError, match="float64"):
        median_filter(np.zeros((9, 3, 3)), 1)
    with pytest.raises(ValueError, match="radius"):
        median_filter(np.zeros((99, 3, 3), np.float32), 20)
    with pytest.raises(ValueError, match="halo"):
        median_filter(np.zeros((8, 3, 3), np.float32), 4)
