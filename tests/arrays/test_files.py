"""From file to file by the public names: values, spaces and bytes, whatever the format and the ranks."""

from __future__ import annotations

import itertools
import pathlib

import nibabel
import numpy as np
import pytest
from astropy.io import fits
from support.peers import PEERS, numbers, read_in_boxes
from support.ranks import COMM

import mpiimg as mi
from mpiimg.engine.mpi.agreement import on_root

pytestmark = pytest.mark.ranks

SHAPE = (5, 4, 6)

WRITTEN = (".npy", ".nii", ".nii.gz", ".fits", ".fits.gz", ".h5")


@pytest.fixture
def folder(tmp_path):
    """One folder for all ranks."""
    return pathlib.Path(COMM.bcast(str(tmp_path)))


@pytest.fixture(autouse=True)
def session(folder):
    """Keep what runs keep in the folder of the test."""
    with mi.session(folder / "session", keep_work=True, rehearse=False) as opened:
        yield opened


READ = [name for name, peer in PEERS.items() if peer.save is not None]


@pytest.fixture
def sources(folder):
    """A file of every format, as its own library saves it, with the values that they hold."""
    values = numbers("int16", SHAPE, seed=3)

    def save():
        for number, name in enumerate(READ):
            PEERS[name].save(folder / f"in-{number}{PEERS[name].ending}", values)

    on_root(COMM, save)
    return [folder / f"in-{number}{PEERS[name].ending}" for number, name in enumerate(READ)], values


def test_every_format_is_read_and_becomes_another(folder, sources):
    """One run reads all, changes them a little, and writes each in another format."""
    paths, values = sources
    results = {}
    for number, (path, ending) in enumerate(zip(paths, itertools.cycle(WRITTEN), strict=False)):
        results[f"{number}{ending}"] = mi.read(path)[1:, :0:-1].astype("int32") + 1
    assert len(results) > len(WRITTEN)
    mi.write(results, folder / "out")
    expected = values[1:, :0:-1].astype(np.int32) + 1
    if COMM.rank == 0:
        for name in results:
            back = read_in_boxes(folder / "out" / name)[0].squeeze()
            # Axes have the order of the format, by their names.
            same = back if back.shape == expected.shape else back.T
            np.testing.assert_array_equal(same, expected, err_msg=name)
    COMM.Barrier()  # before the folder goes


def test_a_space_follows_from_file_to_file(folder):
    affine = np.array([[-2.0, 0.1, 0, 30], [0.1, 2.1, 0, -40], [0, 0, 2.2, 5], [0, 0, 0, 1]])
    volume, image = numbers("float32", (6, 5, 4, 3)), numbers("float32", (8, 9))
    header = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 3.0, "CRPIX2": 2.0}
    header |= {"CRVAL1": 150.0, "CRVAL2": 2.0, "CDELT1": -1e-3, "CDELT2": 1e-3}

    def save():
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "v.nii")
        fits.PrimaryHDU(image, fits.Header(header)).writeto(folder / "i.fits")

    on_root(COMM, save)
    v, i = mi.read(folder / "v.nii"), mi.read(folder / "i.fits")
    results = {
        "a.nii.gz": v[:, 1:, 2, ::-1].transpose("t y x"),
        "b.fits": i.coarsen(x=3, y=2).mean()[:, 1:],
        "c.h5:/v": v.mean("t"),
        "c.h5:/i": i.pad(x=(2, 0)),
    }
    mi.write(results, folder / "out")
    if COMM.rank == 0:
        made = nibabel.load(folder / "out/a.nii.gz")
        theirs = nibabel.load(folder / "v.nii").slicer[:, 1:, 2:3]
        np.testing.assert_allclose(made.affine, theirs.affine, rtol=1e-6)
        np.testing.assert_array_equal(made.dataobj, volume[:, 1:, 2:3, ::-1])
        written = fits.getheader(folder / "out/b.fits")
        assert [written[key] for key in ("CRPIX1", "CRPIX2")] == pytest.approx([(3 - 2) / 3, 1.25])
        assert [written[key] for key in ("CDELT1", "CDELT2")] == pytest.approx([-3e-3, 2e-3])
    COMM.Barrier()  # before the folder goes
    again = mi.read(folder / "out/c.h5:/v")
    assert (again.axes, again.space) == (("x", "y", "z"), v.mean("t").space)
    assert mi.read(folder / "out/c.h5:/i").space.cards()["CRPIX1"] == 5.0
