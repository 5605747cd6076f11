"""Provenance: hashes of what the bytes of a stage, and of each chunk, depend on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from mpiimg.engine.axes import axes_text
from mpiimg.engine.blocks import BlockTable
from mpiimg.engine.boxes import Box, box_shape
from mpiimg.engine.inputs import Input
from mpiimg.engine.stage import Compute, Records, Stage
from mpiimg.version import __version__

#: Libraries that results depend on: with another version of one, marks of earlier runs do not count.
RESULT_LIBRARIES = ("numpy", "numba", "scipy", "dipy", "astropy", "sep", "nibabel")


@dataclass(frozen=True)
class Provenance:
    """Hashes of everything that the bytes of a stage depend on.

    Parameters
    ----------
    whole : str
        Hash for the stage as a whole.
    chunks : tuple of str, optional
        A hash for each chunk, where the stage says what each of them depends on.
    """

    whole: str
    chunks: tuple[str, ...] | None = None

    def of(self, number: int) -> str:
        """Return the hash of a chunk: its own, or that of the whole stage."""
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


class Lineage:
    """Where each array of a run comes from.

    Parameters
    ----------
    inputs : sequence of Input
        Arrays that lie in files of any format.
    cpu_target : str
        The CPU that kernels are compiled for.
    packages : mapping of str to str, optional
        Version by name of the installed packages that steps come from.
    """

    def __init__(self, inputs: Sequence[Input], cpu_target: str, packages: Mapping[str, str] | None = None):
        self._versions = {"mpiimg": __version__, "cpu_target": cpu_target, **versions(RESULT_LIBRARIES)}
        self._versions |= packages or {}
        self._origins = {
            source.array.name: _Origin(
                digest("input", source.identity, source.sample, source.array.stored_shape)
            )
            for source in inputs
        }

    def provenance(self, stage: Stage) -> Provenance:
        """Return hashes of everything that the bytes of a stage's chunks depend on."""
        if has_chunk_provenance(stage):
            chunks = tuple(self._of_chunk(stage, number) for number in range(len(stage.grid)))
            return Provenance(digest(chunks), chunks)
        names = (*(need.array.name for need in stage.reads), *stage.follows)
        inputs = [self._origins[name].whole for name in names]
        grid = (axes_text(stage.grid.axes), stage.grid.shape, stage.grid.block)
        return Provenance(digest(stage.name, stage.parameters or {}, self._versions, inputs, grid))

    def _of_chunk(self, stage: Compute | Records, number: int) -> str:
        """Return a hash of everything that the bytes of a chunk depend on, the chunks that it reads included.

        The hash has the size of the chunk, and not where the chunk lies.
        """
        own, chunk = dict(stage.depends(number)), stage.chunk(number)
        shapes = [[box_shape(box) for box in target.boxes(chunk)] for target in stage.targets]
        inputs = [self._origins[need.array.name].of(need.boxes(chunk)) for need in stage.reads]
        return digest(stage.name, stage.parameters or {}, own, self._versions, inputs, shapes)

    def add(
        self,
        names: Sequence[str],
        provenance: Provenance,
        tables: Sequence[BlockTable],
        unusable: Mapping[int, Sequence[int]],
    ) -> None:
        """Remember where the arrays that a stage has written come from, for the stages that read them.

        Parameters
        ----------
        names : sequence of str
            Of the arrays.
        provenance : Provenance
            Of the stage.
        tables : sequence of BlockTable
            Where the blocks of these arrays lie.
        unusable : mapping of int to sequence of int
            Checksums of the blocks of chunks, of all ranks, that stand for something unusable. Such a chunk
            may come out well the next time, though everything that is known of it beforehand is the same.
            What is made of it depends therefore on how it came out.
        """
        whole, chunks = provenance.whole, provenance.chunks
        if unusable:
            whole = digest(whole, sorted(unusable.items()))
            if chunks is not None:
                chunks = tuple(
                    digest(one, unusable[n]) if n in unusable else one for n, one in enumerate(chunks)
                )
        for name, table in zip(names, tables, strict=True):
            self._origins[name] = _Origin(whole, chunks, table)


def has_chunk_provenance(stage: Stage) -> bool:
    """Say whether the chunks of a stage have a provenance each."""
    return isinstance(stage, Compute | Records) and stage.depends is not None


def digest(*parts) -> str:
    """Return a hash of what JSON makes of `parts`."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of libraries."""
    return {name: _version(name) for name in names}


#: Reads the metadata of a library once: each run asks four times, at about a millisecond each.
_version = functools.cache(version)
