"""Records that are made once and kept for all runs of a program: a file each, in the folder of the session.

A file begins with a line of JSON with a checksum of itself (engine/records.py): how long the records are,
their keys, and what is said of them. Behind it lie the records, each after its CRC32, by which what is read
is verified.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.graph import walk
from mpiimg.arrays.items_graph import Kept
from mpiimg.arrays.items_stages import ITEM, index_of
from mpiimg.arrays.lower import Lowering
from mpiimg.engine.array import Ragged
from mpiimg.engine.boxes import Box, ChunkGrid
from mpiimg.engine.keys import key_node, key_of
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.needs import Chunk
from mpiimg.engine.raw import FileEnds
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.records import DamagedRecord, line_of, parsed
from mpiimg.engine.stage import Sink, Stages
from mpiimg.engine.system_errors import naming
from mpiimg.errors import DamagedData

_SUM = struct.Struct("<I")

#: Bytes of records that are written at a time.
_TOGETHER = 8 << 20


@dataclass(frozen=True, eq=False)
class KeptRecords:
    """Records that an earlier run of a session has kept; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    path : Path
    index : Index
    base : int
        Where the first record begins.
    key : str
        Of their node.
    """

    path: Path
    index: Index
    base: int
    key: str
    parallel = True
    sample = None

    @property
    def array(self) -> Ragged:
        return self.index.array

    @property
    def identity(self) -> dict[str, str]:
        return {"kept": self.key}

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def open(self) -> _Reader:
        """Open them, to read what their checksums verify."""
        return _Reader(self)


class _Reader:
    def __init__(self, kept: KeptRecords):
        self._kept = kept
        self._descriptor = os.open(kept.path, os.O_RDONLY)
        ends = np.cumsum(kept.index.sizes + _SUM.size)
        self._starts = kept.base + np.concatenate([[0], ends]).astype(np.int64)

    def read(self, box: Box) -> np.ndarray:
        """Return a part of one record, (1, bytes) uint8."""
        from isal.isal_zlib import crc32

        ((number, _), (start, stop)) = box
        data = bytearray(int(self._kept.index.sizes[number]) + _SUM.size)
        rest, position = memoryview(data), int(self._starts[number])
        while rest:
            with naming(self._kept.path):
                count = os.preadv(self._descriptor, [rest[: 1 << 30]], position)
            if not count:
                raise FileEnds(f"{self._kept.path} ends at byte {position}, before a record in it does")
            rest, position = rest[count:], position + count
        record = np.frombuffer(data, np.uint8)[_SUM.size :]
        if crc32(record) != _SUM.unpack_from(data)[0]:
            raise DamagedData(
                f"{self._kept.path}: record {self._kept.index.keys[number]!r} is not what was written; "
                "remove the file"
            )
        return record[None, start:stop]

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


@dataclass(frozen=True, eq=False)
class KeptResult:
    """A file of records; a result of a run.

    Parameters
    ----------
    node : Kept
    """

    node: Kept
    is_kept = True

    @property
    def targets(self) -> tuple:
        return (self.node,)

    @property
    def file(self) -> str:
        return file_of(self.node)

    def check(self, lowering: Lowering) -> None:
        """Do nothing."""

    def stages(self, lowering: Lowering) -> Stages[None]:
        """Yield the stage that writes the file."""
        index = index_of(lowering, self.node)
        largest = int(index.sizes.max(initial=0))
        count = max(1, min(len(index), _TOGETHER // max(1, largest)))
        grid = ChunkGrid((ITEM,), (len(index),), (count,))

        def numbers(chunk: Chunk) -> range:
            ((start, stop),) = chunk.box
            return range(start, stop)

        def work(chunk: Chunk, blocks: Sequence[np.ndarray]) -> bytes:
            from isal.isal_zlib import crc32

            return b"".join(part for block in blocks for part in (_SUM.pack(crc32(block)), block))

        yield Sink(
            f"keep-{self.node.label}-{self.node.key[:12]}",
            grid,
            reads=(RecordsOf(index.array, numbers),),
            work=work,
            file=self.file,
            head=lambda: _head(index),
            chunk_bytes=count * (largest + _SUM.size),
            scratch=0,
        )


def _head(index: Index) -> bytes:
    about = {
        "sizes": index.sizes.tolist(),
        "chunks": index.chunks.tolist(),
        "keys": [key_node(key) for key in index.keys],
        "facts": list(index.facts),
    }
    return line_of(about)


def file_of(node: Kept) -> str:
    """Return the name of the file of a node, in the folder of the session."""
    return f"{node.label}-{node.key[:12]}.records"


def _opened(path: Path, key: str) -> KeptRecords | None:
    """Return what a file holds; None where there is none, or its head is damaged."""
    try:
        with open(path, "rb") as file:
            line = file.readline()
            size = os.fstat(file.fileno()).st_size
        about = parsed(line)
        keys = tuple(key_of(node) for node in about["keys"])
        sizes, chunks = np.array(about["sizes"], np.int64), np.array(about["chunks"], np.int64)
        index = Index(f"{path.stem}-records", chunks, keys, sizes, tuple(about["facts"]))
    except (OSError, DamagedRecord, KeyError, TypeError, ValueError):
        return None
    whole = len(line) + int((sizes + _SUM.size).sum())
    return KeptRecords(path, index, len(line), key) if size == whole else None


def found(session: Any, targets: Sequence[Any], comm: Any) -> dict[str, KeptRecords]:
    """Return what earlier runs have kept of the records that targets are made of, by key. Collective."""
    nodes = {node.key: node for node in walk(list(targets)) if isinstance(node, Kept) and node.persisted}
    asked = [node for key, node in nodes.items() if key not in session.kept_items and node.resumable]
    if asked:
        there = on_root(comm, lambda: [_opened(session.folder / file_of(node), node.key) for node in asked])
        session.kept_items.update({one.key: one for one in there if one is not None})
    return {key: session.kept_items[key] for key in nodes if key in session.kept_items}


def make(session: Any, targets: Sequence[Any], comm: Any, memory: Any = None) -> None:
    """Make the records that are to be kept, of those that targets are made of. Collective."""
    from mpiimg.arrays import keeping

    there = found(session, targets, comm)
    for node in walk(list(targets)):
        if isinstance(node, Kept) and node.persisted and node.key not in there:
            keeping.carried_out(session, KeptResult(node), comm, memory)
            made = on_root(comm, _opened, session.folder / file_of(node), node.key)
            session.kept_items[node.key] = there[node.key] = made
