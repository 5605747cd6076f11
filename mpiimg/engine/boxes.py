"""Who owns what: the chunk grid of the data and the partition of the run. Pure arithmetic, no MPI.

A box is a tuple of half-open (start, stop) bounds, one pair per axis. The chunk grid is a pure function of
stage and data shape; only the partition knows how many ranks there are.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from mpiimg.engine.axes import axes_text, named_axes

Box = tuple[tuple[int, int], ...]


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the number of items along each axis of `box`."""
    return tuple(stop - start for start, stop in box)


def box_size(box: Box) -> int:
    """Return the number of items in `box`."""
    return math.prod([stop - start for start, stop in box])


def box_slices(box: Box, origin: Box | None = None) -> tuple[slice, ...]:
    """Return slices that select `box` from an array whose first item lies at the start of `origin`."""
    starts = (0,) * len(box) if origin is None else tuple(start for start, _ in origin)
    return tuple(slice(a - s, b - s) for (a, b), s in zip(box, starts, strict=True))


def box_within(box: Box, origin: Box) -> Box:
    """Return `box` counted from the start of `origin`."""
    return tuple((a - start, b - start) for (a, b), (start, _) in zip(box, origin, strict=True))


def intersection(one: Box, other: Box) -> Box | None:
    """Return the part that two boxes share, or None where they share nothing."""
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return common if all(stop > start for start, stop in common) else None


def intersections(boxes: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Intersect many boxes with one.

    Parameters
    ----------
    boxes : (n, axes, 2) int64
    box : Box
        Of as many axes.

    Returns
    -------
    which : (m,) int64
        Indices of the boxes that share items with `box`, ascending.
    common : (m, axes, 2) int64
        The parts that they share.
    """
    one = np.asarray(box, dtype=np.int64).reshape(1, -1, 2)
    common = np.empty_like(boxes)
    np.maximum(boxes[..., 0], one[..., 0], out=common[..., 0])
    np.minimum(boxes[..., 1], one[..., 1], out=common[..., 1])
    which = np.flatnonzero((common[..., 1] > common[..., 0]).all(axis=1))
    return which, common[which]


@dataclass(frozen=True)
class ChunkGrid:
    """The data cut into chunks along some named axes; chunks are numbered in C order.

    Parameters
    ----------
    axes : tuple of str
        A name for each axis that is cut, e.g. "vz"; as an :class:`~mpiimg.engine.array.Array` has them. Where
        none is cut there is one chunk.
    shape : tuple of int
        Items along each of them.
    block : tuple of int
        Items of a chunk along each of them; the last chunk along an axis may have fewer.

    Raises
    ------
    ValueError
        These are not of one length, a name comes twice, or a block is empty.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    block: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "axes", named_axes(self.axes))
        if not len(self.axes) == len(self.shape) == len(self.block) or min(self.block, default=1) < 1:
            said = axes_text(self.axes)
            raise ValueError(f"grid over {said!r}: shape {self.shape} and block {self.block} do not fit")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def bounds(self, chunk: int) -> Box:
        """Return the box of chunk number `chunk` in the axes of the grid."""
        place = []
        for count in reversed(self.counts):
            chunk, i = divmod(chunk, count)
            place.append(i)
        return tuple(
            (i * b, min((i + 1) * b, n))
            for i, b, n in zip(reversed(place), self.block, self.shape, strict=True)
        )

    def table(self) -> np.ndarray:
        """Return the boxes of all chunks, (chunks, axes, 2) int64: :meth:`bounds` of each."""
        boxes = np.empty((*self.counts, len(self.axes), 2), np.int64)
        for axis, (count, block, length) in enumerate(zip(self.counts, self.block, self.shape, strict=True)):
            ends = np.arange(count + 1, dtype=np.int64) * block
            ends = np.stack([ends[:-1], np.minimum(ends[1:], length)], axis=1)
            boxes[..., axis, :] = ends.reshape(count, *[1] * (len(self.axes) - 1 - axis), 2)
        return boxes.reshape(len(self), len(self.axes), 2)


def runs_of_items(shape: Sequence[int], most: int) -> list[Box]:
    """Return boxes that cut a dense array into runs of at most `most` items in storage, in their order."""
    if math.prod(shape) <= max(most, 1):
        return [tuple((0, n) for n in shape)] if math.prod(shape) else []
    first, *rest = shape
    step = max(most, 1) // math.prod(rest)
    if not step:
        return [((i, i + 1), *run) for i in range(first) for run in runs_of_items(rest, most)]
    whole = tuple((0, n) for n in rest)
    return [((i, min(i + step, first)), *whole) for i in range(0, first, step)]


