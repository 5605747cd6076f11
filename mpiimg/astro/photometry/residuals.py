"""What is left between the stars of exposures and a reference, or each other, once zero points are known.

Positions and magnitudes of matched stars, over a whole band, by magnitude, on the sky and by exposure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mpiimg.astro.catalogue import Column
from mpiimg.astro.constants import SIGMA_PER_MAD
from mpiimg.astro.photometry.overlaps import Catalogue, JoinedStars, match_stars
from mpiimg.astro.sky.wcs import ARCSEC

#: Stars of a band that are compared, the brightest of each exposure, and of an exposure at least.
MAX_STARS, MIN_STARS = 200_000, 10

#: Measurements of a star, its own among them, that one of them is compared with the mean of the others of.
NEIGHBOURS = 8

#: Magnitudes that a bin spans.
BIN = 0.5

#: Cells along the longer side of the field, at most, and stars of a cell, if they were everywhere alike.
MAX_CELLS, STARS_OF_CELL = 16, 8

#: Stars that a bin or a cell has at least.
MIN_IN_BIN = 3

#: Bytes that matching takes for each star: places, neighbours, and differences to these.
BYTES_PER_STAR = 100 + 40 * NEIGHBOURS

FIGURES = (
    Column("stars", "i8", "", "matched stars"),
    Column("dmag", "f8", "mag", "magnitude less that of the reference, or less the others' mean: median"),
    Column("dmag_scatter", "f8", "mag", "its standard deviation, by the median absolute deviation"),
    Column("dra", "f8", "arcsec", "difference in right ascension times cos dec: median"),
    Column("dra_scatter", "f8", "arcsec", "its standard deviation, likewise"),
    Column("ddec", "f8", "arcsec", "difference in declination: median"),
    Column("ddec_scatter", "f8", "arcsec", "its standard deviation, likewise"),
)

COLUMNS = (
    Column("band", "str", "", "filter"),
    Column("against", "str", "", "what exposures are compared with: reference, or exposures (each other)"),
    Column("by", "str", "", "of which stars: all, magnitude (a bin of 0.5 mag) or sky (a cell)"),
    Column("mag", "f8", "mag", "middle of the bin"),
    Column("ra", "f8", "deg", "right ascension of the middle of the cell, ICRS"),
    Column("dec", "f8", "deg", "its declination"),
    *FIGURES,
)


class Differences(NamedTuple):
    """Of matched stars, to the reference or to the mean of other exposures; arrays of one length."""

    owner: np.ndarray  # number of the exposure
    point: np.ndarray  # (n, 3) unit vectors
    magnitude: np.ndarray  # of the reference, or the mean of all exposures
    dmag: np.ndarray
    dra: np.ndarray  # arcseconds on the sky
    ddec: np.ndarray


class Residuals(NamedTuple):
    """What is left of all bands: rows of COLUMNS, and the FIGURES of each exposure."""

    rows: tuple[dict[str, object], ...]
    of_exposure: tuple[dict[str, float], ...]


NO_RESIDUALS = Residuals((), ())


def residual_bytes(exposures: int, stars: int) -> int:
    """Return the bytes that comparing so many exposures takes, of which each has at most so many stars."""
    return BYTES_PER_STAR * exposures * min(stars, _most(exposures))


def compare_stars(exposures: Sequence[Catalogue], reference: Catalogue | None, radius: float) -> Differences:
    """Compare the stars of exposures with a reference, or where there is none with each other.

    Parameters
    ----------
    exposures : sequence of Catalogue
        With zero points, so that magnitudes agree.
    radius : float
        Of a match, arcseconds.

    Returns
    -------
    Differences
        Among n exposures that share a star, each is compared with the mean of the others; the difference is
        multiplied by sqrt((n - 1) / n), so that its scatter is that of one measurement.
    """
    stars = JoinedStars.of([_brightest(one, _most(len(exposures))) for one in exposures])
    if reference is None:
        return _among_each_other(stars, radius)
    others = JoinedStars.of([reference])
    i, j = match_stars(stars, others, radius)
    east, north = _offsets(stars.points[i], others.points[j])
    magnitude = others.magnitude[j]
    return Differences(
        stars.owner[i], others.points[j], magnitude, stars.magnitude[i] - magnitude, east, north
    )


def _most(exposures: int) -> int:
    """Return how many stars of each exposure are compared."""
    return max(MIN_STARS, MAX_STARS // max(1, exposures))


def _brightest(stars: Catalogue, most: int) -> Catalogue:
    if len(stars.ra) <= most:
        return stars
    chosen = np.sort(np.argsort(stars.magnitude, kind="stable")[:most])
    return Catalogue(*(column[chosen] for column in stars))


def _among_each_other(stars: JoinedStars, radius: float) -> Differences:
    """Compare each star with the mean of the same star in other exposures, of up to NEIGHBOURS - 1."""
    count = len(stars.owner)
    if not count:
        return Differences(np.zeros(0, int), np.zeros((0, 3)), *(np.zeros(0) for _ in range(4)))
    reach = 2 * np.sin(np.radians(radius / 3600) / 2)
    apart, near = stars.tree.query(stars.points, NEIGHBOURS, distance_upper_bound=reach)
    known = np.isfinite(apart)
    near = np.where(known, near, 0)
    known &= stars.owner[near] != stars.owner[:, None]
    number = known.sum(axis=1)
    matched = number > 0
    known, near, number = known[matched], near[matched], number[matched]
    own_point, own_magnitude = stars.points[matched], stars.magnitude[matched]

    def mean(values):
        weights = known if values.ndim == 1 else known[..., None]
        return (np.where(weights, values[near], 0).sum(axis=1).T / number).T

    magnitude, point = mean(stars.magnitude), mean(stars.points)
    point /= np.sqrt((point**2).sum(axis=1))[:, None]
    # Of n measurements one differs from the mean of the others by sqrt(n / (n - 1)) times what one scatters.
    factor = np.sqrt(number / (number + 1))
    east, north = _offsets(own_point, point)
    all_of_it = (magnitude * number + own_magnitude) / (number + 1)
    return Differences(
        stars.owner[matched],
        point,
        all_of_it,
        (own_magnitude - magnitude) * factor,
        east * factor,
        north * factor,
    )


def _offsets(ones: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much directions lie to the east and the north of others, arcseconds; (n, 3) each."""
    away = ones - others
    x, y, z = others.T
    flat = np.hypot(x, y)
    east = (away[:, 1] * x - away[:, 0] * y) / flat
    north = away[:, 2] * flat - z * (away[:, 0] * x + away[:, 1] * y) / flat
    return np.degrees(east) * ARCSEC, np.degrees(north) * ARCSEC


