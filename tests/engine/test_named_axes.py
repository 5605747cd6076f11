"""A run over axes of any names, one array of which has none."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support import toy
from support.ranks import COMM

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute, Found, Reduce
from mpiimg.engine.stores import StagedStore

pytestmark = pytest.mark.ranks

WHOLE = np.arange(5 * 7, dtype=np.float64).reshape(5, 7)


def made(seen: list) -> Recipe:
    """Make an image by words, sum it to a single value, subtract that, and let rank 0 see the rest."""
    image = Array("image", "time-step row", WHOLE.shape, "float64")
    total, rest = Array("total", (), (), "float64"), image.like("rest")
    grid = image.cut({"time-step": 2, "row": 3})

    def fill(chunk):
        return (WHOLE[tuple(slice(*chunk.bounds[axis]) for axis in image.axes)],)

    def stages():
        yield Compute("fill", grid, writes=(image,), work=fill, parameters={})
        yield Compute(
            "sum",
            ChunkGrid((), (), ()),
            reads=(Part(image),),
            writes=(total,),
            work=lambda chunk, block: (block.sum(),),
            parameters={},
        )
        yield Compute(
            "subtract",
            grid,
            reads=(Part(image), Part(total)),
            writes=(rest,),
            work=lambda chunk, block, value: (block - value,),
            parameters={},
        )
        seen.append(
            (
                yield Reduce(
                    "see",
                    image.cut({"time-step": 2}),
                    reads=(Part(rest, {"time-step": 9}),),
                    work=lambda chunk, block: block,
                    row=(WHOLE.shape, "float64"),
                    finish=lambda rows: Found(rows.copy()),
                    parameters={},
                )
            )
        )

    return Recipe("toy", "named", (), stages, lambda state: {}, {}, {}, "run-toy.json")


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
def test_axes_of_any_names_and_none(tmp_path, in_memory):
    out, seen = Path(COMM.bcast(str(tmp_path))) / "out", []
    run(made(seen), COMM, Options(out, toy.PLENTY, in_memory=in_memory, keep_work=True, timeout=60.0))
    assert (seen[-1] == WHOLE - WHOLE.sum()).all()
    if not in_memory:
        with h5py.File(out / "work" / "named.toy" / "image.h5", "r", locking=False) as file:
            assert file["data"].attrs["axes"] == "time-step row"


def test_a_single_value_is_staged(tmp_path):
    store = StagedStore(Path(COMM.bcast(str(tmp_path))), COMM)
    store.create(Array("value", (), (), "float64"), np.zeros((1, 0, 2), np.int64), np.array([COMM.size - 1]))
    if COMM.rank == COMM.size - 1:
        store.write("value", 0, np.array(2.5))
    store.share()
    COMM.Barrier()  # read only when it is written
    value = store.read_box("value", ())
    assert (value.shape, value) == ((), 2.5)
    store.close()
