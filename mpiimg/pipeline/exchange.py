"""Who sends what to whom: where arrays lie, what comes in one round, and how many bytes that moves.

Pure arithmetic; the executor moves just these boxes by comm/redistribute.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpiimg.io.store import Array
from mpiimg.partition import Box, Partition, box_size, intersections
from mpiimg.stages.stage import Need, Stage


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
    between_nodes : bytes of those that leave a node
    at_once : (ranks,) most bytes that a rank has in hand during an exchange: gathered, packed and received
    gathered : (ranks,) most bytes that it has gathered when a round begins to work
    """

    sent: np.ndarray
    received: np.ndarray
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
    at_once = max(sum(_gathered_bytes(stage, need, theirs) for need in exchanged) for theirs in shares)
    if at_once <= limit:
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
    sent, received, at_once, most = (np.zeros(ranks, np.int64) for _ in range(4))
    between = 0
    needs = exchanged_needs(stage, placed)
    sources = _all_sources([placed[need.array.name] for need in needs])
    for shares in in_rounds if needs else ():
        gathered = np.zeros(ranks, np.int64)
        for need in needs:
            find, itemsize = sources[need.array.name], np.dtype(need.array.dtype).itemsize
            out, into = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
            for rank, numbers in enumerate(shares):
                for box in gathered_boxes(stage, need, numbers) if numbers else ():
                    owners, items = find(box)
                    gathered[rank] += box_size(box) * itemsize
                    sizes = np.where(owners == rank, 0, items * itemsize)
                    out[owners] += sizes
                    into[rank] += sizes.sum()
                    between += int(sizes[node[owners] != node[rank]].sum())
            at_once = np.maximum(at_once, gathered + out + into)
            sent += out
            received += into
        most = np.maximum(most, gathered)
    return Flow(sent, received, between, at_once, most)


def _all_sources(placements: Iterable[Placement]) -> dict[str, _Sources]:
    """Return the sources of arrays by name; arrays that lie alike, as planes of an image do, share."""
    alike: dict[tuple[bytes, bytes], _Sources] = {}
    found = {}
    for placement in placements:
        key = (placement.boxes.tobytes(), placement.owners.tobytes())
        found[placement.array.name] = alike.setdefault(key, _Sources(placement))
    return found


class _Sources:
    """Says which ranks own how many items of a box; remembers, since chunks often want the same."""

    def __init__(self, placement: Placement):
        self._placement, self._known = placement, {}
        boxes = placement.boxes
        flat = boxes.shape[1] == 1
        # Pieces laid end to end, of which there may be very many: only those near a box are looked at.
        self._starts = boxes[:, 0, 0] if flat and (np.diff(boxes[:, 0]) >= 0).all() else None

    def __call__(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        if box not in self._known:
            self._known[box] = self._find(box)
        return self._known[box]

    def _find(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        boxes, owners = self._placement.boxes, self._placement.owners
        if self._starts is not None:
            first = max(np.searchsorted(self._starts, box[0][0], side="right") - 1, 0)
            last = np.searchsorted(self._starts, box[0][1], side="left")
            boxes, owners = boxes[first:last], owners[first:last]
        which, common = intersections(boxes, box)
        items = np.prod(common[..., 1] - common[..., 0], axis=1)
        found, place = np.unique(owners[which], return_inverse=True)
        return found, np.bincount(place, weights=items, minlength=len(found)).astype(np.int64)
