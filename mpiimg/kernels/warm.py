"""Compile every kernel once, so that ranks find them in numba's cache: `python -m mpiimg.kernels.warm`.

With --portable it compiles for the CPU that runs with --portable use.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from mpiimg.kernels import coadd, cosmics, jit, median, nlmeans, otsu, tensor, warp


def compile_all() -> None:
    """Call each kernel on a tiny input of each type that the stages give it."""
    for compile_part in PARTS:
        compile_part()


def compile_neuro() -> None:
    """Call the kernels of the neuro tools as their stages do."""
    block = np.random.default_rng(0).random((7, 6, 5), dtype=np.float32)
    median.median_filter(block, 1)
    # Wider than a tile: what a tile puts out is then not contiguous, and a type of its own.
    median.median_filter(np.random.default_rng(0).random((3, 2, median.TILE[2] + 1), dtype=np.float32), 1)
    otsu.threshold(otsu.histogram(block, np.float32(0), np.float32(1)), np.float32(0), np.float32(1))

    inside = np.ones((2, 3, 4), dtype=bool)
    for patch, search in ((1, 5), (2, 5)):
        padded = np.ones((2 + 2 * search, 3 + 2 * search, 4 + 2 * search), dtype=np.float32)
        for rician in (True, False):
            nlmeans.nonlocal_means(padded, np.ones(len(padded)), inside, patch, search, rician)

    bvecs = np.vstack([np.zeros((1, 3)), np.eye(3), (1 - np.eye(3)) / np.sqrt(2)])
    design = tensor.design_matrix(np.array([0.0] + [1000.0] * 6), bvecs)
    for dtype in (np.float32, np.float64):
        signal = np.exp(-np.ones((7, 3))).astype(dtype)
        for fitter in (tensor.fit_ols, tensor.fit_wls):
            parameters = fitter(signal, design)
            tensor.tensor_maps(parameters, tensor.min_diffusivity(design))
            tensor.fit_residual(signal, design, parameters)


def compile_astro() -> None:
    """Call the kernels of the astro tools as their stages do."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, (40, 48)).astype(np.float32)
    image[20, 20] += 1000
    bad = np.zeros(image.shape, dtype=bool)
    bad[5, 5:8] = True
    # A hit without a good pixel about it (masks grow by one), which is repaired in another way.
    image[30, 30] += 1000
    bad[27:34, 27:34] = True
    bad[29:32, 29:32] = False
    variance = np.full(image.shape, 100, np.float32)
    cosmics.detect_cosmics(image, mask=bad, variance=variance, gain=1.0, readnoise=0.0, satlevel=9e3)

    image, variance, _ = warp.interpolate_bad(image, variance, bad)
    rows, columns = np.indices((5, 5)) * float(warp.STEP)
    nodes = warp.Nodes(columns, rows, 0, 0)
    mask = np.zeros(image.shape, np.int32)
    box = ((32, 60), (32, 70))
    planes = warp.warp(image, variance, mask, nodes, box, np.float64(1), 1)
    stack = [np.stack([plane] * 3) for plane in planes]
    bits = coadd.Planes(1, 2, 4, 8)
    for weights in (np.ones(3), "pixel"):
        coadd.coadd(*stack, weights, bits)


#: What can be compiled side by side, in processes that share the cache.
PARTS = (compile_neuro, compile_astro)


def main() -> None:
    """Compile the parts in a process each, and say how long it took."""
    if "--portable" in sys.argv[1:]:
        jit.pin_target()
    started = time.perf_counter()
    with ProcessPoolExecutor(len(PARTS), multiprocessing.get_context("fork")) as pool:
        for part in [pool.submit(compile_part) for compile_part in PARTS]:
            part.result()
    print(f"kernels ready in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
