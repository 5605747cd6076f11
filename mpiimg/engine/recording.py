"""How the records of a stage are made: written, marked, found again, and known to all ranks at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.blocks import Placement
from mpiimg.engine.boxes import Partition
from mpiimg.engine.checkpoint import Checkpoint, Mark
from mpiimg.engine.keys import checked_key, key_node, key_of
from mpiimg.engine.mpi.gather import allgather_bytes
from mpiimg.engine.mpi.waiting import soft_barrier
from mpiimg.engine.placed import PlacedArrays
from mpiimg.engine.plan import StagePlan
from mpiimg.engine.provenance import Provenance
from mpiimg.engine.record_index import Index, RecordTable
from mpiimg.engine.record_store import MadeRecord, Places, RecordStore
from mpiimg.engine.stage import Records


class Recorder:
    """Makes the records of the stages of a run, one stage after the other.

    Parameters
    ----------
    comm : communicator
        Of the ranks.
    store : RecordStore, optional
        None where nothing is staged: then records are in memory alone.
    arrays : PlacedArrays
        That records become one of.
    checkpoint : Checkpoint
    memory : int
        Bytes that this rank may use.
    """

    def __init__(
        self, comm, store: RecordStore | None, arrays: PlacedArrays, checkpoint: Checkpoint, memory: int
    ):
        self._comm, self._store, self._arrays = comm, store, arrays
        self._checkpoint, self._memory = checkpoint, memory
        self._made: dict[int, Sequence[MadeRecord]] = {}
        self._done: dict[int, Mark] = {}
        #: Bytes of the records of each chunk that this rank keeps; None where there was no room for all.
        self._kept: dict[int, list[np.ndarray]] | None = {}
        self._room = self._held = 0

    def done_before(
        self, stage: Records, provenance: Provenance, between: Callable[[int], None]
    ) -> tuple[set[int], int]:
        """Return the chunks that are marked, and whose records are still those that were marked. Collective.

        Parameters
        ----------
        stage : Records
        provenance : Provenance
            Of the stage.
        between : callable
            Called as between(number) ahead of each chunk that this rank checks.

        Returns
        -------
        done : set of int
        altered : int
            How many others are marked.
        """
        marks = self._checkpoint.marked(stage, provenance)
        marked, good = sorted(marks), []
        if marks:
            for number in (
                marked[i] for i in Partition.even(len(marked), self._comm.size).owned(self._comm.rank)
            ):
                between(number)
                if self._is_sound(stage, marks[number]):
                    good.append(number)
            soft_barrier(self._comm)
            good = [number for numbers in self._comm.allgather(good) for number in numbers]
        self._done = {number: marks[number] for number in good}
        return set(good), len(marks) - len(good)

    def _is_sound(self, stage: Records, mark: Mark) -> bool:
        try:
            records = _marked_records(mark)
            path = self._store.path_of(stage.name, mark.records["file"])
        except (TypeError, KeyError, ValueError):
            return False
        return all(self._store.is_sound(path, one.offset, one.size, one.checksum) for one in records)

    def begin(self, stage: Records, planned: StagePlan) -> None:
        """Turn to a stage, of which this rank may keep records in memory as far as there is room."""
        expected = sum(int(one.share(self._comm.size)[self._comm.rank]) for one in planned.expected)
        self._made, self._kept, self._held = {}, {}, 0
        self._room = self._memory - planned.peak + expected
        if self._store is not None:
            self._store.begin(stage.name)
            if self._done:
                self._kept = None  # what was made before lies in files, and is read there

    def take(self, stage: Records, number: int, made: Iterable[tuple]) -> list[MadeRecord]:
        """Write the records that the work on a chunk yields, one by one.

        Raises
        ------
        OutOfRoom
            Nothing is staged, and they do not fit into memory.
        BadInput
            A key is none.
        """
        records, kept, held = [], [], 0
        for one in made:
            key, pieces, facts = one if len(one) == 3 else (*one, None)
            key = checked_key(key)
            pieces = [memoryview(piece).cast("B") for piece in pieces]
            size, checksum, offset = sum(map(len, pieces)), 0, 0
            if self._store is not None:
                offset, size, checksum = self._store.append(pieces)
            held += size
            if self._kept is not None:
                if self._held + held <= self._room:
                    kept.append(np.frombuffer(b"".join(pieces), np.uint8))
                elif self._store is not None:
                    self._kept, kept = None, []
                else:
                    raise OutOfRoom(
                        f"stage {stage.name}: its records take more than the {max(self._room, 0) >> 20} MB "
                        f"that rank {self._comm.rank} has for them, and the run is in memory: leave out "
                        "--in-memory, use more ranks, or give more --memory"
                    )
            records.append(MadeRecord(key, facts, size, checksum, offset))
        if self._kept is not None:
            self._kept[number] = kept
            self._held += held
        return records

    def keep(
        self, stage: Records, number: int, made: Sequence[MadeRecord], provenance: Provenance, usable: bool
    ) -> int:
        """Mark a finished chunk; return the bytes of its records."""
        self._made[number] = made
        self._checkpoint.add_records(stage, number, provenance, made, usable)
        return sum(record.size for record in made)

    def end(self, stage: Records, planned: StagePlan, lost: Mapping[int, str]) -> Index:
        """Let all ranks know all records, and later stages read them; return the index. Collective."""
        if self._store is not None:
            self._store.end()
        table, files, about = self._gathered(stage)
        order = np.argsort(table[:, 0], kind="stable")
        chunks, sizes, sums, offsets, numbers = table[order].T.copy()
        keys = tuple(key_of(about[i][0]) for i in order.tolist())
        facts = tuple(about[i][1] for i in order.tolist())
        index = Index(stage.records, chunks, keys, sizes, facts, lost)
        owners = planned.partition.owners()[chunks]
        in_memory = self._comm.allreduce(int(self._kept is None)) == 0
        staged = self._store is not None
        placement = Placement(index.array, RecordTable(index, len(stage.grid)), owners, in_memory, staged)
        mine = np.flatnonzero(owners == self._comm.rank).tolist() if in_memory else []
        kept = (data for number in sorted(self._kept or ()) for data in self._kept[number])
        places = Places(files, numbers, offsets, sizes, sums, chunks) if staged else None
        self._arrays.add_records(placement, places, dict(zip(mine, kept, strict=in_memory)))
        self._made, self._done, self._kept = {}, {}, {}
        return index

    def _gathered(self, stage: Records) -> tuple[np.ndarray, tuple[Path, ...], list]:
        """Return of all records, in no order but that within a chunk, what is known of them. Collective.

        Returns
        -------
        table : (records, 5) int64
            Chunk, bytes, CRC32, offset, and number in `files`.
        files : tuple of Path
        about : list of (key, facts)
            As JSON has them.
        """
        rows = [
            (number, record.size, record.checksum, record.offset)
            for number, made in self._made.items()
            for record in made
        ]
        about = [[key_node(record.key), record.facts] for made in self._made.values() for record in made]
        own = {"file": self._store.file if self._store is not None else "", "about": about}
        tables = allgather_bytes(self._comm, np.array(rows, np.int64).reshape(len(rows), 4).tobytes())
        said = [json.loads(text) for text in allgather_bytes(self._comm, json.dumps(own).encode())]
        parts = [np.frombuffer(data, np.int64).reshape(-1, 4) for data in tables]
        files = [one["file"] for one in said]
        together = [pair for one in said for pair in one["about"]]
        for number, mark in self._done.items():
            records = _marked_records(mark)
            rows = [(number, one.size, one.checksum, one.offset) for one in records]
            parts.append(np.array(rows, np.int64).reshape(len(rows), 4))
            files.append(mark.records["file"])
            together += mark.records["about"]
        paths = (
            tuple(self._store.path_of(stage.name, file) for file in files) if self._store is not None else ()
        )
        which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return np.column_stack([np.concatenate(parts), which]), paths, together


class OutOfRoom(MemoryError):
    """The records of a run that stages nothing do not fit into the memory of a rank: in a line what to do."""


def _marked_records(mark: Mark) -> list[MadeRecord]:
    """Return the records that a mark is of.

    Raises
    ------
    TypeError, KeyError, ValueError
        It is of none.
    """
    about: Sequence[Any] = mark.records["about"]
    records = []
    for (key, facts), (checksum, size), runs in zip(about, mark.blocks, mark.places, strict=True):
        ((offset, _),) = runs
        records.append(MadeRecord(key_of(key), facts, size, checksum, offset))
    return records
