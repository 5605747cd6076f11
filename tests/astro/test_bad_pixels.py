"""Bad pixels are interpolated: a loop reference, pixels without a number, columns and rows."""

import numpy as np
import pytest
from support import reference

from mpiimg.astro.kernels.bad_pixels import interpolate_bad


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.9, 1.0])
def test_bad_pixels_against_the_loop_reference(fraction):
    rng = np.random.default_rng(6)
    for shape in ((30, 41), (1, 17), (19, 1), (1, 1)):
        image = rng.normal(0, 10, shape).astype(np.float32)
        variance = rng.uniform(1, 9, shape).astype(np.float32)
        bad = rng.random(shape) < fraction
        filled, noise, replaced = interpolate_bad(image, variance, bad)
        np.testing.assert_array_equal(replaced, bad)
        expected = reference.interpolate_bad(image.astype(float), bad)
        np.testing.assert_allclose(filled, expected, rtol=1e-5, atol=1e-5)
        expected = reference.interpolate_bad(variance.astype(float), bad)
        np.testing.assert_allclose(noise, np.where(np.isnan(expected), np.inf, expected), rtol=1e-5)


def test_pixels_without_number_are_bad_too_and_inputs_stay():
    image, variance = np.ones((9, 9), np.float32), np.ones((9, 9), np.float32)
    image[2, 3], image[5, 5], variance[7, 1], variance[0, 0] = np.nan, -np.inf, np.inf, np.nan
    before = image.tobytes(), variance.tobytes()
    filled, noise, replaced = interpolate_bad(image, variance, np.zeros((9, 9), bool))
    assert (image.tobytes(), variance.tobytes()) == before
    assert {tuple(map(int, place)) for place in np.argwhere(replaced)} == {(2, 3), (5, 5), (7, 1), (0, 0)}
    assert (filled == 1).all() and (noise == 1).all()
    in_place = interpolate_bad(image, variance, np.zeros((9, 9), bool), copy=False)
    assert in_place[0] is image and in_place[1] is variance
    assert (image == 1).all() and (variance == 1).all()


def test_a_bad_column_is_bridged_along_rows_and_a_bad_row_along_columns():
    y, x = np.mgrid[:40, :50].astype(np.float32)
    slope = 3 * x + 5 * y
    bad = np.zeros(slope.shape, bool)
    bad[:, 20:22] = bad[10] = True
    filled, _, _ = interpolate_bad(np.where(bad, np.float32(1e6), slope), np.ones_like(slope), bad)
    np.testing.assert_allclose(filled, slope, rtol=1e-6)
