"""The exchanges of a stage: which chunks gather their inputs together, and who sends what to whom.

Pure arithmetic; the executor moves just these boxes by engine/mpi/redistribute.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.blocks import Placement
from mpiimg.engine.box_table import box_items, box_numbers, counted, first_of_each
from mpiimg.engine.boxes import Partition
from mpiimg.engine.mpi.redistribute import Requests
from mpiimg.engine.needs import ChunkBoxes, Need
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


class GatheredBoxes:
    """The boxes of an array that ranks gather for chunks of a stage, each once on a rank.

    Parameters
    ----------
    stage : Stage
    need : Need
        Of the stage.
    """

    def __init__(self, stage: Stage, need: Need):
        self._boxes = ChunkBoxes(need, stage.grid)

    def __call__(self, numbers: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what groups of chunks gather, in turn.

        Parameters
        ----------
        numbers : (n,) int64
            Of chunks.
        groups : (n,) int64
            The group of each of them, ascending.

        Returns
        -------
        groups : (m,) int64
        boxes : (m, axes, 2) int64
        """
        boxes, counts = self._boxes.of(numbers)
        groups = np.repeat(groups, counts)
        first = first_of_each(groups, boxes)
        return groups[first], boxes[first]

    def requests(self, shares: Sequence[Sequence[int]]) -> Requests:
        """Return what each rank asks for, given the chunks of each."""
        return Requests(*self(*flattened(shares)), len(shares))


def flattened(shares: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers in all shares end to end, and the number of the share of each, (n,) int64 both."""
    lengths = list(map(len, shares))
    numbers = np.fromiter(itertools.chain.from_iterable(shares), np.int64, sum(lengths))
    return numbers, np.repeat(np.arange(len(shares)), lengths)


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
    numbers = np.asarray(todo, np.int64)
    owners = partition.owners()[numbers]
    order = np.argsort(owners, kind="stable")
    numbers, owners = numbers[order], owners[order]
    ends = np.searchsorted(owners, np.arange(ranks + 1)).tolist()
    shares = [numbers[a:b].tolist() for a, b in itertools.pairwise(ends)]
    gathered = np.zeros(ranks, np.int64)
    for need in exchanged_needs(stage, placed):
        takers, boxes = GatheredBoxes(stage, need)(numbers, owners)
        gathered += _sum_by(takers, box_items(boxes), ranks) * np.dtype(need.array.dtype).itemsize
    if (gathered <= limit).all():
        return [shares]
    longest = max(map(len, shares))
    return [[numbers[first : first + batch] for numbers in shares] for first in range(0, longest, batch)]


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
    if needs and in_rounds:
        gathering, groups = flattened([numbers for shares in in_rounds for numbers in shares])
        gathered = np.zeros((len(in_rounds), ranks), np.int64)
        for need in needs:
            one = _Exchange(len(in_rounds), ranks, node)
            one.add(placed[need.array.name], *GatheredBoxes(stage, need)(gathering, groups))
            gathered += one.gathered
            at_once = np.maximum(at_once, (gathered + one.sent + one.received).max(axis=0))
            sent += one.sent.sum(axis=0)
            received += one.received.sum(axis=0)
            messages += one.messages()
            between += one.between
        max_gathered = gathered.max(axis=0)
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


class _Exchange:
    """Who sends how much of an array to whom, in all rounds of a stage.

    Parameters
    ----------
    rounds, ranks : int
    node : (ranks,) int64
        The node of each rank.
    """

    #: So many pairs of a rank and what a box has of it are counted at a time.
    AT_A_TIME = 1 << 20

    def __init__(self, rounds: int, ranks: int, node: np.ndarray):
        self.gathered, self.sent, self.received = (np.zeros((rounds, ranks), np.int64) for _ in range(3))
        self.between = 0
        self._node, self._pairs = node, []

    def add(self, placement: Placement, groups: np.ndarray, boxes: np.ndarray) -> None:
        """Count what ranks gather: boxes (n, axes, 2) of groups (n,), each a round and in it a rank."""
        _, first, which = np.unique(box_numbers(boxes), return_index=True, return_inverse=True)
        box, givers, nbytes = self._owned(placement, boxes[first])
        starts = np.searchsorted(box, np.arange(len(first) + 1))
        counts = np.diff(starts)[which]
        total, begin = np.cumsum(counts), 0
        while begin < len(which):
            before = int(total[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(total, before + self.AT_A_TIME, side="right")))
            some = counts[begin:end]
            places = counted(some) + np.repeat(starts[which[begin:end]], some)
            self._count(np.repeat(groups[begin:end], some), givers[places], nbytes[places])
            begin = end

    def _owned(self, placement: Placement, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return numbers of boxes, ranks, and the bytes of the box that lie with the rank; by box."""
        ranks, itemsize = self.sent.shape[1], np.dtype(placement.array.dtype).itemsize
        found = [np.zeros((3, 0), np.int64)]
        table, owners = placement.table.merged(placement.owners)
        for which, blocks, common in table.looked_up(boxes):
            pairs, place = np.unique(which * ranks + owners[blocks], return_inverse=True)
            items = _sum_by(place, box_items(common), len(pairs))
            found.append(np.stack([pairs // ranks, pairs % ranks, items * itemsize]))
        box, givers, nbytes = np.concatenate(found, axis=1)
        return box, givers, nbytes

    def _count(self, groups: np.ndarray, givers: np.ndarray, nbytes: np.ndarray) -> None:
        rounds, ranks = self.sent.shape
        self.gathered += _sum_by(groups, nbytes, rounds * ranks).reshape(rounds, ranks)
        away = groups % ranks != givers
        groups, givers, nbytes = groups[away], givers[away], nbytes[away]
        takers = groups % ranks
        senders = groups - takers + givers
        self.sent += _sum_by(senders, nbytes, rounds * ranks).reshape(rounds, ranks)
        self.received += _sum_by(groups, nbytes, rounds * ranks).reshape(rounds, ranks)
        self.between += int(nbytes[self._node[givers] != self._node[takers]].sum())
        self._pairs.append(np.unique(senders * ranks + takers))

    def messages(self) -> np.ndarray:
        """Return the messages that each rank sends in all rounds, (ranks,) int64."""
        ranks = self.sent.shape[1]
        pairs = np.unique(np.concatenate([np.zeros(0, np.int64), *self._pairs]))
        return np.bincount(pairs // ranks % ranks, minlength=ranks)
