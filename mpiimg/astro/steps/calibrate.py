"""Calibration of exposures: cosmic rays, sky, stars; and the zero points that make exposures agree.

An exposure that cannot be used is left out with its reason, and the others go on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.exposure_files import exposure_table, write_exposures
from mpiimg.astro.fits.exposure import ExposureRef, read_exposure
from mpiimg.astro.fits.maskplanes import bits, no_data
from mpiimg.astro.fits.writing import history_lines
from mpiimg.astro.lengths import MESH_LIMITS, mesh_of, mesh_pixels
from mpiimg.astro.photometry import stars as photometry
from mpiimg.astro.photometry import zero_points
from mpiimg.astro.photometry.overlaps import Catalogue
from mpiimg.astro.samples import frame
from mpiimg.astro.sky.layout import Planes
from mpiimg.astro.sky.wcs import middle_pixel, parse_wcs, to_sky
from mpiimg.astro.survey import EXPOSURE_STATS, Survey, exposure_units, unit_names
from mpiimg.engine.array import Array
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.stage import Compute, Found, Reduce, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput

#: How zero points are found, as a log says it.
WAYS = {
    "CARD": "from cards or --zero-point",
    "REFERENCE": "from --reference",
    "MATCHED": "by stars shared with those",
    "RELATIVE": "relative to each other",
    "NONE": "not found",
}

#: Stars kept of an exposure, the brightest.
MAX_STARS = 500

#: Bytes that the stars of an exposure take when they are compared with others: tables, places, a search tree.
STARS_BYTES = 200 * MAX_STARS

#: Bytes per pixel that reading, searching and measuring take beside the planes that come out.
CALIBRATION_SCRATCH = 30


@dataclass(frozen=True)
class Calibration:
    """How exposures are calibrated."""

    sigclip: float = parameter(
        4.5,
        "A cosmic ray stands out of its surroundings by this much.",
        unit="standard deviations",
        limits=(0.1, 1000),
    )
    sigfrac: float = parameter(
        0.3,
        "Neighbours of a cosmic ray belong to it if they stand out by this share of --sigclip.",
        limits=(0.01, 1),
    )
    objlim: float = parameter(
        5.0, "The least contrast between a cosmic ray and fine structure.", limits=(0.1, 1000)
    )
    cr_iterations: int = parameter(4, "Cosmic rays are looked for so many times.", limits=(1, 100))
    mesh: str = parameter(
        "17arcsec",
        "The sky is measured in meshes of this side, a number of pixels of the exposure, or a length on the "
        "sky as 17arcsec, which is rounded to 8 pixels and has 32 at least.",
        metavar="PIXELS|ARCSEC",
        limits=MESH_LIMITS,
    )
    star_size: str = parameter(
        "fwhm",
        "Stars are measured in apertures of one and of four times their FWHM, or of one and of three times "
        "their half-light diameter.",
        choices=tuple(photometry.SIZES),
    )
    match_radius: float = parameter(
        1.0,
        "Stars of two exposures that are this near to each other are the same.",
        unit="arcsec",
        limits=(0.01, 60),
    )
    reference: str | None = parameter(
        None,
        "A reference catalogue (ra, dec, mag) gives the zero points, whatever cards say.",
        metavar="FILE",
    )
    calibrated: bool = parameter(
        False, "Calibrated exposures are written even where later steps take them, in a folder of their own."
    )

    @property
    def method(self) -> dict[str, object]:
        """Those that say how an exposure is calibrated on its own."""
        names = ("sigclip", "sigfrac", "objlim", "cr_iterations", "mesh", "star_size")
        return {name: getattr(self, name) for name in names}


def calibration_history(p: Calibration) -> tuple[str, ...]:
    """Return the lines of HISTORY of a calibrated exposure."""
    return history_lines(
        "calibrate",
        f"cosmic rays by L.A.Cosmic (sigclip {p.sigclip:g}, sigfrac {p.sigfrac:g}, "
        f"objlim {p.objlim:g}, {p.cr_iterations} iterations); sky in meshes of "
        f"{mesh_of(p.mesh, '--mesh')} subtracted",
    )


def inspect(state: Survey, p: Calibration) -> Inspection:
    """Read the reference catalogue.

    Raises
    ------
    BadInput
        It cannot be read, or zero points are given as well; or the mesh is no length.
    """
    mesh_of(p.mesh, "--mesh")
    if p.reference is None:
        return Inspection()
    if state.options.zero_point is not None:
        raise BadInput("--zero-point and --reference both say where zero points come from: give one of them")
    from mpiimg.astro.catalogue import read_reference

    ra, dec, magnitude = read_reference(Path(p.reference))
    return Inspection(Catalogue(ra, dec, magnitude, np.zeros(len(ra))))


def stages(state: Survey, p: Calibration, reference: Catalogue | None) -> Stages[Survey]:
    """Calibrate each exposure on its own, then find the zero points of all."""
    pixels = state.layout.exposure_planes()
    lost = yield calibrate(state, p, pixels)
    solved = yield solve(state, reference, p.match_radius, lost or {})
    return dataclasses.replace(
        state,
        pixels=pixels,
        usable=solved.usable,
        zero_points=solved.points,
        zero_point_kinds=solved.kinds,
        stats=solved.stats,
        left_out={**state.left_out, **solved.left_out},
    )


# --- Each exposure on its own -----------------------------------------------------------------------------


def calibrate(state: Survey, p: Calibration, pixels: Planes) -> Compute:
    """Declare the calibration of each exposure on its own.

    Written are the planes of exposures without their sky, the stars (ra and dec in degrees, instrumental
    magnitude of the total flux, its error) and the EXPOSURE_STATS.
    """
    frames = state.frames

    def work(chunk):
        ref = frames[chunk.number]
        try:
            return _calibrated(ref, p)
        except BadInput as error:
            named = any(name in str(error) for name in (ref.name, str(ref.image.path)))
            raise error if named else BadInput(f"{ref.image.path}: {error}") from None

    sizes = tuple(rows * columns for rows, columns in state.layout.shapes)
    return Compute(
        "calibrate",
        state.layout.exposure_grid,
        writes=(*pixels, *_tables(len(frames))),
        work=work,
        parameters=p.method,
        # What a count is worth enters when all is calibrated.
        depends=lambda number: {"exposure": repr(dataclasses.replace(frames[number], magzero=None))},
        units=exposure_units(state, kept=True),
        without=lambda chunk: _left_out(frames[chunk.number]),
        weights=sizes,
        scratch=CALIBRATION_SCRATCH * max(sizes),
        cost=("calibrate", float(sum(sizes))),
    )


def _tables(count: int) -> tuple[Array, Array]:
    return (
        Array("stars", "esc", (count, MAX_STARS, 4), "float64"),
        Array("stats", "ef", (count, len(EXPOSURE_STATS)), "float64"),
    )


def _calibrated(ref: ExposureRef, p: Calibration):
    from mpiimg.astro.kernels.cosmics import detect_cosmics

    exposure = read_exposure(ref)
    image, variance, mask = exposure.image, exposure.variance, exposure.mask
    useless = (mask & bits("BAD", "SAT", "NO_DATA")) != 0
    struck, image = detect_cosmics(
        image,
        mask=useless,
        variance=variance,
        gain=1.0,
        readnoise=0.0,
        satlevel=float(ref.saturate) if ref.saturate is not None else np.inf,
        sigclip=p.sigclip,
        sigfrac=p.sigfrac,
        objlim=p.objlim,
        iterations=p.cr_iterations,
    )
    mask[struck] |= bits("CR", "INTRP")
    # Edges glow, and no coadd takes them.
    unknown = struck | ((mask & bits("BAD", "NO_DATA", "EDGE")) != 0)
    mesh = mesh_pixels(mesh_of(p.mesh, "--mesh"), middle_pixel(parse_wcs(ref.wcs), ref.shape))
    settings = photometry.StarSettings(size=p.star_size, large=photometry.SIZES[p.star_size])
    saturated = (mask & bits("SAT")) != 0
    sky, measured = photometry.measure_frame(image, variance, unknown, saturated, settings, mesh)
    image -= sky.map
    stars, number = _star_table(measured, ref)
    cosmic_rays = np.count_nonzero(struck)
    widths = measured.fwhm, measured.half_light_diameter
    stats = (0.0, sky.level, sky.noise, *widths, measured.correction, cosmic_rays, number)
    return image[None], variance[None], mask[None], stars[None], np.array([stats])


def _star_table(measured: photometry.FrameStars, ref: ExposureRef):
    """Return the brightest isolated stars, (MAX_STARS, 4), NaN behind the last; and how many they are."""
    stars = measured.stars
    flux, error, correction = stars.flux, stars.flux_error, measured.correction
    if not np.isfinite(correction):
        # Too few stars tell what the small aperture loses. The large one, for more noise, loses nothing.
        flux, error, correction = stars.large_flux, stars.large_flux_error, 1.0
    chosen = np.flatnonzero(stars.isolated & np.isfinite(flux) & (flux > 0))
    order = np.argsort(-flux[chosen], kind="stable")[:MAX_STARS]
    chosen = np.sort(chosen[order])
    table = np.full((MAX_STARS, 4), np.nan)
    magnitude, error = photometry.star_magnitudes(flux[chosen], error[chosen], correction)
    ra, dec = to_sky(parse_wcs(ref.wcs), stars.x[chosen], stars.y[chosen])
    table[: len(chosen)] = np.stack([ra, dec, magnitude, error], axis=1)
    return table, len(chosen)


def _left_out(ref: ExposureRef):
    """Return what stands for an exposure that failed."""
    stats = np.full((1, len(EXPOSURE_STATS)), np.nan)
    stats[0, 0] = 1.0
    stars = np.full((1, MAX_STARS, 4), np.nan)
    return (*no_data((1, *ref.shape)), stars, stats)


# --- Zero points ------------------------------------------------------------------------------------------


class Solved(NamedTuple):
    """What all exposures came to: in their order, and by name why some were left out."""

    points: tuple[float, ...]  # magnitudes; NaN where there is none
    kinds: tuple[str, ...]  # of WAYS
    usable: tuple[bool, ...]
    stats: tuple[tuple[float, ...], ...]  # EXPOSURE_STATS
    left_out: dict[str, str]


def solve(
    state: Survey, reference: Catalogue | None, radius: float, lost: Mapping[int, str] = MappingProxyType({})
) -> Reduce[Solved]:
    """Find every exposure's zero point, as :func:`mpiimg.astro.photometry.zero_points.find_zero_points` does.

    One bad exposure ends the run if the state is strict, and so do as many as there are.

    Parameters
    ----------
    state : Survey
    reference : Catalogue, optional
    radius : float
        Of matches, arcseconds.
    lost : mapping of int to str
        The exposures that could not be calibrated, and why.
    """
    exposures, count = state.exposures, len(state.exposures)
    arrays = _tables(count)

    def partial(chunk, stars, stats):
        return np.concatenate([stats[0], stars.ravel()])

    def finish(rows):
        stats = rows[:, : len(EXPOSURE_STATS)]
        tables = rows[:, len(EXPOSURE_STATS) :].reshape(count, MAX_STARS, 4)
        reasons = dict(lost)
        points, kinds = _zero_points(exposures, tables, reasons, reference, radius)
        for i in np.flatnonzero(~np.isfinite(points)).tolist():
            reasons.setdefault(i, _without_zero_point(exposures, i, kinds, reference is not None))
        if reasons and (state.strict or len(reasons) == count):
            raise BadInput(reasons[min(reasons)])
        new = {i: reason for i, reason in sorted(reasons.items()) if i not in lost}
        warnings = [f"left out: {reason}" for reason in new.values()]
        if "RELATIVE" in kinds:
            warnings.append("zero points are relative, from overlaps: magnitudes have no absolute scale")
        names = unit_names(exposures)
        left_out = {names[i]: reason for i, reason in sorted(reasons.items())}
        usable = tuple(number not in reasons for number in range(count))
        measured = tuple(map(tuple, stats.tolist()))
        solved = Solved(tuple(points.tolist()), tuple(kinds), usable, measured, left_out)
        notes = _notes(exposures, kinds, reference is not None)
        return Found(solved, tuple(warnings), tuple(notes), left_out)

    unknown = (float("nan"),) * len(EXPOSURE_STATS)
    return Reduce(
        "zero-points",
        state.layout.exposure_grid,
        reads=tuple(map(Part, arrays)),
        work=partial,
        row=((len(EXPOSURE_STATS) + 4 * MAX_STARS,), "float64"),
        finish=finish,
        finish_bytes=_solve_bytes(exposures, reference is not None),
        parameters={"radius": radius, "reference": reference is not None},
        expected=Solved((ZERO_POINT,) * count, ("NONE",) * count, (True,) * count, (unknown,) * count, {}),
    )


def _solve_bytes(exposures: Sequence[ExposureRef], by_reference: bool) -> int:
    """Return the bytes that finding the zero points takes: stars of a band, and what is solved for."""
    most = 0
    for band, count in Counter(ref.band for ref in exposures).items():
        known = not by_reference and all(ref.magzero is not None for ref in exposures if ref.band == band)
        most = max(most, count * STARS_BYTES + (0 if known else zero_points.solve_bytes(count)))
    return most


def _zero_points(
    exposures: Sequence[ExposureRef],
    tables: np.ndarray,
    reasons: Mapping[int, str],
    reference: Catalogue | None,
    radius: float,
) -> tuple[np.ndarray, list[str]]:
    """Return the zero point of each exposure (NaN where there is none), and how it was found."""
    points = np.full(len(exposures), np.nan)
    kinds = ["NONE"] * len(exposures)
    for band in sorted({ref.band for ref in exposures}):
        members = [i for i, ref in enumerate(exposures) if ref.band == band and i not in reasons]
        if not members:
            continue
        catalogues, cards = [_catalogue(tables[i]) for i in members], [exposures[i].magzero for i in members]
        solution = zero_points.find_zero_points(catalogues, cards, reference, radius)
        for i, value, kind in zip(members, *solution, strict=True):
            points[i], kinds[i] = value, kind
    return points, kinds


def _catalogue(table: np.ndarray) -> Catalogue:
    whole = table[np.isfinite(table).all(axis=1)]
    return Catalogue(*np.ascontiguousarray(whole.T))


def _without_zero_point(
    exposures: Sequence[ExposureRef], number: int, kinds: Sequence[str], by_reference: bool
) -> str:
    """Say why an exposure has no zero point."""
    ref = exposures[number]
    absolute = any(kinds[i] != "NONE" for i, other in enumerate(exposures) if other.band == ref.band)
    lacks = "the reference catalogue" if by_reference else "other exposures"
    if absolute:
        lacks = ("the reference catalogue, or with " if by_reference else "") + (
            "exposures that have a zero point"
        )
    card = "" if by_reference else "no MAGZERO card and "
    return f"{ref.name}: no zero point: {card}too few stars in common with {lacks}; give --zero-point"


def _notes(exposures: Sequence[ExposureRef], kinds: Sequence[str], by_reference: bool) -> list[str]:
    """Say, band by band, how many zero points were found in which way."""
    notes = []
    for band in sorted({ref.band for ref in exposures}):
        members = [i for i, ref in enumerate(exposures) if ref.band == band]
        counts = Counter(kinds[i] for i in members)
        ways = ", ".join(f"{counts[kind]} {text}" for kind, text in WAYS.items() if counts[kind])
        unused = by_reference and any(exposures[i].magzero is not None for i in members)
        notes.append(f"zero points in {band}: {ways}{'; cards are not used' if unused else ''}")
    return notes


# --- Declaration ------------------------------------------------------------------------------------------


def sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: cosmic rays, sky and stars of a frame; and how many pixels it has."""
    from mpiimg.astro.kernels.cosmics import detect_cosmics

    image, variance, mask = frame()
    nothing = mask != 0

    def work():
        struck, clean = detect_cosmics(
            image, mask=nothing, variance=variance, gain=1.0, readnoise=0.0, satlevel=np.inf
        )
        photometry.measure_frame(clean, variance, struck, nothing)

    return work, image.size


STEP = Step(
    "calibrate",
    "Calibrate exposures: cosmic rays repaired, sky subtracted, stars measured, zero points found.",
    takes=("frames",),
    gives=("pixels", "zero_points"),
    stages=stages,
    parameters=Calibration,
    papers=(
        "L.A.Cosmic: van Dokkum 2001, doi:10.1086/323894; background and photometry: Bertin and Arnouts "
        "1996, doi:10.1051/aas:1996164",
    ),
    inspect=inspect,
    outputs=(
        Output(
            "pixels",
            lambda state, p, folder: write_exposures(state, folder),
            when="end",
            flag="calibrated",
            without=Survey.without_exposures,
            folder="calibrated",
        ),
        Output(
            "zero_points",
            lambda state, p, folder: None,
            documents=lambda state, p: {"exposures.ecsv": exposure_table(state)},
        ),
    ),
    history=calibration_history,
    kernels=("mpiimg.astro.kernels.cosmics:precompile", "mpiimg.astro.kernels.robust:precompile"),
    rates={"calibrate": (1.5e-7, "mpiimg.astro.steps.calibrate:sample")},
)
