"""Brain mask: mean of the b0 volumes, repeated median filter, Otsu threshold.

The method is dipy's median_otsu. From the float64 mean on (one cast to
float32), the result is that of scipy's median filter and dipy's own copy of
Otsu's threshold to the last bit. scikit-image's Otsu, which dipy takes where it
is installed, differs by some voxels.
"""

from __future__ import annotations

import numpy as np

from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.stage import Need, Parameter, Stage, extended, reduction
from mpiimg.engine.stores import Array
from mpiimg.errors import BadInput
from mpiimg.neuro.images import finite
from mpiimg.neuro.nifti import Image

PAPER = "Otsu 1979, doi:10.1109/TSMC.1979.4310076; median_otsu of DIPY, doi:10.3389/fninf.2014.00008"

PARAMETERS = (
    Parameter("median_radius", 4, "radius of the median filter", int, "voxels", limits=(0, 19)),
    Parameter("passes", 4, "how often the median filter is applied", int, limits=(0, 100)),
    Parameter(
        "dilate", 0, "grow the mask by a 6-neighbour cross, this many times", int, "voxels", limits=(0, 1000)
    ),
    Parameter("finalize", False, "remove holes and islands from the mask", bool),
)

#: z-blocks of an image: enough of them to keep ranks busy, thick enough that halos cost little.
BLOCKS = 16


def slabs(depth: int) -> ChunkGrid:
    """Return the z-blocks that masks are computed in."""
    return ChunkGrid("z", (depth,), (blocks_along(depth, BLOCKS, thinnest=2),))


def volume(image: Image, name: str, dtype: str) -> Array:
    """Describe an array of one value a voxel."""
    return Array(name, "zyx", image.shape[-3:], dtype)


def b0_mean(image: Image, dwi: Array, b0: tuple[int, ...]) -> Stage:
    """Average the unweighted volumes in float64, in their order, and round once."""

    def work(chunk, block):
        total = np.zeros(block.shape[1:])
        for one in block:
            total += finite(image.scaled(one))
        return ((total / len(b0)).astype(np.float32),)

    return Stage(
        "b0-mean",
        "map",
        slabs(image.shape[-3]),
        (Need(dwi, rows=b0),),
        (volume(image, "b0", "float32"),),
        work,
        {"b0": b0, "slope": image.slope, "inter": image.inter},
    )


def median(image: Image, source: Array, number: int, radius: int) -> Stage:
    """Filter by the median of a cube, edges mirrored."""
    depth = image.shape[-3]

    def work(chunk, block):
        from mpiimg.neuro.kernels.median import median_filter

        return (median_filter(extended(block, chunk.bounds["z"], radius, depth, edge=True), radius),)

    return Stage(
        f"median-{number}",
        "stencil",
        slabs(depth),
        (Need(source, {"z": radius}),),
        (volume(image, f"median-{number}", "float32"),),
        work,
        {"radius": radius},
        cost=("median", float(np.prod(source.shape)) * (2 * radius + 1) ** 2),
    )


def value_range(image: Image, source: Array) -> Stage:
    """Find the smallest and largest value, between which Otsu's histogram lies."""

    def finish(rows):
        low, high = rows[:, 0].min(), rows[:, 1].max()
        if low == high:
            raise BadInput(
                f"{image.path}: the smoothed b0 is {low:g} everywhere: there is no brain to find; "
                "give a mask with --mask, or a smaller --median-radius"
            )
        return {"low": low, "high": high}

    return reduction(
        "range",
        slabs(image.shape[-3]),
        (Need(source),),
        lambda chunk, block: (block.min(), block.max()),
        ((2,), "float32"),
        finish,
    )


def otsu(image: Image, source: Array, low: np.float32, high: np.float32) -> Stage:
    """Find Otsu's threshold from the sum of the chunks' histograms."""
    from mpiimg.neuro.kernels.otsu import histogram, threshold

    def finish(rows):
        return {"threshold": threshold(rows.sum(axis=0), low, high)}

    return reduction(
        "otsu",
        slabs(image.shape[-3]),
        (Need(source),),
        lambda chunk, block: histogram(block, low, high),
        ((256,), "int64"),
        finish,
        {"low": float(low), "high": float(high)},
    )


def above_threshold(image: Image, source: Array, level: float, name: str) -> Stage:
    """Keep the voxels strictly above the threshold."""
    return Stage(
        "threshold",
        "map",
        slabs(image.shape[-3]),
        (Need(source),),
        (volume(image, name, "uint8"),),
        lambda chunk, block: (block > level,),
        {"level": float(level)},
    )


def dilate(image: Image, source: Array, voxels: int, name: str) -> Stage:
    """Grow the mask by a cross of 6 neighbours, `voxels` times."""

    def work(chunk, block):
        from scipy.ndimage import binary_dilation, generate_binary_structure

        grown = binary_dilation(block, generate_binary_structure(3, 1), iterations=voxels)
        start, stop = chunk.bounds["z"]
        first = start - max(start - voxels, 0)
        return (grown[first : first + stop - start],)

    return Stage(
        "dilate",
        "stencil",
        slabs(image.shape[-3]),
        (Need(source, {"z": voxels}),),
        (volume(image, name, "uint8"),),
        work,
        {"voxels": voxels},
    )


def finalize(image: Image, source: Array, name: str) -> Stage:
    """Keep the largest island and fill its holes; one chunk, since a hole may reach through all slices."""

    def work(chunk, block):
        from dipy.segment.utils import remove_holes_and_islands

        return (remove_holes_and_islands(block.astype(bool)),)

    depth = image.shape[-3]
    return Stage(
        "finalize",
        "map",
        ChunkGrid("z", (depth,), (depth,)),
        (Need(source),),
        (volume(image, name, "uint8"),),
        work,
    )


def foreign(image: Image, source: Array) -> Stage:
    """Take a mask that someone else made: what is not 0 is inside."""
    return Stage(
        "mask-in",
        "map",
        slabs(image.shape[-3]),
        (Need(source),),
        (volume(image, "mask", "uint8"),),
        lambda chunk, block: (finite(image.scaled(block)) != 0,),
    )


def count_voxels(image: Image, mask: Array, what: str) -> Stage:
    """Count the mask's voxels slice by slice: they weigh the chunks that follow, and number their voxels."""
    grid = slabs(image.shape[-3])
    depth, thickness = image.shape[-3], grid.block[0]

    def partial(chunk, block):
        counts = np.zeros(thickness, np.int64)
        counts[: len(block)] = np.count_nonzero(block, axis=(1, 2))
        return counts

    def finish(rows):
        counts = rows.ravel()[:depth]
        if not counts.any():
            raise BadInput(f"{what} is empty: no voxel of it is inside; give another with --mask")
        offsets = np.concatenate(([0], np.cumsum(counts))).tolist()
        return {"offsets": tuple(offsets), "mask_voxels": offsets[-1]}

    return reduction("mask-voxels", grid, (Need(mask),), partial, ((thickness,), "int64"), finish)
