"""One picture of a survey: the coadd of each band on the tract, with its sources.

Every patch is averaged in blocks that lie alike in all patches, on its own rank; one rank puts them together,
so that of pixels it holds no more than the picture, whatever the survey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpiimg.astro import catalogue
from mpiimg.astro.constants import SIGMA_PER_MAD
from mpiimg.astro.photometry.seams import joined
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.survey import Survey, patch_units
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Compute, Files

#: The longest side of a mosaic: pixels of the coadd are averaged until it fits.
MAX_SIDE = 1000

#: Sources that are drawn of a band, the brightest: more would cover the picture.
MAX_SOURCES = 20_000

INK, FAINT, CLEAN, FLAGGED, EMPTY = "#1a1a1a", "#6a6a6a", "#ffb000", "#ff4040", "#d8dce4"

#: Pixels of the picture: between and about panels, above them for the band, and below for a caption.
MARGIN, HEADING, CAPTION = 18, 40, 32

#: A panel is enlarged until its longer side has so many pixels, so that its caption fits.
MIN_SIDE = 400

#: Bytes that the library and a picture of the smallest size take.
PICTURE = 16 << 20

#: A circle is as wide as this many full widths, and at least so many pixels of the mosaic.
WIDTHS, MIN_WIDTH = 3.0, 5.0


class Mosaic(NamedTuple):
    """The coadd of a band: means of blocks of `step` x `step` pixels, NaN where there are none.

    `origin` is the tract's pixel (row, column) at the corner of its first block.
    """

    band: str
    image: np.ndarray
    origin: tuple[int, int]
    step: int


def means_array(layout: Layout) -> Array:
    """Return the array of the blocks of each patch, in the corner of its part, float32."""
    step = _step(layout)
    blocks = [_block_box(patch.outer, step) for patch in layout.patches]
    rows, columns = (max(box[axis][1] - box[axis][0] for box in blocks) for axis in (0, 1))
    return Array("mosaic-means", "prc", (len(blocks), rows, columns), "float32")


def average(state: Survey) -> Compute:
    """Declare the means of blocks of every patch."""
    layout, means, lost = state.layout, state.mosaic, state.lost_patches
    step = _step(layout)

    def without(chunk):
        return (np.full((1, *means.shape[1:]), np.nan, np.float32),)

    def work(chunk, pixels):
        (part,) = without(chunk)
        if chunk.number in lost:
            return (part,)
        blocks = block_means(pixels[0], layout.patches[chunk.number].outer, step)
        part[0, : blocks.shape[0], : blocks.shape[1]] = blocks
        return (part,)

    return Compute(
        "average",
        layout.patch_grid,
        reads=(Part(state.patches.image),),
        writes=(means,),
        work=work,
        units=patch_units(state),
        without=without,
        parameters={"step": step, "lost": sorted(lost)},
    )


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


def write_mosaic(state: Survey, name: str) -> Files:
    """Declare the picture: the mosaic of each band with a circle per primary source, red where a flag is set.

    Parameters
    ----------
    state : Survey
        With rows of the catalogue, and means of blocks.
    name : str
        Of the file, PNG; the bands lie side by side.
    """
    patches, step, lost = state.layout.patches, _step(state.layout), state.lost_patches

    def work(chunk, folder, means, rows):
        table = joined_rows(state, rows)
        if lost:
            means = means.copy()
            means[sorted(lost)] = np.nan
        save_picture(folder / name, mosaics(patches, means, step), table[table["is_primary"]])

    return Files(
        "mosaic",
        ChunkGrid("k", (1,), (1,)),
        reads=(Part(state.mosaic), Part(state.catalogue)),
        work=work,
        names=(name,),
        # The rows are joined, matched and drawn.
        scratch=PICTURE + 12 * state.mosaic.nbytes + 3 * state.catalogue.nbytes,
    )


def _step(layout: Layout) -> int:
    """Return the side of the blocks that are averaged, in pixels."""
    spans = [
        max(patch.outer[axis][1] for patch in layout.patches)
        - min(patch.outer[axis][0] for patch in layout.patches)
        for axis in (0, 1)
    ]
    return max(1, -(-max(spans) // MAX_SIDE))


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
    pixels = np.pad(pixels, around, constant_values=np.nan)
    rows, columns = pixels.shape[0] // step, pixels.shape[1] // step
    blocks = pixels.reshape(rows, step, columns, step)
    finite = np.isfinite(blocks)
    total = np.where(finite, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    count = finite.sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def mosaics(patches: Sequence[Patch], means: np.ndarray, step: int) -> list[Mosaic]:
    """Put the blocks of patches together, band by band.

    Parameters
    ----------
    means : (patches, rows, columns) float32: the blocks of each patch in the corner of its part
    """
    panels = []
    for band in dict.fromkeys(patch.band for patch in patches):
        members = [
            (_block_box(p.outer, step), m) for p, m in zip(patches, means, strict=True) if p.band == band
        ]
        top, left = (min(box[axis][0] for box, _ in members) for axis in (0, 1))
        bottom, right = (max(box[axis][1] for box, _ in members) for axis in (0, 1))
        image = np.full((bottom - top, right - left), np.nan, np.float32)
        for ((y0, y1), (x0, x1)), blocks in members:
            part = image[y0 - top : y1 - top, x0 - left : x1 - left]
            # Blocks that the patch has only a part of leave what a neighbour says.
            np.copyto(part, blocks[: y1 - y0, : x1 - x0], where=np.isnan(part))
        panels.append(Mosaic(band, image, (top * step, left * step), step))
    return panels


def save_picture(path: Path, panels: list[Mosaic], sources: np.ndarray) -> None:
    """Write the picture of mosaics with their sources, rows of the catalogue; the bytes follow from both."""
    from PIL import Image, ImageDraw, ImageFont

    zoom = max(1, -(-MIN_SIDE // max(max(m.image.shape) for m in panels)))
    height = HEADING + zoom * max(m.image.shape[0] for m in panels) + CAPTION
    width = MARGIN + sum(zoom * m.image.shape[1] + MARGIN for m in panels)
    picture = Image.new("RGB", (width, height), "white")
    draw, left = ImageDraw.Draw(picture), MARGIN
    for m in panels:
        chosen = sources[sources["band"] == catalogue.text(m.band).encode()]
        shown = _brightest(chosen)
        panel = _panel(m, zoom, shown)
        picture.paste(panel, (left, HEADING))
        draw.text((left, 12), m.band, INK, ImageFont.load_default(18))
        about = f"the brightest {MAX_SOURCES} of " if len(shown) < len(chosen) else ""
        about += f"{len(chosen)} sources" + (f", {m.step} x {m.step} pixels in one" if m.step > 1 else "")
        draw.text((left, HEADING + panel.height + 6), about, FAINT, ImageFont.load_default(13))
        left += panel.width + MARGIN
    picture.save(path, format="png")


def _stretched(image: np.ndarray) -> np.ndarray:
    """Return an image between 0 and 1: linear about the sky's noise, logarithmic above (asinh)."""
    finite = image[np.isfinite(image)]
    if not finite.size:
        return np.zeros_like(image)
    sky = np.median(finite)
    noise = SIGMA_PER_MAD * np.median(np.abs(finite - sky)) or 1.0
    top = max(np.percentile(finite, 99.8), sky + 30 * noise)
    scaled = np.arcsinh((image - sky + 2 * noise) / (3 * noise))
    return np.clip(scaled / np.arcsinh((top - sky) / (3 * noise)), 0, 1)


