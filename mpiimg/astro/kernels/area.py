"""Light added up by area: each source pixel gives an output pixel the share that lies in it.

For output pixels much larger than those of the source. The corners of an output pixel lie where cubics put
them, and it is the quadrilateral between them; what it shares with a pixel of the source is exact.

References
----------
A. Fruchter and R. Hook 2002, PASP 114, 144, doi:10.1086/338393 (drizzling with whole pixels).
"""

from __future__ import annotations

import math

import numpy as np

from mpiimg.astro.kernels.places import CUBICS, NODE_SPACING, four_columns, weighted
from mpiimg.kernels.jit import kernel
from mpiimg.kernels.lanes import fma_float64

#: Of an output pixel's area, the least that good pixels must cover.
MIN_GOOD = 0.5

#: Heights that differ by less are taken as one, lest their difference divide.
_LEVEL = 1e-6


@kernel
def _locate_corners(nodes, cubics, where, k, x, y):
    """Fill a line of x and y of the corners half a pixel before row `k` of a cell, (NODE_SPACING + 1,)."""
    i, j = where
    x0, x1, x2, x3 = four_columns(nodes.x, i, j, cubics.corner[:, k])
    y0, y1, y2, y3 = four_columns(nodes.y, i, j, cubics.corner[:, k])
    c = cubics.corner
    for n in range(NODE_SPACING + 1):
        x[n] = weighted(c[0, n], c[1, n], c[2, n], c[3, n], x0, x1, x2, x3)
        y[n] = weighted(c[0, n], c[1, n], c[2, n], c[3, n], y0, y1, y2, y3)


@kernel
def _below(height):
    """Return the integral, from 0 up to `height`, of what is clamped to between 0 and 1."""
    return 0.0 if height <= 0 else 0.5 * height * height if height < 1 else height - 0.5


@kernel
def _under_edge(x0, y0, x1, y1):
    """Return the area between an edge and the x axis inside the unit square, negative where x falls."""
    start, end = min(max(x0, 0.0), 1.0), min(max(x1, 0.0), 1.0)
    if start == end:
        return 0.0
    slope = (y1 - y0) / (x1 - x0)
    first, last = fma_float64(slope, start - x0, y0), fma_float64(slope, end - x0, y0)
    if abs(last - first) < _LEVEL:
        mean = min(max(0.5 * (first + last), 0.0), 1.0)
    else:
        mean = (_below(last) - _below(first)) / (last - first)
    return (end - start) * mean


@kernel
def _share(qx, qy, x, y):
    """Return the area that a quadrilateral has in the pixel centred at (x, y): 0 to 1."""
    left, low = x - 0.5, y - 0.5
    total = 0.0
    for k in range(4):
        n = (k + 1) % 4
        total += _under_edge(qx[k] - left, qy[k] - low, qx[n] - left, qy[n] - low)
    return min(abs(total), 1.0)


@kernel
def _whole(qx, qy, turn, x, y):
    """Tell how the pixel at (x, y) lies to a quadrilateral of this sense: 1 inside, -1 outside, 0 neither."""
    inside = 1
    for k in range(4):
        n = (k + 1) % 4
        along, up = qx[n] - qx[k], qy[n] - qy[k]
        distance = turn * (along * (y - qy[k]) - up * (x - qx[k]))
        reach = 0.5 * (abs(along) + abs(up))
        if distance <= -reach:
            return -1
        if distance < reach:
            inside = 0
    return inside


