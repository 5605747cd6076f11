"""Formats by the ending of a file: what is built in, and what installed packages bring.

A domain names no format: it calls :func:`read` and :func:`write`, and gets what the file's ending stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.axes import axes_text, named_axes
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.inputs import Input, Reader
from mpiimg.engine.needs import Chunk, Part
from mpiimg.engine.plugins import OF_FORMATS, installed, load_object, packages
from mpiimg.engine.raw import sample_file
from mpiimg.engine.small_files import check_regular
from mpiimg.engine.stage import Sink
from mpiimg.engine.step import Output
from mpiimg.errors import BadInput

#: "module:attribute" of a :class:`Format` by ending without its first dot, such as tif or nii.gz; entry
#: points are asked only for endings that are not in here.
FORMATS: Mapping[str, str] = {}


class Writer(Protocol):
    """How an array becomes one file that all ranks fill: a head, then the bytes of chunk after chunk.

    Attributes
    ----------
    grid : ChunkGrid
        The chunks in the order of the file; they follow from the array alone.
    chunk_bytes : int
        The most bytes that :meth:`encode` returns.
    """

    grid: ChunkGrid
    chunk_bytes: int

    def head(self) -> bytes:
        """Return what the file begins with; called on one rank."""
        ...

    def encode(self, chunk: Chunk, block: np.ndarray) -> bytes:
        """Return the bytes of a chunk, whatever other chunks there are."""
        ...


@dataclass(frozen=True)
class Format:
    """A format of files.

    Parameters
    ----------
    name : str
        As a reader knows it, e.g. "TIFF".
    read : callable, optional
        Called as read(path, name) on one rank: looks at the header of a file and returns an
        :class:`mpiimg.engine.inputs.Input` whose array has this name. What it raises says that the file is
        broken.
    write : callable, optional
        Called as write(array), returns a :class:`Writer` of it.
    """

    name: str
    read: Callable[[Path, str], Input] | None = None
    write: Callable[[Array], Writer] | None = None


@dataclass(frozen=True)
class FileInput:
    """An array in one file that every rank reads for itself; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    path : Path
    array : Array
        What it is in the run.
    opener : callable
        Called as opener(path) on each rank, returns a :class:`mpiimg.engine.inputs.Reader`.
    """

    path: Path
    array: Array
    opener: Callable[[Path], Reader]

    parallel = True

    @cached_property
    def sample(self) -> tuple[int, int, int]:
        """Size, time and a checksum of samples of the file; once known, it is sent with the input."""
        return sample_file(self.path)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Type of the values, and versions of the packages that read them; likewise."""
        return {"dtype": self.array.dtype, **packages(self.opener.__module__)}

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def open(self) -> Reader:
        """Open it for reading in any order."""
        return self.opener(self.path)


def reader(path: Path) -> Callable[[Path, str], Input]:
    """Return what reads files that end like `path`.

    Raises
    ------
    BadInput
        No format does.
    """
    format = _format(Path(path).name)
    if format is None or format.read is None:
        raise BadInput(f"{path}: no format reads files of this name; {_endings('read')}")
    return format.read


def writer(name: str) -> Callable[[Array], Writer]:
    """Return what writes files that end like `name`.

    Raises
    ------
    BadInput
        No format does.
    """
    format = _format(name)
    if format is None or format.write is None:
        raise BadInput(f"{name}: no format writes files of this name; {_endings('write')}")
    return format.write


def read(path: Path, name: str, axes: Iterable[str | Sequence[str]] = ()) -> Input:
    """Look at the header of a file, on one rank.

    Parameters
    ----------
    path : Path
    name : str
        Of the array that it becomes in the run.
    axes : iterable of str or tuple of str
        The axes that it may have, e.g. ("tyx", "yx"), each as :func:`~mpiimg.engine.axes.named_axes` takes
        them; any without them.

    Raises
    ------
    BadInput
        It is not there, of no known format, broken, or has other axes.
    """
    path = Path(path)
    read_header = reader(path)
    try:
        check_regular(path)
        with open(path, "rb"):
            pass
        source = read_header(path, name)
        _ = source.identity, source.sample  # looked at here, on one rank
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{path}: is no {_format(path.name).name} that can be read: {what}") from error
    allowed = [named_axes(one) for one in axes]
    if allowed and source.array.axes not in allowed:
        needed = " or ".join(axes_text(one).strip() for one in allowed)
        has = axes_text(source.array.axes).strip()
        raise BadInput(f"{path}: has the axes {has}, where {needed} are needed")
    return source


def write(file: str | Path, array: Array) -> Sink:
    """Declare the writing of an array to a file in the format that its ending names.

    Parameters
    ----------
    file : str or Path
        Its name, below the folder of results.
    array : Array

    Raises
    ------
    BadInput
        No format writes files of this name.
    """
    made = writer(str(file))(array)
    return Sink(
        f"write-{file}",
        made.grid,
        reads=(Part(array),),
        work=made.encode,
        file=str(file),
        head=made.head,
        chunk_bytes=made.chunk_bytes,
        # What is read, its bytes, and these encoded.
        scratch=3 * made.chunk_bytes,
    )


def result(of: str, suffix: str, when: Literal["always", "end"] = "always") -> Output:
    """Declare a result of a step: an array in the state as a file of its own, <stem>_<suffix>.

    Parameters
    ----------
    of : str
        The field of the state.
    suffix : str
        What the name ends with; its ending names the format, e.g. "max.tif".
    when : {"always", "end"}
        As for :class:`mpiimg.engine.step.Output`.
    """

    def stage(state, parameters, folder):
        return write(folder / f"{state.stem}_{suffix}", getattr(state, of))

    return Output(of, stage, when)


def _format(name: str) -> Format | None:
    """Return the format of the longest ending of `name` that there is one for."""
    parts = Path(name).name.lower().split(".")
    endings = [".".join(parts[first:]) for first in range(1, len(parts))]
    for table in (lambda: FORMATS, lambda: installed(OF_FORMATS)):
        place = next((table()[ending] for ending in endings if ending in table()), None)
        if place is not None:
            return load_object(place)
    return None


def _endings(verb: str) -> str:
    endings = sorted({*FORMATS, *installed(OF_FORMATS)})
    return f"there are formats of {', '.join(endings)}" if endings else "there is none yet: install one"
