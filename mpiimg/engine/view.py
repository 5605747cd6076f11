"""A need that sees an array through a view: strided, reversed, or any items of its axes, in any order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, ChunkGrid, runs
from mpiimg.engine.needs import Chunk

#: Which items of an axis: an arithmetic progression, or any, in any order and as often as they stand there.
Pick = range | tuple[int, ...]

#: Runs that items of an axis are read in, at most: what lies between them is read as well.
MAX_RUNS = 256


def as_pick(indices: Sequence[int] | np.ndarray) -> Pick:
    """Return which items `indices` are, as a progression where they are one."""
    if isinstance(indices, range):
        return indices
    array = np.asarray(indices, dtype=np.int64)
    if not array.size:
        return range(0)
    if array.size == 1:
        return range(int(array[0]), int(array[0]) + 1)
    step = int(array[1] - array[0])
    if step and (np.diff(array) == step).all():
        return range(int(array[0]), int(array[-1]) + (1 if step > 0 else -1), step)
    return tuple(array.tolist())


def compose(outer: Pick, inner: Pick) -> Pick:
    """Return the items of an axis that `inner` picks out of those that `outer` picks."""
    if isinstance(outer, range) and isinstance(inner, range):
        if not len(inner):
            return range(0)
        step = outer.step * inner.step
        first = outer[inner[0]]
        return range(first, first + step * len(inner), step)
    return as_pick(np.asarray(outer, dtype=np.int64)[np.asarray(inner, dtype=np.int64)])


@dataclass(frozen=True)
class Cut:
    """Which items of an axis each chunk takes.

    Parameters
    ----------
    along : str, optional
        The axis of the grid that decides; None where all chunks take the same.
    picks : tuple of Pick
        One per block of the grid along that axis; a single one where `along` is None.
    """

    along: str | None
    picks: tuple[Pick, ...]

    @classmethod
    def whole(cls, length: int) -> Cut:
        """Return that all chunks take all of an axis."""
        return cls(None, (range(length),))

    @cached_property
    def _hash(self) -> int:
        return hash((self.along, self.picks))

    def __hash__(self) -> int:
        return self._hash

    def map(self, function) -> Cut:
        """Return a cut whose picks are `function` of these."""
        return Cut(self.along, tuple(map(function, self.picks)))

    @property
    def longest(self) -> int:
        """The most items that a chunk takes."""
        return max(map(len, self.picks), default=0)

    def place(self, index: dict[str, int]) -> int:
        """Return which pick is that of a chunk."""
        return 0 if self.along is None else index[self.along]


def grid_index(grid: ChunkGrid, number: int) -> dict[str, int]:
    """Return the number of the block along each axis of the grid that a chunk is."""
    place = {}
    for axis, count in zip(reversed(grid.axes), reversed(grid.counts), strict=True):
        number, place[axis] = divmod(number, count)
    return place


def grid_cut(grid: ChunkGrid, axis: str, halo: int = 0) -> Cut:
    """Return the items along an axis of the grid that belong to each block, with a halo beside them."""
    where = grid.axes.index(axis)
    length, block = grid.shape[where], grid.block[where]
    starts = range(0, length, block)
    if not len(starts):
        return Cut(axis, (range(0),))
    return Cut(axis, tuple(range(start, min(start + block, length) + 2 * halo) for start in starts))


@dataclass(frozen=True, eq=False)
class View:
    """What a chunk reads of an array, axis by axis.

    Its blocks come as they are read; :meth:`assemble` puts them together.

    Parameters
    ----------
    array : Array
    cuts : tuple of Cut
        One per axis of the array.
    grid : ChunkGrid
        Of the stage.
    """

    array: Array
    cuts: tuple[Cut, ...]
    grid: ChunkGrid

    @cached_property
    def _runs(self) -> tuple[tuple[tuple[tuple[int, int], ...], ...], ...]:
        """The runs of items that each pick of each axis is read in."""
        return tuple(tuple(map(_runs_of, cut.picks)) for cut in self.cuts)

    @property
    def copies(self) -> bool:
        """Whether the blocks that are read are joined in a copy."""
        return any(not _is_plain(pick) for cut in self.cuts for pick in cut.picks)

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes that the work on `chunk` reads."""
        index = grid_index(self.grid, chunk.number)
        by_axis = [of_axis[cut.place(index)] for of_axis, cut in zip(self._runs, self.cuts, strict=True)]
        return tuple(itertools.product(*by_axis))

    def table(self, grid: ChunkGrid) -> np.ndarray | None:
        """Return the one box that each chunk reads, (chunks, axes, 2); None where one reads others."""
        if any(len(of_pick) != 1 for of_axis in self._runs for of_pick in of_axis):
            return None
        places = np.unravel_index(np.arange(len(grid)), grid.counts) if grid.counts else ()
        by_axis = dict(zip(grid.axes, places, strict=True))
        table = np.empty((len(grid), len(self.cuts), 2), np.int64)
        for axis, (of_axis, cut) in enumerate(zip(self._runs, self.cuts, strict=True)):
            bounds = np.array([of_pick[0] for of_pick in of_axis], np.int64)
            table[:, axis] = bounds[0] if cut.along is None else bounds[by_axis[cut.along]]
        return table

    def join(self, blocks: list[np.ndarray]) -> list[np.ndarray]:
        """Return what the work sees of the blocks at :meth:`boxes`: them, for :meth:`assemble`."""
        return blocks

    def assemble(self, number: int, blocks: list[np.ndarray]) -> np.ndarray:
        """Return the items that chunk `number` takes, in the axes of the array."""
        index = grid_index(self.grid, number)
        places = [cut.place(index) for cut in self.cuts]
        picks = [cut.picks[place] for cut, place in zip(self.cuts, places, strict=True)]
        by_axis = [of_axis[place] for of_axis, place in zip(self._runs, places, strict=True)]
        if any(not len(pick) for pick in picks):
            return np.empty(tuple(map(len, picks)), self.array.dtype)
        block = blocks[0] if len(blocks) == 1 else _laid_out(blocks, by_axis)
        for axis, (pick, of_pick) in enumerate(zip(picks, by_axis, strict=True)):
            block = _picked(block, axis, pick, of_pick)
        return block


