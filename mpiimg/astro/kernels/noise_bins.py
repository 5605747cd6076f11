"""Residuals of a frame in bins, in units of what is taken for their noise."""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel

#: Side of a bin, in pixels: noise that neighbours share shows in sums over so many.
BIN = 4


@kernel
def bin_residuals(image, sky, variance, useless, out):
    """Sum (image - sky) / sqrt(variance) over bins of BIN x BIN pixels, over the root of their number.

    Parameters
    ----------
    image, sky, variance : (ny, nx) float32
        `variance` of one pixel, (1, 1), holds for all.
    useless : (ny, nx) bool
    out : (ny // BIN, nx // BIN) float32
        Filled; NaN where a pixel of the bin is useless or its residual is not finite. Rows and columns of
        pixels behind the last whole bin are left out.
    """
    constant = variance.size == 1
    width = out.shape[1] * BIN
    sums, bad = np.empty(width, np.float32), np.empty(width, np.bool_)
    for row in range(out.shape[0]):
        sums[:], bad[:] = np.float32(0), False
        for y in range(row * BIN, row * BIN + BIN):
            values, level, masked, spread = image[y], sky[y], useless[y], variance[0 if constant else y]
            for x in range(width):
                bad[x] |= masked[x]
            if constant:
                for x in range(width):
                    sums[x] += (values[x] - level[x]) / np.sqrt(spread[0])
            else:
                for x in range(width):
                    sums[x] += (values[x] - level[x]) / np.sqrt(spread[x])
        for column in range(out.shape[1]):
            total, useful = np.float32(0), True
            for x in range(column * BIN, column * BIN + BIN):
                total += sums[x]
                useful &= not bad[x]
            total /= np.float32(BIN)
            out[row, column] = total if useful and abs(total) < np.inf else np.float32(np.nan)


@kernel
def pixel_residuals(image, sky, variance, bins, out):
    """Collect the residuals of the pixels of bins.

    Parameters
    ----------
    image, sky, variance
        As :func:`bin_residuals` has them.
    bins : (n, 2) int64
        Rows and columns of bins.
    out : (n, BIN * BIN) float32
        Filled.
    """
    constant = variance.size == 1
    for k in range(bins.shape[0]):
        n = 0
        for y in range(bins[k, 0] * BIN, bins[k, 0] * BIN + BIN):
            for x in range(bins[k, 1] * BIN, bins[k, 1] * BIN + BIN):
                noise = np.sqrt(variance[0, 0] if constant else variance[y, x])
                out[k, n] = (image[y, x] - sky[y, x]) / noise
                n += 1


def precompile() -> None:
    """Call the kernels on a small frame."""
    plane = np.ones((8, 8), np.float32)
    bin_residuals(plane, plane, plane, np.zeros((8, 8), bool), np.empty((2, 2), np.float32))
    pixel_residuals(plane, plane, plane, np.zeros((1, 2), np.int64), np.empty((1, BIN * BIN), np.float32))
