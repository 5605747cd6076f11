"""Boxes of an array in a file against numpy, in both byte orders."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

from mpiimg.engine.boxes import box_shape, box_slices
from mpiimg.engine.raw import RawFile, write_fully

SHAPES = [(7,), (1,), (5, 6), (4, 1, 3), (3, 4, 5), (2, 3, 4, 5), (3, 1, 1, 4)]


def boxes_in(shape, rng, count=40):
    """Random boxes, empty and whole axes among them, and the whole array."""
    yield tuple((0, n) for n in shape)
    for _ in range(count):
        ends = [sorted(rng.integers(0, n + 1, 2).tolist()) for n in shape]
        whole = rng.random(len(shape)) < 0.4
        yield tuple((0, n) if w else (a, b) for n, w, (a, b) in zip(shape, whole, ends, strict=True))


@pytest.fixture(params=itertools.product(SHAPES, "<>"), ids=lambda p: f"{'x'.join(map(str, p[0]))}{p[1]}")
def array(request):
    shape, order = request.param
    rng = np.random.default_rng(len(shape))
    dtype = np.dtype(rng.choice(["i2", "u2", "f4", "f8", "u1"])).newbyteorder(order)
    return rng.integers(0, 250, shape).astype(dtype)


@pytest.fixture
def path(tmp_path, array):
    """`array` in a file behind 13 bytes of header, and 9 bytes of something else."""
    path = tmp_path / "raw"
    path.write_bytes(b"h" * 13 + array.tobytes() + b"t" * 9)
    return path


def test_reads_what_numpy_slices(path, array):
    file = RawFile(path, 13, array.shape, array.dtype)
    for box in boxes_in(array.shape, np.random.default_rng(1)):
        block = file.read(box)
        assert block.dtype == array.dtype.newbyteorder("=")
        assert block.dtype.isnative
        assert block.flags.c_contiguous
        assert block.shape == box_shape(box)
        assert (block == array[box_slices(box)]).all()
    file.close()


def test_writes_where_numpy_would(path, array):
    rng = np.random.default_rng(2)
    file = RawFile(path, 13, array.shape, array.dtype, writable=True)
    expected = array.copy()
    for box in boxes_in(array.shape, rng):
        block = rng.integers(0, 250, box_shape(box)).astype(array.dtype.newbyteorder("="))
        # Also from arrays that are not contiguous: a block is written in C order of its values.
        file.write(box, np.asfortranarray(block))
        expected[box_slices(box)] = block
    file.sync()
    file.close()
    assert path.read_bytes() == b"h" * 13 + expected.tobytes() + b"t" * 9


def test_a_file_that_ends_early_says_so(tmp_path):
    array = np.arange(24, dtype="<i4").reshape(4, 6)
    path = tmp_path / "short"
    path.write_bytes(array.tobytes()[:-5])
    file = RawFile(path, 0, array.shape, array.dtype)
    assert (file.read(((0, 3), (0, 6))) == array[:3]).all()
    with pytest.raises(OSError, match=r"short ends at byte 91, before the array in it does"):
        file.read(((2, 4), (0, 6)))
    with pytest.raises(OSError, match="ends at byte"):
        file.read(((0, 4), (5, 6)))
    file.close()


def test_writes_continue_after_a_short_one(tmp_path, monkeypatch):
    """The system may write less than it was given; so it may read."""
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: preadv(fd, [into[0][:5]], at))
    path = tmp_path / "raw"
    path.write_bytes(bytes(100))
    array = np.arange(25, dtype="<i4")
    file = RawFile(path, 0, (25,), array.dtype, writable=True)
    file.write(((0, 25),), array)
    assert (file.read(((3, 20),)) == array[3:20]).all()
    file.close()
    assert path.read_bytes() == array.tobytes()
    with open(path, "r+b") as plain:
        write_fully(plain.fileno(), b"0123456789", 90)
    assert path.read_bytes()[88:] == array.tobytes()[88:90] + b"0123456789"


def test_an_array_beyond_4_gib(tmp_path):
    """Positions need more than 32 bits; the file is sparse."""
    shape = (3, 1 << 16, 1 << 15)
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 2 * int(np.prod(shape, dtype=np.int64)))
    file = RawFile(path, 0, shape, "uint16", writable=True)
    box = ((2, 3), (65530, 65534), (32000, 32003))
    block = np.arange(12, dtype="uint16").reshape(1, 4, 3)
    file.write(box, block)
    assert (file.read(box) == block).all()
    with open(path, "rb") as plain:
        plain.seek(2 * ((2 << 31) + (65531 << 15) + 32000))
        assert plain.read(6) == block[0, 1].tobytes()
    file.close()


def test_closing_twice_does_no_harm(tmp_path):
    path = tmp_path / "raw"
    path.write_bytes(bytes(8))
    file = RawFile(path, 0, (8,), "uint8")
    file.close()
    file.close()
