"""The files that a run writes: by all ranks at once into one, or by each into files of its own."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpiimg.engine.boxes import box_shape
from mpiimg.engine.containment import Containment
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.waiting import soft_barrier
from mpiimg.engine.plan import StagePlan
from mpiimg.engine.raw import RawFile, write_fully
from mpiimg.engine.results import OUTPUTS, OwnFiles, OwnFolder, crc_of, joined, sum_of_range, sum_of_shared
from mpiimg.engine.rounds import Rounds
from mpiimg.engine.stage import Digested, Files, PlacedSink, Sink
from mpiimg.engine.system_errors import naming
from mpiimg.errors import BadInput

#: Bytes beside an array in a file that one rank sums alone.
ALONE = 64 << 20


class ResultFiles:
    """Writes the results of stages into the work folder, on all ranks.

    Parameters
    ----------
    comm : communicator
        Of the ranks.
    work : Path
        The work folder.
    rounds : Rounds
    containment : Containment
    """

    def __init__(self, comm, work: Path, rounds: Rounds, containment: Containment):
        self._comm, self._work, self._rounds = comm, work, rounds
        self._containment = containment
        #: Size and checksum of each file that stages have written, by name; on rank 0.
        self.written: dict[str, dict] = {}

    def write(self, stage: Sink | PlacedSink | Files, planned: StagePlan) -> None:
        """Write the files of a stage. Collective."""
        if isinstance(stage, Sink):
            self._write_one(stage, planned)
        elif isinstance(stage, PlacedSink):
            self._write_placed(stage, planned)
        elif stage.within:
            self._write_within(stage, planned)
        else:
            self._write_many(stage, planned)

    def check(self, stage: Sink | PlacedSink | Files, lost: Mapping[int, str]) -> None:
        """See to it that a stage has written what it names, but for the files of units that failed.

        On rank 0.

        Raises
        ------
        RuntimeError
            It has not.
        """
        left_out = {name for number in lost if stage.files for name in stage.of_chunk(number)}
        missing = [name for name in stage.files if name not in self.written and name not in left_out]
        if missing:
            raise RuntimeError(
                f"has not written {', '.join(missing[:3])}, of {len(missing)} files that it names"
            )

    def _write_one(self, stage: Sink, planned: StagePlan) -> None:
        """Write the bytes of all chunks in order: ranks take consecutive runs, round by round."""
        path, where = self._work / OUTPUTS / stage.file, f"stage {stage.name}"
        head = on_root(self._comm, lambda: _write_head(path, stage))
        position, written = head.size, []
        chunks = range(len(stage.grid))
        opened: list[int] = []
        self._rounds.guarded(lambda: opened.append(os.open(path, os.O_WRONLY)), where)
        self._rounds.agree()
        descriptor = opened[0]
        try:
            for numbers in self._rounds.planned(stage, planned, chunks):
                position = self._write_round(stage, numbers, descriptor, position, written)
            self._rounds.guarded(lambda: _sync(path, descriptor), where)
        finally:
            os.close(descriptor)
        self._rounds.agree()
        parts = self._comm.gather(written)
        said = on_root(self._comm, lambda: _end_file(path, stage, position, head, parts), where=where)
        on_root(self._comm, lambda: self.written.update({stage.file: said}))

    def _write_round(
        self,
        stage: Sink,
        numbers: list[list[int]],
        descriptor: int,
        position: int,
        written: list[_Written],
    ) -> int:
        """Make and write the bytes of one round of chunks; return where the next round begins.

        What is to be known of each of this rank's chunks is added to `written`.
        """
        pieces = []
        logbook = self._rounds.logbook
        for number, blocks in self._rounds.one(stage, numbers):
            try:
                made = stage.digested(logbook.at_work(stage.work, stage.chunk(number), *blocks))
                pieces.append(made.data)
                written.append(_Written.of(number, made))
                logbook.done(stage, number, len(made.data))
            except Exception as error:
                self._rounds.agreement.record(error, f"stage {stage.name}, chunk {number}")
            del blocks
        logbook.wait("sizes of all ranks")
        soft_barrier(self._comm)
        size = sum(map(len, pieces))
        start = position + (self._comm.exscan(size) or 0)
        path = self._work / OUTPUTS / stage.file
        self._rounds.guarded(lambda: _write_pieces(path, descriptor, pieces, start), f"stage {stage.name}")
        return position + self._comm.allreduce(size)

    def _write_placed(self, stage: PlacedSink, planned: StagePlan) -> None:
        """Write the blocks of all chunks at their places, in any order."""
        path, where = self._work / OUTPUTS / stage.file, f"stage {stage.name}"
        offset, size = on_root(
            self._comm, lambda: _create_placed(path, stage, stage.file in self.written), where=where
        )
        opened: list[RawFile] = []
        self._rounds.guarded(
            lambda: opened.append(RawFile(path, offset, stage.layout.shape, stage.stored, writable=True)),
            where,
        )
        self._rounds.agree()
        sums: list[tuple[int, int, int]] = []
        try:
            for number, blocks in self._rounds.chunks(stage, planned, range(len(stage.grid))):
                self._rounds.guarded(
                    lambda number=number, blocks=blocks: self._place(stage, number, opened[0], blocks, sums),
                    f"{where}, chunk {number}",
                )
                del blocks
            self._rounds.guarded(opened[0].sync, where)
        finally:
            opened[0].close()
        self._rounds.agree()
        self._rounds.logbook.wait("checksums of all ranks")
        parts = self._comm.gather(sums)
        said = on_root(self._comm, lambda: _sum_of_placed(stage, path, offset, size, parts))
        # Where a chunk lies in many runs, or other arrays in the file, all ranks read what is there.
        said = said or sum_of_shared(self._comm, path, size)
        on_root(self._comm, lambda: self.written.update({stage.file: said}))

    def _place(
        self,
        stage: PlacedSink,
        number: int,
        file: RawFile,
        blocks: Sequence[Any],
        sums: list[tuple[int, int, int]],
    ) -> None:
        """Make the block of a chunk, and write it where it lies in the file.

        Of one that lies there in one piece the first item, bytes and CRC32 are added to `sums`.
        """
        chunk = stage.chunk(number)
        block = self._rounds.logbook.at_work(stage.work, chunk, *blocks)
        box = stage.layout.part(chunk.bounds)
        if block.shape != box_shape(box):
            raise ValueError(f"the work returned the shape {block.shape}, and not {box_shape(box)}")
        block = np.ascontiguousarray(block, dtype=stage.stored)
        runs = list(itertools.islice(stage.layout.runs(box), 2))
        if len(runs) == 1:
            sums.append((runs[0][0], block.nbytes, crc_of(memoryview(block).cast("B"))))
        file.write(box, block)
        self._rounds.logbook.done(stage, number, block.nbytes)

    def _write_many(self, stage: Files, planned: StagePlan) -> None:
        """Let the work on each chunk write whole files; who wrote makes them durable, once for all chunks."""
        own, sums = OwnFiles(self._work, self._comm.rank, stage.files), {}
        for number, blocks in self._rounds.chunks(stage, planned, range(len(stage.grid))):
            self._rounds.guarded(
                lambda number=number, blocks=blocks: self._work_on(
                    stage, number, own.folder(stage.of_chunk and stage.of_chunk(number)), blocks
                ),
                f"stage {stage.name}, chunk {number}",
            )
            self._rounds.logbook.done(stage, number, 0)
            del blocks
        self._rounds.agree()
        self._rounds.guarded(lambda: sums.update(own.hand_over()), f"stage {stage.name}, its files")
        self._rounds.agree()
        for part in self._comm.gather(sums) or ():
            self.written |= part

    def _work_on(self, stage: Files, number: int, folder: Path, blocks: Sequence[Any]) -> None:
        """Let the work on a chunk write its files; nothing stays of those of a unit that fails."""
        try:
            self._rounds.logbook.at_work(stage.work, stage.chunk(number), folder, *blocks)
        except Exception as error:
            if not self._containment.contain(stage, number, error):
                raise
            for name in stage.of_chunk(number) if stage.of_chunk is not None else ():
                (folder / name).unlink(missing_ok=True)

    def _write_within(self, stage: Files, planned: StagePlan) -> None:
        """Let the work on each chunk write any files into a folder."""
        own, sums = OwnFolder(self._work, self._comm.rank, stage.within), {}
        for number, blocks in self._rounds.chunks(stage, planned, range(len(stage.grid))):
            self._rounds.guarded(
                lambda number=number, blocks=blocks: self._work_within(stage, number, own, blocks),
                f"stage {stage.name}, chunk {number}",
            )
            self._rounds.logbook.done(stage, number, 0)
            del blocks
        self._rounds.agree()
        names: list[tuple[str, int]] = []
        self._rounds.guarded(lambda: names.extend(own.names()), f"stage {stage.name}, its files")
        self._rounds.agree()
        on_root(self._comm, self._refuse_twice, stage, self._comm.gather(names))
        self._rounds.guarded(lambda: sums.update(own.hand_over()), f"stage {stage.name}, its files")
        self._rounds.agree()
        for part in self._comm.gather(sums) or ():
            self.written |= part

    def _work_within(self, stage: Files, number: int, own: OwnFolder, blocks: Sequence[Any]) -> None:
        try:
            self._rounds.logbook.at_work(stage.work, stage.chunk(number), own.folder(number), *blocks)
        except Exception as error:
            if not self._containment.contain(stage, number, error):
                raise
            own.forget(number)

    def _refuse_twice(self, stage: Files, parts: Sequence[Sequence[tuple[str, int]]]) -> None:
        """Refuse names that two chunks have written, or another stage has."""
        by_name: dict[str, int] = {}
        for name, number in sorted((pair for part in parts for pair in part), key=lambda pair: pair[1]):
            if name in by_name or name in self.written:
                first = f"chunk {by_name[name]}" if name in by_name else "another stage"
                raise BadInput(
                    f"stage {stage.name}: chunk {number} and {first} both write {name}; give each file a "
                    "name of its own, such as one with the key"
                )
            by_name[name] = number


class _Written(NamedTuple):
    """What is to be known of a piece of a file that all ranks fill."""

    number: int
    size: int
    crc: int
    digest: Any

    @classmethod
    def of(cls, number: int, made: Digested) -> _Written:
        return cls(number, len(made.data), crc_of(made.data), made.digest)


def _write_head(path: Path, stage: Sink) -> _Written:
    """Begin a file; the number of its head comes before those of all chunks."""
    head = stage.digested(stage.head())
    path.write_bytes(head.data)
    return _Written.of(-1, head)


def _end_file(
    path: Path, stage: Sink, position: int, head: _Written, parts: Sequence[Sequence[_Written]]
) -> dict[str, Any]:
    """Write and make durable what a file ends with; return what the record says of the file."""
    pieces = sorted([head, *itertools.chain.from_iterable(parts)], key=lambda piece: piece.number)
    sums = [(piece.size, piece.crc) for piece in pieces]
    if stage.tail is not None:
        tail = stage.tail([piece.digest for piece in pieces])
        with naming(path), open(path, "r+b", buffering=0) as file:
            write_fully(file.fileno(), tail, position)
            os.fdatasync(file.fileno())
        sums.append((len(tail), crc_of(tail)))
    return joined(sums)


def _create_placed(path: Path, stage: PlacedSink, further: bool) -> tuple[int, int]:
    """Begin a file in which an array will lie; return the bytes before it, and those of the whole file.

    All of what is not the array is durable then.
    """
    with naming(path):
        offset = stage.create(path, further)
        size = path.stat().st_size
        if size < offset + stage.layout.nbytes:
            raise ValueError(f"{stage.file}: is made with {size} bytes, in which the array has no room")
        with open(path, "rb") as file:
            os.fdatasync(file.fileno())
    return offset, size


def _sum_of_placed(
    stage: PlacedSink, path: Path, offset: int, size: int, parts: Sequence[Sequence[tuple[int, int, int]]]
) -> dict[str, Any] | None:
    """Return what the record says of a file, from the sums of its chunks; None where they are not all."""
    ordered = sorted(itertools.chain.from_iterable(parts))
    place = 0
    for first, length, _ in ordered:
        if first * stage.stored.itemsize != place:
            return None
        place += length
    if not ordered or place != math.prod(stage.layout.shape) * stage.stored.itemsize:
        return None
    if size - place > ALONE:
        return None
    head, tail = sum_of_range(path, 0, offset), sum_of_range(path, offset + place, size)
    return joined([head, *((length, crc) for _, length, crc in ordered), tail])


def _write_pieces(path: Path, descriptor: int, pieces: Sequence[bytes], position: int) -> None:
    with naming(path):
        for piece in pieces:
            write_fully(descriptor, piece, position)
            position += len(piece)


def _sync(path: Path, descriptor: int) -> None:
    with naming(path):
        os.fdatasync(descriptor)
