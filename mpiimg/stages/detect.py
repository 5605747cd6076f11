"""Detection on coadds, patch by patch with its border, and one catalogue of all patches."""

from __future__ import annotations

import numpy as np

from mpiimg.io import catalogue
from mpiimg.io.fits_writing import write_planes
from mpiimg.io.maskplanes import bits
from mpiimg.io.store import Array
from mpiimg.io.tract import Tract
from mpiimg.partition import ChunkGrid, box_shape
from mpiimg.stages import detection
from mpiimg.stages.stage import Need, Parameter, Stage
from mpiimg.stages.survey import Layout

PAPER = "Bertin and Arnouts 1996, doi:10.1051/aas:1996164; Barbary 2016, doi:10.21105/joss.00058"

PARAMETERS = (
    Parameter("threshold", 5.0, "of the filtered image", float, "standard deviations of a pixel"),
    Parameter("min_area", 5, "least size of a source", int, "pixels"),
    Parameter("no_deblend", False, "leave blends in one piece", bool),
)

#: A patch holds at most one source in so many pixels; FACTS are kept of each.
PIXELS_A_SOURCE = 100

FACTS = ("sources", "noise_correction", "background", "fwhm")

#: Pixels with these say nothing to detection; saturated stars are to be found.
USELESS = ("NO_DATA", "BAD", "EDGE")


def _tables(layout: Layout) -> tuple[Array, Array]:
    largest = max(int(np.prod(box_shape(patch.outer))) for patch in layout.patches)
    room = -(-largest // PIXELS_A_SOURCE) * catalogue.ROW.itemsize
    count = len(layout.patches)
    return Array("sources", "pr", (count, room), "uint8"), Array(
        "patch-facts", "pf", (count, len(FACTS)), "float64"
    )


def _planes(layout: Layout, number: int, blocks):
    shape = box_shape(layout.patches[number].outer)
    return [block[0].reshape(shape) for block in blocks]


def detect(layout: Layout, threshold: float, min_area: int, deblend: bool) -> Stage:
    """Declare detection: sources centred in the inner box of each patch, as rows of the catalogue."""
    settings = detection.Settings(threshold=threshold, min_area=min_area, deblend=deblend)
    sources, facts = _tables(layout)

    def work(chunk, *blocks):
        patch = layout.patches[chunk.number]
        image, variance, mask, nimage = _planes(layout, chunk.number, blocks)
        origin = (patch.outer[0][0], patch.outer[1][0])
        excluded = bits(*USELESS)
        bad = detection.unusable(image, variance, mask, excluded)
        sky, _ = detection.background(image, bad, origin)
        table, segmentation = detection.detect(image, variance, mask, nimage, sky, origin, excluded, settings)
        correction = detection.noise_correction(image - sky, variance, bad, segmentation, settings.radii[0])
        if np.isfinite(correction):
            table = detection.scale_errors(table, correction)
        loss = detection.aperture_correction(table, bits("SAT"), settings.radii[1])
        table = detection.add_magnitudes(table, loss if np.isfinite(loss) else 1.0)
        table = detection.keep_inner(table, patch.inner)
        table = detection.number(table, chunk.number, patch.name, patch.filter)
        return _packed(table, sources), np.array([[len(table), correction, np.median(sky), _fwhm(table)]])

    reads = tuple(
        Need(array, place=lambda chunk: (layout.patch_run(chunk),)) for array in layout.coadd_planes()
    )
    return Stage(
        "detect",
        "map",
        layout.patch_grid,
        reads,
        (sources, facts),
        work,
        {"threshold": threshold, "min_area": min_area, "deblend": deblend},
        cost=("detect", float(layout.band_starts[-1])),
    )


def _packed(table: np.ndarray, sources: Array) -> np.ndarray:
    """Return a table as bytes at the front of a row of `sources`."""
    data = np.frombuffer(table.tobytes(), np.uint8)
    row = np.zeros((1, sources.shape[1]), np.uint8)
    if data.size > row.size:
        raise ValueError(f"{len(table)} sources in a patch: more than one in {PIXELS_A_SOURCE} pixels")
    row[0, : data.size] = data
    return row


def _fwhm(table: np.ndarray) -> float:
    known = table["fwhm"][np.isfinite(table["fwhm"])]
    return float(np.median(known)) if known.size else np.nan


def write_catalogue(layout: Layout, tract: Tract, names: tuple[str, ...]) -> Stage:
    """Declare the catalogue in each of the formats that the endings of `names` tell: one file a chunk."""
    sources, facts = _tables(layout)

    def work(chunk, folder, source_block, fact_block):
        tables = [
            np.frombuffer(row.tobytes()[: int(fact[0]) * catalogue.ROW.itemsize], catalogue.ROW).copy()
            for row, fact in zip(source_block, fact_block, strict=True)
        ]
        joined = []
        for band in dict.fromkeys(patch.filter for patch in layout.patches):
            members = [i for i, patch in enumerate(layout.patches) if patch.filter == band]
            inners = [layout.patches[i].inner for i in members]
            joined += detection.match_seams([tables[i] for i in members], inners)
        table = detection.locate(np.concatenate(joined), tract.wcs)
        catalogue.write(
            folder / names[chunk.number],
            table,
            {"PIXSCALE": tract.pixel_scale, "MAGZERO": catalogue.ZERO_POINT},
        )

    return Stage(
        "catalogue",
        "files",
        ChunkGrid("k", (len(names),), (1,)),
        (Need(sources), Need(facts)),
        work=work,
        outputs=names,
    )


def write_patches(
    layout: Layout, tract: Tract, cards: list[dict], names: tuple[str, ...], detected: bool = True
) -> Stage:
    """Declare the FITS file of every patch; with what detection measured on it, if that has been done."""
    _, facts = _tables(layout)

    def work(chunk, folder, *blocks):
        image, variance, mask, nimage = _planes(layout, chunk.number, blocks[:4])
        header = dict(cards[chunk.number])
        if detected:
            known = dict(zip(FACTS, blocks[4][0], strict=True))
            header["NOISCORR"] = (known["noise_correction"], "noise in apertures over VARIANCE's")
            header["FWHM"] = (known["fwhm"], "[pix] median of the sources")
        wcs = tract.wcs_of(layout.patches[chunk.number].outer).to_header(relax=True)
        text = "\n".join(str(card).rstrip() for card in wcs.cards)
        write_planes(
            folder / names[chunk.number],
            {"IMAGE": image, "VARIANCE": variance, "MASK": mask, "NIMAGE": nimage},
            text,
            header,
        )

    reads = tuple(
        Need(array, place=lambda chunk: (layout.patch_run(chunk),)) for array in layout.coadd_planes()
    )
    if detected:
        reads += (Need(facts),)
    return Stage("write-patches", "files", layout.patch_grid, reads, work=work, outputs=names)
