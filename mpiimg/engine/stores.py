"""Where arrays live during a run: in the memory of their owners, or in a staged HDF5 file each.

Both kinds of store have the same methods, and pass the same tests:

    create(array, boxes, owners)   every rank says the same
    write(name, number, block)     a rank writes the blocks it owns
    collect(name, requests)        every rank gets the boxes that it asks for; collective in memory
    drop(name)

A staged array is one contiguous, early-allocated, unfiltered dataset in a file
of its own, so creating one never touches another, and after creation no HDF5
metadata changes: a run that is killed leaves every file readable. Where h5py
has MPI, ranks write through driver mpio; else by pwrite at the dataset's offset.
The bytes in the file are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mpiimg.engine.array import AnyArray, Ragged
from mpiimg.engine.atomic import replacing
from mpiimg.engine.boxes import Box, box_slices
from mpiimg.engine.raw import RawFile
from mpiimg.errors import BadInput

DATASET = "data"


class MemoryStore:
    """Blocks in the memory of the ranks that own them.

    Parameters
    ----------
    rank : int
        This rank.
    exchange : callable
        Called as exchange(blocks, boxes, owners, requests, dtype): see mpi/redistribute.py
    """

    def __init__(self, rank: int, exchange: Callable):
        self._rank, self._exchange = rank, exchange
        self._arrays: dict[str, tuple[AnyArray, np.ndarray, np.ndarray]] = {}
        self._blocks: dict[str, dict[int, np.ndarray]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def create(self, array: AnyArray, boxes: np.ndarray, owners: np.ndarray) -> None:
        """Announce `array`, cut into `boxes` (n, axes, 2), block i owned by rank owners[i]."""
        self._arrays[array.name] = array, np.asarray(boxes, dtype=np.int64), np.asarray(owners)
        self._blocks[array.name] = {}

    def write(self, name: str, number: int, block: np.ndarray) -> None:
        """Keep `block` as block `number`; it must be this rank's and is not copied."""
        array, boxes, owners = self._arrays[name]
        if owners[number] != self._rank:
            raise ValueError(
                f"block {number} of {name} belongs to rank {owners[number]}, not to {self._rank}"
            )
        shape = tuple(boxes[number, :, 1] - boxes[number, :, 0])
        if block.shape != shape:
            raise ValueError(f"block {number} of {name} has shape {block.shape}, not {shape}")
        self._blocks[name][number] = np.asarray(block, dtype=array.dtype)

    def collect(self, name: str, requests: Sequence[Sequence[Box]]) -> list[np.ndarray]:
        """Return the boxes requests[rank] of this rank; every rank calls with the same `requests`."""
        array, boxes, owners = self._arrays[name]
        return self._exchange(self._blocks[name], boxes, owners, requests, np.dtype(array.dtype))

    def drop(self, name: str) -> None:
        """Forget an array."""
        self._arrays.pop(name, None)
        self._blocks.pop(name, None)

    def nbytes(self) -> int:
        """Return the bytes that this rank holds."""
        return sum(block.nbytes for blocks in self._blocks.values() for block in blocks.values())


