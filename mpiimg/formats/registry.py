"""Formats by the ending of a file: what is built in, and what installed packages bring.

A domain names no format: it calls :func:`read` and :func:`write`, and gets what the file's ending stands for.
What a format is stands in formats/interface.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.axes import axes_text, named_axes
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.inputs import Input
from mpiimg.engine.needs import Need, Part
from mpiimg.engine.plugins import OF_FORMATS, installed, load_object
from mpiimg.engine.small_files import check_regular
from mpiimg.engine.stage import Files, PlacedSink, Sink
from mpiimg.engine.step import Output
from mpiimg.errors import BadInput
from mpiimg.formats.foreign import foreign, foreign_folder, refuse_stand_in
from mpiimg.formats.interface import (
    AnyWriter,
    FilesWriter,
    Format,
    PlacedWriter,
    ResultArray,
    split,
)
from mpiimg.formats.sources import FileInput, named, simple_input

__all__ = [
    "FORMATS",
    "FileInput",
    "Format",
    "ResultArray",
    "known",
    "read",
    "reader",
    "result",
    "stage_of",
    "write",
    "writer",
]

#: "module:attribute" of a :class:`Format` by ending without its first dot, such as tif or nii.gz; entry
#: points are asked only for endings that are not in here.
FORMATS: Mapping[str, str] = {
    "nii": "mpiimg.formats.nifti.images:NIFTI",
    "nii.gz": "mpiimg.formats.nifti.images:NIFTI_GZ",
    **dict.fromkeys(("hdr", "img"), "mpiimg.formats.nifti.images:PAIR"),
    **dict.fromkeys(("fits", "fit", "fts"), "mpiimg.formats.fits:FITS"),
    **dict.fromkeys(("fits.gz", "fit.gz"), "mpiimg.formats.fits:FITS_GZ"),
    **dict.fromkeys(("fits.fz", "fz"), "mpiimg.formats.fits:COMPRESSED"),
    "npy": "mpiimg.formats.npy:NPY",
    **dict.fromkeys(("h5", "hdf5", "he5", "nxs"), "mpiimg.formats.hdf5:HDF5"),
    "zarr": "mpiimg.formats.zarr:ZARR",
    "ome.zarr": "mpiimg.formats.zarr:OME_ZARR",
    **dict.fromkeys(("tif", "tiff"), "mpiimg.formats.tiff:TIFF"),
    **dict.fromkeys(("ome.tif", "ome.tiff", "ome.btf"), "mpiimg.formats.tiff:OME_TIFF"),
    **dict.fromkeys(("mif", "mih"), "mpiimg.formats.mrtrix:MRTRIX"),
    "mif.gz": "mpiimg.formats.mrtrix:MRTRIX_GZ",
    "mgh": "mpiimg.formats.mgh:MGH",
    "mgz": "mpiimg.formats.mgh:MGZ",
}


def reader(path: Path) -> Callable[[Path, str], Input]:
    """Return what reads files that end like `path`.

    Raises
    ------
    BadInput
        No format does.
    """
    format = _format(path)
    if format is not None and format.read is not None:
        return format.read
    if format is not None and format.reader is not None:
        return lambda path, name: simple_input(format.reader, path, name)
    raise BadInput(f"{path}: no format reads files of this name; {_hint(path) or _endings('reads')}")


def is_read(path: Path) -> bool:
    """Say whether some format reads files that end like `path`."""
    format = _format(path)
    return format is not None and (format.read or format.reader) is not None


def writer(name: str | Path) -> Callable[[ResultArray], AnyWriter]:
    """Return what writes files that end like `name`.

    Raises
    ------
    BadInput
        No format does.
    """
    format = _format(name)
    if format is None or format.write is None:
        raise BadInput(f"{name}: no format writes files of this name; {_endings('writes')}")
    return format.write


def read(
    path: Path,
    name: str,
    axes: Iterable[str | Sequence[str]] = (),
    names: str | tuple[str, ...] | None = None,
) -> Input:
    """Look at the header of a file, on one rank.

    Parameters
    ----------
    path : Path
        Of a file, or of an array in one: "x.h5:/path", "x.fits[SCI]".
    name : str
        Of the array that it becomes in the run.
    axes : iterable of str or tuple of str
        The axes that it may have, e.g. ("tyx", "yx"), each as :func:`~mpiimg.engine.axes.named_axes` takes
        them; any without them.
    names : str or tuple of str, optional
        Other names of its axes, in the order in which users have them.

    Returns
    -------
    Input
        What else its format says of it is found by :func:`mpiimg.formats.sources.axes_of`, `space_of` and
        `attrs_of`.

    Raises
    ------
    BadInput
        It is not there, of no known format, broken, or has other axes.
    """
    path, file = Path(path), split(path)[0]
    format = _format(path)
    if file.is_dir() and not (format is not None and format.folder):
        raise BadInput(f"{path}: {foreign_folder(file)}")
    try:
        read_header = reader(path)
        if not (format.folder and file.is_dir()):
            check_regular(file)
            refuse_stand_in(file)
        source = read_header(path, name)
        _ = source.identity, source.sample  # looked at here, on one rank
    except BadInput as error:
        raise _of_another_kind(path, file) or error from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        known = _of_another_kind(path, file)
        raise known or BadInput(f"{path}: is no {format.name} that can be read: {what}") from error
    shape = source.array.shape
    if 0 in shape:
        lengths = "x".join(map(str, shape))
        raise BadInput(f"{path}: its shape is {lengths}: there is nothing in it")
    if names is not None:
        source = named(source, names, path)
    allowed = [named_axes(one) for one in axes]
    if allowed and source.array.axes not in allowed:
        needed = " or ".join(axes_text(one).strip() for one in allowed)
        has = axes_text(source.array.axes).strip()
        raise BadInput(f"{path}: has the axes {has}, where {needed} are needed")
    return source


def _of_another_kind(path: Path, file: Path) -> BadInput | None:
    """Return what is said of a file that is of another kind than its name says; None if unknown."""
    try:
        # What a format says of a text is better than that it is one.
        said = foreign(file, texts=False) if file.is_file() else ""
    except (BadInput, OSError):
        return None
    return BadInput(f"{path}: {said}") if said else None


def write(file: str | Path, array: Array, **about: Any) -> Sink | PlacedSink | Files:
    """Declare the writing of an array to a file in the format that its ending names.

    Parameters
    ----------
    file : str or Path
        Its name, below the folder of results.
    array : Array
    **about
        What else is known of it: `space`, `attrs`, `order`, as :class:`ResultArray` has them.

    Raises
    ------
    BadInput
        No format writes files of this name, or not such an array.
    """
    result = ResultArray(str(file), named_axes(array.axes), array.shape, array.dtype, **about)
    return stage_of(file, writer(file)(result), array, (Part(array),))


def stage_of(
    file: str | Path,
    made: AnyWriter,
    array: Array | ResultArray,
    reads: tuple[Need, ...],
    work: Callable[..., np.ndarray] | None = None,
    grid: ChunkGrid | None = None,
    **fields: Any,
) -> Sink | PlacedSink | Files:
    """Declare the writing of what `work` makes of what is read, by a writer of some format.

    Parameters
    ----------
    file : str or Path
        Name of the file, or of the folder, below the folder of results.
    made : Writer, PlacedWriter or FilesWriter
    array : Array or ResultArray
        That the file will hold: its axes are those of the blocks that `work` returns.
    reads : tuple of Need
        What the work on a chunk reads. Chunks are of the axes of the writer.
    work : callable, optional
        Called as work(chunk, *blocks); returns the block of the chunk. By default the one block that is
        read.
    grid : ChunkGrid, optional
        Other chunks than those of the writer; only of a :class:`PlacedWriter`.
    **fields
        As :class:`mpiimg.engine.stage.Stage` has them.
    """
    target = split(file)[0]
    axes = named_axes(array.axes)
    order = named_axes(getattr(made, "axes", None) or axes)
    permutation = [axes.index(axis) for axis in order]
    sizes = dict(zip(axes, array.shape, strict=True))

    def ordered(chunk, *blocks):
        block = blocks[0] if work is None else work(chunk, *blocks)
        return np.asarray(block.transpose(permutation), order="C")

    name = f"write-{file}"
    if hasattr(made, "encode"):
        # What is read, its bytes, and these encoded.
        about = {"scratch": 3 * made.chunk_bytes, **fields}
        return Sink(
            name,
            made.grid,
            reads=reads,
            work=lambda chunk, *blocks: made.encode(chunk, ordered(chunk, *blocks)),
            file=str(target),
            head=made.head,
            tail=getattr(made, "tail", None),
            chunk_bytes=made.chunk_bytes,
            **about,
        )
    grid = grid or made.grid
    layout = Array(array.name, order, tuple(sizes[axis] for axis in order), array.dtype)
    largest = _largest_bytes(layout, grid)
    about = {"scratch": 4 * largest, **fields}
    if hasattr(made, "names"):
        return _files(name, file, made, reads, ordered, about)
    stored = getattr(made, "stored", None)
    return PlacedSink(
        name,
        grid,
        reads=reads,
        work=ordered if stored is None else lambda chunk, *blocks: stored(ordered(chunk, *blocks)),
        file=str(target),
        layout=layout,
        stored=np.dtype(made.dtype),
        create=getattr(made, "create", None) or _creator(made, math.prod(layout.shape)),
        prove=getattr(made, "head", bool),
        shared=getattr(made, "shared", False),
        **about,
    )


def _largest_bytes(array: Array, grid: ChunkGrid) -> int:
    """Return the bytes of the largest chunk of an array."""
    block = dict(zip(named_axes(grid.axes), grid.block, strict=True))
    lengths = zip(named_axes(array.axes), array.shape, strict=True)
    items = math.prod(min(block.get(axis, length), length) for axis, length in lengths)
    return items * np.dtype(array.dtype).itemsize


def _creator(made: PlacedWriter, items: int) -> Callable[[Path, bool], int]:
    """Return what makes a file of a head, room for an array, and a tail."""

    def create(path: Path, further: bool) -> int:
        if further:
            raise ValueError(f"{path.name}: two arrays are to become this file")
        head, tail = made.head(), getattr(made, "tail", bytes)()
        end = made.offset + items * np.dtype(made.dtype).itemsize
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(end)
            file.seek(end)
            file.write(tail)
        return made.offset

    return create


def _files(name: str, file: str | Path, made: FilesWriter, reads, ordered: Callable, fields: dict) -> Files:
    """Declare the writing of a folder, or of an array in one; its documents come with the first chunk."""
    whole, inside = split(file)
    folder = whole / inside.strip("/")
    documents = {str(folder / one): data for one, data in made.documents().items()}
    above = {
        str(place / one): data
        for place in (folder, *folder.parents)
        if place != folder and (place == whole or whole in place.parents)
        for one, data in getattr(made, "above", {}).items()
    }

    def work(chunk, where, *blocks):
        if chunk.number == 0:
            for document, data in {**above, **documents}.items():
                path = where / document
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        made.work(chunk, where / folder, ordered(chunk, *blocks))

    def of_chunk(number: int) -> tuple[str, ...]:
        first = () if number else (*above, *documents)
        return (*first, *(str(folder / one) for one in made.names(number)))

    return Files(
        name,
        made.grid,
        reads=reads,
        work=work,
        names=tuple(one for number in range(len(made.grid)) for one in of_chunk(number)),
        of_chunk=of_chunk,
        folder=str(whole),
        marks=getattr(made, "marks", tuple(made.documents())),
        shared=tuple(above),
        **fields,
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


@dataclass(frozen=True)
class Known:
    """What is known of a format, for lists of them.

    Parameters
    ----------
    endings : tuple of str
        Without their first dots.
    name : str
    reads, writes : bool
    parallel : bool
        Ranks read their own parts of a file.
    needs : str
        The extra that brings its library; "" where none is needed.
    """

    endings: tuple[str, ...]
    name: str
    reads: bool
    writes: bool
    parallel: bool
    needs: str


def known() -> list[Known]:
    """Return what formats there are: those built in, then those of installed packages."""
    endings: dict[str, list[str]] = {}
    for ending, place in {**installed(OF_FORMATS), **FORMATS}.items():
        endings.setdefault(place, []).append(ending)
    rows = []
    for place in dict.fromkeys((*FORMATS.values(), *endings)):
        try:
            one = load_object(place)
        except BadInput as error:
            one = Format(str(error))
        reads = one.read is not None or one.reader is not None
        rows.append(
            Known(tuple(endings[place]), one.name, reads, one.write is not None, one.parallel, one.needs)
        )
    return rows


def _format(name: str | Path) -> Format | None:
    """Return the format of the longest ending of `name` that there is one for."""
    parts = split(name)[0].name.lower().split(".")
    endings = [".".join(parts[first:]) for first in range(1, len(parts))]
    for table in (lambda: FORMATS, lambda: installed(OF_FORMATS)):
        place = next((table()[ending] for ending in endings if ending in table()), None)
        if place is not None:
            return load_object(place)
    return None


def _hint(path: Path) -> str:
    """Say how an array in a file is named, where a path nearly does."""
    match = re.fullmatch(r"(.+\.\w+)(?::|::)([^:/]\S*)", str(path))
    return f"did you mean {match[1]}:/{match[2]}?" if match and _format(match[1]) is not None else ""


def _endings(verb: Literal["reads", "writes"]) -> str:
    """Say which endings there are formats for."""
    endings = sorted(ending for row in known() if getattr(row, verb) for ending in row.endings)
    return f"there are formats of {', '.join(endings)}" if endings else "there is none yet: install one"
