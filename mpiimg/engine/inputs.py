"""What a run reads: inputs of any format, as the engine sees them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, ChunkGrid
from mpiimg.engine.raw import sample_file
from mpiimg.engine.stage import Stream


class Reader(Protocol):
    """An open input, of which a rank reads what it needs in any order."""

    def read(self, box: Box) -> np.ndarray:
        """Return the items of `box` in the machine's byte order."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


@runtime_checkable
class Input(Protocol):
    """An array in files of some format.

    Attributes
    ----------
    array : Array
        Name, axes, shape and dtype that it has in the run.
    identity : JSON value
        Tells this measurement from others; enters the provenance of all that is made from it.
    sample : JSON value
        What a look at the files themselves gave, such as checksums of samples; enters the provenance too.
    files : tuple of Path
        Whose sizes and times must not change while a run reads them.
    parallel : bool
        Every rank may read any part of it, by :meth:`open`. Else one rank reads it front to back, by
        :meth:`blocks`, in a stage made by :func:`stream_input`.
    """

    array: Array
    identity: Any
    sample: Any
    files: tuple[Path, ...]
    parallel: bool

    def open(self) -> Reader:
        """Open it for reading in any order; only where it is parallel."""
        ...

    def blocks(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        """Yield the blocks at `boxes`, which follow each other in the file; only where it is not parallel."""
        ...


def stream_input(source: Input, grid: ChunkGrid, cost: tuple[str, float] | None = None) -> Stream:
    """Declare the reading of an input front to back on one rank; each chunk goes to its owner meanwhile.

    Parameters
    ----------
    source : Input
    grid : ChunkGrid
        Chunks in the order of the file.
    cost : (str, float), optional
        As a :class:`Stage` has it.
    """

    def blocks():
        chunks = (grid.bounds(number) for number in range(len(grid)))
        return source.blocks(source.array.part(dict(zip(grid.axes, box, strict=True))) for box in chunks)

    return Stream(
        f"read-{source.array.name}",
        grid,
        array=source.array,
        blocks=blocks,
        parameters={"identity": source.identity, "sample": source.sample},
        cost=cost,
    )


def parallel(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """Return those inputs that every rank reads for itself."""
    return tuple(source for source in inputs if source.parallel)


#: Files up to so many bytes are told from others by all that is in them, and not by their time.
SMALL = 1 << 24


def said_of(source: Input) -> dict[str, Any]:
    """Return what run.json says of an input whose domain says nothing of it."""
    files = list(map(str, source.files))
    return {"files": files, "shape": source.array.shape, "identity": source.identity, "sample": source.sample}


def said_of_file(path: Path) -> dict[str, Any]:
    """Return what run.json says of a file beside the inputs, such as a table.

    Raises
    ------
    OSError
        It cannot be read.
    """
    size, time, crc = sample_file(path)
    if size <= SMALL:
        return {"path": str(path), "bytes": size, "crc32": f"{zlib.crc32(Path(path).read_bytes()):08x}"}
    return {"path": str(path), "bytes": size, "mtime_ns": time, "sample_crc32": crc}


def said_of_named(paths: Mapping[str, Any], but: Sequence[Path]) -> dict[str, Any]:
    """Return what run.json says of files that a chain was given by name, `but` for those it says more of."""
    others = {name: Path(path) for name, path in paths.items() if isinstance(path, str | Path)}
    return {
        name: said_of_file(path) for name, path in others.items() if path.is_file() and path not in {*but}
    }
