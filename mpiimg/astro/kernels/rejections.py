"""Pixels that hang together, and which of these groups are artifacts: there in few of many exposures."""

from __future__ import annotations

import numpy as np

from mpiimg.astro.kernels.compare import FEW, HIT
from mpiimg.kernels.jit import kernel

#: Why a pixel of an exposure is left out: it stands out itself, or lies on a trail.
STANDS_OUT, ON_TRAIL = 1, 2


@kernel
def _grow(codes, grown):
    """Mark hits and their eight neighbours."""
    height, width = codes.shape
    for y in range(height):
        line = codes[y]
        some = 0
        for x in range(width):
            some += line[x] & HIT
        if some == 0:
            continue
        for x in range(width):
            if line[x] & HIT:
                for row in range(max(y - 1, 0), min(y + 2, height)):
                    for column in range(max(x - 1, 0), min(x + 2, width)):
                        grown[row, column] = 1


@kernel
def _find_runs(mask, runs):
    """Write row, first column and end of every run of pixels, as far as there is room; return how many."""
    height, width = mask.shape
    count = 0
    for y in range(height):
        line = mask[y]
        some = 0
        for x in range(width):
            some += 1 if line[x] else 0
        if some == 0:
            continue
        x = 0
        while x < width:
            if line[x]:
                first = x
                while x < width and line[x]:
                    x += 1
                if count < len(runs):
                    runs[count, 0], runs[count, 1], runs[count, 2] = y, first, x
                count += 1
            x += 1
    return count


@kernel
def _root(parents, i):
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@kernel
def _label(runs, labels):
    """Number the groups of runs that touch, corners too, by their first runs; return how many."""
    n = len(runs)
    parents = np.arange(n)
    start = 0
    for i in range(n):
        y = runs[i, 0]
        while start < n and runs[start, 0] < y - 1:
            start += 1
        j = start
        while j < n and runs[j, 0] == y - 1 and runs[j, 1] <= runs[i, 2]:
            if runs[j, 2] >= runs[i, 1]:
                a, b = _root(parents, i), _root(parents, j)
                parents[max(a, b)] = min(a, b)
            j += 1
    count = 0
    for i in range(n):
        root = _root(parents, i)
        if root == i:
            labels[i] = count
            count += 1
        else:
            labels[i] = labels[root]
    return count


@kernel
def _shares(runs, labels, codes, total, few):
    """Count the pixels of each group, and those of them that were hit in few exposures."""
    for i in range(len(runs)):
        y, first, end = runs[i, 0], runs[i, 1], runs[i, 2]
        group = labels[i]
        total[group] += end - first
        for x in range(first, end):
            few[group] += 1 if codes[y, x] & FEW else 0


@kernel
def _paint(runs, labels, chosen, value, out):
    for i in range(len(runs)):
        if chosen[labels[i]]:
            for x in range(runs[i, 1], runs[i, 2]):
                out[runs[i, 0], x] |= value


def groups(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the pixels of a mask that hang together, by edges or corners.

    Parameters
    ----------
    mask : (h, w) uint8

    Returns
    -------
    runs : (runs, 3) int64
        Row, first column and end of each run of pixels, in the order of rows and columns.
    labels : (runs,) int64
        The group that each belongs to, from 0 in the order of their first runs.
    count : int
        Of groups.
    """
    runs = np.empty((1 << 12, 3), np.int64)
    number = _find_runs(mask, runs)
    if number > len(runs):
        runs = np.empty((number, 3), np.int64)
        _find_runs(mask, runs)
    runs = runs[:number]
    labels = np.empty(number, np.int64)
    return runs, labels, _label(runs, labels)


def rejected(codes: np.ndarray) -> np.ndarray:
    """Return what of an exposure is an artifact.

    Hits are grown by one pixel on all sides; those that then hang together are an artifact if at least half
    of their pixels were hit in few exposures.

    Parameters
    ----------
    codes : (h, w) uint8
        As :func:`mpiimg.astro.kernels.compare.hits` returns them, and FEW.

    Returns
    -------
    (h, w) uint8
        STANDS_OUT, else 0.
    """
    grown = np.zeros(codes.shape, np.uint8)
    _grow(codes, grown)
    runs, labels, number = groups(grown)
    total, few = np.zeros(number, np.int64), np.zeros(number, np.int64)
    _shares(runs, labels, codes, total, few)
    out = np.zeros(codes.shape, np.uint8)
    _paint(runs, labels, 2 * few >= total, np.uint8(STANDS_OUT), out)
    return out


def precompile() -> None:
    """Call the kernels on one hit."""
    codes = np.full((5, 9), FEW, np.uint8)
    codes[2, 4] |= HIT
    rejected(codes)
