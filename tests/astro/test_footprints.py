"""Exposures that cannot lie where they say are told from the others before patches are laid out."""

from __future__ import annotations

import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from support import toy, warm
from support.astro_data import TRACT, observe, once
from support.headers import tan
from support.spoilt_exposures import edit
from support.subjects import PATIENCE

from mpiimg.astro.sky.footprints import misplaced, place_of
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.sky.tract import MAX_TOUCHED, Tract
from mpiimg.astro.sky.wcs import footprint, parse_wcs, wcs_text
from mpiimg.astro.steps import calibrate
from mpiimg.astro.survey import Survey
from mpiimg.engine.plan import Resources, check
from mpiimg.errors import BadInput
from mpiimg.simulate.astro import SimulatedSurvey

SHAPE = (200, 300)


def outline(shape=SHAPE, **how):
    return footprint(parse_wcs(wcs_text(tan(shape, **how))), shape)


def place(shape=SHAPE, **how):
    return place_of(outline(shape, **how), shape)


@pytest.mark.parametrize("scale", [0.05, 0.263, 20.0, 300.0])
@pytest.mark.parametrize("center", [(150.0, 2.2), (0.0, 89.99), (359.999, -30.0)])
def test_the_place_of_a_frame(scale, center):
    found = place(scale=scale, center=center)
    assert found.scale == pytest.approx(scale, rel=0.1 if scale > 100 else 1e-2)
    ra, dec = np.radians(center)
    toward = [np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)]
    assert np.allclose(found.toward, toward, atol=1e-4)


SOUND = [
    place(center=(150.0 + d, 2.2), scale=s) for d, s in ((0, 0.263), (0.1, 0.27), (19.0, 0.2), (0.3, 0.5))
]


def test_what_is_usual_is_left_alone():
    """Also sensors of several telescopes, a wide survey, and the one exposure of a run."""
    assert misplaced(SOUND, 0.333, 20.0) == {}
    assert misplaced(SOUND[:1], 0.333, 20.0) == {}
    assert misplaced([place(scale=21.0)], 20.0, 20.0) == {}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (place(scale=3600.0), "pixels are .* arcsec wide, those of the others"),
        (place(scale=3.3), "those of the others 0.2"),
        (place(scale=0.01), "those of the others 0.2"),
        (place(center=(330.0, -2.2)), "lies 1.. degrees from the middle of all exposures"),
        (place_of((np.array([150.0, np.nan]), np.array([2.0, 2.0])), SHAPE), "no place on the sky"),
        (place_of((np.array([0.0, 180.0]), np.zeros(2)), SHAPE), ""),
    ],
)
def test_what_is_out_of_all_proportion_is_named_alone(odd, reason):
    reasons = misplaced([SOUND[0], odd, *SOUND[1:]], 0.333, 20.0)
    assert list(reasons) == [1]
    assert re.search(reason, reasons[1])


def test_pixels_out_of_proportion_to_the_tract_say_so():
    reasons = misplaced([place(scale=21.0)] * 5, 0.333, None)
    assert len(reasons) == 5 and "give --pixel-scale" in reasons[0]


def test_no_frame_reaches_patches_without_end():
    tract = Tract(150.0, 2.2, (100_000, 100_000), 0.3, 10, 1)
    with pytest.raises(BadInput, match=r"reaches \d+ patches of 10 pixels; .*larger --patch"):
        tract.touched(parse_wcs(wcs_text(tan((4000, 4000), scale=5.0))), (4000, 4000))
    assert len(tract.touched(parse_wcs(wcs_text(tan((300, 300)))), (300, 300))) < MAX_TOUCHED
    with pytest.raises(BadInput, match="pixel"):
        Tract.around([outline()], pixel_scale=1e-12)
    with pytest.raises(BadInput, match="at most"):
        Tract(150.0, 2.2, (10**9, 10**9))


@pytest.mark.tool
@pytest.mark.parametrize(
    "card", [{"CRVAL1": 330.0, "CRVAL2": -2.0}, {"CD1_1": 1.0, "CD2_2": 1.0}], ids=["far", "wide"]
)
def test_the_others_are_laid_out_as_if_it_were_not_there(tmp_path_factory, tmp_path, card):
    survey = SimulatedSurvey(4, 1, (150, 160), seed=2, density=60.0, magnitudes=(15.0, 19.0))
    exposures = once(tmp_path_factory, "placed", lambda folder: observe(folder, survey)).exposures
    odd = tmp_path / "odd.fits"
    odd.write_bytes(exposures[0].read_bytes())
    edit(odd, lambda hdus: [hdu.header.update({**card, "EXPNUM": 99}) for hdu in hdus[1:]] and None)
    assert fits.getheader(odd, 1)["EXPNUM"] == 99
    began = time.monotonic()
    words = ("mpiimg-astro", odd, *exposures, "--out", tmp_path / "out", *TRACT)
    done = warm.run_tool(*words, check=False, timeout=PATIENCE)
    assert done.returncode == 3, done.stderr
    assert time.monotonic() - began < PATIENCE / 2
    (reason,) = json.loads((tmp_path / "out" / "run.json").read_text())["left_out"].values()
    assert "odd.fits: " in reason and "check its WCS" in reason
    words = ("mpiimg-astro", *exposures, "--out", tmp_path / "alone", *TRACT)
    warm.run_tool(*words, timeout=PATIENCE)
    names = sorted(
        path.name for path in (tmp_path / "alone").iterdir() if path.suffix in (".fits", ".toml", ".tsv")
    )
    names.remove("calibration.tsv")  # has a row for each
    assert "tract.toml" in names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.parametrize("known", [True, False])
def test_a_solution_that_does_not_fit_is_refused_at_the_start(known):
    """20,000 exposures without zero points take 3 GB at the end of the reduction, with them 2.4."""
    about = {"wcs": "", "identity": {}, "band": "r", "magzero": 25.0 if known else None}
    exposures = tuple(SimpleNamespace(name=f"e-{n}", **about) for n in range(20_000))
    state = Survey(exposures=exposures, frames=exposures, layout=Layout(((10, 10),) * len(exposures)))
    recipe = toy.recipe("solve", lambda: (yield calibrate.solve(state, None, 1.0)))
    if known:
        check(recipe, Resources(4, 2800 << 20))
        return
    with pytest.raises(BadInput, match=r"stage zero-points needs 3\d{3} MB per rank and has 2800"):
        check(recipe, Resources(4, 2800 << 20))
