"""How well principal directions follow each other from voxel to voxel, for many tables of gradients at once.

If the vectors of a table are turned by R, the tensors are R D R', and so the directions are R v: no table but
the given one needs a fit. After Schilling et al., Magn. Reson. Imaging 59 (2019) 130, who use streamlines.
"""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel

#: Half of a voxel's 26 neighbours, as (z, y, x) steps: the other halves of the pairs are those of the others.
STEPS = np.array([(z, y, x) for z in (0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if (z, y, x) > (0, 0, 0)])

#: Voxels of the blocks along each axis whose scores are kept apart, odd and even ones.
BLOCK = 8

#: Fibres go on within this angle.
MIN_COSINE = np.cos(np.radians(30))


def continuity_scores(
    fa: np.ndarray, v1: np.ndarray, turned: np.ndarray, first: int, depth: int, min_fa: float
) -> tuple[np.ndarray, np.ndarray]:
    """Score tables of gradients on a run of slices.

    Parameters
    ----------
    fa : (z, y, x) float32
        0 outside the mask. The last slice may be one after those that are counted.
    v1 : (3, z, y, x) float32
        Unit vectors along the axes of the bvecs.
    turned : (tables, 13, 3) float64
        For each table and neighbour of `STEPS` the unit vector to it, turned back into the axes of the bvecs.
    first : int
        Number of the first slice in the image.
    depth : int
        How many of the slices are counted.
    min_fa : float
        Voxels below it are passed over, and are no neighbours.

    Returns
    -------
    scores : (2, tables) float64
        The sum of FA(x) FA(x + n) over pairs of neighbours along which the directions of both go on, in even
        and in odd blocks of 8 x 8 x 8 voxels.
    counted : (z, y, x) bool
        The voxels that were counted.
    """
    counted = fa[:depth] > min_fa
    scores = np.zeros((2, len(turned)))
    _score(
        np.ascontiguousarray(fa, np.float32),
        np.ascontiguousarray(v1, np.float32),
        np.ascontiguousarray(turned, np.float64),
        STEPS,
        first,
        depth,
        min_fa,
        scores,
    )
    return scores, counted


@kernel
def _score(fa, v1, turned, steps, first, depth, min_fa, scores):
    deep, height, width = fa.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                if fa[z, y, x] <= min_fa:
                    continue
                block = ((first + z) // BLOCK + y // BLOCK + x // BLOCK) % 2
                ax, ay, az = v1[0, z, y, x], v1[1, z, y, x], v1[2, z, y, x]
                for s in range(len(steps)):
                    nz, ny, nx = z + steps[s, 0], y + steps[s, 1], x + steps[s, 2]
                    if not (nz < deep and 0 <= ny < height and 0 <= nx < width):
                        continue
                    if fa[nz, ny, nx] <= min_fa:
                        continue
                    bx, by, bz = v1[0, nz, ny, nx], v1[1, nz, ny, nx], v1[2, nz, ny, nx]
                    pair = np.float64(fa[z, y, x]) * np.float64(fa[nz, ny, nx])
                    for k in range(len(turned)):
                        tx, ty, tz = turned[k, s, 0], turned[k, s, 1], turned[k, s, 2]
                        here = abs(ax * tx + ay * ty + az * tz)
                        there = abs(bx * tx + by * ty + bz * tz)
                        if here > MIN_COSINE and there > MIN_COSINE:
                            scores[block, k] += pair


def precompile() -> None:
    """Call the kernel on a tiny input of the types that the check gives it."""
    fa = np.ones((2, 2, 2), np.float32)
    continuity_scores(fa, np.ones((3, 2, 2, 2), np.float32), np.ones((1, 13, 3)), 0, 1, 0.25)
