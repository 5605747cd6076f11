"""What is said of exposures that can be used, but whose pixels contradict what is taken for true of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.photometry import hits
from mpiimg.astro.photometry.noise import PASSES, PLAUSIBLE
from mpiimg.astro.survey import EXPOSURE_STATS, unit_names
from mpiimg.engine.names import shown

#: Share of pixels without data from which on an exposure is named.
MOST_WITHOUT_DATA = 0.2

#: Exposures that a warning names; the table of exposures has all.
NAMED = 3


def exposure_warnings(exposures: Sequence[ExposureRef], stats: np.ndarray) -> list[str]:
    """Return the warnings about exposures, one for all that share a fault.

    Parameters
    ----------
    exposures : sequence of ExposureRef
    stats : (exposures, numbers) float64
        EXPOSURE_STATS of each; NaN for those that failed.
    """
    names = [shown(name) for name in unit_names(exposures)]
    measured = {name: stats[:, column] for column, name in enumerate(EXPOSURE_STATS)}
    return [
        *_noise_warnings(exposures, names, measured),
        *_cosmic_ray_warnings(names, measured),
        *_data_warnings(names, measured),
    ]


def exposure_notes(exposures: Sequence[ExposureRef], stats: np.ndarray) -> list[str]:
    """Return what is said of exposures without many stars; parameters as of :func:`exposure_warnings`."""
    names = [shown(name) for name in unit_names(exposures)]
    without = np.isnan(stats[:, EXPOSURE_STATS.index("fwhm")]) & (stats[:, 0] == 0)
    if not without.any():
        return []
    return [
        f"too few stars for a FWHM in {_chosen(names, without)}: exposures.ecsv has how many were measured"
    ]


def _noise_warnings(exposures, names, measured) -> list[str]:
    """Say whose noise is not what was given, where it has been measured."""
    ratio = measured["noise_ratio"]
    given = np.array([ref.variance is not None for ref in exposures])
    differs = (ratio < PASSES[0]) | (ratio > PASSES[1])
    wrong = (ratio < PLAUSIBLE[0]) | (ratio > PLAUSIBLE[1])
    warnings = []
    for chosen, what in (
        (given & wrong, "is wrong: it"),
        (given & differs & ~wrong, "is not that of the pixels: it"),
    ):
        if chosen.any():
            warnings.append(
                f"the variance plane of {_chosen(names, chosen)} {what} has been scaled to the noise "
                f"measured between sources, which is {_between(ratio[chosen])} times what the plane says "
                "(--noise given takes it as it is)"
            )
    chosen = ~given & differs
    if chosen.any():
        warnings.append(
            f"the noise of {_chosen(names, chosen)} is {_between(ratio[chosen])} times what gain, read noise "
            "and sky say, as where a sky has been subtracted or a gain is wrong: it is taken as measured; "
            "check the gain, by which the photons of sources count (--noise given takes what they say)"
        )
    return warnings


def _data_warnings(names, measured) -> list[str]:
    """Say which exposures lack much of their data."""
    chosen = measured["no_data"] > MOST_WITHOUT_DATA
    if not chosen.any():
        return []
    share = _between(100 * measured["no_data"][chosen])
    return [
        f"{share} % of the pixels of {_chosen(names, chosen)} are bad or without data: nothing comes of "
        "them, and where they lie in grains a coadd may come out empty; if their mask says more than that, "
        "see --bad-bits"
    ]


def _cosmic_ray_warnings(names, measured) -> list[str]:
    """Say where what was found is dropped, and why."""
    warnings = []
    for search, what in (
        (
            hits.TOO_MANY,
            "{share} % of the pixels of {names} look like cosmic rays, which is more than can be",
        ),
        (hits.ON_STARS, "what looks like cosmic rays in {names} is the cores of stars"),
        (hits.TOO_SHARP, "stars of {names} are less than 1.8 pixels wide, as sharp as cosmic rays"),
    ):
        chosen = measured["cosmic_ray_search"] == search
        if chosen.any():
            share = _between(100 * measured["cosmic_ray_share"][chosen])
            warnings.append(
                what.format(names=_chosen(names, chosen), share=share)
                + ": nothing is repaired there (--cosmic-rays always does, --no-cosmic-rays looks for none)"
            )
    return warnings


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """Return names, or the first of them and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _chosen(names: Sequence[str], chosen: np.ndarray) -> str:
    return listed([name for name, one in zip(names, chosen, strict=True) if one])


def _between(values: np.ndarray) -> str:
    low, high = (f"{value:.3g}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
