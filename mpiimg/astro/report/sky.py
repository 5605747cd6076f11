"""The sky on the page: coadd, depth and number of inputs, with its coordinates, a scale, north and east."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.astro.mosaic import magnitude_limit
from mpiimg.astro.photometry.spread import deviation
from mpiimg.astro.report.results import SurveyResults
from mpiimg.astro.report.sources import Sources, read_sources
from mpiimg.astro.wide import blue_to_red
from mpiimg.report.drawing import INK, WIDTH, as_png, new_figure, style
from mpiimg.report.page import Item, Picture, Section, Text
from mpiimg.report.runs import Run

#: Sources that are drawn of a band, the brightest: more would cover the picture.
MAX_SOURCES = 5000

#: Bands that are drawn.
MAX_BANDS = 6

#: Where there are no data; circles of sources, and of those with a flag.
EMPTY, CLEAN, FLAGGED = "#d8dce4", "#ffb000", "#ff5050"

#: A circle is as wide as so many full widths, and at least so many pixels of the picture.
WIDTHS, MIN_WIDTH = 3.0, 7.0

#: Lengths of a scale bar, arcseconds.
BARS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000)


@dataclass(frozen=True)
class Mosaic:
    """The mosaic of a band, cut to where there are data.

    Parameters
    ----------
    band : str
    image, variance, inputs : (rows, columns) float32
    wcs : astropy.wcs.WCS
    step : int
        Pixels of the tract along a side of one.
    pixel_scale : float
        Arcseconds of a pixel of the tract.
    """

    band: str
    image: np.ndarray
    variance: np.ndarray
    inputs: np.ndarray
    wcs: Any
    step: int
    pixel_scale: float

    @property
    def depth(self) -> np.ndarray:
        """Limiting magnitudes, NaN without data."""
        with np.errstate(all="ignore"):
            known = (self.inputs > 0) & (self.variance > 0)
            return magnitude_limit(np.where(known, self.variance, np.nan), self.pixel_scale)


def read_mosaics(runs: Sequence[Run]) -> list[Mosaic]:
    """Return the mosaics of the last run that has any, from blue to red, all cut alike."""
    for run in reversed(runs):
        paths = [run.out / name for name in run.outputs if str(name).endswith("mosaic.fits")]
        if paths:
            return _cut_alike([_read(path) for path in paths])
    return []


def _read(path: Path) -> Mosaic:
    from astropy.io import fits
    from astropy.wcs import WCS

    with fits.open(path, memmap=False) as hdus:
        head = hdus[0].header
        planes = [np.asarray(hdu.data, np.float32) for hdu in hdus[1:4]]
        wcs = WCS(hdus[1].header)
    return Mosaic(str(head["FILTER"]), *planes, wcs, int(head["BLOCK"]), float(head["PIXSCALE"]))


def _cut_alike(found: list[Mosaic]) -> list[Mosaic]:
    """Return mosaics cut to the rows and columns where any has data, with some around."""
    there = np.any([one.inputs > 0 for one in found], axis=0)
    if not there.any():
        return found
    cut = []
    for axis in (1, 0):
        used = np.flatnonzero(there.any(axis=axis))
        cut.append(slice(max(int(used[0]) - 4, 0), int(used[-1]) + 5))
    rows, columns = cut
    ordered = sorted(found, key=lambda one: blue_to_red([m.band for m in found]).index(one.band))
    return [
        Mosaic(
            one.band,
            *(plane[rows, columns] for plane in (one.image, one.variance, one.inputs)),
            one.wcs[rows, columns],
            one.step,
            one.pixel_scale,
        )
        for one in ordered
    ]


# --- Sections ---------------------------------------------------------------------------------------------


def coadd_section(results: SurveyResults) -> Section | None:
    """Return the section about the coadd; None where there is none."""
    found = read_mosaics(results.runs)
    if not found:
        return None
    if not any((one.inputs > 0).any() for one in found):
        return Section("Coadd", [Text("The coadd holds no data.", "warning")])
    sources = read_sources(results)
    items: list[Item] = []
    if len(found) > MAX_BANDS:
        items.append(Text(f"{MAX_BANDS} of {len(found)} bands are drawn.", "note"))
        found = found[:MAX_BANDS]
    items.append(draw_coadd(found, sources))
    items.append(draw_maps(found))
    return Section("Coadd", items)


def draw_coadd(found: Sequence[Mosaic], sources: Sources | None) -> Picture:
    """Draw the coadd, in colour where there are three bands, and its sources beside it."""
    coloured = len(found) >= 3
    pictures = [in_colour(found)] if coloured else [in_grey(one.image) for one in found]
    titles = ["".join(_three(found))] if coloured else [one.band for one in found]
    drawn = [(found[0] if coloured else one, picture) for one, picture in zip(found, pictures, strict=False)]
    panels = [(*one, title, None) for one, title in zip(drawn, titles, strict=True)]
    counts = {}
    if sources is not None:
        for (one, picture), title in zip(drawn, titles, strict=True):
            own = sources if coloured else sources.of_band(one.band)
            counts[title] = len(own.x)
            panels.append((one, picture, f"{title}, {_shown(own)}", own.brightest(MAX_SOURCES)))
    figure = _figure(panels)
    bands = ", ".join(one.band for one in found)
    how = (
        f"Bands {', '.join(reversed(_three(found)))} in red, green and blue. " if coloured else ""
    ) + "Brightness is an asinh of flux, so that noise and bright stars both show. "
    marks = (
        "Circles: sources, orange where all is well, red where a flag is set. " if sources is not None else ""
    )
    return as_png(
        figure,
        f"Coadd in {bands}" + (f" with {sum(counts.values())} sources" if sources is not None else ""),
        f"{how}{marks}Good: round stars, an even sky, a circle on every source and none on nothing. Bad: "
        "doubled or drawn-out stars (wrong coordinates), steps and patches of sky, dark rings around "
        "galaxies, lines of circles (trails, spikes).",
    )


def draw_maps(found: Sequence[Mosaic]) -> Picture:
    """Draw depth and number of inputs of each band."""
    across = min(len(found), 3)
    columns, rows = (2, 1) if len(found) == 1 else (across, 2 * -(-len(found) // across))
    with style():
        figure = new_figure(rows * _height(found[0].image.shape, columns, 1.2))
        for k, one in enumerate(found):
            # The depth of a band is above the number of its inputs, and to the left of it where it is alone.
            place = k // across * 2 * across + k % across + 1
            inputs = np.where(one.inputs > 0, one.inputs, np.nan)
            for values, at, what, unit, name in (
                (one.depth, place, "depth", "5 sigma in 2 arcsec [mag]", "viridis"),
                (inputs, place + (across if len(found) > 1 else 1), "number of inputs", "", "cividis"),
            ):
                axes = figure.add_subplot(rows, columns, at, projection=one.wcs)
                _draw_map(figure, axes, values, name, unit)
                dress(axes, one, f"{one.band}: {what}", small=columns > 2)
        bands = ", ".join(one.band for one in found)
        return as_png(
            figure,
            f"Maps of depth and of the number of inputs of the coadd in {bands}",
            "Good: depth follows the number of inputs, and both are even but for edges and the gaps between "
            "sensors. Bad: holes, and stripes that no pointing explains; a shallow area where many exposures "
            "meet (one of them noisy). Depth is the magnitude of five deviations of the sky in a circle of 2 "
            "arcsec, without aperture correction.",
        )


def _draw_map(figure, axes, values: np.ndarray, colours: str, unit: str) -> None:
    """Draw values with a bar that says what their colours are."""
    low, high = _span(values)
    image = axes.imshow(values, origin="lower", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, label=unit)
    bar.ax.tick_params(labelsize=8)


# --- Pictures of pixels -----------------------------------------------------------------------------------


def in_grey(image: np.ndarray) -> np.ndarray:
    """Return an image between 0 and 1: linear about the sky's noise, logarithmic above (asinh)."""
    finite = image[np.isfinite(image)]
    sky, noise = _sky(finite)
    top = max(float(np.percentile(finite, 99.8)), sky + 30 * noise)
    scaled = np.arcsinh((image - sky + 2 * noise) / (3 * noise))
    grey = np.clip(scaled / np.arcsinh((top - sky) / (3 * noise)), 0, 1)
    return np.ma.masked_invalid(grey)


