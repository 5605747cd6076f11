"""Boxes of the blocks of an array, and which of them share items with other boxes. Pure arithmetic.

There may be very many blocks. Where every axis is cut at the same places for all of them, as by a grid of
chunks, those that meet a box follow from the places alone; where they follow each other along the first axis
few are looked at; else all are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from mpiimg.engine.boxes import Box, intersections

#: So many blocks are looked at as they are, one by one, and so many pairs of blocks and boxes at a time.
FEW_BLOCKS, PAIRS = 256, 1 << 18

#: Numbers of boxes (n,), of blocks (n,), and what each pair of them shares (n, axes, 2), all int64.
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


class BoxTable:
    """Boxes that blocks of an array lie at, and which of them share items with another box.

    Parameters
    ----------
    boxes : (blocks, axes, 2) int64
        They are disjoint.
    """

    def __init__(self, boxes: np.ndarray):
        self.boxes = boxes

    @cached_property
    def ordered(self) -> bool:
        """Whether the blocks follow each other along the first axis."""
        return self.boxes.shape[1] > 0 and bool((np.diff(self.boxes[:, 0], axis=0) >= 0).all())

    @cached_property
    def _lattice(self) -> _Lattice | None:
        return _Lattice.of(self.boxes)

    def items(self) -> np.ndarray:
        """Return the items in each block, (blocks,) int64."""
        return box_items(self.boxes)

    def parts(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the blocks that share items with `box`, and what they share.

        Returns
        -------
        blocks : (n,) int64
            Ascending.
        common : (n, axes, 2) int64
        """
        first, stop = 0, len(self.boxes)
        if self.ordered:
            (start, end), *_ = box
            first = int(np.searchsorted(self.boxes[:, 0, 1], start, side="right"))
            stop = max(first, int(np.searchsorted(self.boxes[:, 0, 0], end, side="left")))
        if stop - first > FEW_BLOCKS and self._lattice is not None:
            _, blocks, common = self.look_up(np.array(box, np.int64).reshape(1, -1, 2))
            return blocks, common
        which, common = intersections(self.boxes[first:stop], box)
        return which + first, common

    def look_up(self, boxes: np.ndarray) -> Parts:
        """Return what boxes (m, axes, 2) share with blocks: by box, then by number of block."""
        found = list(self.looked_up(boxes))
        if len(found) == 1:
            return found[0]
        nothing = np.zeros(0, np.int64)
        found.append((nothing, nothing, np.zeros((0, *boxes.shape[1:]), np.int64)))
        which, blocks, common = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return which, blocks, common

    def looked_up(self, boxes: np.ndarray) -> Iterator[Parts]:
        """Yield what :meth:`look_up` returns in pieces that take little memory, all of one box together."""
        if len(self.boxes) > 1 and self._lattice is not None:
            yield from _in_slabs(boxes, self._lattice.counts(boxes), self._lattice.look_up)
        elif self.ordered:
            _, count = self._near(boxes)
            yield from _in_slabs(boxes, count, lambda some: self._among(some, *self._near(some)))
        else:
            for number, box in enumerate(boxes):
                blocks, common = intersections(self.boxes, box)
                yield np.full(len(blocks), number), blocks, common

    def merged(self, owners: np.ndarray) -> tuple[BoxTable, np.ndarray]:
        """Return a table of fewer blocks, if easily found, and their owners, who have the same items by it.

        Parameters
        ----------
        owners : (blocks,) int64
        """
        lattice = self._lattice if len(self.boxes) > 1 else None
        if lattice is None:
            return self, owners
        boxes, numbers = lattice.merged(owners)
        return BoxTable(boxes), owners[numbers]

    def _near(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first block that meets each box along the first axis, and how many do."""
        first = np.searchsorted(self.boxes[:, 0, 1], boxes[:, 0, 0], side="right")
        stop = np.searchsorted(self.boxes[:, 0, 0], boxes[:, 0, 1], side="left")
        return first, np.maximum(stop - first, 0)

    def _among(self, boxes: np.ndarray, first: np.ndarray, count: np.ndarray) -> Parts:
        which = np.repeat(np.arange(len(boxes)), count)
        blocks = counted(count) + first[which]
        common = np.empty((len(which), *boxes.shape[1:]), np.int64)
        np.maximum(self.boxes[blocks, :, 0], boxes[which, :, 0], out=common[..., 0])
        np.minimum(self.boxes[blocks, :, 1], boxes[which, :, 1], out=common[..., 1])
        meets = (common[..., 1] > common[..., 0]).all(axis=1)
        return which[meets], blocks[meets], common[meets]


class _Lattice:
    """Blocks for which every axis is cut at the same places, numbered in any order.

    Parameters
    ----------
    cuts : list of (array, array)
        Where blocks start and stop, by axis, ascending.
    numbers : (n,) int64
        The number of the block at each place, in C order.
    """

    def __init__(self, cuts: list[tuple[np.ndarray, np.ndarray]], numbers: np.ndarray):
        self._cuts, self._numbers = cuts, numbers
        self._in_order = bool((np.diff(numbers) > 0).all())

    @classmethod
    def of(cls, boxes: np.ndarray) -> _Lattice | None:
        """Return the lattice that boxes (blocks, axes, 2) fill, but for empty ones, or None."""
        full = np.flatnonzero((boxes[..., 1] > boxes[..., 0]).all(axis=1))
        if not len(full):
            return None
        boxes = boxes[full]
        cuts, places = [], np.zeros(len(full), np.int64)
        for axis in range(boxes.shape[1]):
            starts, place = np.unique(boxes[:, axis, 0], return_inverse=True)
            stops = np.empty_like(starts)
            stops[place] = boxes[:, axis, 1]
            if (stops[place] != boxes[:, axis, 1]).any() or (starts[1:] < stops[:-1]).any():
                return None
            cuts.append((starts, stops))
            places = places * len(starts) + place
            if math.prod(len(starts) for starts, _ in cuts) > len(full):
                return None
        numbers = np.full(len(full), -1)
        numbers[places] = full
        return cls(cuts, numbers) if (numbers >= 0).all() else None

    def merged(self, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes of a coarser lattice, (n, axes, 2), and of each a block whose owner has it all."""
        numbers = self._numbers.reshape([len(starts) for starts, _ in self._cuts])
        cuts = []
        for axis, (starts, stops) in enumerate(self._cuts):
            theirs = np.moveaxis(owners[numbers], axis, 0).reshape(len(starts), -1)
            begins = np.flatnonzero(
                np.concatenate([[True], (theirs[1:] != theirs[:-1]).any(axis=1) | (starts[1:] != stops[:-1])])
            )
            ends = np.append(begins[1:], len(starts)) - 1
            cuts.append(np.stack([starts[begins], stops[ends]], axis=1))
            numbers = np.take(numbers, begins, axis=axis)
        boxes = np.empty((*numbers.shape, len(cuts), 2), np.int64)
        for axis, cut in enumerate(cuts):
            boxes[..., axis, :] = cut.reshape(len(cut), *[1] * (len(cuts) - 1 - axis), 2)
        return boxes.reshape(numbers.size, len(cuts), 2), numbers.reshape(-1)

    def counts(self, boxes: np.ndarray) -> np.ndarray:
        """Return how many blocks meet each box, (m,) int64."""
        return np.prod([count for _, count in self._runs(boxes)], axis=0, dtype=np.int64)

    def look_up(self, boxes: np.ndarray) -> Parts:
        """Return what boxes share with blocks: by box, then by number of block."""
        runs = self._runs(boxes)
        count = np.prod([count for _, count in runs], axis=0, dtype=np.int64)
        which, place, stride = np.repeat(np.arange(len(boxes)), count), 0, 1
        rest, common = counted(count), np.empty((int(count.sum()), *boxes.shape[1:]), np.int64)
        for axis in reversed(range(boxes.shape[1])):
            (starts, stops), (first, along) = self._cuts[axis], runs[axis]
            rest, index = np.divmod(rest, along[which])
            index += first[which]
            np.maximum(starts[index], boxes[which, axis, 0], out=common[:, axis, 0])
            np.minimum(stops[index], boxes[which, axis, 1], out=common[:, axis, 1])
            place, stride = place + index * stride, stride * len(starts)
        blocks = self._numbers[place]
        if self._in_order:
            return which, blocks, common
        order = np.lexsort((blocks, which))
        return which[order], blocks[order], common[order]

    def _runs(self, boxes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return, by axis, the first place that meets each box and how many do; none of an empty box."""
        runs = []
        for axis, (starts, stops) in enumerate(self._cuts):
            first = np.searchsorted(stops, boxes[:, axis, 0], side="right")
            last = np.searchsorted(starts, boxes[:, axis, 1], side="left")
            empty = boxes[:, axis, 1] <= boxes[:, axis, 0]
            runs.append((first, np.where(empty, 0, np.maximum(last - first, 0))))
        return runs


def boxes_array(boxes: Iterable[Box], axes: int) -> np.ndarray:
    """Return boxes as (n, axes, 2) int64."""
    boxes, chained = list(boxes), itertools.chain.from_iterable
    # From flat numbers: NumPy takes long to look into nested tuples.
    return np.fromiter(chained(chained(boxes)), np.int64, 2 * axes * len(boxes)).reshape(len(boxes), axes, 2)


def box_items(boxes: np.ndarray) -> np.ndarray:
    """Return the items in each of boxes (n, axes, 2), (n,) int64."""
    return np.prod(boxes[..., 1] - boxes[..., 0], axis=1)


def box_numbers(boxes: np.ndarray) -> np.ndarray:
    """Return a number for each of boxes (n, axes, 2), the same for boxes that are the same, (n,) int64."""
    numbers, bound = np.zeros(len(boxes), np.int64), 1
    for column in boxes.reshape(len(boxes), -1).T if len(boxes) else ():
        low, span = int(column.min()), int(column.max()) - int(column.min()) + 1
        if bound * span >= 1 << 62:
            _, numbers = np.unique(numbers, return_inverse=True)
            bound = int(numbers.max()) + 1
        if span > 1:
            numbers, bound = numbers * span + (column - low), bound * span
    return numbers


def first_of_each(groups: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the indices of boxes (n, axes, 2) that are the first of their kind in their group (n,)."""
    distinct, numbers = np.unique(box_numbers(boxes), return_inverse=True)
    if len(distinct) == len(boxes):
        return np.arange(len(boxes))
    _, first = np.unique(groups * len(distinct) + numbers, return_index=True)
    return np.sort(first)


def counted(count: np.ndarray) -> np.ndarray:
    """Return 0, 1, 2 ... up to each of several counts, end to end, (sum of counts,) int64."""
    return np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)


def _in_slabs(boxes: np.ndarray, count: np.ndarray, look_up) -> Iterator[Parts]:
    """Yield what look_up(boxes) finds for some boxes after the other, each of which meets `count` blocks."""
    total, first = np.cumsum(count), 0
    while first < len(boxes):
        before = int(total[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(total, before + PAIRS, side="right")))
        which, blocks, common = look_up(boxes[first:stop])
        yield which + first, blocks, common
        first = stop
