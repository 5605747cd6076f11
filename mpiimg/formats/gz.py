"""gzip as a stream of voxels in, and out as one member whose parts any ranks compress."""

from __future__ import annotations

import contextlib
import functools
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mpiimg.engine.boxes import Box, box_shape
from mpiimg.engine.stage import Digested
from mpiimg.errors import BadInput

# --- In ---------------------------------------------------------------------------------------------------

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


# --- Out --------------------------------------------------------------------------------------------------
#
# A file is one gzip member, since many readers take the first member for the whole. Its parts are compressed
# apart, as pigz does: each is a run of deflate blocks that refer to nothing before them and end at a byte.
# Only the checksum and the length at the end are of all parts.

#: What a file begins with: deflate, no name, no time stamp, compressed fast, by a system that is not told.
_BEGINNING = bytes.fromhex("1f8b08000000000004ff")

#: What follows the last block of a part where that leaves room in its byte for the three bits of a header:
#: the lengths of a stored block without bytes, which begins at the next byte. And the last block of a file.
_FLUSH, _LAST_BLOCK = b"\0\0\xff\xff", b"\x03\0"

#: Bytes that are compressed at a time: so many that libdeflate makes one block of them at level 1, which has
#: at most 8192 matches of at least 4 bytes.
_BLOCK = 1 << 15


def gzip_head(data: bytes) -> Digested:
    """Return what a gzip file begins with, and its first part, which holds `data`."""
    part = gzip_part(data)
    return Digested(_BEGINNING + part.data, part.digest)


def gzip_part(data: bytes) -> Digested:
    """Compress a part of a gzip file, whatever its other parts are; the digest is what the end is to know.

    By libdeflate: the bytes depend on `data` alone. isal is three times as fast, but now and then one differs
    from run to run, and from CPU to CPU; so do those of zlib from build to build.
    """
    from isal.isal_zlib import crc32

    blocks = (data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK))
    return Digested(b"".join(map(_block, blocks)), (crc32(data), len(data)))


def gzip_tail(digests: Sequence[tuple[int, int]]) -> bytes:
    """Return what a gzip file ends with, from the digests of its head and parts in their order."""
    from isal.isal_zlib import crc32_combine

    crc = size = 0
    for part, length in digests:
        crc, size = crc32_combine(crc, part, length), size + length
    return _LAST_BLOCK + struct.pack("<II", crc, size % (1 << 32))


def deflated_bytes(size: int) -> int:
    """Return the most bytes that a part of `size` bytes takes: what cannot be compressed takes some more."""
    return size + size // 256 + 64


def _block(data: bytes) -> bytes:
    """Return a run of deflate blocks that decompress to `data`, none of them the last, up to a whole byte."""
    return _zeros() if data == _ZEROS else _flushed(data)


_ZEROS = bytes(_BLOCK)


@functools.cache
def _zeros() -> bytes:
    """Return the run for nothing but zeros, of which there are many around a head."""
    return _flushed(_ZEROS)


def _flushed(data: bytes) -> bytes:
    """Compress `data`, and put a stored block without bytes in the place of the end of the stream."""
    from deflate import DeflateError, deflate_compress, deflate_decompress

    stream = bytearray(deflate_compress(data, 1))
    is_last, is_stored = stream[0] & 1, not stream[0] & 6
    if not is_last:  # several blocks, of which nobody knows where the last begins
        half = len(data) // 2
        return _flushed(data[:half]) + _flushed(data[half:])
    stream[0] &= 0xFE
    # The header of the stored block, three bits that are 0, may still go into the last byte. Whether it does
    # depends on how many bits of that are taken, and those may end with zeros too. A decoder tells.
    if not is_stored and stream[-1] < 0x20:
        with contextlib.suppress(DeflateError):
            deflate_decompress(stream + _FLUSH + _LAST_BLOCK, len(data))
            return bytes(stream + _FLUSH)
    return bytes(stream + b"\0" + _FLUSH)
