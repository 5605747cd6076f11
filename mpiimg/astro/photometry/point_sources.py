"""What the stars among the sources of a patch tell of its seeing."""

from __future__ import annotations

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD
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

#: Sources of a lower flux over its error in the large aperture are not told from galaxies.
MIN_SNR_STAR_GALAXY = 10.0

#: The locus of stars, in magnitudes between the two apertures: no sharper than this, since seeing varies over
#: a patch; looked for in windows of this width, of which one counts that has this share of the fullest; and
#: made of what is within so many standard deviations, of noise and of a scatter to start with.
MIN_SCATTER, WINDOW, LEAST_SHARE, START_SCATTER, CLIP = 0.005, 0.06, 0.25, 0.02, 3.0


def isolated_stars(table: np.ndarray, saturated: int, radius: float) -> np.ndarray:
    """Return the rows of isolated, unsaturated point sources, whose isophotes have all one width.

    They are the most compact sources of which there are many. Compact galaxies may agree as well with each
    other, and be more; hits of cosmic rays and defects are more compact, and few.

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
    excess, error = _excess(table[rows])
    locus = _stellar_locus(excess, error)
    if np.isfinite(locus):
        rows = rows[np.abs(excess - locus) <= CLIP * np.hypot(error, START_SCATTER)]
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


def star_galaxy(table: np.ndarray, stars: np.ndarray) -> np.ndarray:
    """Return by how many standard deviations sources are more extended than the stars of their patch.

    Light beyond the small aperture, as the difference of two aperture magnitudes (a concentration), less that
    of stars, over its error and the scatter of stars together.

    Parameters
    ----------
    table : structured array
        With fluxes and their errors.
    stars : (stars,) int64
        Rows of :func:`isolated_stars`.

    Returns
    -------
    (sources,) float32
        NaN without stars, without either flux, and below MIN_SNR_STAR_GALAXY.
    """
    excess, error = _excess(table)
    chosen, errors = excess[stars], error[stars]
    if chosen.size < MIN_STARS:
        return np.full(len(table), np.nan, np.float32)
    sure = errors <= START_SCATTER
    if sure.sum() >= MIN_STARS:
        chosen, errors = chosen[sure], errors[sure]
    locus = np.median(chosen)
    # What noise does not explain is the locus's own. Galaxies that are left among stars are on the far side.
    total = SIGMA_PER_MAD * np.median(locus - chosen[chosen <= locus])
    scatter = max(np.sqrt(max(total**2 - np.median(errors) ** 2, 0)), MIN_SCATTER)
    with np.errstate(invalid="ignore"):
        bright = table["flux_large"] >= MIN_SNR_STAR_GALAXY * table["flux_large_err"]
    deviation = (excess - locus) / np.sqrt(error**2 + scatter**2)
    return np.where(bright, deviation, np.nan).astype(np.float32)


def _excess(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the magnitude in the small aperture less that in the large one, and its error, float64.

    The apertures share the pixels of the small one. NaN where a flux is not positive.
    """
    small, large = (table[f"flux_{name}"].astype(np.float64) for name in ("small", "large"))
    noise = [table[f"flux_{name}_err"].astype(np.float64) ** 2 for name in ("small", "large")]
    small, large = np.where(small > 0, small, np.nan), np.where(large > 0, large, np.nan)
    inner = noise[0] * (1 / small - 1 / large) ** 2
    ring = np.fmax(noise[1] - noise[0], 0) / large**2
    return -2.5 * np.log10(small / large), 2.5 / np.log(10) * np.sqrt(inner + ring)


def _stellar_locus(excess: np.ndarray, error: np.ndarray) -> float:
    """Return the lowest excess at which many sources are, NaN without."""
    known = np.isfinite(excess) & np.isfinite(error)
    excess, error = excess[known], error[known]
    if not excess.size:
        return np.nan
    values = np.sort(excess)
    count = np.searchsorted(values, values + WINDOW, side="right") - np.arange(len(values))
    enough = count >= max(MIN_STARS, LEAST_SHARE * count.max())
    if not enough.any():
        return np.nan
    first = values[np.argmax(enough)]
    locus = float(np.median(values[(values >= first) & (values <= first + WINDOW)]))
    for _ in range(2):
        locus = float(np.median(excess[np.abs(excess - locus) <= CLIP * np.hypot(error, START_SCATTER)]))
    return locus
