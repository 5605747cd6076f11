"""The width of stars in each exposure, in pixels of the tract, as far as calibration has measured it."""

from __future__ import annotations

import numpy as np

from mpiimg.astro.fits.products import Product
from mpiimg.astro.sky.wcs import middle_pixel, parse_wcs
from mpiimg.astro.survey import EXPOSURE_STATS, Survey

#: Digits behind the point: a header has the same number.
DIGITS = 4


def tract_fwhm(state: Survey) -> tuple[float, ...]:
    """Return the FWHM of the stars of each exposure in pixels of the tract; NaN where nobody measured it.

    By what calibration found in this run, else by the cards of our own files.
    """
    return tuple(_of_exposure(state, number) for number in range(len(state.exposures)))


def _of_exposure(state: Survey, number: int) -> float:
    ref = state.exposures[number]
    if isinstance(ref, Product):
        return np.nan if ref.fwhm is None else ref.fwhm
    if state.calibrated:
        fwhm = state.stats[number][EXPOSURE_STATS.index("fwhm")]
    else:
        fwhm = np.nan if ref.fwhm is None else ref.fwhm
    if not fwhm > 0:
        return np.nan
    pixel = middle_pixel(parse_wcs(ref.wcs), ref.shape)
    return round(fwhm * pixel / state.tract.pixel_scale, DIGITS)
