"""Non-local means: against dipy and an obvious loop, and the same bits however the volume is cut."""

import nibabel as nib
import numpy as np
import pytest
from dipy.data import get_fnames
from dipy.denoise.nlmeans import nlmeans as dipy_nlmeans
from support import reference

from mpiimg.kernels.lanes import LANES
from mpiimg.neuro.kernels import nlmeans
from mpiimg.neuro.kernels.nlmeans import PLANES, TILE_ROWS, TILE_VECTORS, nonlocal_means

#: Radii of the default method and of others: (patch_radius, block_radius).
RADII = [(1, 5), (1, 2), (1, 6), (0, 1), (0, 2), (2, 3), (2, 4)]


def denoise(volume, sigma, mask, patch_radius=1, block_radius=5, rician=True):
    """Denoise a whole volume as one chunk."""
    volume = np.asarray(volume, np.float32)
    sigma = np.asarray(sigma, float)
    sigma = sigma if sigma.ndim == 3 else np.broadcast_to(sigma, volume.shape[:1])
    padded = np.pad(volume, block_radius, mode="reflect")
    level = np.pad(sigma, block_radius, mode="reflect")
    return nonlocal_means(padded, level, mask, patch_radius, block_radius, rician)


def by_voxel(sigma, shape):
    """Lay a noise level out that is one number, by slice or by voxel."""
    sigma = np.asarray(sigma, float)
    return np.broadcast_to(sigma if sigma.ndim == 3 else sigma[..., None, None], shape)


def dipy_classic(volume, sigma, mask, patch_radius=1, block_radius=5, rician=True):
    """Denoise with dipy, padded before the call: dipy reads out of bounds where an axis is thin."""
    sigma = by_voxel(sigma, volume.shape)
    peer = dipy_nlmeans(
        np.pad(np.asarray(volume, float), block_radius, mode="reflect"),
        np.pad(sigma, block_radius, mode="reflect"),
        mask=np.pad(mask, block_radius),
        patch_radius=patch_radius,
        block_radius=block_radius,
        rician=rician,
        num_threads=1,
        method="classic",
    )
    return peer[(slice(block_radius, -block_radius),) * 3]


def assert_close(result, expected, sigma, mask):
    """Assert the bound promised: 1e-5 of the mean square, or of the Rician bias where that is larger."""
    sigma = by_voxel(sigma, result.shape)
    assert result.dtype == np.float32
    assert np.all(result[~mask] == 0)
    error = np.abs(result.astype(float) ** 2 - expected**2)
    assert np.all(error <= 1e-5 * np.maximum(expected**2, 2 * sigma**2))


def assert_same_bits(result, expected):
    """Assert that two float32 arrays are the same to the last bit, signs of zero included."""
    np.testing.assert_array_equal(result.view(np.int32), np.ascontiguousarray(expected).view(np.int32))


