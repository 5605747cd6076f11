"""How many sources there are by magnitude, and how well they are measured: a table for each band."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mpiimg.astro import mosaic
from mpiimg.astro.catalogue import Column, text
from mpiimg.astro.figure_files import figure_files
from mpiimg.astro.survey import PATCH_STATS, Survey
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Files

#: Magnitudes that a bin spans.
BIN = 0.5

#: Sources below this signal over noise are not counted: where all bands share their sources, some are not
#: seen in a band at all.
MIN_SIGNAL = 5.0

#: From so many deviations on a source is a galaxy, as the catalogue has it.
GALAXY = 2.5

COLUMNS = (
    Column("band", "str", "", "filter"),
    Column("mag", "f8", "mag", f"middle of a bin of {BIN:g} mag of mag_auto; n/a in the row of all of them"),
    Column("sources", "i8", "", f"primary sources of a signal over noise of {MIN_SIGNAL:g} or more"),
    Column("density", "f8", "arcmin-2", "the same, by area with data; of a bin by magnitude too"),
    Column("mag_err", "f8", "mag", "median error of mag_auto"),
    Column("flagged", "f8", "", "share with a flag"),
    Column("galaxies", "f8", "", "share that star_galaxy has for galaxies, of those it knows"),
    Column("fwhm", "f8", "arcsec", "full width at half maximum of the stars of patches: median"),
    Column("noise_correction", "f8", "", "median of NOISCORR of patches"),
)


def write_counts(state: Survey, folder: Path, stem: str = "counts") -> Files:
    """Declare the table of number counts, as TSV and JSON."""
    names = tuple(str(folder / f"{stem}{ending}") for ending in (".tsv", ".json"))
    scale = state.tract.pixel_scale

    def work(chunk, folder_of_run, rows, stats, means):
        table = mosaic.joined_rows(state, rows)
        figures = []
        for band, planes in mosaic.mosaics(state.layout, mosaic.without_lost(state, means)).items():
            own = table[(table["band"] == text(band).encode()) & table["is_primary"]]
            area = mosaic.data_area(planes, scale, mosaic.block_side(state.layout))
            of_patches = stats[[patch.band == band for patch in state.layout.patches]]
            figures += counts_of(band, own, area, medians(of_patches, scale))
        for name, data in zip(names, figure_files(stem, COLUMNS, figures).values(), strict=True):
            (folder_of_run / name).write_bytes(data)

    return Files(
        "counts",
        ChunkGrid("k", (1,), (1,)),
        reads=(Part(state.catalogue), Part(state.patch_stats), Part(state.mosaic)),
        work=work,
        names=names,
        scratch=mosaic.LIBRARY + 4 * state.catalogue.nbytes + 2 * state.mosaic.nbytes,
    )


def counts_of(
    band: str, sources: np.ndarray, area: float, about: Mapping[str, float]
) -> list[dict[str, object]]:
    """Return the rows of a band: that of all its sources, with what else is known, then bin by bin.

    Parameters
    ----------
    sources : structured array
        Primary rows of the catalogue.
    area : float
        Square arcminutes.
    """
    signal = sources["flux_auto"] >= MIN_SIGNAL * sources["flux_auto_err"]
    sources = sources[signal & np.isfinite(sources["mag_auto"])]
    bins = np.floor(sources["mag_auto"].astype(np.float64) / BIN).astype(np.int64)
    rows = [{"band": band, **_figures(sources, area), **about}]
    for number in range(bins.min(), bins.max() + 1) if len(bins) else ():
        own = _figures(sources[bins == number], area * BIN)
        rows.append({"band": band, "mag": (number + 0.5) * BIN, **own})
    return rows


def _figures(sources: np.ndarray, area: float) -> dict[str, object]:
    known = np.isfinite(sources["star_galaxy"])
    figures = {"sources": len(sources), "density": len(sources) / area if area > 0 else np.nan}
    if len(sources):
        figures["mag_err"] = float(np.median(sources["mag_auto_err"]))
        figures["flagged"] = np.count_nonzero(sources["flags"]) / len(sources)
    if known.any():
        figures["galaxies"] = np.count_nonzero(sources["star_galaxy"][known] >= GALAXY) / int(known.sum())
    return figures


def medians(stats: np.ndarray, pixel_scale: float) -> dict[str, float]:
    """Return what the patches of a band have in the median, of their PATCH_STATS, as far as any has it."""
    found = {}
    for name, column, factor in (
        ("fwhm", "fwhm", pixel_scale),
        ("noise_correction", "noise_correction", 1.0),
    ):
        values = stats[:, PATCH_STATS.index(column)]
        values = values[np.isfinite(values)]
        if len(values):
            found[name] = float(np.median(values)) * factor
    return found
