"""What a coadd leaves out, on the page: how much of which exposure, and the largest of it."""

from __future__ import annotations

import functools
import heapq
from array import array
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpiimg.astro.report.exposures import MANY, MAX_NAMES, capped, label_exposures
from mpiimg.astro.report.results import SurveyResults
from mpiimg.astro.report.sky import Mosaic, dress, in_grey, read_mosaics
from mpiimg.astro.report.tables import rows_of
from mpiimg.report.drawing import SERIES, as_png, as_svg, new_figure, style
from mpiimg.report.page import Item, Picture, Section, Text

#: Artifacts that the page lists, those with most pixels.
LARGEST = 15

#: Artifacts that are drawn one by one.
MAX_POINTS = 20_000

#: Shapes of artifacts, in the order of their colours.
SHAPES = ("trail", "point", "other")


class Rejected(NamedTuple):
    """What stands in rejected.ecsv, brought together."""

    counts: Counter  # of artifacts, by exposure and shape
    pixels: Counter  # by exposure
    largest: list[dict[str, str]]
    ra: np.ndarray  # degrees, of all
    dec: np.ndarray
    shape: np.ndarray  # index into SHAPES


@functools.lru_cache(maxsize=1)
def read_rejected(path: Path) -> Rejected:
    """Read the table of artifacts row by row: of a large survey it has millions."""
    counts, pixels, largest = Counter(), Counter(), []
    ra, dec, shapes = array("d"), array("d"), array("b")
    for number, row in enumerate(rows_of(path)):
        name, shape, size = row["exposure"], row["shape"], int(row["pixels"])
        counts[name, shape] += 1
        pixels[name] += size
        ra.append(float(row["ra"]))
        dec.append(float(row["dec"]))
        shapes.append(SHAPES.index(shape) if shape in SHAPES else len(SHAPES) - 1)
        entry = (size, -number, row)
        (heapq.heappush if len(largest) < LARGEST else heapq.heappushpop)(largest, entry)
    chosen = [row for _, _, row in sorted(largest, key=lambda one: one[:2], reverse=True)]
    return Rejected(counts, pixels, chosen, np.array(ra), np.array(dec), np.array(shapes))


def clipped_section(results: SurveyResults) -> Section | None:
    """Return the section about what the coadd left out; None where no coadd compared its inputs."""
    path = results.path("rejected.ecsv")
    if path is None:
        return None
    rejected = read_rejected(path)
    total = len(rejected.ra)
    if not total:
        return Section("Left out of the coadd", [Text("No artifact was found in any exposure.", "good")])
    items: list[Item] = [
        Text(
            f"{total} artifacts, {sum(rejected.pixels.values())} pixels in all, are left out of exposures: "
            + ", ".join(
                f"{sum(n for (_, own), n in rejected.counts.items() if own == shape)} of shape {shape}"
                for shape in SHAPES
            )
            + ". All of them are in rejected.ecsv."
        ),
        _draw_counts(results, rejected),
    ]
    if found := read_mosaics(results.runs):
        items.append(draw_places(rejected, found[0]))
    rows = [
        [
            *(one["exposure"], one["band"], one["shape"], int(one["pixels"]), float(one["flux"])),
            *(f"{float(one[angle]):.5f}" for angle in ("ra", "dec")),
        ]
        for one in rejected.largest
    ]
    columns = ["exposure", "band", "shape", "pixels", "flux [ct]", "RA [deg]", "Dec [deg]"]
    items.append(capped(columns, rows, f"The largest of {total}"))
    return Section("Left out of the coadd", items)


def draw_places(rejected: Rejected, one: Mosaic) -> Picture:
    """Draw where the artifacts of all exposures lie; of very many, where they are dense."""
    x, y = one.wcs.all_world2pix(rejected.ra, rejected.dec, 0)
    rows, columns = one.image.shape
    with style():
        figure = new_figure(5.6, 7.0)
        axes = figure.add_subplot(projection=one.wcs)
        if len(x) > MAX_POINTS:
            bins = (max(1, columns // 8), max(1, rows // 8))
            number, edges_x, edges_y = np.histogram2d(x, y, bins, ((0, columns), (0, rows)))
            number[number == 0] = np.nan
            drawn = axes.pcolormesh(edges_x, edges_y, number.T, cmap="magma_r")
            figure.colorbar(drawn, ax=axes, label="artifacts in 8 x 8 pixels of the mosaic")
        else:
            axes.imshow(in_grey(one.image), origin="lower", cmap="gray_r", vmin=0, vmax=2)
            for k, shape in enumerate(SHAPES):
                own = rejected.shape == k
                axes.plot(x[own], y[own], "o", ms=5, mfc="none", mew=1.2, color=SERIES[k], label=shape)
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.04), ncols=3, frameon=False)
        dress(axes, one, "")
        return as_png(
            figure,
            f"Places on the sky of {len(x)} artifacts",
            "Good: spread evenly where exposures overlap, trails as rows of points. Bad: clusters on bright "
            "stars or galaxies (light of sources is left out), lines along the edges or columns of a sensor.",
            wide=False,
        )


def _draw_counts(results: SurveyResults, rejected: Rejected) -> Picture:
    """Draw how many artifacts of each shape every exposure has."""
    known = results.exposures.get("name", np.array([], str)).tolist()
    names = known or sorted({name for name, _ in rejected.counts})
    bottom = np.zeros(len(names))
    with style():
        figure = new_figure(3.2)
        axes = figure.subplots()
        for k, shape in enumerate(SHAPES):
            heights = np.array([rejected.counts[name, shape] for name in names], float)
            if len(names) <= MAX_NAMES:
                axes.bar(range(len(names)), heights, bottom=bottom, color=SERIES[k], label=shape)
            else:
                axes.plot(bottom + heights, color=SERIES[k], lw=0.8, drawstyle="steps-mid", label=shape)
            bottom += heights
        label_exposures(axes, names)
        axes.set(ylabel="artifacts", ylim=(0, None), xlim=(-0.6, len(names) - 0.4))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        saved = as_svg if len(names) <= MANY else as_png
        return saved(
            figure,
            f"Number of artifacts left out of each of {len(names)} exposures, by shape",
            "Good: a few in every exposure, as cosmic rays that calibration missed, and a trail at times. "
            "Bad: one exposure with many times those of the others, whose WCS, seeing or flat field may be "
            "wrong; trails in all of them.",
        )
