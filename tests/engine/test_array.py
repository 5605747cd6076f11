"""Arrays: which items of a file a box is made of, what belongs to a chunk, against plain counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mpiimg.engine.array import Array, Packing, Ragged, dense_runs
from mpiimg.engine.boxes import ChunkGrid, box_shape, box_size, box_slices

SHAPES = [(), (1,), (4,), (3, 2), (1, 3), (2, 3, 2), (3, 1, 2), (2, 1, 1, 3)]

#: Items of all kinds: without rows, without pixels in a row, of one pixel.
ITEMS = ((3, 4), (0, 2), (1, 1), (5, 2), (2, 0), (1, 5), (4, 3))


def every_box(shape):
    """All boxes of an array, empty ones among them."""
    ends = [list(itertools.combinations_with_replacement(range(n + 1), 2)) for n in shape]
    return itertools.product(*ends)


def check_runs(numbers, box, runs):
    """The runs are what `numbers`, (...), each item's place in storage, has in the box, in its order."""
    places = []
    for first, place, count in runs:
        assert place == len(places)
        places += range(first, first + count)
    assert places == numbers[box_slices(box)].ravel().tolist()


# Runs.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_runs_of_a_dense_array_are_its_items_in_c_order(shape):
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    array = Array("a", "vzyx"[: len(shape)], shape, "uint8")
    for box in every_box(shape):
        check_runs(numbers, box, dense_runs(shape, box))
        assert list(array.runs(box)) == list(dense_runs(shape, box))


def test_what_lies_in_one_piece_is_one_run():
    """The whole, whole slices, rows of one slice, pixels of one row."""
    shape = (4, 3, 5)
    for box, first in (
        (((0, 4), (0, 3), (0, 5)), 0),
        (((1, 3), (0, 3), (0, 5)), 15),
        (((2, 3), (1, 3), (0, 5)), 35),
        (((2, 3), (1, 2), (2, 4)), 37),
    ):
        assert list(dense_runs(shape, box)) == [(first, 0, box_size(box))]
    assert len(list(dense_runs(shape, ((0, 4), (0, 2), (0, 5))))) == 4
    assert len(list(dense_runs(shape, ((0, 4), (0, 3), (0, 4))))) == 12


def test_runs_of_a_ragged_array_are_those_of_its_items_end_to_end():
    array = Ragged("r", "eyx", ITEMS, "float32")
    start = 0
    for number, shape in enumerate(ITEMS):
        numbers = start + np.arange(int(np.prod(shape))).reshape(shape)
        for box in every_box(shape):
            check_runs(numbers, box, array.runs(((number, number + 1), *box)))
        start += numbers.size
    assert array.starts[-1] == start


def test_a_whole_item_and_its_whole_rows_are_one_run():
    array = Ragged("r", "eyx", ITEMS, "float32")
    assert list(array.runs(array.item(3))) == [(12 + 1, 0, 10)]
    assert list(array.runs(((3, 4), (2, 4), (0, 2)))) == [(13 + 4, 0, 4)]
    assert len(list(array.runs(((0, 1), (0, 3), (1, 4))))) == 3


# Sizes.


def test_bytes_and_shape_in_a_file():
    array = Ragged("r", "eyx", ITEMS, "float32")
    assert array.starts == (0, 12, 12, 13, 23, 23, 28, 40)
    assert (array.nbytes, array.stored_shape) == (160, (40,))
    dense = Array("a", "zx", (3, 5), "int16")
    assert (dense.nbytes, dense.stored_shape) == (30, (3, 5))
    assert Ragged("r", "eyx", (), "float32").nbytes == 0


def test_the_box_of_an_item_is_the_whole_of_it():
    array = Ragged("r", "eyx", ITEMS, "float32")
    for number, shape in enumerate(ITEMS):
        assert box_shape(array.item(number)) == (1, *shape)
        assert array.item(number)[0] == (number, number + 1)


def test_items_with_other_axes_are_refused():
    with pytest.raises(ValueError, match="array r: the items do not have axes 'yx'"):
        Ragged("r", "eyx", ((3, 4), (3,)), "float32")


