"""Pages: the pieces of a staged file that have a checksum each, so that whatever is read of it is verified.

The bytes of each block, in C order, are cut into pages of :data:`PAGE` bytes, so no page crosses a block, and
who writes a block knows all its pages. The CRC32s of the pages of all blocks lie one after the other, by the
number of the block, in a file beside the array's, or in a dataset within it. Those of a block combine to the
checksum of the whole block, which is what its mark has. A read fetches the pages that it touches and compares
them; what a caller gets are bytes that were verified, or :class:`DamagedPage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mpiimg.engine.array import AnyArray
from mpiimg.engine.box_table import BoxTable
from mpiimg.engine.boxes import Box, box_shape, box_size, box_slices
from mpiimg.engine.raw import FileEnds, RawFile

#: Bytes of a page; the last one of a block has fewer. Reading some items takes two pages more at most, and
#: summing a page costs a few times what calling for it does.
PAGE = 1 << 16

#: Bytes of pages that are read at once where not all of them are wanted.
WINDOW = 4 * PAGE

#: Blocks of which a reader remembers how they lie in their file.
MANY_BLOCKS = 1 << 10

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

    def in_one_run(self, box: Box, numbers: np.ndarray, parts: np.ndarray) -> bool:
        """Say whether `box` is whole blocks, numbered one after the other, and their bytes are so in it too.

        `numbers` and `parts` are what :meth:`parts` returns.
        """
        if not len(numbers) or numbers[-1] - numbers[0] >= len(numbers):
            return False
        if not box:
            return True
        axis = next((axis for axis, (a, b) in enumerate(box) if b - a > 1), 0)
        along, across = parts[:, axis], np.array(box[axis + 1 :], dtype=np.int64).reshape(-1, 2)
        return bool(
            (parts == self.boxes[numbers[0] : numbers[-1] + 1]).all()
            and (parts[:, axis + 1 :] == across).all()
            and (along[1:, 0] == along[:-1, 1]).all()
            and (along[0, 0], along[-1, 1]) == box[axis]
        )

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
        self._blocks: dict[int, _BlockPages] = {}
        # Made once: memory of this size, taken anew for each read, costs more than what is read into it.
        self._scratch = memoryview(bytearray(min(WINDOW + 2 * PAGE, int(pages.nbytes.max(initial=0)))))

    def read(self, box: Box) -> np.ndarray:
        """Return the items of `box` as they were written; 0 where no block lies.

        Raises
        ------
        DamagedPage
            The file, or the file of sums, holds something else there, or ends before.
        OSError
            It cannot be read.
        """
        numbers, parts = self._pages.parts(box)
        if self._pages.in_one_run(box, numbers, parts):
            return self._read_blocks(box, int(numbers[0]), int(numbers[-1]) + 1)
        block = np.empty(box_shape(box), self._file.dtype)
        pieces = [[(a, b) for a, b in part] for part in parts.tolist()]
        if sum(map(box_size, pieces)) != block.size:
            block[...] = 0
        for number, part in zip(numbers.tolist(), pieces, strict=True):
            try:
                pages = self._block(number)
                pages.fill(block[box_slices(part, box)], pages.inside(part))
            except FileEnds:
                raise DamagedPage(number, 0) from None
        return block

    def _read_blocks(self, box: Box, start: int, stop: int) -> np.ndarray:
        """Return a box that is whole blocks, end to end."""
        try:
            block = self._file.read(box)
            bounds = int(self._pages.first[start]), int(self._pages.first[stop])
            expected = self._sums.read((bounds,)).tolist()
        except FileEnds:
            raise DamagedPage(start, 0) from None
        data, own = memoryview(block.reshape(-1)).cast("B"), []
        for nbytes in self._pages.nbytes[start:stop].tolist():
            own += _sums(data[:nbytes])
            data = data[nbytes:]
        if own != expected:
            page = bounds[0] + next(i for i, (a, b) in enumerate(zip(own, expected, strict=True)) if a != b)
            number = int(np.searchsorted(self._pages.first, page, side="right")) - 1
            raise DamagedPage(number, page - int(self._pages.first[number]))
        return block

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _block(self, number: int) -> _BlockPages:
        pages = self._blocks.get(number)
        if pages is None:
            if len(self._blocks) == MANY_BLOCKS:
                self._blocks.clear()
            box = tuple((start, stop) for start, stop in self._pages.boxes[number].tolist())
            pages = self._blocks[number] = _BlockPages(self._file, self._array, number, box, self._scratch)
        bounds = int(self._pages.first[number]), int(self._pages.first[number + 1])
        pages.sums = self._sums.read((bounds,)).tolist()
        return pages


class _BlockPages:
    """The pages of one block, in which places are counted in bytes of its C order."""

    def __init__(self, file: RawFile, array: AnyArray, number: int, box: Box, scratch: memoryview):
        #: CRC32 of each page.
        self.sums: Sequence[int] = ()
        self._file, self._number, self._scratch = file, number, scratch
        self._start = [start for start, _ in box]
        item = file.dtype.itemsize
        self._strides = [item]
        for start, stop in box[:0:-1]:
            self._strides.insert(0, self._strides[0] * (stop - start))
        self._nbytes = self._strides[0] * (box[0][1] - box[0][0])
        runs = array.runs(box)
        first, _, count = next(runs)
        self._run, self._places = count * item, [file.offset + first * item]
        if self._run < self._nbytes:
            self._places += [file.offset + first * item for first, _, _ in runs]

    def inside(self, part: Box) -> Box:
        """Return a part of the block, counted from the block's start."""
        return tuple((a - start, b - start) for (a, b), start in zip(part, self._start, strict=True))

    def fill(self, target: np.ndarray, inside: Box) -> None:
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
                some = (start, min(start + step, b))
                self.fill(target[piece], (*inside[:axis], some, *inside[axis + 1 :]))

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
        """Return where the pages around some bytes begin, and these pages, until the next ones are read."""
        start = first // PAGE * PAGE
        data = self._scratch[: min(-(-stop // PAGE) * PAGE, self._nbytes) - start]
        self._read(start, data)
        self._verify(start, data)
        return start, data

    def _verify(self, start: int, data: memoryview) -> None:
        page = start // PAGE
        for own, expected in zip(_sums(data), self.sums[page:], strict=False):
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
