"""One picture of a survey: the coadd of each filter on the tract, with its sources.

Every patch is averaged in blocks that lie alike in all patches, on its own rank; one rank puts them together,
so that of pixels it holds no more than the picture, whatever the survey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpiimg.io.store import Array
from mpiimg.partition import Box, ChunkGrid
from mpiimg.stages.detect import coadd_of, joined, rows_array
from mpiimg.stages.stage import Need, Stage
from mpiimg.stages.survey import Layout, Patch

#: The longest side of a mosaic: pixels of the coadd are averaged until it fits.
LONGEST = 1000

#: Sources that are drawn of a filter, the brightest: more would cover the picture.
MOST = 20_000

INK, FAINT, CLEAN, FLAGGED, EMPTY = "#1a1a1a", "#6a6a6a", "#ffb000", "#ff4040", "#d8dce4"
DPI, MARGIN, HEADING, CAPTION = 100, 0.18, 0.4, 0.32  # dots an inch; inches

#: Bytes that matplotlib and its canvas take.
MATPLOTLIB = 120 << 20

#: A circle is as wide as this many full widths, and at least so many pixels of the mosaic.
WIDTHS, SMALLEST = 3.0, 5.0


class Mosaic(NamedTuple):
    """The coadd of a filter: means of blocks of `step` x `step` pixels, NaN where there are none.

    `origin` is the tract's pixel (row, column) at the corner of its first block.
    """

    band: str
    image: np.ndarray
    origin: tuple[int, int]
    step: int


def average(layout: Layout) -> Stage:
    """Declare the means of blocks of every patch."""
    means, step = _means_array(layout), _step(layout)

    def work(chunk, *blocks):
        (image,) = coadd_of(layout, chunk.number, blocks)
        found = block_means(image, layout.patches[chunk.number].outer, step)
        room = np.full((1, *means.shape[1:]), np.nan, np.float32)
        room[0, : found.shape[0], : found.shape[1]] = found
        return (room,)

    need = Need(layout.coadd_planes()[0], place=lambda chunk: (layout.patch_run(chunk),))
    return Stage("average", "map", layout.patch_grid, (need,), (means,), work, {"step": step})


def draw(layout: Layout, counts: Sequence[int], name: str) -> Stage:
    """Declare the picture: the mosaic of each filter with a circle a primary source, red where a flag is set.

    Parameters
    ----------
    counts : sources of each patch
    name : of the file, PNG; the filters lie side by side
    """

    def work(chunk, folder, means, rows):
        table = joined(layout, counts, rows)
        write(folder / name, mosaics(layout.patches, means, _step(layout)), table[table["is_primary"]])

    means, rows = _means_array(layout), rows_array(counts)
    return Stage(
        "mosaic",
        "files",
        ChunkGrid("k", (1,), (1,)),
        (Need(means), Need(rows)),
        work=work,
        outputs=(name,),
        # The rows are joined, matched and drawn.
        scratch=MATPLOTLIB + 6 * means.nbytes + 3 * rows.nbytes,
    )


def _means_array(layout: Layout) -> Array:
    step = _step(layout)
    blocks = [_block_box(patch.outer, step) for patch in layout.patches]
    rows, columns = (max(box[axis][1] - box[axis][0] for box in blocks) for axis in (0, 1))
    return Array("mosaic-means", "prc", (len(blocks), rows, columns), "float32")


def _step(layout: Layout) -> int:
    """Return the side of the blocks that are averaged, in pixels."""
    spans = [
        max(patch.outer[axis][1] for patch in layout.patches)
        - min(patch.outer[axis][0] for patch in layout.patches)
        for axis in (0, 1)
    ]
    return max(1, -(-max(spans) // LONGEST))


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
    known = np.isfinite(blocks)
    total = np.where(known, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    count = known.sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def mosaics(patches: Sequence[Patch], means: np.ndarray, step: int) -> list[Mosaic]:
    """Put the blocks of patches together, filter by filter.

    Parameters
    ----------
    means : (patches, rows, columns) float32: the blocks of each patch in the corner of its part
    """
    found = []
    for band in dict.fromkeys(patch.filter for patch in patches):
        members = [
            (_block_box(p.outer, step), m) for p, m in zip(patches, means, strict=True) if p.filter == band
        ]
        top, left = (min(box[axis][0] for box, _ in members) for axis in (0, 1))
        bottom, right = (max(box[axis][1] for box, _ in members) for axis in (0, 1))
        image = np.full((bottom - top, right - left), np.nan, np.float32)
        for ((y0, y1), (x0, x1)), blocks in members:
            part = image[y0 - top : y1 - top, x0 - left : x1 - left]
            # Blocks that the patch has only a part of leave what a neighbour says.
            np.copyto(part, blocks[: y1 - y0, : x1 - x0], where=np.isnan(part))
        found.append(Mosaic(band, image, (top * step, left * step), step))
    return found


def write(path: Path, panels: list[Mosaic], sources: np.ndarray) -> None:
    """Write the picture of mosaics with their sources, rows of the catalogue; the bytes follow from both."""
    figure = _lay_out(panels, sources)
    # matplotlib would write its version.
    figure.savefig(path, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})


def _stretched(image: np.ndarray) -> np.ndarray:
    """Return an image between 0 and 1: linear about the sky's noise, logarithmic above (asinh)."""
    known = image[np.isfinite(image)]
    if not known.size:
        return np.zeros_like(image)
    sky = np.median(known)
    noise = 1.4826 * np.median(np.abs(known - sky)) or 1.0
    top = max(np.percentile(known, 99.8), sky + 30 * noise)
    scaled = np.arcsinh((image - sky + 2 * noise) / (3 * noise))
    return np.clip(scaled / np.arcsinh((top - sky) / (3 * noise)), 0, 1)


