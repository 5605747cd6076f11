"""Otsu's threshold from a histogram that is summed over chunks.

The threshold of the whole image is found in two reductions: its smallest and
largest value, then the counts of :func:`histogram`, added over the chunks.

N. Otsu, IEEE Trans. Systems, Man, and Cybernetics 9 (1979) 62, in the form of
``dipy.segment.threshold.otsu`` (dipy 1.12), which returns the lower edge of a
bin. scikit-image's ``threshold_otsu`` differs: it returns a bin centre.
"""

from __future__ import annotations

import numpy as np

#: Share of the voxels that hot ones are at most, and share of the range of values that lies below them empty.
MAX_HOT, MIN_GAP = 0.002, 0.25

#: Orders of magnitude that are told apart.
MAGNITUDES = 4096


def edges(low: float, high: float, bins: int = 256) -> np.ndarray:
    """Return the edges of the bins, as ``numpy.histogram`` places them for a float32 image.

    Parameters
    ----------
    low, high : float
        Smallest and largest value of the whole float32 image.
    bins : int

    Returns
    -------
    (bins + 1,) float32
        float64 where the range is too narrow, or too wide, for float32 to hold
        the edges; ``numpy.histogram`` refuses such an image. The range of a
        constant image is widened by 0.5 to either side.

    Raises
    ------
    ValueError
        The range is not finite, or `low` is above `high`.
    """
    low, high = np.float32(low), np.float32(high)
    if not (np.isfinite(low) and np.isfinite(high)) or low > high:
        raise ValueError(f"no histogram over the range {low} to {high}")
    with np.errstate(over="ignore", invalid="ignore"):
        placed = np.linspace(*_widened(low, high), bins + 1, dtype=np.float32)
    if np.all(placed[:-1] < placed[1:]) and np.isfinite(placed).all():
        return placed
    return np.linspace(*_widened(np.float64(low), np.float64(high)), bins + 1)


def _widened(low, high):
    """Widen an empty range as numpy does, and further where 0.5 is below the resolution of float32."""
    if low != high:
        return low, high
    half = 0.5 if low.dtype == np.float32 else max(0.5, float(np.spacing(np.float32(abs(low)))))
    return low - half, high + half


def histogram(block: np.ndarray, low: float, high: float, bins: int = 256) -> np.ndarray:
    """Count the values of a chunk in the bins of the whole image.

    The sum over all chunks equals ``numpy.histogram(image, bins)[0]``.

    Parameters
    ----------
    block : float32, any shape
        A chunk of the image. May be empty.
    low, high : float
        Smallest and largest value of the whole image. Values outside are not counted.
    bins : int

    Returns
    -------
    (bins,) int64

    Raises
    ------
    TypeError
        The block is not float32.
    ValueError
        As for :func:`edges`.
    """
    block = np.asarray(block)
    if block.dtype != np.float32:
        raise TypeError(f"histogram takes float32, not {block.dtype}")
    placed = edges(low, high, bins)
    # float32 scalars keep numpy in float32: with a float64 range it would place the edges in float64.
    counts, _ = np.histogram(block.astype(placed.dtype, copy=False), bins, range=(placed[0], placed[-1]))
    return counts.astype(np.int64, copy=False)


def threshold(counts: np.ndarray, low: float, high: float) -> np.float32:
    """Return Otsu's threshold of the image that has these counts.

    ``image > threshold`` decides as with ``dipy.segment.threshold.otsu(image)``.

    Parameters
    ----------
    counts : (bins,) int64
        The histogram of the whole image.
    low, high : float
        Smallest and largest value of the whole image.

    Returns
    -------
    float32
        The lower edge of a bin. For a constant image it is below the
        constant: every voxel is above the threshold, as in dipy.

    Raises
    ------
    ValueError
        As for :func:`edges`.
    """
    placed = edges(low, high, len(counts))
    upper = placed[1:]
    counts = np.asarray(counts).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight_below = np.cumsum(counts)
        weight_above = np.cumsum(counts[::-1])[::-1]
        mean_below = np.cumsum(counts * upper) / weight_below
        mean_above = (np.cumsum((counts * upper)[::-1]) / weight_above[::-1])[::-1]
        between = weight_below[:-1] * weight_above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return _rounded_down(placed[np.argmax(between)])


def magnitudes(block: np.ndarray) -> np.ndarray:
    """Return how many values of a chunk have each order of magnitude, 16 to an octave, and their range.

    Parameters
    ----------
    block : float32, any shape
        A chunk of the image. Not empty; no NaN.

    Returns
    -------
    (MAGNITUDES, 3) float64
        The number of values, the smallest and the largest; infinities where there is none. What is below 0 is
        with the smallest.
    """
    values = np.ascontiguousarray(block).ravel()
    # The leading bits of a positive float order it: its exponent, and four bits of what follows.
    magnitude = np.maximum(values, 0).view(np.int32) >> 19
    out = np.empty((MAGNITUDES, 3))
    out[:, 0] = np.bincount(magnitude, minlength=MAGNITUDES)
    out[:, 1], out[:, 2] = np.inf, -np.inf
    np.minimum.at(out[:, 1], magnitude, values)
    np.maximum.at(out[:, 2], magnitude, values)
    return out


def without_hot(rows: np.ndarray) -> tuple[np.float32, np.float32, int]:
    """Return the smallest and the largest value of an image that is not hot, and how many are.

    Hot voxels are few, and far above all others: at most `MAX_HOT` of all, above a gap as wide as `MIN_GAP`
    of the range. They would stretch the histogram until the brain is in a few bins.

    Parameters
    ----------
    rows : (chunks, MAGNITUDES, 3) float64
        Those of :func:`magnitudes`.
    """
    counts = rows[:, :, 0].sum(axis=0)
    filled = counts > 0
    counts, low, high = counts[filled], rows[:, filled, 1].min(axis=0), rows[:, filled, 2].max(axis=0)
    above = counts[::-1].cumsum()[::-1]
    last, hot = len(counts) - 1, 0
    for k in range(last, 0, -1):
        if above[k] > MAX_HOT * above[0]:
            break
        if low[k] - high[k - 1] > MIN_GAP * (high[last] - low[0]):
            last, hot = k - 1, int(above[k])
    return np.float32(low[0]), np.float32(high[last]), hot


def _rounded_down(value) -> np.float32:
    """Return the largest float32 not above `value`: float32 voxels compare with both alike."""
    rounded = np.float32(value)
    return np.nextafter(rounded, np.float32(-np.inf)) if rounded > value else rounded
