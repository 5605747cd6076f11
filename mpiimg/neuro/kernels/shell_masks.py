"""The brain mask of MRtrix3's dwi2mask (its algorithm "legacy"), on whole volumes.

Every shell's mean image is cut at its optimal threshold; what any of them shows is smoothed, brought into one
piece without holes, and rid of what hangs on it by a thin bridge, as eyes do.

Thresholds: G. Ridgway et al., NeuroImage 44 (2009) 99. The algorithm: T. Dhollander, D. Raffelt, A. Connelly,
ISMRM Workshop on Breaking the Barriers of Diffusion MRI (2016) 5.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Where a search stops: what is left of the interval over the sum of its two inner points.
TOLERANCE = 0.01

_GOLDEN = np.float32(0.61803399)


def optimal_threshold(values: np.ndarray) -> np.float32:
    """Return the threshold whose mask correlates best with the image.

    Parameters
    ----------
    values : float32, any shape
        Finite.

    Returns
    -------
    float32
        Near the maximum of the correlation, as far as a golden-section search with `TOLERANCE` finds it.
    """
    flat = np.ascontiguousarray(values, np.float32).ravel()
    low, high = flat.min(), flat.max()
    margin = np.float32(0.001) * (high - low)
    mean, spread = flat.mean(dtype=np.float64), flat.std(dtype=np.float64)

    def mismatch(threshold):
        above = flat > threshold
        share = np.count_nonzero(above) / flat.size
        product = flat.sum(dtype=np.float64, where=above) / flat.size
        with np.errstate(divide="ignore", invalid="ignore"):
            return -(product - share * mean) / (spread * np.sqrt(share - share * share))

    return golden_section(mismatch, low + margin, np.float32(0.5) * (low + high), high - margin)


def golden_section(
    function: Callable[[np.float32], float], low: np.float32, middle: np.float32, high: np.float32
) -> np.float32:
    """Return where a function of one minimum between `low` and `high` is least, in steps of float32."""
    rest = np.float32(1) - _GOLDEN
    if abs(high - middle) > abs(middle - low):
        left, right = middle, middle + rest * (high - middle)
    else:
        left, right = middle - rest * (middle - low), middle
    at_left, at_right = function(left), function(right)
    while np.float32(TOLERANCE) * (abs(left) + abs(right)) < abs(high - low):
        if at_right < at_left:
            low, left = left, right
            right = _GOLDEN * left + rest * high
            at_left, at_right = at_right, function(right)
        else:
            high, right = right, left
            left = _GOLDEN * right + rest * low
            at_left, at_right = function(left), at_left
    return left if at_left < at_right else right


def one_piece(mask: np.ndarray) -> np.ndarray:
    """Return a mask smoothed, its largest piece only, without holes.

    Parameters
    ----------
    mask : (z, y, x) bool

    Returns
    -------
    (z, y, x) bool
    """
    return ~largest_piece(~largest_piece(majority(mask)))


def majority(mask: np.ndarray) -> np.ndarray:
    """Return the median of a mask in 3 x 3 x 3 voxels, as far as they lie in the field; ties are inside."""
    from scipy.ndimage import correlate1d

    inside, window = mask.astype(np.uint8), np.ones(mask.shape, np.uint8)
    for axis in range(mask.ndim):
        inside = correlate1d(inside, [1, 1, 1], axis, mode="constant")
        window = correlate1d(window, [1, 1, 1], axis, mode="constant")
    return 2 * inside >= window


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """Return the largest piece of a mask, whose voxels touch by their faces; of equal ones the first."""
    from scipy.ndimage import label

    labels, pieces = label(mask)
    if not pieces:
        return mask.copy()
    counts = np.zeros(pieces + 1, np.int64)
    for one in labels:
        counts += np.bincount(one.ravel(), minlength=pieces + 1)
    return labels == 1 + np.argmax(counts[1:])


def without_bridges(mask: np.ndarray, scale: int) -> np.ndarray:
    """Take away what hangs on a mask by a bridge that is thinner than itself, until nothing does.

    Parameters
    ----------
    mask : (z, y, x) bool
    scale : int
        Bridges of up to twice as many voxels are cut; 0 cuts none.

    Returns
    -------
    (z, y, x) bool
        The mask itself where it is one voxel thick.
    """
    if scale == 0 or min(mask.shape) == 1:
        return mask
    while True:
        cut = mask
        for one in range(scale, 0, -1):
            cut = _cut(cut, one)
        cut = largest_piece(cut)
        if np.array_equal(cut, mask):
            return mask
        mask = cut


def _cut(mask: np.ndarray, scale: int) -> np.ndarray:
    """Take away what eroding by `scale` voxels parts from the largest piece."""
    from scipy.ndimage import binary_dilation, binary_erosion

    eroded = binary_erosion(mask, iterations=scale)
    parted = eroded & ~largest_piece(eroded)
    if not parted.any():
        return mask
    return mask & ~binary_dilation(parted, iterations=scale + 1)
