"""Radii of apertures: what texts mean, what is refused, and what fluxes are summed in."""

from __future__ import annotations

import numpy as np
import pytest

from mpiimg.astro.lengths import aperture_pixels, apertures_of
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.steps.detect import Detection
from mpiimg.errors import BadInput

sep = pytest.importorskip("sep", reason="detection stands on sep")


@pytest.mark.parametrize(
    ("text", "scale", "expected"),
    [
        ("4,10", 0.263, (4, 10)),
        (" 2.5 , 7 pixels", 0.05, (2.5, 7)),
        ("1.5arcsec,4arcsec", 0.25, (6, 16)),
        ("1 arcsec, 2.5 arcsec", 0.5, (2, 5)),
    ],
)
def test_radii_are_given_in_pixels_or_on_the_sky(text, scale, expected):
    assert Detection(apertures=text).radii(scale) == pytest.approx(expected)
    assert Detection(apertures=text).method(scale).radii == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["", "4", "4,10,20", "10,4", "4,4", "4,10arcsec", "a,b", "0,5", "-1,5", "nan,5", "0.1,5", "4,900"]
)
def test_what_is_no_pair_of_radii_is_refused(text):
    with pytest.raises(BadInput, match="--apertures"):
        apertures_of(text, "--apertures")


def test_radii_on_the_sky_that_are_too_small_or_large_in_pixels_are_refused():
    radii = apertures_of("1arcsec,3arcsec", "--apertures")
    for scale in (4.0, 0.001):
        with pytest.raises(BadInput, match="pixels of the tract"):
            aperture_pixels(radii, scale, "--apertures 1arcsec,3arcsec")


def test_fluxes_are_summed_within_the_radii():
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:120, :120] - 60.0
    light = 4000 * np.exp(-(rows**2 + columns**2) / (2 * 2.0**2))
    image = (light + rng.normal(0, 2, light.shape)).astype(np.float32)
    variance, mask = np.full_like(image, 4), np.zeros(image.shape, np.int32)
    how = Detection(apertures="0.75arcsec,2arcsec").method(0.25)
    count = np.ones(image.shape, np.int16)
    table, _ = detection.find_sources(image, variance, mask, count, image * 0, (0, 0), 1, how)
    assert len(table) == 1
    for name, radius in (("small", 3.0), ("large", 8.0)):
        flux, error, _ = sep.sum_circle(image, table["x"], table["y"], radius, var=variance, subpix=0)
        assert table[f"flux_{name}"] == pytest.approx(flux, rel=1e-6)
        assert table[f"flux_{name}_err"] == pytest.approx(error, rel=1e-6)
