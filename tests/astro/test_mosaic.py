"""The mosaic of a survey: every pixel in its place, of every plane."""

import numpy as np
import pytest

from mpiimg.astro import mosaic
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.sky.wcs import to_pixels, to_sky
from mpiimg.astro.survey import Survey

TRACT = Tract(150.0, 2.2, (3, 2), patch=50, border=9)


@pytest.fixture
def sky():
    """The coadd of the whole tract, (y, x) float32: noise, a star, and a hole."""
    image = np.random.default_rng(2).normal(5, 1, TRACT.pixels).astype(np.float32)
    image[60:64, 100:104] = 500
    image[10:30, 20:40] = np.nan
    return image


def layout():
    """Two bands; the first has one patch of the tract, the second all."""
    patches = [("g", (1, 1)), *(("r", patch) for patch in TRACT.patches)]
    return Layout((), tuple(Patch(b, p, TRACT.outer(p), TRACT.inner(p)) for b, p in patches), ())


def mosaics(sky, monkeypatch, longest):
    """What the stage makes of each patch, put together."""
    monkeypatch.setattr(mosaic, "MAX_SIDE", longest)
    survey = layout()
    patches, means = survey.patch_planes(), mosaic.means_array(survey)
    stage = mosaic.average(Survey(layout=survey, patches=patches, mosaic=means))
    rows = []
    for number, patch in enumerate(survey.patches):
        pixels = sky[tuple(slice(*bounds) for bounds in patch.outer)][None]
        planes = (pixels, 2 * pixels, np.full(pixels.shape, number, np.int16))
        rows.append(stage.work(stage.chunk(number), *planes)[0])
    assert all(row.shape[1:] == stage.writes[0].shape[1:] for row in rows)
    return survey, mosaic.mosaics(survey, np.concatenate(rows))


def test_a_mosaic_of_whole_pixels_is_the_tract(sky, monkeypatch):
    survey, found = mosaics(sky, monkeypatch, 1000)
    assert list(found) == ["g", "r"] and mosaic.block_side(survey) == 1
    np.testing.assert_array_equal(found["r"][0], sky)
    np.testing.assert_array_equal(found["r"][1], 2 * sky)
    part = tuple(slice(*bounds) for bounds in TRACT.outer((1, 1)))
    np.testing.assert_array_equal(found["g"][0][part], sky[part])
    assert np.isfinite(found["g"][0]).sum() == np.isfinite(sky[part]).sum()
    assert set(found["r"][2].ravel()) == set(range(1, 7)), "the number of each patch of r"


def test_a_coarse_mosaic_holds_means_of_blocks_that_lie_alike_in_all_patches(sky, monkeypatch):
    survey, found = mosaics(sky, monkeypatch, 40)
    assert mosaic.block_side(survey) == 4 and max(found["r"][0].shape) <= 40
    (top, bottom), (left, right) = TRACT.outer((1, 1))
    coarse = found["g"][0]
    for row, column in np.argwhere(np.isfinite(coarse)).tolist():
        rows = slice(max(4 * row, top), min(4 * row + 4, bottom))
        columns = slice(max(4 * column, left), min(4 * column + 4, right))
        expected = np.float32(sky[rows, columns].mean(dtype=np.float64))
        assert coarse[row, column] == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(coarse).sum() == -(-(bottom - top + top % 4) // 4) * -(-(right - left + left % 4) // 4)


def test_blocks_lie_where_their_pixels_do_on_the_sky():
    """The middle of a block of 6 x 6 pixels is that of its pixels."""
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    wcs = WCS(Header.fromstring(mosaic.blocks_header(TRACT, ((2, 9), (3, 20)), 6), sep="\n"))
    ra, dec = to_sky(TRACT.wcs, 6 * 3 + 2.5, 6 * 2 + 2.5)
    np.testing.assert_allclose(to_pixels(wcs, ra, dec), 0, atol=1e-8)
    ra, dec = to_sky(TRACT.wcs, 6 * 13 + 2.5, 6 * 7 + 2.5)
    np.testing.assert_allclose(to_pixels(wcs, ra, dec), (10, 5), atol=1e-8)


def test_the_mosaic_of_each_band_has_a_name():
    assert mosaic.mosaic_names(layout()) == {"g": "g-mosaic.fits", "r": "r-mosaic.fits"}
    assert mosaic.mosaic_names(Layout((), layout().patches[1:], ())) == {"r": "mosaic.fits"}


def test_blocks_without_data_leave_what_a_neighbour_says(monkeypatch):
    monkeypatch.setattr(mosaic, "MAX_SIDE", 5)
    boxes = ((0, 60), (0, 60)), ((0, 60), (40, 100))
    patches = tuple(Patch("r", (k, 0), box, box) for k, box in enumerate(boxes))
    means = np.ones((2, 1, 3, 3), np.float32)
    means[1] = (np.nan, 2, 2)
    (whole,) = mosaic.mosaics(Layout((), patches, ()), means)["r"]
    np.testing.assert_array_equal(whole, [[1, 1, 1, 2, 2]] * 3)