# --- Figures ----------------------------------------------------------------------------------------------


def figures_of(differences: Differences, chosen=slice(None)) -> dict[str, float]:
    """Return the FIGURES of some of the differences."""
    figures = {"stars": len(differences.dmag[chosen])}
    if figures["stars"]:
        for name in ("dmag", "dra", "ddec"):
            values = getattr(differences, name)[chosen]
            middle = float(np.median(values))
            scatter = SIGMA_PER_MAD * float(np.median(np.abs(values - middle)))
            figures |= {name: middle, f"{name}_scatter": scatter}
    return figures


def by_exposure(differences: Differences, count: int) -> list[dict[str, float]]:
    """Return the FIGURES of each of so many exposures."""
    order = np.argsort(differences.owner, kind="stable")
    edges = np.searchsorted(differences.owner[order], np.arange(count + 1))
    return [figures_of(differences, order[a:b]) for a, b in pairwise(edges)]


def rows_of_band(band: str, against: str, differences: Differences) -> list[dict[str, object]]:
    """Return the rows of COLUMNS of a band: all stars, then bins of magnitude, then cells on the sky."""
    about = {"band": band, "against": against}
    rows: list[dict[str, object]] = [{**about, "by": "all", **figures_of(differences)}]
    bins = np.floor(differences.magnitude / BIN).astype(np.int64)
    for number, chosen in _groups(bins):
        middle = {"by": "magnitude", "mag": (number + 0.5) * BIN}
        rows.append({**about, **middle, **figures_of(differences, chosen)})
    for (ra, dec), chosen in _cells(differences.point):
        place = {"by": "sky", "ra": ra, "dec": dec}
        rows.append({**about, **place, **figures_of(differences, chosen)})
    return rows


def _groups(numbers: np.ndarray):
    """Yield each number that occurs MIN_IN_BIN times, ascending, and where it does."""
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    for value, (start, end) in zip(values.tolist(), pairwise([*starts.tolist(), len(order)]), strict=True):
        chosen = order[start:end]
        if len(chosen) >= MIN_IN_BIN:
            yield value, chosen


def _along(points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Return how far points lie along an axis; as sums, since the bits of a BLAS product are its own."""
    return points[:, 0] * axis[0] + points[:, 1] * axis[1] + points[:, 2] * axis[2]


def _cells(points: np.ndarray):
    """Yield the middle of each cell on the sky (degrees), and which directions lie in it."""
    if not len(points):
        return
    middle = points.mean(axis=0)
    length = float(np.sqrt((middle**2).sum()))
    if not length > 0.5:
        return  # all over the sky, on no plane
    middle = middle / length
    x, y, _ = middle
    flat = float(np.hypot(x, y))
    east = np.array([-y, x, 0]) / flat if flat > 0 else np.array([0.0, 1, 0])
    north = np.cross(middle, east)
    toward = _along(points, middle)
    if not toward.min() > 0.1:
        return
    plane = np.stack([_along(points, east), _along(points, north)]) / toward
    corner = plane.min(axis=1)
    cells = min(MAX_CELLS, max(1, int((len(points) / STARS_OF_CELL) ** 0.5)))
    side = max(float((plane.max(axis=1) - corner).max()) / cells, 1e-9)
    columns, rows = np.minimum((plane - corner[:, None]) // side, cells - 1).astype(np.int64)
    for number, chosen in _groups(rows * cells + columns):
        row, column = divmod(number, cells)
        place = corner + (np.array([column, row]) + 0.5) * side
        a, b, c = (middle + place[0] * east + place[1] * north).tolist()
        ra, dec = np.degrees(np.arctan2(b, a)) % 360, np.degrees(np.arctan2(c, np.hypot(a, b)))
        yield (float(ra), float(dec)), chosen
