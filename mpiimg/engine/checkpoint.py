"""Checkpoints: marks of the chunks that are done, in plain files beside the staged arrays.

Each rank of each run has a file. A mark is a record in a line (engine/records.py): stage, chunk, provenance,
and CRC32 and bytes of the blocks that the chunk wrote. It is appended once the data that it speaks of have
been synced. Marks lie outside HDF5, since flushing HDF5 is collective. Any number of ranks can read the marks
of any other number. A mark that is torn, damaged or of another version is none: its chunk is done again.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.atomic import sync, write_file
from mpiimg.engine.blocks import BlockTable
from mpiimg.engine.boxes import Box, Partition
from mpiimg.engine.keys import key_node
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.waiting import soft_barrier
from mpiimg.engine.provenance import Provenance, has_chunk_provenance
from mpiimg.engine.record_store import MadeRecord, RecordStore
from mpiimg.engine.records import RecordFile, line_of, read_lines
from mpiimg.engine.stage import Compute, Stage
from mpiimg.engine.stores import StagedStore
from mpiimg.errors import BadInput

#: Journal of the marks that were kept of earlier runs. Other names begin with the time, so it is read first.
KEPT_MARKS = "0-kept.jsonl"

#: Runs of items in the file of an array: first item and count of each.
Runs = tuple[tuple[int, int], ...]


def checksum(block: np.ndarray) -> int:
    """Return the CRC32 of the bytes of `block` in C order."""
    from isal.isal_zlib import crc32

    return crc32(memoryview(np.ascontiguousarray(block)).cast("B")) if block.size else 0


@dataclass(frozen=True)
class Mark:
    """The mark of a chunk that is done.

    Parameters
    ----------
    stage : str
    chunk : int
        Its number.
    provenance : str
        Hash of everything that its bytes depend on.
    blocks : tuple of (int, int)
        CRC32 and bytes of each block that it wrote.
    places : tuple of Runs
        Where these lie in the files of their arrays, for a run with other chunks; of records their bytes.
    records : mapping, optional
        Of a chunk that made records: the `file` that they lie in, and of each its key and facts.
    """

    stage: str
    chunk: int
    provenance: str
    blocks: tuple[tuple[int, int], ...]
    places: tuple[Runs, ...] = ()
    records: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Mark | None:
        """Return the mark that a record is, None where it is none."""
        try:
            stage, number, provenance = record["stage"], record["chunk"], record["provenance"]
            blocks = tuple((int(crc), int(size)) for crc, size in record["blocks"])
            places = tuple(tuple((int(a), int(n)) for a, n in runs) for runs in record["places"])
        except (KeyError, TypeError, ValueError):
            return None
        records = record.get("records")
        if (type(stage), type(number), type(provenance)) != (str, int, str):
            return None
        return cls(stage, number, provenance, blocks, places, records if isinstance(records, dict) else None)

    def line(self) -> bytes:
        """Return it as a line of a journal."""
        return line_of(
            {name: one for name, one in vars(self).items() if name != "records" or one is not None}
        )


class Journal:
    """Append the marks of this rank; batch the syncs.

    Parameters
    ----------
    folder : Path
        Of the marks, shared by all ranks.
    rank : int
        This rank, for the name of its file.
    sync_data : callable
        Called before marks are written, to make durable what they speak of.
    every : float
        Seconds between syncs.
    """

    def __init__(self, folder: Path, rank: int, sync_data: Callable[[], None], every: float = 5.0):
        self._sync_data, self._every = sync_data, every
        self._pending: list[bytes] = []
        self._last = time.monotonic()
        #: Spent on syncs and marks.
        self.seconds = 0.0
        stamp = f"{time.time_ns():x}-{os.getpid():x}-{rank}"
        self._file = RecordFile(Path(folder) / f"{stamp}.jsonl")

    def mark(self, mark: Mark) -> None:
        """Note that a chunk is done; it counts once :meth:`sync` has run."""
        started = time.monotonic()
        self._pending.append(mark.line())
        self.seconds += time.monotonic() - started
        if time.monotonic() - self._last > self._every:
            self.sync()

    def sync(self) -> None:
        """Make the data durable, then the marks."""
        started = time.monotonic()
        if self._pending:
            self._sync_data()
            self._file.append(self._pending)
            self._file.sync()
            self._pending.clear()
        self._last = time.monotonic()
        self.seconds += self._last - started

    def close(self) -> None:
        """Close the file; what was not synced is lost."""
        self._file.close()


def read_marks(folder: Path) -> Iterable[Mark]:
    """Yield every sound mark in `folder`, of all ranks of all runs, those of the last run last."""
    for path in sorted(Path(folder).glob("*.jsonl")):
        for record in read_lines(path):
            mark = Mark.of(record)
            if mark is not None:
                yield mark


def keep_marks(folder: Path, stages: Collection[str]) -> None:
    """Forget all marks in `folder` but those of `stages`; no run may be writing there."""
    lines = [mark.line() for mark in read_marks(folder) if mark.stage in stages]
    old = [path for path in Path(folder).glob("*.jsonl") if path.name != KEPT_MARKS]
    write_file(Path(folder) / KEPT_MARKS, b"".join(lines))
    for path in old:
        path.unlink()


class Checkpoint:
    """The marks of a run, and of the runs before it in the same work folder.

    Parameters
    ----------
    comm : communicator
        Of the ranks.
    folder : Path
        Of the journals.
    staged : StagedStore, optional
        Where marked blocks lie; None where nothing is staged, and nothing is marked.
    records : RecordStore, optional
        The same of marked records.
    sync_every : float
        Seconds between syncs.
    """

    def __init__(
        self,
        comm,
        folder: Path,
        staged: StagedStore | None,
        records: RecordStore | None,
        sync_every: float,
    ):
        self._comm, self._folder, self._staged, self._records = comm, folder, staged, records
        self._sync_every = sync_every
        self._earlier: dict[tuple[str, str], dict[int, Mark]] = {}
        self._journal: Journal | None = None
        self._unusable: dict[int, list[int]] = {}

    def load(self) -> None:
        """Read what runs before this one have marked. Collective."""
        for mark in on_root(self._comm, self._read):
            by_chunk = self._earlier.setdefault((mark.stage, mark.provenance), {})
            by_chunk.pop(mark.chunk, None)  # so that the newest one comes last
            by_chunk[mark.chunk] = mark

    def _read(self) -> list[Mark]:
        sync(self._folder.parent)  # journals that survive a power loss need a folder that does
        return list(read_marks(self._folder))

    def open(self) -> None:
        """Begin this rank's journal."""
        self._journal = Journal(self._folder, self._comm.rank, self._sync_data, self._sync_every)

    def _sync_data(self) -> None:
        self._staged.sync()
        self._records.sync()

    def end_stage(self, stage: Stage) -> dict[int, list[int]]:
        """Return the checksums of the blocks that stand for something unusable, by chunk. Collective."""
        unusable: dict[int, list[int]] = {}
        if stage.retried and self._comm.allreduce(len(self._unusable)):
            parts = self._comm.allgather(self._unusable)
            unusable = {number: sums for part in parts for number, sums in part.items()}
            self._unusable = {}
        if has_chunk_provenance(stage) and self._staged is not None:
            on_root(self._comm, self._staged.forget_aside, [array.name for array in stage.arrays])
        return unusable

    def marked(self, stage: Stage, provenance: Provenance) -> dict[int, Mark]:
        """Return the marks of earlier runs that count for a stage of this provenance, by chunk.

        Of several of one chunk the newest counts: that of the run which wrote there last.
        """
        if provenance.chunks is None:
            marks = self._earlier.get((stage.name, provenance.whole), {})
            return {number: mark for number, mark in marks.items() if 0 <= number < len(stage.grid)}
        marks = {}
        for number, own in enumerate(provenance.chunks):
            same = self._earlier.get((stage.name, own))
            if same:
                marks[number] = list(same.values())[-1]
        return marks

    def done_before(
        self,
        stage: Stage,
        provenance: Provenance,
        tables: Sequence[BlockTable],
        between: Callable[[int], None],
    ) -> set[int]:
        """Return the chunks that are marked and whose bytes are still those that were marked. Collective.

        Parameters
        ----------
        stage : Stage
        provenance : Provenance
            Of the stage.
        tables : sequence of BlockTable
            Where the blocks of its arrays lie.
        between : callable
            Called as between(number) ahead of each chunk that this rank checks.
        """
        marks = self.marked(stage, provenance)
        if not marks:
            return set()
        marked = sorted(marks)
        part = Partition.even(len(marked), self._comm.size)
        owners = np.zeros(len(stage.grid), dtype=np.int64)
        owners[marked] = part.owners()
        if provenance.chunks is not None:
            on_root(self._comm, self._set_aside, stage, marks, tables)
        for array, table in zip(stage.arrays, tables, strict=True):
            self._staged.create(array, table.boxes, table.owners(owners))
        good = []
        for number in (marked[i] for i in part.owned(self._comm.rank)):
            between(number)
            # What cannot be read is made again, like what was altered.
            with contextlib.suppress(OSError):
                sums = tuple(
                    self._staged.sum_again(array.name, block)
                    for array, table in zip(stage.arrays, tables, strict=True)
                    for block in table.of_chunk(number)
                )
                if sums == marks[number].blocks or self._moved(
                    stage, number, provenance, tables, marks[number]
                ):
                    good.append(number)
        self._staged.share()
        soft_barrier(self._comm)
        return {number for numbers in self._comm.allgather(good) for number in numbers}

    def _set_aside(self, stage: Stage, marks: Mapping[int, Mark], tables: Sequence[BlockTable]) -> None:
        """Keep the arrays of a run that had other chunks, or had them elsewhere."""
        moved = any(mark.places != _places(stage, tables, number) for number, mark in marks.items())
        self._staged.set_aside(stage.arrays, moved)

    def _moved(
        self, stage: Stage, number: int, provenance: Provenance, tables: Sequence[BlockTable], mark: Mark
    ) -> bool:
        """Bring a chunk to its place from where an earlier run had it; say whether it was there."""
        own = [
            (array, table, block)
            for array, table in zip(stage.arrays, tables, strict=True)
            for block in table.of_chunk(number)
        ]
        shapes = [table.boxes[block, :, 1] - table.boxes[block, :, 0] for _, table, block in own]
        items = [sum(count for _, count in runs) for runs in mark.places]
        if provenance.chunks is None or items != [math.prod(shape.tolist()) for shape in shapes]:
            return False
        blocks = [
            self._staged.read_aside(array, runs) for (array, _, _), runs in zip(own, mark.places, strict=True)
        ]
        if tuple((checksum(block), block.nbytes) for block in blocks) != mark.blocks:
            return False
        blocks = [block.reshape(shape) for block, shape in zip(blocks, shapes, strict=True)]
        sums = [
            self._staged.write(array.name, n, block) for (array, _, n), block in zip(own, blocks, strict=True)
        ]
        self.add(stage, number, provenance, tables, blocks, sums)
        return True

    def check_input(self, stage: Stage, number: int, provenance: Provenance, block: np.ndarray) -> None:
        """Compare a block of an input that passes by with what an earlier run read there and marked.

        Raises
        ------
        BadInput
            The input was altered, though its size, time and samples are the same.
        """
        mark = self._earlier.get((stage.name, provenance.whole), {}).get(number)
        if mark is not None and mark.blocks != ((checksum(block), block.nbytes),):
            raise BadInput(
                f"stage {stage.name}, chunk {number}: the input is not what an earlier run read there, "
                f"though its size and time are the same; remove {self._folder.parent} and start again"
            )

    def add(
        self,
        stage: Stage,
        number: int,
        provenance: Provenance,
        tables: Sequence[BlockTable],
        blocks: Sequence[np.ndarray],
        sums: Sequence[int],
        usable: bool = True,
    ) -> None:
        """Mark a chunk unless it stands for what could not be used.

        Its blocks have been staged, with `sums` as their CRC32s; or nothing is staged, and there are none.
        """
        if isinstance(stage, Compute) and stage.unusable is not None and stage.unusable(*blocks):
            usable = False
        if not usable:
            self._unusable[number] = [checksum(block) for block in blocks]
        elif self._journal is not None:
            places = _places(stage, tables, number) if provenance.chunks is not None else ()
            sized = tuple((crc, block.nbytes) for crc, block in zip(sums, blocks, strict=True))
            self._journal.mark(Mark(stage.name, number, provenance.of(number), sized, places))

    def add_records(
        self, stage: Stage, number: int, provenance: Provenance, made: Sequence[MadeRecord], usable: bool
    ) -> None:
        """Mark a chunk that made records, unless its unit failed."""
        if not usable:
            self._unusable[number] = []
        elif self._journal is not None:
            blocks = tuple((record.checksum, record.size) for record in made)
            places = tuple(((record.offset, record.size),) for record in made)
            about = [[key_node(record.key), record.facts] for record in made]
            records = {"file": self._records.file, "about": about}
            self._journal.mark(Mark(stage.name, number, provenance.of(number), blocks, places, records))

    def sync(self) -> None:
        """Let all ranks read what was staged, and make all that was marked survive a power loss."""
        if self._staged is not None:
            self._staged.share()
            self._records.share()
        if self._journal is not None:
            self._journal.sync()

    @property
    def seconds(self) -> float:
        """How long this rank has spent on checksums, syncs and marks."""
        if self._journal is None:
            return 0.0
        return self._journal.seconds + self._staged.seconds + self._records.seconds

    def close(self) -> None:
        """Write what can still be marked, and end."""
        if self._journal is not None:
            with contextlib.suppress(OSError):
                self._journal.sync()
            self._journal.close()
            self._journal = None


def _places(stage: Stage, tables: Sequence[BlockTable], number: int) -> tuple[Runs, ...]:
    """Return where the blocks of a chunk lie in the files of their arrays: runs of items, (first, count)."""
    return tuple(
        tuple((first, count) for first, _, count in array.runs(_box(table, block)))
        for array, table in zip(stage.arrays, tables, strict=True)
        for block in table.of_chunk(number)
    )


def _box(table: BlockTable, block: int) -> Box:
    return tuple((start, stop) for start, stop in table.boxes[block].tolist())
