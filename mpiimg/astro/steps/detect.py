"""Detection on coadds, patch by patch with its border, and one catalogue of all patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpiimg.astro import catalogue
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.writing import history as fits_history
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.sky.tract import Tract
from mpiimg.engine.boxes import ChunkGrid, box_shape, box_size
from mpiimg.engine.stage import Need, Parameter, Stage, reduction
from mpiimg.engine.stores import Array

PAPER = "Bertin and Arnouts 1996, doi:10.1051/aas:1996164; Barbary 2016, doi:10.21105/joss.00058"

PARAMETERS = (
    Parameter("threshold", 5.0, "of the filtered image", float, "standard deviations of a pixel"),
    Parameter("min_area", 5, "least size of a source", int, "pixels"),
    Parameter("no_deblend", False, "leave blends in one piece", bool),
)

#: A patch keeps one source in so many pixels when first gone through; with more it is gone through again.
PIXELS_A_SOURCE = 200

#: Bytes a pixel that background, filtering and segmentation take.
SCRATCH = 40

#: One source in so many pixels is what plans reckon with before any has been found: no run is refused for
#: sources that it may not find.
PIXELS_A_SOURCE_AS_USUAL = 4000

#: Bytes that writing a catalogue takes, over those of its rows, by its ending: measured at half a million.
SCRATCH_A_ROW = {".fits": 6, ".reg": 3, ".ecsv": 20, ".parquet": 4}

#: Bytes of the libraries that write it.
SCRATCH_OF_LIBRARIES = 64 << 20

FACTS = ("sources", "noise_correction", "background", "fwhm")

#: Pixels with these say nothing to detection; saturated stars are to be found.
USELESS = ("NO_DATA", "BAD", "EDGE")

#: What detection can leave beside the catalogue, plane by plane.
MAPS = {"segmentation": "int32", "background": "float32"}

#: In a segmentation: pixels of a source whose centre another patch has.
ELSEWHERE = -1


class _Detected(NamedTuple):
    """Sources of a patch, its FACTS, and its maps, (rows, columns)."""

    table: np.ndarray
    facts: tuple[float, ...]
    segmentation: np.ndarray
    background: np.ndarray


def history(p: Mapping) -> tuple[str, ...]:
    """Return the lines of HISTORY of what detection measured."""
    blends = "not split" if p["no_deblend"] else "split"
    return fits_history(
        "detect", f"threshold {p['threshold']:g} sigma, at least {p['min_area']} pixels, blends {blends}"
    )


def settings(p: Mapping) -> detection.Settings:
    """Return how sources are found, as the parameters have it."""
    return detection.Settings(threshold=p["threshold"], min_area=p["min_area"], deblend=not p["no_deblend"])


def room(layout: Layout) -> int:
    """Return how many sources a patch keeps when it is first gone through."""
    pixels = max((box_size(patch.outer) for patch in layout.patches), default=0)
    return -(-pixels // PIXELS_A_SOURCE)


def expected(layout: Layout) -> tuple[int, ...]:
    """Return how many sources plans reckon with in each patch."""
    return tuple(-(-box_size(patch.outer) // PIXELS_A_SOURCE_AS_USUAL) for patch in layout.patches)


def facts_array(layout: Layout) -> Array:
    """Return the array of the FACTS of every patch."""
    return Array("patch-facts", "pf", (len(layout.patches), len(FACTS)), "float64")


def map_arrays(layout: Layout, wanted: Sequence[str]) -> tuple[Array, ...]:
    """Return the arrays of those MAPS that are `wanted`, laid out as the coadds are."""
    length = layout.band_starts[-1]
    return tuple(Array(f"coadd-{name}", "s", (length,), MAPS[name]) for name in MAPS if name in wanted)


def _sources_array(layout: Layout) -> Array:
    width = room(layout) * catalogue.ROW.itemsize
    return Array("sources", "pr", (len(layout.patches), width), "uint8")


def rows_array(counts: Sequence[int]) -> Array:
    """Return the array of the rows of all patches, one patch after the other, as bytes."""
    return Array("catalogue-rows", "r", (sum(counts) * catalogue.ROW.itemsize,), "uint8")


def detect(layout: Layout, how: detection.Settings, wanted: Sequence[str] = ()) -> Stage:
    """Declare detection: sources centred in the inner box of each patch, as rows of the catalogue.

    A patch with more sources than :func:`room` leaves their number alone; :func:`gather_rows` finds them.

    Parameters
    ----------
    wanted : of :data:`MAPS`
    """
    sources, maps = _sources_array(layout), map_arrays(layout, wanted)

    def work(chunk, *blocks):
        found = _detected(layout, chunk.number, blocks, how)
        row = np.zeros((1, sources.shape[1]), np.uint8)
        if len(found.table) <= room(layout):
            data = found.table.tobytes()
            row[0, : len(data)] = np.frombuffer(data, np.uint8)
        planes = (getattr(found, name).ravel() for name in MAPS if name in wanted)
        return (row, np.array([found.facts]), *planes)

    return Stage(
        "detect",
        "map",
        layout.patch_grid,
        _coadd_needs(layout),
        (sources, facts_array(layout), *maps),
        work,
        {**vars(how), "maps": [array.name for array in maps]},
        weights=tuple(box_size(patch.outer) for patch in layout.patches),
        place={array.name: layout.patch_run for array in maps},
        scratch=SCRATCH * max((box_size(patch.outer) for patch in layout.patches), default=0),
        cost=("detect", float(layout.band_starts[-1])),
    )


def _coadd_needs(layout: Layout) -> tuple[Need, ...]:
    return tuple(
        Need(array, place=lambda chunk: (layout.patch_run(chunk),)) for array in layout.coadd_planes()
    )


def _detected(layout: Layout, number: int, blocks, how: detection.Settings) -> _Detected:
    """Find and measure the sources of a patch."""
    patch = layout.patches[number]
    image, variance, mask, nimage = coadd_of(layout, number, blocks)
    origin = (patch.outer[0][0], patch.outer[1][0])
    excluded = bits(*USELESS)
    bad = detection.unusable(image, variance, mask, excluded)
    sky, _ = detection.background(image, bad, origin)
    table, segmentation = detection.detect(image, variance, mask, nimage, sky, origin, excluded, how)
    correction = detection.noise_correction(image - sky, variance, bad, segmentation, how.radii[0])
    if np.isfinite(correction):
        table = detection.scale_errors(table, correction)
    loss = detection.aperture_correction(table, bits("SAT"), how.radii[1])
    table = detection.add_magnitudes(table, loss if np.isfinite(loss) else 1.0)
    # Until they are numbered, sources go by their labels in the segmentation.
    table["id"] = np.arange(1, len(table) + 1)
    labels = np.full(len(table) + 1, ELSEWHERE, np.int32)
    table = detection.keep_inner(table, patch.inner)
    labels[0], labels[table["id"]] = 0, np.arange(1, len(table) + 1)
    table = detection.number(table, number, patch.name, patch.filter)
    facts = (len(table), correction, np.median(sky), _fwhm(table))
    return _Detected(table, facts, labels[segmentation], sky)


def coadd_of(layout: Layout, number: int, blocks) -> list[np.ndarray]:
    """Return planes of a patch, (rows, columns) each, from what :class:`Need` gathers of them."""
    shape = box_shape(layout.patches[number].outer)
    return [block[0].reshape(shape) for block in blocks]


def _fwhm(table: np.ndarray) -> float:
    known = table["fwhm"][np.isfinite(table["fwhm"])]
    return float(np.median(known)) if known.size else np.nan


def count_sources(layout: Layout) -> Stage:
    """Tell how many sources each patch has."""
    return reduction(
        "count-sources",
        layout.patch_grid,
        (Need(facts_array(layout)),),
        lambda chunk, facts: facts[0, 0],
        ((), "int64"),
        lambda rows: {"sources": tuple(rows.tolist())},
    )


def gather_rows(layout: Layout, tract: Tract, how: detection.Settings, counts: Sequence[int]) -> Stage:
    """Lay the sources of all patches end to end, with their places on the sky.

    A patch in which more were found than it keeps is gone through again, now that their number is known.

    Parameters
    ----------
    counts : sources of each patch
    """
    sources, rows = _sources_array(layout), rows_array(counts)
    size = catalogue.ROW.itemsize
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()
    crowded = {number for number, count in enumerate(counts) if count > room(layout)}

    def kept(chunk):
        number = chunk.number
        return () if number in crowded else (((number, number + 1), (0, counts[number] * size)),)

    def coadd(chunk):
        return (layout.patch_run(chunk),) if chunk.number in crowded else ()

    def work(chunk, found, *blocks):
        if chunk.number in crowded:
            table = _detected(layout, chunk.number, blocks, how).table
        else:
            table = np.frombuffer(found[0].tobytes(), catalogue.ROW)
        return (np.frombuffer(detection.locate(table, tract.wcs).tobytes(), np.uint8),)

    return Stage(
        "catalogue-rows",
        "map",
        layout.patch_grid,
        (Need(sources, place=kept), *(Need(array, place=coadd) for array in layout.coadd_planes())),
        (rows,),
        work,
        {"tract": tract.to_toml(), "counts": list(counts)},
        place={rows.name: lambda chunk: ((starts[chunk.number] * size, starts[chunk.number + 1] * size),)},
    )


def joined(layout: Layout, counts: Sequence[int], data: np.ndarray) -> np.ndarray:
    """Return one table of the rows of all patches, in which one source at a seam is primary once.

    Parameters
    ----------
    data : bytes of :func:`rows_array`
    """
    table = data.view(catalogue.ROW).copy()
    parts = np.split(table, np.cumsum(counts)[:-1])
    for band in dict.fromkeys(patch.filter for patch in layout.patches):
        members = [i for i, patch in enumerate(layout.patches) if patch.filter == band]
        inners = [layout.patches[i].inner for i in members]
        for i, matched in zip(
            members, detection.match_seams([parts[i] for i in members], inners), strict=True
        ):
            parts[i]["is_primary"] = matched["is_primary"]
    return table


def write_catalogue(layout: Layout, tract: Tract, counts: Sequence[int], names: tuple[str, ...]) -> Stage:
    """Declare the catalogue in each of the formats that the endings of `names` tell: one file a chunk."""

    def work(chunk, folder, data):
        meta = {"PIXSCALE": tract.pixel_scale, "MAGZERO": catalogue.ZERO_POINT}
        catalogue.write(folder / names[chunk.number], joined(layout, counts, data), meta)

    rows = rows_array(counts)
    most = max(SCRATCH_A_ROW[Path(name).suffix.lower()] for name in names)
    return Stage(
        "catalogue",
        "files",
        ChunkGrid("k", (len(names),), (1,)),
        (Need(rows),),
        work=work,
        outputs=names,
        scratch=most * rows.nbytes + SCRATCH_OF_LIBRARIES,
    )