def test_an_array_whose_axes_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Array("a", "zyx", (3, 4), "uint8")


# What belongs to a chunk.


@pytest.mark.parametrize("halo", [0, 1, 2, 9])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_halo_is_clipped_at_the_item(halo, rows):
    """The rows of a strip and those around it, of its own item alone; none behind the end of a short item."""
    array = Ragged("r", "eyx", ITEMS, "float32")
    grid = ChunkGrid("ey", (len(ITEMS), 5), (1, rows))
    seen = [0] * len(ITEMS)
    for number in range(len(grid)):
        (item, _), (start, stop) = grid.bounds(number)
        height, width = ITEMS[item]
        strip = [y for y in range(start, stop) if y < height]
        near = {y for own in strip for y in range(own - halo, own + halo + 1)} & set(range(height))
        box = array.part(dict(zip("ey", grid.bounds(number), strict=True)), {"y": halo})
        assert box[0] == (item, item + 1)
        assert 0 <= box[1][0] <= box[1][1] <= height
        assert set(range(*box[1])) == near
        assert box[2] == (0, width)
        seen[item] += len(strip)
    assert seen == [height for height, _ in ITEMS]


def test_parts_without_a_halo_tile_a_ragged_array():
    """Cut along both axes of the items, each pixel is in one part."""
    array = Ragged("r", "eyx", ITEMS, "float32")
    grid = ChunkGrid("eyx", (len(ITEMS), 5, 5), (1, 2, 3))
    flat = np.zeros(array.starts[-1], int)
    for number in range(len(grid)):
        box = array.part(dict(zip("eyx", grid.bounds(number), strict=True)))
        for first, _, count in array.runs(box):
            flat[first : first + count] += 1
    assert (flat == 1).all()


def test_an_item_is_whole_along_axes_that_the_chunk_does_not_cut():
    array = Ragged("r", "eyx", ITEMS, "float32")
    assert array.part({"e": (3, 4)}, {"y": 2}) == array.item(3)
    assert array.part({"e": (3, 4), "z": (1, 2)}) == array.item(3)


@pytest.mark.parametrize("bounds", [{"e": (0, 2)}, {"e": (3, 3)}, {"y": (0, 2)}, {}])
def test_a_chunk_of_several_items_is_refused(bounds):
    with pytest.raises(ValueError, match="array r: a chunk has one item along 'e'"):
        Ragged("r", "eyx", ITEMS, "float32").part(bounds)


def test_the_only_item_needs_no_axis():
    assert Ragged("r", "eyx", ((3, 4),), "float32").part({}) == ((0, 1), (0, 3), (0, 4))


# Packing.


def packed_slices(offsets, box):
    """The slices whose voxels a box has, all of each."""
    _, (start, stop) = box
    return {z for z in range(len(offsets) - 1) if offsets[z] < offsets[z + 1] and start <= offsets[z] < stop}


@pytest.mark.parametrize("halo", [0, 1, 3, 20])
def test_packed_voxels_are_those_of_the_slices_and_their_halo(halo):
    """Slices without a voxel among them, at the ends too."""
    counts = (0, 3, 0, 7, 10, 1, 0, 0)
    offsets = tuple(np.cumsum([0, *counts]).tolist())
    array = Array("maps", "cn", (2, offsets[-1]), "float32", Packing("n", "z", offsets))
    for thickness in range(1, 9):
        grid = ChunkGrid("z", (8,), (thickness,))
        for number in range(len(grid)):
            ((start, stop),) = grid.bounds(number)
            near = {z for own in range(start, stop) for z in range(own - halo, own + halo + 1)}
            box = array.part({"z": (start, stop)}, {"z": halo} if halo else None)
            assert box[0] == (0, 2)
            expected = {z for z in near if 0 <= z < 8 and counts[z]}
            assert packed_slices(offsets, box) == expected
            assert box[1][1] - box[1][0] == sum(counts[z] for z in expected)


def test_packed_voxels_are_all_there_where_the_chunk_has_no_slices():
    array = Array("maps", "cn", (2, 5), "float32", Packing("n", "z", (0, 2, 5)))
    assert array.part({"c": (1, 2)}) == ((1, 2), (0, 5))