def _brightest(sources: np.ndarray) -> np.ndarray:
    """Return the MAX_SOURCES sources of the largest flux, as they are ordered."""
    flux = np.nan_to_num(sources["flux_auto"], nan=-np.inf)
    return sources[np.sort(np.argsort(-flux, kind="stable")[:MAX_SOURCES])]


def _panel(m: Mosaic, zoom: int, sources):
    """Draw one mosaic, north up and east left as the tract lies, and a circle per source."""
    from PIL import Image, ImageColor, ImageDraw

    shades = np.repeat(np.uint8(np.nan_to_num(_stretched(m.image)) * 255)[..., None], 3, axis=2)
    shades[~np.isfinite(m.image)] = ImageColor.getrgb(EMPTY)
    # Rows of the tract count from the bottom, those of a picture from the top.
    panel = Image.fromarray(shades[::-1].repeat(zoom, axis=0).repeat(zoom, axis=1))
    draw, scale = ImageDraw.Draw(panel), zoom / m.step
    radii = scale * np.fmax(WIDTHS * np.asarray(sources["fwhm"], float), MIN_WIDTH * m.step) / 2
    columns = scale * (sources["x"] - m.origin[1] + 0.5) - 0.5
    rows = panel.height - scale * (sources["y"] - m.origin[0] + 0.5) - 0.5
    for x, y, radius, flags in zip(columns, rows, radii, sources["flags"], strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=FLAGGED if flags else CLEAN)
    return panel
