"""Noise level from differences between neighbours, volume by volume: dipy's estimate_sigma, to the bit."""

from __future__ import annotations

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Found, Reduce
from mpiimg.neuro.images import finite, value_bytes
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of

#: By number of coils, the variance of a magnitude without signal over that of the noise (Koay and Basser
#: 2006, doi:10.1016/j.jmr.2006.01.016), as dipy has it; 0 stands for no correction.
ESTIMATE_CORRECTION = {
    0: 1,
    1: 0.42920367320510366,
    4: 0.4834941393603609,
    6: 0.4891759468548269,
    8: 0.49195420135894175,
    12: 0.4946862482541263,
    16: 0.4960339908122364,
    20: 0.4968365823718557,
    24: 0.49736907650825657,
    32: 0.49803177052530145,
    64: 0.49901964176235936,
}

#: Slices whose differences are made at once.
ESTIMATE_SLICES = 8


def estimate(image: Image, dwi: Array, coils: int) -> Reduce[np.ndarray]:
    """Estimate the noise of each volume from the differences between neighbours.

    Returns
    -------
    Reduce
        The noise level by volume, (V, 1) float64.
    """
    return Reduce(
        "noise",
        ChunkGrid("v", (image.shape[0],), (1,)),
        reads=(Part(dwi),),
        work=lambda chunk, block: _estimate_sigma(finite(image.scaled(block[0])), coils),
        row=((), "float64"),
        finish=lambda rows: Found(np.asarray(rows)[:, None]),
        parameters={"coils": coils},
        cost=("estimate", float(np.prod(dwi.shape))),
        scratch=int(np.prod(dwi.shape[1:])) * (value_bytes(image) + 8)
        + 3 * ESTIMATE_SLICES * int(np.prod(dwi.shape[2:])) * 8,
        expected=np.ones((1, 1)),
    )


def _estimate_sigma(values: np.ndarray, coils: int) -> float:
    """Return what dipy's estimate_sigma does of a volume, to the last bit, in a quarter of its memory.

    The mean of the squares is taken over the whole volume at once, as dipy does: the order of a sum shows
    in its last bits. Only the differences that are squared are made some slices at a time.
    """
    from scipy.ndimage import convolve

    neighbours = np.zeros((3, 3, 3), np.int8)
    for axis in range(3):
        for end in (0, 2):
            neighbours[tuple(end if a == axis else 1 for a in range(3))] = 1
    squares = np.empty(values.shape, np.float64)
    for first in range(0, len(values), ESTIMATE_SLICES):
        start, stop = max(first - 1, 0), min(first + ESTIMATE_SLICES + 1, len(values))
        last = min(first + ESTIMATE_SLICES, len(values))
        around = convolve(values[start:stop].astype(np.float64), neighbours)
        around = around[first - start : last - start]
        squares[first:last] = (np.sqrt(6 / 7) * (values[first:last] - 1 / 6 * around)) ** 2
    return np.float32(np.sqrt(np.mean(squares.ravel()) / ESTIMATE_CORRECTION[coils]))


def sample_estimate() -> RateSample:
    """Estimate the noise of a volume; voxels."""
    image, voxels = image_of((1, 32, 64, 64))
    return chunk_sample(estimate(image, image.array("dwi"), 0), 0, voxels)
