"""Replace bad pixels by what lies between the nearest good ones."""

from __future__ import annotations

import math

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.lanes import fma_float64

#: A gap without a good pixel at both ends.
_FAR = 2**31 - 1


@kernel
def _find_bad(image, variance, bad):
    """Return the places (n, 2) of pixels that are flagged or not finite, row by row."""
    ny, nx = image.shape
    places = np.empty((1024, 2), np.int32)
    count = 0
    for y in range(ny):
        wrong = False
        for x in range(nx):
            wrong |= bad[y, x] | (not math.isfinite(image[y, x])) | (not math.isfinite(variance[y, x]))
        if not wrong:
            continue
        while places.shape[0] < count + nx:
            longer = np.empty((2 * places.shape[0], 2), np.int32)
            longer[:count] = places[:count]
            places = longer
        for x in range(nx):
            if bad[y, x] or not math.isfinite(image[y, x]) or not math.isfinite(variance[y, x]):
                places[count, 0], places[count, 1] = y, x
                count += 1
    return places[:count]


@kernel
def _mark_gaps(places, shape):
    """Return, for each bad pixel, the nearest good ones: x left, x right, y above, y below; -1 for none."""
    ny, nx = shape
    gaps = np.empty((places.shape[0], 4), np.int32)
    count = places.shape[0]
    for step, along, down in ((1, 0, 2), (-1, 1, 3)):
        # The last bad pixel seen, in this row and in each column, and the good one before its run.
        row, column, end_x = -2, -2, -1
        row_of, end_y = np.full(nx, -2, np.int32), np.full(nx, -1, np.int32)
        for n in range(count):
            k = n if step > 0 else count - 1 - n
            y, x = places[k]
            if row != y or column != x - step:
                end_x = x - step if 0 <= x - step < nx else -1
            if row_of[x] != y - step:
                end_y[x] = y - step if 0 <= y - step < ny else -1
            row, column, row_of[x] = y, x, y
            gaps[k, along], gaps[k, down] = end_x, end_y[x]
    return gaps


@kernel
def _choose_ends(y, x, gap):
    """Return the two good pixels (y, x) to interpolate between, and the way to the bad one; -1 if none."""
    left, right, above, below = gap
    across = right - left if left >= 0 and right >= 0 else _FAR
    down = below - above if above >= 0 and below >= 0 else _FAR
    if across < _FAR and across <= down:
        return y, left, y, right, (x - left) / across
    if down < _FAR:
        return above, x, below, x, (y - above) / down
    nearest, end_y, end_x = _FAR, -1, -1
    if left >= 0:
        nearest, end_y, end_x = x - left, y, left
    if right >= 0 and right - x < nearest:
        nearest, end_y, end_x = right - x, y, right
    if above >= 0 and y - above < nearest:
        nearest, end_y, end_x = y - above, above, x
    if below >= 0 and below - y < nearest:
        nearest, end_y, end_x = below - y, below, x
    return end_y, end_x, end_y, end_x, 0.0


@kernel
def _between(plane, ends):
    """Return the value that lies linearly between two pixels; no result where either is missing."""
    y0, x0, y1, x1, t = ends
    first, last = float(plane[y0, x0]), float(plane[y1, x1])
    return np.float32(fma_float64(t, last - first, first))


@kernel
def _fill(image, variance, places, gaps):
    """Interpolate at `places`, in place, reading good pixels only; return how many stay unknown."""
    unknown = 0
    for k in range(places.shape[0]):
        y, x = places[k]
        ends = _choose_ends(y, x, (gaps[k, 0], gaps[k, 1], gaps[k, 2], gaps[k, 3]))
        if ends[0] < 0:
            image[y, x], variance[y, x] = np.nan, np.inf
            unknown += 1
        else:
            image[y, x], variance[y, x] = _between(image, ends), _between(variance, ends)
    return unknown


def interpolate_bad(image, variance, bad, copy=True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace bad pixels by what lies between the nearest good ones.

    Linearly along the row or along the column, whichever gap of bad pixels is shorter (the row at a tie).
    Where neither has good pixels at both ends, at the edge of the image, the nearest good one at the end of a
    gap is repeated. A pixel with no good one in its row and column, where bad ones cross, is done afterwards
    from the pixels just replaced. The variance is interpolated alike, not as that of an independent mean: it
    then is the noise level around the gap.

    Parameters
    ----------
    image, variance : (ny, nx) float32, C-contiguous
    bad : (ny, nx) bool
        Pixels to replace; those where image or variance is not finite are replaced as well.
    copy : bool
        False: work in place, which saves a whole exposure's memory.

    Returns
    -------
    image, variance : (ny, nx) float32
        Without the bad pixels; NaN and inf if no pixel at all is good.
    replaced : (ny, nx) bool
        What differs: for the mask plane INTRP.
    """
    if copy:
        image, variance = image.copy(), variance.copy()
    replaced = np.zeros(image.shape, bool)
    places = _find_bad(image, variance, bad)
    replaced[places[:, 0], places[:, 1]] = True
    unknown = _fill(image, variance, places, _mark_gaps(places, image.shape))
    if 0 < unknown < image.size:
        places = _find_bad(image, variance, np.zeros_like(replaced))
        _fill(image, variance, places, _mark_gaps(places, image.shape))
    return image, variance, replaced


def precompile() -> None:
    """Call the kernels on a frame with bad pixels."""
    image = np.random.default_rng(0).normal(100, 10, (40, 48)).astype(np.float32)
    bad = np.zeros(image.shape, dtype=bool)
    bad[5, 5:8] = True
    interpolate_bad(image, np.full(image.shape, 100, np.float32), bad)
