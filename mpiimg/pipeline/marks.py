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
from mpiimg.comm.runtime import on_root
from mpiimg.errors import BadInput
from mpiimg.io.journal import Journal, Mark, checksum, read_marks
from mpiimg.io.nifti import Image
from mpiimg.io.store import StagedStore
from mpiimg.partition import Partition
from mpiimg.stages.stage import Stage

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
        self._of_array = {
            name: digest("input", image.identity, image.sample, image.shape) for name, image in inputs.items()
        }

    def load(self) -> None:
        """Read what runs before this one have marked. Collective."""
        for mark in on_root(self._comm, lambda: list(read_marks(self._folder))):
            self._found.setdefault((mark.stage, mark.provenance), {})[mark.chunk] = mark

    def open(self) -> None:
        """Begin this rank's journal."""
        self._journal = Journal(self._folder, self._comm.rank, self._staged.sync, self._sync_every)

    def provenance(self, stage: Stage) -> str:
        """Return a hash of all that the bytes of this stage's chunks depend on."""
        inputs = [self._of_array[need.array.name] for need in stage.reads]
        grid = (stage.grid.axes, stage.grid.shape, stage.grid.block)
        return digest(stage.name, dict(stage.parameters), self._versions, inputs, grid)

    def has_written(self, stage: Stage, provenance: str) -> None:
        """Remember where the arrays of a stage come from, for those that read them."""
        self._of_array.update(dict.fromkeys((array.name for array in stage.writes), provenance))

    def found(self, stage: Stage, provenance: str) -> dict[int, Mark]:
        """Return the marks that fit, by chunk."""
        return self._found.get((stage.name, provenance), {})

    def done_before(self, stage: Stage, provenance: str, between: Callable[[int], None]) -> set[int]:
        """Return the chunks that are marked and whose bytes are still those that were marked. Collective.

        `between` is called ahead of each chunk that this rank checks.
        """
        marks = self.found(stage, provenance)
        if not marks:
            return set()
        marked = sorted(marks)
        part = Partition.even(len(marked), self._comm.size)
        for array in stage.writes:
            boxes = stage.output_boxes(array)
            self._staged.create(array, boxes, np.zeros(len(boxes), dtype=np.int64))
        good = []
        for i in part.owned(self._comm.rank):
            between(marked[i])
            # What cannot be read is made again, like what was altered.
            with contextlib.suppress(OSError):
                blocks = [self._staged.read(array.name, marked[i]) for array in stage.writes]
                if tuple((checksum(block), block.nbytes) for block in blocks) == marks[marked[i]].blocks:
                    good.append(marked[i])
        return {number for numbers in self._comm.allgather(good) for number in numbers}

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
        """Mark a chunk whose blocks have been staged."""
        if self._journal is not None:
            self._journal.mark(stage.name, number, provenance, blocks)

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


def digest(*parts) -> str:
    """Return a hash of what JSON makes of `parts`."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of libraries."""
    return {name: version(name) for name in names}
