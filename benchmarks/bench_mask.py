"""Brain mask: four passes of a 9x9x9 median and Otsu's threshold, beside dipy's median_otsu.

CPU time of one core; ours and the peer's runs alternate in one process. Both
start from the same mean b0 volume, and their masks are compared bit for bit.
"""

from __future__ import annotations

import statistics
import time

import dipy.segment.mask
import numpy as np
from dipy.segment.threshold import otsu as dipy_otsu

from mpiimg.neuro.kernels import otsu
from mpiimg.neuro.kernels.median import median_filter

#: Extents (x, y, z) as a scanner's protocol names them.
SIZES = {"small": (72, 72, 60), "hcp": (145, 174, 145)}

RADIUS, PASSES = 4, 4

#: Planes of a z-block, without its halo.
THICKNESS = 16


def phantom(size: str, volumes: int = 6, sigma: float = 40.0, seed: int = 1) -> np.ndarray:
    """Return the mean (z, y, x) float32 of noisy integer b0 volumes of a head in air.

    Three nested ellipsoids (fluid, white and grey matter) under a smooth
    receive field, Rician noise of `sigma`.
    """
    rng = np.random.default_rng(seed)
    shape = SIZES[size][::-1]
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    distance = np.sqrt((z / 0.8) ** 2 + (y / 0.85) ** 2 + (x / 0.75) ** 2)
    signal = np.select([distance < 0.35, distance < 0.7, distance < 1], [1800.0, 900.0, 700.0], 0.0)
    signal *= 1 + 0.2 * np.sin(3 * x)
    total = np.zeros(shape)
    for _ in range(volumes):
        total += np.rint(np.hypot(signal + rng.normal(0, sigma, shape), rng.normal(0, sigma, shape)))
    return (total / volumes).astype(np.float32)


def our_mask(volume: np.ndarray, thickness: int = THICKNESS) -> np.ndarray:
    """Return the mask (z, y, x), every step cut into z-blocks as the stages cut it."""
    nz = volume.shape[0]
    cuts = [(z, min(z + thickness, nz)) for z in range(0, nz, thickness)]
    for _ in range(PASSES):
        extended = np.pad(volume, [(RADIUS, RADIUS), (0, 0), (0, 0)], mode="symmetric")
        volume = np.concatenate([median_filter(extended[a : b + 2 * RADIUS], RADIUS) for a, b in cuts])
    low, high = volume.min(), volume.max()
    counts = sum(otsu.histogram(volume[a:b], low, high) for a, b in cuts)
    return volume > otsu.threshold(counts, low, high)


def dipy_mask(volume: np.ndarray) -> np.ndarray:
    """Return dipy's mask, by its own Otsu: scikit-image's, which it prefers, gives other voxels."""
    dipy.segment.mask.otsu = dipy_otsu
    return dipy.segment.mask.median_otsu(volume, median_radius=RADIUS, numpass=PASSES)[1]


def run(size: str = "small", rounds: int = 3) -> list[dict]:
    """Time both, `rounds` times in turn; return one row with the medians.

    Raises
    ------
    RuntimeError
        The masks differ.
    """
    volume = phantom(size)
    our_mask(volume[:4])
    seconds = {our_mask: [], dipy_mask: []}
    masks = {}
    for _ in range(rounds):
        for tool, spent in seconds.items():
            start = time.process_time()
            masks[tool] = tool(volume)
            spent.append(time.process_time() - start)
    if not np.array_equal(masks[our_mask], masks[dipy_mask]):
        raise RuntimeError("the masks differ: a time of ours would mean nothing")
    ours, peer = (statistics.median(seconds[tool]) for tool in (our_mask, dipy_mask))
    return [
        {
            "name": "mask",
            "size": "x".join(map(str, SIZES[size])),
            "peer": f"dipy {dipy.__version__} median_otsu",
            "peer_cpu_s": peer,
            "our_cpu_s": ours,
            "ratio": peer / ours,
        }
    ]
