"""The exchanges of a stage: which chunks gather their inputs together, and who sends what to whom.

Pure arithmetic; the executor moves just these boxes by engine/mpi/redistribute.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.array import Ragged
from mpiimg.engine.blocks import Placement
from mpiimg.engine.boxes import Box, Partition, intersections
from mpiimg.engine.needs import Need, need_bytes
from mpiimg.engine.record_index import RecordsOf
from mpiimg.engine.stage import Reduce, Sink, Stage, Stream


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
    return [need for need in stage.reads if _is_exchanged(need, placed.get(need.array.name))]


def _is_exchanged(need: Need, placement: Placement | None) -> bool:
    if placement is None or not placement.memory:
        return False
    # What is to be in hand one by one is not gathered all at once, where it lies in files as well.
    return not (isinstance(need, RecordsOf) and need.one_by_one and placement.staged)


def gathered_boxes(stage: Stage, need: Need, numbers: Iterable[int]) -> list[Box]:
    """Return the boxes that a rank gathers for chunks `numbers`, each once."""
    return list(dict.fromkeys(box for n in numbers for box in need.boxes(stage.chunk(n))))


def gather_rounds(
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
    if all(sum(_gathered_bytes(stage, need, numbers) for need in exchanged) <= limit for numbers in shares):
        return [shares]
    longest = max(map(len, shares))
    return [[numbers[first : first + batch] for numbers in shares] for first in range(0, longest, batch)]


def _gathered_bytes(stage: Stage, need: Need, numbers: Iterable[int]) -> int:
    return need_bytes(need, gathered_boxes(stage, need, numbers))


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
        As :func:`gather_rounds` gives them.
    numbers : (n,) int64
        Chunks that are still to do.
    nodes : int
        That consecutive ranks are spread over evenly.
    """
    ranks = partition.ranks
    node = np.arange(ranks) * nodes // ranks
    sent, received, messages, at_once, max_gathered = (np.zeros(ranks, np.int64) for _ in range(5))
    between = 0
    needs = exchanged_needs(stage, placed)
    sources = {need.array.name: _Sources(placed[need.array.name]) for need in needs}
    for shares in in_rounds if needs else ():
        gathered = np.zeros(ranks, np.int64)
        for need in needs:
            boxes = [gathered_boxes(stage, need, numbers) if numbers else [] for numbers in shares]
            takers = np.repeat(np.arange(ranks), list(map(len, boxes)))
            givers, takers, sizes = sources[need.array.name](
                [box for share in boxes for box in share], takers
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
        max_gathered = np.maximum(max_gathered, gathered)
    between += _add_own_messages(stage, placed, numbers, sent, messages, node)
    return ExchangeForecast(sent, received, messages, between, at_once, max_gathered)


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
        self._placement = placement
        self._shares: dict[Box, tuple[np.ndarray, np.ndarray]] = {}
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
                if box not in self._shares:
                    self._shares[box] = self._find(box)
            shares = [self._shares[box] for box in boxes]
            which = np.repeat(np.arange(len(shares)), [len(owners) for owners, _ in shares])
            givers, items = (np.concatenate(parts) for parts in zip(*shares, strict=True))
        return givers, takers[which], items * self._itemsize

    def _look_up(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return number in `boxes` (n, axes, 2), owner and items of each block that meets one."""
        blocks = self._placement.boxes
        starts, stops = blocks[:, 0].T
        first = np.searchsorted(stops, boxes[:, 0, 0], side="right")
        count = np.maximum(np.searchsorted(starts, boxes[:, 0, 1], side="left") - first, 0)
        which = np.repeat(np.arange(len(boxes)), count)
        block = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
        low = np.maximum(blocks[block, :, 0], boxes[which, :, 0])
        high = np.minimum(blocks[block, :, 1], boxes[which, :, 1])
        return which, self._placement.owners[block], np.prod(np.maximum(high - low, 0), axis=1)

    def _find(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return owners and items of one box; remembered, since chunks often want the same."""
        which, common = intersections(self._placement.boxes, box)
        items = np.prod(common[..., 1] - common[..., 0], axis=1)
        owners, place = np.unique(self._placement.owners[which], return_inverse=True)
        return owners, np.bincount(place, weights=items, minlength=len(owners)).astype(np.int64)
