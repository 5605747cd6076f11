"""Patches as FITS files: the planes of the coadd, and on request what is derived from or measured on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.exposure_files import read_products, tract_header
from mpiimg.astro.fits.products import FURTHER_PLANES, PATCH_PLANES, place_cards
from mpiimg.astro.fits.writing import COMPRESSED, write_planes
from mpiimg.astro.sky.layout import Layout, Patch, PatchPlanes
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.survey import PATCH_STATS, Survey, lost_footprints, patch_units
from mpiimg.engine.array import Ragged
from mpiimg.engine.names import file_name
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.stage import Compute, Files

#: Seconds.
DAY = 86400.0


@dataclass(frozen=True)
class PatchOptions:
    """How files of patches are written, whatever step leaves them."""

    compress: bool = parameter(
        False, "Patches are compressed by Rice (.fits.fz): floats in steps of 1/16 of the noise."
    )


# --- Names and headers ------------------------------------------------------------------------------------


def patch_names(layout: Layout, compress: bool, what: str = "patch") -> tuple[str, ...]:
    """Return patch-<x>-<y>.fits for every patch, with the band in front where there are several."""
    several = len({patch.band for patch in layout.patches}) > 1
    ending = ".fits" + COMPRESSED * compress
    return tuple(
        f"{file_name(patch.band) + '-' if several else ''}{what}-{patch.index[0]}-{patch.index[1]}{ending}"
        for patch in layout.patches
    )


def patch_facts(tract: Tract, patch: Patch) -> dict:
    """Return the cards that hold for anything on the pixels of a patch."""
    return {
        "BUNIT": ("ct", "flux per pixel at MAGZERO"),
        "MAGZERO": (ZERO_POINT, "[mag] of one count"),
        "FILTER": patch.band,
        **place_cards(tract, patch.index, patch.outer),
    }


def patch_cards(state: Survey) -> list[dict]:
    """Return the header of each patch's file, as far as exposures tell.

    HISTORY says what was done to the exposures before, then what this run does.
    """
    meeting: list[list] = [[] for _ in state.layout.patches]
    lost = lost_footprints(state)
    for number, part in enumerate(state.layout.footprints):
        if number not in lost:
            meeting[part.patch].append(state.exposures[part.exposure])
    return [
        _cards_of(state, patch, members) for patch, members in zip(state.layout.patches, meeting, strict=True)
    ]


def _cards_of(state: Survey, patch: Patch, members: Sequence) -> dict:
    dates = [
        ref.mjd + days for ref in members if ref.mjd is not None for days in (0.0, (ref.exptime or 0.0) / DAY)
    ]
    cards = {
        **patch_facts(state.tract, patch),
        "EXPTIME": (sum(ref.exptime or 0.0 for ref in members), "[s] total"),
        "NCOMBINE": (len(members), "exposures"),
    }
    if dates:
        cards["MJD-BEG"] = (min(dates), "[d] start of the first exposure")
        cards["MJD-END"] = (max(dates), "[d] end of the last one")
    cards |= {f"INP{i:05d}": ref.name for i, ref in enumerate(members)}
    before = dict.fromkeys(line for ref in members for line in ref.history)
    return {**cards, "HISTORY": (*before, *state.history)}


def detection_cards(stats: Sequence[float]) -> dict[str, tuple]:
    """Return the cards that detection adds to the header of a patch, from its PATCH_STATS."""
    measured = dict(zip(PATCH_STATS, stats, strict=True))
    return {
        "NOISCORR": (measured["noise_correction"], "noise in apertures over VARIANCE's"),
        "FWHM": (measured["fwhm"], "[pix] of the stars, before pixels take means"),
    }


# --- Pixels -----------------------------------------------------------------------------------------------


def read_patches(state: Survey, patches: PatchPlanes) -> Compute:
    """Declare the reading of patches, as sources are detected on them."""
    grid = state.layout.patch_grid
    return read_products("read-patches", grid, patches.arrays, state.products, patch_units(state))


def write_patches(state: Survey, folder: Path) -> Files:
    """Declare the FITS file of every patch, with what detection measured on it, if that has been done."""
    layout = state.layout
    cards = patch_cards(state)
    names = _left(state, folder, patch_names(layout, state.compress))
    detected = state.patch_stats is not None
    planes = state.patches.arrays
    extensions = (*PATCH_PLANES, *FURTHER_PLANES)[: len(planes)]

    def work(chunk, folder, *blocks):
        if not names[chunk.number]:
            return
        pixels = {name: block[0] for name, block in zip(extensions, blocks[: len(planes)], strict=True)}
        if state.weight_plane:
            pixels["WEIGHT"] = _inverse(pixels["VARIANCE"])
        header = dict(cards[chunk.number])
        if detected:
            stats, *maps = blocks[len(planes) :]
            pixels |= _named(state.maps, maps)
            header |= detection_cards(stats[0])
        _write(folder / names[chunk.number][0], state, chunk.number, pixels, header)

    measured = (state.patch_stats, *state.maps) if detected else ()
    reads = tuple(map(Part, (*planes, *measured)))
    return _files("write-patches", state, reads, work, names)


def write_maps(state: Survey, folder: Path) -> Files | None:
    """Declare a FITS file of what detection made of every patch, beside the file of the patch itself.

    None where nothing has been asked for.
    """
    if not state.maps:
        return None
    cards = [
        {**patch_facts(state.tract, patch), "HISTORY": (*product.history, *state.history)}
        for patch, product in zip(state.layout.patches, state.products, strict=True)
    ]
    names = _left(state, folder, patch_names(state.layout, state.compress, "detection"))

    def work(chunk, folder, stats, *maps):
        if not names[chunk.number]:
            return
        header = {**cards[chunk.number], **detection_cards(stats[0])}
        _write(folder / names[chunk.number][0], state, chunk.number, _named(state.maps, maps), header)

    reads = tuple(map(Part, (state.patch_stats, *state.maps)))
    return _files("write-maps", state, reads, work, names)


def _left(state: Survey, folder: Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the file of each patch, and none for those that failed."""
    return [() if n in state.lost_patches else (str(folder / name),) for n, name in enumerate(names)]


def _files(name: str, state: Survey, reads: Sequence[Part], work, names: Sequence[tuple[str, ...]]) -> Files:
    return Files(
        name,
        state.layout.patch_grid,
        reads=reads,
        work=work,
        names=tuple(one for of_patch in names for one in of_patch),
        units=patch_units(state),
        of_chunk=names.__getitem__,
    )


def _named(maps: Sequence[Ragged], blocks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return maps by the names of their extensions, which those of the arrays end in."""
    return {
        array.name.rpartition("-")[2].upper(): block[0] for array, block in zip(maps, blocks, strict=True)
    }


def _inverse(variance: np.ndarray) -> np.ndarray:
    """Return weights: 1 / variance, and 0 where there is none."""
    positive = np.isfinite(variance) & (variance > 0)
    return np.divide(np.float32(1), variance, out=np.zeros_like(variance), where=positive)


def _write(
    path: Path, state: Survey, number: int, planes: Mapping[str, np.ndarray], cards: Mapping[str, object]
) -> None:
    path.parent.mkdir(exist_ok=True)
    write_planes(path, planes, tract_header(state.tract, state.layout.patches[number].outer), cards)
