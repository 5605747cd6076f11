"""The zero points that make calibrated exposures agree, as a stage: from what all of them measured.

An exposure that has none is left out with its reason, and the others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.exposure_warnings import exposure_notes, exposure_warnings
from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.photometry import zero_points
from mpiimg.astro.photometry.overlaps import Catalogue
from mpiimg.astro.photometry.residuals import (
    NO_RESIDUALS,
    Residuals,
    by_exposure,
    compare_stars,
    residual_bytes,
    rows_of_band,
)
from mpiimg.astro.reference import digest
from mpiimg.astro.survey import EXPOSURE_STATS, Survey, unit_names
from mpiimg.engine.array import Array
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Found, Reduce
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


def star_tables(count: int) -> tuple[Array, Array]:
    """Return the arrays of the stars of so many exposures, and of their EXPOSURE_STATS."""
    return (
        Array("stars", "esc", (count, MAX_STARS, 4), "float64"),
        Array("stats", "ef", (count, len(EXPOSURE_STATS)), "float64"),
    )


class Solved(NamedTuple):
    """What all exposures came to: in their order, and by name why some were left out."""

    points: tuple[float, ...]  # magnitudes; NaN where there is none
    kinds: tuple[str, ...]  # of WAYS
    usable: tuple[bool, ...]
    stats: tuple[tuple[float, ...], ...]  # EXPOSURE_STATS
    left_out: dict[str, str]
    residuals: Residuals = NO_RESIDUALS


def solve(
    state: Survey,
    references: Mapping[str, Catalogue] | None,
    radius: float,
    lost: Mapping[int, str] = MappingProxyType({}),
) -> Reduce[Solved]:
    """Find every exposure's zero point, as :func:`mpiimg.astro.photometry.zero_points.find_zero_points` does.

    One bad exposure ends the run if the state is strict, and so do as many as there are.

    Parameters
    ----------
    state : Survey
    references : mapping of str to Catalogue, optional
        Of each band.
    radius : float
        Of matches, arcseconds.
    lost : mapping of int to str
        The exposures that could not be calibrated, and why.
    """
    exposures, count = state.exposures, len(state.exposures)
    arrays = star_tables(count)

    def partial(chunk, stars, stats):
        return np.concatenate([stats[0], stars.ravel()])

    def finish(rows):
        stats = rows[:, : len(EXPOSURE_STATS)]
        tables = rows[:, len(EXPOSURE_STATS) :].reshape(count, MAX_STARS, 4)
        reasons = dict(lost)
        points, kinds = _zero_points(exposures, tables, reasons, references, radius)
        for i in np.flatnonzero(~np.isfinite(points)).tolist():
            reasons.setdefault(i, _without_zero_point(exposures, i, kinds, references is not None))
        if reasons and (state.strict or len(reasons) == count):
            raise BadInput(reasons[min(reasons)])
        new = {i: reason for i, reason in sorted(reasons.items()) if i not in lost}
        warnings = [f"left out: {reason}" for reason in new.values()]
        warnings += exposure_warnings(exposures, stats)
        if "RELATIVE" in kinds:
            warnings.append(
                "zero points are relative, from overlaps, or 27 of an exposure alone: magnitudes have no "
                "absolute scale; --zero-point or --reference gives one"
            )
        names = unit_names(exposures)
        left_out = {names[i]: reason for i, reason in sorted(reasons.items())}
        usable = tuple(number not in reasons for number in range(count))
        measured = tuple(map(tuple, stats.tolist()))
        compared = _residuals(exposures, tables, points, references, radius)
        solved = Solved(tuple(points.tolist()), tuple(kinds), usable, measured, left_out, compared)
        notes = _notes(exposures, kinds, references is not None) + exposure_notes(exposures, stats)
        return Found(solved, tuple(warnings), tuple(notes), left_out)

    unknown = (float("nan"),) * len(EXPOSURE_STATS)
    return Reduce(
        "zero-points",
        state.layout.exposure_grid,
        reads=tuple(map(Part, arrays)),
        work=partial,
        row=((len(EXPOSURE_STATS) + 4 * MAX_STARS,), "float64"),
        finish=finish,
        finish_bytes=_solve_bytes(exposures, references is not None),
        parameters={"radius": radius, "reference": digest(references)},
        expected=Solved((ZERO_POINT,) * count, ("NONE",) * count, (True,) * count, (unknown,) * count, {}),
    )


def _solve_bytes(exposures: Sequence[ExposureRef], by_reference: bool) -> int:
    """Return the bytes that finding the zero points takes: stars of a band, and what is solved for."""
    most = 0
    for band, count in Counter(ref.band for ref in exposures).items():
        known = not by_reference and all(ref.magzero is not None for ref in exposures if ref.band == band)
        solving = 0 if known else zero_points.solve_bytes(count)
        most = max(most, count * STARS_BYTES + max(solving, residual_bytes(count, MAX_STARS)))
    return most


def _zero_points(
    exposures: Sequence[ExposureRef],
    tables: np.ndarray,
    reasons: Mapping[int, str],
    references: Mapping[str, Catalogue] | None,
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
        reference = None if references is None else references[band]
        solution = zero_points.find_zero_points(catalogues, cards, reference, radius)
        for i, value, kind in zip(members, *solution, strict=True):
            points[i], kinds[i] = value, kind
    return points, kinds


def _catalogue(table: np.ndarray, zero_point: float = 0.0) -> Catalogue:
    whole = table[np.isfinite(table).all(axis=1)]
    ra, dec, magnitude, error = np.ascontiguousarray(whole.T)
    return Catalogue(ra, dec, magnitude + zero_point, error)


def _residuals(
    exposures: Sequence[ExposureRef],
    tables: np.ndarray,
    points: np.ndarray,
    references: Mapping[str, Catalogue] | None,
    radius: float,
) -> Residuals:
    """Return what is left between exposures and their reference, or each other, band by band."""
    rows, of_exposure = [], [{} for _ in exposures]
    against = "exposures" if references is None else "reference"
    for band in sorted({ref.band for ref in exposures}):
        members = [i for i, ref in enumerate(exposures) if ref.band == band and np.isfinite(points[i])]
        catalogues = [_catalogue(tables[i], points[i]) for i in members]
        if not members:
            continue
        found = compare_stars(catalogues, None if references is None else references[band], radius)
        rows += rows_of_band(band, against, found)
        for i, figures in zip(members, by_exposure(found, len(members)), strict=True):
            of_exposure[i] = figures
    return Residuals(tuple(rows), tuple(of_exposure))


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
