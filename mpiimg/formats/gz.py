"""gzip as a stream of voxels in, and as members of bytes out."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpiimg.engine.boxes import Box, box_shape
from mpiimg.errors import BadInput

#: Bytes that may follow the voxels of any image, over as many as these are.
MORE = 1 << 20


@contextlib.contextmanager
def _sound(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turn errors in a gzip stream, and `others`, into one that says how to mend them."""
    from isal import igzip, isal_zlib

    try:
        yield
    except (EOFError, igzip.BadGzipFile, isal_zlib.error, zlib.error, *others) as error:
        raise BadInput(
            f"{path}: truncated or corrupt gzip ({error}); test it with gzip -t and copy it again"
        ) from None


def inflated_start(path: Path, count: int) -> bytes:
    """Return the first bytes of a gzip stream, at most `count`.

    Raises
    ------
    BadInput
        The stream is truncated or corrupt, or cannot be read.
    """
    from isal import igzip

    with _sound(path, OSError), igzip.open(path, "rb") as file:
        return file.read(count)


def inflated(path: Path, offset: int, dtype: str, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
    """Inflate a gzip stream once, front to back, yielding blocks that follow each other in it.

    Parameters
    ----------
    path : Path
    offset : int
        Bytes before the first voxel.
    dtype : str
        Type of the voxels, with byte order; blocks are in the machine's.
    boxes : iterator of Box

    Raises
    ------
    BadInput
        The stream is truncated or corrupt.
    """
    from isal import igzip

    kind = np.dtype(dtype)
    with _sound(path), igzip.open(path, "rb") as file:
        _skip(file, offset)
        # One block is held back: reaching the end verifies the checksum, and whoever has had the last block
        # need not ask for more.
        ready, count = None, 0
        for box in boxes:
            if ready is not None:
                yield ready
            block = np.empty(box_shape(box), kind)
            _fill(file, memoryview(block).cast("B"))
            count += block.nbytes
            ready = block.astype(kind.newbyteorder("="), copy=False)
        _reach_end(file, offset + count)
        if ready is not None:
            yield ready


def inflated_first(path: Path, offset: int, dtype: str, count: int) -> np.ndarray:
    """Return the first voxels of a gzip stream, (count,), in the machine's byte order.

    What follows them is neither inflated nor checked.

    Raises
    ------
    BadInput
        The stream ends before, or is corrupt there.
    """
    from isal import igzip

    kind = np.dtype(dtype)
    voxels = np.empty(count, kind)
    with _sound(path), igzip.open(path, "rb") as file:
        _skip(file, offset)
        _fill(file, memoryview(voxels).cast("B"))
    return voxels.astype(kind.newbyteorder("="), copy=False)


def _reach_end(file, promised: int) -> None:
    """Read on to the end of the stream, where its checksum is; refuse one that goes on for ever."""
    rest = promised + MORE
    while rest > 0:
        data = file.read(min(rest, 1 << 20))
        if not data:
            return
        rest -= len(data)
    raise EOFError("goes on for more than twice what its header promises")


def _fill(file, data: memoryview) -> None:
    while data:
        count = file.readinto(data[: 1 << 24])
        if not count:
            raise EOFError("ends before its last voxel")
        data = data[count:]


def _skip(file, count: int) -> None:
    while count:
        step = min(count, 1 << 24)
        _fill(file, memoryview(bytearray(step)))
        count -= step


def gzip_member(data: bytes) -> bytes:
    """Compress `data` into one gzip member without a time stamp.

    By libdeflate: its bytes depend on `data` alone. isal is three times as fast,
    but one in some hundred of its members differs in a byte from run to run.
    """
    from deflate import gzip_compress

    return bytes(gzip_compress(data, 1))
