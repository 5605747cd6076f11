"""Pages of staged files: any box comes out as it was written, or the read says that it does not."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest

from mpiimg.engine import pages as module
from mpiimg.engine.array import Array, Ragged
from mpiimg.engine.boxes import Box, box_shape, box_slices
from mpiimg.engine.pages import SUM, DamagedPage, PagedReader, PageTable, combined, page_sums
from mpiimg.engine.raw import RawFile

#: Bytes before the array.
BEFORE = 13


@pytest.fixture(params=[(8, 32), (16, 24), (64, 64), (1 << 16, 1 << 18)], ids=str)
def sizes(request, monkeypatch):
    """Pages and windows from smaller than a row to larger than the array."""
    page, window = request.param
    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(module, "WINDOW", window)
    return page


def cut(shape, block) -> list[Box]:
    axes = [[(a, min(a + b, n)) for a in range(0, n, b)] for n, b in zip(shape, block, strict=True)]
    return [tuple(box) for box in itertools.product(*axes)]


class Written:
    """An array in a file, written block by block, with the sums of its pages; and what it holds."""

    def __init__(self, path, array, boxes, whole):
        self.path, self.array, self.boxes, self.whole = path, array, np.array(boxes), whole
        path.write_bytes(bytes(BEFORE + array.nbytes))
        file = RawFile(path, BEFORE, array.stored_shape, array.dtype, writable=True, runs=array.runs)
        self.pages = PageTable(array, self.boxes)
        self.sums = np.zeros(len(self.pages), SUM)
        for number, box in enumerate(boxes):
            block = self.part(box)
            file.write(box, block)
            own = page_sums(block)
            self.sums[self.pages.first[number] : self.pages.first[number + 1]] = own
            assert combined(own, block.nbytes) == zlib.crc32(block.tobytes())
        file.close()
        self.sums.tofile(path.with_suffix(".sums"))

    def part(self, box: Box) -> np.ndarray:
        if isinstance(self.array, Ragged):
            return np.ascontiguousarray(self.whole[box[0][0]][box_slices(box[1:])][None])
        return np.ascontiguousarray(self.whole[box_slices(box)])

    def read(self, box: Box) -> np.ndarray:
        array = self.array
        file = RawFile(self.path, BEFORE, array.stored_shape, array.dtype, runs=array.runs)
        sums = RawFile(self.path.with_suffix(".sums"), 0, self.sums.shape, SUM)
        try:
            return PagedReader(file, array, self.pages, sums).read(box)
        finally:
            file.close()
            sums.close()

    def random_box(self, rng) -> Box:
        shape, item = self.array.shape if isinstance(self.array, Array) else None, ()
        if shape is None:
            number = int(rng.integers(len(self.array.shapes)))
            shape, item = self.array.shapes[number], ((number, number + 1),)
        ends = [sorted(rng.integers(0, n + 1, 2).tolist()) for n in shape]
        return (*item, *map(tuple, ends))


def dense(path, block, dtype="int16", shape=(3, 5, 6, 7)):
    whole = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    return Written(path, Array("a", "vzyx", shape, dtype), cut(shape, block), whole)


def ragged(path, height, width):
    shapes = ((3, 4), (0, 2), (9, 8), (1, 1), (7, 3))
    rng = np.random.default_rng(1)
    items = [rng.normal(size=shape).astype("float32") for shape in shapes]
    boxes = [((n, n + 1), *box) for n, shape in enumerate(shapes) for box in cut(shape, (height, width))]
    return Written(path, Ragged("r", "eyx", shapes, "float32"), boxes, items)


MADE = {
    "slices": lambda path: dense(path, (1, 2, 6, 7)),
    "slabs": lambda path: dense(path, (3, 2, 6, 7), "float32"),
    "columns": lambda path: dense(path, (3, 5, 4, 3)),
    "tiles": lambda path: dense(path, (2, 5, 6, 4), "float64"),
    "whole": lambda path: dense(path, (3, 5, 6, 7), "uint8"),
    "strips of items": lambda path: ragged(path, 2, 99),
    "tiles of items": lambda path: ragged(path, 4, 3),
}


@pytest.fixture(params=MADE)
def written(request, tmp_path, sizes):
    return MADE[request.param](tmp_path / "a.raw")


def test_any_box_is_read_as_it_was_written(written):
    rng = np.random.default_rng(2)
    for _ in range(60):
        box = written.random_box(rng)
        block = written.read(box)
        assert block.shape == box_shape(box) and block.flags.c_contiguous and block.flags.writeable
        assert block.dtype == written.array.dtype
        assert block.tobytes() == written.part(box).tobytes()


def test_a_read_is_right_or_says_that_it_is_not(written, sizes):
    """Whichever bit of the file or of its sums is another one."""
    rng = np.random.default_rng(3)
    told = 0
    for path in (written.path, written.path.with_suffix(".sums")):
        sound = path.read_bytes()
        for bit in rng.integers(8 * BEFORE * (path == written.path), 8 * len(sound), 60).tolist():
            data = bytearray(sound)
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            box = written.random_box(rng)
            try:
                assert written.read(box).tobytes() == written.part(box).tobytes()
            except DamagedPage:
                told += 1
        path.write_bytes(sound)
    assert told


def test_every_byte_that_is_asked_for_counts(written):
    sound, rng = written.path.read_bytes(), np.random.default_rng(5)
    for number, box in enumerate(written.boxes.tolist()[:3]):
        box = tuple(map(tuple, box))
        first, _, count = next(written.array.runs(box))
        item = np.dtype(written.array.dtype).itemsize
        for byte in BEFORE + first * item + rng.integers(0, count * item, 20):
            data = bytearray(sound)
            data[byte] ^= 1 << byte % 8
            written.path.write_bytes(data)
            with pytest.raises(DamagedPage) as caught:
                written.read(box)
            assert caught.value.block == number


@pytest.mark.parametrize("ending", [".raw", ".sums"])
def test_what_is_cut_off_is_damaged(tmp_path, ending):
    written = MADE["slices"](tmp_path / "a.raw")
    path = tmp_path / f"a{ending}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedPage):
        written.read(tuple(map(tuple, written.boxes[-1].tolist())))


def test_where_no_block_was_written_there_is_nothing(tmp_path):
    whole = np.arange(1, 25, dtype="int16").reshape(4, 6)
    array = Array("a", "yx", whole.shape, "int16")
    written = Written(tmp_path / "a.raw", array, [((0, 2), (0, 6)), ((3, 4), (1, 3))], whole)
    expected = whole.copy()
    expected[2], expected[3, :1], expected[3, 3:] = 0, 0, 0
    assert (written.read(((0, 4), (0, 6))) == expected).all()


def test_reading_takes_little_more_than_what_is_read(tmp_path, monkeypatch):
    """Of a long block only the pages that a box lies in."""
    whole = np.random.default_rng(4).integers(0, 250, (4, 8, 128, 256)).astype("uint8")  # 256 KiB a volume
    written = Written(
        tmp_path / "a.raw",
        Array("a", "vzyx", whole.shape, "uint8"),
        [((0, 4), (0, 8), (0, 128), (0, 256))],
        whole,
    )
    sizes = []
    read_at = RawFile.read_at

    def counting(file, position, data):
        sizes.append(len(data))
        read_at(file, position, data)

    monkeypatch.setattr(RawFile, "read_at", counting)
    for box, most in (
        (((1, 2), (0, 8), (0, 128), (0, 256)), 4 * module.PAGE),
        (((1, 2), (2, 4), (0, 128), (0, 256)), module.PAGE),
        (((1, 2), (3, 5), (1, 128), (0, 256)), 2 * module.PAGE),
        (((0, 4), (3, 4), (0, 1), (0, 256)), 4 * module.PAGE),
    ):
        sizes.clear()
        assert (written.read(box) == whole[box_slices(box)]).all()
        assert sum(sizes) <= most
