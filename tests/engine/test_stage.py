"""Stages as declared: which boxes a chunk reads and fills, mirrored edges, rows of a reduce."""

from __future__ import annotations

import numpy as np
import pytest

from mpiimg.engine.array import Array, Packing
from mpiimg.engine.blocks import BlockTable
from mpiimg.engine.boxes import ChunkGrid, box_slices
from mpiimg.engine.executor import _row as row_of
from mpiimg.engine.halo import extended, reflect
from mpiimg.engine.needs import Part, Pieces, Rows
from mpiimg.engine.stage import Compute, Found, Reduce

GRID = ChunkGrid("z", (10,), (4,))
VOLUMES = Array("dwi", "vzx", (6, 10, 3), "int16")


def stage(**fields):
    return Compute("toy", fields.pop("grid", GRID), **{"writes": (), "work": lambda chunk: (), **fields})


def output_boxes(stage, array):
    """The boxes that the chunks of a stage write of an array, (chunks, axes, 2)."""
    (output,) = [output for output in stage.targets if output.array == array]
    return BlockTable(output, stage.grid).boxes


@pytest.mark.parametrize("edge", [True, False])
def test_reflect_is_numpys_padding(edge):
    """Any number of times over, for arrays shorter than the halo too."""
    mode = "symmetric" if edge else "reflect"
    for length in range(1, 7):
        for halo in range(16):
            expected = np.pad(np.arange(length), halo, mode=mode)
            assert (reflect(-halo, length + halo, length, edge) == expected).all()


@pytest.mark.parametrize("edge", [True, False])
def test_extended_blocks_are_cuts_of_the_padded_array(edge):
    rng = np.random.default_rng(0)
    for length in (1, 2, 5, 9):
        array = rng.normal(size=(length, 3))
        grid = ChunkGrid("z", (length,), (2,))
        for halo in (0, 1, 3, 7):
            padded = np.pad(array, ((halo, halo), (0, 0)), mode="symmetric" if edge else "reflect")
            need = Part(Array("a", "zx", array.shape, "float64"), {"z": halo})
            for number in range(len(grid)):
                chunk = stage(grid=grid).chunk(number)
                (box,) = need.boxes(chunk)
                start, stop = chunk.bounds["z"]
                block = extended(array[box_slices(box)], (start, stop), halo, length, edge)
                assert (block == padded[start : stop + 2 * halo]).all()


def test_a_need_is_whole_along_axes_that_the_chunk_does_not_cut():
    assert Part(VOLUMES).boxes(stage().chunk(2)) == (((0, 6), (8, 10), (0, 3)),)
    assert Part(VOLUMES, {"z": 3}).boxes(stage().chunk(2)) == (((0, 6), (5, 10), (0, 3)),)


def test_rows_are_read_as_runs_and_joined():
    need = Rows(VOLUMES, (0, 1, 4))
    boxes = need.boxes(stage().chunk(1))
    assert boxes == (((0, 2), (4, 8), (0, 3)), ((4, 5), (4, 8), (0, 3)))
    whole = np.random.default_rng(0).integers(0, 99, VOLUMES.shape)
    assert (need.join([whole[box_slices(box)] for box in boxes]) == whole[[0, 1, 4], 4:8]).all()


def test_masked_voxels_follow_their_slices():
    offsets = (0, 0, 3, 3, 10, 20, 30, 40, 45, 50, 50)
    packed = Array("packed", "vn", (6, 50), "float32", Packing("n", "z", offsets))
    need = Part(packed)
    assert [need.boxes(stage().chunk(n))[0][1] for n in range(3)] == [(0, 10), (10, 45), (45, 50)]
    boxes = output_boxes(stage(writes=(packed,)), packed)
    assert boxes[:, 1].tolist() == [[0, 10], [10, 45], [45, 50]]
    assert boxes[:, 0].tolist() == [[0, 6]] * 3


def test_pieces_come_as_a_list_of_blocks():
    boxes = (((0, 2),), ((5, 9),))
    need = Pieces(Array("flat", "n", (9,), "uint8"), lambda chunk: boxes)
    assert need.boxes(stage().chunk(0)) == boxes
    blocks = [np.zeros(2), np.ones(4)]
    assert need.join(blocks) is blocks


def test_a_chunk_names_its_bounds():
    grid = ChunkGrid("vz", (2, 10), (1, 4))
    chunk = stage(grid=grid).chunk(4)
    assert chunk.number == 4
    assert chunk.bounds == {"v": (1, 2), "z": (4, 8)}


def test_a_reduce_has_one_row_per_chunk():
    made = Reduce(
        "sums",
        GRID,
        reads=(Part(VOLUMES),),
        work=lambda chunk, block: (block.sum(), 1),
        row=((2,), "int64"),
        finish=Found,
    )
    (array,) = made.arrays
    assert array.shape == (3, 2)
    assert output_boxes(made, array)[:, 0].tolist() == [[0, 1], [1, 2], [2, 3]]
    row = row_of(made, made.work(made.chunk(1), np.full((6, 4, 3), 2)))
    assert row.tolist() == [[144, 1]]
    assert row.dtype == np.int64
