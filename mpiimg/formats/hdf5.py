"""HDF5 datasets as arrays: "file.h5:/path". Every rank reads and writes its own part, without parallel HDF5.

A dataset that lies in one piece is read by offset, one in chunks or compressed by h5py on each rank. What is
written lies in one piece.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, box_slices
from mpiimg.engine.inputs import Reader
from mpiimg.errors import BadInput
from mpiimg.formats.interface import Format, ResultArray, file_grid, split
from mpiimg.formats.npy import plain_axes
from mpiimg.formats.plain import PlainInput
from mpiimg.formats.sources import FileInput
from mpiimg.formats.space import Space, space_from

#: Attribute of a dataset that says where it lies, as JSON.
SPACE = "mpiimg_space"

#: What a file of one dataset calls it, where nobody says.
DATASET = "data"

#: File format that HDF5 1.10 and later read.
LIBVER = ("earliest", "v110")

#: Datasets that a message names at most.
NAMED = 8


# --- In ---------------------------------------------------------------------------------------------------


def read(path: Path, name: str) -> PlainInput | FileInput:
    """Return a dataset; the only one of a file need not be named.

    Raises
    ------
    BadInput
        It is not there, truncated, or holds what are no numbers.
    """
    file_path, inside = split(path)
    import h5py

    with _opened(file_path) as file:
        dataset = _dataset(file, file_path, inside)
        dtype = dataset.dtype
        if dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
            what = "text or objects" if dtype.hasobject or dtype.kind in "SU" else f"values of type {dtype}"
            raise BadInput(f"{path}: holds {what}, and no numbers; name another dataset")
        if dataset.shape is None:
            raise BadInput(f"{path}: is an empty dataset: there is nothing in it")
        shape = tuple(map(int, dataset.shape))
        axes = _labels(dataset)
        array = Array(name, axes, shape, dtype.newbyteorder("=").name)
        about = {"axes": axes, "space": _space(dataset), "attrs": _attrs(dataset)}
        offset = dataset.id.get_offset()
        # Of one that nobody has written to nothing is stored, and HDF5 may say an offset all the same.
        whole = dataset.id.get_storage_size() == math.prod(shape) * dtype.itemsize
        plain = whole and dataset.chunks is None and not dataset.is_virtual and not dataset.external
        # HDF5 may hold numbers of some bits only, which its type is told by.
        same = h5py.h5t.py_create(dtype, logical=True).equal(dataset.id.get_type())
        if plain and same and offset is not None and 0 not in shape:
            size, end = file_path.stat().st_size, offset + math.prod(shape) * dtype.itemsize
            if size < end:
                raise BadInput(
                    f"{path}: truncated: {size} bytes where its metadata promise {end}; copy it again"
                )
            said = json.dumps([dataset.name, shape, dtype.str]).encode()
            return PlainInput(file_path, array, offset, dtype.str, said, **about)
        source = FileInput(file_path, array, _Opener(dataset.name, _needs_plugins(dataset, path)), **about)
        source.__dict__["identity"] = {"dtype": array.dtype, "dataset": zlib.crc32(dataset.name.encode())}
        return source


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    """Open a file for reading; what HDF5 makes of one that is none, or cut, in a line."""
    import h5py

    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        if not h5py.is_hdf5(path):
            raise BadInput(f"{path}: is no HDF5 file that can be read: it does not begin as one") from None
        cut = "truncated" in str(error)
        why = "truncated" if cut else " ".join(str(error).split())
        raise BadInput(f"{path}: is no HDF5 file that can be read: {why}; copy it again") from None
    with file:
        yield file


def _dataset(file, path: Path, inside: str):
    """Return the dataset that is meant.

    Raises
    ------
    BadInput
        There is none of this name, or several and none is named.
    """
    import h5py

    if inside:
        try:
            found = file[inside]
        except KeyError:
            raise BadInput(f"{path}: has no dataset {inside}; {_those(file)}") from None
        if not isinstance(found, h5py.Dataset):
            raise BadInput(f"{path}: {inside} is a group, and no dataset; {_those(file)}")
        return found
    names = _dataset_names(file)
    if len(names) != 1:
        raise BadInput(f"{path}: name one of its datasets, as {path.name}:/path; {_those(file)}")
    return file[names[0]]


def _dataset_names(file) -> list[str]:
    import h5py

    names: list[str] = []

    def look(name, one):
        scale = isinstance(one, h5py.Dataset) and one.is_scale
        if isinstance(one, h5py.Dataset) and not scale:
            names.append("/" + name)

    file.visititems(look)
    return names


def _those(file) -> str:
    names = _dataset_names(file)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"there are {', '.join(names[:NAMED])}{more}" if names else "there are none in it"


def _labels(dataset) -> tuple[str, ...]:
    """Return the axes by their labels, or by the names of their scales; d0, d1 where one has none."""
    names = []
    for dimension in dataset.dims:
        label = dimension.label or next(
            (os.path.basename(scale.name or "") for scale in dimension.values()), ""
        )
        names.append("_".join(label.split()))
    good = all(names) and len(set(names)) == len(names)
    return tuple(names) if good else plain_axes(len(names))


def _space(dataset) -> Space | None:
    try:
        return space_from(json.loads(dataset.attrs[SPACE]))
    except (KeyError, ValueError, TypeError):
        return None


def _attrs(dataset) -> dict:
    """Return its attributes, those that JSON knows."""
    attrs = {}
    for name in dataset.attrs:
        try:
            value = dataset.attrs[name]
            plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            attrs[name] = json.loads(json.dumps(plain))
        except (OSError, TypeError, ValueError):
            continue  # references, and types that h5py does not know
    hidden = ("CLASS", "NAME", "DIMENSION_LABELS", "DIMENSION_LIST", "REFERENCE_LIST", SPACE)
    return {name: value for name, value in attrs.items() if name not in hidden}


def _needs_plugins(dataset, path: Path) -> bool:
    """Say whether the chunks of a dataset are compressed by what the package hdf5plugin brings.

    Raises
    ------
    BadInput
        By something that is not there.
    """
    import h5py

    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    missing = [one for one in filters if not h5py.h5z.filter_avail(one[0])]
    if not missing:
        return False
    with contextlib.suppress(ImportError):
        importlib.import_module("hdf5plugin")
    for number, _, _, name in missing:
        if not h5py.h5z.filter_avail(number):
            said = f"{number} ({name.decode(errors='replace')})" if name else str(number)
            raise BadInput(
                f"{path}: its chunks are compressed by filter {said}, which HDF5 does not have here: "
                "pip install hdf5plugin, or repack the file"
            )
    return True


@dataclass(frozen=True)
class _Opener:
    """Opens a dataset by its name, with further filters if it needs any."""

    name: str
    plugins: bool = False

    def __call__(self, path: Path) -> Reader:
        import h5py

        if self.plugins:
            importlib.import_module("hdf5plugin")
        return Dataset(path, h5py.File(path, "r", locking=False), self.name)


@dataclass(frozen=True)
class Dataset:
    """An open dataset in chunks; a :class:`mpiimg.engine.inputs.Reader`."""

    path: Path
    file: object
    name: str

    def read(self, box: Box) -> np.ndarray:
        """Return the items of a box, in the machine's byte order.

        Raises
        ------
        BadInput
            A chunk is not what was written, or lies beyond the end of the file.
        """
        dataset = self.file[self.name]
        try:
            block = np.asarray(dataset[box_slices(box)])
        except OSError as error:
            if error.errno is not None or "errno =" in str(error):
                raise
            what = " ".join(str(error).split())
            raise BadInput(f"{self.path}:{self.name}: damaged: {what}; copy it again") from None
        return np.asarray(block, dtype=dataset.dtype.newbyteorder("="), order="C")

    def close(self) -> None:
        """Release the file."""
        self.file.close()


# --- Out --------------------------------------------------------------------------------------------------


class Hdf5Writer:
    """An array as a dataset in one piece; a :class:`mpiimg.formats.interface.PlacedWriter`.

    The names of its axes become labels, its space and what else is known of it attributes.

    Parameters
    ----------
    result : ResultArray
        Of "x.h5:/path" the path is that of the dataset; of "x.h5" it is /data. Several results of a run may
        have one file.

    Raises
    ------
    BadInput
        Its values are no numbers.
    """

    shared = True

    def __init__(self, result: ResultArray):
        kind = np.dtype(result.dtype)
        if kind.kind not in "biufc":
            raise BadInput(f"{result.name}: values of type {result.dtype} are not written to HDF5")
        self.dtype = kind.newbyteorder("<") if kind.kind in "iufc" else kind
        self.axes, self._result = result.axes, result
        self._inside = split(result.name)[1].strip("/") or DATASET
        self.grid = file_grid(self.axes, result.shape, kind.itemsize)

    def create(self, path: Path, further: bool) -> int:
        """Make the file with the dataset, or add it to the file; return where its numbers are to lie."""
        import h5py

        with h5py.File(path, "r+" if further else "w", libver=LIBVER, locking=False) as file:
            try:
                dataset = self._create_in(file)
            except (ValueError, TypeError) as error:
                what = " ".join(str(error).split())
                raise BadInput(
                    f"{self._result.name}: cannot be made beside the other datasets of this file: {what}"
                ) from None
            offset = dataset.id.get_offset()
        end = offset + math.prod(self._result.shape) * self.dtype.itemsize
        # A dataset at the end may end beyond what was written: give the file its full length.
        if path.stat().st_size < end:
            os.truncate(path, end)
        return offset

    def _create_in(self, file):
        import h5py

        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.CONTIGUOUS)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)  # a result does not tell when it was made
        kind = h5py.h5t.py_create(self.dtype, logical=True)
        shape = self._result.shape
        space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
        group = file.require_group(os.path.dirname("/" + self._inside))
        name = os.path.basename(self._inside).encode()
        dataset = h5py.Dataset(h5py.h5d.create(group.id, name, kind, space, properties))
        if self._result.axes:
            # At once: one by one HDF5 makes room for all of them each time, and each version its own way.
            dataset.attrs.create("DIMENSION_LABELS", self._result.axes, dtype=h5py.string_dtype())
        if self._result.space is not None:
            dataset.attrs[SPACE] = json.dumps(self._result.space.to_record())
        for key, value in self._result.attrs.items():
            plain = isinstance(value, str | int | float | bool)
            with contextlib.suppress(TypeError, ValueError, OSError):
                dataset.attrs[key] = value if plain else json.dumps(value)
        return dataset


HDF5 = Format("HDF5 dataset", read, Hdf5Writer)
