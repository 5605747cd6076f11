"""Compile kernels ahead of use, so that ranks find them in numba's cache.

python -m mpiimg.kernels.precompile [--portable] [PART ...]

With --portable it compiles for the CPU that runs with --portable use. Named parts are compiled in this very
process, as ranks ask for; without names all parts are, two at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numba
import numpy as np

from mpiimg.kernels import jit, vmath


def compile_mask() -> None:
    """Call each kernel of the brain mask on a tiny input of each type that its stages give it."""
    from mpiimg.neuro.kernels import median, otsu

    block = np.random.default_rng(0).random((7, 6, 5), dtype=np.float32)
    median.median_filter(block, 1)
    # Wider than a tile: what a tile puts out is then not contiguous, and a type of its own.
    median.median_filter(np.random.default_rng(0).random((3, 2, median.TILE[2] + 1), dtype=np.float32), 1)
    otsu.threshold(otsu.histogram(block, np.float32(0), np.float32(1)), np.float32(0), np.float32(1))


def compile_denoise() -> None:
    """Call the kernels of denoising and of its noise level likewise."""
    from mpiimg.neuro.kernels import nlmeans, piesno

    for dtype in (np.int16, np.uint16, np.float32):
        piesno.piesno(np.arange(1, 61).reshape(5, 3, 4).astype(dtype), 1)

    inside = np.ones((2, 3, 4), dtype=bool)
    for patch, search in ((1, 5), (2, 5)):
        padded = np.ones((2 + 2 * search, 3 + 2 * search, 4 + 2 * search), dtype=np.float32)
        for rician in (True, False):
            nlmeans.nonlocal_means(padded, np.ones(len(padded)), inside, patch, search, rician)


def compile_fit() -> None:
    """Call the kernels of the tensor fit likewise."""
    from mpiimg.neuro.kernels import tensor

    bvecs = np.vstack([np.zeros((1, 3)), np.eye(3), (1 - np.eye(3)) / np.sqrt(2)])
    design = tensor.design_matrix(np.array([0.0] + [1000.0] * 6), bvecs)
    for dtype in (np.float32, np.float64):
        signal = np.exp(-np.ones((7, 3))).astype(dtype)
        for fitter in (tensor.fit_ols, tensor.fit_wls):
            parameters = fitter(signal, design)
            tensor.tensor_maps(parameters, tensor.min_diffusivity(design))
            tensor.fit_residual(signal, design, parameters)


def _exposure() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, variance and bad pixels with a hit, and one without a good pixel about it."""
    image = np.random.default_rng(0).normal(100, 10, (40, 48)).astype(np.float32)
    image[20, 20] += 1000
    bad = np.zeros(image.shape, dtype=bool)
    bad[5, 5:8] = True
    # Masks grow by one; such a hit is repaired in another way.
    image[30, 30] += 1000
    bad[27:34, 27:34] = True
    bad[29:32, 29:32] = False
    return image, np.full(image.shape, 100, np.float32), bad


def compile_calibrate() -> None:
    """Call the kernels that find cosmic rays and compare stars likewise."""
    from mpiimg.astro.kernels import cosmics, robust

    image, variance, bad = _exposure()
    cosmics.detect_cosmics(image, mask=bad, variance=variance, gain=1.0, readnoise=0.0, satlevel=9e3)
    robust.robust_means(np.ones(2), np.ones(2), np.array([0, 2]), 6.0, 4.0)


def compile_warp() -> None:
    """Call the kernels that resample likewise."""
    from mpiimg.astro.kernels import warp

    image, variance, _ = warp.interpolate_bad(*_exposure())
    rows, columns = np.indices((5, 5)) * float(warp.STEP)
    nodes = warp.Nodes(columns, rows, 0, 0)
    box = ((32, 60), (32, 70))
    warp.warp(image, variance, np.zeros(image.shape, np.int32), nodes, box, np.float64(1), 1)


def compile_coadd() -> None:
    """Call the kernels that combine likewise."""
    from mpiimg.astro.kernels import coadd

    stack = [np.ones((3, 28, 38), dtype) for dtype in (np.float32, np.float32, np.int32)]
    bits = coadd.Planes(1, 2, 4, 8)
    for weights in (np.ones(3), "pixel"):
        coadd.coadd(*stack, weights, bits)


#: What a recipe may need, by name. Parts can be compiled side by side, in processes that share the cache.
PARTS = {
    "mask": compile_mask,
    "denoise": compile_denoise,
    "fit": compile_fit,
    "calibrate": compile_calibrate,
    "warp": compile_warp,
    "coadd": compile_coadd,
}

#: What launchers call the variables by which a process knows that it is a rank, or a step of a job.
OF_RANKS = ("PMI", "OMPI_", "PRTE_", "SLURM_", "MPI_LOCAL", "HYDRA_", "HYDI_")


def cold(parts: Iterable[str]) -> list[str]:
    """Return which of `parts` are not yet compiled, for this CPU, in the cache that this process reads."""
    return [part for part in parts if not _marker(part).exists()]


def compile_parts(parts: Iterable[str]) -> None:
    """Compile `parts`, or load them where they are compiled, and note that they are."""
    for part in parts:
        PARTS[part]()
        # Without the note the next run calls the kernels once more, which then costs half a second.
        with contextlib.suppress(OSError):
            _marker(part).touch()


def compile_apart(parts: Iterable[str]) -> None:
    """Compile `parts` in a process of its own: what the compiler takes, a rank would keep to its end.

    Where that process cannot be started, or leaves something undone, this one compiles.
    """
    portable = ["--portable"] if jit.cpu_target() == jit.PORTABLE_CPU else []
    with contextlib.suppress(OSError):
        subprocess.run(
            [sys.executable, "-m", "mpiimg.kernels.precompile", *portable, *parts],
            env=_of_no_rank(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    compile_parts(cold(parts))


def _of_no_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a process is no rank, and finds this package and the same cache."""
    clean = {name: value for name, value in environment.items() if not name.startswith(OF_RANKS)}
    package, given = str(Path(__file__).parents[2]), environment.get("PYTHONPATH")
    return clean | {"PYTHONPATH": f"{package}{os.pathsep}{given}" if given else package}


def _marker(part: str) -> Path:
    """Return the file that says that `part` is compiled: for these sources, as numba tells them apart."""
    sources = [
        (str(path), path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(Path(__file__).parents[1].glob("**/kernels/*.py"))
    ]
    state = repr((sources, numba.__version__, sys.version_info[:2], jit.cpu_target(), jit.cpu_features()))
    return (
        Path(vmath.exp64.stats.cache_path) / f"warm-{part}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    )


def main() -> None:
    """Compile the parts and say how long it took."""
    words = sys.argv[1:]
    if "--portable" in words:
        jit.pin_target()
    asked = [word for word in words if word in PARTS]
    if asked:
        return compile_parts(asked)
    started = time.perf_counter()
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        for part in [pool.submit(compile_parts, [part]) for part in PARTS]:
            part.result()
    print(f"kernels ready in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
