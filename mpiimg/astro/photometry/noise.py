"""The noise that the pixels of a frame have, held against the variance that they are said to have.

Images that lost their sky, gains that are wrong and planes in another unit have variances that the pixels
contradict; the measured noise is right in all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.astro.photometry.spread import deviation

#: A ratio of measured to given noise between these passes.
PASSES = (0.8, 1.25)

#: Outside of these the given variance is wrong, not just inexact.
PLAUSIBLE = (0.3, 3.0)

#: Bins above or below the sky by so many deviations have a source; so may those beside them.
SOURCE = 3.0

#: Bins that medians are taken of, at most.
SAMPLE = 1 << 14

#: Bins without a source that are enough to tell the noise.
MIN_BINS = 16


def noise_ratio(image: np.ndarray, sky: np.ndarray, variance: np.ndarray, useless: np.ndarray) -> float:
    """Return the measured over the given noise of a frame: of its pixels or of its bins, the larger.

    Parameters
    ----------
    image, sky : (h, w) float32
        The frame, and its sky.
    variance : (h, w) or (1, 1) float32
        Of each pixel, or of all of them.
    useless : (h, w) bool
        Pixels that say nothing.

    Returns
    -------
    float
        1.4826 times the median absolute deviation of (image - sky) / sqrt(variance) on pixels away from
        sources, and of its sums over bins of 4 x 4 over 4, in which the noise of resampled pixels shows, the
        larger of the two. NaN where too few such pixels are left.

    Notes
    -----
    Sources are bins that stand out of the others, and the bins about these; the pixels are those of a sample
    of the other bins, so that no pixel is chosen by its own value.
    """
    from mpiimg.astro.kernels.noise_bins import BIN, bin_residuals, pixel_residuals

    binned = np.empty([n // BIN for n in image.shape], np.float32)
    bin_residuals(image, sky, variance, useless, binned)
    quiet = _without_sources(binned)
    places = np.flatnonzero(quiet)
    if len(places) < MIN_BINS:
        return np.nan
    places = np.column_stack(np.divmod(places[:: -(-len(places) // SAMPLE)], quiet.shape[1]))
    pixels = np.empty((len(places), BIN * BIN), np.float32)
    pixel_residuals(image, sky, variance, places, pixels)
    return max(deviation(pixels), deviation(binned[places[:, 0], places[:, 1]]))


def _without_sources(binned: np.ndarray) -> np.ndarray:
    """Return the bins, bool, that neither stand out nor lie beside one that does."""
    from scipy.ndimage import binary_dilation

    known = np.isfinite(binned)
    values = binned[known]
    values = values[:: max(1, -(-values.size // SAMPLE))]
    low, high = -np.inf, np.inf
    # Sources weigh less from pass to pass.
    for _ in range(8):
        inside = values[(values >= low) & (values <= high)]
        if not inside.size:
            break
        centre, reach = float(np.median(inside)), SOURCE * deviation(inside)
        if (low, high) == (centre - reach, centre + reach):
            break
        low, high = centre - reach, centre + reach
    out = known & ~((binned >= low) & (binned <= high))
    return known & ~binary_dilation(out, np.ones((3, 3), bool))


class HeldVariance(NamedTuple):
    """A variance that pixels have been held against."""

    variance: np.ndarray  # (h, w) float32
    ratio: float  # of measured to given noise; NaN where it could not be measured
    scale: float  # what the given noise has been multiplied with; 1 where it holds


def hold_plane(image: np.ndarray, variance: np.ndarray, sky: np.ndarray, useless: np.ndarray) -> HeldVariance:
    """Scale a variance plane to the noise of the pixels, unless that is within PASSES of it.

    Parameters
    ----------
    image, variance, sky, useless
        As :func:`noise_ratio` has them; `variance` is scaled in place.
    """
    ratio = noise_ratio(image, sky, variance, useless)
    if not ratio > 0 or PASSES[0] <= ratio <= PASSES[1]:
        return HeldVariance(variance, ratio, 1.0)
    variance *= np.float32(ratio**2)
    return HeldVariance(variance, ratio, ratio)


def hold_model(
    image: np.ndarray,
    variance: np.ndarray,
    sky: np.ndarray,
    useless: np.ndarray,
    gain: float,
    readnoise: float,
) -> HeldVariance:
    """Replace a variance that gain and read noise model: that of the sky as measured, and photons above it.

    Parameters
    ----------
    image, variance, sky, useless
        As :func:`noise_ratio` has them; `variance` is filled where the noise can be measured.
    gain : float
        Electrons per unit of the image.
    readnoise : float
        Electrons.
    """
    level = max(float(np.median(sky[::8, ::8])), 0.0)
    model = level / gain + (readnoise / gain) ** 2
    noise = noise_ratio(image, sky, np.ones((1, 1), np.float32), useless)
    if not noise > 0:
        return HeldVariance(variance, np.nan, 1.0)
    np.subtract(image, sky, out=variance)
    np.maximum(variance, 0, out=variance)
    variance /= np.float32(gain)
    variance += np.float32(noise**2)
    ratio = noise / np.sqrt(model) if model > 0 else np.inf
    return HeldVariance(variance, ratio, ratio)
