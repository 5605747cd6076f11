"""The images of stars: Gaussian or Moffat profiles, added to an image as far as they are seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpiimg.simulate.astro import SimulatedSurvey

#: Arcseconds per pixel at the centre of the field, as DECam's.
PIXEL_SCALE = 0.263

#: Stars are drawn out to where they are fainter than this many counts per pixel.
FAINTEST_PIXEL = 0.02

#: A profile is drawn at least so far that less than this part of its light is missing.
LOST_LIGHT = 5e-4


def reach(survey: SimulatedSurvey) -> int:
    """Return how many pixels the light of the brightest star may reach."""
    brightest = 10 ** (0.4 * (survey.zeropoint + 5 * survey.drift - survey.magnitudes[0] + 1))
    return math.ceil(_radius(brightest, survey.profile, survey.seeing[1] / PIXEL_SCALE, survey.beta)) + 1


def _width(profile: str, fwhm: float, beta: float) -> float:
    """Return the scale of a profile: sigma, or Moffat's alpha."""
    if profile == "gaussian":
        return fwhm / math.sqrt(8 * math.log(2))
    return fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))


def _peak(profile: str, width: float, beta: float) -> float:
    """Return the height of a profile that holds a flux of one."""
    return (0.5 if profile == "gaussian" else beta - 1) / (math.pi * width**2)


def _radius(flux: float, profile: str, fwhm: float, beta: float) -> float:
    """Return how far a star is drawn: till it is faint, and holds nearly all of its light."""
    width = _width(profile, fwhm, beta)
    ratio = max(1.0, flux * _peak(profile, width, beta) / FAINTEST_PIXEL)
    if profile == "gaussian":
        return width * math.sqrt(2 * math.log(max(ratio, 1 / LOST_LIGHT)))
    return width * math.sqrt(max(ratio ** (1 / beta), LOST_LIGHT ** (1 / (1 - beta))) - 1)


def add_star(image: np.ndarray, star, profile: str, fwhm: float, beta: float) -> None:
    """Add a star (x, y, flux): the profile at the centres of pixels, out to a circle.

    The profiles are wide against a pixel: their values sum up to the flux. Moffat 1969, A&A 3, 455.
    """
    x, y, flux = star
    radius = _radius(flux, profile, fwhm, beta)
    ny, nx = image.shape
    x0, x1 = max(0, math.ceil(x - radius)), min(nx, math.floor(x + radius) + 1)
    y0, y1 = max(0, math.ceil(y - radius)), min(ny, math.floor(y + radius) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    width = _width(profile, fwhm, beta)
    dx = ((np.arange(x0, x1) - x) / width) ** 2
    dy = ((np.arange(y0, y1) - y) / width) ** 2
    height = flux * _peak(profile, width, beta)
    if profile == "gaussian":
        stamp = np.multiply.outer(np.exp(-0.5 * dy), height * np.exp(-0.5 * dx))
    else:
        squared = np.add.outer(dy, dx)
        stamp = squared + 1
        np.power(stamp, -beta, out=stamp)
        stamp *= height
        stamp[squared > (radius / width) ** 2] = 0
    image[y0:y1, x0:x1] += stamp
