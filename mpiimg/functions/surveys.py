"""A user's function over a survey: on calibrated exposures, or on the exposures that overlap on a patch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.exposure_files import write_exposures
from mpiimg.astro.fits.exposure import ExposureRef, read_exposure
from mpiimg.astro.fits.maskplanes import bits, no_data
from mpiimg.astro.fits.writing import history_lines
from mpiimg.astro.patch_files import PatchOptions, write_patches
from mpiimg.astro.sky.layout import Patch, PatchPlanes, Planes
from mpiimg.astro.strips import EXCLUDED, empty_strip, stacked, strip_needs
from mpiimg.astro.survey import Survey, exposure_units, lost_footprints, strip_units, tract_document
from mpiimg.engine.containment import ends_run
from mpiimg.engine.needs import At, Part
from mpiimg.engine.parameters import NoParameters
from mpiimg.engine.stage import Compute, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput
from mpiimg.functions.function import Function
from mpiimg.functions.results import Refused, checked_result

#: Pixels per side that a function is tried on.
TRIAL_SIDE = 256

#: Types of image, variance and mask.
DTYPES = ("float32", "float32", "int32")


def filtered(function: Function, planes: Sequence[np.ndarray], header: Mapping[str, Any]) -> tuple:
    """Return image, variance and mask of an exposure as a function leaves them.

    Parameters
    ----------
    function : Function
    planes : sequence of (rows, columns) array
        Image float32, variance float32 and mask int32.
    header : mapping
        As from :func:`exposure_context`.

    Raises
    ------
    Refused
        It returns neither an image nor image, variance and mask.
    """
    result = function(*planes, header=dict(header))
    returned = result if isinstance(result, tuple) else (result,)
    if len(returned) not in (1, 3):
        raise Refused(f"returns {len(returned)} planes; return the image, or image, variance and mask")
    shape = planes[0].shape
    checked = tuple(
        checked_result(function, plane, shape, dtype) for plane, dtype in zip(returned, DTYPES, strict=False)
    )
    return (*checked, *planes[len(checked) :])


def combined(
    function: Function, stack: Sequence[np.ndarray], bounds: Mapping[str, tuple], header: Mapping[str, Any]
) -> tuple:
    """Return image, variance, mask and number of inputs of a strip, as a function combines its exposures.

    An aggregate sees the exposures one by one, in their order; a function sees all.

    Parameters
    ----------
    function : Function
    stack : sequence of (exposures, rows, columns) array
        Image float32, variance float32 and mask int32.
    bounds : mapping
        First and last row ("y") and column ("x"), in tract pixels.
    header : mapping
        As from :func:`patch_context`.

    Raises
    ------
    Refused
        It does not return image and variance, with or without a mask.
    """
    context = {"bounds": dict(bounds), "header": dict(header)}
    if function.aggregate:
        partial = (function(*planes, **context) for planes in zip(*stack, strict=True))
        result = function.finish(functools.reduce(function.merge, partial))
    else:
        result = function(*stack, **context)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise Refused("returns no image and variance; return both, or with a mask")
    shape = stack[0].shape[1:]
    checked = [
        checked_result(function, plane, shape, dtype) for plane, dtype in zip(result, DTYPES, strict=False)
    ]
    used = (stack[2] & bits(*EXCLUDED)) == 0
    inputs = used.sum(axis=0, dtype=np.int16)
    mask = checked[2] if len(checked) == 3 else np.bitwise_or.reduce(np.where(used, stack[2], 0), axis=0)
    empty = (inputs == 0) | ~np.isfinite(checked[0])
    image = np.where(empty, np.float32(np.nan), checked[0])
    variance = np.where(empty, np.float32(np.inf), checked[1])
    return image, variance, np.where(empty, bits("NO_DATA"), mask).astype(np.int32), inputs


def exposure_context(ref: ExposureRef, zero_point: float | None) -> dict[str, Any]:
    """Return what a function gets as the header of an exposure; MAGZERO is None where it is unknown."""
    return {
        **dict(ref.cards),
        "NAME": ref.name,
        "FILTER": ref.band,
        "EXPID": ref.visit,
        "CCDNUM": ref.sensor,
        "EXPTIME": ref.exptime,
        "MJD-OBS": ref.mjd,
        "MAGZERO": zero_point if zero_point is not None and np.isfinite(zero_point) else None,
    }


# --- Over exposures ---------------------------------------------------------------------------------------


def filter_exposures(state: Survey, function: Function, name: str, seconds: float, pixels: Planes) -> Compute:
    """Declare a function over all exposures; those that cannot be used are left alone.

    Parameters
    ----------
    state : Survey
    function : Function
    name : str
        Of the stage.
    seconds : float
        CPU time per pixel.
    pixels : Planes
        Written.
    """
    layout, exposures = state.layout, state.exposures

    def work(chunk, *blocks):
        number = chunk.number
        if not state.usable[number]:
            return blocks
        header = exposure_context(exposures[number], state.zero_points[number])
        return tuple(plane[None] for plane in filtered(function, [block[0] for block in blocks], header))

    def depends(number):
        return {
            "header": repr(exposures[number]),
            "zero_point": state.zero_points[number],
            "usable": state.usable[number],
        }

    sizes = tuple(rows * columns for rows, columns in layout.shapes)
    return Compute(
        name,
        layout.exposure_grid,
        reads=tuple(map(Part, state.pixels)),
        writes=tuple(pixels),
        work=work,
        units=exposure_units(state),
        without=lambda chunk: no_data((1, *exposures[chunk.number].shape)),
        parameters=function.provenance(),
        depends=depends,
        weights=sizes,
        cost=("second", seconds * sum(sizes)),
    )


# --- Over patches -----------------------------------------------------------------------------------------


def combine_strips(
    state: Survey, function: Function, name: str, seconds: float, patches: PatchPlanes
) -> Compute:
    """Declare a function over the exposures of every strip of every patch, in place of our coadd.

    Parameters
    ----------
    state : Survey
    function : Function
    name : str
        Of the stage.
    seconds : float
        CPU time per pixel of an exposure.
    patches : PatchPlanes
        Written.
    """
    layout, lost = state.layout, lost_footprints(state)

    def without(chunk):
        return tuple(plane[None] for plane in empty_strip(layout.strips[chunk.number].box))

    def work(chunk, images, variances, masks):
        strip = layout.strips[chunk.number]
        if not strip.footprints:
            return without(chunk)
        stack = stacked(layout, strip, (images, variances, masks), lost)
        bounds, header = dict(zip("yx", strip.box, strict=True)), patch_context(layout.patches[strip.patch])
        return tuple(plane[None] for plane in combined(function, stack, bounds, header))

    return Compute(
        name,
        layout.strip_grid,
        reads=strip_needs(layout, state.warps[:3]),
        writes=tuple(At(array, layout.strip_in_patch) for array in patches.arrays),
        work=work,
        units=strip_units(state),
        without=without,
        parameters={**function.provenance(), "lost": sorted(lost)},
        weights=tuple(1 + len(strip.footprints) for strip in layout.strips),
        cost=("second", seconds * layout.warped_pixels),
    )


def patch_context(patch: Patch) -> dict[str, Any]:
    """Return what a function gets as the header of a patch."""
    return {
        "FILTER": patch.band,
        "PATCHX": patch.index[0],
        "PATCHY": patch.index[1],
        "MAGZERO": ZERO_POINT,
    }


# --- The trial --------------------------------------------------------------------------------------------


def try_on_survey(function: Function, state: Survey, known: Mapping[str, Any]) -> tuple[float, str]:
    """Call a function on a small frame, or on three that overlap; return CPU-seconds per pixel.

    Also what tells this trial from others; `known` is what earlier ones told, by that.

    Raises
    ------
    BadInput
        It raises, or returns something that it must not.
    """
    from mpiimg.functions.trial import apart, key_of

    over_exposures = function.declared.over == "exposures"
    planes = _frame(state) if over_exposures else _overlap()
    size = " x ".join(map(str, planes[0].shape))
    if over_exposures:
        ref = state.exposures[0]
        context = {"header": exposure_context(ref, ref.magzero)}
    else:
        bounds = {"y": (0, planes[0].shape[1]), "x": (0, planes[0].shape[2])}
        context = {"bounds": bounds, "header": patch_context(state.layout.patches[0])}
    when = f"tried on {'a frame' if over_exposures else 'exposures'} of {size} float32"
    key = key_of(function, planes, context)
    if key in known:
        return known[key], key
    return apart(function, when, _seconds, function, planes, context), key


def _seconds(function: Function, planes: tuple[np.ndarray, ...], context: Mapping[str, Any]) -> float:
    """Call a function, in whatever process this is, and once more; return CPU-seconds per pixel."""
    from mpiimg.functions.trial import taken_by

    called = filtered if function.declared.over == "exposures" else combined

    def call():
        return called(function, [plane.copy() for plane in planes], **context)

    call()
    return taken_by(call, planes[0].size)[1]["seconds"]


def _frame(state: Survey) -> tuple[np.ndarray, ...]:
    """Return image, variance and mask from the middle of the first exposure that can be read."""
    for ref in state.exposures:
        try:
            exposure = read_exposure(ref)
        except Exception as error:
            if ends_run(error):
                raise
            continue
        rows, columns = (slice(max(0, (n - TRIAL_SIDE) // 2), (n + TRIAL_SIDE) // 2) for n in ref.shape)
        return tuple(plane[rows, columns] for plane in (exposure.image, exposure.variance, exposure.mask))
    raise BadInput(f"{state.exposures[0].image.path}: cannot be read, nor can any other exposure")


def _overlap(count: int = 3) -> tuple[np.ndarray, ...]:
    """Return three exposures made up, of which one has pixels without data."""
    shape = (count, TRIAL_SIDE // 4, TRIAL_SIDE // 2)
    image = np.random.default_rng(0).normal(100.0, 10.0, shape).astype(np.float32)
    variance, mask = np.full(shape, 100, np.float32), np.zeros(shape, np.int32)
    without = np.s_[0, : shape[1] // 2]
    for plane, value in zip((image, variance, mask), no_data(()), strict=True):
        plane[without] = value
    return image, variance, mask


# --- The steps --------------------------------------------------------------------------------------------


def survey_step(function: Function, name: str, known: Mapping[str, Any]) -> Step:
    """Return the step that a user's function over exposures, or over patches, is.

    Parameters
    ----------
    function : Function
    name : str
    known : mapping
        What earlier trials told.

    Raises
    ------
    BadInput
        It is an aggregate over exposures.
    """
    over_exposures = function.declared.over == "exposures"
    if over_exposures and function.aggregate:
        raise BadInput(f"{function.name}: an aggregate is over patches, not exposures")
    source = function.origin
    line = history_lines("run", f"{source.name}, source SHA-256 {source.digest[:16]}")
    return Step(
        name=name,
        summary=f"The function {source.name} of {source.where}.",
        takes=("pixels",) if over_exposures else ("warps", "tract"),
        gives=("pixels",) if over_exposures else ("patches",),
        inspect=functools.partial(_inspect, function, known),
        stages=functools.partial(_filter if over_exposures else _combine, function, name),
        parameters=NoParameters if over_exposures else PatchOptions,
        outputs=(_PIXELS if over_exposures else _PATCHES,),
        history=lambda p: line,
        source=function.provenance(),
    )


def _inspect(function: Function, known: Mapping[str, Any], state: Survey, p: Any) -> Inspection:
    seconds, key = try_on_survey(function, state, known)
    return Inspection(seconds, function.warnings, function.libraries, {key: seconds})


def _filter(function: Function, name: str, state: Survey, p: Any, seconds: float) -> Stages[Survey]:
    pixels = state.layout.exposure_planes("filtered")
    lost = yield filter_exposures(state, function, name, seconds, pixels)
    return dataclasses.replace(state, pixels=pixels).without_exposures(lost)


def _combine(function: Function, name: str, state: Survey, p: PatchOptions, seconds: float) -> Stages[Survey]:
    patches = state.layout.patch_planes("combined")
    state = state.without_strips((yield combine_strips(state, function, name, seconds, patches)))
    return state.with_patches(patches, compress=state.compress or p.compress)


_PIXELS = Output(
    of="pixels",
    when="end",
    folder="calibrated",
    stage=lambda state, p, folder: write_exposures(state, folder),
    without=Survey.without_exposures,
)

_PATCHES = Output(
    of="patches",
    when="end",
    stage=lambda state, p, folder: write_patches(state, folder),
    documents=tract_document,
    without=Survey.without_patches,
)
