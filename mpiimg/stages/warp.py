"""Patch creation: each exposure resampled onto the patches that it touches, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpiimg.io.exposure import ExposureRef
from mpiimg.io.fits_writing import history
from mpiimg.io.maskplanes import bits
from mpiimg.io.tract import Tract
from mpiimg.io.wcs import parse_wcs, source_grid
from mpiimg.partition import box_shape, box_slices
from mpiimg.stages.photometry import COMMON_ZERO_POINT, flux_scale
from mpiimg.stages.stage import Need, Stage
from mpiimg.stages.survey import Layout

PAPER = (
    "Lanczos interpolation; WCS papers I and II: Greisen and Calabretta 2002, doi:10.1051/0004-6361:20021326"
)

HISTORY = history("warp", f"Lanczos-3, flux conserved, to zero point {COMMON_ZERO_POINT:g}")


def warp(
    layout: Layout, exposures: Sequence[ExposureRef], tract: Tract, zero_points: Sequence[float]
) -> Stage:
    """Declare the warp of every exposure: to zero point 27, on the pixels of the tract.

    Parameters
    ----------
    zero_points : magnitudes; NaN leaves an exposure out
    """
    members: dict[int, list[int]] = {}
    for number, footprint in enumerate(layout.footprints):
        members.setdefault(footprint.exposure, []).append(number)
    pieces: dict[int, list] = {}
    for footprint, _, box in layout.pieces:
        pieces.setdefault(footprint, []).append(box)

    def work(chunk, images, variances, masks):
        number = chunk.number
        planes = [block[0].reshape(layout.shapes[number]) for block in (images, variances, masks)]
        parts = []
        for footprint in members.get(number, ()):
            box = layout.footprints[footprint].box
            warped = _warp(planes, exposures[number], tract, box, zero_points[number])
            parts += [
                [plane[box_slices(piece, box)].ravel() for plane in warped] for piece in pieces[footprint]
            ]
        if not parts:
            return tuple(np.empty(0, plane.dtype) for plane in planes)
        return tuple(np.concatenate(runs) for runs in zip(*parts, strict=True))

    reads = tuple(
        Need(array, place=lambda chunk: (layout.exposure_run(chunk),)) for array in layout.exposure_planes()
    )
    outputs = layout.piece_planes()
    return Stage(
        "warp",
        "map",
        layout.exposure_grid,
        reads,
        outputs,
        work,
        {"tract": tract.to_toml(), "zero_points": list(zero_points), "wcs": [ref.wcs for ref in exposures]},
        place={array.name: lambda chunk: layout.table.of_producer(chunk.number) for array in outputs},
        cost=("warp", float(layout.table.offsets[-1])),
    )


def _warp(planes, ref: ExposureRef, tract: Tract, box, zero_point: float):
    from mpiimg.kernels.warp import STEP, interpolate_bad
    from mpiimg.kernels.warp import warp as resample

    image, variance, mask = planes
    no_data = bits("NO_DATA")
    if not np.isfinite(zero_point):
        shape = box_shape(box)
        return (
            np.full(shape, np.nan, np.float32),
            np.full(shape, np.inf, np.float32),
            np.full(shape, no_data, np.int32),
        )
    image, variance, replaced = interpolate_bad(image, variance, (mask & bits("BAD", "SAT", "NO_DATA")) != 0)
    mask = mask | np.where(replaced, np.int32(bits("INTRP")), np.int32(0))
    grid = source_grid(parse_wcs(ref.wcs), tract.wcs, box, STEP)
    return resample(image, variance, mask, grid, box, flux_scale(zero_point), no_data)
