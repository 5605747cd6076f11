"""The file of a staged array: a plain HDF5 dataset; and in one that is a result the sums of its pages too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import AnyArray, Array
from mpiimg.engine.atomic import replacing, sync
from mpiimg.engine.boxes import Box
from mpiimg.engine.pages import SUM, PagedReader, PageTable
from mpiimg.engine.raw import RawFile
from mpiimg.errors import BadInput

DATASET = "data"

#: Datasets of a staged file that is a result: the sums of its pages, and the boxes of the blocks they are of.
PAGE_SUMS, BLOCKS = "page_sums", "blocks"

#: Attribute of its dataset: the checksum of its other attributes, and of these two.
CHECKSUM = "checksum"


#: File format that HDF5 1.10 and later read, the parallel builds of Debian among them.
LIBVER = ("earliest", "v110")


def sums_path(path: Path) -> Path:
    """Return the file with the sums of the pages of a staged file."""
    return Path(path).with_suffix(".sums")


def create_staged(path: Path, array: AnyArray) -> None:
    """Write an HDF5 file with one contiguous, early-allocated, unfilled dataset, in one atomic step.

    Parameters
    ----------
    path : Path
        Of the file; an older one is replaced.
    array : Array or Ragged
        Gives shape and dtype of the dataset.
    """
    import h5py

    with replacing(path) as part:
        with h5py.File(part, "w", libver=LIBVER, locking=False) as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_layout(h5py.h5d.CONTIGUOUS)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple(tuple(max(n, 1) for n in array.stored_shape))
            dataset = h5py.Dataset(
                h5py.h5d.create(file.id, DATASET.encode(), _type(array), space, properties)
            )
            dataset.attrs["axes"] = array.axes
        # A contiguous dataset may end beyond what was written: give the file its full length.
        offset = dataset_offset(part)
        if part.stat().st_size < offset + array.nbytes:
            os.truncate(part, offset + array.nbytes)


def describe_staged(path: Path, attributes: Mapping[str, Any], boxes: np.ndarray | None = None) -> None:
    """Complete a staged file that is to be a result.

    Parameters
    ----------
    path : Path
        Of the file; nobody has it open.
    attributes : mapping
        Of its dataset: text, numbers, or arrays of them.
    boxes : (blocks, axes, 2) int64, optional
        Of the blocks that it was written by. The file then holds the sums of its pages, and a checksum of
        these, of the attributes and of the boxes, for :func:`open_checked`.
    """
    import h5py

    with h5py.File(path, "r+", libver=LIBVER, locking=False) as file:
        dataset = file[DATASET]
        dataset.attrs.update(attributes)
        if boxes is not None:
            pages = PageTable(_array_of(dataset), boxes)
            own = RawFile(sums_path(path), 0, (len(pages),), SUM)
            sums = own.read(((0, len(pages)),))
            own.close()
            file[PAGE_SUMS], file[BLOCKS] = sums, pages.boxes
            dataset.attrs[CHECKSUM] = _checksum(dataset, attributes, sums, pages.boxes)
    sync(path)


def open_checked(path: Path, names: Iterable[str]) -> PagedReader:
    """Open a staged file that :func:`describe_staged` completed with sums, to read what these verify.

    Parameters
    ----------
    path : Path
        Of the file.
    names : iterable of str
        Of all attributes that it was given.

    Raises
    ------
    BadInput
        What the file says of itself is not what was written.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            dataset = file[DATASET]
            attributes = {name: dataset.attrs[name] for name in names}
            sums, boxes = file[PAGE_SUMS][...], file[BLOCKS][...]
            array = _array_of(dataset)
            pages = PageTable(array, boxes)
            if dataset.attrs[CHECKSUM] != _checksum(dataset, attributes, sums, boxes) or len(pages) != len(
                sums
            ):
                raise ValueError("its checksum does not fit")
            file = RawFile(path, dataset.id.get_offset(), array.shape, array.dtype)
    except Exception as error:  # whatever HDF5 makes of damaged metadata
        raise BadInput(f"{path}: damaged ({error}); stage the image again with mpiimg-stage") from None
    return PagedReader(file, array, pages, _Known(sums))


@dataclass(frozen=True)
class _Known:
    """Sums of pages that are in memory."""

    sums: np.ndarray

    def read(self, box: Box) -> np.ndarray:
        ((start, stop),) = box
        return self.sums[start:stop]


def _array_of(dataset) -> Array:
    return Array(DATASET, str(dataset.attrs["axes"]), dataset.shape, dataset.dtype.name)


def _checksum(dataset, attributes: Mapping[str, Any], *arrays: np.ndarray) -> int:
    """Return a CRC32 of shape, type and attributes of a dataset, and of arrays."""
    from isal.isal_zlib import crc32

    named = {name: np.asarray(value).tolist() for name, value in attributes.items()}
    checksum = crc32(json.dumps([dataset.shape, dataset.dtype.str, named], sort_keys=True).encode())
    for array in arrays:
        checksum = crc32(np.ascontiguousarray(array), checksum)
    return checksum


def dataset_offset(path: Path) -> int:
    """Return where the dataset of a staged file starts, in bytes.

    Raises
    ------
    BadInput
        It is no staged file.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            dataset = file[DATASET]
            offset = dataset.id.get_offset()
            end = (offset or 0) + dataset.id.get_storage_size()
    except (KeyError, AttributeError):
        raise BadInput(f"{path}: no dataset named {DATASET!r}; give a file made by mpiimg-stage") from None
    except Exception as error:  # whatever HDF5 makes of damaged metadata
        raise BadInput(
            f"{path}: damaged HDF5 file ({error}); stage the image again with mpiimg-stage"
        ) from None
    if offset is None or os.path.getsize(path) < end:
        raise BadInput(f"{path}: the staged array is incomplete; stage the image again with mpiimg-stage")
    return offset


def holds(path: Path, array: AnyArray) -> bool:
    """Say whether `path` already holds such an array."""
    import h5py

    try:
        offset = dataset_offset(path)
        with h5py.File(path, "r", locking=False) as file:
            dataset = file[DATASET]
            shape = tuple(max(n, 1) for n in array.stored_shape)
            same = dataset.shape == shape and dataset.id.get_type() == _type(array)
            return same and os.path.getsize(path) >= offset + array.nbytes
    except Exception:  # whatever HDF5 makes of damaged metadata, or of what is none
        return False


def _type(array: AnyArray):
    import h5py

    return h5py.h5t.py_create(np.dtype(array.dtype), logical=True)
