"""The mosaic of a survey: every pixel in its place, and a circle on every source."""

import matplotlib.image
import numpy as np
import pytest

from mpiimg.astro import catalogue, mosaic
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.sky.tract import Tract
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
    rows = [
        stage.work(stage.chunk(i), sky[tuple(slice(*bounds) for bounds in patch.outer)][None])[0]
        for i, patch in enumerate(survey.patches)
    ]
    assert all(row.shape[1:] == stage.writes[0].shape[1:] for row in rows)
    return mosaic.mosaics(survey.patches, np.concatenate(rows), mosaic._step(survey))


def test_a_mosaic_of_whole_pixels_is_the_tract(sky, monkeypatch):
    part, whole = mosaics(sky, monkeypatch, 1000)
    assert (whole.band, whole.origin, whole.step) == ("r", (0, 0), 1)
    np.testing.assert_array_equal(whole.image, sky)
    (top, bottom), (left, right) = TRACT.outer((1, 1))
    assert (part.origin, part.band) == ((top, left), "g")
    np.testing.assert_array_equal(part.image, sky[top:bottom, left:right])


def test_a_coarse_mosaic_holds_means_of_blocks_that_lie_alike_in_all_patches(sky, monkeypatch):
    coarse, whole = mosaics(sky, monkeypatch, 40)
    (top, bottom), (left, right) = TRACT.outer((1, 1))
    assert coarse.step == 4 and max(whole.image.shape) <= 40
    assert coarse.origin == (top // 4 * 4, left // 4 * 4) == (40, 40)
    for row in range(coarse.image.shape[0]):
        for column in range(coarse.image.shape[1]):
            rows = slice(max(40 + 4 * row, top), min(44 + 4 * row, bottom))
            columns = slice(max(40 + 4 * column, left), min(44 + 4 * column, right))
            expected = np.float32(sky[rows, columns].mean(dtype=np.float64))
            assert coarse.image[row, column] == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def sources():
    table = catalogue.new(3)
    table["band"] = [b"r", b"r", b"g"]
    table["x"], table["y"] = [101.5, 30.0, 75.0], [61.5, 80.0, 75.0]
    table["fwhm"], table["flux_auto"] = 6, [900, 500, np.nan]
    table["flags"] = [0, 4, 0]
    return table


def test_sources_get_a_circle_in_the_panel_of_their_band(sky, sources, monkeypatch, tmp_path):
    out = tmp_path / "mosaic.png"
    mosaic.save_picture(out, mosaics(sky, monkeypatch, 1000), sources)
    picture = matplotlib.image.imread(out)[..., :3]
    red = (picture[..., 0] > 0.7) & (picture[..., 2] < 0.4)
    flagged, clean = red & (picture[..., 1] < 0.4), red & (picture[..., 1] > 0.5)
    assert flagged.any() and clean.any()
    # g is on the left; the flagged source and one clean one are of r, and x grows to the right.
    middle = picture.shape[1] // 2
    where = np.argwhere(flagged)
    assert clean[:, : where[:, 1].min()].any(), "the source of g"
    assert clean[:, where[:, 1].max() :].any(), "the clean source of r"
    assert where[:, 0].mean() < np.argwhere(clean & (np.arange(picture.shape[1]) > middle))[:, 0].mean()


def test_the_bytes_follow_from_pixels_and_sources(sky, sources, monkeypatch, tmp_path):
    panels = mosaics(sky, monkeypatch, 1000)
    for name in ("one.png", "two.png"):
        mosaic.save_picture(tmp_path / name, panels, sources)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert b"matplotlib" not in (tmp_path / "one.png").read_bytes()


def test_of_very_many_sources_the_brightest_are_drawn(sources, monkeypatch):
    monkeypatch.setattr(mosaic, "MAX_SOURCES", 2)
    assert list(mosaic._brightest(sources)["flux_auto"]) == [900, 500]
    assert list(mosaic._brightest(sources[1:])["x"]) == [30.0, 75.0]


def test_blocks_without_data_leave_what_a_neighbour_says():
    boxes = ((0, 60), (0, 60)), ((0, 60), (40, 100))
    patches = [Patch("r", (k, 0), box, box) for k, box in enumerate(boxes)]
    means = np.ones((2, 3, 3), np.float32)
    means[1] = (np.nan, 2, 2)
    (whole,) = mosaic.mosaics(patches, means, 20)
    np.testing.assert_array_equal(whole.image, [[1, 1, 1, 2, 2]] * 3)


def test_a_flat_coadd_has_a_picture():
    with np.errstate(all="raise"):
        assert np.isfinite(mosaic._stretched(np.ones((5, 6), np.float32))).all()
