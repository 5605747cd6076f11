"""Non-local means against dipy's ``classic``: CPU seconds of one core, both in the same process.

``python benchmarks/bench_nlmeans.py [--size small|hcp] [--rounds N]``
"""

from __future__ import annotations

import statistics
import time

import numpy as np

#: (nz, ny, nx), voxels in the mask, slices of a chunk.
SIZES = {
    "small": ((60, 72, 72), 81_857, 60),
    "hcp": ((145, 174, 145), 800_000, 32),
}

SIGMA = 20.0
PATCH_RADIUS = 1
BLOCK_RADIUS = 5


def phantom(shape: tuple[int, int, int], masked: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return a Rician float32 volume (z, y, x) and the ellipsoid of about `masked` voxels it is bright in."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    radius = x**2 + y**2 + z**2
    mask = radius <= np.partition(radius, masked - 1, axis=None)[masked - 1]
    tissue = 400.0 + 150.0 * np.sin(9 * x) * np.cos(7 * y + z) + 200.0 * (radius < 0.3)
    truth = np.where(mask, tissue, 0.0)
    rng = np.random.default_rng(seed)
    signal = np.hypot(truth + rng.normal(0, SIGMA, shape), rng.normal(0, SIGMA, shape))
    return signal.astype(np.float32), mask


def denoise_with_ours(volume: np.ndarray, mask: np.ndarray, thickness: int) -> np.ndarray:
    """Denoise chunk by chunk (z-blocks of `thickness` slices), padding included."""
    from mpiimg.neuro.kernels.nlmeans import nonlocal_means

    padded = np.pad(volume, BLOCK_RADIUS, mode="reflect")
    sigma = np.full(len(padded), SIGMA)
    out = np.empty_like(volume)
    for z in range(0, len(volume), thickness):
        part = mask[z : z + thickness]
        halo = slice(z, z + len(part) + 2 * BLOCK_RADIUS)
        out[z : z + thickness] = nonlocal_means(padded[halo], sigma[halo], part, PATCH_RADIUS, BLOCK_RADIUS)
    return out


def denoise_with_dipy(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Denoise with the peer on one thread; float64 in, as it works in that."""
    from dipy.denoise.nlmeans import nlmeans

    return nlmeans(
        volume.astype(np.float64),
        SIGMA,
        mask=mask,
        patch_radius=PATCH_RADIUS,
        block_radius=BLOCK_RADIUS,
        rician=True,
        num_threads=1,
        method="classic",
    )


def cpu_seconds(function, *args) -> tuple[float, np.ndarray]:
    """Return the CPU time of one call, and its result."""
    start = time.process_time()
    result = function(*args)
    return time.process_time() - start, result


def worst_error(ours: np.ndarray, peer: np.ndarray, mask: np.ndarray) -> float:
    """Return the largest |ours^2 - peer^2| / max(peer^2, 2 sigma^2); 1e-5 is promised."""
    ours, peer = ours[mask].astype(np.float64), peer[mask]
    return float(np.max(np.abs(ours**2 - peer**2) / np.maximum(peer**2, 2 * SIGMA**2)))


def run(size: str = "small", rounds: int = 3) -> list[dict]:
    """Measure both, alternating, and return one row of medians.

    Parameters
    ----------
    size : {"small", "hcp"}
        A volume of 72 x 72 x 60, or one of the size of the Human Connectome Project.
    rounds : int
        How often each is measured; dipy takes 15 to 25 s a volume at the size ``hcp``.

    Returns
    -------
    list of dict
        name, size, peer, peer_cpu_s, our_cpu_s, ratio, and voxels_per_s, worst_error, rounds.
    """
    shape, masked, thickness = SIZES[size]
    volume, mask = phantom(shape, masked)
    denoise_with_ours(volume[:8], mask[:8], 8)  # compile
    ours, peers = [], []
    for _ in range(rounds):
        seconds, result = cpu_seconds(denoise_with_ours, volume, mask, thickness)
        ours.append(seconds)
        seconds, expected = cpu_seconds(denoise_with_dipy, volume, mask)
        peers.append(seconds)
    our_median, peer_median = statistics.median(ours), statistics.median(peers)
    row = {
        "name": "nlmeans",
        "size": size,
        "peer": "dipy nlmeans classic",
        "peer_cpu_s": peer_median,
        "our_cpu_s": our_median,
        "ratio": peer_median / our_median,
        "voxels_per_s": mask.sum() / our_median,
        "worst_error": worst_error(result, expected, mask),
        "rounds": rounds,
    }
    return [row]
