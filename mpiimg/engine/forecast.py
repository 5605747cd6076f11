"""What a stage will need: where arrays lie, who sends what to whom, bytes in memory and files, seconds.

Pure arithmetic; the executor moves just these boxes by engine/mpi/redistribute.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpiimg.engine.array import AnyArray, Ragged
from mpiimg.engine.boxes import Box, Partition, box_size, intersections
from mpiimg.engine.mpi.stream import BLOCKS_AHEAD
from mpiimg.engine.rates import Rates
from mpiimg.engine.stage import BlockTable, Need, Reduce, Sink, Stage, Stream

#: Times the bytes read and written that are left for work whose stage does not say what it takes.
UNKNOWN_SCRATCH = 3


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


def measure(stage: Stage) -> StageSizes:
    """Work out what every chunk of `stage` reads and writes, which takes a while where there are many."""
    chunks = [stage.chunk(number) for number in range(len(stage.grid))]
    reads = [[_boxes_bytes(need, need.boxes(chunk)) for chunk in chunks] for need in stage.reads]
    tables = tuple(BlockTable(output, chunks) for output in stage.outputs)
    writes = [
        table.chunk_items() * np.dtype(output.array.dtype).itemsize
        for table, output in zip(tables, stage.outputs, strict=True)
    ]
    return StageSizes(
        np.array(reads, np.int64).reshape(len(stage.reads), len(chunks)),
        np.array(writes, np.int64).reshape(len(tables), len(chunks)),
        np.array([need.copies for need in stage.reads], bool),
        tables,
    )


def _boxes_bytes(need: Need, boxes: Iterable[Box]) -> int:
    return sum(map(box_size, boxes)) * np.dtype(need.array.dtype).itemsize


# --- Exchanges --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExchangeForecast:
    """The exchanges of a stage.

    Parameters
    ----------
    sent, received : (ranks,) int64
        Bytes in all rounds.
    messages : (ranks,) int64
        Messages that each rank sends in all rounds.
    between_nodes : int
        Bytes of those that leave a node.
    at_once : (ranks,) int64
        Most bytes that a rank has in hand during an exchange: gathered, packed and received.
    gathered : (ranks,) int64
        Most bytes that it has gathered when a round begins to work.
    """

    sent: np.ndarray
    received: np.ndarray
    messages: np.ndarray
    between_nodes: int
    at_once: np.ndarray
    gathered: np.ndarray

    @property
    def moved(self) -> int:
        return int(self.sent.sum())


def exchanged_needs(stage: Stage, placed: Mapping[str, Placement]) -> list[Need]:
    """Return what `stage` reads from the memory of ranks, as against files."""
    return [need for need in stage.reads if need.array.name in placed and placed[need.array.name].memory]


def gathered_boxes(stage: Stage, need: Need, numbers: Iterable[int]) -> list[Box]:
    """Return the boxes that a rank gathers for chunks `numbers`, each once."""
    return list(dict.fromkeys(box for n in numbers for box in need.boxes(stage.chunk(n))))


def rounds(
    stage: Stage,
    partition: Partition,
    batch: int,
    limit: int,
    placed: Mapping[str, Placement],
    todo: Sequence[int],
) -> list[list[list[int]]]:
    """Return, round by round, the chunks that each rank gathers inputs for.

    What all ranks can hold in `limit` bytes comes in one round, after which
    nobody waits for anybody; else `batch` chunks come at a time. The chunks of
    a sink go in order through all ranks, since the place of one's bytes depends
    on those before.
    """
    ranks = partition.ranks
    if isinstance(stage, Sink):
        step = ranks * batch
        parts = [
            (first, Partition.even(min(step, len(todo) - first), ranks))
            for first in range(0, len(todo), step)
        ]
        return [
            [[todo[first + i] for i in part.owned(rank)] for rank in range(ranks)] for first, part in parts
        ]
    owners = partition.owners()
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for number in todo:
        shares[owners[number]].append(number)
    exchanged = exchanged_needs(stage, placed)
    if all(sum(_gathered_bytes(stage, need, theirs) for need in exchanged) <= limit for theirs in shares):
        return [shares]
    longest = max(map(len, shares))
    return [[theirs[first : first + batch] for theirs in shares] for first in range(0, longest, batch)]


def _gathered_bytes(stage: Stage, need: Need, numbers: Iterable[int]) -> int:
    return _boxes_bytes(need, gathered_boxes(stage, need, numbers))


def forecast_exchange(
    stage: Stage,
    partition: Partition,
    in_rounds: Sequence[Sequence[Sequence[int]]],
    placed: Mapping[str, Placement],
    numbers: np.ndarray,
    nodes: int = 1,
) -> ExchangeForecast:
    """Return what ranks send each other for a stage.

    Parameters
    ----------
    in_rounds : list of list of list of int
        As :func:`rounds` gives them.
    numbers : (n,) int64
        Chunks that are still to do.
    nodes : int
        That consecutive ranks are spread over evenly.
    """
    ranks = partition.ranks
    node = np.arange(ranks) * nodes // ranks
    sent, received, messages, at_once, most = (np.zeros(ranks, np.int64) for _ in range(5))
    between = 0
    needs = exchanged_needs(stage, placed)
    sources = {need.array.name: _Sources(placed[need.array.name]) for need in needs}
    for shares in in_rounds if needs else ():
        gathered = np.zeros(ranks, np.int64)
        for need in needs:
            boxes = [gathered_boxes(stage, need, numbers) if numbers else [] for numbers in shares]
            takers = np.repeat(np.arange(ranks), [len(theirs) for theirs in boxes])
            givers, takers, sizes = sources[need.array.name](
                [box for theirs in boxes for box in theirs], takers
            )
            gathered += _sum_by(takers, sizes, ranks)
            sizes = np.where(givers == takers, 0, sizes)
            out, into = _sum_by(givers, sizes, ranks), _sum_by(takers, sizes, ranks)
            pairs = np.unique((givers * ranks + takers)[sizes > 0])
            messages += np.bincount(pairs // ranks, minlength=ranks)
            between += int(sizes[node[givers] != node[takers]].sum())
            at_once = np.maximum(at_once, gathered + out + into)
            sent += out
            received += into
        most = np.maximum(most, gathered)
    between += _add_own_messages(stage, placed, numbers, sent, messages, node)
    return ExchangeForecast(sent, received, messages, between, at_once, most)


def _add_own_messages(
    stage: Stage, placed: Mapping[str, Placement], numbers: np.ndarray, sent, messages, node
) -> int:
    """Add what a stream hands out, or a reduction brings to rank 0; return the bytes that leave a node."""
    if not isinstance(stage, Stream | Reduce):
        return 0
    (array,) = stage.arrays
    placement = placed[array.name]
    if isinstance(stage, Reduce) and not placement.memory:
        return 0
    chunks = numbers if isinstance(stage, Stream) else np.arange(len(placement.owners))
    away = chunks[placement.owners[chunks] != 0]
    sizes = placement.table.items()[away] * np.dtype(array.dtype).itemsize
    if isinstance(stage, Stream):
        # It sends each block by itself, a rank its rows in one piece.
        sent[0] += sizes.sum()
        messages[0] += len(away)
    else:
        givers = placement.owners[away]
        np.add.at(sent, givers, sizes)
        messages[np.unique(givers[sizes > 0])] += 1
    return int(sizes[node[placement.owners[away]] != node[0]].sum())


def _sum_by(ranks_of: np.ndarray, sizes: np.ndarray, ranks: int) -> np.ndarray:
    return np.bincount(ranks_of, weights=sizes, minlength=ranks).astype(np.int64)


class _Sources:
    """Says which ranks own how many bytes of boxes of an array."""

    def __init__(self, placement: Placement):
        self._placement, self._known = placement, {}
        self._itemsize = np.dtype(placement.array.dtype).itemsize
        boxes = placement.boxes
        # Items laid end to end, of which there may be very many, are looked up all at once.
        listed = isinstance(placement.array, Ragged) or boxes.shape[1] == 1
        self._ordered = listed and bool((np.diff(boxes[:, 0], axis=0) >= 0).all())

    def __call__(self, boxes: list[Box], takers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return giver, taker and bytes of every part of `boxes`, each of which a taker wants."""
        if not boxes:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        if self._ordered:
            which, givers, items = self._look_up(np.array(boxes, np.int64))
        else:
            for box in boxes:
                if box not in self._known:
                    self._known[box] = self._find(box)
            found = [self._known[box] for box in boxes]
            which = np.repeat(np.arange(len(found)), [len(owners) for owners, _ in found])
            givers, items = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return givers, takers[which], items * self._itemsize

    def _look_up(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return number in `wanted` (n, axes, 2), owner and items of each block that meets one."""
        boxes = self._placement.boxes
        starts, stops = boxes[:, 0].T
        first = np.searchsorted(stops, wanted[:, 0, 0], side="right")
        count = np.maximum(np.searchsorted(starts, wanted[:, 0, 1], side="left") - first, 0)
        which = np.repeat(np.arange(len(wanted)), count)
        block = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
        low = np.maximum(boxes[block, :, 0], wanted[which, :, 0])
        high = np.minimum(boxes[block, :, 1], wanted[which, :, 1])
        return which, self._placement.owners[block], np.prod(np.maximum(high - low, 0), axis=1)

    def _find(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return owners and items of one box; remembered, since chunks often want the same."""
        which, common = intersections(self._placement.boxes, box)
        items = np.prod(common[..., 1] - common[..., 0], axis=1)
        found, place = np.unique(self._placement.owners[which], return_inverse=True)
        return found, np.bincount(place, weights=items, minlength=len(found)).astype(np.int64)


# --- Memory -----------------------------------------------------------------------------------------------


def work_bytes(
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
    return max(work_bytes(stage, sizes) + held_back, finish_bytes(stage))


def rank_bytes(
    stage: Stage, sizes: StageSizes, batch: int, placed: Mapping[str, Placement], exchange: ExchangeForecast
) -> np.ndarray:
    """Return the most bytes that each rank has in hand beside the arrays it holds, (ranks,).

    `placed` includes the arrays that the stage writes.
    """
    exchanged = exchanged_needs(stage, placed)
    held = [placed[array.name].memory for array in stage.arrays]
    work = work_bytes(stage, sizes, [need in exchanged for need in stage.reads], held)
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


def seconds(
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
    each = sizes.each * rates["pass"]
    if stage.cost is not None:
        rate, units = stage.cost
        weights = np.ones(len(stage.grid)) if stage.weights is None else np.array(stage.weights, float)
        each = each + units * rates[rate] * weights / max(weights.sum(), 1.0)
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
