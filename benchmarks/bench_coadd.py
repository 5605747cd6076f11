"""Clipped coadd with variance and mask against ccdproc's Combiner without: CPU seconds of one core.

The peer's stack is built beforehand, and it clips once (ours twice; it has no way to ask for more). It is
measured bare, without weights and spared its uncertainties, in both precisions; and as its users call it,
weighted and with them.
"""

from __future__ import annotations

import statistics
import time
import warnings

import numpy as np

#: Exposures, rows and columns: a quarter of a DECam sensor each way, or all of it.
SIZES = {"small": (24, 1000, 1018), "sensor": (24, 4000, 4072)}

#: Rows of the stack that are held at once, by both.
STRIP_ROWS = 250

SIGMA = 3.0
PASSES = 2

EXCLUDED, CLIPPED, SATURATED = 1, 2, 4

#: How the peer is run: its precision, and whether it weights and derives uncertainties.
PEERS = {
    "ccdproc Combiner, bare, float32": ("float32", False),
    "ccdproc Combiner, bare, float64": ("float64", False),
    "ccdproc Combiner": ("float64", True),
}

Exposures = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def exposures(shape: tuple[int, int, int], rng: np.random.Generator) -> Exposures:
    """Return images (sky noise, one pixel in 500 hit), variances, masks (1 % excluded) and weights."""
    images = rng.standard_normal(shape, np.float32) * np.float32(10)
    images[rng.random(shape, np.float32) < 0.002] += 2000
    variances = np.full(shape, 100, np.float32)
    masks = EXCLUDED * (rng.random(shape, np.float32) < 0.01).astype(np.int32)
    return images, variances, masks, rng.uniform(0.5, 1.5, shape[0])


def combine_with_ours(strip: Exposures) -> tuple[float, tuple[np.ndarray, ...]]:
    """Return the CPU seconds of a strip, and its image, variance, mask and N-image."""
    from mpiimg.astro.kernels.coadd import MaskValues, combine

    planes = MaskValues(excluded=EXCLUDED, no_data=EXCLUDED, clipped=CLIPPED, saturated=SATURATED)
    start = time.process_time()
    result = combine(*strip, planes, sigma=SIGMA, passes=PASSES)
    return time.process_time() - start, result


def combine_with_peer(strip: Exposures, dtype: str, full: bool) -> tuple[float, np.ndarray]:
    """Return the CPU seconds of a strip that ccdproc holds in `dtype`, and its image."""
    from astropy.nddata import CCDData
    from ccdproc import Combiner

    images, _, masks, weights = strip
    combiner = Combiner(
        [CCDData(image, unit="adu", mask=mask != 0) for image, mask in zip(images, masks, strict=True)],
        dtype=dtype,
    )
    spared = {"uncertainty_func": lambda stack, axis: np.zeros(stack.shape[1:])}
    start = time.process_time()
    combiner.sigma_clipping(low_thresh=SIGMA, high_thresh=SIGMA, func="mean", dev_func="std")
    if full:
        combiner.weights = weights
    combined = combiner.average_combine(**({} if full else spared))
    return time.process_time() - start, combined.data


def differing_share(strip: Exposures, result: tuple[np.ndarray, ...]) -> float:
    """Return the share of pixels whose number of inputs is not that of sigma_clip; 0 is promised."""
    from astropy.stats import sigma_clip

    stack = np.ma.array(strip[0].astype(np.float64), mask=strip[2] != 0)
    kept = sigma_clip(stack, sigma=SIGMA, maxiters=PASSES, cenfunc="mean", stdfunc="std", axis=0)
    return float(np.mean(kept.count(axis=0) != result[3]))


def run(size: str = "small", rounds: int = 3) -> list[dict]:
    """Measure ours and the peer in each way, alternating, and return a row for each way.

    Parameters
    ----------
    size : {"small", "sensor"}
        24 exposures of 1000 x 1018 or 4000 x 4072 pixels, as strips of 250 rows.
    rounds : int
        How often each is measured.

    Returns
    -------
    list of dict
        name, size, peer, peer_cpu_s, our_cpu_s, ratio, and outputs_per_s, differing, rounds.
    """
    warnings.filterwarnings("ignore", message="Input data contains invalid values")
    depth, height, width = SIZES[size]
    combine_with_ours(exposures((depth, 2, width), np.random.default_rng(0)))  # compile
    seconds = {name: [] for name in ("ours", *PEERS)}
    for _ in range(rounds):
        rng = np.random.default_rng(7)
        spent = dict.fromkeys(seconds, 0.0)
        for y in range(0, height, STRIP_ROWS):
            strip = exposures((depth, min(STRIP_ROWS, height - y), width), rng)
            once, result = combine_with_ours(strip)
            spent["ours"] += once
            for name, how in PEERS.items():
                spent[name] += combine_with_peer(strip, *how)[0]
        for name, total in spent.items():
            seconds[name].append(total)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    differing = differing_share(strip, result)
    return [
        {
            "name": "coadd",
            "size": size,
            "peer": name,
            "peer_cpu_s": median[name],
            "our_cpu_s": median["ours"],
            "ratio": median[name] / median["ours"],
            "outputs_per_s": height * width / median["ours"],
            "differing": differing,
            "rounds": rounds,
        }
        for name in PEERS
    ]
