"""What the stars of many exposures say of each other: matches on the sky, and differences of magnitude.

Every result is in the order of its input, so the caller's order of exposures, and nothing else, decides the
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD
from mpiimg.astro.photometry.stars import CLIP
from mpiimg.astro.sky.wcs import directions

#: No two measurements of a star are trusted to agree better than this (magnitudes): flat fields, colours.
FLOOR = 0.005

#: Nor is a pair of exposures heeded whose difference has an error of so many magnitudes to the power of -2.
MIN_WEIGHT = 1e-6

#: Exposures that are matched with all others at once: bounds the matches that are held.
EXPOSURES_AT_ONCE = 64


class Catalogue(NamedTuple):
    """Stars on the sky: those of an exposure, or of a reference; arrays of one length, float64."""

    ra: np.ndarray  # degrees, ICRS
    dec: np.ndarray
    magnitude: np.ndarray
    error: np.ndarray  # of the magnitude


class Pairs(NamedTuple):
    """Catalogues that share stars, in the order of `first` and `second`; arrays of one length."""

    first: np.ndarray  # int
    second: np.ndarray
    difference: np.ndarray  # mean magnitude of the first minus that of the second
    weight: np.ndarray  # 1 / variance of the difference, magnitudes^-2
    count: np.ndarray  # stars it is the mean of


@dataclass(frozen=True)
class JoinedStars:
    """The stars of many catalogues end to end; those without a finite magnitude and error are left out.

    Parameters
    ----------
    points : (n, 3) float64, on the unit sphere
    magnitude, error : (n,) float64
    owner : (n,) int, the catalogue of each, ascending
    """

    points: np.ndarray
    magnitude: np.ndarray
    error: np.ndarray
    owner: np.ndarray

    @classmethod
    def of(cls, catalogues: Sequence[Catalogue]) -> JoinedStars:
        """Put catalogues end to end."""
        fields = [np.concatenate([np.asarray(c[k], np.float64) for c in catalogues]) for k in range(4)]
        owner = np.repeat(np.arange(len(catalogues)), [len(c.ra) for c in catalogues])
        finite = np.isfinite(fields[2]) & np.isfinite(fields[3])
        ra, dec, magnitude, error = (field[finite] for field in fields)
        return cls(np.ascontiguousarray(directions(ra, dec).T), magnitude, error, owner[finite])

    def catalogues(self, first: int, last: int) -> JoinedStars:
        """Return the stars of catalogues `first` to `last`, that not included."""
        part = slice(*np.searchsorted(self.owner, [first, last]))
        return JoinedStars(self.points[part], self.magnitude[part], self.error[part], self.owner[part])

    @cached_property
    def tree(self):
        """Their search tree."""
        from scipy.spatial import cKDTree

        return cKDTree(self.points)


def _chord(degrees):
    """Return the distance through the unit sphere of two points this far apart on it."""
    return 2 * np.sin(np.radians(degrees) / 2)


def match_stars(
    ones: JoinedStars, others: JoinedStars, radius: float, later: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Match the stars of each catalogue of `ones` with each of `others`: mutual nearest within a radius.

    Parameters
    ----------
    ones, others : JoinedStars
    radius : float
        Arcseconds.
    later : bool
        Only catalogues of `others` with a higher number than that of `ones`.

    Returns
    -------
    (n,) int, (n,) int
        Indices into `ones` and `others`, by the catalogue of the first, that of the second, and the first.
        No star occurs twice with the same catalogue.
    """
    near = ones.tree.sparse_distance_matrix(others.tree, _chord(radius / 3600), output_type="ndarray")
    if later:
        near = near[ones.owner[near["i"]] < others.owner[near["j"]]]
    i, j, apart = near["i"], near["j"], near["v"]
    mutual = _nearest(i, others.owner[j], apart) & _nearest(j, ones.owner[i], apart)
    i, j = i[mutual], j[mutual]
    order = np.lexsort((i, others.owner[j], ones.owner[i]))
    return i[order], j[order]


def _nearest(star, owner, apart):
    """Tell which matches of a star are the nearest that a catalogue offers it."""
    key = star * (owner.max(initial=0) + 1) + owner
    ordered = np.sort(key)
    nearest = np.ones(len(key), dtype=bool)
    # Isolated stars, as exposures give, are seldom offered two.
    several = np.flatnonzero(np.isin(key, ordered[1:][ordered[1:] == ordered[:-1]]))
    order = several[np.lexsort((apart[several], key[several]))]
    nearest[order[1:]] = key[order[1:]] != key[order[:-1]]
    return nearest


def _differences(
    ones: JoinedStars, others: JoinedStars, i: np.ndarray, j: np.ndarray, min_stars: int
) -> Pairs:
    """Compare the magnitudes of matched stars, catalogue by catalogue, where enough of them agree."""
    from mpiimg.astro.kernels.robust import robust_means

    first, second = ones.owner[i], others.owner[j]
    begins = np.flatnonzero((np.diff(first, prepend=-1) != 0) | (np.diff(second, prepend=-1) != 0))
    values = ones.magnitude[i] - others.magnitude[j]
    with np.errstate(over="ignore"):
        errors = np.sqrt(ones.error[i] ** 2 + others.error[j] ** 2 + FLOOR**2)
    starts = np.append(begins, len(i))
    difference, error, count = robust_means(values, errors, starts, CLIP * SIGMA_PER_MAD, CLIP)
    with np.errstate(all="ignore"):
        weight = error**-2
    # What stars of no weight say would make a solution singular.
    enough = (count >= min_stars) & np.isfinite(difference) & (weight > MIN_WEIGHT) & np.isfinite(weight)
    columns = (first[begins], second[begins], difference, weight, count)
    return Pairs(*(column[enough] for column in columns))


def compare_exposures(exposures: Sequence[Catalogue], radius: float = 1.0, min_stars: int = 3) -> Pairs:
    """Compare the magnitudes of the stars that exposures of one band share, for all pairs that share enough.

    Parameters
    ----------
    exposures : sequence of Catalogue
        Instrumental magnitudes, aperture correction included.
    radius : float
        Of a match, in arcseconds.
    min_stars : int
        Matched stars, outliers left out, that a pair needs.

    Returns
    -------
    Pairs
        With first < second.
    """
    stars = JoinedStars.of(exposures)
    parts = []
    for start in range(0, len(exposures), EXPOSURES_AT_ONCE):
        block = stars.catalogues(start, start + EXPOSURES_AT_ONCE)
        parts.append(_differences(block, stars, *match_stars(block, stars, radius, later=True), min_stars))
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def compare_with_reference(
    exposures: Sequence[Catalogue], reference: Catalogue, radius: float = 1.0, min_stars: int = 3
) -> Pairs:
    """Compare the magnitudes of a reference catalogue, which is the second of each pair, with exposures'.

    Parameters
    ----------
    exposures, radius, min_stars
        As in :func:`compare_exposures`.
    reference : Catalogue
        Magnitudes in the band of the exposures.

    Returns
    -------
    Pairs
        Exposures that share enough stars with the reference; `second` is 0.
    """
    ones, others = JoinedStars.of(exposures), JoinedStars.of([reference])
    return _differences(ones, others, *match_stars(ones, others, radius), min_stars)
