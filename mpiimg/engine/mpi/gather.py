"""Bytes of all ranks brought to all ranks, in messages that no MPI refuses."""

from __future__ import annotations

import numpy as np

from mpiimg.engine.mpi.redistribute import MAX_MESSAGE


def allgather_bytes(comm, data: bytes, at_once: int = MAX_MESSAGE // 4) -> list[bytes]:
    """Return the bytes that each rank gives, on every rank. Collective.

    Parameters
    ----------
    comm : communicator
        Of mpi4py.
    data : bytes
        Of this rank.
    at_once : int
        Bytes of all ranks together that one message takes.
    """
    sizes = np.array(comm.allgather(len(data)), dtype=np.int64)
    parts = [bytearray(size) for size in sizes.tolist()]
    piece = max(1, at_once // comm.size)
    for start in range(0, int(sizes.max()), piece):
        counts = np.clip(sizes - start, 0, piece)
        received = bytearray(int(counts.sum()))
        comm.Allgatherv(data[start : start + piece], [received, counts.tolist()])
        for rank, (count, end) in enumerate(zip(counts.tolist(), np.cumsum(counts).tolist(), strict=True)):
            parts[rank][start : start + count] = received[end - count : end]
    return [bytes(part) for part in parts]
