"""A folder that is one result, such as a Zarr store: it replaces an older one whole, and nothing else."""

from __future__ import annotations

import dataclasses
import pathlib
from pathlib import Path

import numpy as np
import pytest
from support import toy
from support.ranks import COMM, LAST

from mpiimg.engine import results
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.recipe import Options
from mpiimg.engine.results import verify
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute, Files
from mpiimg.errors import BadInput, RunFailed

pytestmark = pytest.mark.ranks


@pytest.fixture
def out(tmp_path):
    """One folder for all ranks, to be made by the run."""
    return pathlib.Path(COMM.bcast(str(tmp_path))) / "out"


def store(length, hook=toy.nothing, folder="x.store"):
    """A recipe that writes a folder of one file per item, below a folder of every second."""
    array = Array("numbers", "z", (length,), "int64")
    grid = ChunkGrid("z", (length,), (1,))

    def names(number):
        return (f"{folder}/c/{number // 2}/{number}", *((f"{folder}/mark",) if number == 0 else ()))

    def make(chunk):
        return (np.arange(*chunk.bounds["z"]),)

    def write(chunk, where, block):
        hook("store", chunk.number)
        for name in names(chunk.number):
            (where / name).write_bytes(block.tobytes())

    def stages():
        yield Compute("make", grid, writes=(array,), work=make)
        yield Files(
            "store",
            grid,
            reads=(Part(array),),
            work=write,
            names=tuple(name for number in range(length) for name in names(number)),
            of_chunk=names,
            folder=folder,
            marks=("mark", "older-mark"),
        )
        return length

    return toy.recipe("store", stages, length=length)


def go(recipe, out, **fields):
    run(recipe, COMM, Options(**{"out": out, "memory": toy.PLENTY, "timeout": 60.0, **fields}))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(length):
    made = {f"c/{number // 2}/{number}": np.int64(number).tobytes() for number in range(length)}
    return {**made, "mark": np.int64(0).tobytes()}


def on_last(action):
    """Do something on the last rank alone, between runs."""
    COMM.Barrier()
    if COMM.rank == LAST:
        action()
    COMM.Barrier()


def test_of_an_older_folder_nothing_stays(out):
    go(store(9), out)
    assert contents(out / "x.store") == expected(9)
    with pytest.raises(BadInput, match=r"x\.store exists; use --force to overwrite"):
        go(store(4), out)
    go(store(4), out, force=True)
    assert contents(out / "x.store") == expected(4)
    assert list(verify(out / "run-toy.json")) == []
    assert {path.name for path in out.iterdir()} == {"x.store", "run-toy.json", "total.txt", "events-toy"}


def test_a_folder_of_the_same_kind_is_there_though_no_file_has_the_same_name(out):
    on_last(lambda: (out / "x.store").mkdir(parents=True) or (out / "x.store" / "older-mark").touch())
    with pytest.raises(BadInput, match=r"x\.store exists; use --force"):
        go(store(3), out)
    go(store(3), out, force=True)
    assert contents(out / "x.store") == expected(3)


def test_a_folder_lies_where_a_file_was_and_a_file_where_a_folder_was(out):
    """c/1 of the older store is a file; and the store itself may have been one."""
    on_last(lambda: (out / "x.store" / "c").mkdir(parents=True) or (out / "x.store" / "mark").touch())
    on_last((out / "x.store" / "c" / "1").touch)
    go(store(5), out, force=True)
    assert contents(out / "x.store") == expected(5)
    on_last(lambda: Path(out / "x.store").rename(out / "aside") and (out / "x.store").write_text("a file"))
    go(store(5), out, force=True)
    assert contents(out / "x.store") == expected(5)


def test_a_folder_of_other_things_is_not_replaced_by_force(out):
    on_last(lambda: (out / "x.store").mkdir(parents=True) or (out / "x.store" / "photos").touch())
    with pytest.raises(BadInput, match=r"x\.store: is a folder of other things"):
        go(store(3), out, force=True)
    assert list(contents(out / "x.store")) == ["photos"]


def test_a_folder_that_holds_an_input_is_not_replaced(out):
    on_last(lambda: (out / "x.store").mkdir(parents=True) or (out / "x.store" / "mark").touch())
    recipe = dataclasses.replace(store(3), files=(out / "x.store" / "mark",))
    with pytest.raises(BadInput, match=r"x\.store(/mark)?: .*an input"):
        go(recipe, out, force=True)
    assert list(contents(out / "x.store")) == ["mark"]


def test_what_a_run_that_died_had_written_does_not_come_with_the_next_one(out):
    """The first one dies while it publishes, with more files than the second one makes."""

    def die(*_):
        raise OSError("the power is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_move", die)
        with pytest.raises(RunFailed):
            go(store(8), out)
    assert not (out / "x.store").exists()
    go(store(3), out)
    assert contents(out / "x.store") == expected(3)


def test_a_run_that_fails_leaves_the_older_folder(out):
    go(store(4), out)

    def fail(stage, chunk):
        if chunk == 2:
            raise ValueError("no")

    with pytest.raises(RunFailed):
        go(store(6, fail), out, force=True)
    assert contents(out / "x.store") == expected(4)
