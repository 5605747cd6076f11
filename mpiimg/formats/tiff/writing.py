"""TIFF, BigTIFF and OME-TIFF written: uncompressed and in one piece, so that ranks write any parts of it.

tifffile makes the headers, once, on one rank, by writing the image into a file that has no room for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import uuid
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.attributes import as_json
from mpiimg.formats.interface import ResultArray, file_grid, library
from mpiimg.formats.space import Affine
from mpiimg.formats.tiff.metadata import OWN
from mpiimg.formats.units import IN_OME

#: Bytes of pixels from which on a file is a BigTIFF: a TIFF has places up to 4 GiB, for its headers too.
BIG = (1 << 32) - (1 << 28)

#: Types that OME-XML has names for; bool is written as uint8.
_OME_TYPES = frozenset(
    {
        "bool",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "float32",
        "float64",
        "complex64",
        "complex128",
    }
)

_TYPES = _OME_TYPES | {"int64", "uint64", "float16"}


class TiffWriter:
    """Writes an array as one image of as many pages as it has planes; a placed writer.

    A plane is of y and x, with s (samples of a pixel) as the fastest axis where there is one; of an array
    without y and x, of its last two axes. Planes follow each other with their axes t, c, z in this order,
    and others before these. bool is written as uint8.

    Parameters
    ----------
    result : ResultArray
    ome : bool
        Write OME-XML.

    Raises
    ------
    BadInput
        No such file can hold the array.
    """

    def __init__(self, result: ResultArray, ome: bool = False):
        self._result, self._ome = result, ome
        if result.dtype not in (_OME_TYPES if ome else _TYPES):
            kind = "an OME-TIFF" if ome else "a TIFF"
            raise BadInput(
                f"{result.name}: {kind} has no values of type {result.dtype}; use astype, or write .zarr"
            )
        self.axes = _order(result.axes, ome)
        strange = [axis for axis in self.axes if axis not in tuple("tczyxs")]
        if ome and (strange or not {"y", "x"} <= {*self.axes}):
            raise BadInput(
                f"{result.name}: an OME-TIFF has the axes t c z y x s, with y and x, and the array has "
                f"{' '.join(result.axes)}; rename them, or write .tif or .zarr"
            )
        shape = tuple(result.sizes[axis] for axis in self.axes)
        # Of an array without rows there is one.
        self.shape = (*(1,) * (2 - len(shape)), *shape)
        self.dtype = np.dtype("uint8" if result.dtype == "bool" else result.dtype).newbyteorder("<")
        self.grid = file_grid(self.axes, shape, self.dtype.itemsize)

    @property
    def offset(self) -> int:
        """Bytes before the array."""
        return self._made[0]

    def head(self) -> bytes:
        """Return what is before the array: how the file begins, and the header of the first page."""
        return self._made[1]

    def tail(self) -> bytes:
        """Return what follows the array: the headers of the other pages, and OME-XML."""
        return self._made[2]

    @cached_property
    def _made(self) -> tuple[int, bytes, bytes]:
        """Offset of the pixels, and the bytes before and after them."""
        tifffile = library("tifffile", self._result.name, "tiff")
        size = math.prod(self.shape) * self.dtype.itemsize
        file = _Hollow()
        samples = self.shape[-1] if self.axes[-1:] == ("s",) else 0
        colours = samples in (3, 4) and self.dtype.kind == "u" and self.dtype.itemsize <= 2
        more = samples - 3 if colours else max(samples - 1, 0)
        with tifffile.TiffWriter(file, bigtiff=size > BIG, byteorder="<", ome=self._ome) as writer:
            offset, _ = writer.write(
                None,
                shape=self.shape,
                dtype=self.dtype,
                photometric="rgb" if colours else "minisblack",
                planarconfig="contig" if samples else None,
                extrasamples=("unspecified",) * more or None,
                software=False,
                metadata=self._metadata(),
                returnoffset=True,
                **self._resolution(),
            )
        if file.written(offset, offset + size) or file.size < offset + size:
            raise ValueError(f"{self._result.name}: tifffile leaves no room of {size} bytes for the pixels")
        return offset, file.bytes(0, offset), file.bytes(offset + size, file.size)

    def _metadata(self) -> dict[str, Any]:
        letters = "".join(axis.upper() if axis in tuple("tczyxs") else "Q" for axis in self.axes)
        if not {"y", "x"} <= {*self.axes}:
            letters = "Q" * (len(self.shape) - 2) + "YX"
        space, attrs = self._result.space, as_json(self._result.attrs)
        own = {
            "axes": self.axes,
            "shape": self.shape[len(self.shape) - len(self.axes) :],
            "space": space and space.to_record(),
            "attrs": attrs,
        }
        own = {key: value for key, value in own.items() if value not in (None, {})}
        if not self._ome:
            return {"axes": letters, OWN: own}
        known = json.dumps([self.axes, self.shape, self.dtype.str, own], sort_keys=True)
        made: dict[str, Any] = {
            "axes": letters,
            "UUID": str(uuid.UUID(hashlib.sha256(known.encode()).hexdigest()[:32], version=4)),
            "Creator": "mpiimg",
            "Name": str(attrs.get("name") or self._result.name),
            "MapAnnotation": {"Namespace": OWN, **{key: json.dumps(value) for key, value in own.items()}},
        }
        if isinstance(space, Affine):
            made |= {f"PhysicalSize{axis.upper()}": size for axis, size in _sizes(space).items()}
            if unit := IN_OME.get(space.units[0]):
                made |= {f"PhysicalSize{axis.upper()}Unit": unit for axis in _sizes(space)}
            for axis, step, _ in space.steps:
                if axis == "t" and axis in self.axes and space.units[1] in _TIME_UNITS and step:
                    made |= {"TimeIncrement": step, "TimeIncrementUnit": _TIME_UNITS[space.units[1]]}
        return made

    def _resolution(self) -> Mapping[str, Any]:
        """Return pixels per centimetre, for who reads no more than that."""
        space = self._result.space
        if not isinstance(space, Affine) or space.units[0] not in _PER_CENTIMETRE:
            return {}
        sizes = _sizes(space)
        if not {"x", "y"} <= {*sizes}:
            return {}
        factor = _PER_CENTIMETRE[space.units[0]]
        return {"resolution": (factor / sizes["x"], factor / sizes["y"]), "resolutionunit": "CENTIMETER"}


_TIME_UNITS = {"sec": "s", "msec": "ms", "usec": "µs"}

_PER_CENTIMETRE = {"meter": 0.01, "mm": 10.0, "micron": 1e4}


def _sizes(space: Affine) -> dict[str, float]:
    """Return the sizes of a pixel along the axes of an affine that are named x, y, z."""
    lengths = np.sqrt((np.array(space.matrix)[:3, :3] ** 2).sum(axis=0)).tolist()
    return {
        axis: size
        for axis, size in zip(space.axes, lengths, strict=True)
        if axis in tuple("xyz") and size > 0
    }


def _order(axes: tuple[str, ...], ome: bool) -> tuple[str, ...]:
    """Return the axes in the order of the file."""
    plane = [axis for axis in ("y", "x", "s") if axis in axes]
    if "y" not in axes or "x" not in axes:
        return axes
    if axes[-len(plane) :] == tuple(plane) and not ome:
        return axes
    known = [axis for axis in ("t", "c", "z") if axis in axes]
    return (*(axis for axis in axes if axis not in (*known, *plane)), *known, *plane)


class _Hollow(io.RawIOBase):
    """A file that keeps what is written to it, and takes no room for what is skipped."""

    def __init__(self):
        self.size, self._position, self._parts = 0, 0, []

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        )
        return self._position

    def write(self, data) -> int:
        self._parts.append((self._position, bytes(data)))
        self._position += len(self._parts[-1][1])
        self.size = max(self.size, self._position)
        return len(self._parts[-1][1])

    def written(self, start: int, stop: int) -> bool:
        """Say whether anything but zeros has been written between `start` and `stop`."""
        ends = ((place, place + len(data), data) for place, data in self._parts)
        return any(any(data) for first, last, data in ends if first < stop and last > start)

    def bytes(self, start: int, stop: int) -> bytes:
        """Return what lies from `start` to `stop`."""
        made = bytearray(stop - start)
        for place, data in self._parts:
            first, last = max(place, start), min(place + len(data), stop)
            if first < last:
                made[first - start : last - start] = data[first - place : last - place]
        return bytes(made)


def write(result: ResultArray) -> TiffWriter:
    """Return the writer of a TIFF, a BigTIFF from about 4 GB on."""
    return TiffWriter(result)


def write_ome(result: ResultArray) -> TiffWriter:
    """Return the writer of an OME-TIFF."""
    return TiffWriter(result, ome=True)
