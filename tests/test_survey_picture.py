"""The mosaic of a survey: every pixel in its place, and a circle on every source."""

import numpy as np
import pytest

from mpiimg import survey_picture
from mpiimg.io import catalogue
from mpiimg.io.fits_writing import write_planes
from mpiimg.io.products import place_cards
from mpiimg.io.tract import Tract

TRACT = Tract(150.0, 2.2, (3, 2), patch=50, border=9)


@pytest.fixture
def sky():
    """The coadd of the whole tract, (y, x) float32: noise, a star, and a hole."""
    image = np.random.default_rng(2).normal(5, 1, TRACT.pixels).astype(np.float32)
    image[60:64, 100:104] = 500
    image[10:30, 20:40] = np.nan
    return image


@pytest.fixture
def patch_files(sky, tmp_path):
    """Files of the patches of two filters, not in their order; the second filter has one patch."""
    files = []
    for band, patch in [("r", patch) for patch in TRACT.patches[::-1]] + [("g", (1, 1))]:
        box = TRACT.outer(patch)
        header = TRACT.wcs_of(box).to_header()
        text = "\n".join(str(card).rstrip() for card in header.cards)
        pixels = sky[tuple(slice(*bounds) for bounds in box)]
        cards = {"FILTER": band, **place_cards(TRACT, patch, box)}
        name = tmp_path / f"{band}-patch-{patch[0]}-{patch[1]}.fits"
        files.append(write_planes(name, {"IMAGE": pixels}, text, cards))
    return files


def found(patch_files, band):
    return [patch for patch in map(survey_picture._find, patch_files) if patch.band == band]


def test_a_mosaic_of_whole_pixels_is_the_tract(sky, patch_files):
    whole = survey_picture.mosaic(found(patch_files, "r"), 1)
    assert whole.origin == (0, 0)
    np.testing.assert_array_equal(whole.image, sky)
    part = survey_picture.mosaic(found(patch_files, "g"), 1)
    (top, bottom), (left, right) = TRACT.outer((1, 1))
    assert (part.origin, part.band) == ((top, left), "g")
    np.testing.assert_array_equal(part.image, sky[top:bottom, left:right])


def test_a_coarse_mosaic_holds_means_of_blocks_that_lie_alike_in_all_patches(sky, patch_files):
    coarse = survey_picture.mosaic(found(patch_files, "g"), 4)
    (top, bottom), (left, right) = TRACT.outer((1, 1))
    assert coarse.origin == (top // 4 * 4, left // 4 * 4) == (40, 40)
    for row in range(coarse.image.shape[0]):
        for column in range(coarse.image.shape[1]):
            rows = slice(max(40 + 4 * row, top), min(44 + 4 * row, bottom))
            columns = slice(max(40 + 4 * column, left), min(44 + 4 * column, right))
            expected = np.float32(sky[rows, columns].mean(dtype=np.float64))
            assert coarse.image[row, column] == pytest.approx(expected, rel=1e-6)


def test_sources_get_a_circle_in_the_panel_of_their_filter(patch_files, tmp_path):
    import matplotlib.image

    table = catalogue.new(4)
    table["band"] = [b"r", b"r", b"r", b"g"]
    table["x"], table["y"] = [101.5, 30.0, 120.0, 75.0], [61.5, 80.0, 20.0, 75.0]
    table["fwhm"] = 6
    table["flags"] = [0, 4, 0, 0]
    table["is_primary"] = [True, True, False, True]
    catalogue.write(tmp_path / "catalogue.fits", table, {})
    out = tmp_path / "mosaic.png"
    survey_picture.draw(patch_files, tmp_path / "catalogue.fits", out)
    picture = matplotlib.image.imread(out)[..., :3]
    red = (picture[..., 0] > 0.7) & (picture[..., 2] < 0.4)
    flagged, clean = red & (picture[..., 1] < 0.4), red & (picture[..., 1] > 0.5)
    assert flagged.any() and clean.any()
    # g is on the left; the flagged source and one clean one are of r, and the second detection is not shown.
    middle = picture.shape[1] // 2
    where = np.argwhere(flagged)
    survey = survey_picture._sources(tmp_path / "catalogue.fits")
    assert len(survey) == 3 and list(survey["x"]) == [101.5, 30.0, 75.0]
    assert clean[:, : where[:, 1].min()].any(), "the source of g"
    assert clean[:, where[:, 1].max() :].any(), "the clean source of r, east of which the flagged one lies"
    assert where[:, 0].mean() < np.argwhere(clean & (np.arange(picture.shape[1]) > middle))[:, 0].mean()


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no patches"):
        survey_picture.draw([], tmp_path / "catalogue.fits", tmp_path / "mosaic.png")
