"""A dense array that lies in one piece in a file: a NIfTI's voxels, or a contiguous HDF5 dataset."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mpiimg.engine.array import dense_runs
from mpiimg.engine.boxes import Box, box_shape
from mpiimg.engine.system_errors import naming


class FileEnds(OSError):
    """A file is shorter than the array in it: it was cut after it had been opened."""


class RawFile:
    """Read and write boxes of an array by pread and pwrite, as any rank likes.

    Parameters
    ----------
    path : Path
    offset : int
        Bytes before the first item.
    shape : tuple of int
        Of the array, in C order.
    dtype : dtype
        It may be of the other byte order.
    writable : bool
        Open the file for writing too.
    runs : callable, optional
        Called as :meth:`mpiimg.engine.array.Array.runs`; by default the runs of a dense array.

    Raises
    ------
    FileEnds
        The file ends before the array does; raised on reading.
    OSError
        It cannot be read.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        shape: tuple[int, ...],
        dtype,
        writable: bool = False,
        runs: Callable[[Box], Iterator[tuple[int, int, int]]] | None = None,
    ):
        self.path, self.offset, self.shape, self.dtype = Path(path), offset, tuple(shape), np.dtype(dtype)
        self._item_runs = runs or functools.partial(dense_runs, self.shape)
        self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)

    def read(self, box: Box) -> np.ndarray:
        """Return the items of `box`, in the machine's byte order."""
        block = np.empty(box_shape(box), self.dtype)
        if not block.size:
            return block.astype(self.dtype.newbyteorder("="))
        data = memoryview(block).cast("B")
        # There may be a run for each row: what is done for every one of them counts.
        with naming(self.path):
            for position, start, length in self._runs(box):
                _read_fully(self._descriptor, data[start : start + length], position, self.path)
        return block.astype(self.dtype.newbyteorder("="), copy=False)

    def read_at(self, position: int, data: memoryview) -> None:
        """Fill `data` with the bytes of the file from `position` on."""
        with naming(self.path):
            _read_fully(self._descriptor, data, position, self.path)

    def write(self, box: Box, block: np.ndarray) -> None:
        """Put `block` at `box`."""
        if not block.size:
            return
        data = memoryview(np.ascontiguousarray(block, dtype=self.dtype)).cast("B")
        with naming(self.path):
            for position, start, length in self._runs(box):
                write_fully(self._descriptor, data[start : start + length], position)

    def sync(self) -> None:
        """Return when what was written would survive a power loss."""
        with naming(self.path):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Release the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _runs(self, box: Box) -> Iterator[tuple[int, int, int]]:
        """Yield (position in the file, position in the block, bytes) for each run of consecutive items."""
        item = self.dtype.itemsize
        for first, place, count in self._item_runs(box):
            yield self.offset + first * item, place * item, count * item


def _read_fully(descriptor: int, data: memoryview, position: int, path: Path) -> None:
    while data:
        count = os.preadv(descriptor, [data[: 1 << 30]], position)
        if count == 0:
            raise FileEnds(f"{path} ends at byte {position}, before the array in it does")
        data, position = data[count:], position + count


def write_fully(descriptor: int, data, position: int) -> None:
    """Write all of `data` at `position`."""
    data = memoryview(data)
    while data:
        count = os.pwrite(descriptor, data[: 1 << 30], position)
        data, position = data[count:], position + count


def sample_file(path: Path, pieces: int = 16, length: int = 4096) -> tuple[int, int, int]:
    """Return size, mtime_ns and the CRC32 of `pieces` of `length` bytes spread over a file.

    Enough to tell one measurement from another, at the price of reading a header.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        last = max(status.st_size - length, 0)
        crc = 0
        for place in range(pieces):
            file.seek(last * place // (pieces - 1))
            crc = zlib.crc32(file.read(length), crc)
    return status.st_size, status.st_mtime_ns, crc


def free_bytes(folder: Path) -> int:
    """Return the bytes that a user may still write below `folder`, an existing one."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
