"""Sixteen operations that image pipelines are made of: inputs, what NumPy makes of them, and the functions.

A system's file has a function of the same name for each operation that it can say; `check.py` runs them.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter, minimum_filter

#: How each operation is called in tables.
OPERATIONS = {
    "same_shape": "map, same shape",
    "outputs": "several outputs of a function",
    "other_shape": "output of another shape: crop, coarsen, transpose",
    "stencil": "stencil with a halo along any axes",
    "plane": "cut in x and y, for one plane or slice",
    "over_time": "reduction over t",
    "over_space": "reduction over x, y or z to an array",
    "ragged": "aggregate to a ragged list or a table",
    "value": "an aggregate's value in the next stage",
    "own_map": "a map or mask of mine in the next stage",
    "join": "join of two images",
    "group": "flat map and group by a key of mine",
    "loop": "loop until converged",
    "reader": "a reader of mine",
    "in_memory": "a NumPy array in",
    "complex": "a complex result",
}

_RANDOM = np.random.default_rng(16)

#: A series (x, y, z, t), a reference (x, y, z), a plane (y, x): of whole numbers, so that sums have no order.
SERIES = _RANDOM.integers(0, 1000, (12, 10, 8, 6)).astype(np.float32)
REFERENCE = _RANDOM.integers(1, 9, SERIES.shape[:3]).astype(np.float32)
PLANE = _RANDOM.integers(0, 60_000, (300, 260)).astype(np.uint16)

#: What counts as bright.
BRIGHT = 950


def scaled(block):
    return 2 * block + 1


def peak(block):
    """Return the largest value along the last axis, and where it is."""
    return block.max(axis=-1), block.argmax(axis=-1)


def smooth(block):
    return median_filter(block, 3, mode="reflect")


def median_of_volumes(block):
    """Return every volume of a series, filtered."""
    return median_filter(block, (3, 3, 3, 1), mode="reflect")


def lowest(block):
    return minimum_filter(block, 5, mode="reflect")


def places(volume):
    """Return the bright voxels of a volume, (n, 3)."""
    return np.argwhere(volume > BRIGHT)


def inside(block, mask):
    """Return the means over the last axis where a mask is set."""
    return np.where(mask, block.mean(axis=-1), 0)


def inside_of(block, mask):
    """Do so where the mask has a last axis of one item."""
    return inside(block, mask[..., 0])


def corrected(block, reference):
    return block / reference


def spectrum(block):
    return np.fft.fft(block, axis=-1)


def halves(volume):
    """Yield (key, half of a volume): the key is chosen by what is in it."""
    for half in np.split(volume, 2):
        yield int(half.sum()) % 3, half


def read_series(box):
    """Return a part of the series, as a reader of files would; a slice for each axis."""
    return SERIES[box]


def _grouped():
    sums = {}
    for volume in np.moveaxis(SERIES, -1, 0):
        for key, half in halves(volume):
            sums[key] = sums.get(key, 0) + half
    return dict(sorted(sums.items()))


def _halved():
    state, passes = SERIES, 0
    while state.max() >= 1:
        state, passes = state / 2, passes + 1
    return state, passes


#: What NumPy makes of each operation.
EXPECTED = {
    "same_shape": scaled(SERIES),
    "outputs": peak(SERIES),
    "other_shape": SERIES[2:10].reshape(4, 2, 5, 2, 8, 6).mean(axis=(1, 3)).transpose(),
    "stencil": np.stack([smooth(volume) for volume in np.moveaxis(SERIES, -1, 0)], axis=-1),
    "plane": lowest(PLANE),
    "over_time": SERIES.mean(axis=-1, dtype=np.float64),
    "over_space": SERIES.sum(axis=1),
    "ragged": [places(volume) for volume in np.moveaxis(SERIES, -1, 0)],
    "value": SERIES - SERIES.max(),
    "own_map": inside(SERIES, SERIES.max(axis=-1) > 900),
    "join": corrected(SERIES, REFERENCE[..., None]),
    "group": _grouped(),
    "loop": _halved(),
    "reader": scaled(SERIES),
    "in_memory": SERIES.max(axis=(0, 1, 2)),
    "complex": spectrum(SERIES),
}


def agrees(name: str, result) -> bool:
    """Say whether a result is what NumPy makes of it: to the last bit, types included."""
    return _same(result, EXPECTED[name])


def require(name: str, result) -> None:
    """Raise an error that says how a result differs from NumPy's, if it does."""
    if not agrees(name, result):
        raise AssertionError(f"{name}: {_said(result)}, and not {_said(EXPECTED[name])}")


def _said(value) -> str:
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    value = np.asarray(value)
    return f"{value.dtype} {value.shape} {value.ravel()[:4]}"


def _same(one, other) -> bool:
    if isinstance(other, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in other)
    if isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
