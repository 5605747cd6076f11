"""Files between the tools: calibrated exposures, warps and patches, written and read again without a loss.

A rank reads and writes the files of the chunks it owns; what they hold then lies where the stages of
mpiimg-astro expect it, so that a chain of tools gives the bits of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.astro.fits.exposure import ExposureRef, read_exposure
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.products import Product, place_cards, read_product
from mpiimg.astro.fits.writing import write_planes
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.steps.calibrate import FACTS, reason_row, reason_text
from mpiimg.engine.boxes import box_shape, box_size
from mpiimg.engine.stage import Need, Stage, reduction
from mpiimg.engine.stores import Array
from mpiimg.errors import BadInput

NAMES = ("IMAGE", "VARIANCE", "MASK")

#: Names of files by chunk; None for what was left out.
Names = Sequence[str | None]


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


def calibrated_cards(ref: ExposureRef, zero_point: float, kind: str, facts: Sequence[float]) -> dict:
    """Return the header of a calibrated exposure.

    Parameters
    ----------
    zero_point, kind : magnitude of one count, and how it was found
    facts : what calibration measured, as :data:`mpiimg.astro.steps.calibrate.FACTS` names it
    """
    known = dict(zip(FACTS, facts, strict=True))
    return {
        **exposure_cards(ref),
        "BUNIT": dict(ref.cards).get("BUNIT") or "adu",
        "MAGZERO": (zero_point, "[mag] of one count"),
        "ZPTYPE": (kind, "how MAGZERO was found"),
        "SKYLEVEL": (known["sky"], "median of the sky, which has been subtracted"),
        "SKYNOISE": (known["noise"], "standard deviation of a pixel about it"),
        "FWHM": (known["fwhm"], "[pix] median of the stars"),
        "APCORR": (known["correction"], "flux of a star over that in 1 FWHM radius"),
        "NSTARS": (known["stars"], "stars measured"),
        "CRPIXELS": (known["cosmic_ray_pixels"], "pixels repaired from cosmic rays"),
    }


def write_exposures(
    layout: Layout, exposures: Sequence[ExposureRef], cards: Sequence[Mapping], names: Names
) -> Stage:
    """Declare the FITS file of every calibrated exposure: its pixels as they are, its WCS as it was."""

    def work(chunk, folder, *blocks):
        number = chunk.number
        if names[number] is None:
            return
        planes = [block[0].reshape(layout.shapes[number]) for block in blocks]
        _write(folder, names[number], planes, exposures[number].wcs, cards[number])

    reads = tuple(
        Need(array, place=lambda chunk: (layout.exposure_run(chunk),)) for array in layout.exposure_planes()
    )
    return Stage("write-exposures", "files", layout.exposure_grid, reads, work=work, outputs=_written(names))


def read_exposures(layout: Layout, exposures: Sequence[ExposureRef]) -> Stage:
    """Declare the reading of calibrated exposures; one that cannot be read is left out with the reason."""
    planes = layout.exposure_planes()

    def work(chunk):
        ref = exposures[chunk.number]
        try:
            exposure = read_exposure(ref)
        except BadInput as error:
            size = ref.shape[0] * ref.shape[1]
            nothing = (np.nan, np.inf, bits("NO_DATA"))
            blank = [np.full(size, value, array.dtype) for value, array in zip(nothing, planes, strict=True)]
            return (*blank, reason_row(str(error)))
        return (exposure.image.ravel(), exposure.variance.ravel(), exposure.mask.ravel(), reason_row(""))

    return Stage(
        "read-exposures",
        "map",
        layout.exposure_grid,
        (),
        (*planes, _reasons(len(exposures))),
        work,
        {"identities": [ref.identity for ref in exposures], "exposures": [repr(ref) for ref in exposures]},
        weights=tuple(rows * columns for rows, columns in layout.shapes),
        place={array.name: layout.exposure_run for array in planes},
    )


def _reasons(count: int) -> Array:
    return Array("reasons", "er", (count, reason_row("").shape[1]), "uint8")


def take_zero_points(
    layout: Layout, exposures: Sequence[ExposureRef], strict: bool, rejected: Mapping[str, str]
) -> Stage:
    """Take the zero points from the headers of those exposures that could be read; NaN for the others.

    Parameters
    ----------
    strict : let one that could not end the run
    rejected : names of files that were left out before, and why
    """
    reasons = _reasons(len(exposures))

    def finish(rows):
        texts = {i: reason_text(row) for i, row in enumerate(rows) if row.any()}
        if texts and (strict or len(texts) == len(exposures)):
            raise BadInput(texts[min(texts)])
        return {
            "zero_points": tuple(np.nan if i in texts else ref.magzero for i, ref in enumerate(exposures)),
            "left_out": {**rejected, **{exposures[i].name: text for i, text in texts.items()}},
            "warnings": [f"left out: {text}" for text in texts.values()],
        }

    return reduction(
        "zero-points",
        layout.exposure_grid,
        (Need(reasons),),
        lambda chunk, row: row[0],
        (reasons.shape[1:], "uint8"),
        finish,
    )


def warp_cards(ref: ExposureRef, name: str, tract: Tract, patch: tuple[int, int], box) -> dict:
    """Return the header of a warp of the exposure that goes by `name`."""
    return {
        **exposure_cards(ref),
        "EXPNAME": name,
        "BUNIT": ("ct", "flux per pixel at MAGZERO"),
        "MAGZERO": (27.0, "[mag] of one count"),
        **place_cards(tract, patch, box),
    }


def write_warps(layout: Layout, tract: Tract, cards: Sequence[Mapping], names: Names) -> Stage:
    """Declare the FITS file of every exposure on every patch it meets: the pixels that it can reach."""

    def work(chunk, folder, *blocks):
        number = chunk.number
        if names[number] is None:
            return
        box = layout.footprints[number].box
        planes = [block[0].reshape(box_shape(box)) for block in blocks]
        _write(folder, names[number], planes, tract_header(tract, box), cards[number])

    reads = tuple(Need(array, place=layout.footprint_runs) for array in layout.piece_planes())
    return Stage("write-warps", "files", layout.footprint_grid, reads, work=work, outputs=_written(names))


def read_warps(layout: Layout, warps: Sequence[Product]) -> Stage:
    """Declare the reading of warps, one a footprint, into the pieces that bands are coadded from."""
    return _read("read-warps", layout.footprint_grid, layout.piece_planes(), warps, _first(layout))


def _first(layout: Layout):
    return lambda chunk: layout.footprint_runs(chunk)[0]


def read_patches(layout: Layout, patches: Sequence[Product]) -> Stage:
    """Declare the reading of patches into the coadds that sources are detected on."""
    return _read("read-patches", layout.patch_grid, layout.coadd_planes(), patches, layout.patch_run)


def _read(name, grid, outputs, products: Sequence[Product], place) -> Stage:
    def work(chunk):
        return tuple(pixels.ravel() for pixels in read_product(products[chunk.number]))

    return Stage(
        name,
        "map",
        grid,
        (),
        outputs,
        work,
        {"identities": [product.identity for product in products]},
        weights=tuple(box_size(product.box) for product in products),
        place={array.name: place for array in outputs},
    )


def tract_header(tract: Tract, box) -> str:
    """Return the celestial coordinates of a box of a tract as header text."""
    header = tract.wcs_of(box).to_header(relax=True)
    return "\n".join(str(card).rstrip() for card in header.cards)


def _write(folder, name: str, planes: Sequence[np.ndarray], wcs: str, cards: Mapping) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    write_planes(folder / name, dict(zip(NAMES, planes, strict=True)), wcs, cards)


def _written(names: Names) -> tuple[str, ...]:
    return tuple(name for name in names if name is not None)
