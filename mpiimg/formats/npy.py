"""Arrays as NumPy saves them: .npy, of which every rank reads and writes its own part."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.errors import BadInput
from mpiimg.formats.interface import Format, ResultArray, file_grid
from mpiimg.formats.plain import PlainInput

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def plain_axes(count: int) -> tuple[str, ...]:
    """Return names of axes that nobody has named: n for a single one, else d0, d1 and so on."""
    return ("n",) if count == 1 else tuple(f"d{number}" for number in range(count))


def read(path: Path, name: str) -> PlainInput:
    """Return the array that a file holds.

    Raises
    ------
    BadInput
        It is truncated, or holds what are no numbers.
    """
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            # Of version 3 are arrays whose fields have names beyond Latin-1.
            shape, fortran, dtype = _HEADERS[version](file)
        except KeyError:
            raise BadInput(f"{path}: holds records, and no numbers; save an array of numbers") from None
        except Exception as error:
            what = " ".join(str(error).split())
            raise BadInput(f"{path}: is no .npy file that can be read: {what}") from None
        offset = file.tell()
        file.seek(0)
        said = file.read(offset)
    if dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        what = "Python objects" if dtype.hasobject else f"values of type {dtype}"
        raise BadInput(f"{path}: holds {what}, and no numbers; save an array of numbers")
    size, end = path.stat().st_size, offset + math.prod(shape) * dtype.itemsize
    if size < end:
        raise BadInput(f"{path}: truncated: {size} bytes where its header promises {end}; copy it again")
    axes, kept = plain_axes(len(shape)), dtype.newbyteorder("=").name
    order = slice(None, None, -1 if fortran else 1)
    array = Array(name, axes[order], tuple(shape)[order], kept)
    return PlainInput(path, array, offset, dtype.str, said, axes)


class NpyWriter:
    """An array in a .npy file; a :class:`mpiimg.formats.interface.PlacedWriter`.

    Parameters
    ----------
    result : ResultArray
        Of order "F" it is written in this order, as NumPy does.

    Raises
    ------
    BadInput
        Its values are no numbers.
    """

    def __init__(self, result: ResultArray):
        kind = np.dtype(result.dtype)
        if kind.kind not in "biufc":
            raise BadInput(f"{result.name}: a .npy file of values of type {result.dtype} is not written")
        self.dtype = kind.newbyteorder("<")
        self._fortran, self._shape = result.order == "F" and len(result.shape) > 1, result.shape
        self.axes = result.axes[::-1] if self._fortran else result.axes
        self.grid = file_grid(self.axes, tuple(result.sizes[axis] for axis in self.axes), kind.itemsize)
        self.offset = len(self.head())

    def head(self) -> bytes:
        """Return the header, as NumPy writes it."""
        file = io.BytesIO()
        about = {"descr": self.dtype.str, "fortran_order": self._fortran, "shape": self._shape}
        np.lib.format.write_array_header_1_0(file, about)
        return file.getvalue()


NPY = Format("NumPy array", read, NpyWriter)
