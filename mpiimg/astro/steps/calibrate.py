"""Calibration of exposures: cosmic rays, sky, stars; and the zero points that make exposures agree.

An exposure that cannot be used is left out with its reason, and the others go on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.astro.fits.exposure import ExposureRef, read_exposure
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.writing import history as fits_history
from mpiimg.astro.photometry import stars as photometry
from mpiimg.astro.photometry import zero_points
from mpiimg.astro.photometry.overlaps import Catalogue
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.sky.wcs import parse_wcs, to_sky
from mpiimg.engine.stage import Need, Parameter, Stage, reduction
from mpiimg.engine.stores import Array
from mpiimg.errors import BadInput

PAPER = (
    "L.A.Cosmic: van Dokkum 2001, doi:10.1086/323894; background and photometry: Bertin and Arnouts 1996, "
    "doi:10.1051/aas:1996164"
)

PARAMETERS = (
    Parameter("sigclip", 4.5, "a cosmic ray stands out by this", float, "standard deviations"),
    Parameter("sigfrac", 0.3, "its neighbours by this share of that", float),
    Parameter("objlim", 5.0, "least contrast between a cosmic ray and fine structure", float),
    Parameter("cr_iterations", 4, "how often cosmic rays are looked for", int),
    Parameter("mesh", 64, "side of the meshes that the sky is measured in", int, "pixels"),
    Parameter("match_radius", 1.0, "stars this near are the same", float, "arcsec"),
)

#: How zero points are found, as a log says it.
WAYS = {
    "CARD": "from cards or --zero-point",
    "REFERENCE": "from --reference",
    "MATCHED": "by stars shared with those",
    "RELATIVE": "relative to each other",
    "NONE": "not found",
}

#: Stars kept of an exposure, the brightest; numbers kept of one; bytes of a reason.
MOST_STARS, REASON = 500, 240

#: Bytes a pixel that reading, searching and measuring take beside the planes that come out.
SCRATCH = 30

FACTS = ("failed", "sky", "noise", "fwhm", "correction", "cosmic_ray_pixels", "stars")


def history(p: Mapping) -> tuple[str, ...]:
    """Return the lines of HISTORY of a calibrated exposure."""
    return fits_history(
        "calibrate",
        f"cosmic rays by L.A.Cosmic (sigclip {p['sigclip']:g}, sigfrac {p['sigfrac']:g}, "
        f"objlim {p['objlim']:g}, {p['cr_iterations']} iterations); sky in meshes of {p['mesh']} pixels "
        "subtracted",
    )


def calibrate(layout: Layout, exposures: Sequence[ExposureRef], p: dict) -> Stage:
    """Declare the calibration of each exposure on its own.

    Written are the planes of exposures without their sky, the stars (ra and
    dec in degrees, instrumental magnitude of the total flux, its error), the
    FACTS, and why an exposure was left out.
    """
    planes = layout.exposure_planes()

    def work(chunk):
        ref = exposures[chunk.number]
        try:
            return _calibrated(ref, p)
        except BadInput as error:
            named = any(name in str(error) for name in (ref.name, str(ref.image.path)))
            return _left_out(ref, str(error) if named else f"{ref.image.path}: {error}")

    count = len(exposures)
    return Stage(
        "calibrate",
        "map",
        layout.exposure_grid,
        (),
        (*planes, *_tables(count)),
        work,
        p,
        # What a count is worth enters when all is calibrated.
        chunk_parameters=lambda number: {
            "exposure": repr(dataclasses.replace(exposures[number], magzero=None))
        },
        left_out=lambda *blocks: bool(blocks[-1].any()),
        weights=tuple(rows * columns for rows, columns in layout.shapes),
        place={array.name: layout.exposure_run for array in planes},
        scratch=SCRATCH * max(rows * columns for rows, columns in layout.shapes),
        cost=("calibrate", float(layout.exposure_starts[-1])),
    )


def _tables(count: int) -> tuple[Array, Array, Array]:
    return (
        Array("stars", "esc", (count, MOST_STARS, 4), "float64"),
        Array("facts", "ef", (count, len(FACTS)), "float64"),
        Array("reasons", "er", (count, REASON), "uint8"),
    )


def _calibrated(ref: ExposureRef, p: dict):
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
        sigclip=p["sigclip"],
        sigfrac=p["sigfrac"],
        objlim=p["objlim"],
        iterations=p["cr_iterations"],
    )
    mask[struck] |= bits("CR", "INTRP")
    # Edges glow, and no coadd takes them.
    unknown = struck | ((mask & bits("BAD", "NO_DATA", "EDGE")) != 0)
    sky, found = photometry.measure_frame(image, variance, unknown, (mask & bits("SAT")) != 0, mesh=p["mesh"])
    image -= sky.map
    stars, number = _star_table(found, ref)
    facts = (0.0, sky.level, sky.noise, found.fwhm, found.correction, np.count_nonzero(struck), number)
    flat = (image.ravel(), variance.ravel(), mask.ravel())
    return (*flat, stars[None], np.array(facts)[None], reason_row(""))


def _star_table(found, ref: ExposureRef):
    """Return the brightest isolated stars, (MOST_STARS, 4), NaN behind the last; and how many they are."""
    stars = found.stars
    flux, error, correction = stars.flux, stars.flux_error, found.correction
    if not np.isfinite(correction):
        # Too few stars tell what the small aperture loses. The large one, for more noise, loses nothing.
        flux, error, correction = stars.large_flux, stars.large_flux_error, 1.0
    chosen = np.flatnonzero(stars.isolated & np.isfinite(flux) & (flux > 0))
    order = np.argsort(-flux[chosen], kind="stable")[:MOST_STARS]
    chosen = np.sort(chosen[order])
    table = np.full((MOST_STARS, 4), np.nan)
    magnitude, error = photometry.magnitudes(flux[chosen], error[chosen], correction)
    ra, dec = to_sky(parse_wcs(ref.wcs), stars.x[chosen], stars.y[chosen])
    table[: len(chosen)] = np.stack([ra, dec, magnitude, error], axis=1)
    return table, len(chosen)


def _left_out(ref: ExposureRef, reason: str):
    size = ref.shape[0] * ref.shape[1]
    facts = np.full((1, len(FACTS)), np.nan)
    facts[0, 0] = 1.0
    return (
        np.full(size, np.nan, np.float32),
        np.full(size, np.inf, np.float32),
        np.full(size, bits("NO_DATA"), np.int32),
        np.full((1, MOST_STARS, 4), np.nan),
        facts,
        reason_row(reason),
    )


def reason_row(reason: str) -> np.ndarray:
    """Return why an exposure was left out, as bytes, (1, REASON) uint8; zeros if it was not."""
    row = np.zeros((1, REASON), np.uint8)
    data = np.frombuffer(reason.encode()[:REASON], np.uint8)
    row[0, : len(data)] = data
    return row


def reason_text(row: np.ndarray) -> str:
    """Return the reason that :func:`reason_row` made a row of."""
    return bytes(row).rstrip(b"\0").decode(errors="replace")


def solve(
    layout: Layout,
    exposures: Sequence[ExposureRef],
    reference,
    radius: float,
    strict: bool,
    rejected: Mapping[str, str] | None = None,
) -> Stage:
    """Find every exposure's zero point, as :func:`mpiimg.astro.photometry.zero_points.find_zero_points` does.

    Parameters
    ----------
    reference : overlaps.Catalogue or None
    radius : of matches, arcseconds
    strict : let one bad exposure end the run
    rejected : names of files that were left out before, and why
    """
    count = len(exposures)
    stars, facts, reasons = _tables(count)

    def partial(chunk, star_block, fact_block, reason_block):
        return np.concatenate([fact_block[0], reason_block[0].astype(np.float64), star_block.ravel()])

    def finish(rows):
        known = rows[:, : len(FACTS)]
        texts = rows[:, len(FACTS) : len(FACTS) + REASON].astype(np.uint8)
        tables = rows[:, len(FACTS) + REASON :].reshape(count, MOST_STARS, 4)
        left_out = {i: reason_text(texts[i]) for i in np.flatnonzero(known[:, 0] == 1)}
        points, kinds = _zero_points(exposures, tables, left_out, reference, radius)
        for i in np.flatnonzero(~np.isfinite(points)).tolist():
            left_out.setdefault(i, _without_zero_point(exposures, i, kinds, reference is not None))
        if left_out and (strict or len(left_out) == count):
            raise BadInput(left_out[min(left_out)])
        warnings = [f"left out: {reason}" for _, reason in sorted(left_out.items())]
        if "RELATIVE" in kinds:
            warnings.append("zero points are relative, from overlaps: magnitudes have no absolute scale")
        return {
            "notes": _found(exposures, kinds, reference is not None),
            "zero_points": tuple(points.tolist()),
            "zero_point_types": tuple(kinds),
            "facts": known,
            "left_out": {
                **(rejected or {}),
                **{exposures[i].name: reason for i, reason in sorted(left_out.items())},
            },
            "warnings": warnings,
        }

    width = len(FACTS) + REASON + 4 * MOST_STARS
    reads = (Need(stars), Need(facts), Need(reasons))
    parameters = {"radius": radius, "reference": reference is not None}
    return reduction(
        "zero-points", layout.exposure_grid, reads, partial, ((width,), "float64"), finish, parameters
    )


def _zero_points(exposures, tables, left_out, reference, radius):
    """Return the zero point of each exposure (NaN where there is none), and how it was found."""
    points = np.full(len(exposures), np.nan)
    kinds = ["NONE"] * len(exposures)
    for band in sorted({ref.band for ref in exposures}):
        members = [i for i, ref in enumerate(exposures) if ref.band == band and i not in left_out]
        if not members:
            continue
        catalogues, cards = [_catalogue(tables[i]) for i in members], [exposures[i].magzero for i in members]
        found = zero_points.find_zero_points(catalogues, cards, reference, radius)
        for i, value, kind in zip(members, *found, strict=True):
            points[i], kinds[i] = value, kind
    return points, kinds


def _catalogue(table: np.ndarray) -> Catalogue:
    kept = table[np.isfinite(table).all(axis=1)]
    return Catalogue(*np.ascontiguousarray(kept.T))


def _without_zero_point(exposures: Sequence[ExposureRef], number: int, kinds: list[str], given: bool) -> str:
    """Say why an exposure has no zero point; `given`: by a reference catalogue."""
    ref = exposures[number]
    absolute = any(kinds[i] != "NONE" for i, other in enumerate(exposures) if other.band == ref.band)
    lacks = "the reference catalogue" if given else "other exposures"
    if absolute:
        lacks = ("the reference catalogue, or with " if given else "") + "exposures that have a zero point"
    card = "" if given else "no MAGZERO card and "
    return f"{ref.name}: no zero point: {card}too few stars in common with {lacks}; give --zero-point"


def _found(exposures: Sequence[ExposureRef], kinds: list[str], given: bool) -> list[str]:
    """Say, filter by filter, how many zero points were found in which way."""
    notes = []
    for band in sorted({ref.band for ref in exposures}):
        members = [i for i, ref in enumerate(exposures) if ref.band == band]
        counts = Counter(kinds[i] for i in members)
        ways = ", ".join(f"{counts[kind]} {text}" for kind, text in WAYS.items() if counts[kind])
        unused = given and any(exposures[i].magzero is not None for i in members)
        notes.append(f"zero points in {band}: {ways}{'; cards are not used' if unused else ''}")
    return notes
