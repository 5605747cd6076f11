"""How chains of the survey's steps open: with exposures, or with folders of warps or patches."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.exposure_files import read_exposures, read_warps
from mpiimg.astro.fits.exposure import ExposureRef, survey_order
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.products import Product, find_patches, find_warps, read_tract
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.patch_files import read_patches
from mpiimg.astro.placing import PIXEL_SCALES, lay_out, patches_of, with_places
from mpiimg.astro.sky.layout import Footprint, Layout
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.survey import Survey, unit_names
from mpiimg.engine.containment import Fault, raise_first
from mpiimg.engine.parameters import NoParameters, parameter
from mpiimg.engine.stage import Stages
from mpiimg.engine.step import Argument, Source
from mpiimg.errors import BadInput

EXPOSURES = Argument(
    "exposures",
    "The exposures: FITS files, or @list.txt with one per line; any file of a DECam triplet stands for it.",
    positional=True,
    many=True,
)
TRACT = Argument(
    "tract",
    "The tract (TOML) whose pixels are used; without it one is laid out around the exposures.",
    of="tract",
    optional=True,
)

_NO_ZERO_POINT = "has no zero point (MAGZERO); run mpiimg-calibrate, or give --zero-point"


@dataclass(frozen=True)
class ExposureOptions:
    """How exposures are read, and the tract that is laid out around them."""

    center: str | None = parameter(
        None,
        "The tract is centred on this place; without it on the middle of all exposures.",
        unit="degrees",
        metavar="RA,DEC",
        of="tract",
    )
    pixel_scale: float | None = parameter(
        None,
        "Pixels of the tract have this size; without it the median of those of all exposures that can be "
        "used, rounded to 0.001 arcsec, and below 0.1 arcsec to two digits.",
        unit="arcsec",
        limits=PIXEL_SCALES,
        of="tract",
    )
    patch: int = parameter(
        2000,
        "Patches have this side, without their border.",
        unit="pixels",
        limits=(16, 100_000),
        of="tract",
    )
    border: int = parameter(
        100,
        "Patches have a border of this width, which they share with their neighbours.",
        unit="pixels",
        limits=(0, 10_000),
        of="tract",
    )
    strict: bool = parameter(
        False, "One exposure that cannot be used ends the run, instead of being left out."
    )
    instrument: tuple[str, ...] | None = parameter(
        None,
        "Exposures are of this instrument, one of the package by its name; or files (TOML) say what further "
        "instruments call things. May be given more than once. By default headers say which it is.",
        type=str,
        metavar="NAME|FILE",
        repeated=True,
    )
    zero_point: str | None = parameter(
        None,
        "The magnitude of one count; by default the card of the instrument (MAGZERO), or its unit.",
        unit="magnitudes",
        metavar="CARD|NUMBER",
        limits=(-100, 100),
    )
    gain: str | None = parameter(
        None,
        "Electrons per count; by default the card of the instrument (GAIN, or GAINA and GAINB).",
        metavar="CARD|NUMBER",
        limits=(1e-6, 1e6),
    )
    read_noise: str | None = parameter(
        None,
        "The read noise; by default the card of the instrument (RDNOISE, or RDNOISEA and RDNOISEB).",
        unit="electrons",
        metavar="CARD|NUMBER",
        limits=(0, 1e6),
    )
    saturate: str | None = parameter(
        None,
        "Pixels are saturated from this level on; by default the card of the instrument (SATURATE).",
        unit="counts",
        metavar="CARD|NUMBER",
        limits=(1e-6, 1e12),
    )
    filter: str | None = parameter(
        None,
        "The filter; by default what the card of the instrument says (FILTER). Filters of different names "
        "are never combined.",
        metavar="CARD|=NAME",
    )
    visit: str | None = parameter(
        None,
        "The visit; by default the card of the instrument (EXPID, VISIT or EXPNUM, else DATE-OBS), and where "
        "two exposures share it, the first card in which they differ.",
        metavar="CARD|=NAME",
    )
    sensor: str | None = parameter(
        None,
        "The sensor; by default the card of the instrument (CCDNUM, DETPOS, CCDNAME, CCD or DETSER).",
        metavar="CARD|=NAME",
    )
    zero_point_per: str | None = parameter(
        None,
        "The zero point holds for counts of the whole exposure, or for counts per second; by default as the "
        "instrument has it, mostly the exposure.",
        choices=("exposure", "second"),
    )
    bad_bits: str | None = parameter(
        None,
        "These bits of a mask make a pixel bad, and no other: their values with commas between, as 1,2,1024; "
        "with ~ before them all but these; none for no bit. By default the instrument says what bits mean.",
        metavar="BITS",
    )
    weight_file: str | None = parameter(
        None,
        "Weights lie beside each image in a file of this name, with {stem} for the name of the image, as "
        "{stem}.weight.fits.",
        metavar="PATTERN",
    )
    weight_file_is: str = parameter(
        "weight",
        "Files of weights hold inverse variances in any scale (weight), variances, or standard deviations "
        "(error).",
        choices=("weight", "variance", "error"),
    )
    mask_file: str | None = parameter(
        None,
        "Masks lie beside each image in a file of this name, as --weight-file has it.",
        metavar="PATTERN",
    )
    decam_mask: str = parameter(
        "auto",
        "The mask of a triplet (ood) holds codes or bits; auto goes by the instrument, and by card PLVER.",
        choices=("auto", "codes", "bits"),
    )
    no_checksums: bool = parameter(False, "Checksums in headers are not looked at.")

    @property
    def read_options(self) -> ReadOptions:
        """Where the facts about exposures are found."""
        names = (field.name for field in dataclasses.fields(ReadOptions))
        settings = {name: getattr(self, name) for name in names}
        return ReadOptions(**settings | {"instrument": tuple(self.instrument or ())})


# --- Exposures --------------------------------------------------------------------------------------------


def inspect_frames(paths: Mapping[str, Any], p: ExposureOptions, taken: frozenset[str]) -> Survey:
    """Read the headers of exposures that calibration is to read.

    Raises
    ------
    BadInput
        None can be used, or one cannot and `strict` is set; or none meets the tract.
    """
    state = _inspect_exposures(paths, p, taken, frozenset())
    return dataclasses.replace(state, frames=state.exposures)


def inspect_calibrated(paths: Mapping[str, Any], p: ExposureOptions, taken: frozenset[str]) -> Survey:
    """Read the headers of calibrated exposures; they need zero points only where the chain takes these.

    Raises
    ------
    BadInput
        As :func:`inspect_frames`; or none has a zero point.
    """
    return _inspect_exposures(paths, p, taken, frozenset({"zero_points"}))


def _inspect_exposures(
    paths: Mapping[str, Any], p: ExposureOptions, taken: frozenset[str], needed: frozenset[str]
) -> Survey:
    options, faults = p.read_options, []
    exposures = find_exposures(paths["exposures"], options, None if p.strict else faults)
    if not exposures:
        if faults:
            raise_first(faults)
        raise BadInput("no exposures: name at least one FITS file")
    rejected = [(fault.unit, fault.reason) for fault in faults]
    if taken & needed:
        exposures, without = _with_zero_points(exposures, p.strict)
        rejected += without
    tract, layout, notes = None, Layout(tuple(ref.shape for ref in exposures)), ()
    if "tract" in taken:
        given = None if paths.get("tract") is None else read_tract(Path(paths["tract"]))
        scale = p.pixel_scale if given is None else given.pixel_scale
        anywhere = given is not None or p.center is not None
        placed = with_places(exposures, scale, anywhere, p.strict)
        exposures, notes = placed.exposures, placed.notes
        rejected += placed.wrong
        tract = given or Tract.around(placed.outlines, _center(p), placed.pixel_scale, p.patch, p.border)
        layout, exposures, outside = lay_out(exposures, tract)
        if outside and p.strict:
            raise BadInput(outside[0][1])
        if not exposures:
            raise BadInput("no exposure meets the tract; check --tract or --center")
        rejected += outside
    return Survey(
        exposures=tuple(exposures),
        tract=tract,
        layout=layout,
        options=options,
        strict=p.strict,
        rejected=tuple(rejected),
        usable=(True,) * len(exposures),
        sources=_identities(exposures),
        files=tuple(path for ref in exposures for path in ref.paths),
        warnings=(*(f"left out: {reason}" for _, reason in rejected), *_notes(exposures)),
        notes=notes,
        left_out=dict(rejected),
        faults=(*faults, *(Fault(name, "layout", reason) for name, reason in rejected[len(faults) :])),
        nbytes=layout.nbytes,
    )


def _notes(exposures: Sequence[ExposureRef]) -> tuple[str, ...]:
    """Return what is said of exposures that can be used, a line for each thing."""
    first: dict[str, Path] = {}
    counts = Counter(note for ref in exposures for note in ref.notes)
    for ref in exposures:
        for note in ref.notes:
            first.setdefault(note, ref.image.path)
    more = {note: f", and so of {count - 1} more" if count > 1 else "" for note, count in counts.items()}
    return tuple(f"{path}: {note}{more[note]}" for note, path in first.items())


def _identities(exposures: Sequence[ExposureRef]) -> dict[str, Any]:
    """Return what tells the files of exposures from others, by path, with the sensor where it has several."""
    paths = [str(ref.image.path) for ref in exposures]
    sensors = Counter(paths)
    return {
        path if sensors[path] == 1 else f"{path}[{ref.sensor}]": ref.identity
        for path, ref in zip(paths, exposures, strict=True)
    }


def _with_zero_points(exposures: Sequence[ExposureRef], strict: bool):
    """Return the exposures that have a zero point, and (name, reason) of the others."""
    names = unit_names(exposures)
    without = [
        (name, f"{ref.image.path}: {_NO_ZERO_POINT}")
        for name, ref in zip(names, exposures, strict=True)
        if ref.magzero is None
    ]
    having = [ref for ref in exposures if ref.magzero is not None]
    if without and (strict or not having):
        raise BadInput(without[0][1])
    return having, without


def _center(p: ExposureOptions) -> tuple[float, float] | None:
    if p.center is None:
        return None
    try:
        ra, dec = (float(word) for word in p.center.split(","))
    except ValueError:
        raise BadInput(f"--center {p.center}: give RA,DEC in degrees, e.g. 150.1,2.2") from None
    if not (-360 <= ra <= 360 and -90 <= dec <= 90):
        raise BadInput(
            f"--center {p.center}: is no place on the sky: RA is between -360 and 360 degrees, Dec "
            "between -90 and 90"
        )
    return ra, dec


def read_calibrated(state: Survey, p: ExposureOptions, taken: frozenset[str]) -> Stages[Survey]:
    """Read calibrated exposures, and take the zero points of those that could be read."""
    pixels = state.layout.exposure_planes("read-exposure")
    lost = yield read_exposures(state, pixels)
    points = tuple(np.nan if ref.magzero is None else ref.magzero for ref in state.exposures)
    return dataclasses.replace(state, pixels=pixels, zero_points=points).without_exposures(lost)


# --- Warps and patches ------------------------------------------------------------------------------------


def inspect_warps(paths: Mapping[str, Any], p: NoParameters, taken: frozenset[str]) -> Survey:
    """Read the headers of the warps in a folder and lay out the patches that they are of.

    Raises
    ------
    BadInput
        There are none, no tract.toml, or they do not belong together.
    """
    folder = Path(paths["warps"])
    tract, warps = find_warps(folder)
    exposures = sorted({_exposure(product): product for product in warps}.values(), key=survey_order)
    number = {_exposure(product): i for i, product in enumerate(exposures)}
    patches, index = patches_of(((product.band, product.patch) for product in warps), tract)
    warps.sort(key=lambda product: (number[_exposure(product)], index[product.band, product.patch]))
    footprints = tuple(
        Footprint(number[_exposure(product)], index[product.band, product.patch], product.box)
        for product in warps
    )
    out = paths.get("out")
    return _of_products(
        warps,
        exposures=tuple(exposures),
        usable=(True,) * len(exposures),
        zero_points=(ZERO_POINT,) * len(exposures),
        tract=tract,
        layout=Layout((), patches, footprints),
        own_tract=out is not None and Path(out).resolve() == folder.resolve(),
    )


def _exposure(product: Product) -> tuple[str, str, str]:
    return product.band, product.visit, product.sensor


def read_warp_files(state: Survey, p: NoParameters, taken: frozenset[str]) -> Stages[Survey]:
    """Read warps, each into the place of its footprint."""
    warps = state.layout.warp_planes("read-warp", state.products[0].has_variance_ls)
    lost = yield read_warps(state, warps)
    return dataclasses.replace(state, warps=warps).without_warps(lost)


def inspect_patches(paths: Mapping[str, Any], p: NoParameters, taken: frozenset[str]) -> Survey:
    """Read the headers of the patches in a folder.

    Raises
    ------
    BadInput
        There are none, no tract.toml, or they do not belong together.
    """
    tract, products = find_patches(Path(paths["patches"]))
    patches, index = patches_of(((product.band, product.patch) for product in products), tract)
    products.sort(key=lambda product: index[product.band, product.patch])
    return _of_products(products, tract=tract, layout=Layout((), patches), own_tract=True)


def read_patch_files(state: Survey, p: NoParameters, taken: frozenset[str]) -> Stages[Survey]:
    """Read patches."""
    patches = state.layout.patch_planes("read-coadd", state.products[0].has_variance_ls)
    lost = yield read_patches(state, patches)
    return dataclasses.replace(state, patches=patches).without_patches(lost)


def _of_products(products: Sequence[Product], **about: Any) -> Survey:
    """Return the state of a chain that begins with our own files, on the tract that lies beside them."""
    tract = f"{zlib.crc32(about['tract'].to_toml().encode()):08x}"
    return Survey(
        products=tuple(products),
        sources={"tract": tract, **{str(product.path): product.identity for product in products}},
        files=tuple(product.path for product in products),
        nbytes=about["layout"].nbytes,
        **about,
    )


# --- Declarations -----------------------------------------------------------------------------------------

SOURCES = (
    Source(
        "exposures that calibrate reads itself",
        gives=("frames", "tract"),
        arguments=(EXPOSURES, TRACT),
        inspect=inspect_frames,
        parameters=ExposureOptions,
    ),
    Source(
        "calibrated exposures",
        gives=("pixels", "zero_points", "tract"),
        arguments=(EXPOSURES, TRACT),
        inspect=inspect_calibrated,
        stages=read_calibrated,
        parameters=ExposureOptions,
    ),
    Source(
        "a folder of warps",
        gives=("warps", "tract"),
        arguments=(Argument("warps", "The folder that mpiimg-warp wrote.", positional=True),),
        inspect=inspect_warps,
        stages=read_warp_files,
    ),
    Source(
        "a folder of patches",
        gives=("patches", "tract"),
        arguments=(
            Argument("patches", "The folder that mpiimg-coadd or mpiimg-astro wrote.", positional=True),
        ),
        inspect=inspect_patches,
        stages=read_patch_files,
    ),
)
