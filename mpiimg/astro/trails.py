"""Straight trails that are too faint to be seen in any pixel: sums along lines of a binned residual.

The sums along all lines that cross a stripe of columns are made from those across its halves, which takes a
few additions per pixel and slope: a fast Radon transform. Stripes are short enough that a trail which begins
or ends anywhere fills a good part of some.

References
----------
M. L. Brady 1998, SIAM J. Comput. 27, 107, doi:10.1137/S0097539795256673; for streaks: G. Nir, B. Zackay, E.
O. Ofek 2018, AJ 156, 229, doi:10.3847/1538-3881/aaddff.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD
from mpiimg.astro.kernels.line_sums import MIN_BINS, double, levelled, scores

#: Bins across a stripe.
STRIPE = 128

#: Bins along a line that are looked at together for where a trail ends; and what they have on it, in standard
#: deviations.
PIECE, MIN_PIECE = 16, 2.5

#: A trail stands out of the sums along all lines by so many standard deviations.
THRESHOLD = 7.5

#: Trails at most that an exposure has on a patch.
MAX_TRAILS = 50

#: Lines of which one gives the noise of all.
_SAMPLE = 11


class Trail(NamedTuple):
    """A piece of a line through the centres of bins."""

    along: int  # 1: x runs along it, y = start + slope (x - first); 0: the other way round
    first: float
    last: float
    start: float
    slope: float
    score: float  # standard deviations


def line_sums(bins: np.ndarray) -> np.ndarray:
    """Return the sums along all lines that cross stripes of STRIPE columns with a slope of 0 to 1.

    Parameters
    ----------
    bins : (h, w) float32

    Returns
    -------
    (stripes, STRIPE, STRIPE + h) float32
        By the fall across the stripe, and the row that the line begins in, from -STRIPE.
    """
    height, width = bins.shape
    stripes = -(-width // STRIPE)
    sums = np.zeros((stripes * STRIPE, STRIPE + height), np.float32)
    sums[:width, STRIPE:] = bins.T
    other = np.empty_like(sums)
    size = 1
    while size < STRIPE:
        double(sums, other, size, stripes * STRIPE // (2 * size))
        sums, other, size = other, sums, 2 * size
    return sums.reshape(stripes, STRIPE, -1)


def find_trails(bins: np.ndarray) -> list[Trail]:
    """Find straight trails, brighter than what is beside them.

    Parameters
    ----------
    bins : (h, w) float32
        Residuals, 0 where there is none.

    Returns
    -------
    list of Trail
        In bins, pieces of trails as long as stripes or longer; one trail may be several that overlap.
    """
    there = (bins != 0).astype(np.float32)
    if np.count_nonzero(there) < MIN_BINS:
        return []
    bins, unlevelled = np.empty(bins.shape, np.float32), np.ascontiguousarray(bins)
    levelled(unlevelled, there, bins)
    trails: list[Trail] = []
    while len(trails) < MAX_TRAILS:
        found = [_best(bins, there, turn) for turn in range(4)]
        new = [trail for trails_of in found for trail in trails_of]
        if not new:
            break
        for trail in new:
            near = band(trail, bins.shape, 1.5)
            bins[near] = there[near] = 0
        trails += new
    return trails


def _turned(plane: np.ndarray, turn: int) -> np.ndarray:
    """Return a plane so that lines of one quarter of all slopes fall by 0 to 1."""
    plane = plane.T if turn & 2 else plane
    return plane[::-1] if turn & 1 else plane


def _best(bins: np.ndarray, there: np.ndarray, turn: int) -> list[Trail]:
    """Return the trail of each stripe that stands out most, if it does; of one quarter of all slopes."""
    values, count = _turned(bins, turn), _turned(there, turn)
    sums, number = line_sums(values), line_sums(count)
    score = np.empty_like(sums)
    scores(sums.ravel(), number.ravel(), score.ravel())
    sample = score.ravel()[::_SAMPLE]
    sample = sample[sample != 0]
    noise = SIGMA_PER_MAD * float(np.median(np.abs(sample))) if sample.size else 0.0
    if not noise > 0:
        return []
    trails = []
    for stripe in range(len(score)):
        place = int(np.argmax(score[stripe]))
        fall, row = divmod(place, score.shape[2])
        high = float(score[stripe, fall, row]) / noise
        if high < THRESHOLD:
            continue
        slope, first = fall / (STRIPE - 1), stripe * STRIPE
        ends = _ends(values, count, first, row - STRIPE, slope, noise)
        trails.append(_turned_back(ends, first, row - STRIPE, slope, turn, values.shape[0], high))
    return trails


def _ends(values, count, first: int, start: int, slope: float, noise: float) -> tuple[int, int]:
    """Return the first and the last column in which there is a trail."""
    columns = np.arange(-STRIPE // 2, STRIPE + STRIPE // 2)
    rows = np.rint(start + slope * columns).astype(int)
    inside = (rows >= 0) & (rows < values.shape[0])
    x = first + columns
    inside &= (x >= 0) & (x < values.shape[1])
    pieces = len(columns) // PIECE
    piece = np.zeros((2, pieces))
    # A line may lie between two rows: those beside it count as well.
    for beside in (-1, 0, 1):
        at = np.clip(rows + beside, 0, values.shape[0] - 1)[inside], x[inside]
        np.add.at(piece[0], np.flatnonzero(inside) // PIECE, values[at])
        np.add.at(piece[1], np.flatnonzero(inside) // PIECE, count[at])
    full = piece[0] > MIN_PIECE * noise * np.sqrt(np.maximum(piece[1], 1))
    middle = slice(STRIPE // 2 // PIECE, (STRIPE // 2 + STRIPE) // PIECE)
    own = np.flatnonzero(full[middle]) + middle.start
    low, high = (own[0], own[-1]) if own.size else (middle.start, middle.stop - 1)
    while low > 0 and full[low - 1]:
        low -= 1
    while high < pieces - 1 and full[high + 1]:
        high += 1
    return int(columns[low * PIECE]), int(columns[high * PIECE + PIECE - 1])


def _turned_back(ends, first, start, slope, turn, height, score) -> Trail:
    """Return a piece of a line as it lies in the plane that was turned."""
    low, high = ends
    begin = start + slope * low
    if turn & 1:
        begin, slope = height - 1 - begin, -slope
    return Trail(0 if turn & 2 else 1, first + low, first + high, begin, slope, score)


def band(trail: Trail, shape: tuple[int, int], width: float) -> np.ndarray:
    """Return which pixels lie within `width` of a trail, (h, w) bool."""
    columns = shape[1] if trail.along else shape[0]
    out = np.zeros(shape, bool)
    turned = out if trail.along else out.T
    reach = width * np.sqrt(1 + trail.slope**2)
    for x in range(max(int(np.ceil(trail.first - width)), 0), min(int(trail.last + width), columns - 1) + 1):
        y = trail.start + trail.slope * (x - trail.first)
        turned[max(int(np.ceil(y - reach)), 0) : max(int(np.floor(y + reach)) + 1, 0), x] = True
    return out


def in_pixels(trail: Trail, size: int, corner: tuple[int, int] = (0, 0)) -> Trail:
    """Return a trail in pixels of which `size` make a bin, the first one at row and column `corner`."""
    start, first = corner if trail.along else corner[::-1]
    middle = (size - 1) / 2
    return trail._replace(
        first=trail.first * size + first,
        last=trail.last * size + size - 1 + first,
        # Where x is that of the first pixel of the first bin, not of its middle.
        start=trail.start * size + middle * (1 - trail.slope) + start,
    )


def precompile() -> None:
    """Call the kernels on little."""
    find_trails(np.ones((12, 12), np.float32))
