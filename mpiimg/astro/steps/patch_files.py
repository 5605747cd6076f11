"""Patches as FITS files: the planes of the coadd, and on request what is derived from or measured on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.astro.fits.products import PATCH_PLANES
from mpiimg.astro.fits.writing import COMPRESSED, write_planes
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.steps.detect import FACTS, coadd_of, facts_array, map_arrays
from mpiimg.astro.steps.exposure_files import tract_header
from mpiimg.engine.stage import Need, Parameter, Stage

WEIGHT = Parameter("weight", False, "write the plane WEIGHT: inverse variance, 0 without data", bool)
MAPS = (
    Parameter(
        "segmentation", False, "write the plane SEGMENTATION: which pixels belong to which source", bool
    ),
    Parameter("background", False, "write the plane BACKGROUND that detection subtracted", bool),
)
COMPRESS = Parameter(
    "compress", False, "compress patches by Rice (.fits.fz): floats in steps of 1/16 of the noise", bool
)


def names(layout: Layout, compress: bool, what: str = "patch") -> tuple[str, ...]:
    """Return patch-<x>-<y>.fits for every patch, with the filter in front where there are several."""
    several = len({patch.filter for patch in layout.patches}) > 1
    ending = ".fits" + COMPRESSED * compress
    return tuple(
        f"{patch.filter + '-' if several else ''}{what}-{patch.index[0]}-{patch.index[1]}{ending}"
        for patch in layout.patches
    )


def write_patches(
    layout: Layout,
    tract: Tract,
    cards: Sequence[Mapping],
    names: tuple[str, ...],
    wanted: Sequence[str] = (),
    detected: bool = True,
) -> Stage:
    """Declare the FITS file of every patch; with what detection measured on it, if that has been done.

    Parameters
    ----------
    cards : of each patch
    wanted : planes beside the usual ones: "weight", and if detected, "segmentation" and "background"
    """
    maps = map_arrays(layout, wanted) if detected else ()

    def work(chunk, folder, *blocks):
        planes = dict(zip(PATCH_PLANES, coadd_of(layout, chunk.number, blocks[:4]), strict=True))
        if "weight" in wanted:
            planes["WEIGHT"] = _inverse(planes["VARIANCE"])
        header = dict(cards[chunk.number])
        if detected:
            planes |= _named(maps, coadd_of(layout, chunk.number, blocks[5:]))
            header |= detection_cards(blocks[4][0])
        _write(folder / names[chunk.number], layout, tract, chunk.number, planes, header)

    reads = _needs(layout, layout.coadd_planes())
    if detected:
        reads += (Need(facts_array(layout)), *_needs(layout, maps))
    return Stage("write-patches", "files", layout.patch_grid, reads, work=work, outputs=names)


def write_maps(
    layout: Layout, tract: Tract, cards: Sequence[Mapping], names: tuple[str, ...], wanted: Sequence[str]
) -> Stage:
    """Declare a FITS file of what detection made of every patch, beside the file of the patch itself."""
    maps = map_arrays(layout, wanted)

    def work(chunk, folder, facts, *blocks):
        planes = _named(maps, coadd_of(layout, chunk.number, blocks))
        header = {**cards[chunk.number], **detection_cards(facts[0])}
        _write(folder / names[chunk.number], layout, tract, chunk.number, planes, header)

    reads = (Need(facts_array(layout)), *_needs(layout, maps))
    return Stage("write-maps", "files", layout.patch_grid, reads, work=work, outputs=names)


def detection_cards(facts: Sequence[float]) -> dict[str, tuple]:
    """Return the cards that detection adds to the header of a patch."""
    known = dict(zip(FACTS, facts, strict=True))
    return {
        "NOISCORR": (known["noise_correction"], "noise in apertures over VARIANCE's"),
        "FWHM": (known["fwhm"], "[pix] median of the sources"),
    }


def _needs(layout: Layout, arrays) -> tuple[Need, ...]:
    return tuple(Need(array, place=lambda chunk: (layout.patch_run(chunk),)) for array in arrays)


def _named(maps, planes) -> dict[str, np.ndarray]:
    return {array.name.removeprefix("coadd-").upper(): p for array, p in zip(maps, planes, strict=True)}


def _inverse(variance: np.ndarray) -> np.ndarray:
    """Return weights: 1 / variance, and 0 where there is none."""
    known = np.isfinite(variance) & (variance > 0)
    return np.divide(np.float32(1), variance, out=np.zeros_like(variance), where=known)


def _write(path, layout: Layout, tract: Tract, number: int, planes, cards) -> None:
    write_planes(path, planes, tract_header(tract, layout.patches[number].outer), cards)
