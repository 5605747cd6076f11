"""Move boxes of an array from the ranks that own them to the ranks that ask for them.

One routine serves halos (each rank asks for its chunks and a little more), the transposition from volumes to
slabs (for every volume of its slab), and ragged pieces (for every piece of its keys): only the boxes differ.
Every rank knows the boxes of all ranks, so no sizes are exchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.box_table import BoxTable, box_items, boxes_array
from mpiimg.engine.boxes import Box

#: No message is larger than this: Open MPI fails on 2**31 bytes and more.
MAX_MESSAGE = 1 << 30


class Traffic:
    """Bytes and messages that this rank has sent to others, and how many exchanges it took part in."""

    def __init__(self):
        self.bytes_sent = 0
        self.messages = 0
        self.exchanges = 0


@dataclass(frozen=True)
class Requests:
    """The boxes that ranks ask for, rank by rank.

    Parameters
    ----------
    takers : (n,) int64
        The rank that asks for each box, ascending.
    boxes : (n, axes, 2) int64
    ranks : int
    """

    takers: np.ndarray
    boxes: np.ndarray
    ranks: int

    @classmethod
    def of(cls, boxes: Sequence[Sequence[Box]], axes: int) -> Requests:
        """Return the requests for the boxes of each rank, of an array of so many axes."""
        takers = np.repeat(np.arange(len(boxes)), list(map(len, boxes)))
        return cls(takers, boxes_array(itertools.chain.from_iterable(boxes), axes), len(boxes))

    def of_rank(self, rank: int) -> np.ndarray:
        """Return the boxes of a rank, (m, axes, 2) int64."""
        first, stop = np.searchsorted(self.takers, (rank, rank + 1))
        return self.boxes[first:stop]


def redistribute(
    blocks: Mapping[int, np.ndarray],
    boxes: BoxTable | np.ndarray,
    owners: np.ndarray,
    requests: Requests | Sequence[Sequence[Box]],
    dtype: np.dtype,
    comm,
    traffic: Traffic | None = None,
) -> list[np.ndarray]:
    """Return the boxes that this rank asks for, filled by the ranks that own their parts. Collective.

    Parameters
    ----------
    blocks : mapping of int to ndarray
        This rank's blocks by their number in `boxes`.
    boxes : BoxTable or (n, axes, 2) int64
        Where each block lies; they are disjoint.
    owners : (n,) int64
        The rank that owns each block.
    requests : Requests or sequence of sequence of Box
        The boxes that each rank asks for; they may overlap.
    dtype : dtype
        Of the array.
    comm : communicator
        Of mpi4py.
    traffic : Traffic, optional
        Where what was sent is counted.

    Returns
    -------
    list of ndarray
        One for each box that this rank asks for, C-contiguous.

    Notes
    -----
    Both sides list the parts of a message in the same order: by requested box, then by block number. Messages
    above MAX_MESSAGE go in several exchanges.
    """
    me, dtype = comm.rank, np.dtype(dtype)
    table = boxes if isinstance(boxes, BoxTable) else BoxTable(boxes)
    if not isinstance(requests, Requests):
        requests = Requests.of(requests, table.boxes.shape[1])
    wanted = requests.of_rank(me)
    results = [np.empty(shape, dtype) for shape in (wanted[..., 1] - wanted[..., 0]).tolist()]
    which, numbers, parts = table.look_up(wanted)
    givers, sizes = owners[numbers], box_items(parts)
    targets = [
        results[i][slices] for i, slices in zip(which.tolist(), _slices(parts, wanted[which]), strict=True)
    ]
    here = np.flatnonzero(givers == me)
    sources = _pieces(blocks, table, numbers[here], parts[here])
    for place, piece in zip(here.tolist(), sources, strict=True):
        targets[place][...] = piece
    if comm.size == 1:
        return results

    pieces, send_counts = _outgoing(blocks, table, np.flatnonzero(owners == me), requests, me)
    away = np.flatnonzero(givers != me)
    receive_counts = np.bincount(givers[away], weights=sizes[away], minlength=comm.size).astype(np.int64)

    packed = _pack(pieces, int(send_counts.sum()), dtype)
    received = np.empty(receive_counts.sum(), dtype)
    longest = int(np.bincount(requests.takers, weights=box_items(requests.boxes), minlength=1).max())
    _alltoall(packed, send_counts, received, receive_counts, longest, comm)
    if traffic is not None:
        traffic.exchanges += 1
        traffic.messages += int(np.count_nonzero(send_counts))
        traffic.bytes_sent += packed.nbytes

    place = (np.cumsum(receive_counts) - receive_counts).tolist()
    for i, giver, size in zip(away.tolist(), givers[away].tolist(), sizes[away].tolist(), strict=True):
        targets[i][...] = received[place[giver] : place[giver] + size].reshape(targets[i].shape)
        place[giver] += size
    return results


def _outgoing(
    blocks: Mapping[int, np.ndarray], table: BoxTable, mine: np.ndarray, requests: Requests, me: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return what this rank sends of its blocks, by taker, box and block; and the items that each rank gets.

    One comparison of all boxes finds those around its blocks, which lie close together: the requests of all
    ranks are too many to look up.
    """
    own, every, takers = BoxTable(table.boxes[mine]), requests.boxes, requests.takers
    if not len(mine):
        return [], np.zeros(requests.ranks, np.int64)
    start, stop = own.boxes[..., 0].min(axis=0), own.boxes[..., 1].max(axis=0)
    near = np.flatnonzero(((every[..., 0] < stop) & (every[..., 1] > start)).all(axis=1) & (takers != me))
    which, numbers, parts = own.look_up(every[near])
    counts = np.bincount(takers[near[which]], weights=box_items(parts), minlength=requests.ranks)
    return _pieces(blocks, table, mine[numbers], parts), counts.astype(np.int64)


