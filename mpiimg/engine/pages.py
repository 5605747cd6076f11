"""Pages: the pieces of a staged file that have a checksum each, so that whatever is read of it is verified.

The bytes of each block, in C order, are cut into pages of :data:`PAGE` bytes, so no page crosses a block, and
who writes a block knows all its pages. The CRC32s of the pages of all blocks lie one after the other, by the
number of the block, in a file beside the array's, or in a dataset within it. Those of a block combine to the
checksum of the whole block, which is what its mark has. A read fetches the pages that it touches and compares
them; what a caller gets are bytes that were verified, or :class:`DamagedPage`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mpiimg.engine.array import AnyArray
from mpiimg.engine.blocks import BoxTable
from mpiimg.engine.boxes import Box, box_shape, box_slices
from mpiimg.engine.raw import FileEnds, RawFile

#: Bytes of a page; the last one of a block has fewer. Reading some items takes two pages more at most, and
#: summing a page costs a few times what calling for it does.
PAGE = 1 << 16

#: Bytes of pages that are read at once where not all of them are wanted.
WINDOW = 4 * PAGE

#: Sums that are read at once, with those of blocks between the ones that are wanted.
MANY_SUMS = 1 << 14

#: How sums are kept.
SUM = np.dtype("<u4")


class DamagedPage(Exception):
    """What a file holds is not what was written there: in block `block` of the array, page `page` of it."""

    def __init__(self, block: int, page: int):
        super().__init__(f"block {block}, page {page} is not what was written")
        self.block, self.page = block, page


class Sums(Protocol):
    """Where the sums of pages are read: a file of them, or what stands for one."""

    def read(self, box: Box) -> np.ndarray:
        """Return the sums of a run of pages."""
        ...


class PageTable(BoxTable):
    """Which pages the blocks of an array have.

    Parameters
    ----------
    array : Array or Ragged
    boxes : (blocks, axes, 2) int64
        Of its blocks.

    Attributes
    ----------
    nbytes : (blocks,) int64
        Bytes of each block.
    first : (blocks + 1,) int64
        The first page of each block; the last number is that of all pages.
    """

    def __init__(self, array: AnyArray, boxes: np.ndarray):
        super().__init__(np.asarray(boxes, dtype=np.int64))
        self.nbytes = self.items() * np.dtype(array.dtype).itemsize
        self.first = np.concatenate([[0], np.cumsum(-(-self.nbytes // PAGE))])

    def __len__(self) -> int:
        return int(self.first[-1])


def page_sums(block: np.ndarray) -> np.ndarray:
    """Return the CRC32 of each page of a block, (pages,) uint32."""
    data = memoryview(np.ascontiguousarray(block)).cast("B") if block.size else memoryview(b"")
    return np.array(_sums(data), dtype=SUM)


def combined(sums: np.ndarray, nbytes: int) -> int:
    """Return the CRC32 of a block of `nbytes` bytes from those of its pages."""
    from isal.isal_zlib import crc32_combine

    whole = 0
    for place, one in enumerate(sums.tolist()):
        whole = crc32_combine(whole, one, min(PAGE, nbytes - place * PAGE))
    return whole


def _sums(data: memoryview) -> list[int]:
    from isal.isal_zlib import crc32

    return [crc32(data[start : start + PAGE]) for start in range(0, len(data), PAGE)]


class PagedReader:
    """Read boxes of an array from a file, and verify every page that they touch.

    Parameters
    ----------
    file : RawFile
        Where the array lies.
    array : Array or Ragged
    pages : PageTable
        Of the blocks that it was written by.
    sums : Sums
        Of these pages.
    """

    def __init__(self, file: RawFile, array: AnyArray, pages: PageTable, sums: Sums):
        self._file, self._array, self._pages, self._sums = file, array, pages, sums

    def read(self, box: Box) -> np.ndarray:
        """Return the items of `box` as they were written; 0 where no block lies.

        Raises
        ------
        DamagedPage
            The file, or the file of sums, holds something else there, or ends before.
        OSError
            It cannot be read.
        """
        block = np.empty(box_shape(box), self._file.dtype)
        numbers, parts = self._pages.parts(box)
        if np.prod(parts[..., 1] - parts[..., 0], axis=1).sum() != block.size:
            block[...] = 0
        sums_of = self._sums_of(numbers)
        for number, part in zip(numbers.tolist(), parts.tolist(), strict=True):
            try:
                pages = _BlockPages(self._file, self._array, self._pages, number, sums_of(number))
                inside = [(a - b, c - b) for (a, c), b in zip(part, pages.start, strict=True)]
                pages.fill(block[box_slices(part, box)], inside)
            except FileEnds:
                raise DamagedPage(number, 0) from None
        return block

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _sums_of(self, numbers: np.ndarray) -> Callable[[int], Sequence[int]]:
        """Return what gives the sums of each of some blocks; read at once where they lie close together."""
        if not numbers.size:
            return lambda number: ()
        first, stop = int(self._pages.first[numbers[0]]), int(self._pages.first[numbers[-1] + 1])

        def each(number: int) -> Sequence[int]:
            bounds = int(self._pages.first[number]), int(self._pages.first[number + 1])
            return self._sums.read((bounds,)).tolist()

        if stop - first > MANY_SUMS or len(numbers) == 1:
            return each
        try:
            together = self._sums.read(((first, stop),)).tolist()
        except FileEnds:
            raise DamagedPage(int(numbers[0]), 0) from None

        def cut(number: int) -> Sequence[int]:
            return together[self._pages.first[number] - first : self._pages.first[number + 1] - first]

        return cut


class _BlockPages:
    """The pages of one block, in which places are counted in bytes of its C order."""

    def __init__(self, file: RawFile, array: AnyArray, pages: PageTable, number: int, sums: Sequence[int]):
        self._file, self._number, self._sums = file, number, sums
        bounds = pages.boxes[number].tolist()
        self.start = [start for start, _ in bounds]
        self._nbytes, item = int(pages.nbytes[number]), file.dtype.itemsize
        shape = [stop - start for start, stop in bounds]
        self._strides = [item] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            self._strides[axis] = self._strides[axis + 1] * shape[axis + 1]
        runs = array.runs(tuple((start, stop) for start, stop in bounds))
        first, _, count = next(runs)
        self._run = count * item
        self._places = [file.offset + first * item]
        if self._run < self._nbytes:
            self._places += [file.offset + first * item for first, _, _ in runs]

    def fill(self, target: np.ndarray, inside: list[tuple[int, int]]) -> None:
        """Fill `target` with the part of the block that lies at `inside`, counted from the block's start."""
        strides = self._strides
        first = sum(a * stride for (a, _), stride in zip(inside, strides, strict=True))
        last = sum((b - 1) * stride for (_, b), stride in zip(inside, strides, strict=True))
        stop = last + target.itemsize
        if stop - first == target.nbytes and target.flags.c_contiguous:
            self._fill_run(memoryview(target.reshape(-1)).cast("B"), first)
        elif stop - first <= WINDOW:
            start, data = self._verified(first, stop)
            target[...] = np.ndarray(target.shape, target.dtype, data, first - start, strides)
        else:
            axis = next(axis for axis, (a, b) in enumerate(inside) if b - a > 1)
            a, b = inside[axis]
            step = max(1, WINDOW // strides[axis])
            for start in range(a, b, step):
                piece = (slice(None),) * axis + (slice(start - a, start - a + step),)
                some = [*inside[:axis], (start, min(start + step, b)), *inside[axis + 1 :]]
                self.fill(target[piece], some)

    def _fill_run(self, target: memoryview, first: int) -> None:
        """Fill `target` from byte `first` on; whole pages go right there, only those at its ends are cut."""
        stop = first + len(target)
        whole = -(-first // PAGE) * PAGE
        until = stop if stop == self._nbytes else stop // PAGE * PAGE
        if whole < until:
            data = target[whole - first : until - first]
            self._read(whole, data)
            self._verify(whole, data)
        else:
            whole = until = stop
        for a, b in ((first, whole), (until, stop)):
            if a < b:
                start, data = self._verified(a, b)
                target[a - first : b - first] = data[a - start : b - start]

    def _verified(self, first: int, stop: int) -> tuple[int, memoryview]:
        """Return the pages around some bytes, and where they begin."""
        start = first // PAGE * PAGE
        data = memoryview(bytearray(min(-(-stop // PAGE) * PAGE, self._nbytes) - start))
        self._read(start, data)
        self._verify(start, data)
        return start, data

    def _verify(self, start: int, data: memoryview) -> None:
        page = start // PAGE
        for own, expected in zip(_sums(data), self._sums[page:], strict=False):
            if own != expected:
                raise DamagedPage(self._number, page)
            page += 1

    def _read(self, start: int, data: memoryview) -> None:
        """Fill `data` from byte `start` on, which may be in several runs of the file."""
        while data:
            run, within = divmod(start, self._run)
            length = min(self._run - within, len(data))
            self._file.read_at(self._places[run] + within, data[:length])
            start, data = start + length, data[length:]
