"""Arrays that lie in one piece in a file, plain or gzipped, whatever numbers stand for their values."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box
from mpiimg.engine.inputs import Reader
from mpiimg.engine.raw import RawFile, sample_file
from mpiimg.formats.gz import inflated
from mpiimg.formats.scaling import scaled, scaled_type
from mpiimg.formats.space import Space

#: A function of blocks that is sent with an input.
Values = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class AsTheyAre:
    """The numbers in the file are the values."""

    def __call__(self, block: np.ndarray) -> np.ndarray:
        return block


@dataclass(frozen=True)
class Scaling:
    """A value is number * slope + inter, and NaN where the number is `blank`.

    Parameters
    ----------
    slope, inter : float
    blank : int, optional
    """

    slope: float
    inter: float
    blank: int | None = None

    def __call__(self, block: np.ndarray) -> np.ndarray:
        values = scaled(block, self.slope, self.inter).astype(self.of(block.dtype), copy=False)
        if self.blank is not None:
            values[block == self.blank] = np.nan
        return values

    def of(self, dtype: np.dtype) -> np.dtype:
        """Return the type of values of numbers of some type."""
        return scaled_type(dtype)


@dataclass(frozen=True)
class OtherSign:
    """A value is the number with its highest bit turned over, and of the type with the other sign.

    FITS has unsigned integers so.
    """

    def __call__(self, block: np.ndarray) -> np.ndarray:
        other = self.of(block.dtype)
        highest = np.array(1 << (8 * other.itemsize - 1), f"u{other.itemsize}")
        return (block.view(highest.dtype) ^ highest).view(other)

    def of(self, dtype: np.dtype) -> np.dtype:
        """Return the type of values of numbers of some type."""
        dtype = np.dtype(dtype).newbyteorder("=")
        return np.dtype(f"{'u' if dtype.kind == 'i' else 'i'}{dtype.itemsize}")


@dataclass(frozen=True)
class PlainInput:
    """An array in one piece in a file; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    path : Path
        The file that the array lies in.
    array : Array
        Of its values, its axes in the order of the file.
    offset : int
        Bytes before its first number, in the uncompressed file.
    stored : str
        The type of the numbers, with their byte order.
    header : bytes
        What says so; part of the identity.
    axes : tuple of str
        As users have them.
    values : callable
        Makes values of numbers.
    gzipped : bool
        The file is a gzip stream, which one rank reads from front to back.
    space : Affine or Wcs, optional
    attrs : mapping
        What else the file says, as JSON knows it.
    others : tuple of Path
        Further files that it was read from, such as one with the header.
    """

    path: Path
    array: Array
    offset: int
    stored: str
    header: bytes
    axes: tuple[str, ...]
    values: Values = AsTheyAre()
    gzipped: bool = False
    space: Space | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[Path, ...] = ()

    @property
    def parallel(self) -> bool:
        """Whether every rank may read any part of it."""
        return not self.gzipped

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Type of the values, where they lie and what the header says."""
        return {"dtype": self.array.dtype, "offset": self.offset, "header": zlib.crc32(self.header)}

    @cached_property
    def sample(self) -> tuple[int, int, int]:
        """Size, time and a checksum of samples of the file; once known, it is sent with the input."""
        return sample_file(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those that it was read from."""
        return (self.path, *self.others)

    def open(self) -> Reader:
        """Open it for reading in any order."""
        return _Opened(RawFile(self.path, self.offset, self.array.shape, self.stored), self.values)

    def blocks(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        """Yield blocks of the stream, which follow each other in the file.

        Raises
        ------
        BadInput
            The stream is truncated or corrupt.
        """
        return map(self.values, inflated(self.path, self.offset, self.stored, boxes))


@dataclass(frozen=True)
class _Opened:
    """An open file, and what makes values of its numbers."""

    raw: RawFile
    values: Values

    def read(self, box: Box) -> np.ndarray:
        return self.values(self.raw.read(box))

    def close(self) -> None:
        self.raw.close()
