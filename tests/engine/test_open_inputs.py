"""Many inputs, of which few are open at a time."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support import toy
from support.ranks import COMM

from mpiimg.engine import open_inputs
from mpiimg.engine.array import Array
from mpiimg.engine.needs import Part
from mpiimg.engine.open_inputs import OpenInputs
from mpiimg.engine.raw import RawFile
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute
from mpiimg.errors import RunFailed

pytestmark = pytest.mark.ranks

COUNT, LENGTH = 288, 5


@dataclass(frozen=True)
class Numbers:
    """Numbers in a file without a header."""

    array: Array
    path: Path
    identity: int

    sample = 0
    parallel = True

    @property
    def files(self):
        return (self.path,)

    def open(self):
        return RawFile(self.path, 0, self.array.shape, self.array.dtype)


@pytest.fixture
def folder(tmp_path):
    """A folder of many small files."""
    folder = Path(COMM.bcast(str(tmp_path)))
    if COMM.rank == 0:
        for number in range(COUNT):
            (number + np.arange(LENGTH, dtype="float64")).tofile(folder / f"{number}.raw")
    COMM.Barrier()  # read only when they are written
    return folder


@pytest.fixture
def few_files():
    """No more than 60 files beside those that are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def inputs_in(folder):
    return tuple(
        Numbers(Array(f"in-{number}", "n", (LENGTH,), "float64"), folder / f"{number}.raw", number)
        for number in range(COUNT)
    )


def recipe_of(inputs) -> Recipe:
    """Add up all inputs, item by item."""
    total = Array("total", "n", (LENGTH,), "float64")

    def stages():
        yield Compute(
            "add",
            total.cut(n=2),
            reads=tuple(Part(source.array) for source in inputs),
            writes=(total,),
            work=lambda chunk, *blocks: (np.sum(blocks, axis=0),),
            parameters={},
        )

    return Recipe("toy", "many", inputs, stages, lambda state: {}, {}, {}, "run-toy.json")


def test_many_inputs_are_read_with_few_files_open(folder, few_files):
    recipe, seen = recipe_of(inputs_in(folder)), []
    run(
        recipe,
        COMM,
        Options(folder / "out", toy.PLENTY, timeout=60.0),
        collect=lambda arrays: seen.append(arrays.whole("total", range(COMM.size))),
    )
    assert (seen[0] == COUNT * (COUNT - 1) / 2 + COUNT * np.arange(LENGTH)).all()


def test_an_input_that_is_gone_ends_all_ranks_and_is_named(folder):
    recipe = recipe_of(inputs_in(folder))
    if COMM.rank == 0:
        (folder / "7.raw").rename(folder / "moved")
    COMM.Barrier()  # gone for all
    with pytest.raises(RunFailed, match=r"7\.raw"):
        run(recipe, COMM, Options(folder / "out", toy.PLENTY, timeout=60.0))


def test_what_was_read_last_stays_open(folder, monkeypatch):
    monkeypatch.setattr(open_inputs, "MOST_OPEN", 2)
    opened, inputs = [], inputs_in(folder)[:3]
    plain = Numbers.open
    monkeypatch.setattr(Numbers, "open", lambda self: opened.append(self.identity) or plain(self))
    files = OpenInputs(inputs)
    before = len(os.listdir("/proc/self/fd"))
    for number in (0, 1, 0, 2, 0, 1, 1):
        assert files.read(f"in-{number}", ((1, 3),)).tolist() == [number + 1, number + 2]
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert opened == [0, 1, 2, 1]
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert files.read("in-2", ((0, 1),)).tolist() == [2]
    files.close()
