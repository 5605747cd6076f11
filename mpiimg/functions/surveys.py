"""A user's function over a survey: on calibrated exposures, or on the exposures that overlap on a patch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.steps.coadd import EXCLUDED, no_data, stack_pieces
from mpiimg.engine.stage import Need, Stage
from mpiimg.functions.declare import Function, Refused, held_to

#: Types of image, variance and mask.
DTYPES = ("float32", "float32", "int32")


def filtered(function: Function, planes: Sequence[np.ndarray], header: Mapping[str, Any]) -> tuple:
    """Return image, variance and mask of an exposure as a function leaves them.

    Raises
    ------
    Refused : what it returns is neither an image nor image, variance and mask
    """
    result = function(*planes, header=dict(header))
    returned = result if isinstance(result, tuple) else (result,)
    if len(returned) not in (1, 3):
        raise Refused(f"returns {len(returned)} planes; return the image, or image, variance and mask")
    shape = planes[0].shape
    held = tuple(held_to(function, one, shape, d) for one, d in zip(returned, DTYPES, strict=False))
    return (*held, *planes[len(held) :])


def combined(
    function: Function, stack: Sequence[np.ndarray], bounds: Mapping[str, tuple], header: Mapping[str, Any]
) -> tuple:
    """Return image, variance, mask and number of inputs of a band, as a function combines its exposures.

    An aggregate sees the exposures one by one, in their order; a function sees all.

    Parameters
    ----------
    stack : image, variance and mask, (exposures, rows, columns)
    bounds : rows and columns in tract pixels

    Raises
    ------
    Refused : what it returns is not image and variance, with or without a mask
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
    held = [held_to(function, one, shape, d) for one, d in zip(result, DTYPES, strict=False)]
    used = (stack[2] & bits(*EXCLUDED)) == 0
    inputs = used.sum(axis=0, dtype=np.int16)
    mask = held[2] if len(held) == 3 else np.bitwise_or.reduce(np.where(used, stack[2], 0), axis=0)
    empty = (inputs == 0) | ~np.isfinite(held[0])
    image = np.where(empty, np.float32(np.nan), held[0])
    variance = np.where(empty, np.float32(np.inf), held[1])
    return image, variance, np.where(empty, bits("NO_DATA"), mask).astype(np.int32), inputs


def exposure_header(ref: ExposureRef, zero_point: float | None) -> dict[str, Any]:
    """Return what a function may know of an exposure; MAGZERO is None where it is unknown."""
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


def renamed(layout: Layout, name: str) -> Layout:
    """Return the layout whose arrays of exposures are those that stage `name` writes."""
    return dataclasses.replace(layout, planes=f"udf-{name}")


def filter_exposures(
    layout: Layout,
    exposures: Sequence[ExposureRef],
    function: Function,
    name: str,
    zero_points: Sequence[float | None],
    left_out: Mapping[str, str],
    seconds: float,
) -> Stage:
    """Declare a function over all exposures; those that were left out are left alone.

    Parameters
    ----------
    name : of the stage; the arrays written are those of :func:`renamed`
    zero_points : magnitudes, as far as known
    left_out : names of exposures, and why
    seconds : CPU time a pixel
    """

    def work(chunk, *blocks):
        number, ref = chunk.number, exposures[chunk.number]
        planes = [block[0].reshape(layout.shapes[number]) for block in blocks]
        if ref.name not in left_out:
            planes = filtered(function, planes, exposure_header(ref, zero_points[number]))
        return tuple(np.ravel(plane) for plane in planes)

    def place(chunk):
        return (layout.exposure_run(chunk),)

    written = renamed(layout, name).exposure_planes()
    sizes = tuple(rows * columns for rows, columns in layout.shapes)
    return Stage(
        f"udf-{name}",
        "map",
        layout.exposure_grid,
        tuple(Need(array, place=place) for array in layout.exposure_planes()),
        written,
        work,
        {
            **function.provenance(),
            "headers": [repr(ref) for ref in exposures],
            "zero_points": list(zero_points),
            "left_out": sorted(left_out),
        },
        weights=sizes,
        place={array.name: layout.exposure_run for array in written},
        cost=("second", seconds * sum(sizes)),
    )


def combine_bands(layout: Layout, function: Function, name: str, seconds: float) -> Stage:
    """Declare a function over the exposures of every band of every patch, in place of our coadd.

    Parameters
    ----------
    seconds : CPU time a pixel of an exposure
    """
    members: dict[int, list[int]] = {}
    for piece, (_, band, _) in enumerate(layout.pieces):
        members.setdefault(band, []).append(piece)

    def work(chunk, images, variances, masks):
        patch, box = layout.bands[chunk.number]
        pieces = members.get(chunk.number, [])
        if not pieces:
            (top, bottom), (left, right) = box
            return no_data((bottom - top) * (right - left))
        stack = stack_pieces(layout, box, pieces, images, variances, masks)
        planes = combined(function, stack, dict(zip("yx", box, strict=True)), band_header(layout, patch))
        return tuple(plane.ravel() for plane in planes)

    outputs = layout.coadd_planes()
    return Stage(
        f"udf-{name}",
        "regroup",
        layout.band_grid,
        tuple(
            Need(array, place=lambda chunk: layout.table.of_key(chunk.number))
            for array in layout.piece_planes()
        ),
        outputs,
        work,
        function.provenance(),
        weights=tuple(1 + len(members.get(band, ())) for band in range(len(layout.bands))),
        place={array.name: layout.band_run for array in outputs},
        cost=("second", seconds * layout.table.offsets[-1]),
    )


def band_header(layout: Layout, number: int) -> dict[str, Any]:
    """Return what a function may know of a patch."""
    patch = layout.patches[number]
    return {"FILTER": patch.filter, "PATCHX": patch.index[0], "PATCHY": patch.index[1], "MAGZERO": 27.0}
