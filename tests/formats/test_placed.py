"""Files that all ranks fill: the bytes that one process alone makes, whatever comes between."""

from __future__ import annotations

import errno
import json
import os
import pathlib

import h5py
import numpy as np
import pytest
from support import toy
from support.peers import do, read_in_boxes
from support.ranks import COMM

from mpiimg.engine import raw
from mpiimg.engine.array import Array
from mpiimg.engine.recipe import Options
from mpiimg.engine.results import verify
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute
from mpiimg.errors import RunFailed, RunStopped
from mpiimg.formats import interface, registry
from mpiimg.formats.space import Affine, Wcs

pytestmark = pytest.mark.ranks

SHAPE = (5, 4, 6)
VALUES = np.arange(120, dtype=np.float32).reshape(SHAPE) / 7

FILES = ("a.npy", "b.nii", "c.nii.gz", "d.fits", "e.fits.gz", "f.h5:/one", "f.h5:/below/two", "below/g.npy")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of some bytes, more than ranks in some files, and fewer in others."""
    monkeypatch.setattr(interface, "CHUNK_BYTES", 100)


@pytest.fixture
def out(tmp_path):
    """One folder for all ranks, to be made by the run."""
    return pathlib.Path(COMM.bcast(str(tmp_path))) / "out"


def sinks(array):
    """Return the stages that write the array to all files."""
    spaces = {
        "b.nii": Affine(("x", "y", "z"), np.diag([2, 3, 4, 1.0]), codes=(0, 1)),
        "d.fits": Wcs(("x", "y"), "CTYPE1  = 'RA---TAN'\nCTYPE2  = 'DEC--TAN'"),
    }
    return [registry.write(name, array, space=spaces.get(name)) for name in FILES]


def pipeline(hook=toy.nothing, files=slice(None), more=()):
    """A run that makes an array in slices, and writes it to all files, and to more."""
    array = Array("values", ("z", "y", "x"), SHAPE, "float32")

    def make(chunk):
        hook("make", chunk.number)
        return (VALUES[slice(*chunk.bounds["z"])],)

    def stages():
        yield Compute("make", array.cut(z=2), writes=(array,), work=make, parameters={})
        yield from sinks(array)[files]
        yield from (registry.write(name, array) for name in more)
        return 0

    return toy.recipe("placed", stages)


def go(out, **options):
    run(pipeline(**options), COMM, Options(out=out, memory=toy.PLENTY, timeout=60.0))


@pytest.fixture
def alone(tmp_path):
    """What one process makes, in a folder of each rank."""
    folder = tmp_path / f"alone-{COMM.rank}"
    (folder / "below").mkdir(parents=True)
    for stage in sinks(Array("values", ("z", "y", "x"), SHAPE, "float32")):
        do(folder, stage, VALUES, further=(folder / stage.file).exists())
    return contents(folder)


def contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and "events" not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def check(out, alone):
    found = contents(out)
    assert {name for name in found if found[name] != alone.get(name)} == {"run-toy.json", "total.txt"}
    assert set(alone) < set(found)
    said = json.loads(found["run-toy.json"])["outputs"]
    assert set(said) == {*alone, "total.txt"}
    assert list(verify(out / "run-toy.json")) == []


def test_any_ranks_make_the_bytes_of_one(out, alone):
    go(out)
    check(out, alone)
    for name in FILES:
        np.testing.assert_array_equal(read_in_boxes(out / name)[0].ravel("K"), VALUES.ravel())
    with h5py.File(out / "f.h5", locking=False) as file:
        assert [label.label for label in file["below/two"].dims] == ["z", "y", "x"]


def test_a_run_that_was_stopped_writes_all_again(out, alone):
    """Of what it left, longer files too, nothing stays."""

    def stop(stage, chunk):
        raise RunStopped

    with pytest.raises((RunFailed, RunStopped)):
        go(out, hook=stop)
    if COMM.rank == 0:
        for name in {name.partition(":")[0] for name in FILES}:
            (out / "work/placed.toy/outputs" / name).write_bytes(b"of another run" * 1000)
    COMM.Barrier()  # all go on from what rank 0 has left there
    go(out)
    check(out, alone)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_takes_no_more_is_said_in_one_line(number, out, alone, monkeypatch):
    def full(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(raw, "write_fully", full)
        with pytest.raises(RunFailed) as failed:
            run(
                pipeline(files=slice(0, 2)),
                COMM,
                Options(out=out, memory=toy.PLENTY, timeout=60.0, in_memory=True),
            )
    said = str(failed.value)
    assert "\n" not in said and f"a.npy: {os.strerror(number)}; " in said and "stage write-a.npy" in said
    COMM.Barrier()  # before the files are made anew
    go(out)
    check(out, alone)


def test_the_record_says_what_was_meant_and_not_what_the_disk_has(out, monkeypatch):
    """What changes on its way to the disk is found when somebody looks."""
    write = raw.write_fully

    def flipping(descriptor, data, position):
        write(descriptor, bytes(memoryview(data).cast("B")[:-1]) + b"?", position)

    with monkeypatch.context() as patch:
        patch.setattr(raw, "write_fully", flipping)
        go(out, files=slice(0, 2))
    said = sorted(pathlib.Path(line.partition(":")[0]).name for line in verify(out / "run-toy.json"))
    assert said == ["a.npy", "b.nii"]


def test_a_header_that_cannot_be_made_is_said_before_the_run(out, monkeypatch):
    from mpiimg.formats.nifti.images import NiftiWriter

    def fails(self):
        raise interface.BadInput("b.nii: no header")

    monkeypatch.setattr(NiftiWriter, "head", fails)
    with pytest.raises(interface.BadInput, match=r"^b\.nii: no header$"):
        go(out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["f.h5:/one", "f.h5:/one/below", "f.h5:/below"])
def test_datasets_that_cannot_stand_in_one_file_are_refused_before_the_run(name, out):
    with pytest.raises(interface.BadInput, match=f"^{name}: cannot be made beside the other datasets"):
        go(out, more=[name])
    assert not out.exists()
