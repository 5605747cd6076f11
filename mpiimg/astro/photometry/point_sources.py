"""What the stars among the sources of a patch tell of its seeing."""

from __future__ import annotations

import numpy as np

from mpiimg.astro.photometry.apertures import alone, clean
from mpiimg.astro.photometry.profiles import Moffat, star_profile
from mpiimg.astro.photometry.stars import frame_size

#: Stars that seeing is told by have a flux of so many times its error in the large aperture, a width within
#: this share of that of all of them, and no other source within so many radii of that aperture.
MIN_SNR, WIDTH_TOLERANCE, ISOLATION = 20.0, 0.25, 2.0

#: Other sources of up to this share of a star's flux do not count, nor does that share of its aperture.
FAINT = 0.02

#: Fewer stars tell no seeing.
MIN_STARS = 5


def isolated_stars(table: np.ndarray, saturated: int, radius: float) -> np.ndarray:
    """Return the rows of isolated, unsaturated point sources, whose isophotes have all one width.

    Parameters
    ----------
    table : structured array
        As :func:`mpiimg.astro.photometry.sources.find_sources` leaves it.
    saturated : int
        Bits of the mask whose stars are left out.
    radius : float
        Of the large aperture, pixels.

    Returns
    -------
    (stars,) int64
        None where fewer than MIN_STARS agree.
    """
    with np.errstate(invalid="ignore"):
        good = clean(table, FAINT) & (table["mask_flags"] & saturated == 0) & np.isfinite(table["fwhm"])
        good &= table["flux_large"] > MIN_SNR * table["flux_large_err"]
    if good.sum() < MIN_STARS:
        return np.flatnonzero(good)[:0]
    rows = np.flatnonzero(good & alone(table, ISOLATION * radius, FAINT))
    widths = table["fwhm"][rows].astype(np.float64)
    width = frame_size(widths, WIDTH_TOLERANCE, MIN_STARS)
    if not np.isfinite(width):
        return rows[:0]
    return rows[np.abs(widths - width) <= WIDTH_TOLERANCE * width]


def seeing(
    image: np.ndarray, bad: np.ndarray, table: np.ndarray, origin: tuple[int, int], stars: np.ndarray
) -> tuple[Moffat, float]:
    """Return the profile of the stars of a patch, and its FWHM over the width of their isophotes.

    Isophotes are taken for those of a Gaussian, and of pixels that have taken a mean: the ratio turns the
    widths of sources into full widths at half maximum, those of stars exactly.

    Parameters
    ----------
    image, bad : arrays
        (rows, columns) float32, without background, and bool.
    table : structured array
    origin : (int, int)
        Of the first pixel, in tract pixels.
    stars : (stars,) int64
        Rows of the table.

    Returns
    -------
    profile : Moffat
    ratio : float
        NaN without stars, and so is the profile.
    """
    if not stars.size:
        return Moffat(np.nan, np.nan), np.nan
    chosen = table[stars]
    width = float(np.median(chosen["fwhm"].astype(np.float64)))
    x, y = chosen["x"] - origin[1], chosen["y"] - origin[0]
    profile = star_profile(image, bad, x, y, chosen["flux_small"].astype(np.float64), width)
    return profile, profile.fwhm / width
