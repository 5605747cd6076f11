"""The full width at half maximum of a frame's stars, from a Moffat profile fitted to all of them at once.

References
----------
Profile: A. Moffat 1969, A&A 3, 455.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD

#: So many stars are stacked at most, the brightest: more do not make the width any surer.
MAX_STACKED = 100

#: Stacked pixels lie within this radius, in units of a first guess of the width, and within so many pixels
#: at least. Farther out is the sky's doing more than the stars'.
STACK_REACH, MIN_STACK_REACH = 1.75, 3.0

#: Rings of the stacked profile have this width in pixels, and are no more than so many.
RING_WIDTH, MAX_RINGS = 0.25, 40

#: Rings with fewer pixels say nothing, and as few rings as the fit has parameters neither.
MIN_RING_PIXELS, MIN_RINGS = 5, 5

#: What a stack is trusted to, over its peak: stars are no perfect Moffat profiles.
PROFILE_FLOOR = 0.003

#: Nodes of the integral over a pixel's side, and angles of the ring between an axis and a diagonal.
_PIXEL_NODES, _ANGLES = 5, 4


class Profile(NamedTuple):
    """A stacked star in rings, its values over the flux of the star."""

    radius: np.ndarray  # (rings,) pixels, the median of each ring
    value: np.ndarray  # (rings,) the median
    error: np.ndarray  # (rings,)


class Moffat(NamedTuple):
    """A Moffat profile, before pixels take its mean. NaN where none could be fitted."""

    fwhm: float  # pixels
    beta: float

    def beyond(self, radius: float) -> float:
        """Return the share of the light beyond a radius, pixels."""
        alpha = self.fwhm / (2 * np.sqrt(2 ** (1 / self.beta) - 1))
        return float((1 + (radius / alpha) ** 2) ** (1 - self.beta))


def stack_stars(
    image: np.ndarray, unusable: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, radius: float
) -> Profile:
    """Return the profile that stars have in common: medians over the pixels of rings about their centres.

    The profile falls outward, so that the median of its values is its value at the median radius.

    Parameters
    ----------
    image : (h, w) float32
        Without its sky.
    unusable : (h, w) bool
        Pixels that are left out.
    x, y : (stars,) float64
        Centres, pixels.
    flux : (stars,) float64
        Above 0, all in one aperture.
    radius : float
        How far the profile reaches, pixels.
    """
    reach = int(np.ceil(radius))
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    rows = np.rint(y).astype(np.int64)[:, None, None] + dy
    columns = np.rint(x).astype(np.int64)[:, None, None] + dx
    inside = (rows >= 0) & (rows < image.shape[0]) & (columns >= 0) & (columns < image.shape[1])
    distance = np.hypot(rows - y[:, None, None], columns - x[:, None, None])
    rows, columns = rows * inside, columns * inside
    inside &= (distance < radius) & ~unusable[rows, columns]
    value = (image[rows, columns].astype(np.float64) / flux[:, None, None])[inside]
    distance = distance[inside]
    width = max(RING_WIDTH, radius / MAX_RINGS)
    ring = (distance / width).astype(np.int64)
    order = np.argsort(ring, kind="stable")
    ends = np.flatnonzero(np.diff(ring[order])) + 1
    members = [part for part in np.split(order, ends) if part.size >= MIN_RING_PIXELS]
    middle = np.array([np.median(distance[part]) for part in members])
    median = np.array([np.median(value[part]) for part in members])
    scatter = [np.median(np.abs(value[part] - m)) for part, m in zip(members, median, strict=True)]
    count = np.array([part.size for part in members])
    # A median is less sure than a mean by sqrt(pi / 2).
    error = SIGMA_PER_MAD * np.array(scatter) * np.sqrt(np.pi / 2 / np.maximum(count, 1))
    return Profile(middle, median, error)


def moffat_in_pixels(radius: np.ndarray, fwhm: float, inverse_beta: float) -> np.ndarray:
    """Return what pixels at a radius from the centre of a Moffat profile have, on the mean over angles.

    Parameters
    ----------
    radius : (n,) float64
        Pixels.
    fwhm : float
        Of the profile before pixels take its mean.
    inverse_beta : float
        1 / beta; near 0 it is a Gaussian.

    Returns
    -------
    (n,) float64
        1 at the centre of the profile itself.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_PIXEL_NODES)
    # From an axis to a diagonal: the other seven eighths of the ring are its mirror images.
    angle = (np.arange(_ANGLES) + 0.5) * (np.pi / 4 / _ANGLES)
    x = radius[:, None, None, None] * np.cos(angle)[:, None, None] + nodes[:, None] / 2
    y = radius[:, None, None, None] * np.sin(angle)[:, None, None] + nodes / 2
    fall = np.log1p((2**inverse_beta - 1) * 4 * (x**2 + y**2) / fwhm**2) / inverse_beta
    return np.einsum("raij,i,j->r", np.exp(-fall), weights / 2, weights / 2) / _ANGLES


def fit_moffat(profile: Profile, guess: float) -> Moffat:
    """Fit a Moffat profile, with the mean that pixels take of it, to a stacked star.

    Parameters
    ----------
    profile : Profile
    guess : float
        Of the FWHM, pixels.
    """
    from scipy.optimize import least_squares

    radius, value, error = profile
    if len(radius) < MIN_RINGS or not value[0] > 0:
        return Moffat(np.nan, np.nan)
    error = np.hypot(error, PROFILE_FLOOR * value.max())

    def residuals(parameters):
        peak, fwhm, inverse_beta = parameters
        return (peak * value[0] * moffat_in_pixels(radius, fwhm, inverse_beta) - value) / error

    limits = (0.2, guess / 5, 1e-3), (50.0, 5 * guess, 0.8)
    fit = least_squares(residuals, (1.1, guess, 0.3), bounds=limits, x_scale=(1.0, guess, 0.3))
    _, fwhm, inverse_beta = fit.x
    return Moffat(float(fwhm), float(1 / inverse_beta)) if fit.success else Moffat(np.nan, np.nan)


def star_profile(
    image: np.ndarray, unusable: np.ndarray, x: np.ndarray, y: np.ndarray, flux: np.ndarray, guess: float
) -> Moffat:
    """Return the Moffat profile of the brightest of some isolated stars.

    Parameters
    ----------
    image, unusable, x, y, flux
        As in :func:`stack_stars`.
    guess : float
        Of the FWHM, pixels; 30 % are near enough.
    """
    chosen = np.flatnonzero(np.isfinite(flux) & (flux > 0) & np.isfinite(x) & np.isfinite(y))
    chosen = np.sort(chosen[np.argsort(-flux[chosen], kind="stable")[:MAX_STACKED]])
    reach = max(STACK_REACH * guess, MIN_STACK_REACH)
    profile = stack_stars(image, unusable, x[chosen], y[chosen], flux[chosen].astype(np.float64), reach)
    return fit_moffat(profile, guess)
