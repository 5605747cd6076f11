"""The clipped coadd against astropy's sigma_clip and a plain loop, and against itself cut into strips."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.stats import sigma_clip
from support import reference

from mpiimg.astro.kernels.coadd import TILE_PIXELS, MaskValues, combine, count_unclippable
from mpiimg.astro.kernels.middle import combine_median

BAD, SAT, INTRP, EDGE, NO_DATA, CLIPPED = (1 << bit for bit in range(6))
PLANES = MaskValues(excluded=BAD | SAT | EDGE | NO_DATA, no_data=NO_DATA, clipped=CLIPPED, saturated=SAT)

#: Wider than a tile, and no multiple of any vector.
SHAPE = (13, TILE_PIXELS + 37)


def exposures(n, shape=SHAPE, seed=0):
    """Sky and stars under noise; some pixels hit, masked, NaN or infinite; a few without any input."""
    rng = np.random.default_rng(seed)
    sky = 100 * rng.random(shape) ** 8
    images = (sky + rng.normal(0, 3, (n, *shape))).astype(np.float32)
    images[rng.random(images.shape) < 0.02] += 500
    variances = rng.uniform(5, 15, images.shape).astype(np.float32)
    masks = np.zeros(images.shape, np.int32)
    for bit in (BAD, SAT, INTRP, EDGE):
        masks |= bit * (rng.random(images.shape) < 0.05).astype(np.int32)
    nothing = rng.random(images.shape) < 0.05
    images[nothing], variances[nothing] = np.nan, np.inf
    masks[nothing] |= NO_DATA
    # Without a mask to say so.
    images[rng.random(images.shape) < 0.01] = np.nan
    images[rng.random(images.shape) < 0.01] = np.inf
    variances[rng.random(images.shape) < 0.01] = np.nan
    masks[:, 0, :3] = (NO_DATA, BAD, SAT)
    masks[0, 0, 2] |= NO_DATA
    return images, variances, masks, rng.uniform(0.2, 2.0, n)


def usable(images, variances, masks):
    """Which pixels are inputs."""
    return np.isfinite(images) & np.isfinite(variances) & ((masks & PLANES.excluded) == 0)


def clipped_by_astropy(images, variances, masks, sigma, passes):
    """The stack in float64, masked where astropy rejects a value or there was none."""
    stack = np.ma.array(np.where(usable(images, variances, masks), images.astype(float), 0.0))
    stack.mask = ~usable(images, variances, masks)
    return sigma_clip(stack, sigma=sigma, maxiters=passes, cenfunc="mean", stdfunc="std", axis=0)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 11, 24, 53])
@pytest.mark.parametrize(("sigma", "passes"), [(3.0, 2), (3.0, 1), (2.0, 5), (2.5, 0)])
def test_rejections_and_values_are_those_of_astropy(n, sigma, passes):
    images, variances, masks, weights = exposures(n, seed=n)
    kept = clipped_by_astropy(images, variances, masks, sigma, passes) if passes else None
    left = usable(images, variances, masks) if kept is None else ~np.ma.getmaskarray(kept)
    image, variance, mask, n_image = combine(
        images, variances, masks, weights, PLANES, sigma=sigma, passes=passes
    )

    np.testing.assert_array_equal(n_image, left.sum(axis=0))
    rejected = (usable(images, variances, masks) & ~left).any(axis=0)
    np.testing.assert_array_equal((mask & CLIPPED) != 0, rejected)
    if passes and n >= 24:
        assert rejected.mean() > 0.1
    w = np.where(left, weights[:, None, None], 0.0)
    some = left.any(axis=0)
    with np.errstate(invalid="ignore"):
        expected = np.sum(w * np.where(left, images, 0), axis=0, dtype=float) / w.sum(axis=0)
        expected_variance = (
            np.sum(w**2 * np.where(left, variances, 0), axis=0, dtype=float) / w.sum(axis=0) ** 2
        )
    scale = np.abs(np.where(left, images, 0)).max(axis=0)[some]
    assert np.max(np.abs(image[some] - expected[some]) / scale) < 1e-6
    np.testing.assert_allclose(variance[some], expected_variance[some], rtol=1e-6)
    assert np.isnan(image[~some]).all() and np.isposinf(variance[~some]).all()
    np.testing.assert_array_equal((mask & NO_DATA) != 0, ~some)


@pytest.mark.parametrize("statistic", ["clip", "mean"])
def test_all_planes_are_those_of_a_plain_loop(statistic):
    images, variances, masks, numbers = exposures(14, (9, 41), seed=4)
    variances[:3, 3] = 0
    variances[2, 4] = -1
    numbers[5] = 0
    result = combine(images, variances, masks, numbers, PLANES, statistic)
    expected = reference.coadd(
        images, variances, masks, numbers, PLANES, passes=2 if statistic == "clip" else 0
    )
    for plane, dtype in zip(result, (np.float32, np.float32, np.int32, np.int16), strict=True):
        assert plane.dtype == dtype and plane.shape == images.shape[1:]
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-6)
    np.testing.assert_array_equal(result[2], expected[2])
    np.testing.assert_array_equal(result[3], expected[3])
    assert statistic == "mean" or (result[2] & CLIPPED).any()
    assert (result[2] == NO_DATA | SAT).any() and (result[2] == NO_DATA).any()


def test_further_variances_are_averaged_alike_and_decide_nothing():
    images, variances, masks, numbers = exposures(14, (9, 300), seed=4)
    numbers[5] = 0
    further = (0.8 * variances).astype(np.float32)
    *planes, combined = combine(images, variances, masks, numbers, PLANES, variances_ls=further)
    for plane, expected in zip(planes, combine(images, variances, masks, numbers, PLANES), strict=True):
        assert plane.tobytes() == expected.tobytes()
    assert combined.dtype == np.float32 and np.isfinite(combined).mean() > 0.9
    np.testing.assert_allclose(combined, 0.8 * planes[1], rtol=1e-6)
    # Where they are no part of the others, too.
    further = np.random.default_rng(3).uniform(1, 9, images.shape).astype(np.float32)
    ones = combine(images, variances, masks, numbers, PLANES, "mean", variances_ls=further)[4]
    used = usable(images, variances, masks)
    w = np.where(used, numbers[:, None, None], 0.0)
    some = w.sum(axis=0) > 0
    expected = np.sum(w**2 * np.where(used, further, 0), axis=0)[some] / w.sum(axis=0)[some] ** 2
    np.testing.assert_allclose(ones[some], expected, rtol=1e-6)
    assert np.isposinf(ones[~some]).all()


def test_nan_among_saturated_pixels_is_no_data():
    """A pixel is saturated where all that have data are; NaN is none, also where no mask says so."""
    images = np.array([[6e4, 6e4, 6e4], [np.nan, 5, np.inf], [np.nan, np.nan, np.nan]], np.float32)
    masks = np.array([[SAT, SAT, SAT], [0, EDGE, 0], [NO_DATA, NO_DATA, 0]], np.int32)
    stack = images[:, None], np.ones_like(images)[:, None], masks[:, None]
    _, _, mask, n_image = combine(*stack, np.ones(3), PLANES)
    assert mask[0].tolist() == [NO_DATA | SAT, NO_DATA, NO_DATA | SAT] and not n_image.any()


def test_values_exactly_on_a_bound_are_decided_as_by_astropy():
    """Of n values 1 in s^2 + 1 differs from the rest: it lies at s standard deviations, but for rounding."""
    rng = np.random.default_rng(1)
    decided_either_way = 0
    for n, sigma in ((10, 3.0), (20, 3.0), (10, 2.0), (45, 2.0), (17, 4.0)):
        width = 4000
        share = int(n / (sigma**2 + 1))
        low, high = np.float32(100) * rng.standard_normal((2, width), np.float32)
        images = np.where(np.arange(n)[:, None, None] < share, high, low).astype(np.float32)
        images = rng.permuted(images, axis=0)
        ones, zeros = np.ones_like(images), np.zeros(images.shape, np.int32)
        kept = clipped_by_astropy(images, ones, zeros, sigma, 2)
        result = combine(images, ones, zeros, np.ones(n), PLANES, sigma=sigma)
        np.testing.assert_array_equal(result[3], kept.count(axis=0))
        decided_either_way += len(np.unique(result[3])) > 1
    # Rounding decides them either way, so a bound off by its last bit would be seen.
    assert decided_either_way >= 4


def test_a_huge_outlier_leaves_the_bounds_of_the_rest_exact():
    """Deviations of 1 beside a value of 1e12: sums of squares about any one exposure would drown them."""
    rng = np.random.default_rng(3)
    images = rng.normal(0, 1, (30, 5, 300)).astype(np.float32)
    images[0] = 1e12
    images[7, :, ::2] = 12
    ones, zeros = np.ones_like(images), np.zeros(images.shape, np.int32)
    n_image = combine(images, ones, zeros, np.ones(30), PLANES)[3]
    np.testing.assert_array_equal(n_image, clipped_by_astropy(images, ones, zeros, 3, 2).count(axis=0))
    assert (n_image[:, ::2] < 29).all()


def test_strips_and_columns_do_not_move_a_bit():
    images, variances, masks, weights = exposures(12, (11, 2 * TILE_PIXELS + 5), seed=2)
    whole = combine(images, variances, masks, weights, PLANES)
    for rows in (1, 4, 10):
        for columns in (3, TILE_PIXELS + 1):
            for y in range(0, 11, rows):
                for x in range(0, images.shape[2], columns * 40):
                    part = np.s_[y : y + rows, x : x + columns]
                    stack = (a[(slice(None), *part)] for a in (images, variances, masks))
                    for cut, full in zip(combine(*stack, weights, PLANES), whole, strict=True):
                        assert cut.tobytes() == np.ascontiguousarray(full[part]).tobytes()


def test_weights_are_an_exposures_own_and_keep_the_light_of_stars():
    """A star seen sharp and blurred, noise-free: weights by exposure lose no light."""
    y, x = np.mgrid[-20:21, -20:21]
    images, variances = np.empty((2, 2, 41, 41), np.float32)
    for k, width in enumerate((1.5, 2.6)):
        images[k] = 1e5 * np.exp(-(x**2 + y**2) / (2 * width**2)) / (2 * np.pi * width**2)
        variances[k] = images[k] + 100
    masks = np.zeros(images.shape, np.int32)
    by_exposure = combine(images, variances, masks, np.full(2, 1 / 100), PLANES)[0]
    assert by_exposure.sum() / 1e5 == pytest.approx(1, abs=1e-6)


def test_variance_is_that_of_repeated_noise():
    rng = np.random.default_rng(5)
    sigma, weights = np.array([1.0, 2.0, 5.0]), np.array([3.0, 1.0, 0.5])
    images = rng.normal(0, sigma[:, None, None], (3, 200, 400)).astype(np.float32)
    variances = np.broadcast_to((sigma**2).astype(np.float32)[:, None, None], images.shape)
    image, variance, *_ = combine(
        images, variances, np.zeros(images.shape, np.int32), weights, PLANES, "mean"
    )
    assert image.var() == pytest.approx(float(variance[0, 0]), rel=4 * np.sqrt(2 / image.size))


def test_pixels_that_clipping_cannot_help_are_counted():
    """A lone outlier among 10 is never rejected at 3 sigma, among 11 it is."""
    images = np.random.default_rng(0).normal(0, 1, (12, 2, 30)).astype(np.float32)
    images[0] = 1e6
    masks = np.zeros(images.shape, np.int32)
    masks[10:, 0] = NO_DATA  # 10 inputs in the first row
    masks[11:, 1] = NO_DATA  # 11 in the second
    masks[:, :, 0] = NO_DATA
    _, _, mask, n_image = combine(images, np.ones_like(images), masks, np.ones(12), PLANES)
    assert not (mask[0] & CLIPPED).any() and (mask[1, 1:] & CLIPPED).all()
    assert (n_image[1, 1:] == 10).all()
    assert count_unclippable(n_image, mask, CLIPPED) == (29, 58)
    assert count_unclippable(n_image, mask, CLIPPED, sigma=2.0) == (0, 58)


def test_read_only_and_strided_inputs_are_taken():
    images, variances, masks, weights = exposures(5, (6, 20))
    expected = combine(images, variances, masks, weights, PLANES)
    for array in (images, variances, masks):
        array.flags.writeable = False
    wide = np.repeat(images, 2, axis=2)[:, :, ::2]
    for one, other in zip(combine(wide, variances, masks, weights, PLANES), expected, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"images": np.zeros((3, 4, 5))}, TypeError, "float64"),
        ({"masks": np.zeros((3, 4, 5), np.int64)}, TypeError, "int64"),
        ({"variances": np.zeros((3, 4, 6), np.float32)}, ValueError, "one shape"),
        ({"weights": np.ones(2)}, ValueError, "3 finite numbers"),
        ({"weights": np.array([1, -1, 1])}, ValueError, "3 finite numbers"),
        ({"weights": np.array([1, np.nan, 1])}, ValueError, "3 finite numbers"),
        ({"weights": "pixel"}, ValueError, "could not convert"),
        ({"statistic": "median"}, ValueError, '"median"'),
        ({"sigma": 0.0}, ValueError, "sigma > 0"),
        ({"passes": -1}, ValueError, "passes >= 0"),
        ({"variances_ls": np.ones((3, 4, 6), np.float32)}, ValueError, "variances_ls must be float32"),
        ({"variances_ls": np.ones((3, 4, 5))}, ValueError, "variances_ls must be float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, says):
    good = {
        "images": np.zeros((3, 4, 5), np.float32),
        "variances": np.ones((3, 4, 5), np.float32),
        "masks": np.zeros((3, 4, 5), np.int32),
        "weights": np.ones(3),
        "planes": PLANES,
    }
    combine(**good)
    with pytest.raises(error, match=says):
        combine(**(good | change))
    nothing = {name: good[name][:0] for name in ("images", "variances", "masks", "weights")}
    with pytest.raises(ValueError, match="1 to 32767 exposures"):
        combine(**(good | nothing))


# --- The median -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 24])
def test_the_median_is_that_of_the_inputs(n):
    images, variances, masks, weights = exposures(n, seed=n)
    image, _, mask, n_image = combine_median(images, variances, masks, weights, PLANES)
    used = usable(images, variances, masks)
    expected = np.ma.median(np.ma.array(images.astype(float), mask=~used), axis=0).filled(np.nan)
    np.testing.assert_allclose(image, expected, rtol=1e-6)
    np.testing.assert_array_equal(n_image, used.sum(axis=0))
    np.testing.assert_array_equal(mask, combine(images, variances, masks, weights, PLANES, "mean")[2])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 9, 16, 25])
def test_the_variance_of_a_median_is_that_of_repeated_noise(n):
    rng = np.random.default_rng(n)
    images = rng.normal(0, 3, (n, 200, 500)).astype(np.float32)
    variances, masks = np.full(images.shape, 9, np.float32), np.zeros(images.shape, np.int32)
    image, variance, _, _, more = combine_median(
        images, variances, masks, np.ones(n), PLANES, 0.8 * variances
    )
    assert image.var() == pytest.approx(float(variance[0, 0]), rel=0.02)
    np.testing.assert_allclose(more, 0.8 * variance, rtol=1e-6)
