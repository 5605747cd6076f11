"""What a format is: how a file becomes an input, and how an array becomes a file."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.axes import named_axes
from mpiimg.engine.boxes import Box, ChunkGrid
from mpiimg.engine.inputs import Input
from mpiimg.engine.needs import Chunk
from mpiimg.engine.stage import Digested
from mpiimg.errors import BadInput
from mpiimg.formats.gz import deflated_bytes
from mpiimg.formats.space import Space

#: Bytes of a chunk of a file: long enough runs for any disk, and small enough to hold several.
CHUNK_BYTES = 4 << 20

#: Chunks that a file has at most; those of a larger one are larger.
MAX_CHUNKS = 1 << 14


# --- What is written --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResultArray:
    """An array that is to become a file.

    Parameters
    ----------
    name : str
        Of the file, for messages.
    axes : tuple of str
        As its user has them, such as x y z t.
    shape : tuple of int
        Along these.
    dtype : str
        NumPy's name.
    space : Affine or Wcs, optional
        Where it lies.
    attrs : mapping
        What else is known of it; a format takes what it has a place for.
    order : {"C", "F"}
        Whether its last or its first axis is the fastest in memory; formats that know both write it so.
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    space: Space | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    order: Literal["C", "F"] = "C"

    def __post_init__(self):
        object.__setattr__(self, "axes", named_axes(self.axes))
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)

    @property
    def sizes(self) -> dict[str, int]:
        """Items along each axis."""
        return dict(zip(self.axes, self.shape, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def cut(self, **block: int) -> ChunkGrid:
        """Return chunks of it, with so many items along each axis that is cut: cut(t=1, y=64)."""
        return Array(self.name, self.axes, self.shape, self.dtype).cut(**block)


class Writer(Protocol):
    """How an array becomes one file that all ranks fill: a head, then the bytes of chunk after chunk.

    Attributes
    ----------
    axes : tuple of str
        The axes of the array in the order of the file, the slowest first. May be left out, where the array
        is written with its axes as they are.
    grid : ChunkGrid
        The chunks in the order of the file; they follow from the array alone.
    chunk_bytes : int
        The most bytes that :meth:`encode` returns.

    Notes
    -----
    A writer may have one more method, where the end of the file depends on what is before it:
    `tail(digests) -> bytes`. Then `head` and `encode` return :class:`mpiimg.engine.stage.Digested`.
    """

    grid: ChunkGrid
    chunk_bytes: int

    def head(self) -> bytes | Digested:
        """Return what the file begins with; called on one rank."""
        ...

    def encode(self, chunk: Chunk, block: np.ndarray) -> bytes | Digested:
        """Return the bytes of a chunk, whatever other chunks there are; `block` is in C order of `axes`."""
        ...


class PlacedWriter(Protocol):
    """How an array becomes one file in which it lies in one piece, so that ranks write any parts of it.

    Attributes
    ----------
    axes : tuple of str
        As those of a :class:`Writer`.
    grid : ChunkGrid
        Chunks of the array, of any shape: who asks for the file may cut it otherwise.
    dtype : dtype
        As it is in the file, with its byte order.
    offset : int
        Bytes before the array.

    Notes
    -----
    A writer may have more methods: `tail() -> bytes`, what follows the array in the file;
    `stored(block) -> block`, which makes the numbers of the file from those of the array, such as unsigned
    ones in FITS; and, in place of head, tail and offset, `create(path, further) -> offset`, which makes a
    file with all that is not the array. With `further` this run has written another array to the file, which
    stays; a format that takes several has the attribute `shared`, True.
    """

    axes: tuple[str, ...]
    grid: ChunkGrid
    dtype: np.dtype
    offset: int

    def head(self) -> bytes:
        """Return what the file begins with, `offset` bytes; called on one rank."""
        ...


class FilesWriter(Protocol):
    """How an array becomes a folder of files, of which the work on each chunk writes some.

    Attributes
    ----------
    axes : tuple of str
        As those of a :class:`Writer`.
    grid : ChunkGrid
        The chunks; they follow from the array alone.
    """

    axes: tuple[str, ...]
    grid: ChunkGrid

    def names(self, number: int) -> tuple[str, ...]:
        """Return the names of the files of a chunk, below the folder."""
        ...

    def work(self, chunk: Chunk, folder: Path, block: np.ndarray) -> None:
        """Write the files of a chunk into the folder."""
        ...

    def documents(self) -> Mapping[str, bytes]:
        """Return the files that are of no chunk, by name below the folder.

        The folder is one result, and replaces one that is there as a whole; but only one in which there is a
        file of these names, or of those that an attribute `marks` has. Of a file that is named as one within
        a folder, such as x.zarr/a, the folders above get the documents of an attribute `above`.
        """
        ...


AnyWriter = Writer | PlacedWriter | FilesWriter


# --- Formats ----------------------------------------------------------------------------------------------


class SimpleReader(Protocol):
    """A file of a user's own format, opened: an instance of a class that is called with the path.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
    axes : tuple of str
        In the order of the boxes that :meth:`read` is given.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str, ...]

    def read(self, box: Box) -> np.ndarray:
        """Return the items of a box: a pair (start, stop) for each axis."""
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
        Called as write(result) with a :class:`ResultArray`; returns a :class:`Writer`,
        :class:`PlacedWriter` or :class:`FilesWriter` of it.
    reader : type, optional
        In place of `read`: a class, called with a path, that is a :class:`SimpleReader`. It may have
        `space`, `attrs`, `identity` and `close()` too.
    parallel : bool
        Whether every rank can read its own part of a file; else one rank reads it front to back.
    needs : str
        The extra of mpiimg that brings its library, if it needs one that mpiimg does not require.
    folder : bool
        Whether a "file" of it is a folder.
    """

    name: str
    read: Callable[[Path, str], Input] | None = None
    write: Callable[[ResultArray], AnyWriter] | None = None
    reader: Callable[[Path], SimpleReader] | None = None
    parallel: bool = True
    needs: str = ""
    folder: bool = False


def library(module: str, what: str | Path, extra: str = "") -> ModuleType:
    """Return a library that only some formats need.

    Parameters
    ----------
    module : str
        Its dotted name.
    what : str or Path
        The file that needs it.
    extra : str
        The extra of mpiimg that brings it; by default of the library's own name.

    Raises
    ------
    BadInput
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        why = "" if isinstance(error, ModuleNotFoundError) and error.name == package else f" ({error})"
        raise BadInput(
            f"{what}: needs the package {package}: pip install 'mpiimg[{extra or package}]'{why}"
        ) from None


# --- Names ------------------------------------------------------------------------------------------------

#: Names of axes in the order in which NIfTI and FITS count them.
FILE_AXES = ("x", "y", "z", "t", "u", "v", "w")

#: A file, and what is meant in it: "x.h5:/path", "x.ome.tif:1/2", "x.fits[SCI]", "x.zarr/path".
_INSIDE = (
    re.compile(r"(.+\.[^/:]+):(/.*|\d+(?:/\d+)?)"),
    re.compile(r"(.+\.[^/\[\]]+)\[([^\[\]]+)\]"),
    re.compile(r"(.+?\.zarr)(/.+)", re.IGNORECASE),
)


def split(path: str | Path) -> tuple[Path, str]:
    """Return the file that a name means, and what in it: "x.h5:/a" gives x.h5 and /a, "x.fits[1]" gives 1.

    A file that is really called so is meant as a whole; but a folder in a .zarr is an array of that.
    """
    text = str(path)
    for pattern in _INSIDE:
        match = pattern.fullmatch(text)
        if match and not Path(text).is_file() and (Path(match[1]).is_dir() or not Path(text).exists()):
            return Path(match[1]), match[2]
    return Path(text), ""


# --- Grids ------------------------------------------------------------------------------------------------


def file_grid(axes: tuple[str, ...], shape: tuple[int, ...], itemsize: int) -> ChunkGrid:
    """Cut an array into chunks that each lie in one piece in a file in C order, and follow each other in it.

    Parameters
    ----------
    axes : tuple of str
        In the order of the file, the slowest first.
    shape : tuple of int
    itemsize : int
        Bytes of an item.
    """
    limit = max(CHUNK_BYTES, -(-math.prod(shape) * itemsize // MAX_CHUNKS))
    cut = len(shape) - 1
    while cut > 0 and math.prod(shape[cut:]) * itemsize <= limit:
        cut -= 1
    slab = math.prod(shape[cut + 1 :]) * itemsize
    block = (1,) * cut + tuple(max(1, min(n, limit // slab)) for n in shape[cut : cut + 1])
    return ChunkGrid(axes[: len(block)], shape[: len(block)], block)


def gzipped_bytes(grid: ChunkGrid, axes: tuple[str, ...], result: ResultArray, itemsize: int) -> int:
    """Return the most bytes that a chunk takes compressed: what cannot be compressed takes some more.

    Parameters
    ----------
    grid : ChunkGrid
    axes : tuple of str
        Of the array in the file.
    result : ResultArray
    itemsize : int
        Bytes of an item in the file.
    """
    block = dict(zip(named_axes(grid.axes), grid.block, strict=True))
    size = math.prod(block.get(axis, result.sizes[axis]) for axis in axes) * itemsize
    return deflated_bytes(size)
