"""Whole arrays at the end of a run, from the memory of ranks, from staged files and from inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support import toy
from support.ranks import COMM, LAST
from support.toydomain import numbers

from mpiimg.engine import placed
from mpiimg.engine.array import Array, Ragged
from mpiimg.engine.boxes import ChunkGrid, box_slices
from mpiimg.engine.plan import Resources, min_memory, plan_recipe
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute
from mpiimg.errors import RunFailed

pytestmark = pytest.mark.ranks

WHOLE = np.arange(9 * 40, dtype=np.int32).reshape(9, 40)


@pytest.fixture
def out(tmp_path):
    return Path(COMM.bcast(str(tmp_path))) / "out"


def recipe(kept=(), inputs=()) -> Recipe:
    """Make an array, another that no stage reads, and a single value."""
    made, later = Array("made", "zx", WHOLE.shape, "int32"), Array("later", "zx", WHOLE.shape, "int32")
    value, empty = Array("value", (), (), "float64"), Array("empty", "zx", (9, 0), "int16")

    def stages():
        yield Compute(
            "make",
            made.cut(z=2, x=15),
            writes=(made,),
            work=lambda chunk: (WHOLE[box_slices(chunk.box)],),
            parameters={},
        )
        yield Compute(
            "others",
            made.cut(z=9),
            writes=(value, empty),
            work=lambda chunk: (2.5, np.empty((9, 0))),
            parameters={},
        )
        yield Compute(
            "later",
            made.cut(z=1),
            writes=(later,),
            work=lambda chunk: (-WHOLE[slice(*chunk.bounds["z"])],),
            parameters={},
        )

    return Recipe(
        "toy", "collect", inputs, stages, lambda state: {}, {}, {}, "run-toy.json", kept=frozenset(kept)
    )


@pytest.mark.parametrize("where", ["memory", "files"])
@pytest.mark.parametrize("takers", ["all", "last", "first and last", "last and first"])
def test_a_whole_array_comes_to_those_that_take_it(out, monkeypatch, where, takers):
    monkeypatch.setattr(placed, "PIECE", 28)  # bytes: less than a row
    takers = {
        "all": range(COMM.size),
        "last": [LAST % COMM.size],
        "first and last": [0, COMM.size - 1],
        "last and first": [COMM.size - 1, 0],
    }[takers]
    kept, seen = ("made", "value", "empty"), {}
    memory = toy.PLENTY if where == "memory" else min_memory(recipe(kept))[0]

    def collect(arrays):
        assert arrays.placements["made"].memory == (where == "memory")
        seen.update((name, arrays.whole(name, takers)) for name in (*kept, "later"))

    run(recipe(kept), COMM, Options(out, memory, timeout=60.0), collect=collect)
    if COMM.rank not in takers:
        assert set(seen.values()) == {None}
        return
    assert (seen["made"] == WHOLE).all()
    assert (seen["later"] == -WHOLE).all()
    assert (seen["value"].shape, seen["value"]) == ((), 2.5)
    assert (seen["empty"].shape, seen["empty"].dtype) == ((9, 0), np.int16)
    assert seen["made"].dtype == np.int32


def test_an_input_is_collected_as_well(out):
    path = out.parent / "rows.npy"
    if COMM.rank == 0:
        np.save(path, WHOLE[:4].astype(float))
    COMM.Barrier()  # read only when it is written
    source, seen = numbers(path, "rows", "zx"), []
    with_input = recipe(inputs=(source,))
    run(
        with_input,
        COMM,
        Options(out, toy.PLENTY, timeout=60.0),
        collect=lambda arrays: seen.append(arrays.whole("rows", [0])),
    )
    assert (seen[0] is None) if COMM.rank else (seen[0] == WHOLE[:4]).all()


def test_what_no_stage_reads_is_dropped_unless_it_is_kept(out):
    """And the plan counts it."""
    names = []
    for kept in ((), ("made",)):
        run(
            recipe(kept),
            COMM,
            Options(out, toy.PLENTY, in_memory=True, force=True, timeout=60.0),
            collect=lambda arrays: names.append(set(arrays.placements)),
        )
    assert names == [{"later"}, {"later", "made"}]
    without, with_it = (plan_recipe(recipe(kept), Resources(1, toy.PLENTY)) for kept in ((), ("made",)))
    assert with_it[-1][1].peak - without[-1][1].peak == WHOLE.nbytes


def test_an_error_while_results_are_collected_ends_all_ranks(out):
    def collect(arrays):
        if COMM.rank == COMM.size - 1:
            raise RuntimeError("on purpose")

    with pytest.raises(RunFailed, match=f"rank {COMM.size - 1} .*collecting results:(.|\n)*on purpose"):
        run(recipe(), COMM, Options(out, toy.PLENTY, timeout=60.0), collect=collect)
    run(recipe(), COMM, Options(out, toy.PLENTY, timeout=60.0))  # what was done is marked


def test_items_of_different_shapes_are_no_whole_array(out):
    ragged = Ragged("items", "ex", ((3,), (2,)), "int8")
    grid = ChunkGrid("e", (2,), (1,))

    def stages():
        yield Compute(
            "make",
            grid,
            writes=(ragged,),
            work=lambda chunk: (np.zeros((1, 3 - chunk.number)),),
            parameters={},
        )

    with pytest.raises(RunFailed, match="items of different shapes"):
        run(
            dataclasses.replace(recipe(), stages=stages),
            COMM,
            Options(out, toy.PLENTY, timeout=60.0),
            collect=lambda arrays: arrays.whole("items", [0]),
        )
