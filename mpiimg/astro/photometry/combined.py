"""Detection on all bands together: what is seen in any of them, in one image.

Each band is brought to units of its own noise. The image of all is the root of the sum of the squares of what
is positive there (the chi-square image of Szalay, Connolly and Szokoly 1999, doi:10.1086/300689, of which
negative values, that no source has, are left out), or the sum of the bands over the root of their number. It
is scaled so that noise lies above a threshold as often as it does in one band, however many bands there are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from mpiimg.astro.photometry.profiles import Moffat


@functools.cache
def equal_threshold(bands: int, threshold: float) -> float:
    """Return the value that noise of so many bands together exceeds as often as one band exceeds `threshold`.

    Of each band half of the values are negative and left out: k of n bands are positive with a probability of
    C(n, k) / 2^n, and the sum of squares of these is chi-square with k degrees of freedom.

    Parameters
    ----------
    bands : int
        At least 1.
    threshold : float
        Standard deviations of one band, above 0.
    """
    from scipy.optimize import brentq
    from scipy.special import comb
    from scipy.stats import chi2, norm

    if bands == 1:
        return threshold
    counts = np.arange(1, bands + 1)
    shares = comb(bands, counts) / 2.0**bands
    aim = norm.logsf(threshold)

    def excess(value):
        return np.log(np.sum(shares * chi2.sf(value**2, counts))) - aim

    return float(brentq(excess, 1e-6, threshold + 4 * np.sqrt(bands) + 10, xtol=1e-12))


def combined(bands: Sequence[np.ndarray], threshold: float, way: str = "chi") -> np.ndarray:
    """Return the image that sources of all bands are found in above `threshold`.

    Parameters
    ----------
    bands : sequence of (rows, columns) float32
        Filtered images in units of the noise of each; NaN where a band has no data.
    threshold : float
        Standard deviations.
    way : {"chi", "sum"}
        "chi": the root of the sum of squares of positive values; "sum": the sum over the root of the number
        of bands, which finds what is in all of them deeper, and loses what is in one alone.

    Returns
    -------
    (rows, columns) float32
        NaN where no band has data.
    """
    count = np.zeros(bands[0].shape, np.intp)
    total = np.zeros(bands[0].shape, np.float64)
    for band in bands:
        good = np.isfinite(band)
        count += good
        values = np.where(good, band, 0).astype(np.float64)
        total += values if way == "sum" else np.square(np.maximum(values, 0))
    if way == "sum":
        scale = 1 / np.sqrt(np.maximum(np.arange(len(bands) + 1), 1))
        image = total * scale[count]
    else:
        scale = [1.0, *(threshold / equal_threshold(n, threshold) for n in range(1, len(bands) + 1))]
        image = np.sqrt(total) * np.array(scale)[count]
    return np.where(count > 0, image, np.nan).astype(np.float32)


def matching_blur(profile: Moffat, target: Moffat, radius: float) -> float:
    """Return the standard deviation of the Gaussian that brings stars to the light of others in an aperture.

    A Gaussian that brings Moffat profiles to one full width at half maximum leaves the wings of the sharper
    ones fainter: 0.17 mag within 4 pixels for 3 and 5 pixels of width. So it is the share of their light
    within the aperture that is brought together, which is what colours in it ask for.

    Parameters
    ----------
    profile, target : Moffat
        Of the stars, and of those that they are to be like.
    radius : float
        Of the aperture, in the unit of the widths.

    Returns
    -------
    float
        In that unit; 0 where the aperture holds no more of the stars than of the target.
    """
    from scipy.ndimage import gaussian_filter
    from scipy.optimize import brentq

    aim = 1 - target.beyond(radius)
    if not 1 - profile.beyond(radius) > aim * (1 + 1e-6):
        return 0.0
    scale = 12 / profile.fwhm  # a star of 12 pixels
    widest = max(target.fwhm, radius)
    reach = int(np.ceil((radius + 3 * widest) * scale))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    alpha = 12 / (2 * np.sqrt(2 ** (1 / profile.beta) - 1))
    star = (profile.beta - 1) / (np.pi * alpha**2) * (1 + (x**2 + y**2) / alpha**2) ** -profile.beta
    # Pixels that the circle cuts count in part, or the light in it would go by steps.
    share = np.clip(radius * scale - np.hypot(x, y) + 0.5, 0, 1)

    def excess(sigma):
        return float((gaussian_filter(star, sigma * scale, mode="nearest") * share).sum()) - aim

    return float(brentq(excess, 1e-3 * widest, 2 * widest, xtol=1e-4 * widest))


def blurred(image: np.ndarray, bad: np.ndarray, sigma: float) -> np.ndarray:
    """Return an image convolved by a round Gaussian; of pixels that say nothing the rest takes the place.

    Parameters
    ----------
    image, bad : arrays
        (rows, columns) float32, without background, and bool.
    sigma : float
        Standard deviation, pixels.

    Returns
    -------
    (rows, columns) float32
    """
    from scipy.ndimage import gaussian_filter

    good = (~bad).astype(np.float32)
    total = gaussian_filter(np.where(bad, np.float32(0), image), sigma, mode="constant")
    weight = gaussian_filter(good, sigma, mode="constant")
    return np.where(weight > 0.5, total / np.maximum(weight, 0.5), total).astype(np.float32)