def in_colour(found: Sequence[Mosaic]) -> np.ndarray:
    """Return a picture of three bands, (rows, columns, 3) uint8, stretched as Lupton et al. 2004 do."""
    from astropy.visualization import make_lupton_rgb

    by_band = {one.band: one for one in found}
    planes, noises = [], []
    for band in _three(found):
        image = by_band[band].image
        sky, noise = _sky(image[np.isfinite(image)])
        planes.append(np.nan_to_num(image - sky))
        noises.append(noise)
    # One noise for all: so that stars of one AB magnitude in all bands are white.
    noise = float(np.median(noises))
    picture = make_lupton_rgb(*reversed(planes), minimum=-2 * noise, stretch=12 * noise, Q=8)
    # What a band lacks shows in the colours of the others.
    empty = ~np.any([np.isfinite(by_band[band].image) for band in _three(found)], axis=0)
    picture[empty] = tuple(int(EMPTY[k : k + 2], 16) for k in (1, 3, 5))
    return picture


def _three(found: Sequence[Mosaic]) -> list[str]:
    """Return the bluest band, one in the middle, and the reddest."""
    bands = [one.band for one in found]
    return [bands[0], bands[len(bands) // 2], bands[-1]]


def _sky(finite: np.ndarray) -> tuple[float, float]:
    sky = float(np.median(finite)) if finite.size else 0.0
    return sky, (deviation(finite) if finite.size else 0.0) or 1.0


def _span(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, (1, 100))
    return float(low), float(high) if high > low else float(low) + 1


# --- Panels with coordinates ------------------------------------------------------------------------------


def _height(shape: tuple[int, int], columns: int, more: float = 1.0) -> float:
    """Return the inches of a row of panels: as high as its pictures are, within reason."""
    width = WIDTH / columns / more
    return float(np.clip(0.82 * width * shape[0] / shape[1] + 0.8, 2.2, 11.0))


def _figure(panels):
    with style():
        columns = min(len(panels), 2)
        rows = -(-len(panels) // columns)
        figure = new_figure(rows * _height(panels[0][1].shape, columns))
        # Pictures of several bands without, then with sources: those of a band side by side.
        order = [*range(len(panels))]
        if len(panels) > 2 and len(panels) % 2 == 0:
            half = len(panels) // 2
            order = [k for pair in zip(range(half), range(half, 2 * half), strict=True) for k in pair]
        for place, k in enumerate(order):
            one, picture, title, own = panels[k]
            axes = figure.add_subplot(rows, columns, place + 1, projection=one.wcs)
            axes.imshow(picture, origin="lower", cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if own is not None:
                _circles(axes, one, own)
            dress(axes, one, title)
        return figure


def _circles(axes, one: Mosaic, own: Sources) -> None:
    """Draw a circle about each source."""
    from matplotlib.collections import EllipseCollection

    x, y = one.wcs.all_world2pix(own.ra, own.dec, 0) if len(own.x) else (own.x, own.y)
    widths = np.fmax(WIDTHS * own.fwhm / one.step, MIN_WIDTH)
    axes.add_collection(
        EllipseCollection(
            widths,
            widths,
            np.zeros(len(widths)),
            units="xy",
            offsets=np.stack([x, y], axis=1),
            transOffset=axes.transData,
            facecolors="none",
            edgecolors=[FLAGGED if flag else CLEAN for flag in own.flags],
            linewidths=0.7,
        )
    )


def _shown(own: Sources) -> str:
    more = f"the brightest {MAX_SOURCES} of " if len(own.x) > MAX_SOURCES else ""
    return f"{more}{len(own.x)} source{'s' * (len(own.x) != 1)}"


def dress(axes, one: Mosaic, title: str, small: bool = False) -> None:
    """Give a picture its coordinates, a scale bar, and arrows to the north and the east."""
    from matplotlib.patheffects import Normal, Stroke

    axes.set_facecolor(EMPTY)
    axes.set_title(title, fontsize=10, loc="left")
    ra, dec = axes.coords
    for angle, name in ((ra, "RA"), (dec, "Dec")):
        angle.set_axislabel(name, minpad=0.4, fontsize=8)
        angle.set_ticklabel(size=7, exclude_overlapping=True)
        angle.set_ticks(number=4)
        angle.set_ticks_visible(True)
    rows, columns = one.image.shape
    scale = one.step * one.pixel_scale
    bar = max((b for b in BARS if b / scale <= 0.3 * columns), default=BARS[0])
    words = f"{bar:g}\u2033" if bar < 60 else f"{bar / 60:g}\u2032" if bar < 3600 else f"{bar / 3600:g}\u00b0"
    left, bottom, size = 0.04 * columns, 0.04 * rows, 7 if small else 9
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    axes.plot([left, left + bar / scale], [bottom, bottom], color="white", lw=4, solid_capstyle="butt")
    axes.plot([left, left + bar / scale], [bottom, bottom], color=INK, lw=2, solid_capstyle="butt")
    axes.text(left, bottom + 0.02 * rows, words, fontsize=size, va="bottom", bbox=box)
    outlined = [Stroke(linewidth=3.5, foreground="white"), Normal()]
    arrow = {"arrowstyle": "<-", "color": INK, "shrinkA": 0, "shrinkB": 0, "path_effects": outlined}
    length, corner = 0.09 * min(rows, columns), (0.95 * columns, 0.05 * rows)
    for (dx, dy), letter in (((0, length), "N"), ((-length, 0), "E")):
        axes.annotate(
            letter,
            corner,
            (corner[0] + 1.25 * dx, corner[1] + 1.25 * dy),
            fontsize=size,
            ha="center",
            va="center",
            bbox=box,
            arrowprops=arrow,
        )
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))
