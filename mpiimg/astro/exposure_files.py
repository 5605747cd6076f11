"""Files between the tools: calibrated exposures and warps, written and read again without a loss.

A rank reads and writes the files of the chunks it owns; what they hold then lies where the steps of a chain
expect it, so that a chain of tools gives the bits of one run.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.fits.exposure import ExposureRef, read_exposure
from mpiimg.astro.fits.maskplanes import no_data
from mpiimg.astro.fits.products import WARP_ENDING, Product, place_cards, read_product
from mpiimg.astro.fits.writing import write_planes
from mpiimg.astro.photometry.hits import SEARCHES
from mpiimg.astro.seeing import tract_fwhm
from mpiimg.astro.sky.layout import Planes, WarpPlanes
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.survey import EXPOSURE_STATS, Survey, exposure_units, unit_names
from mpiimg.engine.array import AnyArray
from mpiimg.engine.boxes import Box, ChunkGrid, box_shape, box_size
from mpiimg.engine.containment import Units
from mpiimg.engine.names import file_name, shown
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Compute, Files

NAMES = ("IMAGE", "VARIANCE", "MASK", "VARIANCE_LS")

#: What stands in planes for what failed, by the ends of their names; image, variance and mask have no data.
NOTHING = {"nimage": 0, "variance_ls": np.inf}


# --- Headers and names ------------------------------------------------------------------------------------


def exposure_names(exposures: Sequence[ExposureRef]) -> list[str]:
    """Return a name for the calibrated file of each exposure: its own, unless misread or shared.

    What names one of three files of a DECam triplet is replaced, since a calibrated exposure has one file.
    """
    names, taken = [], set()
    numbers: dict[str, int] = {}  # of the last one of each stem, so that many of one cost no more
    for ref in exposures:
        stem = file_name(re.sub(r"(?<![A-Za-z0-9])oo[iwd](?![A-Za-z0-9])", "calibrated", ref.name))
        name, number = stem, numbers.get(stem, 1)
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        numbers[stem] = number
        taken.add(name)
        names.append(f"{name}.fits")
    return names


def exposure_cards(ref: ExposureRef) -> dict[str, object]:
    """Return the cards by which :mod:`mpiimg.astro.fits.search` finds the same facts again."""
    own = ("FILTER", "EXPTIME", "BUNIT")
    cards = {
        "FILTER": ref.band,
        "EXPID": (ref.visit, "visit"),
        "CCDNUM": (ref.sensor, "sensor"),
        **{keyword: value for keyword, value in ref.cards if keyword not in own},
    }
    if ref.exptime is not None:
        cards["EXPTIME"] = (ref.exptime, "[s]")
    if ref.mjd is not None:
        cards["MJD-OBS"] = (ref.mjd, "[d] start of the exposure")
    return cards


def calibrated_cards(ref: ExposureRef, zero_point: float, kind: str, stats: Sequence[float]) -> dict:
    """Return the header of a calibrated exposure.

    Parameters
    ----------
    ref : ExposureRef
    zero_point : float
        Magnitude of one count.
    kind : str
        How it was found.
    stats : sequence of float
        What calibration measured, as :data:`mpiimg.astro.survey.EXPOSURE_STATS` names it.
    """
    measured = dict(zip(EXPOSURE_STATS, stats, strict=True))
    return {
        **exposure_cards(ref),
        "BUNIT": _unit(ref),
        "MAGZERO": (zero_point, "[mag] of one count"),
        "ZPTYPE": (kind, "how MAGZERO was found"),
        "SKYLEVEL": (measured["sky"], "median of the sky, which has been subtracted"),
        "SKYNOISE": (measured["noise"], "standard deviation of a pixel about it"),
        "FWHM": (measured["fwhm"], "[pix] of the stars, before pixels take means"),
        "APCORR": (measured["correction"], "flux of a star over that in a small aperture"),
        "NSTARS": (measured["stars"], "stars measured"),
        "CRPIXELS": (measured["cosmic_ray_pixels"], "pixels repaired from cosmic rays"),
        "CRSEARCH": (SEARCHES[int(measured["cosmic_ray_search"])], "for cosmic rays"),
        "NOISESCL": (measured["noise_scale"], "what the noise as given was multiplied with"),
    }


def _unit(ref: ExposureRef) -> str:
    return dict(ref.cards).get("BUNIT") or "adu"


def pixel_cards(state: Survey, number: int) -> dict:
    """Return the header of an exposure as a chain leaves it, with what calibration found if there was one."""
    ref, zero_point = state.exposures[number], state.zero_points[number]
    if state.calibrated:
        cards = calibrated_cards(ref, zero_point, state.zero_point_kinds[number], state.stats[number])
    else:
        cards = {**exposure_cards(ref), "BUNIT": _unit(ref)}
        if np.isfinite(zero_point):
            cards["MAGZERO"] = (zero_point, "[mag] of one count")
    return {**cards, "HISTORY": (*ref.history, *state.history)}


def warp_cards(
    ref: ExposureRef, name: str, tract: Tract, patch: tuple[int, int], box: Box, fwhm: float = np.nan
) -> dict:
    """Return the header of a warp of the exposure that goes by `name`, `fwhm` pixels of the tract wide."""
    known = {"FWHM": (fwhm, "[pix] of the stars")} if np.isfinite(fwhm) else {}
    return {
        **exposure_cards(ref),
        "EXPNAME": name,
        "BUNIT": ("ct", "flux per pixel at MAGZERO"),
        "MAGZERO": (ZERO_POINT, "[mag] of one count"),
        **known,
        **place_cards(tract, patch, box),
    }


def tract_header(tract: Tract, box: Box) -> str:
    """Return the celestial coordinates of a box of a tract as header text."""
    header = tract.wcs_of(box).to_header(relax=True)
    return "\n".join(str(card).rstrip() for card in header.cards)


def exposure_table(state: Survey) -> bytes:
    """Return the table of exposures: zero point, sky, FWHM, cosmic rays, status; last those left unread.

    Sky and noise are in the unit of each exposure's pixels.
    """
    from astropy.io import ascii
    from astropy.table import Column, Table

    unread = [name for name, _ in state.rejected]
    names = unit_names(state.exposures) + unread
    stats = np.full((len(names), len(EXPOSURE_STATS)), np.nan)
    stats[: len(state.exposures)] = state.stats
    table = Table()
    table["name"] = list(map(shown, names))
    table["band"] = [shown(ref.band) for ref in state.exposures] + [""] * len(unread)
    table["zero_point"] = [*state.zero_points, *[np.nan] * len(unread)]
    table["zero_point_type"] = [*state.zero_point_kinds, *["NONE"] * len(unread)]
    for column, key in enumerate(EXPOSURE_STATS[1:], 1):
        table[key] = stats[:, column]
    searches = ["" if np.isnan(code) else SEARCHES[int(code)] for code in table["cosmic_ray_search"]]
    table.replace_column("cosmic_ray_search", Column(searches, "cosmic_ray_search"))
    table["zero_point"].unit = "mag"
    table["fwhm"].unit = table["half_light_diameter"].unit = "pix"
    table["status"] = [state.left_out.get(name, "used") for name in names]
    out = io.StringIO()
    ascii.write(table, out, format="ecsv")
    return out.getvalue().encode()


# --- Exposures --------------------------------------------------------------------------------------------


def write_exposures(state: Survey, folder: Path) -> Files:
    """Declare the FITS file of every usable exposure: its pixels as they are, its WCS as it was."""
    names = [
        str(folder / name) if usable else None
        for name, usable in zip(exposure_names(state.exposures), state.usable, strict=True)
    ]

    def work(chunk, folder, *planes):
        number = chunk.number
        if names[number] is not None:
            wcs = state.exposures[number].wcs
            _write(folder / names[number], planes, wcs, pixel_cards(state, number))

    units = exposure_units(state)
    return _files("write-exposures", state.layout.exposure_grid, state.pixels, work, names, units)


def read_exposures(state: Survey, pixels: Planes) -> Compute:
    """Declare the reading of exposures into `pixels`; one that cannot be read is left out."""
    layout, exposures = state.layout, state.exposures

    def work(chunk):
        exposure = read_exposure(exposures[chunk.number])
        return (exposure.image[None], exposure.variance[None], exposure.mask[None])

    return Compute(
        "read-exposures",
        layout.exposure_grid,
        writes=tuple(pixels),
        work=work,
        units=exposure_units(state, kept=True),
        without=lambda chunk: no_data((1, *exposures[chunk.number].shape)),
        depends=lambda number: {"identity": exposures[number].identity, "exposure": repr(exposures[number])},
        weights=tuple(rows * columns for rows, columns in layout.shapes),
    )


# --- Warps ------------------------------------------------------------------------------------------------


def write_warps(state: Survey, folder: Path) -> Files:
    """Declare the FITS file of every usable exposure on every patch: the pixels that it can reach there."""
    layout, tract = state.layout, state.tract
    stems = [name.removesuffix(".fits") for name in exposure_names(state.exposures)]
    names = [
        str(folder / f"{stems[part.exposure]}_{layout.patches[part.patch].name}{WARP_ENDING}")
        if state.usable[part.exposure]
        else None
        for part in layout.footprints
    ]
    exposures, widths = unit_names(state.exposures), tract_fwhm(state)
    units = Units(
        lambda number: exposures[layout.footprints[number].exposure], len(exposures), "exposure", state.strict
    )

    def work(chunk, folder, *planes):
        if names[chunk.number] is None:
            return
        part = layout.footprints[chunk.number]
        ref = state.exposures[part.exposure]
        cards = warp_cards(
            ref, ref.name, tract, layout.patches[part.patch].index, part.box, widths[part.exposure]
        )
        cards["HISTORY"] = (*ref.history, *state.history)
        _write(folder / names[chunk.number], planes, tract_header(tract, part.box), cards)

    return _files("write-warps", layout.footprint_grid, state.warps.arrays, work, names, units)


def read_warps(state: Survey, warps: WarpPlanes) -> Compute:
    """Declare the reading of warps, one per footprint."""
    products = state.products
    units = Units(lambda number: str(products[number].path), len(products), "warp", state.strict)
    return read_products("read-warps", state.layout.footprint_grid, warps.arrays, products, units)


def read_products(
    name: str,
    grid: ChunkGrid,
    arrays: Sequence[AnyArray],
    products: Sequence[Product],
    units: Units,
) -> Compute:
    """Declare the reading of our own files, one chunk, one item of `arrays` and one unit for each."""

    def work(chunk):
        return tuple(pixels[None] for pixels in read_product(products[chunk.number]))

    return Compute(
        name,
        grid,
        writes=tuple(arrays),
        work=work,
        units=units,
        without=lambda chunk: no_planes(arrays, box_shape(products[chunk.number].box)),
        parameters={"identities": [product.identity for product in products]},
        weights=tuple(box_size(product.box) for product in products),
    )


def no_planes(arrays: Sequence[AnyArray], shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return what stands in arrays of pixels, one item each, for what failed: no data of any exposure."""
    planes = no_data((1, *shape))
    more = {array: NOTHING[array.name.rpartition("-")[2]] for array in arrays[len(planes) :]}
    return (*planes, *(np.full((1, *shape), value, array.dtype) for array, value in more.items()))


def _files(
    name: str, grid: ChunkGrid, planes: Sequence[AnyArray], work, names: Sequence[str | None], units: Units
) -> Files:
    """Declare files, one per chunk, of whatever is not left out."""
    return Files(
        name,
        grid,
        reads=tuple(map(Part, planes)),
        work=work,
        names=tuple(name for name in names if name is not None),
        units=units,
        of_chunk=lambda number: () if names[number] is None else (names[number],),
    )


def _write(path: Path, planes: Sequence[np.ndarray], wcs: str, cards: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    write_planes(path, {name: plane[0] for name, plane in zip(NAMES, planes, strict=False)}, wcs, cards)
