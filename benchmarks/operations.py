"""What each kernel has to do, counted from its code: operations of each kind, and bytes at least.

Counts are of the work that a kernel carries out on its input, halos, padding and idle lanes included, since
that is what the core is busy with; :attr:`Job.useful` says what share of it falls on results. Bytes are
those of inputs read once and outputs written once, the least that any program moves between memory and the
core. A minimum, a maximum and a comparison are an operation each, a selection is none; a fused multiply-add
is two. Where work depends on the data, :attr:`Job.uncounted` says what was left out, so that a share is too
low rather than too high.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import bench_coadd
import bench_cosmics
import bench_nlmeans
import bench_tensor
import bench_warp
import numpy as np
from machine import Work

Counts = dict[str, Work]


class Job(NamedTuple):
    """A kernel with an input, and what it has to do on it."""

    call: Callable[[], object]
    unit: str
    units: int  # of them in the input
    work: Counts  # by kind of element, of the whole call
    traffic: int  # bytes
    useful: float = 1.0  # share of the work that falls on results
    uncounted: str = ""


def exp2_of_lanes() -> Work:
    """`nlmeans._weight`: argument and rest by two fused multiply-adds, five for the polynomial.

    One subtraction, one minimum, and a shift and a sum of integers for the power of two.
    """
    return Work(fma=7, add=1, compare=1, integer=2)


def log64() -> Work:
    """`vmath.log64`: the polynomial has six fused multiply-adds, putting it together three more.

    Additions: exponent, f, 2 + f, half_square - small, and less f. Products: z, two for half the square, s
    by the sum. Comparisons: below the smallest normal, above the largest. Integers: two sums, two masks, a
    shift, an or.
    """
    return Work(fma=9, add=5, multiply=4, divide=1, compare=2, integer=6)


def exp64() -> Work:
    """`vmath.exp64`: fused multiply-adds for k (1), r (2), q (9) and their sum; k and 1 + added; r
    squared."""
    return Work(fma=13, add=2, multiply=1, compare=2, integer=2)


# --- Denoising ----------------------------------------------------------------------------------------------


def nlmeans_offset(box: float, centres: float) -> Work:
    """Return the work of one offset (dz, dy, dx) on a tile.

    Parameters
    ----------
    box : voxels of the rows of differences, two more than those of the centres, once for four slices
    centres : voxels of the four slices that get a weight

    Notes
    -----
    `_three_plane_sums`: six differences, squares, and eight additions for four slices; twelve loads. Their
    sum over rows: two additions a centre, and a store. `_add_weighted`: the patch along x two additions and
    three loads, the weight, its sum an addition, the weighted square a fused multiply-add and a load; the
    two sums are loaded and stored once for three offsets.
    """
    differences = Work(add=6 + 8, multiply=6, load=12)
    sums = Work(add=2, store=1)
    weights = exp2_of_lanes() + Work(add=2 + 1, fma=1, load=3 + 1 + 2 / 3, store=2 / 3)
    return box * differences + centres * (sums + weights)


def nlmeans_tiles(mask: np.ndarray, thickness: int) -> tuple[int, int]:
    """Return the voxels of rows of differences, and of centres, of all tiles of a volume (one offset)."""
    from mpiimg.neuro.kernels import nlmeans

    box = centres = 0
    usable = nlmeans.LANES * nlmeans.TILE_VECTORS - 2
    for block in range(0, len(mask), thickness):
        chunk = mask[block : block + thickness]
        for z in range(0, len(chunk), nlmeans.PLANES):
            slices = chunk[z : z + nlmeans.PLANES].any(axis=0)
            for y in range(0, len(slices), nlmeans.TILE_ROWS):
                rows, columns = np.nonzero(slices[y : y + nlmeans.TILE_ROWS])
                if not rows.size:
                    continue
                height = rows.max() + 1 - rows.min()
                for x in range(columns.min(), columns.max() + 1, usable):
                    wide = min(usable, columns.max() + 1 - x) + 2
                    width = -(-wide // nlmeans.LANES) * nlmeans.LANES
                    box += width * (height + 2)
                    centres += width * height * nlmeans.PLANES
    return int(box), int(centres)


def nlmeans(shape: tuple[int, int, int], masked: int, thickness: int) -> Job:
    """One volume in its mask, search radius 4: 729 offsets."""
    volume, mask = bench_nlmeans.phantom(shape, masked)
    offsets = (2 * (bench_nlmeans.BLOCK_RADIUS - bench_nlmeans.PATCH_RADIUS) + 1) ** 3
    box, centres = nlmeans_tiles(mask, thickness)
    voxels = int(mask.sum())
    return Job(
        lambda: bench_nlmeans.denoise_with_ours(volume, mask, thickness),
        "voxel in the mask",
        voxels,
        {"float32": offsets * nlmeans_offset(box, centres)},
        # The volume and the mask in, the volume out.
        volume.nbytes + mask.nbytes + volume.nbytes,
        voxels / centres,
    )


# --- Tensor fit ---------------------------------------------------------------------------------------------


def wls_volume() -> Work:
    """Return the work of a voxel and volume in `tensor._solve_rounds`, sums over volumes apart.

    Logarithm with its clamp. `weigh`: the predicted signal is a product and 6 fused multiply-adds, a
    maximum, a residual, twice the distance from the peak, its exponential, and the weighted residual.
    """
    return log64() + exp64() + Work(fma=6, multiply=1 + 1 + 1, add=1 + 1, compare=1 + 1)


def wls_sums() -> Work:
    """Return the work of a voxel and volume in `accumulate`, which takes volumes in whole groups.

    A fused multiply-add each: 7 unknowns of the ordinary fit, 28 products of two columns, 7 right-hand sides.
    """
    return Work(fma=7 + 28 + 7)


def wls_voxel() -> Work:
    """Return the work of a voxel in `_solve_cholesky` (7 x 7), and the sum with the ordinary fit.

    Factor: 35 fused multiply-adds below the diagonal and 21 on it, 21 products by inverse pivots, 7 roots
    and 7 divisions, 7 tests of the pivot and its product; each substitution 21 fused multiply-adds and 7
    products.
    """
    return Work(fma=35 + 21 + 2 * 21, multiply=21 + 7 + 2 * 7, root=7, divide=7, compare=7, add=7)


def maps_voxel() -> Work:
    """Return the work of a voxel in `tensor_maps._maps`.

    A rotation (`_rotate`): 10 fused multiply-adds, 12 products, 4 additions, 2 roots, 2 divisions, 2 tests;
    three of them in each of five sweeps. Then three comparisons to sort and three to clip, and `_measure`.
    """
    from mpiimg.neuro.kernels import tensor_maps

    rotation = Work(fma=10, multiply=12, add=4, root=2, divide=2, compare=2)
    measure = Work(fma=4, multiply=5, add=6, root=1, divide=1, compare=3)
    return 3 * tensor_maps._SWEEPS * rotation + measure + exp64() + Work(compare=3 + 3)


def tensor_fit(volumes: int, voxels: int) -> Job:
    """WLS with its maps, of float32 signals, as the stage has them."""
    from mpiimg.neuro.kernels import tensor, tensor_blocks

    bvals, bvecs, signal = bench_tensor.simulate(volumes, voxels)
    signal = signal.astype(np.float32)
    design = tensor.design_matrix(bvals, bvecs)
    whole = -(-voxels // tensor.BLOCK_VOXELS) * tensor.BLOCK_VOXELS
    grouped = -(-volumes // tensor_blocks.GROUP) * tensor_blocks.GROUP
    work = whole * (volumes * wls_volume() + grouped * wls_sums() + wls_voxel() + maps_voxel())
    # The signal in; 7 parameters out and in again, and 10 values of maps out, all float64.
    traffic = signal.nbytes + voxels * 8 * (7 + 7 + 10)
    return Job(
        lambda: bench_tensor.fit_with_ours(signal, design),
        "voxel",
        voxels,
        {"float64": work},
        traffic,
        voxels / whole,
        "voxels solved by QR",
    )


# --- Median -------------------------------------------------------------------------------------------------


def median(shape: tuple[int, int, int], radius: int) -> Job:
    """One pass of the median filter over a z-block with its halo.

    Counters are integers of 8 bits, their sums of 16. A value that enters takes 64 cumulative counts along z
    an addition and a subtraction (`_enter_plane`); of a column of the window the 64 counts of a row that
    enters are added, and those of one that leaves subtracted (`_slide_buckets`). For an output, each of 64
    buckets takes two additions to stay up to date, a comparison and a count (`_find_buckets`), and the 128
    bins of its bucket an addition and a subtraction (`_find_row`, at best: where the next output lies in the
    same bucket).
    """
    from mpiimg.neuro.kernels import median as code

    size = tuple(n + 2 * radius * (axis == 0) for axis, n in enumerate(shape))
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in size)]
    rng = np.random.default_rng(3)
    head = np.where(z**2 / 4 + y**2 + x**2 < 0.5, 700.0, 0.0)
    block = np.hypot(head + rng.normal(0, 40, size), rng.normal(0, 40, size)).astype(np.float32)
    entered = columns = 0
    for tile in code._tiles(shape):
        deep, high, wide = (part.stop - part.start for part in tile)
        entered += (deep + 2 * radius) * (high + 2 * radius) * (wide + 2 * radius)
        columns += deep * (high + 2 * radius) * (wide + 2 * radius)
    outputs = int(np.prod(shape))
    narrow = Work(integer=2 * code.COARSE * entered + 2 * code.COARSE * columns)
    wide = Work(integer=(4 * code.COARSE + 2 * code.FINE) * outputs)
    window = 2 * radius + 1
    return Job(
        lambda: code.median_filter(block, radius),
        f"voxel, window {window} x {window} x {window}",
        outputs,
        {"uint8": narrow, "uint16": wide},
        block.nbytes + 4 * outputs,
        1.0,
        "codes of values, bins counted one by one, buckets that change, the search in a bin",
    )


# --- Cosmic rays --------------------------------------------------------------------------------------------


def cosmics_pixel() -> Work:
    """Return the work of a pixel of a tile in the first search.

    Two medians of seven along rows and columns, 20 minima and maxima each (21 in the network, one unused);
    `_measure`: two fused multiply-adds (three times the value, four times less a neighbour), 12 additions,
    four times positive part and a floor of the variance, a root, two products and a division.
    """
    medians = Work(compare=2 * 20, load=2 * 7, store=2)
    measure = Work(fma=2, add=12, compare=5, root=1, multiply=2, divide=1, load=6, store=2)
    return medians + measure + Work(compare=1)


def cosmics(shape: tuple[int, int], stars: int, tracks: int) -> Job:
    """A frame with its sky; the variance follows from the image."""
    from mpiimg.astro.kernels import cosmics as code

    image = bench_cosmics.exposure(shape, stars, tracks)
    cells = [-(-n // code.CELL) for n in shape]
    pixels = 0
    for top in range(0, cells[0], code.TILE_CELLS[0]):
        for left in range(0, cells[1], code.TILE_CELLS[1]):
            rows, columns = (
                min(side, n - first) * code.CELL + 2 * code.HALO
                for side, n, first in zip(code.TILE_CELLS, cells, (top, left), strict=True)
            )
            pixels += rows * columns
    return Job(
        lambda: bench_cosmics.find_with_ours(image, None),
        "pixel",
        image.size,
        {"float32": pixels * cosmics_pixel()},
        # Image in; repaired image and flags out.
        image.size * (4 + 4 + 1),
        image.size / pixels,
        "cells about candidates, later searches, saturated stars, repair",
    )


# --- Warp ---------------------------------------------------------------------------------------------------


def warp_pixel() -> Counts:
    """Return the work of an output pixel.

    float32: six rows of 16 (image and variance interleaved, of which 12 are the footprint), weighted by y (a
    product, five fused multiply-adds), by x (a product), and added up (8 + 4 + 2); then the Jacobian: four
    products. float64: the cubic along the row (a product, three fused multiply-adds) for two coordinates and
    four slopes, the determinant (a product, a fused multiply-add), four tests, two fractions and two shifts.
    """
    sums = Work(multiply=2 * 16, fma=5 * 16, add=8 + 4 + 2, load=(6 + 1) * 16)
    cubic = Work(multiply=1, fma=3)
    place = 6 * cubic + Work(multiply=1, fma=1, compare=4, add=2) + 2 * Work(fma=1)
    # Down the nodes, once for a row of a cell: four columns, of two coordinates twice and their slopes.
    return {"float32": sums + Work(multiply=4), "float64": place + (4 * 6 / 32) * cubic}


def warp(shape: tuple[int, int]) -> Job:
    """Image, variance and mask of an exposure onto a patch of 0.333 arcsec a pixel; places are given."""
    from mpiimg.astro.kernels.places import NODE_SPACING
    from mpiimg.astro.kernels.warp import resample
    from mpiimg.astro.sky.wcs import read_wcs, source_grid

    header = bench_warp.tan_header(shape, bench_warp.NATIVE, angle=0.7)
    header.update(bench_warp.DISTORTION, CTYPE1="RA---TPV", CTYPE2="DEC--TPV")
    target = bench_warp.target_header(shape)
    box = (0, target["NAXIS2"]), (0, target["NAXIS1"])
    grid = source_grid(read_wcs(header, "exposure"), read_wcs(target, "patch"), box, NODE_SPACING)
    image = np.random.default_rng(7).normal(0, bench_warp.NOISE, shape).astype(np.float32)
    variance = np.full(shape, bench_warp.NOISE**2, np.float32)
    mask = np.zeros(shape, np.int32)
    outputs = target["NAXIS1"] * target["NAXIS2"]
    return Job(
        lambda: resample(image, variance, mask, grid, box, no_data=bench_warp.NO_DATA),
        "output pixel",
        outputs,
        {kind: outputs * one for kind, one in warp_pixel().items()},
        12 * image.size + 12 * outputs,
        1.0,
        "copying the source, masks",
    )


# --- Coadd --------------------------------------------------------------------------------------------------


def coadd_input() -> Work:
    """Return the work of a pixel of an exposure, clipped twice.

    `_gather`: three tests. Each pass: `_add_values` two tests, value and number added; `_add_squares` two
    tests, a difference, a square and its sum. `_average`: two tests, the products of weight and value and of
    squared weight and variance, three sums, number and mask. (Numbers of a pass are counted as floats.)
    """
    one_pass = Work(compare=2 + 2, add=2 + 2, multiply=1)
    average = Work(compare=2, multiply=2, add=3, integer=2)
    return Work(compare=3) + bench_coadd.PASSES * one_pass + average


def coadd_output() -> Work:
    """Return the work of an output pixel: bounds after each pass, and the quotients."""
    narrow = Work(divide=2, root=1, multiply=1, add=2, compare=3)
    return bench_coadd.PASSES * narrow + Work(divide=2, multiply=1, compare=2)


def coadd(shape: tuple[int, int, int]) -> Job:
    """A strip of exposures with variances and masks."""
    from mpiimg.astro.kernels import coadd as code

    strip = bench_coadd.exposures(shape, np.random.default_rng(7))
    depth, height, width = shape
    outputs = height * width
    executed = height * -(-width // code.TILE_PIXELS) * code.TILE_PIXELS
    return Job(
        lambda: bench_coadd.combine_with_ours(strip),
        "output pixel",
        outputs,
        {"float64": executed * (depth * coadd_input() + coadd_output())},
        # Image, variance and mask in; those and the number of inputs out.
        12 * depth * outputs + 14 * outputs,
        outputs / executed,
    )


#: Each kernel by name, with what makes its job at each size.
KERNELS = {
    "denoise": (nlmeans, {"full": ((145, 174, 145), 800_000, 32), "tiny": ((6, 14, 20), 500, 6)}),
    "tensor, 30 volumes": (tensor_fit, {"full": (30, 40_000), "tiny": (30, 100)}),
    "tensor, 288 volumes": (tensor_fit, {"full": (288, 8_000), "tiny": (65, 70)}),
    "median": (median, {"full": ((16, 174, 145), 4), "tiny": ((3, 9, 50), 1)}),
    "cosmic rays": (cosmics, {"full": ((4000, 4072), 6000, 2500), "tiny": ((60, 70), 2, 3)}),
    "warp": (warp, {"full": ((4072, 4000),), "tiny": ((90, 80),)}),
    "coadd": (coadd, {"full": ((24, 250, 4072),), "tiny": ((3, 5, 300),)}),
}


def job(name: str, size: str) -> Job:
    """Return the job of a kernel at a size."""
    make, sizes = KERNELS[name]
    return make(*sizes[size])
