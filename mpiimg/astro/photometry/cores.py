"""Sources of which a coadd has lost an exposure where most of their light is."""

from __future__ import annotations

import numpy as np


def flag_cores(
    table: np.ndarray, mask: np.ndarray, origin: tuple[int, int], bit: int, radius: float
) -> np.ndarray:
    """Return sources whose `mask_flags` have a bit where a pixel of their core has it, and nowhere else.

    Parameters
    ----------
    table : structured array
        Rows of a catalogue; `x` and `y` are pixels of the tract.
    mask : (rows, columns) int32
    origin : (int, int)
        Row and column of its first pixel in the tract.
    bit : int
        Value of the bit.
    radius : float
        Of the core, in pixels: the FWHM of stars; NaN for the median of the sources.
    """
    table = table.copy()
    table["mask_flags"] &= ~np.int32(bit)
    marked = (mask & bit) != 0
    if not len(table) or not marked.any():
        return table
    if not np.isfinite(radius):
        radius = float(np.nanmedian(table["fwhm"]))
    y, x = table["y"] - origin[0], table["x"] - origin[1]
    reach = int(np.ceil(radius))
    near = np.zeros(len(table), bool)
    rows, columns = np.rint(y).astype(int), np.rint(x).astype(int)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            row, column = rows + dy, columns + dx
            inside = (row - y) ** 2 + (column - x) ** 2 < radius**2
            inside &= (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
            near[inside] |= marked[row[inside], column[inside]]
    table["mask_flags"] |= near * np.int32(bit)
    return table
