"""FreeSurfer's images, .mgh and .mgz, read in: nibabel reads the header, and voxels lie behind it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box
from mpiimg.engine.inputs import Reader
from mpiimg.engine.raw import RawFile, sample_file
from mpiimg.errors import BadInput
from mpiimg.formats.gz import inflated, inflated_start
from mpiimg.formats.interface import FILE_AXES, Format
from mpiimg.formats.space import Affine

#: Bytes of a header, before the voxels.
_HEADER = 284


@dataclass(frozen=True)
class MghImage:
    """An image of FreeSurfer; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    path : Path
    array : Array
        Its axes in the order of the file, the slowest first.
    axes : tuple of str
    space : Affine
    stored : str
        The dtype in the file, with byte order.
    compressed : bool
    """

    path: Path
    array: Array
    axes: tuple[str, ...]
    space: Affine
    stored: str
    compressed: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def parallel(self) -> bool:
        """Whether every rank may read any part of it: a .mgz is a stream."""
        return not self.compressed

    @cached_property
    def sample(self) -> tuple[int, int, int]:
        """Size, time and a checksum of samples of the file; once known, it is sent with the input."""
        return sample_file(self.path)

    @property
    def identity(self) -> dict[str, Any]:
        """Type and shape."""
        return {"dtype": self.stored, "shape": self.array.shape}

    def open(self) -> Reader:
        """Open it for reading in any order; only a .mgh."""
        return RawFile(self.path, _HEADER, self.array.shape, self.stored)

    def blocks(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        """Yield blocks of a .mgz, which follow each other in the file.

        Raises
        ------
        BadInput
            The stream is truncated or corrupt.
        """
        return inflated(self.path, _HEADER, self.stored, boxes)


def read(path: Path, name: str) -> MghImage:
    """Look at the header of an image of FreeSurfer.

    Parameters
    ----------
    path : Path
        .mgh or .mgz; which of them it is, its first bytes say.
    name : str
        Of the array.

    Raises
    ------
    BadInput
        It is no such image, or truncated.
    """
    from nibabel.freesurfer.mghformat import MGHHeader

    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(_HEADER)
    compressed = start[:2] == b"\x1f\x8b"
    if compressed:
        start = inflated_start(path, _HEADER)
    if len(start) < _HEADER:
        raise BadInput(f"{path}: truncated: {len(start)} bytes where a header has {_HEADER}; copy it again")
    try:
        header = MGHHeader(start, check=True)
        stored = header.get_data_dtype().newbyteorder(">")
        affine = header.get_affine()
    except Exception as error:
        raise BadInput(f"{path}: is no image of FreeSurfer: {' '.join(str(error).split())}") from None
    shape = tuple(int(n) for n in header["dims"])
    # A header counts four axes in any case.
    shape = shape if shape[3] > 1 else shape[:3]
    if min(shape) < 1:
        raise BadInput(f"{path}: its header gives the sizes {shape}, which are none of an image")
    end, size = _HEADER + math.prod(shape) * stored.itemsize, os.stat(path).st_size
    if not compressed and size < end:
        raise BadInput(f"{path}: truncated: {size} bytes where the header promises {end}; copy it again")
    if not np.isfinite(affine).all():
        raise BadInput(f"{path}: the header gives no place in space (delta, Mdc, Pxyz_c); write it again")
    axes = FILE_AXES[: len(shape)]
    array = Array(name, axes[::-1], shape[::-1], stored.newbyteorder("=").name)
    # How it was taken stands behind the voxels, so that a .mgz would have to be inflated for it: left out.
    space = Affine(axes[:3], affine, ("mm", "unknown"), (1, 1))
    return MghImage(path, array, axes, space, stored.str, compressed)


FORMAT = Format("FreeSurfer's MGH", read)