def _pieces(
    blocks: Mapping[int, np.ndarray], table: BoxTable, numbers: np.ndarray, parts: np.ndarray
) -> list[np.ndarray]:
    """Return parts (n, axes, 2) of blocks with `numbers` (n,), which this rank has."""
    slices = _slices(parts, table.boxes[numbers])
    return [blocks[number][inside] for number, inside in zip(numbers.tolist(), slices, strict=True)]


def _slices(parts: np.ndarray, boxes: np.ndarray) -> list[tuple]:
    """Return what selects each of parts (n, axes, 2) in what lies at its own of boxes (n, axes, 2)."""
    inside = (parts - boxes[..., :1]).tolist()
    # Also of an array without axes a view, and not its item.
    return [(*(slice(start, stop) for start, stop in part), ...) for part in inside]


def _pack(pieces: Sequence[np.ndarray], items: int, dtype: np.dtype) -> np.ndarray:
    """Return the items of `pieces` one after the other, each copied once."""
    packed, start = np.empty(items, dtype), 0
    for piece in pieces:
        packed[start : start + piece.size].reshape(piece.shape)[...] = piece
        start += piece.size
    return packed


def _alltoall(packed, send_counts, received, receive_counts, longest, comm):
    """Alltoallv in as many steps as keep every message, of at most `longest` items, below MAX_MESSAGE."""
    from mpi4py import MPI

    limit = max(1, MAX_MESSAGE // packed.itemsize)
    item = MPI.BYTE.Create_contiguous(packed.itemsize).Commit()
    send_starts = np.cumsum(send_counts) - send_counts
    receive_starts = np.cumsum(receive_counts) - receive_counts
    for done in range(0, max(longest, 1), limit):
        send_now = np.clip(send_counts - done, 0, limit)
        receive_now = np.clip(receive_counts - done, 0, limit)
        comm.Alltoallv(
            [packed, (send_now, np.where(send_now, send_starts + done, 0)), item],
            [received, (receive_now, np.where(receive_now, receive_starts + done, 0)), item],
        )
    item.Free()
