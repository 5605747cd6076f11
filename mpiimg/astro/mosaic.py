"""A survey at a glance: coadd, noise and number of inputs of each band on the tract, in blocks of pixels.

Every patch is averaged in blocks that lie alike in all patches, on its own rank; one rank puts them together,
so that of pixels it holds no more than the mosaic, whatever the survey. The page of a run draws it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mpiimg.astro import catalogue
from mpiimg.astro.catalogue import Column
from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.figure_files import figure_files
from mpiimg.astro.fits.writing import write_planes
from mpiimg.astro.photometry.seams import joined
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.survey import Survey, patch_units
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, ChunkGrid, box_shape
from mpiimg.engine.names import file_name
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Compute, Files, Stages

#: Its name; that of the filter stands in front where there are several.
FILE = "mosaic.fits"

#: The longest side of a mosaic: pixels of the coadd are averaged until it fits.
MAX_SIDE = 1000

#: Planes of a mosaic: coadd, variance (that of sums of pixels, where patches have it), number of inputs.
PLANES = ("IMAGE", "VARIANCE", "NIMAGE")

#: Depths are those of so many standard deviations in a circle of this radius, arcseconds.
SIGMAS, RADIUS = 5.0, 1.0

#: Bytes that the library which writes files takes.
LIBRARY = 16 << 20

DEPTH = (
    Column("band", "str", "", "filter"),
    Column("area", "f8", "arcmin2", "where there are data"),
    Column("inputs", "f8", "", "exposures in the coadd: their median over that area"),
    Column("inputs_max", "f8", "", "the most, as means of blocks"),
    Column("depth", "f8", "mag", "5 sigma in a circle of 2 arcsec, AB, without aperture correction: median"),
    Column("depth_10", "f8", "mag", "the same of the shallowest tenth of the area: its 10th percentile"),
    Column("depth_90", "f8", "mag", "the same of the deepest tenth: its 90th percentile"),
)


# --- Means of blocks --------------------------------------------------------------------------------------


def measure(state: Survey) -> Stages[Survey]:
    """Average patches that have not been yet; the next state has the means."""
    if state.mosaic is not None:
        return state
    state = replace(state, mosaic=means_array(state.layout))
    return state.without_patches((yield average(state)))


def means_array(layout: Layout) -> Array:
    """Return the array of the blocks of each patch, of all PLANES, in the corner of its part, float32."""
    step = block_side(layout)
    blocks = [_block_box(patch.outer, step) for patch in layout.patches]
    rows, columns = (max(box[axis][1] - box[axis][0] for box in blocks) for axis in (0, 1))
    return Array("mosaic-means", "plrc", (len(blocks), len(PLANES), rows, columns), "float32")


def average(state: Survey) -> Compute:
    """Declare the means of blocks of every patch."""
    layout, means, lost = state.layout, state.mosaic, state.lost_patches
    step, patches = block_side(layout), state.patches
    variance = patches.variance if patches.variance_ls is None else patches.variance_ls

    def without(chunk):
        return (np.full((1, *means.shape[1:]), np.nan, np.float32),)

    def work(chunk, *planes):
        (part,) = without(chunk)
        if chunk.number in lost:
            return (part,)
        for plane, pixels in enumerate(planes):
            blocks = block_means(pixels[0], layout.patches[chunk.number].outer, step)
            part[0, plane, : blocks.shape[0], : blocks.shape[1]] = blocks
        return (part,)

    return Compute(
        "average",
        layout.patch_grid,
        reads=(Part(patches.image), Part(variance), Part(patches.nimage)),
        writes=(means,),
        work=work,
        units=patch_units(state),
        without=without,
        parameters={"step": step, "lost": sorted(lost)},
    )


def block_side(layout: Layout) -> int:
    """Return the side of the blocks that are averaged, in pixels."""
    return max(1, -(-max(box_shape(_around(layout.patches))) // MAX_SIDE))


def _around(patches: Sequence[Patch]) -> Box:
    """Return the box of tract pixels that patches reach over."""
    return tuple(
        (min(patch.outer[axis][0] for patch in patches), max(patch.outer[axis][1] for patch in patches))
        for axis in (0, 1)
    )


def _block_box(box: Box, step: int) -> Box:
    """Return the blocks that a box of tract pixels reaches into."""
    return tuple((start // step, -(-stop // step)) for start, stop in box)


def block_means(pixels: np.ndarray, box: Box, step: int) -> np.ndarray:
    """Return the means of what is finite in blocks of `step` x `step` pixels of the tract; NaN for nothing.

    Parameters
    ----------
    pixels : of `box`, (rows, columns)
    box : in tract pixels; blocks begin at multiples of `step` of the tract
    """
    around = [(start % step, -stop % step) for start, stop in box]
    pixels = np.pad(pixels.astype(np.float32, copy=False), around, constant_values=np.nan)
    rows, columns = pixels.shape[0] // step, pixels.shape[1] // step
    blocks = pixels.reshape(rows, step, columns, step)
    finite = np.isfinite(blocks)
    total = np.where(finite, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    count = finite.sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


# --- The whole tract --------------------------------------------------------------------------------------


def mosaics(layout: Layout, means: np.ndarray) -> dict[str, np.ndarray]:
    """Put the blocks of patches together, band by band, all on the blocks of :func:`mosaic_box`.

    Parameters
    ----------
    means : (patches, planes, rows, columns) float32
        The blocks of each patch in the corner of its part.

    Returns
    -------
    dict of str to (planes, rows, columns) float32
        NaN where there are none.
    """
    step, box = block_side(layout), mosaic_box(layout)
    (top, _), (left, _) = box
    found: dict[str, np.ndarray] = {}
    for patch, blocks in zip(layout.patches, means, strict=True):
        shape = (means.shape[1], *box_shape(box))
        image = found.setdefault(patch.band, np.full(shape, np.nan, np.float32))
        (y0, y1), (x0, x1) = _block_box(patch.outer, step)
        part = image[:, y0 - top : y1 - top, x0 - left : x1 - left]
        # Of blocks at its edge the patch may have only a part: what a neighbour says of them stays.
        rows, columns = (_is_whole(bounds, step) for bounds in patch.outer)
        blocks = blocks[:, : y1 - y0, : x1 - x0]
        np.copyto(part, blocks, where=np.isnan(part) | (rows[:, None] & columns & ~np.isnan(blocks)))
    return found


def _is_whole(bounds: tuple[int, int], step: int) -> np.ndarray:
    """Return for each block that a span of pixels reaches into whether it has all of it."""
    first = np.arange(bounds[0] // step, -(-bounds[1] // step)) * step
    return (first >= bounds[0]) & (first + step <= bounds[1])


def without_lost(state: Survey, means: np.ndarray) -> np.ndarray:
    """Return the blocks of patches, NaN for those that failed after they were averaged."""
    means = means.copy()
    means[sorted(state.lost_patches)] = np.nan
    return means


def mosaic_box(layout: Layout) -> Box:
    """Return the blocks that the patches of all bands reach into, counted from the tract's corner."""
    return _block_box(_around(layout.patches), block_side(layout))


