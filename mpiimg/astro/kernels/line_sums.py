"""Loops of the search for trails: sums along lines, and the level of what they lie on."""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel

#: Bins that a line must have on data.
MIN_BINS = 64

#: Squares in which the sky is levelled reach so many bins to each side.
SQUARE = 8


@kernel
def double(before, after, size, stripes):
    """Make the sums across stripes of 2 `size` columns from those across stripes of `size`."""
    height = before.shape[1]
    for stripe in range(stripes):
        for shift in range(size):
            left = before[2 * stripe * size + shift]
            right = before[(2 * stripe + 1) * size + shift]
            for more in range(2):
                target = after[2 * stripe * size + 2 * shift + more]
                down = shift + more
                moved = right[down:]
                for y in range(height - down):
                    target[y] = left[y] + moved[y]
                for y in range(height - down, height):
                    target[y] = left[y]


@kernel
def scores(sums, number, out):
    """Write sums over the roots of the numbers of their bins; 0 where there are too few."""
    for i in range(len(sums)):
        enough = number[i] >= MIN_BINS
        out[i] = sums[i] / np.sqrt(number[i] if enough else np.float32(1)) if enough else np.float32(0)


@kernel
def levelled(bins, there, out):
    """Take from bins the mean of those that are there in a square around each: the sky that trails lie on."""
    height, width = bins.shape
    total, count = np.zeros(width), np.zeros(width)
    for y in range(-SQUARE, height):
        after, before = y + SQUARE, y - SQUARE - 1
        for x in range(width):
            if after < height:
                total[x] += bins[after, x]
                count[x] += there[after, x]
            if before >= 0:
                total[x] -= bins[before, x]
                count[x] -= there[before, x]
        if y < 0:
            continue
        across, number = 0.0, 0.0
        for x in range(-SQUARE, width):
            if x + SQUARE < width:
                across += total[x + SQUARE]
                number += count[x + SQUARE]
            if x - SQUARE - 1 >= 0:
                across -= total[x - SQUARE - 1]
                number -= count[x - SQUARE - 1]
            if x >= 0:
                mean = across / number if number > 0 else 0.0
                out[y, x] = np.float32(bins[y, x] - mean) if there[y, x] > 0 else np.float32(0)
