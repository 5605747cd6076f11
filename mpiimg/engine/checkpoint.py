"""What is done: what the bytes of a stage depend on, which chunks earlier runs left, and new marks."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.blocks import BlockTable
from mpiimg.engine.boxes import Box, Partition, box_shape
from mpiimg.engine.inputs import Input
from mpiimg.engine.journal import Journal, Mark, Runs, checksum, read_marks
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.waiting import soft_barrier
from mpiimg.engine.stage import Compute, Stage
from mpiimg.engine.stores import StagedStore
from mpiimg.errors import BadInput
from mpiimg.version import __version__

#: Libraries whose results are ours: with another version of one, nothing marked is taken over.
LIBRARIES = ("numpy", "numba", "scipy", "dipy", "astropy", "sep", "nibabel")


@dataclass(frozen=True)
class Provenance:
    """Hashes of all that the bytes of a stage depend on.

    Parameters
    ----------
    whole : str
        Of the stage.
    chunks : tuple of str, optional
        Of each chunk, where they have one each.
    """

    whole: str
    chunks: tuple[str, ...] | None = None

    def of(self, number: int) -> str:
        """Return that of a chunk."""
        return self.whole if self.chunks is None else self.chunks[number]


@dataclass(frozen=True)
class _Origin:
    """Where an array comes from: hashes of the whole, or of each chunk, whose blocks lie at `table`."""

    whole: str
    chunks: tuple[str, ...] | None = None
    table: BlockTable | None = None

    def of(self, boxes: Sequence[Box]) -> Any:
        """Return what the items at `boxes` come from: of which chunks which part, wherever these lie."""
        if self.chunks is None:
            return self.whole
        return [(box_shape(box), self._parts(box)) for box in boxes]

    def _parts(self, box: Box) -> list:
        blocks, common = self.table.parts(box)
        chunks = np.searchsorted(self.table.starts, blocks, side="right") - 1
        within = common - self.table.boxes[blocks][..., :1]
        places = blocks - self.table.starts[chunks]
        return [
            (self.chunks[chunk], place, part)
            for chunk, place, part in zip(chunks.tolist(), places.tolist(), within.tolist(), strict=True)
        ]


class Marks:
    """The marks of this run and of those before it in the same work folder.

    Parameters
    ----------
    comm : communicator of the ranks
    folder : of the journals
    staged : where marked blocks lie; None where nothing is staged, and nothing marked
    inputs : arrays that lie in files of any format
    cpu_target : that kernels are compiled for
    sync_every : seconds between syncs
    packages : version by name of what installed steps come from
    """

    def __init__(
        self,
        comm,
        folder: Path,
        staged: StagedStore | None,
        inputs: Sequence[Input],
        cpu_target: str,
        sync_every: float,
        packages: Mapping[str, str] | None = None,
    ):
        self._comm, self._folder, self._staged = comm, folder, staged
        self._versions = {"mpiimg": __version__, "cpu_target": cpu_target, **versions(LIBRARIES)}
        self._versions |= packages or {}
        self._sync_every = sync_every
        self._found: dict[tuple[str, str], dict[int, Mark]] = {}
        self._journal: Journal | None = None
        self._unusable: dict[int, list[int]] = {}
        self._origins = {
            source.array.name: _Origin(digest("input", source.identity, source.sample, source.array.shape))
            for source in inputs
        }

    def load(self) -> None:
        """Read what runs before this one have marked. Collective."""
        for mark in on_root(self._comm, lambda: list(read_marks(self._folder))):
            known = self._found.setdefault((mark.stage, mark.provenance), {})
            known.pop(mark.chunk, None)  # the last one is to be the newest
            known[mark.chunk] = mark

    def open(self) -> None:
        """Begin this rank's journal."""
        self._journal = Journal(self._folder, self._comm.rank, self._staged.sync, self._sync_every)

    def provenance(self, stage: Stage) -> Provenance:
        """Return hashes of all that the bytes of this stage's chunks depend on."""
        if _depends(stage):
            chunks = tuple(self._of_chunk(stage, number) for number in range(len(stage.grid)))
            return Provenance(digest(chunks), chunks)
        names = (*(need.array.name for need in stage.reads), *stage.follows)
        inputs = [self._origins[name].whole for name in names]
        grid = (stage.grid.axes, stage.grid.shape, stage.grid.block)
        return Provenance(digest(stage.name, stage.parameters or {}, self._versions, inputs, grid))

    def _of_chunk(self, stage: Compute, number: int) -> str:
        """Return a hash of all that the bytes of a chunk depend on, the chunks that it reads included.

        Where a chunk lies is no part of it, but how large it is.
        """
        own, chunk = dict(stage.depends(number)), stage.chunk(number)
        shapes = [[box_shape(box) for box in output.boxes(chunk)] for output in stage.targets]
        inputs = [self._origins[need.array.name].of(need.boxes(chunk)) for need in stage.reads]
        return digest(stage.name, stage.parameters or {}, own, self._versions, inputs, shapes)

    def has_written(self, stage: Stage, provenance: Provenance, tables: Sequence[BlockTable]) -> None:
        """Remember where the arrays of a stage come from, for those that read them. Collective.

        A chunk that stands for something unusable may be there the next time, though all that is known of it
        beforehand is the same: what is made of it depends on what it came to.
        """
        whole, chunks = provenance.whole, provenance.chunks
        if isinstance(stage, Compute) and stage.unusable is not None:
            unusable = {n: sums for part in self._comm.allgather(self._unusable) for n, sums in part.items()}
            whole = digest(whole, sorted(unusable.items()))
            if chunks is not None:
                chunks = tuple(
                    digest(one, unusable[n]) if n in unusable else one for n, one in enumerate(chunks)
                )
            self._unusable = {}
        if _depends(stage) and self._staged is not None:
            on_root(self._comm, self._staged.forget_aside, [array.name for array in stage.arrays])
        for array, table in zip(stage.arrays, tables, strict=True):
            self._origins[array.name] = _Origin(whole, chunks, table)

    def found(self, stage: Stage, provenance: Provenance) -> dict[int, Mark]:
        """Return the marks that fit, by chunk."""
        if provenance.chunks is None:
            return self._found.get((stage.name, provenance.whole), {})
        marks = {}
        for number, own in enumerate(provenance.chunks):
            known = self._found.get((stage.name, own), {})
            if known:
                marks[number] = list(known.values())[-1]
        return marks

    def done_before(
        self,
        stage: Stage,
        provenance: Provenance,
        tables: Sequence[BlockTable],
        between: Callable[[int], None],
    ) -> set[int]:
        """Return the chunks that are marked and whose bytes are still those that were marked. Collective.

        `between` is called ahead of each chunk that this rank checks.
        """
        marks = self.found(stage, provenance)
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
        for i in part.owned(self._comm.rank):
            between(marked[i])
            # What cannot be read is made again, like what was altered.
            with contextlib.suppress(OSError):
                blocks = [
                    self._staged.read(array.name, block)
                    for array, table in zip(stage.arrays, tables, strict=True)
                    for block in table.of_chunk(marked[i])
                ]
                mark = marks[marked[i]]
                if _sums(blocks) == mark.blocks or self._moved(stage, marked[i], provenance, tables, mark):
                    good.append(marked[i])
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
        if provenance.chunks is None or len(own) != len(mark.places):
            return False
        blocks = [
            self._staged.read_aside(array.name, runs)
            for (array, _, _), runs in zip(own, mark.places, strict=True)
        ]
        if _sums(blocks) != mark.blocks:
            return False
        blocks = [
            block.reshape(table.boxes[n, :, 1] - table.boxes[n, :, 0])
            for block, (_, table, n) in zip(blocks, own, strict=True)
        ]
        for (array, _, n), block in zip(own, blocks, strict=True):
            self._staged.write(array.name, n, block)
        self.add(stage, number, provenance, tables, blocks)
        return True

    def check_input(self, stage: Stage, number: int, provenance: Provenance, block: np.ndarray) -> None:
        """Compare a block of an input that passes by with what an earlier run read there and marked.

        Raises
        ------
        BadInput : the input was altered, though its size, time and samples are the same
        """
        mark = self.found(stage, provenance).get(number)
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
    ) -> None:
        """Mark a chunk whose blocks have been staged, unless it stands for what could not be used."""
        if isinstance(stage, Compute) and stage.unusable is not None and stage.unusable(*blocks):
            self._unusable[number] = [checksum(block) for block in blocks]
        elif self._journal is not None:
            places = _places(stage, tables, number) if provenance.chunks is not None else ()
            self._journal.mark(stage.name, number, provenance.of(number), blocks, places)

    def sync(self) -> None:
        """Make all that was marked survive a power loss."""
        if self._journal is not None:
            self._journal.sync()

    @property
    def seconds(self) -> float:
        """How long this rank has spent on checksums, syncs and marks."""
        return self._journal.seconds if self._journal is not None else 0.0

    def close(self) -> None:
        """Write what can still be marked, and end."""
        if self._journal is not None:
            with contextlib.suppress(OSError):
                self._journal.sync()
            self._journal.close()
            self._journal = None


def _sums(blocks: Sequence[np.ndarray]) -> tuple[tuple[int, int], ...]:
    """Return CRC32 and bytes of blocks, as marks have them."""
    return tuple((checksum(block), block.nbytes) for block in blocks)


def _places(stage: Stage, tables: Sequence[BlockTable], number: int) -> tuple[Runs, ...]:
    """Return where the blocks of a chunk lie in the files of their arrays: runs of items, (first, count)."""
    return tuple(
        tuple((first, count) for first, _, count in array.runs(_box(table, block)))
        for array, table in zip(stage.arrays, tables, strict=True)
        for block in table.of_chunk(number)
    )


def _box(table: BlockTable, block: int) -> Box:
    return tuple((start, stop) for start, stop in table.boxes[block].tolist())


def _depends(stage: Stage) -> bool:
    """Say whether the chunks of a stage have a provenance each."""
    return isinstance(stage, Compute) and stage.depends is not None


def digest(*parts) -> str:
    """Return a hash of what JSON makes of `parts`."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of libraries."""
    return {name: version(name) for name in names}