def mosaic_names(layout: Layout, name: str = FILE) -> dict[str, str]:
    """Return the name of the mosaic of each band."""
    bands = list(dict.fromkeys(patch.band for patch in layout.patches))
    return {band: f"{file_name(band)}-{name}" if len(bands) > 1 else name for band in bands}


def write_mosaic(state: Survey, folder: Path, name: str = FILE) -> Files:
    """Declare the mosaic of each band as FITS, and the depth of each band as a table.

    Parameters
    ----------
    state : Survey
        With the means of blocks.
    name : str
        Of a mosaic, where there is one band.
    """
    layout, tract = state.layout, state.tract
    names, step = mosaic_names(layout, name), block_side(layout)
    stem = name.removesuffix(FILE) + "depth"
    further = state.patches.variance_ls is not None

    def work(chunk, folder_of_run, means):
        found = mosaics(layout, without_lost(state, means))
        header = blocks_header(tract, mosaic_box(layout), step)
        for band, planes in found.items():
            named = dict(zip(PLANES, planes, strict=True))
            if further:
                named = {"VARIANCE_LS" if name == "VARIANCE" else name: one for name, one in named.items()}
            cards = {
                "BUNIT": ("ct", "flux per pixel at MAGZERO"),
                "MAGZERO": (ZERO_POINT, "[mag] of one count"),
                "FILTER": band,
                "BLOCK": (step, "pixels of the tract along a side of each here"),
                "PIXSCALE": (tract.pixel_scale, "[arcsec] of a pixel of the tract"),
            }
            write_planes(folder_of_run / folder / names[band], named, header, cards)
        rows = [depth_of(band, planes, tract.pixel_scale, step) for band, planes in found.items()]
        for file, data in figure_files(stem, DEPTH, rows).items():
            (folder_of_run / folder / file).write_bytes(data)

    return Files(
        "mosaic",
        ChunkGrid("k", (1,), (1,)),
        reads=(Part(state.mosaic),),
        work=work,
        names=tuple(str(folder / one) for one in (*names.values(), f"{stem}.tsv", f"{stem}.json")),
        # Mosaics, and the copy of each that becomes a file.
        scratch=LIBRARY + 4 * len(PLANES) * math.prod(box_shape(mosaic_box(layout))) * (len(names) + 3),
    )


