"""Which chunks are done: marks in plain files beside the staged arrays, one file a rank and run.

A mark is a line of JSON, appended after the data it speaks of have been
synced: stage, chunk, provenance, and CRC32 and bytes of each array's block. It lives
outside HDF5, since flushing HDF5 is collective. Any number of ranks can read
the marks of any other number of ranks. A torn last line is ignored.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.engine.atomic import write_file

#: The journal of what was kept of earlier runs: names begin with the time, so it is read first.
KEPT = "0-kept.jsonl"

#: Runs of items in the file of an array: first item and count of each.
Runs = tuple[tuple[int, int], ...]


def checksum(block: np.ndarray) -> int:
    """Return the CRC32 of the bytes of `block` in C order."""
    from isal.isal_zlib import crc32

    return crc32(memoryview(np.ascontiguousarray(block)).cast("B")) if block.size else 0


@dataclass(frozen=True)
class Mark:
    """Chunk `chunk` of stage `stage` is done; `blocks` holds (CRC32, bytes) of each array it wrote.

    `places` says where these lie in the files of their arrays, for a run with other chunks.
    """

    stage: str
    chunk: int
    provenance: str
    blocks: tuple[tuple[int, int], ...]
    places: tuple[Runs, ...] = ()


class Journal:
    """Append the marks of this rank; batch the syncs.

    Parameters
    ----------
    folder : of the marks, shared by all ranks
    rank : this rank, for the name of its file
    sync_data : called before marks are written, to make durable what they speak of
    every : seconds between syncs
    """

    def __init__(self, folder: Path, rank: int, sync_data: Callable[[], None], every: float = 5.0):
        self._sync_data, self._every = sync_data, every
        self._pending: list[str] = []
        self._last = time.monotonic()
        #: Spent on checksums, syncs and marks.
        self.seconds = 0.0
        stamp = f"{time.time_ns():x}-{os.getpid():x}-{rank}"
        self._descriptor = os.open(
            Path(folder) / f"{stamp}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666
        )

    def mark(
        self,
        stage: str,
        chunk: int,
        provenance: str,
        blocks: Sequence[np.ndarray],
        places: Sequence[Runs] = (),
    ) -> None:
        """Note that a chunk is done; it counts once :meth:`sync` has run."""
        started = time.monotonic()
        sums = [[checksum(block), block.nbytes] for block in blocks]
        record = [stage, chunk, provenance, sums, *[places] * bool(places)]
        self._pending.append(json.dumps(record) + "\n")
        self.seconds += time.monotonic() - started
        if time.monotonic() - self._last > self._every:
            self.sync()

    def sync(self) -> None:
        """Make the data durable, then the marks."""
        started = time.monotonic()
        if self._pending:
            self._sync_data()
            os.write(self._descriptor, "".join(self._pending).encode())
            os.fdatasync(self._descriptor)
            self._pending.clear()
        self._last = time.monotonic()
        self.seconds += self._last - started

    def close(self) -> None:
        os.close(self._descriptor)


def read_marks(folder: Path) -> Iterable[Mark]:
    """Yield every whole mark in `folder`, of all ranks of all runs."""
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                stage, chunk, provenance, blocks, *rest = json.loads(line)
                places = tuple(tuple(map(tuple, runs)) for found in rest for runs in found)
                mark = Mark(stage, chunk, provenance, tuple((crc, size) for crc, size in blocks), places)
            except (ValueError, TypeError):
                continue
            yield mark


def keep_marks(folder: Path, stages: Collection[str]) -> None:
    """Forget all marks in `folder` but those of `stages`; no run may be writing there."""
    kept = [mark for mark in read_marks(folder) if mark.stage in stages]
    lines = "".join(json.dumps(list(dataclasses.astuple(mark))) + "\n" for mark in kept)
    old = [path for path in Path(folder).glob("*.jsonl") if path.name != KEPT]
    write_file(Path(folder) / KEPT, lines.encode())
    for path in old:
        path.unlink()
