"""Zero points of the exposures of one band: from cards, a reference catalogue, or the stars they share.

References
----------
Zero points from overlaps: N. Padmanabhan et al. 2008, ApJ 674, 1217, doi:10.1086/524677.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD, ZERO_POINT
from mpiimg.astro.photometry.overlaps import Catalogue, compare_exposures, compare_with_reference
from mpiimg.astro.photometry.stars import CLIP

#: Exposures of a group from which on its equations are solved by conjugate gradients, without a matrix of all
#: pairs, and without errors.
LARGE = 2000

#: Matrices of all pairs of exposures that a solution of a smaller group takes at once, measured at 1,500.
MATRICES = 7

#: Bytes that a pair takes in the solution of a large group, and pairs that an exposure of a survey is in.
PAIR_BYTES, PAIRS = 200, 200

#: The residual of a large group that is solved, as a share of the right side.
TOLERANCE = 1e-12


class Solution(NamedTuple):
    """Offsets that make exposures agree: magnitudes to add to theirs."""

    offsets: np.ndarray  # (exposures,) their mean over a group without anchors is 0; NaN: unsolved
    groups: np.ndarray  # (exposures,) int, in the order of their first exposures; -1: in no pair
    errors: np.ndarray  # (exposures,) standard deviation, magnitudes; 0 for an anchor, NaN in large groups
    used: np.ndarray  # (pairs,) bool: neither an outlier nor a pair of two anchors


def solve_bytes(exposures: int) -> int:
    """Return the bytes that :func:`solve_offsets` takes for so many exposures, all of them connected."""
    return MATRICES * 8 * exposures**2 if exposures < LARGE else PAIR_BYTES * PAIRS * exposures


def find_zero_points(
    catalogues: Sequence[Catalogue],
    cards: Sequence[float | None],
    reference: Catalogue | None = None,
    radius: float = 1.0,
) -> tuple[np.ndarray, list[str]]:
    """Find the zero points of the exposures of one band.

    A reference catalogue wins over cards: all zero points are then on its scale. Exposures that neither tells
    a zero point take it from those they share stars with, directly or through others. Where no exposure has
    an absolute zero point, and there is no reference, those of each connected group are relative, and so is
    that of an exposure alone.

    Parameters
    ----------
    catalogues : sequence of Catalogue
        Of each exposure: instrumental magnitudes, aperture correction included.
    cards : sequence of float or None
        Zero points that headers, or their reader, tell.
    reference : Catalogue, optional
    radius : float
        Of a match, in arcseconds.

    Returns
    -------
    points : (exposures,) float64
        Magnitudes; NaN where there is none.
    kinds : list of str
        How each was found: CARD, REFERENCE, MATCHED (by stars shared with those), RELATIVE or NONE.
    """
    if reference is None:
        anchors, kind = np.array([np.nan if card is None else card for card in cards], np.float64), "CARD"
    else:
        pairs = compare_with_reference(catalogues, reference, radius)
        anchors, kind = np.full(len(catalogues), np.nan), "REFERENCE"
        # The difference is instrumental minus true magnitude.
        anchors[pairs.first] = -pairs.difference
    absolute = np.isfinite(anchors)
    points, kinds = anchors.copy(), np.where(absolute, kind, "NONE").astype(object)
    relative = not absolute.any()
    if not absolute.all() and not (relative and reference is not None):
        solution = solve_offsets(*compare_exposures(catalogues, radius)[:4], len(catalogues), anchors)
        anchored = np.isin(solution.groups, solution.groups[absolute]) & (solution.groups >= 0)
        solved = ~absolute & np.isfinite(solution.offsets) & (relative | anchored)
        points[solved] = solution.offsets[solved] + (ZERO_POINT if relative else 0.0)
        kinds[solved] = "RELATIVE" if relative else "MATCHED"
    if len(points) == 1 and relative and reference is None:
        # Alone in its band it has nothing to agree with, and any number will do.
        points[0], kinds[0] = ZERO_POINT, "RELATIVE"
    return points, kinds.tolist()


def solve_offsets(
    first: np.ndarray,
    second: np.ndarray,
    difference: np.ndarray,
    weight: np.ndarray,
    exposures: int,
    anchors: np.ndarray | None = None,
) -> Solution:
    """Solve for the offsets that make the exposures of one band agree, by robust least squares.

    Parameters
    ----------
    first, second : (pairs,) int
        The two exposures of each pair, 0 to `exposures` - 1.
    difference : (pairs,) float64
        Magnitude of the same stars in the first minus that in the second.
    weight : (pairs,) float64
        1 / variance of the difference, magnitudes^-2.
    exposures : int
        How many there are.
    anchors : (exposures,) float64, optional
        Offsets that are known and stay, NaN where they are not. The others of a group with anchors are
        found with respect to them.

    Returns
    -------
    Solution
        Each group of exposures that pairs connect, and that has no anchor, has offsets of mean 0. An exposure
        in no pair, or only in pairs that are outliers, is unsolved, and does not disturb the others.

    Raises
    ------
    ValueError
        Exposures out of range or paired with themselves, or weights that are not positive and finite.

    Notes
    -----
    Minimises the sum of weight x (difference - (offset of second - offset of first))^2: directly in groups of
    fewer than `LARGE` exposures, which have errors, and by conjugate gradients in others. Pairs that disagree
    are first weighed down (Huber's weights, iterated), then those beyond CLIP times the scatter of all, or of
    what their weights say where that is more, are dropped. Where a pair alone connects two parts, nothing
    contradicts it. A pair of two anchors changes nothing, and says nothing of the scatter of others. Errors
    take pairs as independent, though those of one exposure share the noise of its stars; so none is below
    that of half the variance of the exposure's best pair.
    """
    first, second = np.asarray(first, int), np.asarray(second, int)
    difference, weight = np.asarray(difference, np.float64), np.asarray(weight, np.float64)
    _validate_pairs(first, second, difference, weight, exposures)
    anchors = np.full(exposures, np.nan) if anchors is None else np.asarray(anchors, np.float64)
    used = np.zeros(len(first), dtype=bool)
    telling = np.flatnonzero(np.isnan(anchors[first]) | np.isnan(anchors[second]))
    pairs = [values[telling] for values in (first, second, difference, weight)]
    first, second, difference, weight = pairs
    share = np.ones(len(first))
    for _ in range(50):
        offsets, _, _ = _solve(first, second, difference, weight * share, anchors)
        deviation = np.abs(difference - (offsets[second] - offsets[first])) * np.sqrt(weight)
        scatter = max(1.0, SIGMA_PER_MAD * float(np.median(deviation))) if len(deviation) else 1.0
        # Huber: as least squares within 1.345 deviations, as least absolute values beyond.
        before, share = share, np.minimum(1.0, 1.345 * scatter / np.maximum(deviation, 1e-12))
        if np.allclose(before, share, rtol=1e-3, atol=0):
            break
    inside = deviation <= CLIP * scatter
    used[telling[inside]] = True
    return Solution(*_solve(*(values[inside] for values in pairs), anchors), used)


def _validate_pairs(first, second, difference, weight, exposures):
    if not first.shape == second.shape == difference.shape == weight.shape or first.ndim != 1:
        raise ValueError(
            f"pairs need four arrays of one length, not of shapes "
            f"{first.shape}, {second.shape}, {difference.shape} and {weight.shape}"
        )
    if len(first) and (min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= exposures):
        raise ValueError(f"pairs name exposures outside 0 to {exposures - 1}")
    if np.any(first == second):
        raise ValueError(f"exposure {first[first == second][0]} is paired with itself")
    if not np.all(np.isfinite(difference) & np.isfinite(weight) & (weight > 0)):
        raise ValueError("differences must be finite, weights positive and finite")


def _connected(first, second, exposures):
    """Return group numbers in the order of their first members; -1 for exposures in no pair."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first)), (first, second)), shape=(exposures, exposures))
    _, labels = connected_components(graph, directed=False)
    paired = np.zeros(exposures, dtype=bool)
    paired[first] = paired[second] = True
    groups = np.full(exposures, -1)
    _, start, label = np.unique(labels[paired], return_index=True, return_inverse=True)
    groups[paired] = np.argsort(np.argsort(start))[label]
    return groups


def _solve(first, second, difference, weight, anchors):
    """Solve the normal equations group by group: offsets, groups and errors."""
    exposures = len(anchors)
    groups = _connected(first, second, exposures)
    offsets, errors = anchors.copy(), np.where(np.isnan(anchors), np.nan, 0.0)
    for group in range(groups.max(initial=-1) + 1):
        members = np.flatnonzero(groups == group)
        pairs = groups[first] == group
        i, j = np.searchsorted(members, first[pairs]), np.searchsorted(members, second[pairs])
        n, w = len(members), weight[pairs]
        # Sums in the order of the pairs.
        ends, flow = np.concatenate([i, j]), np.concatenate([-w, w]) * np.tile(difference[pairs], 2)
        right = np.bincount(ends, flow, minlength=n)
        if n >= LARGE:
            offsets[members] = _solve_large(i, j, w, right, anchors[members])
            continue
        between = np.bincount(i * n + j, w, minlength=n * n).reshape(n, n)
        between += between.T
        laplacian = np.diag(between.sum(axis=1)) - between
        best = np.zeros(n)
        np.maximum.at(best, np.concatenate([i, j]), np.concatenate([w, w]))
        free = np.isnan(anchors[members])
        if free.all():
            # A constant added to all offsets changes no difference: this term decides it, and nothing else.
            scale = np.trace(laplacian) / n**2
            inverse = np.linalg.inv(laplacian + scale)
            offset = inverse @ right
            offset -= offset.mean()
            variance = np.diag(inverse) - 1 / (scale * n**2)
        else:
            fixed = anchors[members[~free]]
            inverse = np.linalg.inv(laplacian[np.ix_(free, free)])
            offset = inverse @ (right[free] - laplacian[np.ix_(free, ~free)] @ fixed)
            variance = np.diag(inverse)
        offsets[members[free]] = offset
        errors[members[free]] = np.sqrt(np.maximum(variance, 1 / (2 * best[free])))
    return offsets, groups, errors


def _solve_large(i, j, weight, right, anchors) -> np.ndarray:
    """Solve the normal equations of one group by conjugate gradients; return the offsets of its exposures.

    Parameters
    ----------
    i, j : (pairs,) int
        Members of the group.
    weight : (pairs,) float64
    right : (n,) float64
        The right side.
    anchors : (n,) float64
        NaN where an offset is not known.

    References
    ----------
    M. R. Hestenes, E. Stiefel 1952, J. Res. NBS 49, 409, doi:10.6028/jres.049.044; with the diagonal as
    preconditioner.
    """
    from scipy.sparse import coo_array

    n, free = len(right), np.isnan(anchors)
    pairs = coo_array((np.tile(weight, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(n, n))
    between = pairs.tocsr()
    degree = np.asarray(between.sum(axis=1)).ravel()

    def times(offset):
        return np.where(free, degree * offset - between @ offset, 0.0)

    offset = np.where(free, 0.0, anchors)
    rest = np.where(free, right + between @ offset, 0.0)
    start = np.sqrt((rest**2).sum())
    scaled = rest / degree
    direction, size = scaled.copy(), (rest * scaled).sum()
    for _ in range(20 * n):
        if not np.sqrt((rest**2).sum()) > TOLERANCE * start:
            break
        change = times(direction)
        step = size / (direction * change).sum()
        offset += step * direction
        rest -= step * change
        scaled = rest / degree
        before, size = size, (rest * scaled).sum()
        direction = scaled + size / before * direction
    return offset - offset.mean() if free.all() else offset
