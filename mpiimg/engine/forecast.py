"""Who sends what to whom: where arrays lie, what comes in one round, and how many bytes that moves.

Pure arithmetic; the executor moves just these boxes by comm/redistribute.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpiimg.engine.boxes import Box, Partition, box_size, intersections
from mpiimg.engine.stage import Need, Stage
from mpiimg.engine.stores import Array


@dataclass(frozen=True)
class Placement:
    """Where an array is during a run: block boxes and owners, and which stores hold it."""

    array: Array
    boxes: np.ndarray = field(repr=False)
    owners: np.ndarray = field(repr=False)
    memory: bool
    staged: bool

    def share(self, ranks: int) -> np.ndarray:
        """Return the bytes of it that each rank keeps in memory, (ranks,)."""
        if not self.memory:
            return np.zeros(ranks, np.int64)
        items = np.prod(self.boxes[..., 1] - self.boxes[..., 0], axis=1)
        held = np.bincount(self.owners, weights=items, minlength=ranks).astype(np.int64)
        return held * np.dtype(self.array.dtype).itemsize


@dataclass(frozen=True)
class Flow:
    """The exchanges of a stage.

    Parameters
    ----------
    sent, received : (ranks,) bytes in all rounds
    messages : (ranks,) that each rank sends in all rounds
    between_nodes : bytes of those that leave a node
    at_once : (ranks,) most bytes that a rank has in hand during an exchange: gathered, packed and received
    gathered : (ranks,) most bytes that it has gathered when a round begins to work
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
    if stage.kind == "sink":
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
    items = sum(box_size(box) for box in gathered_boxes(stage, need, numbers))
    return items * np.dtype(need.array.dtype).itemsize


def flow(
    stage: Stage,
    partition: Partition,
    in_rounds: Sequence[Sequence[Sequence[int]]],
    placed: Mapping[str, Placement],
    nodes: int = 1,
) -> Flow:
    """Return what ranks send each other for the inputs of `stage`.

    Parameters
    ----------
    in_rounds : as :func:`rounds` gives them
    nodes : that consecutive ranks are spread over evenly
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
    return Flow(sent, received, messages, between, at_once, most)


def _sum_by(ranks_of: np.ndarray, sizes: np.ndarray, ranks: int) -> np.ndarray:
    return np.bincount(ranks_of, weights=sizes, minlength=ranks).astype(np.int64)


class _Sources:
    """Says which ranks own how many bytes of boxes of an array."""

    def __init__(self, placement: Placement):
        self._placement, self._known = placement, {}
        self._itemsize = np.dtype(placement.array.dtype).itemsize
        boxes = placement.boxes
        # Pieces laid end to end, of which there may be very many, are looked up all at once.
        self._flat = boxes.shape[1] == 1 and bool((np.diff(boxes[:, 0].ravel()) >= 0).all())

    def __call__(self, boxes: list[Box], takers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return giver, taker and bytes of every part of `boxes`, each of which a taker wants."""
        if not boxes:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        if self._flat:
            which, givers, items = self._look_up(np.array(boxes, np.int64)[:, 0])
        else:
            for box in boxes:
                if box not in self._known:
                    self._known[box] = self._find(box)
            found = [self._known[box] for box in boxes]
            which = np.repeat(np.arange(len(found)), [len(owners) for owners, _ in found])
            givers, items = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return givers, takers[which], items * self._itemsize

    def _look_up(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return number in `wanted` (n, 2), owner and items of each block that meets one."""
        starts, stops = self._placement.boxes[:, 0].T
        first = np.searchsorted(stops, wanted[:, 0], side="right")
        count = np.maximum(np.searchsorted(starts, wanted[:, 1], side="left") - first, 0)
        which = np.repeat(np.arange(len(wanted)), count)
        block = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
        items = np.minimum(stops[block], wanted[which, 1]) - np.maximum(starts[block], wanted[which, 0])
        return which, self._placement.owners[block], np.maximum(items, 0)

    def _find(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return owners and items of one box; remembered, since chunks often want the same."""
        which, common = intersections(self._placement.boxes, box)
        items = np.prod(common[..., 1] - common[..., 0], axis=1)
        found, place = np.unique(self._placement.owners[which], return_inverse=True)
        return found, np.bincount(place, weights=items, minlength=len(found)).astype(np.int64)
