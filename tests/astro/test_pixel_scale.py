"""The pixels of a tract follow from those of the exposures, and so does how an exposure is resampled."""

import math

import numpy as np
import pytest
from astropy.io import fits
from support import headers
from support.exposure_data import FACTS

from mpiimg.astro.lengths import length_of, mesh_of, mesh_pixels
from mpiimg.astro.placing import usual_scale
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.sky.wcs import pixel_size, read_wcs, shrinkage
from mpiimg.astro.sources import ExposureOptions, inspect_frames
from mpiimg.engine.step import Preset
from mpiimg.errors import BadInput
from mpiimg.tools.registry import tool

TAKEN = frozenset({"frames", "tract"})


@pytest.mark.parametrize(
    "sizes, scale",
    [
        ([0.2626, 0.2631, 0.2638], 0.263),
        ([0.030776], 0.031),
        ([0.1004], 0.1),
        ([0.09996], 0.1),
        ([0.0131], 0.013),
        ([2.00049], 2.0),
        # Never what lies between two cameras.
        ([0.0308, 0.263], 0.031),
        ([0.263, 0.0308, 0.263, 0.0308], 0.031),
        ([math.nan, 0.4, 0.4], 0.4),
    ],
)
def test_the_usual_scale(sizes, scale):
    assert usual_scale(sizes) == scale


@pytest.mark.parametrize("sizes", [[3600.0], [1e-4], [math.nan]])
def test_what_is_no_pixel_of_the_sky(sizes):
    with pytest.raises(BadInput, match="check their WCS, or give --pixel-scale"):
        usual_scale(sizes)


@pytest.mark.parametrize("kind", ["decam", "sip"])
def test_the_size_of_a_pixel_is_its_area_on_the_sky(kind):
    """Against separations and position angles of its sides by astropy, in a corner with its distortion."""
    wcs = read_wcs(getattr(headers, kind)((200, 230)), kind)
    low, right, up = (wcs.pixel_to_world(x, y) for x, y in ((2.5, 3.5), (3.5, 3.5), (2.5, 4.5)))
    angle = low.position_angle(right) - low.position_angle(up)
    area = low.separation(right).arcsec * low.separation(up).arcsec * abs(np.sin(angle.rad))
    assert pixel_size(wcs, 3.0, 4.0) == pytest.approx(math.sqrt(area), rel=1e-5)


def exposure(path, scale, place=150.0):
    """Write an exposure of 40 x 50 pixels of this scale."""
    header = headers.tan((40, 50), (place, 2.2), scale=scale)
    header.update({**FACTS, "EXPNUM": round(scale * 1e6)})
    image = np.random.default_rng(round(scale * 1e6)).normal(250, 8, (40, 50)).astype(np.float32)
    fits.writeto(path, image, header)
    return path


def opened(paths, tract=None, **options):
    return inspect_frames({"exposures": paths, "tract": tract}, ExposureOptions(**options), TAKEN)


def test_a_tract_takes_the_scale_of_its_exposures(tmp_path):
    """Whatever the order they are given in; the log says so."""
    paths = [exposure(tmp_path / f"{scale}.fits", scale) for scale in (0.4, 0.2001, 0.2004, 0.1993, 0.25)]
    states = [opened(chosen) for chosen in (paths, paths[::-1])]
    assert [state.tract.pixel_scale for state in states] == [0.2, 0.2]
    assert states[0].tract == states[1].tract and "pixel_scale = 0.2 " in states[0].tract.to_toml()
    (note,) = states[0].notes
    assert "0.2 arcsec" in note and "(0.1993 to 0.4)" in note
    assert [round(state.tract.pixel_scale, 9) for state in (opened(paths, pixel_scale=0.333),)] == [0.333]
    assert not opened(paths, pixel_scale=0.333).notes


def test_a_tract_that_is_given_has_a_scale(tmp_path):
    path = exposure(tmp_path / "a.fits", 0.2)
    given = Tract(150.0, 2.2, (1, 1), 0.5, 100, 0)
    (tmp_path / "tract.toml").write_text(given.to_toml())
    state = opened([path], tmp_path / "tract.toml")
    assert state.tract == given and not state.notes


def test_one_exposure_with_a_wrong_scale_is_left_out_and_changes_nothing(tmp_path):
    paths = [exposure(tmp_path / f"{scale}.fits", scale) for scale in (0.2, 0.201, 0.202, 300.0)]
    state = opened(paths)
    assert state.tract.pixel_scale == 0.201 and len(state.exposures) == 3
    assert "(0.2 to 0.202)" in state.notes[0]


@pytest.mark.parametrize("scale, shrink", [(0.263, 1.0), (0.333, 1.27), (0.1, 0.38), (2.63, 10.0)])
def test_how_much_wider_the_pixels_become(scale, shrink):
    wcs = read_wcs(headers.tan((400, 500), (150.0, 2.2), scale=0.263), "here")
    tract = Tract(150.01, 2.21, (1, 1), scale, 1000, 0)
    assert shrinkage(wcs, (400, 500), tract.wcs) == shrink
    far = read_wcs(headers.tan((400, 500), (330.0, -2.2), scale=0.263), "there")
    assert shrinkage(far, (400, 500), tract.wcs) == 1.0


def test_the_recipe_of_the_study_has_its_pixels():
    (study,) = tool("mpiimg-astro").presets.values()
    assert isinstance(study, Preset)
    chosen = {"pixel_scale": 0.333, "resampling": "lanczos3", "mesh": "64", "detection_mesh": "64"}
    assert {name: study.values[name] for name in chosen} == chosen


# --- Meshes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, scale, pixels",
    [
        ("64", 0.031, 64),
        (100, 0.263, 100),
        ("17arcsec", 0.2626, 64),
        ("17arcsec", 0.2655, 64),
        ("21 arcsec", 0.333, 64),
        ("21arcsec", 0.263, 80),
        ("17arcsec", 0.0308, 552),
        ("17arcsec", 2.0, 32),
        ("17arcsec", 1e-6, 8192),
    ],
)
def test_a_mesh_in_pixels_or_on_the_sky(text, scale, pixels):
    assert mesh_pixels(mesh_of(text, "--mesh"), scale) == pixels


@pytest.mark.parametrize(
    "text", ["7", "8193", "64.5", "0arcsec", "-3arcsec", "infarcsec", "17arcmin", "arcsec", "x"]
)
def test_what_is_no_mesh(text):
    with pytest.raises(BadInput, match=f"^--mesh {text}: "):
        mesh_of(text, "--mesh")


def test_a_length_says_its_unit():
    assert [str(length_of(text, "")) for text in ("0.5arcsec", "12", "3 pixels")] == [
        "0.5 arcsec",
        "12 pixels",
        "3 pixels",
    ]
    assert length_of("2arcsec", "").pixels(0.5) == 4.0 == length_of("4", "").pixels(0.5)
