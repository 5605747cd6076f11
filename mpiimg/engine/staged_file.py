"""The file of a staged array: a plain HDF5 dataset; and in one that is a result the sums of its pages too.

HDF5 does not notice damage to its own metadata, and may crash on it. So a record (engine/records.py) says
where the array lies in the file, and what the checksum of all other bytes is. It lies beside the file of a
run, and at the end of one that is a result, where HDF5 does not look. A file is opened if its record is true.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import AnyArray, Array
from mpiimg.engine.atomic import replacing, sync
from mpiimg.engine.axes import axes_text
from mpiimg.engine.boxes import Box
from mpiimg.engine.pages import SUM, PagedReader, PageTable
from mpiimg.engine.raw import RawFile
from mpiimg.engine.records import DamagedRecord, line_of, parsed, read_record, write_record
from mpiimg.errors import BadInput

DATASET = "data"

#: Datasets of a staged file that is a result: the sums of its pages, and the boxes of the blocks they are of.
PAGE_SUMS, BLOCKS = "page_sums", "blocks"

#: File format that HDF5 1.10 and later read, the parallel builds of Debian among them.
LIBVER = ("earliest", "v110")

#: What a record at the end of a file begins with, and more bytes than it takes.
RECORD_START, RECORD_BYTES = b'{"format": ', 4096


def sums_path(path: Path) -> Path:
    """Return the file with the sums of the pages of a staged file of a run."""
    return Path(path).with_suffix(".sums")


def record_path(path: Path) -> Path:
    """Return the file with the record of a staged file of a run."""
    return Path(path).with_suffix(".json")


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
            properties.set_obj_track_times(False)  # a result does not tell when it was made
            space = h5py.h5s.create_simple(tuple(max(n, 1) for n in array.stored_shape))
            dataset = h5py.Dataset(
                h5py.h5d.create(file.id, DATASET.encode(), _type(array), space, properties)
            )
            dataset.attrs["axes"] = axes_text(array.axes)
        # A contiguous dataset may end beyond what was written: give the file its full length.
        offset = dataset_offset(part)
        if part.stat().st_size < offset + array.nbytes:
            os.truncate(part, offset + array.nbytes)
    write_record(record_path(path), _content(path, array, offset))


def offset_of(path: Path, array: AnyArray) -> int | None:
    """Return where a staged file of a run has `array`, in bytes; None where it is not as made for that."""
    with contextlib.suppress(OSError):
        record = _true_record(path)
        if (record["shape"], record["dtype"]) == (list(array.stored_shape), np.dtype(array.dtype).str):
            return record["offset"]
    return None


def offset_in(path: Path) -> int:
    """Return where a staged file of a run has its array, whichever that is.

    Raises
    ------
    OSError
        There is none, or it is not as it was made.
    """
    return _true_record(path)["offset"]


def remove_staged(path: Path) -> None:
    """Remove a staged file of a run, and what belongs to it."""
    for one in (path, record_path(path), sums_path(path)):
        Path(one).unlink(missing_ok=True)


def _true_record(path: Path) -> dict[str, Any]:
    try:
        record = read_record(record_path(path)) or {}
        if record == _content(path, _array_of(record), record["offset"]):
            return record
    except (DamagedRecord, KeyError, TypeError) as error:
        raise OSError(f"{path}: {error}") from None
    raise OSError(f"{path}: is not as it was made")


def _array_of(record: Mapping[str, Any]) -> Array:
    shape = tuple(record["shape"])
    return Array("", map(str, range(len(shape))), shape, record["dtype"])


def _content(path: Path, array: AnyArray, offset: int, size: int | None = None) -> dict[str, Any]:
    """Return the content of a record: the shape and type of the array, and where it lies in which file.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    from isal.isal_zlib import crc32

    size = os.path.getsize(path) if size is None else size
    checksum, end = 0, offset + array.nbytes
    with open(path, "rb") as file:
        for start, stop in ((0, offset), (end, size)):
            file.seek(start)
            checksum = crc32(file.read(max(stop - start, 0)), checksum)
    return {
        "shape": list(array.stored_shape),
        "dtype": np.dtype(array.dtype).str,
        "offset": offset,
        "size": size,
        "others": checksum,
    }


def describe_staged(
    path: Path, attributes: Mapping[str, Any], array: AnyArray | None = None, boxes: np.ndarray | None = None
) -> None:
    """Complete a staged file that is to be a result.

    Parameters
    ----------
    path : Path
        Of the file; nobody has it open.
    attributes : mapping
        Of its dataset: text, numbers, or arrays of them.
    array : Array or Ragged, optional
        What it holds. The file then gets the sums of its pages, and a record, for :func:`open_checked`.
    boxes : (blocks, axes, 2) int64, optional
        Of the blocks that it was written by.
    """
    import h5py

    with h5py.File(path, "r+", libver=LIBVER, locking=False) as file:
        file[DATASET].attrs.update(attributes)
        if array is not None:
            pages = PageTable(array, boxes)
            own = RawFile(sums_path(path), 0, (len(pages),), SUM)
            file[PAGE_SUMS], file[BLOCKS] = own.read(((0, len(pages)),)), pages.boxes
            own.close()
    if array is not None:
        record = line_of(_content(path, array, dataset_offset(path)))
        with open(path, "ab") as file:
            file.write(record)
    sync(path)


def open_checked(path: Path, array: AnyArray) -> PagedReader:
    """Open a staged file that :func:`describe_staged` completed, to read what its sums verify.

    Parameters
    ----------
    path : Path
        Of a file whose record :func:`check_record` has found true.
    array : Array or Ragged
        What it holds.
    """
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        sums, boxes = file[PAGE_SUMS][...], file[BLOCKS][...]
        raw = RawFile(path, file[DATASET].id.get_offset(), array.stored_shape, array.dtype, runs=array.runs)
    return PagedReader(raw, array, PageTable(array, boxes), _Known(sums))


def check_record(path: Path) -> bool:
    """Say whether a file has a record at its end; without one it is of an earlier version, or no staged file.

    Raises
    ------
    BadInput
        It has one, and is not the file that this was made for.
    OSError
        It cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - RECORD_BYTES))
        tail = file.read()
    start = max(tail.rfind(RECORD_START), 0)
    try:
        record = parsed(tail[start:])
        true = record == _content(path, _array_of(record), record["offset"], size - len(tail) + start)
    except (DamagedRecord, KeyError, TypeError):
        return False
    if not true:
        raise BadInput(
            f"{path}: damaged: not the file that was staged; stage the image again with mpiimg-stage"
        )
    return True


@dataclass(frozen=True)
class _Known:
    """Sums of pages that are in memory."""

    sums: np.ndarray

    def read(self, box: Box) -> np.ndarray:
        ((start, stop),) = box
        return self.sums[start:stop]


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


def _type(array: AnyArray):
    import h5py

    return h5py.h5t.py_create(np.dtype(array.dtype), logical=True)
