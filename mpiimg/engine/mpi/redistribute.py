"""Move boxes of an array from the ranks that own them to the ranks that ask for them.

One routine serves halos (each rank asks for its chunks and a little more), the transposition from volumes to
slabs (for every volume of its slab), and ragged pieces (for every piece of its keys): only the boxes differ.
Every rank knows the boxes of all ranks, so no sizes are exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.engine.boxes import Box, box_shape, box_size, box_slices, intersections

#: No message is larger than this: Open MPI fails on 2**31 bytes and more.
MAX_MESSAGE = 1 << 30


class Traffic:
    """Bytes and messages that this rank has sent to others, and how many exchanges it took part in."""

    def __init__(self):
        self.bytes_sent = 0
        self.messages = 0
        self.exchanges = 0


def redistribute(
    blocks: Mapping[int, np.ndarray],
    boxes: np.ndarray,
    owners: np.ndarray,
    requests: Sequence[Sequence[Box]],
    dtype: np.dtype,
    comm,
    traffic: Traffic | None = None,
) -> list[np.ndarray]:
    """Return the boxes that this rank asks for, filled by the ranks that own their parts. Collective.

    Parameters
    ----------
    blocks : mapping of int to ndarray
        This rank's blocks by their number in `boxes`.
    boxes : (n, axes, 2) int64
        Where each block lies; they are disjoint.
    owners : (n,) int64
        The rank that owns each block.
    requests : sequence of sequence of Box
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
        One for each box in requests[comm.rank], C-contiguous.

    Notes
    -----
    Both sides list the parts of a message in the same order: by requested box, then by block number. Messages
    above MAX_MESSAGE go in several exchanges.
    """
    me, dtype = comm.rank, np.dtype(dtype)
    mine = np.flatnonzero(owners == me)
    own_boxes = boxes[mine]
    results = [np.empty(box_shape(box), dtype) for box in requests[me]]
    places = [tuple(map(tuple, box)) for box in own_boxes.tolist()]

    def own(i, part):
        return blocks[int(mine[i])][box_slices(part, places[i])]

    for which, i, part in _parts(own_boxes, requests[me]):
        results[which][box_slices(part, requests[me][which])] = own(i, part)
    if comm.size == 1:
        return results

    takers, every = _by_taker(requests, boxes.shape[1])
    pieces, send_counts = [], np.zeros(comm.size, dtype=np.int64)
    for taker, box in _near(own_boxes, takers, every, me):
        for _, i, part in _parts(own_boxes, [box]):
            pieces.append(own(i, part))
            send_counts[taker] += pieces[-1].size
    incoming = [(which, owners[i], part) for which, i, part in _parts(boxes, requests[me]) if owners[i] != me]
    receive_counts = np.zeros(comm.size, dtype=np.int64)
    for _, owner, part in incoming:
        receive_counts[owner] += box_size(part)

    packed = _pack(pieces, int(send_counts.sum()), dtype)
    received = np.empty(receive_counts.sum(), dtype)
    sizes = (every[..., 1] - every[..., 0]).prod(axis=1)
    longest = int(np.bincount(takers, weights=sizes, minlength=1).max())
    _alltoall(packed, send_counts, received, receive_counts, longest, comm)
    if traffic is not None:
        traffic.exchanges += 1
        traffic.messages += int(np.count_nonzero(send_counts))
        traffic.bytes_sent += packed.nbytes

    place = np.cumsum(receive_counts) - receive_counts
    for which, owner, part in incoming:
        size = box_size(part)
        piece = received[place[owner] : place[owner] + size]
        results[which][box_slices(part, requests[me][which])] = piece.reshape(box_shape(part))
        place[owner] += size
    return results


def _by_taker(requests: Sequence[Sequence[Box]], axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rank and box of all requests, (n,) and (n, axes, 2), rank by rank."""
    takers = np.repeat(np.arange(len(requests)), list(map(len, requests)))
    every = np.array([box for boxes in requests for box in boxes], np.int64)
    return takers, every.reshape(len(takers), axes, 2)


def _near(own_boxes: np.ndarray, takers: np.ndarray, every: np.ndarray, me: int) -> list[tuple[int, Box]]:
    """List the requests of others around the boxes of this rank, which lie close together, in their order.

    One comparison of all boxes finds them: the requests of all ranks are too many to go through one by one.
    """
    if not len(own_boxes):
        return []
    start, stop = own_boxes[..., 0].min(axis=0), own_boxes[..., 1].max(axis=0)
    meets = ((every[..., 0] < stop) & (every[..., 1] > start)).all(axis=1) & (takers != me)
    return list(zip(takers[meets].tolist(), every[meets].tolist(), strict=True))


def _pack(pieces: Sequence[np.ndarray], items: int, dtype: np.dtype) -> np.ndarray:
    """Return the items of `pieces` one after the other, each copied once."""
    packed, start = np.empty(items, dtype), 0
    for piece in pieces:
        packed[start : start + piece.size].reshape(piece.shape)[...] = piece
        start += piece.size
    return packed


def _parts(boxes: np.ndarray, requests: Sequence[Box]) -> list[tuple[int, int, Box]]:
    """List what `requests` takes from `boxes`: (number in requests, number in boxes, common part)."""
    parts = []
    for which, box in enumerate(requests):
        indices, common = intersections(boxes, box)
        parts += [
            (which, int(i), tuple((int(a), int(b)) for a, b in part))
            for i, part in zip(indices, common, strict=True)
        ]
    return parts


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
