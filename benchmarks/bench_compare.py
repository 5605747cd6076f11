"""Coadds by comparison against clipped ones, ours and SWarp's: CPU seconds of one core per exposure.

Ours is all that comparison adds and the mean of what it leaves: matching, median, hits, groups, trails, by
tiles of a patch as a run has them. SWarp (where it is on PATH) combines the same exposures by
COMBINE_TYPE CLIPPED, without resampling and background; it reads and writes files, which ours does not.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

#: Exposures, and the side of the patch.
SIZES = {"small": (8, 1024), "patch": (24, 2200)}

NOISE = 8.0


def exposures(depth: int, side: int) -> tuple[list[np.ndarray], list[float]]:
    """Return images of stars in seeing of 3 to 5 pixels, with what only one of them has; and these widths."""
    rng = np.random.default_rng(7)
    fwhm = np.linspace(3.0, 5.0, depth).tolist()
    stars = rng.integers(20, side - 20, (side * side // 4000, 2))
    fluxes = 10 ** rng.uniform(3, 5.5, len(stars))
    y, x = np.mgrid[-16:17, -16:17]
    images = []
    for width in fwhm:
        alpha = width / 1.0197
        profile = 2 / (np.pi * alpha**2) * (1 + (x**2 + y**2) / alpha**2) ** -3
        image = rng.normal(0, NOISE, (side, side)).astype(np.float32)
        for (row, column), flux in zip(stars.tolist(), fluxes.tolist(), strict=True):
            own = image[max(row - 16, 0) : row + 17, max(column - 16, 0) : column + 17]
            own += (flux * profile[: own.shape[0], : own.shape[1]]).astype(np.float32)
        for row, column in rng.integers(5, side - 5, (side * side // 100_000, 2)):
            image[row, column : column + 4] += 500
        images.append(image)
    return images, fwhm


def coadd_by_comparison(images, masks, fwhm, side: int) -> float:
    """Return the CPU seconds of comparison, tile by tile, of what is left out, and of the mean."""
    from mpiimg.astro.comparison import Matching, artifacts_of, compare_tile
    from mpiimg.astro.kernels.coadd import MaskValues, combine
    from mpiimg.astro.sky.layout import Footprint, Layout, Patch
    from mpiimg.astro.sky.tiles import Tiling

    outer = ((0, side), (0, side))
    layout = Layout(
        (), (Patch("r", (0, 0), outer, outer),), tuple(Footprint(k, 0, outer) for k in range(len(images)))
    )
    start = time.process_time()
    matching = Matching.of(fwhm)
    tiling = Tiling(layout, matching.halo)
    codes = np.empty((len(images), side, side), np.uint8)
    bins = np.empty((len(images), -(-side // 4), -(-side // 4)), np.float32)
    for tile in tiling.tiles:
        (top, bottom), (left, right) = tile.around
        parts = [[plane[top:bottom, left:right] for plane in planes] for planes in (images, masks)]
        boxes = [tile.around] * len(images)
        found, summed = compare_tile(tile.box, tile.around, boxes, *parts, [NOISE**2] * len(images), matching)
        (top, bottom), (left, right) = tile.box
        codes[:, top:bottom, left:right] = found
        bins[:, top // 4 : -(-bottom // 4), left // 4 : -(-right // 4)] = summed
    left_out = [artifacts_of(*one, (0, 0), width)[0] for *one, width in zip(codes, bins, fwhm, strict=True)]
    variance, weights = np.full((len(images), 256, side), NOISE**2, np.float32), np.ones(len(images))
    for y in range(0, side, 256):
        stack, mask = (np.stack([plane[y : y + 256] for plane in planes]) for planes in (images, masks))
        for k, pixels in enumerate(left_out):
            mask[k][pixels[y : y + 256] != 0] = 1
        combine(stack, variance[:, : stack.shape[1]], mask, weights, MaskValues(1, 2, 4, 8), "mean")
    return time.process_time() - start


def coadd_by_clipping(images, masks, side: int) -> float:
    """Return the CPU seconds of two passes of clipping at 3 sigma, and the mean."""
    from mpiimg.astro.kernels.coadd import MaskValues, combine

    variance, weights = np.full((len(images), 256, side), NOISE**2, np.float32), np.ones(len(images))
    start = time.process_time()
    for y in range(0, side, 256):
        stack, mask = (np.stack([plane[y : y + 256] for plane in planes]) for planes in (images, masks))
        combine(stack, variance[:, : stack.shape[1]], mask, weights, MaskValues(1, 2, 4, 8))
    return time.process_time() - start


def coadd_by_swarp(program: str, images) -> float:
    """Return the CPU seconds of SWarp on the same exposures."""
    from astropy.io import fits
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.cdelt, wcs.wcs.crpix = [-1e-4, 1e-4], [images[0].shape[1] / 2, images[0].shape[0] / 2]
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for k, image in enumerate(images):
            names.append(f"{folder}/{k}.fits")
            fits.writeto(names[-1], image, wcs.to_header())
        options = {
            "RESAMPLE": "N", "SUBTRACT_BACK": "N", "COMBINE_TYPE": "CLIPPED", "NTHREADS": "1",
            "WRITE_XML": "N", "VERBOSE_TYPE": "QUIET", "IMAGEOUT_NAME": f"{folder}/out.fits",
            "WEIGHTOUT_NAME": f"{folder}/weight.fits",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"-{name}", value)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([program, *names, *words], check=True, cwd=Path(folder), capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(size: str = "small", rounds: int = 3) -> list[dict]:
    """Measure comparison, clipping and SWarp in turns, and return a row for each that it stands beside.

    Parameters
    ----------
    size : {"small", "patch"}
        8 exposures of 1024 x 1024 pixels, or 24 on a patch of 2200 x 2200.
    rounds : int
        How often each is measured.

    Returns
    -------
    list of dict
        name, size, peer, peer_cpu_s, our_cpu_s (per exposure of 16 million pixels), ratio, rounds.
    """
    depth, side = SIZES[size]
    images, fwhm = exposures(depth, side)
    masks = [np.zeros((side, side), np.int32) for _ in images]
    few = [image[:300, :300].copy() for image in images], [mask[:300, :300].copy() for mask in masks]
    coadd_by_comparison(*few, fwhm, 300)  # compile
    coadd_by_clipping(*few, 300)
    swarp = shutil.which("swarp") or shutil.which("SWarp")
    ways = {
        "ours": lambda: coadd_by_comparison(images, masks, fwhm, side),
        "clip": lambda: coadd_by_clipping(images, masks, side),
    }
    if swarp:
        ways["SWarp CLIPPED"] = lambda: coadd_by_swarp(swarp, images)
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way() * 16e6 / (depth * side * side))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "name": "compare",
            "size": size,
            "peer": name,
            "peer_cpu_s": median[name],
            "our_cpu_s": median["ours"],
            "ratio": median[name] / median["ours"],
            "rounds": rounds,
        }
        for name in median
        if name != "ours"
    ]


if __name__ == "__main__":
    for row in run("patch"):
        print(row)
