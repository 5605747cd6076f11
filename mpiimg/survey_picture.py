"""One picture of a finished survey: the coadd of each filter on the tract, with its sources."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: The longest side of a mosaic: pixels of the coadd are averaged until it fits.
LONGEST = 1000

INK, FAINT, CLEAN, FLAGGED, EMPTY = "#1a1a1a", "#6a6a6a", "#ffb000", "#ff4040", "#d8dce4"
DPI, MARGIN, HEADING, CAPTION = 100, 0.18, 0.4, 0.32  # dots an inch; inches

#: A circle is as wide as this many full widths, and at least so many pixels of the mosaic.
WIDTHS, SMALLEST = 3.0, 5.0


class Patch(NamedTuple):
    """Where the file of a patch lies in the tract."""

    path: Path
    band: str
    rows: tuple[int, int]
    columns: tuple[int, int]


class Mosaic(NamedTuple):
    """The coadd of a filter: means of blocks of `step` x `step` pixels, NaN where there are none.

    `origin` is the tract's pixel (row, column) at the corner of its first block.
    """

    band: str
    image: np.ndarray
    origin: tuple[int, int]
    step: int


def draw(patch_files: Iterable[str | PathLike], catalogue: str | PathLike, out_png: str | PathLike) -> None:
    """Draw the mosaic of each filter with a circle on every primary source, red where a flag is set.

    Parameters
    ----------
    patch_files : paths
        Patches of one tract, as mpiimg-astro and mpiimg-coadd write them, in any order and several filters.
    catalogue : path
        Of these patches: FITS, ECSV or Parquet.
    out_png : path
        Where to write; the filters lie side by side.

    Raises
    ------
    ValueError
        If there are no patches.
    """
    patches = [_find(Path(path)) for path in patch_files]
    if not patches:
        raise ValueError("no patches to draw")
    step = _step(patches)
    bands = sorted({patch.band for patch in patches})
    mosaics = [mosaic([patch for patch in patches if patch.band == band], step) for band in bands]
    figure = _lay_out(mosaics, _sources(Path(catalogue)))
    figure.savefig(Path(out_png), dpi=DPI, facecolor="white")


def _find(path: Path) -> Patch:
    from astropy.io import fits

    with fits.open(path) as hdus:
        cards, (height, width) = hdus[0].header, hdus["IMAGE"].shape
    row, column = cards["TRACTY"], cards["TRACTX"]
    return Patch(path, str(cards["FILTER"]), (row, row + height), (column, column + width))


def _step(patches: list[Patch]) -> int:
    spans = [
        max(getattr(p, axis)[1] for p in patches) - min(getattr(p, axis)[0] for p in patches)
        for axis in ("rows", "columns")
    ]
    return max(1, -(-max(spans) // LONGEST))


def mosaic(patches: list[Patch], step: int) -> Mosaic:
    """Return the patches of one filter as one image, reading one of them at a time."""
    from astropy.io import fits

    first = [min(getattr(p, axis)[0] for p in patches) // step for axis in ("rows", "columns")]
    last = [-(-max(getattr(p, axis)[1] for p in patches) // step) for axis in ("rows", "columns")]
    image = np.full([b - a for a, b in zip(first, last, strict=True)], np.nan, np.float32)
    for patch in patches:
        pixels = fits.getdata(patch.path, "IMAGE").astype(np.float32)
        # Blocks lie alike in all patches, so that those of a border agree.
        (top, bottom), (left, right) = patch.rows, patch.columns
        around = ((top % step, -bottom % step), (left % step, -right % step))
        blocks = _block_means(np.pad(pixels, around, constant_values=np.nan), step)
        row, column = top // step - first[0], left // step - first[1]
        part = image[row : row + blocks.shape[0], column : column + blocks.shape[1]]
        # Blocks that the patch has only a part of leave what a neighbour says.
        np.copyto(part, blocks, where=np.isnan(part))
    return Mosaic(patches[0].band, image, (first[0] * step, first[1] * step), step)


def _block_means(pixels: np.ndarray, step: int) -> np.ndarray:
    """Return the means of what is finite in blocks of `step` x `step` pixels; NaN for nothing."""
    rows, columns = pixels.shape[0] // step, pixels.shape[1] // step
    blocks = pixels.reshape(rows, step, columns, step)
    known = np.isfinite(blocks)
    total = np.where(known, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    count = known.sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _sources(path: Path):
    """Return the primary rows of a catalogue."""
    from astropy.table import Table

    # Only FITS has several tables to choose from.
    table = Table.read(path, **({"hdu": 1} if path.suffix.lower() == ".fits" else {}))
    return table[np.asarray(table["is_primary"], bool)]


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


def _lay_out(mosaics: list[Mosaic], sources):
    from matplotlib.figure import Figure

    heights, widths = zip(*((m.image.shape[0] / DPI, m.image.shape[1] / DPI) for m in mosaics), strict=True)
    # Small mosaics are enlarged, so that their captions fit.
    zoom = max(1.0, 4.0 / min(widths), 4.0 / max(heights))
    width = zoom * sum(widths) + MARGIN * (len(mosaics) + 1)
    height = zoom * max(heights) + HEADING + CAPTION + MARGIN
    figure = Figure(figsize=(width, height))
    x = MARGIN
    for m, panel_height, panel_width in zip(mosaics, heights, widths, strict=True):
        box = (x, height - HEADING - zoom * panel_height, zoom * panel_width, zoom * panel_height)
        axes = figure.add_axes([box[0] / width, box[1] / height, box[2] / width, box[3] / height])
        chosen = sources[np.asarray(sources["band"], str) == m.band]
        _draw_panel(axes, m, chosen)
        figure.text(x / width, 1 - 0.27 / height, m.band, color=INK, fontsize=13, weight="bold")
        about = f"{len(chosen)} sources" + (f", {m.step} x {m.step} pixels in one" if m.step > 1 else "")
        figure.text(x / width, (box[1] - 0.22) / height, about, color=FAINT, fontsize=9)
        x += zoom * panel_width + MARGIN
    return figure


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
