"""Warping: each exposure resampled onto the patches that it meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.exposure_files import write_warps
from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.fits.maskplanes import bits, no_data
from mpiimg.astro.fits.writing import history_lines
from mpiimg.astro.photometry.stars import flux_scale
from mpiimg.astro.samples import frame
from mpiimg.astro.sky.layout import WarpPlanes
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.sky.wcs import parse_wcs, shrinkage, source_grid
from mpiimg.astro.survey import Survey, exposure_units
from mpiimg.engine.boxes import Box, box_shape, box_size
from mpiimg.engine.needs import Part, Pieces
from mpiimg.engine.parameters import parameter
from mpiimg.engine.stage import Compute, Files, Stages
from mpiimg.engine.step import Output, Step

#: How exposures are resampled, as HISTORY has it.
WAYS = {"auto": "Lanczos-3, stretched or by area where pixels grow", "lanczos3": "Lanczos-3"}

#: Pixels with these carry no light of the sky, and none is added up from them.
DARK = ("BAD", "NO_DATA", "EDGE")


@dataclass(frozen=True)
class Warping:
    """How exposures are resampled, and what is left of that."""

    resampling: str = parameter(
        "auto",
        "Exposures are resampled by Lanczos-3, which is stretched where pixels become more than 5 % larger, "
        "while light is added up by area where they become more than 4 times as large (auto); or by plain "
        "Lanczos-3 throughout, which loses light there (lanczos3).",
        choices=("auto", "lanczos3"),
    )
    variance: str = parameter(
        "both",
        "Warps and coadds have the variance of each pixel, and that per pixel of light summed over many, "
        "whose noise is correlated (both); or the former alone (pixel).",
        choices=("both", "pixel"),
    )
    warps: bool = parameter(
        False, "Warps are written even where later steps take them, in a folder of their own."
    )


def warping_history(p: Warping) -> tuple[str, ...]:
    """Return the lines of HISTORY of a warp."""
    return history_lines("warp", f"{WAYS[p.resampling]}, flux conserved, to zero point {ZERO_POINT:g}")


def stages(state: Survey, p: Warping, data: None) -> Stages[Survey]:
    """Bring every exposure to the common zero point, on the pixels of the tract."""
    warps = state.layout.warp_planes(variance_ls=p.variance == "both")
    lost = yield warp(state, warps, p)
    return dataclasses.replace(state.without_exposures(lost), warps=warps)


def warp(state: Survey, warps: WarpPlanes, p: Warping) -> Compute:
    """Declare the warp of every exposure; without a zero point it is left out, and holds no data."""
    layout, exposures, tract, points = state.layout, state.exposures, state.tract, state.zero_points

    def work(chunk, *planes):
        number = chunk.number
        pixels = (plane[0] for plane in planes)
        exposure = _Exposure(*pixels, exposures[number], tract, points[number], p.resampling)
        return by_plane([exposure.warp(layout.footprints[part].box) for part in layout.members[number]])

    def by_plane(parts):
        return tuple([planes[k][None] for planes in parts] for k in range(len(warps.arrays)))

    def without(chunk):
        return by_plane(
            [_nothing(box_shape(layout.footprints[part].box)) for part in layout.members[chunk.number]]
        )

    def depends(number):
        boxes = [layout.footprints[part].box for part in layout.members[number]]
        return {"zero_point": points[number], "wcs": exposures[number].wcs, "boxes": boxes}

    return Compute(
        "warp",
        layout.exposure_grid,
        reads=tuple(map(Part, state.pixels)),
        writes=tuple(Pieces(array, layout.warps_of) for array in warps.arrays),
        work=work,
        units=exposure_units(state),
        without=without,
        parameters={"tract": tract.to_toml(), "resampling": p.resampling},
        depends=depends,
        weights=tuple(
            sum(box_size(layout.footprints[part].box) for part in members) for members in layout.members
        ),
        # The exposure without its bad pixels.
        scratch=15 * max(rows * columns for rows, columns in layout.shapes),
        cost=("warp", float(layout.warped_pixels)),
    )


def _nothing(shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return the planes of a warp without data."""
    return (*no_data(shape), np.full(shape, np.inf, np.float32))


class _Exposure:
    """A calibrated exposure, its bad pixels interpolated once for all the boxes it is resampled onto."""

    def __init__(
        self, image, variance, mask, ref: ExposureRef, tract: Tract, zero_point: float, resampling: str
    ):
        from mpiimg.astro.kernels.bad_pixels import interpolate_bad

        self.tract, self.zero_point = tract, zero_point
        if np.isfinite(zero_point):
            self.wcs = parse_wcs(ref.wcs)
            plain = resampling == "lanczos3"
            self.shrink = 1.0 if plain else shrinkage(self.wcs, image.shape, tract.wcs)
            useless = (mask & bits("BAD", "SAT", "NO_DATA")) != 0
            self.image, self.variance, replaced = interpolate_bad(image, variance, useless)
            self.mask = mask | replaced * np.int32(bits("INTRP"))

    def warp(self, box: Box) -> tuple[np.ndarray, ...]:
        """Return all planes on a box of the tract; NO_DATA all over without a zero point."""
        from mpiimg.astro.kernels import warp as kernels
        from mpiimg.astro.kernels.places import NODE_SPACING

        if not np.isfinite(self.zero_point):
            return _nothing(box_shape(box))
        grid = source_grid(self.wcs, self.tract.wcs, box, NODE_SPACING)
        planes = (self.image, self.variance, self.mask)
        bad = bits("NO_DATA"), self.shrink, bits(*DARK)
        return kernels.resample(*planes, grid, box, flux_scale(self.zero_point), *bad)


def _write(state: Survey, p: Warping, folder: Path) -> Files:
    return write_warps(state, folder)


def sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: the warp of a frame; and how many pixels come out."""
    from mpiimg.astro.kernels.places import NODE_SPACING, Nodes
    from mpiimg.astro.kernels.warp import resample

    image, variance, mask = frame()
    side = image.shape[0] - 64
    rows, columns = np.indices((side // NODE_SPACING + 3,) * 2) * float(NODE_SPACING) + 0.4
    nodes = Nodes(columns, rows, 0, 0)
    box = ((NODE_SPACING, side), (NODE_SPACING, side))
    return lambda: resample(image, variance, mask, nodes, box, np.float64(1), 1), (side - NODE_SPACING) ** 2


STEP = Step(
    "warp",
    "Resample calibrated exposures onto the patches of a tract that they meet.",
    takes=("pixels", "zero_points", "tract"),
    gives=("warps",),
    stages=stages,
    parameters=Warping,
    papers=(
        "Lanczos interpolation; WCS papers I and II: Greisen and Calabretta 2002, "
        "doi:10.1051/0004-6361:20021326",
    ),
    outputs=(
        Output(
            "warps",
            _write,
            when="end",
            flag="warps",
            folder="warps",
            without=Survey.without_warps,
            documents=lambda state, p: {"tract.toml": state.tract.to_toml().encode()},
        ),
    ),
    history=warping_history,
    kernels=("mpiimg.astro.kernels.bad_pixels:precompile", "mpiimg.astro.kernels.warp:precompile"),
    rates={"warp": (2.0e-8, "mpiimg.astro.steps.warp:sample")},
    examples=(
        (
            "Calibrated exposures on the patches of a tract around them.",
            "mpiexec -n 8 mpiimg-warp calibrated/*.fits --out warps",
        ),
        (
            "A tract around a place, south of the equator.",
            "mpiimg-warp calibrated/*.fits --center 53.1,-27.8 --pixel-scale 0.263 --out warps",
        ),
    ),
)