def _is_plain(pick: Pick) -> bool:
    return isinstance(pick, range) and pick.step == 1


def _runs_of(pick: Pick) -> tuple[tuple[int, int], ...]:
    """Return the runs of consecutive items that are read for a pick, ascending."""
    if not len(pick):
        return ()
    if isinstance(pick, range) and (abs(pick.step) <= 2 or len(pick) == 1):
        return ((min(pick[0], pick[-1]), max(pick[0], pick[-1]) + 1),)
    pieces = runs(sorted(set(pick)))
    if len(pieces) <= MAX_RUNS:
        return pieces
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(pieces)]
    widest = sorted(sorted(range(len(gaps)), key=lambda n: gaps[n])[-(MAX_RUNS - 1) :])
    firsts = [0, *(n + 1 for n in widest)]
    lasts = [*widest, len(pieces) - 1]
    return tuple((pieces[a][0], pieces[b][1]) for a, b in zip(firsts, lasts, strict=True))


def _laid_out(blocks: Iterable[np.ndarray], by_axis: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """Return blocks at the product of runs as one block, the runs of each axis end to end."""
    lengths = [[stop - start for start, stop in of_pick] for of_pick in by_axis]
    ends = [list(itertools.accumulate(of_axis, initial=0)) for of_axis in lengths]
    blocks = list(blocks)
    block = np.empty([of_axis[-1] for of_axis in ends], blocks[0].dtype)
    places = itertools.product(*(range(len(of_axis)) for of_axis in lengths))
    for place, part in zip(places, blocks, strict=True):
        block[tuple(slice(ends[a][n], ends[a][n + 1]) for a, n in enumerate(place))] = part
    return block


def _picked(block: np.ndarray, axis: int, pick: Pick, of_pick: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the items of a pick out of a block that has its runs end to end along an axis."""
    first = of_pick[0][0]
    before = (slice(None),) * axis
    if len(of_pick) == 1 and isinstance(pick, range):
        start, stop = pick[0] - first, pick[-1] - first
        if pick.step == 1 and start == 0 and len(pick) == block.shape[axis]:
            return block
        end = stop + (1 if pick.step > 0 else -1)
        return block[(*before, slice(start, end if end >= 0 else None, pick.step))]
    starts = np.array([start for start, _ in of_pick])
    offsets = np.concatenate([[0], np.cumsum([stop - start for start, stop in of_pick])[:-1]])
    items = np.asarray(pick, dtype=np.int64)
    run = np.searchsorted(starts, items, side="right") - 1
    return np.take(block, items - starts[run] + offsets[run], axis=axis)


def view_bytes(view: View) -> int:
    """Return the most bytes that a chunk takes."""
    return math.prod(cut.longest for cut in view.cuts) * np.dtype(view.array.dtype).itemsize
