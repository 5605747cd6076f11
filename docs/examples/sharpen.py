"""An unsharp mask compiled by numba: the difference of a voxel from its neighbours along z is amplified."""

import numba
import numpy as np


@numba.njit(cache=True)
def sharpen(block, strength=0.5):
    x, y, z = block.shape
    out = np.empty((x, y, z), np.float32)
    for k in range(z):
        below, above = max(k - 1, 0), min(k + 1, z - 1)
        for j in range(y):
            for i in range(x):
                around = (block[i, j, below] + block[i, j, above]) / 2
                out[i, j, k] = block[i, j, k] + strength * (block[i, j, k] - around)
    return out
