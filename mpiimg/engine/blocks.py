"""Where the blocks of the arrays of a run lie, and who owns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mpiimg.engine.array import AnyArray
from mpiimg.engine.boxes import Box, intersections
from mpiimg.engine.needs import Chunk, Target


class BoxTable:
    """Boxes that blocks of an array lie at, and which of them share items with another box.

    Parameters
    ----------
    boxes : (blocks, axes, 2) int64
    """

    def __init__(self, boxes: np.ndarray):
        self.boxes = boxes

    @cached_property
    def ordered(self) -> bool:
        """Whether the blocks follow each other along the first axis."""
        return self.boxes.shape[1] > 0 and bool((np.diff(self.boxes[:, 0], axis=0) >= 0).all())

    def parts(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the blocks that share items with `box`, and what they share.

        Returns
        -------
        blocks : (n,) int64
        common : (n, axes, 2) int64
        """
        first, stop = 0, len(self.boxes)
        if self.ordered:
            # There may be very many blocks, of which few lie there.
            (start, end), *_ = box
            first = int(np.searchsorted(self.boxes[:, 0, 1], start, side="right"))
            stop = max(first, int(np.searchsorted(self.boxes[:, 0, 0], end, side="left")))
        which, common = intersections(self.boxes[first:stop], box)
        return which + first, common

    def items(self) -> np.ndarray:
        """Return the items in each block, (blocks,) int64."""
        return np.prod(self.boxes[..., 1] - self.boxes[..., 0], axis=1)


class BlockTable(BoxTable):
    """Where the blocks that a stage writes of one array lie: a block per chunk, or any number of pieces.

    Parameters
    ----------
    boxes : (blocks, axes, 2) int64
        Of all blocks, in the order of chunks.
    starts : (chunks + 1,) int64
        The first block of each chunk; the last number is that of all blocks.
    """

    def __init__(self, target: Target, chunks: Sequence[Chunk]):
        of_chunks = [target.boxes(chunk) for chunk in chunks]
        flat = [box for boxes in of_chunks for box in boxes]
        super().__init__(np.array(flat, dtype=np.int64).reshape(len(flat), len(target.array.axes), 2))
        self.starts = np.cumsum([0, *map(len, of_chunks)])

    def of_chunk(self, chunk: int) -> range:
        """Return the numbers of a chunk's blocks."""
        return range(int(self.starts[chunk]), int(self.starts[chunk + 1]))

    def chunk_of(self, block: int) -> int:
        """Return the number of the chunk that writes a block."""
        return int(np.searchsorted(self.starts, block, side="right")) - 1

    def chunk_items(self) -> np.ndarray:
        """Return the items that each chunk writes, (chunks,) int64."""
        total = np.concatenate([[0], np.cumsum(self.items())])
        return total[self.starts[1:]] - total[self.starts[:-1]]

    def owners(self, of_chunks: np.ndarray) -> np.ndarray:
        """Return the owner of each block, from the owner of each chunk."""
        return np.repeat(of_chunks, np.diff(self.starts))


@dataclass(frozen=True)
class Placement:
    """Where an array is during a run.

    Parameters
    ----------
    array : Array or Ragged
    table : BlockTable
        The boxes of its blocks.
    owners : (blocks,) int64
        The rank that owns each block.
    memory, staged : bool
        Which stores hold it.
    """

    array: AnyArray
    table: BlockTable = field(repr=False, compare=False)
    owners: np.ndarray = field(repr=False, compare=False)
    memory: bool
    staged: bool

    @property
    def boxes(self) -> np.ndarray:
        return self.table.boxes

    def share(self, ranks: int) -> np.ndarray:
        """Return the bytes of it that each rank keeps in memory, (ranks,)."""
        if not self.memory:
            return np.zeros(ranks, np.int64)
        held = np.bincount(self.owners, weights=self.table.items(), minlength=ranks).astype(np.int64)
        return held * np.dtype(self.array.dtype).itemsize
