"""One rank reads a stream and hands each block to its owner, never far ahead of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mpiimg.engine.mpi.agreement import Agreement
from mpiimg.engine.mpi.redistribute import Traffic
from mpiimg.engine.mpi.waiting import wait_until
from mpiimg.errors import WORK_ERRORS

#: Tags of a block, and of the message that no more will come.
BLOCK_TAG, GIVE_UP_TAG = 1, 2

#: Blocks that the reader may be ahead of completed sends.
BLOCKS_AHEAD = 2


def scatter_stream(
    blocks: Callable[[], Iterator[np.ndarray]],
    owners: Sequence[int],
    numbers: Iterable[int],
    empty: Callable[[int], np.ndarray],
    keep: Callable[[int, np.ndarray], None],
    comm,
    agreement: Agreement,
    where: str,
    traffic: Traffic,
) -> None:
    """Read blocks 0, 1, 2, ... on rank 0 and let their owners keep those in `numbers`. Collective.

    A failure anywhere is recorded in `agreement`; nobody is left waiting, and
    the caller agrees with the others.

    Parameters
    ----------
    blocks : callable
        Called on rank 0; yields every block in order.
    owners : sequence of int
        Of every block.
    numbers : iterable of int
        The blocks that are still needed; reading ends with the last.
    empty : callable
        Called as empty(number); returns an array to receive the block in.
    keep : callable
        Called as keep(number, block) on the owner.
    comm : communicator
    agreement : Agreement
    where : str
        The stage, for reports.
    traffic : Traffic
        Where what was sent is counted.
    """
    numbers = sorted(numbers)
    if not numbers:
        return
    if comm.rank == 0:
        _read(blocks, owners, numbers, keep, comm, agreement, where, traffic)
    else:
        mine = [number for number in numbers if owners[number] == comm.rank]
        _receive(mine, empty, keep, comm, agreement, where)


def _read(blocks, owners, numbers, keep, comm, agreement, where, traffic):
    pending, remaining, stream = [], set(numbers), blocks()
    for number in range(numbers[-1] + 1):
        if agreement.interrupted():
            break
        try:
            block = next(stream, None)
            if block is None:
                raise EOFError("the stream ended before this chunk")
            if number in remaining:
                remaining.discard(number)
                if owners[number] == 0:
                    keep(number, block)
                else:
                    # The block stays in `pending`, since the send reads from it.
                    pending.append((comm.Isend(block, owners[number], BLOCK_TAG), block))
                    traffic.bytes_sent += block.nbytes
                    traffic.messages += 1
            while len(pending) > BLOCKS_AHEAD:
                wait_until(pending.pop(0)[0].Test)
        except WORK_ERRORS as error:
            agreement.record(error, f"{where}, chunk {number}")
    for owner in {int(owners[n]) for n in remaining} - {0}:
        comm.send(None, owner, GIVE_UP_TAG)
    for request, _ in pending:
        wait_until(request.Test)


def _receive(mine, empty, keep, comm, agreement, where):
    from mpi4py import MPI

    failed = False
    status = MPI.Status()

    def arrived() -> bool:
        agreement.interrupted()  # a signal may have come to this rank only
        return comm.Iprobe(source=0, status=status)

    for number in mine:
        wait_until(arrived)
        if status.Get_tag() == GIVE_UP_TAG:
            comm.recv(source=0, tag=GIVE_UP_TAG)
            return
        block = empty(number)
        comm.Recv(block, 0, BLOCK_TAG)
        if failed:
            continue  # the reader has been warned; what it sent before must be received
        try:
            keep(number, block)
        except WORK_ERRORS as error:
            failed = True
            agreement.record(error, f"{where}, chunk {number}")