@kernel
def _gather_pixel(source, qx, qy, excluded):
    """Return the sums of a quadrilateral's shares of good pixels, and of image and variance times them.

    Returns
    -------
    good, value, noise, noise_ls : float
        Sums of share, share image, share^2 variance and share variance; the area of the quadrilateral.
    area : float
    bits : int
        Of the masks of good pixels.
    """
    ny, nx = source.image.shape
    bits = source.mask.dtype.type(0)
    turned = 0.5 * ((qx[2] - qx[0]) * (qy[3] - qy[1]) - (qx[3] - qx[1]) * (qy[2] - qy[0]))
    turn, area = (1.0 if turned > 0 else -1.0), abs(turned)
    good = value = noise = noise_ls = 0.0
    # Also false where a corner is NaN.
    if not (area > 0 and max(np.abs(qx).max(), np.abs(qy).max()) < 1e9):
        return good, value, noise, noise_ls, 0.0, bits
    y0, y1 = max(math.floor(qy.min() + 0.5), 0), min(math.floor(qy.max() + 0.5), ny - 1)
    x0, x1 = max(math.floor(qx.min() + 0.5), 0), min(math.floor(qx.max() + 0.5), nx - 1)
    for y in range(y0, y1 + 1):
        for x in range(x0, x1 + 1):
            image, variance, mask = source.image[y, x], source.variance[y, x], source.mask[y, x]
            if (mask & excluded) or not (math.isfinite(image) and math.isfinite(variance)):
                continue
            side = _whole(qx, qy, turn, float(x), float(y))
            if side < 0:
                continue
            share = 1.0 if side > 0 else _share(qx, qy, float(x), float(y))
            if share > 0:
                good += share
                value = fma_float64(share, float(image), value)
                noise = fma_float64(share * share, float(variance), noise)
                noise_ls = fma_float64(share, float(variance), noise_ls)
                bits |= mask
    return good, value, noise, noise_ls, area, bits


@kernel
def _gather_cells(source, nodes, box, cubics, scale, no_data, excluded, out):
    """Gather cell by cell; see :func:`gather`."""
    (y_start, y_stop), (x_start, x_stop) = box
    x, y = np.empty((2, NODE_SPACING + 1)), np.empty((2, NODE_SPACING + 1))
    qx, qy = np.empty(4), np.empty(4)
    for i in range(y_start // NODE_SPACING, (y_stop - 1) // NODE_SPACING + 1):
        for j in range(x_start // NODE_SPACING, (x_stop - 1) // NODE_SPACING + 1):
            where = i - 1 - nodes.row, j - 1 - nodes.column
            left, right = max(x_start, j * NODE_SPACING), min(x_stop, (j + 1) * NODE_SPACING)
            for row in range(max(y_start, i * NODE_SPACING), min(y_stop, (i + 1) * NODE_SPACING)):
                for edge in range(2):
                    _locate_corners(nodes, cubics, where, row + edge - i * NODE_SPACING, x[edge], y[edge])
                for column in range(left, right):
                    n = column - j * NODE_SPACING
                    qx[0], qx[1], qx[2], qx[3] = x[0, n], x[0, n + 1], x[1, n + 1], x[1, n]
                    qy[0], qy[1], qy[2], qy[3] = y[0, n], y[0, n + 1], y[1, n + 1], y[1, n]
                    sums = _gather_pixel(source, qx, qy, excluded)
                    _write(sums, row - y_start, column - x_start, scale, no_data, out)


@kernel
def _write(sums, y, x, scale, no_data, out):
    good, value, noise, noise_ls, area, bits = sums
    enough = (good > 0) & (good >= MIN_GOOD * area)
    # Good pixels stand for those that are left out.
    factor = scale * area / good if enough else 0.0
    squared = factor * factor
    finite = enough and math.isfinite(np.float32(value * factor))
    finite = finite and math.isfinite(np.float32(noise_ls * squared))
    out.image[y, x] = np.float32(value * factor) if finite else np.float32(np.nan)
    out.variance[y, x] = np.float32(noise * squared) if finite else np.float32(np.inf)
    out.variance_ls[y, x] = np.float32(noise_ls * squared) if finite else np.float32(np.inf)
    out.mask[y, x] = bits if finite else bits | no_data


def gather(source, nodes, box, scale, no_data, excluded, out) -> None:
    """Fill `out` with the light of source pixels by the area that each shares with an output pixel.

    Parameters
    ----------
    source : Pixels
    nodes : Nodes
    box : ((y0, y1), (x0, x1))
    scale, no_data
        As :func:`mpiimg.astro.kernels.warp.resample` has them, in the types of the planes.
    excluded : int
        Bits of pixels that are left out, and so are those that are not finite.
    out : Resampled
        Image: sum of share x image over good pixels, times area of the output pixel over that of their
        shares, and scale. Variances: sums of share^2 x variance, and for many pixels of share x variance,
        times the square of both. Mask: all bits of good pixels with a share. Where less than MIN_GOOD of the
        output pixel is covered by good ones: NaN, inf and `no_data`.
    """
    _gather_cells(source, nodes, box, CUBICS, float(scale), no_data, excluded, out)
