"""What a stage will need: where arrays lie, who sends what to whom, bytes in memory and files, seconds.

Pure arithmetic; the executor moves just these boxes by engine/mpi/redistribute.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.blocks import BlockTable, Placement, sums_of_runs
from mpiimg.engine.box_table import box_items
from mpiimg.engine.boxes import Partition
from mpiimg.engine.exchanges import ExchangeForecast, exchanged_needs
from mpiimg.engine.mpi.stream import BLOCKS_AHEAD
from mpiimg.engine.needs import ChunkBoxes, Need
from mpiimg.engine.rates import Rates
from mpiimg.engine.record_index import RecordsOf
from mpiimg.engine.stage import Reduce, Sink, Stage, Stream

#: Times the bytes read and written that are left for work whose stage does not say what it takes.
UNKNOWN_SCRATCH = 3


# --- What chunks read and write ---------------------------------------------------------------------------


@dataclass(frozen=True)
class StageSizes:
    """What each chunk of a stage reads and writes, in bytes.

    Parameters
    ----------
    reads : (needs, chunks) int64
    writes : (arrays, chunks) int64
    joined : (needs,) bool
        Whether what is read comes in parts that are joined in a copy.
    tables : tuple of BlockTable
        Where the blocks written lie, one table per array.
    """

    reads: np.ndarray
    writes: np.ndarray
    joined: np.ndarray
    tables: tuple[BlockTable, ...]

    @property
    def each(self) -> np.ndarray:
        """Bytes that each chunk reads and writes, (chunks,)."""
        return self.reads.sum(axis=0) + self.writes.sum(axis=0)

    @property
    def largest(self) -> int:
        """Bytes that a chunk reads and writes at most."""
        return int(self.each.max(initial=0))


def stage_sizes(stage: Stage) -> StageSizes:
    """Work out what every chunk of `stage` reads and writes, which takes a while where there are many."""
    reads = [_bytes_of_chunks(need, stage) for need in stage.reads]
    tables = tuple(BlockTable(output, stage.grid) for output in stage.targets)
    writes = [
        table.chunk_items() * np.dtype(output.array.dtype).itemsize
        for table, output in zip(tables, stage.targets, strict=True)
    ]
    return StageSizes(
        np.array(reads, np.int64).reshape(len(stage.reads), len(stage.grid)),
        np.array(writes, np.int64).reshape(len(tables), len(stage.grid)),
        np.array([need.copies for need in stage.reads], bool),
        tables,
    )


def _bytes_of_chunks(need: Need, stage: Stage) -> np.ndarray:
    """Return the most bytes of an array that the work on each chunk has in hand at once, (chunks,) int64."""
    boxes, counts = ChunkBoxes(need, stage.grid).all()
    items, starts = box_items(boxes), np.concatenate([[0], np.cumsum(counts)])
    if isinstance(need, RecordsOf) and need.one_by_one:
        largest = [items[a:b].max(initial=0) for a, b in itertools.pairwise(starts.tolist())]
        return np.array(largest, np.int64) * np.dtype(need.array.dtype).itemsize
    return sums_of_runs(items, starts) * np.dtype(need.array.dtype).itemsize


# --- Memory -----------------------------------------------------------------------------------------------


def working_bytes(
    stage: Stage, sizes: StageSizes, gathered: Sequence[bool] = (), held: Sequence[bool] = ()
) -> int:
    """Return the most bytes that the work on one chunk takes, beside what was gathered for it and is held.

    Parameters
    ----------
    gathered : sequence of bool
        For each need, whether it is in memory already; by default none is.
    held : sequence of bool
        For each array written, whether its blocks stay in memory, where they are counted; likewise.
    """
    if isinstance(stage, Stream):
        # Blocks under way to their owners, one that is held back, the one that is being read.
        return (BLOCKS_AHEAD + 4) * sizes.largest
    from_files = np.ones(len(sizes.reads)) - np.array(gathered or [False] * len(sizes.reads))
    passing = np.ones(len(sizes.writes)) - np.array(held or [False] * len(sizes.writes))
    own = (from_files + sizes.joined) @ sizes.reads + passing @ sizes.writes
    scratch = stage.scratch if stage.scratch is not None else UNKNOWN_SCRATCH * sizes.largest
    return int(own.max(initial=0)) + scratch + stage.returned_bytes


def finish_bytes(stage: Stage) -> int:
    """Return what the end of a reduction takes on the rank that decides for all: every row, and its work."""
    return stage.rows.nbytes + stage.finish_bytes if isinstance(stage, Reduce) else 0


def files_only_bytes(stage: Stage, sizes: StageSizes, batch: int) -> int:
    """Return what a rank needs for a stage all of whose arrays lie in files: the least there is."""
    held_back = (batch - 1) * stage.returned_bytes if isinstance(stage, Sink) else 0
    return max(working_bytes(stage, sizes) + held_back, finish_bytes(stage))


def rank_bytes(
    stage: Stage, sizes: StageSizes, batch: int, placed: Mapping[str, Placement], exchange: ExchangeForecast
) -> np.ndarray:
    """Return the most bytes that each rank has in hand beside the arrays it holds, (ranks,).

    `placed` includes the arrays that the stage writes.
    """
    exchanged = exchanged_needs(stage, placed)
    held = [placed[array.name].memory for array in stage.arrays]
    work = working_bytes(stage, sizes, [need in exchanged for need in stage.reads], held)
    if isinstance(stage, Sink):
        work += (batch - 1) * stage.returned_bytes
    needed = np.maximum(exchange.at_once, exchange.gathered + work)
    needed[0] = max(needed[0], finish_bytes(stage))
    return needed


def read_bytes(stage: Stage, sizes: StageSizes, placed: Mapping[str, Placement]) -> np.ndarray:
    """Return the bytes that each chunk takes from files, (chunks,)."""
    exchanged = exchanged_needs(stage, placed)
    from_files = [need not in exchanged for need in stage.reads]
    return sizes.reads[np.array(from_files, bool)].sum(axis=0)


# --- Time -------------------------------------------------------------------------------------------------


def chunk_seconds(stage: Stage, sizes: StageSizes, rates: Rates) -> np.ndarray:
    """Return the CPU-seconds of the work on each chunk, (chunks,)."""
    each = sizes.each * rates["pass"]
    if stage.cost is not None:
        rate, units = stage.cost
        if rate not in rates:
            raise ValueError(f"stage {stage.name}: its cost is at the rate {rate}, which nobody declares")
        weights = np.ones(len(stage.grid)) if stage.weights is None else np.array(stage.weights, float)
        each = each + units * rates[rate] * weights / max(weights.sum(), 1.0)
    return each


def seconds_alone(stage: Stage, sizes: StageSizes, ranks: int, staged: bool, rates: Rates) -> float:
    """Return the seconds that a stage takes without what ranks send each other, for chunks that are alike."""
    work = float(chunk_seconds(stage, sizes, rates).sum())
    if staged:
        work += float(sizes.writes.sum()) * rates["stage"]
    chunks = max(1, len(stage.grid))
    return work if isinstance(stage, Stream) else work * -(-chunks // ranks) / chunks


def rank_seconds(
    stage: Stage,
    sizes: StageSizes,
    partition: Partition,
    numbers: np.ndarray,
    exchange: ExchangeForecast,
    nodes: int,
    staged: bool,
    rates: Rates,
) -> np.ndarray:
    """Return the seconds that a stage takes on each rank, (ranks,), if its core is its own.

    Parameters
    ----------
    numbers : (n,) int64
        Chunks that are still to do.
    staged : bool
        What is written goes to files as well.
    """
    ranks = partition.ranks
    each = chunk_seconds(stage, sizes, rates)
    if isinstance(stage, Stream):
        taken = np.zeros(ranks)
        taken[0] = each[: numbers.max(initial=-1) + 1].sum()
    else:
        taken = np.bincount(partition.owners()[numbers], weights=each[numbers], minlength=ranks)
    if staged:
        written = sizes.writes.sum(axis=0)[numbers]
        written = np.bincount(partition.owners()[numbers], weights=written, minlength=ranks)
        taken = taken + written * rates["stage"]
    moved = (exchange.sent + exchange.received) * rates["move"]
    return taken + moved + exchange.between_nodes / nodes * rates["network"]
