"""Patch creation: each exposure resampled onto the patches that it touches, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.writing import history
from mpiimg.astro.photometry.stars import COMMON_ZERO_POINT, flux_scale
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.sky.wcs import parse_wcs, source_grid
from mpiimg.engine.boxes import Box, box_shape, box_size
from mpiimg.engine.stage import Need, Stage

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
    outputs = layout.piece_planes()

    def work(chunk, images, variances, masks):
        number = chunk.number
        shape = layout.shapes[number]
        exposure = _Exposure(
            *(block[0].reshape(shape) for block in (images, variances, masks)),
            exposures[number],
            tract,
            zero_points[number],
        )
        # The pieces of a footprint are runs of its rows, and so lie end to end.
        parts = [exposure.warp(layout.footprints[footprint].box) for footprint in members.get(number, ())]
        if not parts:
            return tuple(np.empty(0, array.dtype) for array in outputs)
        return tuple(np.concatenate([plane.ravel() for plane in runs]) for runs in zip(*parts, strict=True))

    reads = tuple(
        Need(array, place=lambda chunk: (layout.exposure_run(chunk),)) for array in layout.exposure_planes()
    )
    pixels = tuple(box_size(layout.table.of_producer(number)) for number in range(len(layout.shapes)))
    return Stage(
        "warp",
        "map",
        layout.exposure_grid,
        reads,
        outputs,
        work,
        {"tract": tract.to_toml(), "zero_points": list(zero_points), "wcs": [ref.wcs for ref in exposures]},
        place={array.name: lambda chunk: layout.table.of_producer(chunk.number) for array in outputs},
        weights=pixels,
        # The exposure without its bad pixels; and the pieces of one exposure before they are joined.
        scratch=15 * max(rows * columns for rows, columns in layout.shapes) + 12 * max(pixels),
        cost=("warp", float(layout.table.offsets[-1])),
    )


class _Exposure:
    """A calibrated exposure, its bad pixels interpolated once for all the boxes it is resampled onto."""

    def __init__(self, image, variance, mask, ref: ExposureRef, tract: Tract, zero_point: float):
        from mpiimg.astro.kernels.warp import interpolate_bad

        self.tract, self.zero_point = tract, zero_point
        if np.isfinite(zero_point):
            self.wcs = parse_wcs(ref.wcs)
            useless = (mask & bits("BAD", "SAT", "NO_DATA")) != 0
            self.image, self.variance, replaced = interpolate_bad(image, variance, useless)
            self.mask = mask | replaced * np.int32(bits("INTRP"))

    def warp(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image, variance and mask on a box of the tract; NO_DATA all over without a zero point."""
        from mpiimg.astro.kernels.warp import STEP
        from mpiimg.astro.kernels.warp import warp as resample

        if not np.isfinite(self.zero_point):
            values = ((np.nan, np.float32), (np.inf, np.float32), (bits("NO_DATA"), np.int32))
            return tuple(np.full(box_shape(box), *value) for value in values)
        grid = source_grid(self.wcs, self.tract.wcs, box, STEP)
        planes = (self.image, self.variance, self.mask)
        return resample(*planes, grid, box, flux_scale(self.zero_point), bits("NO_DATA"))
