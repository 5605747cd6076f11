"""Stars told from galaxies by their light beyond the small aperture, also where galaxies are more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import fftconvolve
from scipy.spatial import cKDTree

from mpiimg.astro import patch_sources
from mpiimg.astro.photometry import point_sources
from mpiimg.astro.photometry.sources import DetectionSettings
from mpiimg.astro.sky.layout import Patch

#: Pixels of the field and between sources, their widths, the noise, and how finely profiles are drawn.
SIDE, STEP, FWHM, NOISE, FINE = 1000, 50, 3.8, 3.0, 5


def stamp(radius: float, sersic: float, ratio: float) -> np.ndarray:
    """A source of a flux of one, 49 x 49 pixels: a star, or a galaxy of a half-light radius in its seeing."""
    half = 24 * FINE + FINE // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1] / FINE
    alpha = FWHM / (2 * np.sqrt(2 ** (1 / 3.0) - 1))
    made = (1 + (x**2 + y**2) / alpha**2) ** -3.0
    if radius:
        far = np.hypot(x, y / ratio) / radius
        light = np.exp(-(1.9992 * sersic - 0.3271) * (far ** (1 / sersic) - 1))
        made = fftconvolve(made, light, mode="same")
    side = len(made) // FINE
    made = made.reshape(side, FINE, side, FINE).sum(axis=(1, 3))
    return made / made.sum()


def field(sersic: float, share: float):
    """A field of stars and galaxies: the planes of a patch; of each source x, y and whether it is a star."""
    random = np.random.default_rng(3)
    star = stamp(0, 0, 0)
    galaxies = [stamp(FWHM * r, sersic, q) for r, q in ((0.55, 0.6), (0.7, 0.9), (0.9, 0.5), (1.2, 0.8))]
    image, truth = random.normal(0, NOISE, (SIDE, SIDE)), []
    for y in range(40, SIDE - 30, STEP):
        for x in range(40, SIDE - 30, STEP):
            is_star = random.random() < share
            drawn = star if is_star else galaxies[random.integers(len(galaxies))]
            image[y - 24 : y + 25, x - 24 : x + 25] += drawn * 10 ** random.uniform(2.8, 4.6)
            truth.append((x, y, is_star))
    shape = (SIDE, SIDE)
    planes = image.astype("f4"), np.full(shape, NOISE**2, "f4"), np.zeros(shape, "i4"), np.ones(shape, "i2")
    return [plane[None] for plane in planes], np.array(truth)


@pytest.mark.parametrize("sersic, share", [(1.0, 0.5), (4.0, 0.5), (4.0, 0.2)])
def test_stars_are_told_from_galaxies(sersic, share):
    planes, truth = field(sersic, share)
    box = ((0, SIDE), (0, SIDE))
    detected = patch_sources._detected(Patch("r", (0, 0), box, box), 0, planes, DetectionSettings())
    table = detected.table
    distance, index = cKDTree(np.column_stack((table["x"], table["y"]))).query(truth[:, :2])
    rows = table[index]
    bright = (distance < 1) & (rows["flux_large"] > 30 * rows["flux_large_err"])
    star = truth[:, 2] > 0
    assert (bright & star).sum() > 40 and (bright & ~star).sum() > 100
    assert np.mean(rows["star_galaxy"][bright & star] < 2.5) >= 0.95
    assert np.mean(rows["star_galaxy"][bright & ~star] > 2.5) >= 0.95
    # So the seeing is that of stars.
    assert detected.stars.fwhm == pytest.approx(FWHM, rel=0.03)


def test_what_is_too_faint_or_alone_is_not_told():
    planes, _ = field(1.0, 0.5)
    box = ((0, SIDE), (0, SIDE))
    table = patch_sources._detected(Patch("r", (0, 0), box, box), 0, planes, DetectionSettings()).table
    faint = table["flux_large"] < 10 * table["flux_large_err"]
    assert np.all(np.isnan(table["star_galaxy"][faint])) and not np.isnan(table["star_galaxy"][~faint]).any()
    none = np.array([], np.int64)
    assert np.isnan(point_sources.star_galaxy(table, none)).all()
