"""What a stage will need: bytes in the memory of a rank, bytes to and from files, and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.boxes import Partition, box_size
from mpiimg.engine.forecast import Flow, Placement, exchanged_needs
from mpiimg.engine.mpi.stream import BLOCKS_AHEAD
from mpiimg.engine.rates import Rates
from mpiimg.engine.stage import Need, Stage

#: Times the bytes read and written that are left for work whose stage does not say what it takes.
UNKNOWN_SCRATCH = 3


@dataclass(frozen=True)
class ChunkBytes:
    """What each chunk of a stage reads and writes, in bytes.

    Parameters
    ----------
    reads : (needs, chunks)
    writes : (arrays, chunks)
    joined : (needs,) whether what is read comes in parts that are joined in a copy
    """

    reads: np.ndarray
    writes: np.ndarray
    joined: np.ndarray

    @property
    def each(self) -> np.ndarray:
        """Bytes that each chunk reads and writes, (chunks,)."""
        return self.reads.sum(axis=0) + self.writes.sum(axis=0)

    @property
    def largest(self) -> int:
        """Bytes that a chunk reads and writes at most."""
        return int(self.each.max(initial=0))


def chunk_bytes(stage: Stage) -> ChunkBytes:
    """Work out what every chunk of `stage` reads and writes."""
    chunks = [stage.chunk(number) for number in range(len(stage.grid))]
    reads = [[_boxes_bytes(need, need.boxes(chunk)) for chunk in chunks] for need in stage.reads]
    writes = []
    for array in stage.writes:
        boxes = stage.output_boxes(array)
        writes.append(np.prod(boxes[..., 1] - boxes[..., 0], axis=1) * np.dtype(array.dtype).itemsize)
    joined = [need.place is None and need.rows is not None and _in_parts(need) for need in stage.reads]
    return ChunkBytes(
        np.array(reads, np.int64).reshape(len(stage.reads), len(chunks)),
        np.array(writes, np.int64).reshape(len(stage.writes), len(chunks)),
        np.array(joined, bool),
    )


def _boxes_bytes(need: Need, boxes: Iterable) -> int:
    return sum(map(box_size, boxes)) * np.dtype(need.array.dtype).itemsize


def _in_parts(need: Need) -> bool:
    return need.rows[-1] - need.rows[0] >= len(need.rows)


def work_bytes(
    stage: Stage, sizes: ChunkBytes, gathered: Sequence[bool] = (), held: Sequence[bool] = ()
) -> int:
    """Return the most bytes that the work on one chunk takes, beside what was gathered for it and is held.

    Parameters
    ----------
    gathered : for each need, whether it is in memory already; by default none is
    held : for each array written, whether its blocks stay in memory, where they are counted; likewise
    """
    if stage.kind == "source":
        # Blocks under way to their owners, one that is held back, the one that is being read.
        return (BLOCKS_AHEAD + 4) * sizes.largest
    from_files = np.ones(len(stage.reads)) - np.array(gathered or [False] * len(stage.reads))
    passing = np.ones(len(stage.writes)) - np.array(held or [False] * len(stage.writes))
    own = (from_files + sizes.joined) @ sizes.reads + passing @ sizes.writes
    scratch = stage.scratch if stage.scratch is not None else UNKNOWN_SCRATCH * sizes.largest
    return int(own.max(initial=0)) + scratch + stage.output_bytes


def files_only_bytes(stage: Stage, sizes: ChunkBytes, batch: int) -> int:
    """Return what a rank needs for a stage all of whose arrays lie in files: the least there is."""
    held_back = (batch - 1) * stage.output_bytes if stage.kind == "sink" else 0
    return work_bytes(stage, sizes) + held_back


def rank_bytes(
    stage: Stage, sizes: ChunkBytes, batch: int, placed: Mapping[str, Placement], flow: Flow
) -> np.ndarray:
    """Return the most bytes that each rank has in hand beside the arrays it holds, (ranks,).

    `placed` includes the arrays that the stage writes.
    """
    exchanged = exchanged_needs(stage, placed)
    held = [placed[array.name].memory for array in stage.writes]
    work = work_bytes(stage, sizes, [need in exchanged for need in stage.reads], held)
    if stage.kind == "sink":
        work += (batch - 1) * stage.output_bytes
    return np.maximum(flow.at_once, flow.gathered + work)


def read_bytes(stage: Stage, sizes: ChunkBytes, placed: Mapping[str, Placement]) -> np.ndarray:
    """Return the bytes that each chunk takes from files, (chunks,)."""
    exchanged = exchanged_needs(stage, placed)
    from_files = [need not in exchanged for need in stage.reads]
    return sizes.reads[np.array(from_files, bool)].sum(axis=0)


def seconds(
    stage: Stage,
    sizes: ChunkBytes,
    partition: Partition,
    numbers: np.ndarray,
    flow: Flow,
    nodes: int,
    staged: bool,
    rates: Rates,
) -> np.ndarray:
    """Return the seconds that a stage takes on each rank, (ranks,), if its core is its own.

    Parameters
    ----------
    numbers : of the chunks that are still to do
    staged : what is written goes to files as well
    """
    ranks = partition.ranks
    each = sizes.each * rates["pass"]
    if stage.cost is not None:
        rate, units = stage.cost
        weights = np.ones(len(stage.grid)) if stage.weights is None else np.array(stage.weights, float)
        each = each + units * rates[rate] * weights / max(weights.sum(), 1.0)
    if stage.kind == "source":
        taken = np.zeros(ranks)
        taken[0] = each[: numbers.max(initial=-1) + 1].sum()
    else:
        taken = np.bincount(partition.owners()[numbers], weights=each[numbers], minlength=ranks)
    if staged:
        written = sizes.writes.sum(axis=0)[numbers]
        written = np.bincount(partition.owners()[numbers], weights=written, minlength=ranks)
        taken = taken + written * rates["stage"]
    moved = (flow.sent + flow.received) * rates["move"]
    return taken + moved + flow.between_nodes / nodes * rates["network"]