def _lay_out(panels: list[Mosaic], sources):
    from matplotlib.figure import Figure

    heights, widths = zip(*((m.image.shape[0] / DPI, m.image.shape[1] / DPI) for m in panels), strict=True)
    # Small mosaics are enlarged, so that their captions fit.
    zoom = max(1.0, 4.0 / min(widths), 4.0 / max(heights))
    width = zoom * sum(widths) + MARGIN * (len(panels) + 1)
    height = zoom * max(heights) + HEADING + CAPTION + MARGIN
    figure = Figure(figsize=(width, height))
    x = MARGIN
    for m, panel_height, panel_width in zip(panels, heights, widths, strict=True):
        box = (x, height - HEADING - zoom * panel_height, zoom * panel_width, zoom * panel_height)
        axes = figure.add_axes([box[0] / width, box[1] / height, box[2] / width, box[3] / height])
        chosen = sources[sources["band"] == m.band.encode()]
        shown = _brightest(chosen)
        _draw_panel(axes, m, shown)
        figure.text(x / width, 1 - 0.27 / height, m.band, color=INK, fontsize=13, weight="bold")
        about = f"the brightest {MOST} of " if len(shown) < len(chosen) else ""
        about += f"{len(chosen)} sources" + (f", {m.step} x {m.step} pixels in one" if m.step > 1 else "")
        figure.text(x / width, (box[1] - 0.22) / height, about, color=FAINT, fontsize=9)
        x += zoom * panel_width + MARGIN
    return figure


def _brightest(sources: np.ndarray) -> np.ndarray:
    """Return the MOST sources of the largest flux, as they are ordered."""
    flux = np.nan_to_num(sources["flux_auto"], nan=-np.inf)
    return sources[np.sort(np.argsort(-flux, kind="stable")[:MOST])]


def _draw_panel(axes, m: Mosaic, sources) -> None:
    """Draw one mosaic, north up and east left as the tract lies, and a circle a source."""
    import matplotlib
    from matplotlib.collections import EllipseCollection

    axes.set_axis_off()
    rows, columns = m.image.shape
    top, left = m.origin[0] - 0.5, m.origin[1] - 0.5
    extent = (left, left + columns * m.step, top, top + rows * m.step)
    shades = np.ma.masked_invalid(_stretched(m.image))
    grey = matplotlib.colormaps["gray"].with_extremes(bad=EMPTY)
    axes.imshow(shades, origin="lower", extent=extent, cmap=grey, vmin=0, vmax=1, interpolation="nearest")
    size = np.fmax(WIDTHS * np.asarray(sources["fwhm"], float), SMALLEST * m.step)
    places = np.column_stack([sources["x"], sources["y"]]).reshape(-1, 2)
    colours = [FLAGGED if flags else CLEAN for flags in sources["flags"]]
    circles = EllipseCollection(
        size, size, np.zeros(len(size)), units="xy", offsets=places, transOffset=axes.transData
    )
    circles.set(facecolor="none", edgecolor=colours or "none", linewidth=0.8)
    axes.add_collection(circles, autolim=False)