class StagedStore:
    """Each array in an HDF5 file of its own in one folder, read and written by all ranks.

    Parameters
    ----------
    folder : Path
        Where the files lie, on a file system that all ranks share.
    comm : communicator
        Of the ranks.
    parallel : bool, optional
        Write by driver mpio; by default where h5py can.
    """

    def __init__(self, folder: Path, comm, parallel: bool | None = None):
        import h5py

        self.folder, self._comm = Path(folder), comm
        self._parallel = h5py.get_config().mpi if parallel is None else parallel
        self._arrays: dict[str, tuple[AnyArray, np.ndarray, np.ndarray]] = {}
        self._files: dict[str, RawFile] = {}
        self._handles: dict[str, object] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def path(self, name: str) -> Path:
        """Return the file of an array."""
        return self.folder / f"{name}.h5"

    def create(self, array: AnyArray, boxes: np.ndarray, owners: np.ndarray) -> None:
        """Make the file of `array`, or go on with the one that is there. Collective."""
        path = self.path(array.name)
        offset, problem = None, None
        if self._comm.rank == 0:
            try:
                if not _fits(path, array):
                    create_staged(path, array)
                offset = dataset_offset(path)
            except Exception as error:
                problem = error
        offset, problem = self._comm.bcast((offset, problem))
        if problem is not None:
            raise problem
        self._arrays[array.name] = array, np.asarray(boxes, dtype=np.int64), np.asarray(owners)
        self._files[array.name] = RawFile(
            path, offset, array.stored_shape, array.dtype, writable=True, runs=array.runs
        )
        if self._parallel:
            import h5py

            handle = h5py.File(path, "r+", driver="mpio", comm=self._comm, libver=LIBVER)
            self._handles[array.name] = handle

    def assign(self, name: str, owners: np.ndarray) -> None:
        """Give the blocks of an open array to other owners; every rank says the same."""
        array, boxes, _ = self._arrays[name]
        self._arrays[name] = array, boxes, np.asarray(owners)

    def write(self, name: str, number: int, block: np.ndarray) -> None:
        """Put `block` at the box of block `number`; it must be this rank's."""
        array, boxes, owners = self._arrays[name]
        if owners[number] != self._comm.rank:
            raise ValueError(
                f"block {number} of {name} belongs to rank {owners[number]}, not to {self._comm.rank}"
            )
        box = tuple((int(a), int(b)) for a, b in boxes[number])
        shape = tuple(b - a for a, b in box)
        if block.shape != shape:
            raise ValueError(f"block {number} of {name} has shape {block.shape}, not {shape}")
        if not self._parallel:
            self._files[name].write(box, block)
        elif block.size:
            dataset, block = self._handles[name][DATASET], np.asarray(block, dtype=array.dtype)
            if isinstance(array, Ragged):
                flat = block.reshape(-1)
                for first, place, count in array.runs(box):
                    dataset[first : first + count] = flat[place : place + count]
            else:
                dataset[box_slices(box)] = block

    def read(self, name: str, number: int) -> np.ndarray:
        """Return block `number`, whoever wrote it."""
        boxes = self._arrays[name][1]
        return self._read(name, tuple((int(a), int(b)) for a, b in boxes[number]))

    def collect(self, name: str, requests: Sequence[Sequence[Box]]) -> list[np.ndarray]:
        """Return the boxes requests[rank] of this rank. They must have been written, and a barrier passed."""
        return [self._read(name, box) for box in requests[self._comm.rank]]

    def set_aside(self, arrays: Sequence[AnyArray], moved: bool) -> None:
        """Keep the files that are there for :meth:`read_aside`, if one is not its array's. On one rank.

        `moved` says that they are, but that what they hold is now to lie elsewhere in them. What fits and has
        a file set aside already was made by a run that did not come to its end.
        """
        there = [array for array in arrays if self.path(array.name).exists()]
        others = [array for array in there if not _fits(self.path(array.name), array)]
        for array in there if others or moved else ():
            if array in others or not self._aside(array.name).exists():
                self.path(array.name).replace(self._aside(array.name))

    def read_aside(self, name: str, runs: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return runs of items, (first, count), of the file that was set aside, end to end.

        Raises
        ------
        OSError
        There is none, or it does not reach so far.
        """
        import h5py

        path = self._aside(name)
        with h5py.File(path, "r", locking=False) as file:
            dataset = file[DATASET]
            raw = RawFile(path, dataset.id.get_offset(), (dataset.size,), dataset.dtype)
        try:
            nothing = np.empty(0, raw.dtype.newbyteorder("="))
            return np.concatenate([nothing, *(raw.read(((first, first + count),)) for first, count in runs)])
        finally:
            raw.close()

    def forget_aside(self, names: Iterable[str]) -> None:
        """Remove files that were set aside. On one rank."""
        for name in names:
            self._aside(name).unlink(missing_ok=True)

    def _aside(self, name: str) -> Path:
        return self.folder / f"{name}.before.h5"

    def sync(self) -> None:
        """Return when what this rank wrote would survive a power loss."""
        for file in self._files.values():
            file.sync()

    def drop(self, name: str) -> None:
        """Close an array; its file stays. Collective."""
        self._arrays.pop(name, None)
        if name in self._files:
            self._files.pop(name).close()
        if name in self._handles:
            self._handles.pop(name).close()

    def close(self) -> None:
        """Close every array. Collective."""
        for name in list(self._arrays):
            self.drop(name)

    def abandon(self) -> None:
        """Close what can be closed alone, after a failure."""
        for file in self._files.values():
            file.close()

    def _read(self, name: str, box: Box) -> np.ndarray:
        # Not by driver mpio: behind the end of a file that was cut it finds zeros, without a word.
        return self._files[name].read(box)


#: File format that HDF5 1.10 and later read, the parallel builds of Debian among them.
LIBVER = ("earliest", "v110")


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
            kind = h5py.h5t.py_create(np.dtype(array.dtype), logical=True)
            dataset = h5py.Dataset(h5py.h5d.create(file.id, DATASET.encode(), kind, space, properties))
            dataset.attrs["axes"] = array.axes
        # A contiguous dataset may end beyond what was written: give the file its full length.
        offset = dataset_offset(part)
        if part.stat().st_size < offset + array.nbytes:
            os.truncate(part, offset + array.nbytes)


def describe_staged(path: Path, attributes: dict) -> None:
    """Add attributes (strings, numbers, or arrays of them) to the dataset of a complete staged file."""
    import h5py

    with h5py.File(path, "r+", libver=LIBVER, locking=False) as file:
        file[DATASET].attrs.update(attributes)


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
    except OSError as error:
        raise BadInput(
            f"{path}: damaged HDF5 file ({error}); stage the image again with mpiimg-stage"
        ) from None
    if offset is None or os.path.getsize(path) < end:
        raise BadInput(f"{path}: the staged array is incomplete; stage the image again with mpiimg-stage")
    return offset


def _fits(path: Path, array: AnyArray) -> bool:
    """Say whether `path` already holds such an array."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            dataset = file[DATASET]
            shape = tuple(max(n, 1) for n in array.stored_shape)
            same = dataset.shape == shape and dataset.dtype == np.dtype(array.dtype)
            return same and os.path.getsize(path) >= dataset.id.get_offset() + array.nbytes
    except (OSError, KeyError, TypeError, AttributeError):
        return False
