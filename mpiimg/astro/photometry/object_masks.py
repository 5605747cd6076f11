"""Which pixels of an image have light of objects, so that its sky can be measured between these.

A mesh inside a large galaxy has no sky, and the wings of a faint star are sky to whoever does not know of it.
There are two masks: of large and bright objects, on large bins of pixels, as far out as their light is seen,
but no farther from a core than profiles reach; and of all sources, on small bins.

References
----------
Growth of masks until the light is lost in noise: M. Akhlaghi and T. Ichikawa 2015, ApJS 220, 1,
doi:10.1088/0067-0049/220/1/1.
"""

from __future__ import annotations

import numpy as np

from mpiimg.astro.photometry.spread import deviation

#: Pixels of a bin along both axes, for large objects and for all sources; bins with less than this share of
#: good pixels tell nothing.
LARGE_BIN, SMALL_BIN, MIN_BIN = 8, 4, 0.5

#: A bin of the core of a large object is so many standard deviations of bins above the sky. From there the
#: object is followed outwards through these levels of the mean of 3 x 3 bins, where noise is a third.
CORE, LEVELS = 12.0, (4.0, 2.0, 1.0)

#: From one level to the next an object grows by this share of its half width, and so many bins: profiles do
#: not reach farther, so that a ghost with a star on it stays sky. Beyond the last level it gets a margin.
GROWTH, MIN_GROWTH = 0.35, 1.0
MARGIN, MIN_MARGIN = 0.3, 1.0

#: Small bins so many standard deviations above the sky, and below it, are left out with their neighbours:
#: were only those above, noise would leave the rest too dark.
SMALL_SIGMA = 2.5

#: Rounds of surface and mask, each of which helps the other.
ROUNDS = 3


def binned(image: np.ndarray, bad: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the good pixels of bins, and the share of pixels that is good.

    Parameters
    ----------
    image, bad : arrays
        (rows, columns) float32 and bool.
    side : int
        Of a bin, pixels. Bins that reach beyond the image have bad pixels there.

    Returns
    -------
    mean, share : (bins, bins) float64
        A mean without good pixels is 0.
    """
    padding = [(0, -length % side) for length in image.shape]

    def sums(values):
        values = np.pad(values, padding) if np.any(padding) else values
        rows, columns = (length // side for length in values.shape)
        inner = values.reshape(-1, columns, side).sum(axis=2, dtype=np.float64)
        return inner.reshape(rows, side, columns).sum(axis=1)

    count = sums(~bad)
    return sums(np.where(bad, np.float32(0), image)) / np.maximum(count, 1), count / side**2


def unbinned(bins: np.ndarray, side: int, shape: tuple[int, int]) -> np.ndarray:
    """Return an image of `shape` whose pixels have the values of their bins."""
    return np.repeat(np.repeat(bins, side, axis=0), side, axis=1)[: shape[0], : shape[1]]


def surface_of_bins(mean: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the surface of the second order through good bins, at each bin: (bins, bins) float64."""
    y, x = (np.linspace(-1, 1, length) for length in mean.shape)
    y, x = np.broadcast_arrays(y[:, None], x[None, :])
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y])
    matrix = terms[:, good]
    weights = np.linalg.lstsq(matrix @ matrix.T, matrix @ mean[good], rcond=1e-10)[0]
    return np.tensordot(weights, terms, 1)


def object_mask(image: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Return which bins of LARGE_BIN pixels have light of large and bright objects.

    Parameters
    ----------
    image, bad : arrays
        (rows, columns) float32 and bool.

    Returns
    -------
    (bins, bins) bool
        All of them, where no bin tells anything.
    """
    mean, share = binned(image, bad, LARGE_BIN)
    known = share > MIN_BIN
    mask = np.zeros(known.shape, bool)
    if not known.any():
        return ~mask
    surface = np.full(mean.shape, np.median(mean[known]))
    for _ in range(ROUNDS):
        off = mean - surface
        sigma = deviation(off[known & ~mask])
        mask = _followed(np.where(known, off, 0), known, sigma)
        good = known & ~mask & (np.abs(off) < 5 * sigma)
        if np.count_nonzero(good) < 50:
            break
        surface = surface_of_bins(mean, good)
    return mask


def source_mask(image: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Return which bins of SMALL_BIN pixels are beyond noise, above or below, or neighbours of such.

    Parameters
    ----------
    image, bad : arrays
        (rows, columns) float32, without its sky, and bool.

    Returns
    -------
    (bins, bins) bool
    """
    from scipy.ndimage import maximum_filter

    mean, share = binned(image, bad, SMALL_BIN)
    known = share > MIN_BIN
    if not known.any():
        return known
    off = np.abs(mean - np.median(mean[known]))
    beyond = known & (off > SMALL_SIGMA * deviation(mean[known]))
    return maximum_filter(beyond.view(np.uint8), size=3) > 0


def _followed(off: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """Return the cores of an image of bins without sky, followed outwards level by level."""
    from scipy.ndimage import binary_fill_holes, uniform_filter

    weight = uniform_filter(known.astype(np.float64), 3, mode="constant")
    smooth = uniform_filter(off, 3, mode="constant") / np.maximum(weight, 1e-6)
    # The middle of a bright star may be saturated, and unknown.
    mask = binary_fill_holes(off > CORE * sigma)
    for level in LEVELS:
        mask |= _grown(mask, GROWTH, MIN_GROWTH) & (smooth > level * sigma)
    return _grown(mask, MARGIN, MIN_MARGIN)


def _grown(mask: np.ndarray, share: float, least: float) -> np.ndarray:
    """Return a mask whose pieces have grown by a share of their half width, and by so many bins at least."""
    from scipy.ndimage import distance_transform_edt, label, maximum

    if not mask.any() or mask.all():
        return mask
    pieces, count = label(mask, structure=np.ones((3, 3)))
    inside = distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    half = np.concatenate([[0.0], maximum(inside, pieces, np.arange(1, count + 1))])
    away, nearest = distance_transform_edt(~mask, return_indices=True)
    return away <= share * half[pieces[tuple(nearest)]] + least
