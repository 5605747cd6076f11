"""What the work on a chunk reads and fills of arrays: a part, rows, one box, or any pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpiimg.engine.array import AnyArray, Array
from mpiimg.engine.axes import named_axes
from mpiimg.engine.boxes import Box, box_size, runs


@dataclass(frozen=True)
class Chunk:
    """The unit of work: its number, the names of the axes that are cut, and its bounds along them."""

    number: int
    axes: tuple[str, ...]
    box: Box

    def __post_init__(self):
        if not isinstance(self.axes, tuple):
            object.__setattr__(self, "axes", named_axes(self.axes))

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


Need = Part | Rows | At | Pieces

Target = Part | At | Pieces


def need_bytes(need: Need, boxes: Iterable[Box]) -> int:
    """Return the bytes of what a need takes from its array at `boxes`."""
    return sum(map(box_size, boxes)) * np.dtype(need.array.dtype).itemsize
