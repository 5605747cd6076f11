"""PIESNO against dipy's, bit for bit, and its quantiles against numpy's."""

import warnings

import dipy.denoise.noise_estimate
import numpy as np
import pytest

from mpiimg.neuro.kernels import piesno


def slice_of_a_head(dtype, volumes=20, shape=(30, 26), sigma=40.0, seed=0):
    """Return (V, ny, nx) magnitudes: a disc of tissue in air."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    head = np.where(x**2 + y**2 < 0.6, 10 * sigma * (1 + np.sin(7 * x) / 2), 0)
    decay = np.exp(-rng.uniform(0, 3, (volumes, 1, 1)))
    noise = rng.normal(0, sigma, (2, volumes, *shape))
    magnitude = np.hypot(head * decay + noise[0], noise[1])
    return magnitude.astype(dtype) if np.dtype(dtype).kind == "f" else np.rint(magnitude).astype(dtype)


def assert_like_dipy(values, coils):
    sigma, noise = piesno.find_noise(values, coils)
    moved = np.moveaxis(values, 0, -1)
    expected, there = dipy.denoise.noise_estimate.piesno(moved, coils, return_mask=True)
    assert np.float64(sigma).tobytes() == np.float64(expected).tobytes()
    np.testing.assert_array_equal(noise, there)
    return noise


@pytest.mark.parametrize("coils", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8", "int32", "float32", "float64"])
def test_level_and_noise_are_those_of_dipy(dtype, coils):
    values = slice_of_a_head(dtype, sigma=4.0 if dtype == "uint8" else 40.0)
    noise = assert_like_dipy(values, coils)
    if coils == 1:
        assert 0.1 < noise.mean() < 0.7


@pytest.mark.parametrize("seed", range(20))
def test_any_slice_gives_the_bits_of_dipy(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 2))
    sigma = 10 ** rng.uniform(-2, 3.5)
    dtype = ["int16", "float32"][seed % 2]
    assert_like_dipy(slice_of_a_head(dtype, int(rng.integers(2, 40)), shape, sigma, seed), 1)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_slices_without_noise_give_what_dipy_gives(dtype):
    zeros = np.zeros((6, 4, 5), dtype)
    assert_like_dipy(zeros, 1)
    assert_like_dipy(np.ones_like(zeros), 1)
    mostly = zeros.copy()
    mostly[:, 0, 0] = 7
    assert_like_dipy(mostly, 1)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_percentiles_are_numpys_while_voxels_come_and_go(dtype):
    rng = np.random.default_rng(5)
    values = rng.normal(0 if dtype != "uint16" else 9000, 1000, (7, 90)).astype(dtype)
    values[2, :40] = 0  # a value that many have
    if dtype == "float32":
        values[2, 40:60] = -0.0
    ranks = piesno._Ranks(values)
    for _ in range(60):
        inside = rng.random(90) < rng.uniform(0.02, 1)
        inside[rng.integers(90)] = True
        percent = rng.uniform(0, 100)
        found, expected = ranks.percentile(inside, percent), np.percentile(values[:, inside], percent)
        assert found == expected and type(found) is type(expected)


def test_more_noise_than_sixteen_bits_count_is_no_other_case():
    values = np.tile(slice_of_a_head("int16", volumes=4, shape=(60, 50)), (1, 6, 5))
    sigma, noise = piesno.find_noise(values, 1)
    assert np.count_nonzero(noise) >= 2**15
    once, part = piesno.find_noise(values[:, :60, :50], 1)
    assert sigma == pytest.approx(once, rel=1e-3)
    assert np.mean(noise[:60, :50] != part) < 1e-2


def test_values_that_somebody_has_subtracted_from_have_no_level_and_no_words_of_numpy():
    values = np.random.default_rng(0).normal(-50, 5, (6, 20, 20)).astype(np.float32)
    values[:, :10] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sigma, noise = piesno.find_noise(values, 1)
    assert sigma == 0 and not noise.any()
