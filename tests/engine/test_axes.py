"""Axes by name: given as letters, as words or as a tuple, and said again in one text."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpiimg.engine.array import Array, Packing, Ragged
from mpiimg.engine.axes import axes_text, named_axes
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Chunk, Part
from mpiimg.engine.stage import Compute, Reduce

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=6)


@given(st.lists(NAMES, unique=True, max_size=5))
@settings(max_examples=200, deadline=None, derandomize=True)
@example(["time"])
@example(["t", "#", "yy"])
def test_the_text_of_axes_gives_the_same_axes(names):
    assert named_axes(axes_text(names)) == named_axes(names) == tuple(names)


@pytest.mark.parametrize(
    ("given", "names"),
    [("tyx", ("t", "y", "x")), ("time y x", ("time", "y", "x")), (["z-step", "#"], ("z-step", "#"))],
)
def test_axes_are_a_tuple_of_names_whatever_they_were(given, names):
    shape = (4, 5, 6)[: len(names)]
    array = Array("a", given, shape, "uint8")
    assert array.axes == Array("a", names, shape, "uint8").axes == names
    assert Ragged("r", given, (shape[1:],), "uint8").axes == names
    assert ChunkGrid(given, shape, shape).axes == names
    assert Chunk(0, given, array.part({})).bounds == dict(zip(names, array.part({}), strict=True))
    assert pickle.loads(pickle.dumps(array)) == array
    assert hash(array) == hash(Array("a", names, shape, "uint8"))


def test_axes_of_any_name_are_cut_copied_and_read_with_a_halo():
    array = Array("a", "time-step y x", (4, 9, 6), "uint8")
    grid = array.cut({"time-step": 1}, y=4)
    assert grid == ChunkGrid(("time-step", "y"), (4, 9), (1, 4))
    assert array.like("b", ("y", "time-step"), "int8") == Array("b", "y time-step", (9, 4), "int8")
    chunk = Compute("s", grid, writes=(array,), work=tuple).chunk(4)
    assert chunk.bounds == {"time-step": (1, 2), "y": (4, 8)}
    assert Part(array, {"y": 2, "time-step": 3}).boxes(chunk) == (((0, 4), (2, 9), (0, 6)),)
    packed = Array("p", ("voxel", "c"), (7, 2), "uint8", Packing("voxel", "time-step", (0, 1, 4, 6, 7)))
    assert Part(packed).boxes(chunk) == (((1, 4), (0, 2)),)


def test_one_name_of_one_array_is_not_taken_for_letters_of_another():
    """A grid over "xy" cuts no array with the axes x and y."""
    array = Array("a", "xy", (4, 5), "uint8")
    assert array.part({"xy": (0, 1)}) == ((0, 4), (0, 5))
    with pytest.raises(ValueError, match="has axes 'xy', and not 'xy'"):
        array.cut({"xy": 1})


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        ("yxy", "array a: axes 'yxy': 'y' comes twice"),
        ("time y time", "array a: axes 'time y time': 'time' comes twice"),
        (("a b", "c", "d"), "'a b' is no name of an axis"),
        (("", "c", "d"), "'' is no name of an axis"),
        ((0, 1, 2), "0 is no name of an axis"),
        ("y", "array a: axes 'y' and shape .* do not fit"),
    ],
)
def test_what_names_no_axes_is_refused(axes, problem):
    with pytest.raises(ValueError, match=problem):
        Array("a", axes, (2, 2, 2), "uint8")


@pytest.mark.parametrize("axes", ["yxy", "time y time", ("y", "")])
def test_items_and_grids_refuse_them_too(axes):
    with pytest.raises(ValueError, match="array r: axes"):
        Ragged("r", axes, ((2, 2),), "uint8")
    with pytest.raises(ValueError, match="axes"):
        ChunkGrid(axes, (2, 2, 2), (1, 1, 1))


def test_a_grid_that_cuts_no_axis_is_one_chunk():
    grid = ChunkGrid((), (), ())
    assert (len(grid), grid.bounds(0)) == (1, ())
    value = Array("a", (), (), "float64")
    assert (value.nbytes, value.part({}), value.cut({})) == (8, (), grid)
    with pytest.raises(ValueError, match="array r: the items"):
        Ragged("r", (), (), "uint8")


def test_rows_of_a_reduction_may_have_any_number_of_axes():
    stage = Reduce("r", ChunkGrid("z", (3,), (1,)), work=list, row=((1,) * 12, "uint8"))
    assert stage.rows.shape == (3, *(1,) * 12)
