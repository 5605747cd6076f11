"""The weights of Lanczos-3, plain or stretched, for every shift between pixels."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from mpiimg.astro.kernels.places import SHIFTS
from mpiimg.kernels.lanes import LANES

#: Pixels to each side that Lanczos-3 reaches when it is not stretched.
REACH = 3


class Lanczos(NamedTuple):
    """The kernel by shift: what does not depend on the data."""

    weights: np.ndarray  # flat float32, `width` per shift: w0, w0^2, w1, w1^2, ... then zeros
    squares: np.ndarray  # (SHIFTS + 1,) float32: the sum of w^2
    taps: int  # pixels per side of its footprint
    width: int


def taps_of(stretch: float) -> int:
    """Return how many pixels per side the footprint of the kernel has, stretched by so much: an even number.

    Half of them lie left of (below) the place and on its pixel, and half beyond.
    """
    return 2 * math.ceil(REACH * stretch)


@functools.lru_cache(16)
def lanczos(stretch: float = 1.0) -> Lanczos:
    """Return Lanczos-3 stretched to `stretch` times its width, the weights of each shift adding up to one.

    Image and variance lie interleaved and take w and w^2; rows begin on 64-byte boundaries.
    """
    taps = taps_of(stretch)
    width = -(-2 * taps // LANES) * LANES
    shift = np.arange(SHIFTS + 1) / SHIFTS
    distance = (shift[:, None] - (np.arange(taps) - (taps // 2 - 1))) / stretch
    weights = np.zeros(distance.shape)
    for index, d in np.ndenumerate(distance):
        # The C library's sine: numpy's rounds differently from one CPU to another.
        if d == 0:
            weights[index] = 1.0
        elif abs(d) < REACH and d != round(d):
            weights[index] = 3 * math.sin(math.pi * d) * math.sin(math.pi * d / 3) / (math.pi * d) ** 2
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    room = np.zeros((SHIFTS + 1) * width + LANES, np.float32)
    skip = -(room.ctypes.data // room.itemsize) % LANES
    table = room[skip : skip + (SHIFTS + 1) * width]
    rows = table.reshape(SHIFTS + 1, width)
    rows[:, 0 : 2 * taps : 2] = weights
    rows[:, 1 : 2 * taps : 2] = weights * weights
    squares = np.square(weights, dtype=np.float64).sum(axis=1).astype(np.float32)
    return Lanczos(table, squares, taps, width)