def noisy(shape, seed=0, sigma=25.0):
    """Return a Rician magnitude with steps and slopes, bright half-way and dark at one end."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    truth = 200.0 * (np.sin(x / 4.0) * np.cos(y / 5.0) > 0) + 3.0 * z + 100.0 * (x > shape[2] // 2)
    return np.hypot(truth + rng.normal(0, sigma, shape), rng.normal(0, sigma, shape)).astype(np.float32)


@pytest.mark.parametrize("rician", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (12, 20, 33),
        (7, TILE_ROWS + 9, LANES * TILE_VECTORS + 7),  # several tiles along y and x
        (1, 7, 6),
        (2, 4, 30),  # axes thinner than the block, and than the search
        (11, 2, 3),
    ],
)
def test_matches_dipy(shape, rician):
    volume = noisy(shape)
    mask = np.random.default_rng(1).random(shape) < 0.4
    expected = dipy_classic(volume, 25.0, mask, rician=rician)
    assert_close(denoise(volume, 25.0, mask, rician=rician), expected, 25.0, mask)


@pytest.mark.parametrize("radii", RADII)
@pytest.mark.parametrize("rician", [True, False])
def test_matches_dipy_with_other_radii_and_noise_that_varies_by_slice(radii, rician):
    shape = (9, 10, 11)
    volume, sigma = noisy(shape), np.linspace(4.0, 60.0, shape[0])
    mask = np.random.default_rng(2).random(shape) < 0.5
    expected = dipy_classic(volume, sigma, mask, *radii, rician)
    assert_close(denoise(volume, sigma, mask, *radii, rician), expected, sigma, mask)


@pytest.mark.parametrize("radii", [(1, 5), (2, 3)])
@pytest.mark.parametrize("rician", [True, False])
def test_matches_dipy_with_noise_that_varies_by_voxel(radii, rician):
    """Several tiles along y and x, with levels that change inside each of them."""
    shape = (6, TILE_ROWS + 5, LANES * TILE_VECTORS + 7) if radii == (1, 5) else (5, 8, 9)
    volume = noisy(shape)
    sigma = np.random.default_rng(8).uniform(5.0, 60.0, shape)
    mask = np.random.default_rng(2).random(shape) < 0.5
    expected = dipy_classic(volume, sigma, mask, *radii, rician)
    assert_close(denoise(volume, sigma, mask, *radii, rician), expected, sigma, mask)


def test_a_level_by_voxel_that_is_the_same_everywhere_is_that_of_the_slices():
    volume = noisy((9, 14, 70))
    mask = np.ones(volume.shape, bool)
    by_slice, by_voxels = denoise(volume, 25.0, mask), denoise(volume, np.full(volume.shape, 25.0), mask)
    np.testing.assert_allclose(by_voxels, by_slice, rtol=1e-5)


@pytest.mark.parametrize("thickness", [1, 3, 5])
def test_bits_with_a_level_by_voxel_do_not_depend_on_the_z_blocks(thickness):
    shape = (9, 15, LANES * TILE_VECTORS + 15)
    padded = np.pad(noisy(shape), 5, mode="reflect")
    sigma = np.pad(np.random.default_rng(9).uniform(5.0, 60.0, shape), 5, mode="reflect")
    mask = np.random.default_rng(4).random(shape) < 0.2
    whole = nonlocal_means(padded, sigma, mask)
    assert_same_bits(blocks(mask, padded, sigma, thickness, 1, 5), whole)


@pytest.mark.parametrize("radii", [(1, 5), (2, 4)])
def test_matches_the_loop_version(radii):
    shape = (5, 6, 7)
    volume, sigma = noisy(shape), np.linspace(40.0, 10.0, shape[0])
    mask = np.random.default_rng(3).random(shape) < 0.3
    expected = reference.nonlocal_means(volume, sigma, mask, *radii)
    assert_close(denoise(volume, sigma, mask, *radii), expected, sigma, mask)


@pytest.mark.parametrize("rician", [True, False])
def test_matches_dipy_on_real_data(rician):
    data = nib.load(get_fnames(name="small_64D")[0]).get_fdata()
    mask = np.ones(data.shape[2::-1], bool)
    for index, sigma in ((0, 15.0), (1, 15.0), (30, 40.0), (64, 5.0)):
        volume = np.ascontiguousarray(data[..., index].T)
        expected = dipy_classic(volume, sigma, mask, rician=rician)
        assert_close(denoise(volume, sigma, mask, rician=rician), expected, sigma, mask)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_does_not_depend_on_the_unit(scale):
    volume = noisy((6, 8, 20))
    mask = np.ones(volume.shape, bool)
    expected = dipy_classic(volume, 25.0, mask)
    result = denoise(volume * np.float32(scale), 25.0 * scale, mask) / np.float32(scale)
    assert_close(result.astype(np.float32), expected, 25.0, mask)


def blocks(mask, padded, sigma, thickness, patch_radius, block_radius):
    """Denoise z-blocks of a volume one by one, each from its own copy with halo, and join them."""
    parts = []
    for z in range(0, mask.shape[0], thickness):
        part = np.ascontiguousarray(mask[z : z + thickness])
        halo = slice(z, z + len(part) + 2 * block_radius)
        parts.append(
            nonlocal_means(padded[halo].copy(), sigma[halo].copy(), part, patch_radius, block_radius)
        )
    return np.concatenate(parts)


@pytest.mark.parametrize("radii", [(1, 5), (1, 3), (2, 3)])
@pytest.mark.parametrize("thickness", [1, 2, 3, 5, PLANES + 2, 13])
def test_bits_do_not_depend_on_the_z_blocks(thickness, radii):
    shape = (13, 21, LANES * TILE_VECTORS + 15)
    padded = np.pad(noisy(shape), radii[1], mode="reflect")
    sigma = np.pad(np.linspace(10.0, 50.0, shape[0]), radii[1], mode="reflect")
    mask = np.random.default_rng(4).random(shape) < 0.2
    whole = nonlocal_means(padded, sigma, mask, *radii)
    assert_same_bits(blocks(mask, padded, sigma, thickness, *radii), whole)


@pytest.mark.parametrize("seed", range(6))
def test_bits_do_not_depend_on_the_rest_of_the_mask(seed):
    shape = (9, TILE_ROWS + 5, LANES * TILE_VECTORS + 9)
    volume, full = noisy(shape), np.ones(shape, bool)
    whole = denoise(volume, 25.0, full)
    rng = np.random.default_rng(seed)
    subset = rng.random(shape) < 10.0 ** -rng.integers(0, 4)
    corner = [rng.integers(0, n) for n in shape]
    subset[: corner[0]], subset[:, : corner[1]], subset[:, :, : corner[2]] = False, False, False
    subset[tuple(corner)] = True
    part = denoise(volume, 25.0, subset)
    assert_same_bits(part, np.where(subset, whole, np.float32(0.0)))


def test_bits_do_not_depend_on_the_place_in_the_volume():
    """A window of the volume that is cut out with its halo has the bits it had inside, at any shift."""
    volume = noisy((20, 24, 60))
    padded, sigma = np.pad(volume, 5, mode="reflect"), np.full(30, 25.0)
    whole = nonlocal_means(padded, sigma, np.ones(volume.shape, bool))
    for z, y, x in ((0, 0, 0), (1, 1, 1), (3, 5, 17), (6, 7, 31)):
        shape = (5, 6, 18)
        window = tuple(slice(a, a + n + 10) for a, n in zip((z, y, x), shape, strict=True))
        inner = tuple(slice(a, a + n) for a, n in zip((z, y, x), shape, strict=True))
        cut = nonlocal_means(padded[window].copy(), sigma[window[0]], np.ones(shape, bool))
        assert_same_bits(cut, whole[inner])


@pytest.mark.parametrize("radii", [(1, 5), (0, 2)])
def test_without_noise_the_input_comes_back(radii):
    volume = noisy((8, 9, 10))
    volume[:, :3] = 0
    mask = np.random.default_rng(5).random(volume.shape) < 0.5
    np.testing.assert_array_equal(denoise(volume, 0.0, mask, *radii), np.where(mask, volume, 0))


def test_slices_without_noise_among_others():
    volume, sigma = noisy((14, 8, 9)), np.full(14, 25.0)
    sigma[6:10] = 0.0
    mask = np.ones(volume.shape, bool)
    result = denoise(volume, sigma, mask)
    np.testing.assert_array_equal(result[7:9], volume[7:9])
    has_noise = np.ones(14, bool)
    has_noise[7:9] = False
    expected = dipy_classic(volume, sigma, mask)
    assert_close(result[has_noise], expected[has_noise], sigma[has_noise], mask[has_noise])


def test_dark_voxels_are_set_to_zero_not_to_nan():
    volume = np.random.default_rng(6).rayleigh(5.0, (6, 8, 9)).astype(np.float32)
    result = denoise(volume, 20.0, np.ones(volume.shape, bool))
    np.testing.assert_array_equal(result, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("radii", [(1, 5), (0, 2)])
def test_a_bad_voxel_spoils_its_block_only(bad, radii):
    volume = noisy((7, 9, 40))
    spoilt = volume.copy()
    spoilt[3, 4, 5] = bad
    mask = np.ones(volume.shape, bool)
    clean, result = denoise(volume, 25.0, mask, *radii), denoise(spoilt, 25.0, mask, *radii)
    np.testing.assert_array_equal(result[:, :, 5 + 1 + radii[1] :], clean[:, :, 5 + 1 + radii[1] :])


def test_an_empty_mask_gives_zeros():
    np.testing.assert_array_equal(denoise(noisy((3, 8, 9)), 25.0, np.zeros((3, 8, 9), bool)), 0.0)
    assert nonlocal_means(np.zeros((10, 18, 19)), np.ones(10), np.zeros((0, 8, 9), bool)).shape == (0, 8, 9)


def test_does_not_write_to_its_input():
    padded, sigma, mask = np.pad(noisy((3, 8, 9)), 5), np.full(13, 25.0), np.ones((3, 8, 9), bool)
    for array in (padded, sigma, mask):
        array.setflags(write=False)
    nonlocal_means(padded, sigma, mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padded": np.zeros((13, 18, 18))}, "padded must be"),
        ({"padded": np.zeros((13, 18))}, r"\(z, y, x\)"),
        ({"mask": np.ones((8, 9), bool)}, r"\(z, y, x\)"),
        ({"sigma": np.ones(3)}, "one value per padded slice"),
        ({"sigma": np.full(13, -1.0)}, "not negative"),
        ({"sigma": np.full(13, np.nan)}, "finite"),
        ({"patch_radius": 5}, "larger than patch_radius"),
        ({"patch_radius": -1}, "larger than patch_radius"),
        ({"block_radius": 4}, "padded must be"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    arguments = {"padded": np.zeros((13, 18, 19)), "sigma": np.ones(13), "mask": np.ones((3, 8, 9), bool)}
    with pytest.raises(ValueError, match=message):
        nonlocal_means(**(arguments | change))


def test_the_widest_block_of_the_fast_way_gives_what_the_plain_way_gives(monkeypatch):
    radius = nlmeans.MAX_HALO // 2
    padded = np.random.default_rng(3).normal(100, 10, np.array([1, 1, 3]) + 2 * radius).astype(np.float32)
    arguments = (padded, np.full(len(padded), 10.0), np.ones((1, 1, 3), bool), 1, radius)
    fast = nlmeans.nonlocal_means(*arguments)
    monkeypatch.setattr(nlmeans, "MAX_HALO", 0)
    np.testing.assert_allclose(fast, nlmeans.nonlocal_means(*arguments), rtol=1e-5)
