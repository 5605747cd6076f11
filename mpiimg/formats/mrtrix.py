"""MRtrix's images, .mif, .mif.gz and .mih, read in.

The axes are x, y, z, t and then u, v, w, in MRtrix's order; in the file they may lie in any, which `layout`
says. Where it has an axis run backwards, the array has it as it lies in the file and the affine says so: as
in the NIfTI that mrconvert makes of it, whose voxels lie in no other order.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array, dense_runs
from mpiimg.engine.boxes import Box, box_shape, box_size
from mpiimg.engine.inputs import Reader
from mpiimg.engine.raw import FileEnds, RawFile, sample_file
from mpiimg.errors import BadInput
from mpiimg.formats.gz import inflated, inflated_start
from mpiimg.formats.interface import FILE_AXES, Format
from mpiimg.formats.nifti.whole import spans_space
from mpiimg.formats.scaling import scaled, scaled_type
from mpiimg.formats.space import Affine

log = logging.getLogger("mpiimg")

#: How a header begins, and the most bytes that it may have: histories of commands grow long.
_MAGIC, _LONGEST = "mrtrix image", 16 << 20

#: NumPy's kinds by MRtrix's names without signs of byte order; capitals do not matter.
_KINDS = {
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "int64": "i8",
    "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8", "cfloat32": "c8", "cfloat64": "c16",
}  # fmt: skip

#: Fields that say how voxels lie, and enter no attributes.
_OF_LAYOUT = ("dim", "vox", "layout", "datatype", "transform", "scaling", "file")


@dataclass(frozen=True)
class MrtrixImage:
    """An image of MRtrix; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    path : Path
    array : Array
        Its axes in the order of the file, the slowest first.
    axes : tuple of str
    space : Affine or None
    attrs : dict
        What else the header says: gradient tables (dw_scheme) as rows of numbers, all else as text.
    stored : str
        The dtype in the file, with byte order; "bit" for eight voxels a byte.
    pieces : tuple of (Path, int)
        Files that hold the voxels one after the other, each with the bytes before them.
    scaling : (float, float) or None
        Slope and intercept of values.
    """

    path: Path
    array: Array
    axes: tuple[str, ...]
    space: Affine | None
    attrs: dict[str, Any]
    stored: str
    pieces: tuple[tuple[Path, int], ...]
    scaling: tuple[float, float] | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those that hold its voxels."""
        return tuple(dict.fromkeys((self.path, *(path for path, _ in self.pieces))))

    @property
    def parallel(self) -> bool:
        """Whether every rank may read any part of it: a .mif.gz is a stream."""
        return self.path.suffix != ".gz"

    @cached_property
    def sample(self) -> tuple[tuple[int, int, int], ...]:
        """Size, time and a checksum of samples of each file; once known, it is sent with the input."""
        return tuple(map(sample_file, self.files))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """How values are made of what is in the file."""
        return {"dtype": self.stored, "axes": self.array.axes, "scaling": self.scaling}

    def open(self) -> Reader:
        """Open it for reading in any order."""
        return _Voxels(self)

    def blocks(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        """Yield blocks of a .mif.gz, which follow each other in the file.

        Raises
        ------
        BadInput
            The stream is truncated or corrupt.
        """
        offset = self.pieces[0][1]
        stream = (
            inflated(self.path, offset, self.stored, boxes) if self.stored != "bit" else self._bits(boxes)
        )
        for block in stream:
            yield self.scaled(block)

    def _bits(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        """Yield blocks of a stream of bits; one may begin within a byte."""
        known, boxes = itertools.tee(boxes)

        def in_bytes() -> Iterator[Box]:
            done = 0
            for box in known:
                first, done = -(-done // 8), done + box_size(box)
                yield ((0, -(-done // 8) - first),)

        left = np.empty(0, bool)
        for box, data in zip(boxes, inflated(self.path, self.pieces[0][1], "|u1", in_bytes()), strict=False):
            bits = np.concatenate([left, np.unpackbits(data).view(bool)])
            left = bits[box_size(box) :]
            yield bits[: box_size(box)].reshape(box_shape(box))

    def scaled(self, block: np.ndarray) -> np.ndarray:
        """Return the values that voxels stand for."""
        return block if self.scaling is None else scaled(block, *self.scaling)


class _Voxels:
    """The voxels of an image in one file or several, of which each holds as many."""

    def __init__(self, image: MrtrixImage):
        self._image = image
        self._shape = image.array.shape
        # Several files are the parts of the slowest axis.
        self._each = (self._shape[0] // len(image.pieces), *self._shape[1:])
        self._opened: dict[int, Reader] = {}

    def read(self, box: Box) -> np.ndarray:
        """Return the values of `box`."""
        (start, stop), *rest = box
        if not box_size(box):
            return np.empty(box_shape(box), self._image.array.dtype)
        step, blocks = self._each[0], []
        for number in range(start // step, -(-stop // step)):
            first = number * step
            blocks.append(self._piece(number).read(((max(start - first, 0), min(stop - first, step)), *rest)))
        return self._image.scaled(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))

    def close(self) -> None:
        """Release the files."""
        while self._opened:
            self._opened.popitem()[1].close()

    def _piece(self, number: int) -> Reader:
        if number not in self._opened:
            path, offset = self._image.pieces[number]
            kind = _Bits if self._image.stored == "bit" else RawFile
            self._opened[number] = kind(path, offset, self._each, self._image.stored)
        return self._opened[number]


class _Bits:
    """An array of bits, eight a byte, the first one the highest."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: str):
        self._path, self._offset, self._shape = path, offset, shape
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, box: Box) -> np.ndarray:
        """Return the items of `box`, bool."""
        block = np.empty(math.prod(box_shape(box)), bool)
        for first, place, count in dense_runs(self._shape, box) if block.size else ():
            start, stop = first // 8, -(-(first + count) // 8)
            data = os.pread(self._descriptor, stop - start, self._offset + start)
            if len(data) < stop - start:
                raise FileEnds(f"{self._path} ends before the array in it does")
            bits = np.unpackbits(np.frombuffer(data, np.uint8))
            block[place : place + count] = bits[first - 8 * start :][:count]
        return block.reshape(box_shape(box))

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


def read(path: Path, name: str) -> MrtrixImage:
    """Look at the header of an image of MRtrix.

    Parameters
    ----------
    path : Path
        .mif, .mif.gz or .mih.
    name : str
        Of the array.

    Raises
    ------
    BadInput
        It is no such image, or truncated.
    """
    path = Path(path)
    header, length = _header(path)
    shape = tuple(_numbers(path, header, "dim", int))
    layout = _layout(path, header, len(shape))
    if len(shape) > len(FILE_AXES) or not shape:
        raise BadInput(f"{path}: has {len(shape)} axes; 1 to {len(FILE_AXES)} can be read")
    if min(shape) < 1:
        raise BadInput(f"{path}: its header gives the sizes {header['dim'][-1]}, which are none of an image")
    axes = FILE_AXES[: len(shape)]
    # A layout numbers the axes from the fastest on.
    order = sorted(range(len(shape)), key=lambda axis: -abs(layout[axis][0]))
    stored = _stored(path, header)
    scaling = _scaling(path, header)
    native = "bool" if stored == "bit" else np.dtype(stored).newbyteorder("=").name
    if scaling is not None:
        native = scaled_type(np.dtype(native)).name
    lengths = tuple(shape[axis] for axis in order)
    array = Array(name, tuple(axes[axis] for axis in order), lengths, native)
    pieces = _pieces(path, header, length)
    _check_lengths(path, pieces, lengths, stored)
    attrs = {key: _attribute(key, values) for key, values in header.items() if key not in _OF_LAYOUT}
    space = _space(path, header, shape, layout)
    return MrtrixImage(path, array, axes, space, attrs, stored, pieces, scaling)


def _header(path: Path) -> tuple[Mapping[str, list[str]], int]:
    """Return the values of each field of a header, and its length in bytes."""
    compressed = path.suffix == ".gz"
    size = 1 << 16
    while True:
        data = inflated_start(path, size) if compressed else _first(path, size)
        if not data.startswith(_MAGIC.encode()):
            raise BadInput(f"{path}: is no image of MRtrix: it does not begin with {_MAGIC!r}")
        end = re.search(rb"\r?\nEND[ \t]*(\r?\n|$)", data)
        if end or len(data) < size or size > _LONGEST:
            break
        size *= 8
    if not end and path.suffix != ".mih":
        raise BadInput(f"{path}: truncated: its header has no END; copy it again")
    fields: dict[str, list[str]] = {}
    for line in data[: end.start() if end else None].decode("utf-8", "replace").splitlines()[1:]:
        key, colon, value = line.partition(":")
        if colon and not line.lstrip().startswith("#"):
            fields.setdefault(key.strip(), []).append(value.strip())
    for key in ("dim", "layout", "datatype", "file"):
        if key not in fields:
            raise BadInput(f"{path}: its header has no field {key!r}; convert it again with mrconvert")
    return fields, end.end() if end else len(data)


def _first(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


def _numbers(path: Path, header: Mapping[str, list[str]], key: str, kind: type) -> list:
    text = header[key][-1]
    try:
        return [kind(one) for one in re.split(r"[,\s]+", text)]
    except ValueError:
        raise BadInput(f"{path}: {key} in its header is {text!r}, which are no numbers") from None


def _layout(path: Path, header: Mapping[str, list[str]], count: int) -> list[tuple[int, int]]:
    """Return place, 0 for the fastest, and sign of each axis."""
    words = [one.strip() for one in header["layout"][-1].split(",")]
    places = [int(one.lstrip("+-")) if re.fullmatch(r"[+-]?\d+", one) else -1 for one in words]
    if sorted(places) != list(range(count)):
        raise BadInput(f"{path}: the layout in its header, {header['layout'][-1]!r}, is none of {count} axes")
    return [(place, -1 if word.startswith("-") else 1) for place, word in zip(places, words, strict=True)]


def _stored(path: Path, header: Mapping[str, list[str]]) -> str:
    text = header["datatype"][-1]
    name = text.lower()
    if name == "bit":
        return "bit"
    match = re.fullmatch(r"([a-z]+\d+)(le|be)?", name)
    if not match or match[1] not in _KINDS:
        raise BadInput(f"{path}: voxels of type {text!r} cannot be read; convert it with mrconvert -datatype")
    return np.dtype(_KINDS[match[1]]).newbyteorder(">" if match[2] == "be" else "<").str


def _scaling(path: Path, header: Mapping[str, list[str]]) -> tuple[float, float] | None:
    if "scaling" not in header:
        return None
    numbers = _numbers(path, header, "scaling", float)
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise BadInput(f"{path}: scaling in its header is {header['scaling'][-1]!r}, and not offset, factor")
    return None if numbers == [0.0, 1.0] else (numbers[1], numbers[0])


def _pieces(path: Path, header: Mapping[str, list[str]], length: int) -> tuple[tuple[Path, int], ...]:
    """Return the files that hold the voxels, each with the bytes before them."""
    pieces = []
    for text in header["file"]:
        match = re.fullmatch(r"(.*?)(?:\s+(\d+))?", text)
        name, offset = match[1], int(match[2] or 0)
        if name == "." and offset < length:
            raise BadInput(f"{path}: its header ends at byte {length}, and gives voxels from {offset} on")
        pieces.append((path if name == "." else path.parent / name, offset))
    if path.name.endswith(".gz") and pieces != [(path, pieces[0][1])]:
        raise BadInput(f"{path}: a compressed image whose voxels lie in another file; use .mih")
    if any(piece.suffix == ".gz" for piece, _ in pieces) and path.suffix != ".gz":
        raise BadInput(f"{path}: its voxels lie in a compressed file; convert it to .mif.gz with mrconvert")
    return tuple(pieces)


def _check_lengths(path: Path, pieces, lengths: tuple[int, ...], stored: str) -> None:
    """Refuse files that cannot hold the voxels that the header promises."""
    if len(pieces) > 1 and lengths[0] % len(pieces):
        raise BadInput(f"{path}: {lengths[0]} parts cannot lie in {len(pieces)} files of the same size")
    items = math.prod(lengths) // len(pieces)
    if len(pieces) > 1 and stored == "bit" and items % 8:
        raise BadInput(f"{path}: bits in several files cannot be read; convert it with mrconvert")
    size = -(-items // 8) if stored == "bit" else items * np.dtype(stored).itemsize
    if path.suffix == ".gz":
        return
    for piece, offset in pieces:
        try:
            there = piece.stat().st_size
        except OSError as error:
            raise BadInput(
                f"{piece}: holds the voxels of {path}, and cannot be read: {error.strerror}"
            ) from None
        if there < offset + size:
            raise BadInput(
                f"{piece}: truncated: {there} bytes where the header promises {offset + size}; copy it again"
            )


def _space(
    path: Path, header: Mapping[str, list[str]], shape: tuple[int, ...], layout: list[tuple[int, int]]
) -> Affine | None:
    if len(shape) < 3:
        return None
    sizes = _sizes(path, header, len(shape))
    matrix = np.eye(4)
    rows = [re.split(r"[,\s]+", row) for row in header.get("transform", ())]
    if rows:
        try:
            matrix[:3] = np.array(rows, dtype=float).reshape(-1, 4)[:3]
        except ValueError:
            raise BadInput(f"{path}: the transform in its header is not three rows of four numbers") from None
    if not rows or not spans_space(matrix):
        # MRtrix then takes the middle of the image for the origin.
        if rows:
            log.warning(
                "warning: %s: the transform in its header is not one of voxels in space: axes are taken to "
                "run along those of the scanner, as MRtrix takes them",
                path,
            )
        matrix = np.eye(4)
        matrix[:3, 3] = [-0.5 * (n - 1) * size for n, size in zip(shape[:3], sizes[:3], strict=True)]
    matrix[:3, :3] *= sizes[:3]
    steps = (("t", sizes[3], 0.0),) if len(shape) > 3 else ()
    space = Affine(FILE_AXES[:3], matrix, ("mm", "sec" if steps else "unknown"), (1, 1), steps=steps)
    for axis, n, (place, sign) in zip(FILE_AXES[:3], shape[:3], layout[:3], strict=True):
        # MRtrix has no direction for an axis of length 1 whose stride is also that of a slower one.
        if sign < 0 and (n > 1 or place == len(shape) - 1):
            space = space.taken(axis, n - 1, -1)
    return space


def _sizes(path: Path, header: Mapping[str, list[str]], count: int) -> list[float]:
    """Return the sizes of voxels along all axes; in space the mean of the others where one makes no sense."""
    said = _numbers(path, header, "vox", float) if "vox" in header else [1.0] * count
    said = [*said, *[1.0] * count][:count]
    known = [size for size in said[:3] if math.isfinite(size) and size > 0]
    if len(known) < 3:
        log.warning(
            "warning: %s: vox in its header is %s: a size that makes no sense is taken to be the mean of the "
            "others, as MRtrix takes it",
            path,
            header["vox"][-1],
        )
    default = math.fsum(known) / len(known) if known else 1.0
    defaults = [default] * 3 + [1.0] * count
    return [
        size if math.isfinite(size) and size > 0 else other
        for size, other in zip(said, defaults, strict=False)
    ]


def _attribute(key: str, values: list[str]) -> Any:
    """Return rows of numbers for tables of numbers, and else a text, or several."""
    if key in ("dw_scheme", "pe_scheme"):
        try:
            return [[float(one) for one in re.split(r"[,\s]+", row)] for row in values]
        except ValueError:
            pass
    return values[0] if len(values) == 1 else values


MRTRIX = Format("MRtrix", read)

MRTRIX_GZ = Format("gzipped MRtrix", read, parallel=False)
