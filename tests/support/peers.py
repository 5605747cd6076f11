"""Formats of files, each beside the well-kept library that its files are compared with.

A format joins the conformance tests by a line in PEERS.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import numpy as np
import tifffile
import zarr
from astropy.io import fits

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import box_shape, box_slices
from mpiimg.engine.raw import RawFile
from mpiimg.engine.stage import Files, PlacedSink, Sink
from mpiimg.formats import registry
from mpiimg.formats.sources import axes_of

INTEGERS = ("uint8", "int16", "int32")
NUMBERS = (*INTEGERS, "int8", "uint16", "uint32", "int64", "uint64", "float32", "float64")
COMPLEX = ("complex64", "complex128")


@dataclass(frozen=True)
class Peer:
    """A format, and how its own library saves and loads an array.

    Parameters
    ----------
    ending : with its dot
    axes : of arrays of 1, 2, 3 and 4 axes, as users have them
    load : the library's own reading: values in the order of the axes
    save : the library's own writing, or None
    dtypes : that the format keeps as they are
    order : of the arrays that are written
    fewest : axes of an array that its own library saves
    """

    ending: str
    axes: Callable[[int], tuple[str, ...]]
    load: Callable[[Path], np.ndarray]
    save: Callable[[Path, np.ndarray], None] | None
    dtypes: tuple[str, ...]
    order: str = "C"
    fewest: int = 0

    @property
    def writes(self) -> bool:
        """Whether the format is written."""
        return registry._format(f"x{self.ending}").write is not None

    @property
    def is_folder(self) -> bool:
        """Whether a file of it is a folder."""
        return registry._format(f"x{self.ending}").folder


def nifti_axes(count):
    return ("x", "y", "z", "t")[:count]


def fits_axes(count):
    return ("t", "z", "y", "x")[4 - count :]


def free_axes(count):
    return ("n",) if count == 1 else tuple(f"d{k}" for k in range(count))


def load_nifti(path):
    return np.asanyarray(nibabel.load(path).dataobj)


def save_nifti(path, values):
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 3, 4, 1]), dtype=values.dtype), path)


def load_fits(path):
    return fits.getdata(path)


def save_fits(path, values):
    fits.PrimaryHDU(values).writeto(path)


def save_tiles(path, values):
    tiles = (*(1,) * (values.ndim - 2), 2, 3)[-values.ndim :]
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(values, tile_shape=tiles)]).writeto(path)


def load_h5(path):
    with h5py.File(path) as file:
        return file["data"][()]


def save_h5(path, values):
    with h5py.File(path, "w") as file:
        file["data"] = values


def save_h5_chunked(path, values):
    chunks = tuple(min(2, length) for length in values.shape)
    with h5py.File(path, "w") as file:
        file.create_dataset("below/data", data=values, chunks=chunks, compression="gzip")


def save_fortran(path, values):
    np.save(path, np.asfortranarray(values))


def tiff_axes(count):
    return (*("q", "q2")[: max(count - 2, 0)], *("y", "x")[2 - min(count, 2) :])


def load_tiff(path):
    with tifffile.TiffFile(path) as file:
        (series,) = file.series
        return series.asarray().reshape(json.loads(file.pages[0].description)["mpiimg"]["shape"])


def save_tiff(path, values):
    about = {"photometric": "minisblack", "metadata": {"axes": "QQYX"[-values.ndim :]}}
    tifffile.imwrite(path, values, rowsperstrip=2, compression="zlib", **about)


def load_zarr(path):
    return zarr.open_array(path, mode="r")[...]


def save_zarr(path, values):
    chunks = tuple(min(2, length) for length in values.shape)
    zarr.create_array(path, data=values, chunks=chunks)


_FITS = ("uint8", "int16", "int32", "int64", "int8", "uint16", "uint32", "uint64", "float32", "float64")

PEERS = {
    "nii": Peer(".nii", nifti_axes, load_nifti, save_nifti, (*NUMBERS, *COMPLEX)),
    "nii.gz": Peer(".nii.gz", nifti_axes, load_nifti, save_nifti, ("int16", "float32")),
    "img": Peer(".img", nifti_axes, load_nifti, save_nifti, ("int16", "float32")),
    "fits": Peer(".fits", fits_axes, load_fits, save_fits, _FITS),
    "fits.gz": Peer(".fits.gz", fits_axes, load_fits, save_fits, ("uint16", "float32")),
    "fits.fz": Peer(".fits.fz", fits_axes, load_fits, save_tiles, ("int16", "int32")),
    "npy": Peer(".npy", free_axes, np.load, np.save, (*NUMBERS, "bool", "float16", *COMPLEX)),
    "npy, Fortran's order": Peer(".npy", free_axes, np.load, save_fortran, ("int16", "float32"), "F"),
    "h5": Peer(".h5", free_axes, load_h5, save_h5, (*NUMBERS, "bool", "float16", *COMPLEX)),
    "tif": Peer(".tif", tiff_axes, load_tiff, save_tiff, (*NUMBERS, "float16", *COMPLEX), fewest=2),
    "zarr": Peer(".zarr", free_axes, load_zarr, save_zarr, (*NUMBERS, "bool", "float16", *COMPLEX)),
    "h5 in chunks": Peer(".hdf5", free_axes, load_h5, save_h5_chunked, ("int16", "float32", "bool")),
}


def numbers(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return values that fill their type."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max, shape, kind, endpoint=True)
    values = rng.normal(size=shape)
    return (values + 1j * rng.normal(size=shape) if kind.kind == "c" else values).astype(kind)


def write_alone(folder: Path, name: str, values: np.ndarray, axes: tuple[str, ...], **about) -> Path:
    """Do what the stage that writes an array does, chunk after chunk, in one process; return the file."""
    array = Array("values", axes, values.shape, values.dtype.name)
    return do(folder, registry.write(name, array, **about), values)


def do(folder: Path, stage, values: np.ndarray, further: bool = False) -> Path:
    """Do what a stage that writes an array does, in one process; return the file, or the folder."""
    (need,) = stage.reads
    chunks = [stage.chunk(number) for number in range(len(stage.grid))]

    def block(chunk):
        (box,) = need.boxes(chunk)
        return np.array(values[box_slices(box)], order="C")

    if isinstance(stage, Files):
        for chunk in chunks:
            stage.work(chunk, folder, block(chunk))
        assert all((folder / name).exists() for name in stage.names)
        return folder / stage.folder
    path = folder / stage.file
    if isinstance(stage, Sink):
        made = [stage.work(chunk, block(chunk)) for chunk in chunks]
        assert max(len(stage.digested(one).data) for one in made) <= stage.chunk_bytes
        path.write_bytes(stage.whole(made))
        return path
    assert isinstance(stage, PlacedSink)
    stage.prove()
    offset = stage.create(path, further)
    size = path.stat().st_size
    file = RawFile(path, offset, stage.layout.shape, stage.stored, writable=True)
    for chunk in reversed(chunks):
        file.write(stage.layout.part(chunk.bounds), stage.work(chunk, block(chunk)))
    file.close()
    assert path.stat().st_size == size
    return path


def read_in_boxes(path: Path | str, pieces: int = 2, **options) -> tuple[np.ndarray, object]:
    """Return what a file holds, in the order of its users, read by our reader in boxes; and the input."""
    source = registry.read(path, "values", **options)
    shape = source.array.shape
    values = np.empty(shape, source.array.dtype)
    cuts = [sorted({0, *(n * k // pieces for k in range(1, pieces)), n}) for n in shape]
    boxes = list(itertools.product(*(list(itertools.pairwise(cut)) for cut in cuts)))
    if source.parallel:
        reader = source.open()
        for box in boxes[::-1]:
            block = reader.read(box)
            assert (block.shape, block.dtype) == (box_shape(box), values.dtype), box
            assert block.dtype.isnative and block.flags.c_contiguous
            values[box_slices(box)] = block
        reader.close()
    else:
        rows = [((a, b), *((0, n) for n in shape[1:])) for a, b in itertools.pairwise(cuts[0])]
        for box, block in zip(rows, source.blocks(iter(rows)), strict=True):
            assert block.dtype == values.dtype
            values[box_slices(box)] = block
    axes = source.array.axes
    order = [axes.index(axis) for axis in axes_of(source)]
    assert math.prod(shape) == values.size
    return values.transpose(order), source
