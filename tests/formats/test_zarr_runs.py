"""Zarr and TIFF written and read in runs: the same bytes on any ranks, and those of one process alone."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
import zarr
from support import toy
from support.peers import numbers, write_alone
from support.ranks import COMM

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import box_slices
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.needs import Part
from mpiimg.engine.recipe import Options
from mpiimg.engine.results import verify
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute
from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.zarr import writing

pytestmark = pytest.mark.ranks

VALUES = numbers("float32", (3, 9, 10, 11))

AXES = ("t", "z", "y", "x")

NAMES = ("x.zarr", "below/x.ome.zarr", "x.tif", "x.ome.tif")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One folder for all ranks; shards are small."""
    monkeypatch.setattr(writing, "CHUNK_BYTES", 500)
    monkeypatch.setattr(writing, "MIN_SHARD", 2000)
    return pathlib.Path(COMM.bcast(str(tmp_path)))


def written(values, names, inputs=()):
    """A recipe that writes an array, which is made or read, to files of several formats."""
    array = Array("values", AXES, VALUES.shape, "float32")

    def make(chunk):
        return (values[box_slices(array.part(chunk.bounds))],)

    def copy(chunk, block):
        return (block,)

    def stages():
        reads = tuple(Part(source.array) for source in inputs)
        yield Compute("make", array.cut(z=2), reads=reads, writes=(array,), work=copy if inputs else make)
        for name in names:
            yield registry.write(name, array)

    return dataclasses.replace(toy.recipe("write", stages), inputs=inputs)


def go(recipe, out, **fields):
    run(recipe, COMM, Options(**{"out": out, "memory": toy.PLENTY, "timeout": 60.0, **fields}))


def contents(path):
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    return {str(one.relative_to(path.parent)): one.read_bytes() for one in files}


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
def test_all_ranks_write_what_one_process_writes(in_memory, folder):
    go(written(VALUES, NAMES), folder / "out", in_memory=in_memory)
    assert list(verify(folder / "out" / "run-toy.json")) == []
    on_root(COMM, lambda: (folder / "alone" / "below").mkdir(parents=True))
    for name in NAMES:
        path = on_root(COMM, write_alone, folder / "alone", name, VALUES, AXES)
        assert contents(folder / "out" / name) == contents(path)
    assert len(contents(folder / "out" / "x.zarr")) > 4


def test_several_arrays_of_one_run_make_a_group(folder):
    names = ("x.zarr/a", "x.zarr:/below/b", "y.ome.zarr/c")
    go(written(VALUES, names), folder / "out")
    assert list(verify(folder / "out" / "run-toy.json")) == []
    for name in names:
        read = (
            registry.read(f"{folder / 'out'}/{name}", "read").open().read(tuple((0, n) for n in VALUES.shape))
        )
        np.testing.assert_array_equal(read, VALUES)
    group = zarr.open_group(folder / "out" / "x.zarr", mode="r")
    assert sorted(name for name, _ in group.members(max_depth=None)) == ["a", "below", "below/b"]


@pytest.mark.parametrize(
    "names", [("x.zarr", "x.zarr/a"), ("x.zarr/a", "x.zarr:/a"), ("x.zarr/a", "x.zarr/a/b")]
)
def test_two_results_of_one_place_are_refused(names, folder):
    with pytest.raises(BadInput, match=r"zarr\.json: two results would have this file"):
        go(written(VALUES, names), folder / "out")


def test_a_smaller_array_over_a_larger_one_leaves_no_shard_of_it(folder, monkeypatch):
    out = folder / "out"
    go(written(VALUES, ("x.zarr",)), out)
    before = set(contents(out / "x.zarr"))
    monkeypatch.setattr(writing, "MIN_SHARD", 8000)
    go(written(VALUES, ("x.zarr",)), out, force=True)
    after = contents(out / "x.zarr")
    assert len(after) < len(before)
    read = registry.read(out / "x.zarr", "read").open().read(tuple((0, n) for n in VALUES.shape))
    np.testing.assert_array_equal(read, VALUES)


@pytest.mark.parametrize("name", NAMES)
def test_all_ranks_read_their_own_parts(name, folder):
    go(written(VALUES, (name,)), folder / "first")
    source = on_root(COMM, registry.read, folder / "first" / name, "read")
    go(written(None, (name,), inputs=(source,)), folder / "second")
    assert contents(folder / "second" / name) == contents(folder / "first" / name)
