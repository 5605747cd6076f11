"""Where the blocks of the arrays of a run lie, and who owns them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mpiimg.engine.array import AnyArray
from mpiimg.engine.box_table import BoxTable
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import ChunkBoxes, Target


class BlockTable(BoxTable):
    """Where the blocks that a stage writes of one array lie: a block per chunk, or any number of pieces.

    Parameters
    ----------
    target : Target
        What the work on a chunk fills.
    grid : ChunkGrid
        The chunks.

    Attributes
    ----------
    boxes : (blocks, axes, 2) int64
        Of all blocks, in the order of chunks.
    starts : (chunks + 1,) int64
        The first block of each chunk; the last number is that of all blocks.
    """

    def __init__(self, target: Target, grid: ChunkGrid):
        boxes, counts = ChunkBoxes(target, grid).all()
        super().__init__(boxes)
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def of_chunk(self, chunk: int) -> range:
        """Return the numbers of a chunk's blocks."""
        return range(int(self.starts[chunk]), int(self.starts[chunk + 1]))

    def chunk_of(self, block: int) -> int:
        """Return the number of the chunk that writes a block."""
        return int(np.searchsorted(self.starts, block, side="right")) - 1

    def chunk_items(self) -> np.ndarray:
        """Return the items that each chunk writes, (chunks,) int64."""
        return sums_of_runs(self.items(), self.starts)

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


def sums_of_runs(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the sum of each run of values: from each of `starts` (n + 1,) to the next one, (n,) int64."""
    total = np.concatenate([[0], np.cumsum(values)])
    return total[starts[1:]] - total[starts[:-1]]
