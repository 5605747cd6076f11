"""Halos of blocks: mirrored where an array ends, and cut off when the work is done."""

from __future__ import annotations

import numpy as np


def reflect(start: int, stop: int, length: int, edge: bool) -> np.ndarray:
    """Return indices in [0, length) for positions start to stop, mirrored at the ends as often as needed.

    `edge` repeats the first and last item (numpy's "symmetric", scipy's
    "reflect"); without it they are not repeated (numpy's "reflect").
    """
    positions = np.arange(start, stop)
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * length if edge else 2 * (length - 1)
    positions = positions % period
    mirrored = period - positions - (1 if edge else 0)
    return np.where(positions < length, positions, mirrored)


def trimmed(block: np.ndarray, bounds: tuple[int, int], halo: int) -> np.ndarray:
    """Return a block without its halo along the first axis.

    Parameters
    ----------
    block : ndarray
        Of what was read for `bounds` with `halo`, clipped at the array's ends.
    bounds : (int, int)
        Of the chunk along that axis.
    halo : int
        Items on both sides.
    """
    first = bounds[0] - max(bounds[0] - halo, 0)
    return block[first : first + bounds[1] - bounds[0]]


def extended(block: np.ndarray, bounds: tuple[int, int], halo: int, length: int, edge: bool) -> np.ndarray:
    """Return a block with its whole halo along the first axis, mirrored where the array ends.

    Parameters
    ----------
    block : ndarray
        What was read for `bounds` with `halo`, clipped at the array's ends.
    bounds : (int, int)
        Of the chunk along that axis.
    halo : int
        Items on both sides.
    length : int
        Of the array along that axis.
    edge : bool
        As in :func:`reflect`.
    """
    first = max(bounds[0] - halo, 0)
    return block[reflect(bounds[0] - halo, bounds[1] + halo, length, edge) - first]