def blocks_along(length: int, at_most: int, thinnest: int = 1) -> int:
    """Return a thickness that cuts `length` into at most `at_most` blocks, none thinner than `thinnest`."""
    return max(1, min(length, max(thinnest, -(-length // at_most))))


@dataclass(frozen=True)
class Partition:
    """A run of consecutive items for each rank.

    `cuts` holds ranks + 1 ascending numbers: rank r owns items cuts[r] to cuts[r + 1].
    """

    cuts: tuple[int, ...]

    @classmethod
    def even(cls, items: int, ranks: int) -> Partition:
        """Give every rank as many items as any other, or one more."""
        share, rest = divmod(items, ranks)
        return cls(tuple(rank * share + min(rank, rest) for rank in range(ranks + 1)))

    @classmethod
    def balanced(
        cls,
        weights: Sequence[int],
        ranks: int,
        sizes: Sequence[int] | None = None,
        max_bytes: int | None = None,
    ) -> Partition:
        """Make the heaviest rank as light as it can be, each rank holding at most `max_bytes` of `sizes`.

        Parameters
        ----------
        weights : sequence of int
            The work in each item, not negative.
        ranks : int
            How many parts to make.
        sizes : sequence of int, optional
            Bytes that each item takes where it is owned; with `max_bytes` only.
        max_bytes : int, optional
            Bytes that a rank may hold.

        Raises
        ------
        ValueError
            No partition of consecutive items keeps within `max_bytes`.
        """
        heights = [0, *accumulate(int(w) for w in weights)]
        fill = [0, *accumulate(int(s) for s in sizes)] if max_bytes is not None else None
        if heights[-1] == 0:
            heights = list(range(len(heights)))
        low, high = -(-heights[-1] // ranks), heights[-1]
        best = _cut_below(heights, high, ranks, fill, max_bytes)
        if best is None:
            raise ValueError(
                f"{ranks} ranks of {max_bytes} bytes cannot hold {fill[-1]} bytes in whole chunks"
            )
        while low < high:
            middle = (low + high) // 2
            cuts = _cut_below(heights, middle, ranks, fill, max_bytes)
            if cuts is None:
                low = middle + 1
            else:
                best, high = cuts, middle
        return cls(tuple(_cut_below(heights, low, ranks, fill, max_bytes) or best))

    @property
    def ranks(self) -> int:
        return len(self.cuts) - 1

    def owned(self, rank: int) -> range:
        """Return the items of `rank`."""
        return range(self.cuts[rank], self.cuts[rank + 1])

    def owner(self, item: int) -> int:
        """Return the rank that owns `item`."""
        return bisect_right(self.cuts, item) - 1

    def owners(self) -> np.ndarray:
        """Return the owner of every item, (items,) int64."""
        return np.repeat(np.arange(self.ranks), np.diff(self.cuts))

    def grow(self, halo: int) -> tuple[tuple[int, int], ...]:
        """Return each rank's bounds with `halo` more items on both sides, clipped; empty ranks stay empty."""
        last = self.cuts[-1]
        return tuple(
            (max(a - halo, 0), min(b + halo, last)) if b > a else (a, a)
            for a, b in zip(self.cuts[:-1], self.cuts[1:], strict=True)
        )


def _cut_below(heights, limit, ranks, fill, max_bytes):
    """Cut greedily so that no part weighs more than `limit`; None where that takes too many parts."""
    items = len(heights) - 1
    cuts = [0]
    for _ in range(ranks):
        start = cuts[-1]
        stop = bisect_right(heights, heights[start] + limit) - 1
        if fill is not None:
            stop = min(stop, bisect_right(fill, fill[start] + max_bytes) - 1)
        if stop >= items:
            return cuts + [items] * (ranks + 1 - len(cuts))
        cuts.append(stop)
    return None


def box_in_array(
    axes: Sequence[str],
    shape: Sequence[int],
    bounds: Mapping[str, tuple[int, int]],
    halo: Mapping[str, int] | None = None,
) -> Box:
    """Return the part of an array that belongs to a chunk: whole along axes that the chunk does not have.

    Parameters
    ----------
    axes : sequence of str
        A name for each axis of the array.
    shape : sequence of int
        Of the array.
    bounds : mapping of str to (int, int)
        Of the chunk, by axis.
    halo : mapping of str to int, optional
        Items more on both sides, by axis; clipped at the array's ends.
    """
    halo = halo or {}
    box = []
    for axis, length in zip(axes, shape, strict=True):
        start, stop = bounds.get(axis, (0, length))
        h = halo.get(axis, 0)
        box.append((max(start - h, 0), min(stop + h, length)))
    return tuple(box)


def runs(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending `indices` as half-open runs: 0, 1, 2, 7 gives (0, 3), (7, 8)."""
    pieces: list[list[int]] = []
    for i in indices:
        if pieces and pieces[-1][1] == i:
            pieces[-1][1] = i + 1
        else:
            pieces.append([i, i + 1])
    return tuple((a, b) for a, b in pieces)
