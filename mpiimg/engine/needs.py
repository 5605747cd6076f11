"""What the work on a chunk reads and fills of arrays: a part, rows, one box, or any pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpiimg.engine.array import AnyArray, Array
from mpiimg.engine.axes import named_axes
from mpiimg.engine.box_table import boxes_array
from mpiimg.engine.boxes import Box, ChunkGrid, runs


@dataclass(frozen=True)
class Chunk:
    """The unit of work: its number, the names of the axes that are cut, and its bounds along them."""

    number: int
    axes: tuple[str, ...]
    box: Box

    def __post_init__(self):
        if not isinstance(self.axes, tuple):
            object.__setattr__(self, "axes", named_axes(self.axes))

    @classmethod
    def of(cls, grid: ChunkGrid, number: int) -> Chunk:
        """Return chunk `number` of a grid."""
        return cls(number, grid.axes, grid.bounds(number))

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """The bounds by axis."""
        return dict(zip(self.axes, self.box, strict=True))


@dataclass(frozen=True)
class Part:
    """The part of an array that belongs to a chunk, as one block.

    Parameters
    ----------
    array : Array or Ragged
    halo : mapping of str to int
        Items more on both sides by axis, clipped at the array's ends.
    """

    array: AnyArray
    halo: Mapping[str, int] = field(default_factory=dict)

    #: Whether the blocks that are read are joined in a copy.
    copies = False

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes that the work on `chunk` reads, or fills."""
        return (self.array.part(chunk.bounds, self.halo),)

    def table(self, grid: ChunkGrid) -> np.ndarray:
        """Return the one box of each chunk, (chunks, axes, 2) int64."""
        return self.array.table(grid, self.halo)

    def join(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Return what the work sees of the blocks at :meth:`boxes`."""
        return blocks[0]


@dataclass(frozen=True)
class Rows:
    """The part of an array that belongs to a chunk, of some indices of the first axis, as one block.

    Parameters
    ----------
    array : Array
    rows : tuple of int
        Ascending indices along the first axis.
    halo : mapping of str to int
        As for :class:`Part`.
    """

    array: Array
    rows: tuple[int, ...]
    halo: Mapping[str, int] = field(default_factory=dict)

    @property
    def copies(self) -> bool:
        """Whether the blocks that are read are joined in a copy."""
        return self.rows[-1] - self.rows[0] >= len(self.rows)

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes that the work on `chunk` reads: one for each run of rows."""
        box = self.array.part(chunk.bounds, self.halo)
        return tuple((run, *box[1:]) for run in runs(self.rows))

    def table(self, grid: ChunkGrid) -> np.ndarray | None:
        """Return the one box of each chunk, (chunks, axes, 2) int64; None where there are several."""
        several = runs(self.rows)
        if len(several) != 1:
            return None
        boxes = self.array.table(grid, self.halo)
        boxes[:, 0] = several[0]
        return boxes

    def join(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Return what the work sees of the blocks at :meth:`boxes`."""
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


@dataclass(frozen=True)
class At:
    """One box of an array, wherever it lies, or none.

    Parameters
    ----------
    array : Array or Ragged
    box : callable
        Called as box(chunk); returns a box, or None where the work on a chunk reads nothing.
    """

    array: AnyArray
    box: Callable[[Chunk], Box | None]

    copies = False

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the box, as the only one, or none."""
        box = self.box(chunk)
        return () if box is None else (box,)

    def join(self, blocks: list[np.ndarray]) -> np.ndarray | None:
        """Return what the work sees: a block, or None."""
        return blocks[0] if blocks else None


@dataclass(frozen=True)
class Pieces:
    """Any number of boxes of an array, of any shapes, as a list of blocks.

    Parameters
    ----------
    array : Array or Ragged
    pieces : callable
        Called as pieces(chunk); returns the boxes.
    """

    array: AnyArray
    pieces: Callable[[Chunk], Sequence[Box]]

    copies = False

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes that the work on `chunk` reads, or fills."""
        return tuple(self.pieces(chunk))

    def join(self, blocks: list[np.ndarray]) -> list[np.ndarray]:
        """Return what the work sees: the list."""
        return blocks


@dataclass(frozen=True)
class OwnRow:
    """The row of an array that has the number of the chunk: what the work on it fills.

    Parameters
    ----------
    array : Array
        As long along its first axis as there are chunks.
    """

    array: Array

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the box that the work on `chunk` fills."""
        return (((chunk.number, chunk.number + 1), *((0, n) for n in self.array.shape[1:])),)

    def table(self, grid: ChunkGrid) -> np.ndarray:
        """Return the one box of each chunk, (chunks, axes, 2) int64."""
        boxes = np.empty((len(grid), len(self.array.axes), 2), np.int64)
        boxes[:, 0] = np.arange(len(grid))[:, None] + (0, 1)
        boxes[:, 1:, 0], boxes[:, 1:, 1] = 0, self.array.shape[1:]
        return boxes


#: What has one box of its array for each chunk of a grid may say all of them at once, by a method
#: table(grid): (chunks, axes, 2) int64, or None where it has none or several of some chunk.
Need = Part | Rows | At | Pieces

Target = Part | At | Pieces | OwnRow


class ChunkBoxes:
    """The boxes of an array that the work on the chunks of a grid reads or fills.

    Parameters
    ----------
    need : Need or Target
    grid : ChunkGrid
    """

    def __init__(self, need: Need | Target, grid: ChunkGrid):
        self._need, self._grid, self._axes = need, grid, len(need.array.axes)
        table = need.table(grid) if hasattr(need, "table") else None
        if table is not None:
            table = np.asarray(table, np.int64)
            if table.shape != (len(grid), self._axes, 2):
                raise ValueError(
                    f"array {need.array.name}: the table of {type(need).__name__} has shape {table.shape}, "
                    f"and not {(len(grid), self._axes, 2)}"
                )
        self._table = table

    def of(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes of chunks in turn, (boxes, axes, 2), and how many each has, (chunks,), int64."""
        if self._table is not None:
            numbers = np.asarray(numbers, np.int64)
            return self._table[numbers], np.ones(len(numbers), np.int64)
        numbers = np.asarray(numbers, np.int64).tolist()
        boxes = [self._need.boxes(Chunk.of(self._grid, number)) for number in numbers]
        counts = np.array(list(map(len, boxes)), np.int64)
        return boxes_array(itertools.chain.from_iterable(boxes), self._axes), counts

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return :meth:`of` all chunks."""
        if self._table is not None:
            return self._table, np.ones(len(self._grid), np.int64)
        return self.of(range(len(self._grid)))
