"""Noise of images smoothed by the filter that sources are found with.

A threshold in units of it means the same on white noise and on noise that resampling has correlated.

References
----------
Filtering before the threshold: E. Bertin and S. Arnouts 1996, A&AS 117, 393, doi:10.1051/aas:1996164.
"""

from __future__ import annotations

import numpy as np

from mpiimg.astro.photometry.spread import deviation

#: One axis of the filter that images are smoothed with before the threshold, SExtractor's default.conv.
FILTER_AXIS = (0.25, 0.5, 0.25)

#: A pixel is near a source where, of the 3 x 3 about one of its neighbours, so many are above so many
#: standard deviations of the filtered image. Neighbours are so near.
MIN_NEAR, NEAR_SIGMA, NEAR_REACH = 5, 3.0, 5

#: Of the filtered image each second row and column is looked at, since neighbours say nearly the same; and of
#: a high one strips of so many rows, one in so many rows: a million pixels tell noise within 0.2 %.
STEP, STRIP, STRIP_PERIOD = 2, 64, 256

#: Fewer pixels without sources tell no noise.
MIN_PIXELS = 1000


def _along_both(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    from scipy.ndimage import correlate1d

    rows = correlate1d(image, weights, axis=0, mode="constant")
    return correlate1d(rows, weights, axis=1, mode="constant")


def filtered(image: np.ndarray) -> np.ndarray:
    """Return the image, (rows, columns) float32, smoothed by the filter; 0 counts beyond its borders."""
    return _along_both(image, np.array(FILTER_AXIS))


def filtered_variance(variance: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Return the variance of the filtered image if the noise of its pixels is independent.

    Parameters
    ----------
    variance, bad : arrays
        (rows, columns) float32 and bool. Bad pixels are 0 in the image, without noise.

    Returns
    -------
    (rows, columns) float32
        Above 0 where a pixel is good.
    """
    return _along_both(np.where(bad, np.float32(0), variance), np.array(FILTER_AXIS) ** 2)


def noise_ratio(image: np.ndarray, variance: np.ndarray, bad: np.ndarray) -> tuple[int, float]:
    """Return the variance of the filtered image, over what independent noise has, and of how many pixels.

    Parameters
    ----------
    image, variance, bad : arrays
        (rows, columns) float32, without background; float32; bool.

    Returns
    -------
    pixels : int
        Without sources, that it is measured on; 0 where they are too few.
    ratio : float
        From the median absolute deviation; 1 where they are too few.
    """
    rows = image.shape[0]
    period, height = (STRIP_PERIOD, STRIP) if rows > 2 * STRIP_PERIOD else (rows, rows)
    parts = [np.s_[start : start + height] for start in range(0, rows, period)]
    strips = [_in_deviations(image[part], variance[part], bad[part]) for part in parts]
    thin = np.s_[::STEP, ::STEP]
    first = np.concatenate([ratio[thin][good[thin]] for ratio, good in strips])
    if first.size < MIN_PIXELS:
        return 0, 1.0
    limit = NEAR_SIGMA * deviation(first)
    empty = [good & ~_near_sources(ratio > limit) for ratio, good in strips]
    background = np.concatenate([ratio[thin][e[thin]] for (ratio, _), e in zip(strips, empty, strict=True)])
    if background.size < MIN_PIXELS:
        return 0, 1.0
    return background.size, deviation(background) ** 2


def _in_deviations(image, variance, bad):
    """Return the filtered image over its deviation if noise is independent, and where it tells anything."""
    from scipy.ndimage import maximum_filter

    independent = filtered_variance(variance, bad)
    # Next to a pixel that says nothing the filter has less than its weights.
    good = (maximum_filter(bad.view(np.uint8), size=3) == 0) & (independent > 0)
    smooth = filtered(np.where(bad, np.float32(0), image))
    return np.where(good, smooth / np.sqrt(np.where(good, independent, 1)), np.float32(0)), good


def _near_sources(above: np.ndarray) -> np.ndarray:
    """Return which pixels are near MIN_NEAR neighbours that are above the limit."""
    from scipy.ndimage import correlate1d, maximum_filter

    ones = (1, 1, 1)
    together = correlate1d(correlate1d(above.view(np.uint8), ones, axis=0), ones, axis=1) >= MIN_NEAR
    return maximum_filter(together.view(np.uint8), size=2 * NEAR_REACH + 1) > 0
