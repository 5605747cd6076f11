"""The sources of each patch as rows of the catalogue, and all of them laid end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mpiimg.astro import catalogue
from mpiimg.astro.band_stages import (
    DETECTION_SCRATCH,
    ONE_BAND,
    USELESS,
    Bands,
    bad_and_sky,
    median_profiles,
    siblings,
)
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.photometry import apertures, point_sources, seams
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.photometry.combined import blurred, combined, matching_blur
from mpiimg.astro.photometry.cores import flag_cores
from mpiimg.astro.photometry.profiles import Moffat
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.survey import PATCH_STATS, Survey, patch_units
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import box_shape, box_size
from mpiimg.engine.needs import At, Part, Pieces
from mpiimg.engine.stage import Compute, Found, Reduce

#: A patch keeps one source in so many pixels when first gone through; with more it is gone through again.
PIXELS_PER_SOURCE = 200

#: One source in so many pixels is what plans reckon with before any has been found: no run is refused for
#: sources that it may not find.
USUAL_PIXELS_PER_SOURCE = 4000

#: In a segmentation: pixels of a source whose centre another patch has.
ELSEWHERE = -1


# --- Patch by patch ---------------------------------------------------------------------------------------


class _Detected(NamedTuple):
    """Sources of a patch, its PATCH_STATS, and its maps, (rows, columns)."""

    table: np.ndarray
    stats: tuple[float, ...]
    segmentation: np.ndarray
    background: np.ndarray

    @property
    def stars(self) -> Moffat:
        """The profile of its stars."""
        first = PATCH_STATS.index("fwhm")
        return Moffat(*self.stats[first : first + len(Moffat._fields)])


def capacity(layout: Layout) -> int:
    """Return how many sources a patch keeps when it is first gone through."""
    pixels = max((box_size(patch.outer) for patch in layout.patches), default=0)
    return -(-pixels // PIXELS_PER_SOURCE)


def expected_counts(layout: Layout) -> tuple[int, ...]:
    """Return how many sources plans reckon with in each patch."""
    return tuple(-(-box_size(patch.outer) // USUAL_PIXELS_PER_SOURCE) for patch in layout.patches)


def stats_array(layout: Layout) -> Array:
    """Return the array of the PATCH_STATS of every patch."""
    return Array("patch-stats", "pf", (len(layout.patches), len(PATCH_STATS)), "float64")


def rows_array(counts: Sequence[int]) -> Array:
    """Return the array of the rows of all patches, one patch after the other, as bytes."""
    return Array("catalogue-rows", "r", (sum(counts) * catalogue.ROW_TYPE.itemsize,), "uint8")


def _sources_array(layout: Layout) -> Array:
    width = capacity(layout) * catalogue.ROW_TYPE.itemsize
    return Array("sources", "pr", (len(layout.patches), width), "uint8")


def measure_seeing(state: Survey, how: detection.DetectionSettings, bands: Bands) -> Reduce[dict[str, float]]:
    """Find the Gaussian that brings stars of each band to the worst seeing of all: its deviation, pixels."""
    layout = state.layout
    alone = replace(bands, significance=None, blurs={})

    def work(chunk, *planes):
        if chunk.number in state.lost_patches:
            return np.nan, np.nan
        return _detected(layout.patches[chunk.number], chunk.number, planes, how, alone).stars

    def finish(rows):
        profiles, radius = median_profiles(layout.patches, rows), how.radii[0]
        known = {band: profile for band, profile in profiles.items() if np.isfinite(profile.fwhm)}
        worst = max(known.values(), key=lambda profile: profile.beyond(radius), default=None)
        blurs = {band: matching_blur(profile, worst, radius) for band, profile in known.items()}
        blurs = {band: blur for band, blur in blurs.items() if blur > 0}
        warnings = [
            f"in {band} no patch has stars that agree on the seeing: it is not brought to that of the others"
            for band in profiles.keys() - known.keys()
        ]
        notes = [
            f"in {band} stars of {known[band].fwhm:.2f} pixels are brought to those of {worst.fwhm:.2f}"
            for band in blurs
        ]
        return Found(blurs, tuple(sorted(warnings)), tuple(notes))

    sizes = tuple(box_size(patch.outer) for patch in layout.patches)
    return Reduce(
        "seeing",
        layout.patch_grid,
        reads=tuple(map(Part, state.patches.arrays)),
        work=work,
        row=((2,), "float64"),
        finish=finish,
        units=patch_units(state),
        without=np.full(2, np.nan),
        parameters={**vars(how), **alone.method, "lost": sorted(state.lost_patches)},
        weights=sizes,
        scratch=DETECTION_SCRATCH * max(sizes, default=0),
        expected=dict.fromkeys(sorted({patch.band for patch in layout.patches}), 1.0),
        cost=("detect", float(sum(sizes))),
    )


def detect(state: Survey, how: detection.DetectionSettings, bands: Bands = ONE_BAND) -> Compute:
    """Declare detection: sources centred in the inner box of each patch, as rows of the catalogue.

    A patch with more sources than :func:`capacity` leaves their number alone; :func:`gather_rows` finds them.

    Parameters
    ----------
    state : Survey
        `maps` are the arrays of those DETECTION_MAPS that are asked for.
    how : DetectionSettings
    bands : Bands
    """
    layout, maps = state.layout, state.maps
    sources = _sources_array(layout)
    names = [array.name.rpartition("-")[2] for array in state.maps]

    def without(chunk):
        shape = (1, *box_shape(layout.patches[chunk.number].outer))
        stats = np.array([[0.0, *(np.nan for _ in PATCH_STATS[1:])]])
        return (
            np.zeros((1, sources.shape[1]), np.uint8),
            stats,
            *(np.zeros(shape, one.dtype) for one in maps),
        )

    def work(chunk, *planes):
        if chunk.number in state.lost_patches:
            return without(chunk)
        detected = _detected(layout.patches[chunk.number], chunk.number, planes, how, bands)
        row = np.zeros((1, sources.shape[1]), np.uint8)
        if len(detected.table) <= capacity(layout):
            data = detected.table.tobytes()
            row[0, : len(data)] = np.frombuffer(data, np.uint8)
        return (row, np.array([detected.stats]), *(getattr(detected, name)[None] for name in names))

    sizes = tuple(box_size(patch.outer) for patch in layout.patches)
    return Compute(
        "detect",
        layout.patch_grid,
        reads=(*map(Part, state.patches.arrays), *_of_siblings(state, bands, lambda number: True)),
        writes=(sources, state.patch_stats, *state.maps),
        work=work,
        units=patch_units(state),
        without=without,
        parameters={**vars(how), **bands.method, "maps": names, "lost": sorted(state.lost_patches)},
        weights=sizes,
        scratch=DETECTION_SCRATCH * max(sizes, default=0),
        cost=("detect", float(sum(sizes))),
    )


def _of_siblings(state: Survey, bands: Bands, wanted: Callable[[int], bool]) -> tuple[Pieces, ...]:
    """Return what the chunks of patches that are wanted read of all bands at their places."""
    array = bands.significance
    if array is None:
        return ()
    return (
        Pieces(
            array,
            lambda chunk: (
                [array.item(number) for number in siblings(state, chunk.number)]
                if wanted(chunk.number)
                else []
            ),
        ),
    )


def _detected(
    patch: Patch,
    number: int,
    planes: Sequence[np.ndarray],
    how: detection.DetectionSettings,
    bands: Bands = ONE_BAND,
) -> _Detected:
    """Find and measure the sources of a patch, from its planes, (1, rows, columns) each.

    Where sources are found on all bands together, a list of their significances comes last.
    """
    together, ratio = None, bands.ratios.get(patch.band, 1.0)
    if bands.significance is not None:
        *planes, significances = planes
        together = combined([one[0] for one in significances], how.threshold, bands.way)
    image, variance, mask, nimage = (plane[0] for plane in planes[:4])
    variance_ls = planes[4][0] if len(planes) > 4 else None
    origin = (patch.outer[0][0], patch.outer[1][0])
    bad, sky = bad_and_sky(patch, image, variance, mask, how)
    if patch.band in bands.blurs:
        image = sky + blurred(image - sky, bad, bands.blurs[patch.band])
    table, segmentation = detection.find_sources(
        image, variance, mask, nimage, sky, origin, bits(*USELESS), how, ratio, variance_ls, together
    )
    noise = variance if variance_ls is None else np.where(np.isfinite(variance_ls), variance_ls, variance)
    correction = apertures.noise_correction(image - sky, noise, bad, segmentation, how.radii[0])
    if np.isfinite(correction):
        table = apertures.scale_errors(table, correction)
    faint = apertures.FAINT if how.neighbours == "symmetric" else 0.0
    loss = apertures.aperture_correction(table, bits("SAT"), how.radii[1], faint)
    table = apertures.add_magnitudes(table, loss if np.isfinite(loss) else 1.0)
    stars = point_sources.isolated_stars(table, bits("SAT"), how.radii[1])
    table["star_galaxy"] = point_sources.star_galaxy(table, stars)
    profile, ratio = point_sources.seeing(image - sky, bad, table, origin, stars)
    if how.widths == "profile" and np.isfinite(ratio):
        table["fwhm"] *= np.float32(ratio)
    table = flag_cores(table, mask, origin, bits("REJECTED"), profile.fwhm)
    # Until they are numbered, sources go by their labels in the segmentation.
    table["id"] = np.arange(1, len(table) + 1)
    labels = np.full(len(table) + 1, ELSEWHERE, np.int32)
    table = seams.keep_inner(table, patch.inner)
    labels[0], labels[table["id"]] = 0, np.arange(1, len(table) + 1)
    table = seams.number(table, number, patch.name, patch.band)
    stats = (len(table), correction, np.median(sky), *profile)
    return _Detected(table, stats, labels[segmentation], sky)


# --- All patches ------------------------------------------------------------------------------------------


def count_sources(state: Survey) -> Reduce[tuple[int, ...]]:
    """Tell how many sources each patch has, and warn where there is none at all."""

    def finish(rows):
        counts, measured = rows.T
        warnings = () if counts.any() else (_empty(bool(measured.any()), state.calibrated),)
        return Found(tuple(counts.astype(int).tolist()), warnings)

    return Reduce(
        "count-sources",
        state.layout.patch_grid,
        reads=(Part(state.patch_stats),),
        # Without data the background is 0, and its noise that of VARIANCE.
        work=lambda chunk, stats: np.array([stats[0, 0], stats[0, 1] != 1 or stats[0, 2] != 0]),
        row=((2,), "float64"),
        finish=finish,
        expected=expected_counts(state.layout),
    )


def _empty(has_data: bool, calibrated: bool) -> str:
    """Say why a catalogue has no rows."""
    if has_data:
        return "the catalogue is empty: nothing is above --threshold"
    why = "; exposures.ecsv has the share of each exposure that is without (no_data)" if calibrated else ""
    return f"the catalogue is empty: the coadds hold no data{why}"


def gather_rows(state: Survey, how: detection.DetectionSettings, bands: Bands = ONE_BAND) -> Compute:
    """Lay the sources of all patches end to end, with their places on the sky.

    A patch in which more were found than it keeps is gone through again, now that their number is known.

    Parameters
    ----------
    state : Survey
        With the number of sources of each patch.
    how, bands
        As in :func:`detect`.
    """
    layout, tract, counts = state.layout, state.tract, state.source_counts
    size = catalogue.ROW_TYPE.itemsize
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()
    crowded = {number for number, count in enumerate(counts) if count > capacity(layout)}

    def kept(chunk):
        number = chunk.number
        return None if number in crowded else ((number, number + 1), (0, counts[number] * size))

    def own_rows(chunk):
        return ((starts[chunk.number] * size, starts[chunk.number + 1] * size),)

    def planes_of(array):
        return At(array, lambda chunk: array.item(chunk.number) if chunk.number in crowded else None)

    def work(chunk, row, *planes):
        if chunk.number in crowded:
            table = _detected(layout.patches[chunk.number], chunk.number, planes, how, bands).table
        else:
            table = np.frombuffer(row.tobytes(), catalogue.ROW_TYPE)
        return (np.frombuffer(seams.locate(table, tract.wcs).tobytes(), np.uint8),)

    return Compute(
        "catalogue-rows",
        layout.patch_grid,
        reads=(
            At(_sources_array(layout), kept),
            *map(planes_of, state.patches.arrays),
            *_of_siblings(state, bands, crowded.__contains__),
        ),
        writes=(At(state.catalogue, own_rows),),
        work=work,
        units=patch_units(state),
        without=lambda chunk: (np.zeros(counts[chunk.number] * size, np.uint8),),
        parameters={"tract": tract.to_toml(), "counts": list(counts)},
    )