def blocks_header(tract: Tract, box: Box, step: int) -> str:
    """Return the celestial coordinates of blocks of `step` pixels of a tract as header text."""
    corner = tuple((first * step, last * step) for first, last in box)
    wcs = tract.wcs_of(corner)
    # FITS has 0.5 at the corner of the first pixel.
    wcs.wcs.crpix = [(place - 0.5) / step + 0.5 for place in wcs.wcs.crpix]
    wcs.wcs.cdelt = [width * step for width in wcs.wcs.cdelt]
    return "\n".join(str(card).rstrip() for card in wcs.to_header(relax=True).cards)


def data_area(planes: np.ndarray, pixel_scale: float, step: int) -> float:
    """Return the area of the blocks of a mosaic that have data, square arcminutes."""
    return float(np.count_nonzero(planes[2] > 0) * (step * pixel_scale / 60) ** 2)


def depth_of(band: str, planes: np.ndarray, pixel_scale: float, step: int) -> dict[str, object]:
    """Return the row of DEPTH of the mosaic of a band."""
    variance, inputs = planes[1:]
    there = (inputs > 0) & np.isfinite(variance) & (variance > 0)
    row = {"band": band, "area": data_area(planes, pixel_scale, step)}
    if there.any():
        # The larger the variance the less deep.
        deep, middle, shallow = np.percentile(variance[there].astype(np.float64), (10, 50, 90)).tolist()
        row |= {"inputs": float(np.median(inputs[there])), "inputs_max": float(inputs[there].max())}
        row |= {
            name: magnitude_limit(value, pixel_scale)
            for name, value in (("depth", middle), ("depth_10", shallow), ("depth_90", deep))
        }
    return row


def magnitude_limit(variance, pixel_scale: float):
    """Return the magnitude of SIGMAS deviations of the sum over a circle of RADIUS.

    Parameters
    ----------
    variance : float or array
        Of a pixel, in sums of many, at ZERO_POINT.
    pixel_scale : float
        Arcseconds.
    """
    pixels = math.pi * (RADIUS / pixel_scale) ** 2
    return ZERO_POINT - 2.5 * np.log10(SIGMAS * np.sqrt(pixels * variance))


# --- Rows of the catalogue --------------------------------------------------------------------------------


def joined_rows(state: Survey, rows: np.ndarray) -> np.ndarray:
    """Return one table of the sources of all patches but those that failed.

    Parameters
    ----------
    state : Survey
        With the number of sources of each patch.
    rows : (bytes,) uint8
        Rows of the catalogue of all patches, one patch after the other.
    """
    counts, lost = state.source_counts, state.lost_patches
    if lost:
        size = catalogue.ROW_TYPE.itemsize
        parts = np.split(rows, np.cumsum(counts[:-1], dtype=np.int64) * size)
        rows = np.concatenate([part[:0] if n in lost else part for n, part in enumerate(parts)])
        counts = [0 if number in lost else count for number, count in enumerate(counts)]
    patches = state.layout.patches
    table = joined(patches, counts, rows)
    return catalogue.with_names(table, [one.name for one in patches], [one.band for one in patches])
