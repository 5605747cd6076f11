"""Artifacts in the stages of a coadd: exposures compared tile by tile, and what is left out of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from mpiimg.astro.comparison import WARP_STATS, Matching, artifacts_of, compare_tile
from mpiimg.astro.exposure_warnings import listed
from mpiimg.astro.samples import frame
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.sky.tiles import MIN_HALO, Tile, Tiling
from mpiimg.astro.survey import Survey, footprint_units, lost_footprints, patch_unit_names, unit_names
from mpiimg.engine.array import Array, Ragged
from mpiimg.engine.boxes import box_shape, box_size, box_slices
from mpiimg.engine.containment import Units
from mpiimg.engine.needs import Part, Pieces
from mpiimg.engine.stage import Compute, Found, Reduce, Stages

#: Bytes per pixel of a warp that groups and trails take beside it.
GROUP_SCRATCH = 6


def find_artifacts(
    state: Survey, fwhm: Sequence[float], weights: Sequence[float]
) -> Stages[tuple[Ragged, Survey]]:
    """Find which pixels of the warps are artifacts.

    Parameters
    ----------
    state : Survey
    fwhm : sequence of float
        Of each footprint, in pixels of the tract; NaN where it is not known.
    weights : sequence of float
        Of each footprint: 1 / the variance of its sky, 0 where it is in no coadd.

    Returns
    -------
    artifacts : Ragged
        "fyx" uint8: STANDS_OUT and ON_TRAIL of :mod:`mpiimg.astro.kernels.rejections`.
    state : Survey
        Without the patches on which that failed.
    """
    layout = state.layout
    lost = lost_footprints(state) | {number for number, weight in enumerate(weights) if not weight > 0}
    members = _members(layout, lost)
    matchings = [Matching.of([fwhm[number] for number in numbers]) for numbers in members]
    tiling = Tiling(layout, max((MIN_HALO, *(one.halo for one in matchings))))
    failed = yield compare(state, tiling, members, matchings, weights)
    state = state.without_patches({tiling.tiles[n].patch: reason for n, reason in (failed or {}).items()})
    failed = yield reject(state, tiling, matchings, fwhm)
    state = state.without_patches(
        {layout.footprints[n].patch: reason for n, reason in (failed or {}).items()}
    )
    yield report(state, fwhm, lost)
    return artifacts_array(layout), state


# --- Arrays -----------------------------------------------------------------------------------------------


def artifacts_array(layout: Layout) -> Ragged:
    """Return the array of what is left out of each warp."""
    return Tiling(layout).codes("warp-artifacts")


def _compared_arrays(tiling: Tiling) -> tuple[Ragged, Ragged]:
    return tiling.codes("warp-codes"), tiling.binned("warp-bins")


def _stats_array(layout: Layout) -> Array:
    return Array("warp-stats", "fs", (len(layout.footprints), len(WARP_STATS)), "float64")


def _members(layout: Layout, lost: Collection[int]) -> list[list[int]]:
    """Return the numbers of the footprints of each patch, but for those that are lost."""
    return [[number for number in numbers if number not in lost] for numbers in layout.inputs]


# --- Stages -----------------------------------------------------------------------------------------------


def compare(
    state: Survey,
    tiling: Tiling,
    members: Sequence[Sequence[int]],
    matchings: Sequence[Matching],
    weights: Sequence[float],
) -> Compute:
    """Declare the comparison of the exposures of every tile."""
    layout = state.layout
    codes, bins = _compared_arrays(tiling)
    orders = [{number: place for place, number in enumerate(numbers)} for numbers in members]

    def work(chunk, images, masks):
        tile = tiling.tiles[chunk.number]
        order = orders[tile.patch]
        chosen = [k for k, number in enumerate(tile.footprints) if number in order]
        numbers = [tile.footprints[k] for k in chosen]
        compared = compare_tile(
            tile.box,
            tile.around,
            [tile.reads[k] for k in chosen],
            [images[k][0] for k in chosen],
            [masks[k][0] for k in chosen],
            [1 / weights[number] for number in numbers],
            matchings[tile.patch].of_some([order[number] for number in numbers]),
        )
        planes = dict(zip(numbers, zip(*compared, strict=True), strict=True))
        return _cut(tiling, tile, planes)

    return Compute(
        "compare",
        tiling.grid,
        reads=tuple(Pieces(array, tiling.reads) for array in (state.warps.image, state.warps.mask)),
        writes=(Pieces(codes, tiling.writes), Pieces(bins, tiling.bin_writes)),
        work=work,
        units=tile_units(state, tiling),
        without=lambda chunk: _cut(tiling, tiling.tiles[chunk.number], {}),
        parameters={
            "halo": tiling.halo,
            "members": [list(numbers) for numbers in members],
            "sigmas": [list(one.sigmas) for one in matchings],
            "targets": [one.target for one in matchings],
            "wings": [list(one.wings) for one in matchings],
            "weights": list(weights),
        },
        weights=tiling.weights,
        scratch=2 * tiling.stack_bytes,
        cost=("compare", float(layout.warped_pixels)),
    )


def tile_units(state: Survey, tiling: Tiling) -> Units:
    """Return the units of a stage with a chunk per tile: the patches."""
    names = patch_unit_names(state.layout)
    return Units(lambda number: names[tiling.tiles[number].patch], len(names), "patch", state.strict)


def _cut(tiling: Tiling, tile: Tile, planes: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> tuple:
    """Return what belongs to each warp of what was found on a tile; nothing of those that are not there."""
    codes, bins = [], []
    for number, box in zip(tile.footprints, tile.writes, strict=True):
        if not box_size(box):
            continue
        own = tiling.bins(number, box)
        if number not in planes:
            codes.append(np.zeros((1, *box_shape(box)), np.uint8))
            bins.append(np.zeros((1, *box_shape(own)), np.float32))
            continue
        found, left = planes[number]
        codes.append(found[box_slices(box, tile.box)][None])
        bins.append(left[box_slices(own, tiling.bins(number, tile.box))][None])
    return codes, bins


def reject(state: Survey, tiling: Tiling, matchings: Sequence[Matching], fwhm: Sequence[float]) -> Compute:
    """Declare what is left out of every warp: hits that hang together, and trails in what is left."""
    layout = state.layout
    stats = _stats_array(layout)

    def work(chunk, codes, bins):
        footprint = layout.footprints[chunk.number]
        width = fwhm[chunk.number]
        width = width if np.isfinite(width) else matchings[footprint.patch].target
        corner = tiling.bin_corner(chunk.number)
        pixels, numbers = artifacts_of(codes[0], bins[0], corner, width)
        return pixels[None], np.array([numbers])

    def without(chunk):
        shape = box_shape(layout.footprints[chunk.number].box)
        return np.zeros((1, *shape), np.uint8), np.zeros((1, len(WARP_STATS)))

    sizes = tuple(box_size(footprint.box) for footprint in layout.footprints)
    return Compute(
        "reject",
        layout.footprint_grid,
        reads=tuple(map(Part, _compared_arrays(tiling))),
        writes=(artifacts_array(layout), stats),
        work=work,
        units=footprint_units(state),
        without=without,
        parameters={"fwhm": list(fwhm), "targets": [one.target for one in matchings]},
        weights=sizes,
        scratch=GROUP_SCRATCH * max(sizes, default=0),
        cost=("reject", float(layout.warped_pixels)),
    )


def report(state: Survey, fwhm: Sequence[float], lost: Collection[int]) -> Reduce[None]:
    """Say which exposures could not be compared, or only by a guess, and which differ in too much."""
    layout = state.layout
    names = unit_names(state.exposures)

    def finish(rows):
        stats = rows.reshape(-1, len(WARP_STATS))
        warnings = []
        used = [n for n in range(len(layout.footprints)) if n not in lost]
        unknown = {layout.footprints[n].exposure for n in used if not np.isfinite(fwhm[n])}
        if unknown:
            known = len({layout.footprints[n].exposure for n in used}) - len(unknown)
            taken = "the median of the others is taken" if known else "none is matched to another's"
            first = listed([names[number] for number in sorted(unknown)], 1)
            warnings.append(f"{first}: no FWHM is known (calibrate measures it): {taken}")
        for number in np.flatnonzero(stats[:, WARP_STATS.index("spared")]).tolist():
            footprint, row = layout.footprints[number], stats[number]
            warnings.append(
                f"{names[footprint.exposure]} differs from the others in {100 * row[0] / row[1]:.0f} % of "
                f"{layout.patches[footprint.patch].name}: nothing of it is rejected there; look at it, or "
                "leave it out"
            )
        return Found(None, tuple(warnings))

    return Reduce(
        "rejections",
        layout.footprint_grid,
        reads=(Part(_stats_array(layout)),),
        work=lambda chunk, stats: stats[0],
        row=((len(WARP_STATS),), "float64"),
        finish=finish,
        parameters={
            "unknown": [n for n, value in enumerate(fwhm) if not np.isfinite(value)],
            "lost": sorted(lost),
        },
    )


def sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: six exposures compared; and how many pixels they have."""
    image, variance, mask = (plane[:256, :256] for plane in frame())
    box = ((0, 256), (0, 256))
    planes = [box] * 6, [image] * 6, [mask] * 6, [float(variance[0, 0])] * 6
    return lambda: compare_tile(box, box, *planes, Matching.of([3.0, 3.5, 4.0] * 2)), 6 * image.size


def rejection_sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: the artifacts of an exposure; and how many pixels it has."""
    image, _, _ = frame()
    codes = np.where(image > 2000, np.uint8(7), np.uint8(6))
    bins = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)
    return lambda: artifacts_of(codes, bins, (0, 0), 4.0), image.size
