"""What is done: what the bytes of a stage depend on, which chunks earlier runs left, and new marks."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

import mpiimg
from mpiimg.engine.boxes import Box, Partition
from mpiimg.engine.journal import Journal, Mark, checksum, read_marks
from mpiimg.engine.mpi.runtime import on_root
from mpiimg.engine.mpi.waiting import meet
from mpiimg.engine.stage import Stage
from mpiimg.engine.stores import StagedStore
from mpiimg.errors import BadInput
from mpiimg.neuro.nifti import Image

#: Libraries whose results are ours: with another version of one, nothing marked is taken over.
LIBRARIES = ("numpy", "numba", "scipy", "dipy", "astropy", "sep", "nibabel")


class Marks:
    """The marks of this run and of those before it in the same work folder.

    Parameters
    ----------
    comm : communicator of the ranks
    folder : of the journals
    staged : where marked blocks lie; None where nothing is staged, and nothing marked
    inputs : by the name of the array that lies in them
    cpu_target : that kernels are compiled for
    sync_every : seconds between syncs
    """

    def __init__(
        self,
        comm,
        folder: Path,
        staged: StagedStore | None,
        inputs: Mapping[str, Image],
        cpu_target: str,
        sync_every: float,
    ):
        self._comm, self._folder, self._staged = comm, folder, staged
        self._versions = {"mpiimg": mpiimg.__version__, "cpu_target": cpu_target, **versions(LIBRARIES)}
        self._sync_every = sync_every
        self._found: dict[tuple[str, str], dict[int, Mark]] = {}
        self._journal: Journal | None = None
        self._left_out: dict[int, list[int]] = {}
        self._of_array = {
            name: digest("input", image.identity, image.sample, image.shape) for name, image in inputs.items()
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

    def provenance(self, stage: Stage) -> str:
        """Return a hash of all that the bytes of this stage's chunks depend on."""
        if stage.chunk_parameters is not None:
            return digest([self._of_chunk(stage, number, "") for number in range(len(stage.grid))])
        inputs = [self._of_array[need.array.name] for need in stage.reads]
        grid = (stage.grid.axes, stage.grid.shape, stage.grid.block)
        return digest(stage.name, dict(stage.parameters), self._versions, inputs, grid)

    def _of_chunk(self, stage: Stage, number: int, provenance: str) -> str:
        """Return a hash of all that the bytes of a chunk depend on; `provenance` is that of its stage."""
        if stage.chunk_parameters is None:
            return provenance
        own = dict(stage.chunk_parameters(number))
        return digest(stage.name, dict(stage.parameters), own, self._versions)

    def has_written(self, stage: Stage, provenance: str) -> None:
        """Remember where the arrays of a stage come from, for those that read them. Collective."""
        if stage.left_out is not None:
            # It may be there the next time, though all that is known of it beforehand is the same.
            parts = self._comm.allgather(self._left_out)
            provenance = digest(provenance, sorted(item for part in parts for item in part.items()))
            self._left_out = {}
        if stage.chunk_parameters is not None and self._staged is not None:
            on_root(self._comm, self._staged.forget_aside, [array.name for array in stage.writes])
        self._of_array.update(dict.fromkeys((array.name for array in stage.writes), provenance))

    def found(self, stage: Stage, provenance: str) -> dict[int, Mark]:
        """Return the marks that fit, by chunk."""
        if stage.chunk_parameters is None:
            return self._found.get((stage.name, provenance), {})
        marks = {}
        for number in range(len(stage.grid)):
            known = self._found.get((stage.name, self._of_chunk(stage, number, provenance)), {})
            if known:
                marks[number] = list(known.values())[-1]
        return marks

    def done_before(self, stage: Stage, provenance: str, between: Callable[[int], None]) -> set[int]:
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
        if stage.chunk_parameters is not None:
            on_root(self._comm, self._set_aside, stage, marks)
        for array in stage.writes:
            self._staged.create(array, stage.output_boxes(array), owners)
        good = []
        for i in part.owned(self._comm.rank):
            between(marked[i])
            # What cannot be read is made again, like what was altered.
            with contextlib.suppress(OSError):
                blocks = [self._staged.read(array.name, marked[i]) for array in stage.writes]
                mark = marks[marked[i]]
                if _sums(blocks) == mark.blocks or self._moved(stage, marked[i], mark):
                    good.append(marked[i])
        meet(self._comm)
        return {number for numbers in self._comm.allgather(good) for number in numbers}

    def _set_aside(self, stage: Stage, marks: Mapping[int, Mark]) -> None:
        """Keep the arrays of a run that had other chunks, or had them elsewhere."""
        moved = any(mark.boxes != _boxes(stage, number) for number, mark in marks.items())
        self._staged.set_aside(stage.writes, moved)

    def _moved(self, stage: Stage, number: int, mark: Mark) -> bool:
        """Bring a chunk to its place from where an earlier run had it; say whether it was there."""
        if stage.chunk_parameters is None:
            return False
        blocks = [
            self._staged.read_aside(array.name, box)
            for array, box in zip(stage.writes, mark.boxes, strict=True)
        ]
        if _sums(blocks) != mark.blocks:
            return False
        for array, block in zip(stage.writes, blocks, strict=True):
            self._staged.write(array.name, number, block)
        self.add(stage, number, "", blocks)
        return True

    def check_input(self, stage: Stage, number: int, provenance: str, block: np.ndarray) -> None:
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

    def add(self, stage: Stage, number: int, provenance: str, blocks: Sequence[np.ndarray]) -> None:
        """Mark a chunk whose blocks have been staged, unless it stands for what could not be used."""
        if stage.left_out is not None and stage.left_out(*blocks):
            self._left_out[number] = [checksum(block) for block in blocks]
        elif self._journal is not None:
            boxes = _boxes(stage, number) if stage.chunk_parameters is not None else ()
            provenance = self._of_chunk(stage, number, provenance)
            self._journal.mark(stage.name, number, provenance, blocks, boxes)

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


def _boxes(stage: Stage, number: int) -> tuple[Box, ...]:
    """Return where a chunk lies in each of the arrays that its stage writes."""
    chunk = stage.chunk(number)
    return tuple(stage.output_box(array, chunk) for array in stage.writes)


def digest(*parts) -> str:
    """Return a hash of what JSON makes of `parts`."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of libraries."""
    return {name: version(name) for name in names}
