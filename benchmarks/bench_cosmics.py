"""Cosmic rays against astroscrappy: CPU seconds of one core, both in the same process."""

from __future__ import annotations

import os
import statistics
import time

import numpy as np

#: (ny, nx), stars, tracks of cosmic rays.
SIZES = {
    "small": ((1000, 1018), 400, 160),
    "sensor": ((4000, 4072), 6000, 2500),
}

SKY = 300.0
READNOISE = 6.0
SATURATION = 6e4
STAMP = 20
SEEING = 1.7  # sigma, in pixels


def exposure(shape: tuple[int, int], stars: int, tracks: int, seed: int = 7) -> np.ndarray:
    """Return a float32 exposure with its sky: gaussian stars, the brightest saturated, and tracks."""
    rng = np.random.default_rng(seed)
    truth = np.full([n + 2 * STAMP for n in shape], SKY)
    offset = np.arange(-STAMP, STAMP + 1)
    for y, x in rng.uniform((STAMP, STAMP), [n + STAMP for n in shape], (stars, 2)):
        row, column = int(y), int(x)
        profile_y, profile_x = (np.exp(-((offset - d) ** 2) / (2 * SEEING**2)) for d in (y - row, x - column))
        flux = 10 ** min(2.5 + rng.exponential(0.7), 6.7)
        box = truth[row - STAMP : row + STAMP + 1, column - STAMP : column + STAMP + 1]
        box += flux / (2 * np.pi * SEEING**2) * profile_y[:, None] * profile_x
    truth = truth[STAMP:-STAMP, STAMP:-STAMP]
    image = rng.poisson(truth) + rng.normal(0, READNOISE, shape)
    for _ in range(tracks):
        (y, x), angle = rng.uniform((0, 0), shape), rng.uniform(0, 2 * np.pi)
        charge, steps = 10 ** rng.uniform(2.3, 4.3), np.arange(0, rng.uniform(0.5, 15), 0.5)
        rows, columns = (y + steps * np.sin(angle)).astype(int), (x + steps * np.cos(angle)).astype(int)
        inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        np.add.at(image, (rows[inside], columns[inside]), charge)
    return np.minimum(image, 6.5e4).astype(np.float32)


def find_with_ours(image: np.ndarray, variance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return what is struck, and the repaired image."""
    from mpiimg.astro.kernels.cosmics import detect_cosmics

    return detect_cosmics(image, variance=variance, readnoise=READNOISE, satlevel=SATURATION)


def find_with_astroscrappy(image: np.ndarray, variance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Do the same with the peer, on one thread if it has not been loaded before."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from astroscrappy import detect_cosmics

    return detect_cosmics(
        image,
        invar=variance,
        readnoise=READNOISE,
        satlevel=SATURATION,
        sepmed=True,
        cleantype="medmask",
        fsmode="median",
        niter=4,
    )


def cpu_seconds(function, *args) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """Return the CPU time of one call, all threads together, and its result."""
    start = time.process_time()
    result = function(*args)
    return time.process_time() - start, result


def measure(size: str, image: np.ndarray, variance: np.ndarray | None, rounds: int) -> dict:
    """Measure both on one frame, alternating, and return a row of medians."""
    ours, peers = [], []
    for _ in range(rounds):
        seconds, result = cpu_seconds(find_with_ours, image, variance)
        ours.append(seconds)
        seconds, expected = cpu_seconds(find_with_astroscrappy, image, variance)
        peers.append(seconds)
    our_median, peer_median = statistics.median(ours), statistics.median(peers)
    return {
        "name": "cosmics" if variance is None else "cosmics, with variance",
        "size": size,
        "peer": "astroscrappy",
        "peer_cpu_s": peer_median,
        "our_cpu_s": our_median,
        "ratio": peer_median / our_median,
        "struck_pixels": int(expected[0].sum()),
        "different_pixels": int((result[0] != expected[0]).sum()),
        "different_values": int((result[1] != expected[1]).sum()),
        "rounds": rounds,
    }


def run(size: str = "small", rounds: int = 3) -> list[dict]:
    """Measure a frame with the variance that follows from it, and with a variance plane.

    Parameters
    ----------
    size : {"small", "sensor"}
        1000 x 1018 pixels, or 4000 x 4072.
    rounds : int
        How often each is measured; astroscrappy takes about half a minute a frame at the size ``sensor``.

    Returns
    -------
    list of dict
        name, size, peer, peer_cpu_s, our_cpu_s, ratio, and struck_pixels, different_pixels,
        different_values, rounds.
    """
    shape, stars, tracks = SIZES[size]
    image = exposure(shape, stars, tracks)
    find_with_ours(image[:200, :200], None)  # compile
    variance = np.maximum(image, 0) + np.float32(READNOISE**2)
    return [measure(size, image, plane, rounds) for plane in (None, variance)]
