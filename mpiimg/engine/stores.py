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

Beside it lies a file with the sums of its pages (engine/pages.py), by which all
that is read back is verified. It is of one run alone: the next run sums the
blocks that it finds sound by their marks, so a damaged sum is never believed,
and the file need not outlive a loss of power.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mpiimg.engine.array import AnyArray, Ragged
from mpiimg.engine.box_table import BoxTable
from mpiimg.engine.boxes import Box, box_slices, runs
from mpiimg.engine.mpi.redistribute import Requests
from mpiimg.engine.pages import SUM, PagedReader, PageTable, combined, page_sums
from mpiimg.engine.raw import RawFile
from mpiimg.engine.staged_file import (
    DATASET,
    LIBVER,
    create_staged,
    offset_in,
    offset_of,
    record_path,
    remove_staged,
    sums_path,
)


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
        self._arrays: dict[str, tuple[AnyArray, BoxTable, np.ndarray]] = {}
        self._blocks: dict[str, dict[int, np.ndarray]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def create(self, array: AnyArray, boxes: BoxTable | np.ndarray, owners: np.ndarray) -> None:
        """Announce `array`, cut into `boxes`, a table or (n, axes, 2), block i owned by rank owners[i]."""
        table = boxes if isinstance(boxes, BoxTable) else BoxTable(np.asarray(boxes, dtype=np.int64))
        self._arrays[array.name] = array, table, np.asarray(owners)
        self._blocks[array.name] = {}

    def write(self, name: str, number: int, block: np.ndarray) -> None:
        """Keep `block` as block `number`; it must be this rank's and is not copied."""
        array, table, owners = self._arrays[name]
        if owners[number] != self._rank:
            raise ValueError(
                f"block {number} of {name} belongs to rank {owners[number]}, not to {self._rank}"
            )
        shape = tuple(table.boxes[number, :, 1] - table.boxes[number, :, 0])
        if block.shape != shape:
            raise ValueError(f"block {number} of {name} has shape {block.shape}, not {shape}")
        self._blocks[name][number] = np.asarray(block, dtype=array.dtype)

    def collect(self, name: str, requests: Requests | Sequence[Sequence[Box]]) -> list[np.ndarray]:
        """Return the boxes that this rank asks for; every rank calls with the same `requests`."""
        array, table, owners = self._arrays[name]
        return self._exchange(self._blocks[name], table, owners, requests, np.dtype(array.dtype))

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
        self._sums: dict[str, _StagedSums] = {}
        self._readers: dict[str, PagedReader] = {}
        self._handles: dict[str, object] = {}
        #: Spent on checksums of what was written.
        self.seconds = 0.0

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def path(self, name: str) -> Path:
        """Return the file of an array."""
        return self.folder / f"{name}.h5"

    def create(self, array: AnyArray, boxes: np.ndarray, owners: np.ndarray) -> None:
        """Make the file of `array`, or go on with the one that is there. Collective."""
        path, pages = self.path(array.name), PageTable(array, boxes)
        offset, problem = None, None
        if self._comm.rank == 0:
            try:
                if offset_of(path, array) is None:
                    create_staged(path, array)
                offset = offset_of(path, array)
                with open(sums_path(path), "wb") as file:
                    file.truncate(len(pages) * SUM.itemsize)
            except Exception as error:
                problem = error
        offset, problem = self._comm.bcast((offset, problem))
        if problem is not None:
            raise problem
        self._arrays[array.name] = array, np.asarray(boxes, dtype=np.int64), np.asarray(owners)
        self._files[array.name] = file = RawFile(
            path, offset, array.stored_shape, array.dtype, writable=True, runs=array.runs
        )
        self._sums[array.name] = sums = _StagedSums(sums_path(path), pages)
        self._readers[array.name] = PagedReader(file, array, pages, sums)
        if self._parallel:
            import h5py

            handle = h5py.File(path, "r+", driver="mpio", comm=self._comm, libver=LIBVER)
            self._handles[array.name] = handle

    def assign(self, name: str, owners: np.ndarray) -> None:
        """Give the blocks of an open array to other owners; every rank says the same."""
        array, boxes, _ = self._arrays[name]
        self._arrays[name] = array, boxes, np.asarray(owners)

    def write(self, name: str, number: int, block: np.ndarray) -> int:
        """Put `block` at the box of block `number`, which must be this rank's; return its CRC32.

        Others can read it, and so can this rank, once :meth:`share` has run.
        """
        array, boxes, owners = self._arrays[name]
        if owners[number] != self._comm.rank:
            raise ValueError(
                f"block {number} of {name} belongs to rank {owners[number]}, not to {self._comm.rank}"
            )
        box = tuple((int(a), int(b)) for a, b in boxes[number])
        shape = tuple(b - a for a, b in box)
        if block.shape != shape:
            raise ValueError(f"block {number} of {name} has shape {block.shape}, not {shape}")
        block = np.asarray(block, dtype=array.dtype, order="C")
        if not self._parallel:
            self._files[name].write(box, block)
        elif block.size:
            try:
                self._write_by_mpio(name, box, block)
            except OSError:
                # MPI-IO does not say why it failed; what follows does, or succeeds.
                self._files[name].write(box, block)
        started = time.monotonic()
        checksum = self._sums[name].note(number, block)
        self.seconds += time.monotonic() - started
        return checksum

    def _write_by_mpio(self, name: str, box: Box, block: np.ndarray) -> None:
        array, dataset = self._arrays[name][0], self._handles[name][DATASET]
        if isinstance(array, Ragged):
            flat = block.reshape(-1)
            for first, place, count in array.runs(box):
                dataset[first : first + count] = flat[place : place + count]
        else:
            dataset[box_slices(box)] = block

    def share(self) -> None:
        """Let all ranks read what this one wrote, or summed again; others see it after a barrier."""
        for sums in self._sums.values():
            sums.share()

    def sum_again(self, name: str, number: int) -> tuple[int, int]:
        """Return CRC32 and bytes of block `number` as it is in the file; :meth:`share` believes it.

        For blocks of an earlier run: the caller knows by their marks what they should be, and has those that
        are not made anew.
        """
        # Not by driver mpio: behind the end of a file that was cut it finds zeros, without a word.
        block = self._files[name].read(self._box(name, number))
        return self._sums[name].note(number, block), block.nbytes

    def read(self, name: str, number: int) -> np.ndarray:
        """Return block `number`, whoever wrote it; raises what :meth:`read_box` does."""
        return self.read_box(name, self._box(name, number))

    def read_box(self, name: str, box: Box) -> np.ndarray:
        """Return a box as it was written, by whichever ranks.

        Raises
        ------
        DamagedPage
            What is in the file now is something else.
        """
        return self._readers[name].read(box)

    def collect(self, name: str, requests: Sequence[Sequence[Box]]) -> list[np.ndarray]:
        """Return the boxes requests[rank] of this rank. They must have been shared, and a barrier passed."""
        return [self.read_box(name, box) for box in requests[self._comm.rank]]

    def _box(self, name: str, number: int) -> Box:
        return tuple((int(a), int(b)) for a, b in self._arrays[name][1][number])

    def set_aside(self, arrays: Sequence[AnyArray], moved: bool) -> None:
        """Keep the files that are there for :meth:`read_aside`, if one is not its array's. On one rank.

        `moved` says that they are, but that what they hold is now to lie elsewhere in them. What fits and has
        a file set aside already was made by a run that did not come to its end.
        """
        there = [array for array in arrays if self.path(array.name).exists()]
        others = [array for array in there if offset_of(self.path(array.name), array) is None]
        for array in there if others or moved else ():
            path, aside = self.path(array.name), self._aside(array.name)
            if array in others or not aside.exists():
                for kind in (Path, record_path):
                    with contextlib.suppress(FileNotFoundError):
                        kind(path).replace(kind(aside))

    def read_aside(self, array: AnyArray, runs: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return runs of items, (first, count), of the file of `array` that was set aside, end to end.

        Raises
        ------
        OSError
            There is none, or it does not reach so far.
        """
        path = self._aside(array.name)
        offset = offset_in(path)
        raw = RawFile(path, offset, (path.stat().st_size,), array.dtype)
        try:
            nothing = np.empty(0, array.dtype)
            return np.concatenate([nothing, *(raw.read(((first, first + count),)) for first, count in runs)])
        finally:
            raw.close()

    def forget_aside(self, names: Iterable[str]) -> None:
        """Remove files that were set aside. On one rank."""
        for name in names:
            remove_staged(self._aside(name))

    def _aside(self, name: str) -> Path:
        return self.folder / f"{name}.before.h5"

    def sync(self) -> None:
        """Return when what this rank wrote would survive a power loss, and is shared."""
        self.share()
        for file in self._files.values():
            file.sync()

    def drop(self, name: str) -> None:
        """Close an array; its file stays. Collective."""
        self._arrays.pop(name, None)
        self._readers.pop(name, None)
        for files in (self._files, self._sums):
            if name in files:
                files.pop(name).close()
        if name in self._handles:
            self._handles.pop(name).close()

    def close(self) -> None:
        """Close every array. Collective."""
        for name in list(self._arrays):
            self.drop(name)

    def abandon(self) -> None:
        """Close what can be closed alone, after a failure."""
        for file in (*self._files.values(), *self._sums.values()):
            file.close()


class _StagedSums:
    """The sums of the pages of an array: those that this rank has made, and the file that all ranks read.

    They go into the file together, in runs of pages: blocks are read only in stages after the one that writes
    them, and there they would be many small writes of all ranks to the same few blocks of a disk.
    """

    #: So many are read once for all.
    FEW = 1 << 16

    def __init__(self, path: Path, pages: PageTable):
        self._file = RawFile(path, 0, (len(pages),), SUM, writable=True)
        self._count, self._first = len(pages), pages.first
        self._own: dict[int, np.ndarray] = {}
        self._shared: np.ndarray | None = None

    def note(self, number: int, block: np.ndarray) -> int:
        """Sum the pages of a block; return its CRC32."""
        sums = self._own[number] = page_sums(block)
        return combined(sums, block.nbytes)

    def share(self) -> None:
        """Put into the file what was noted; others have done so too before anything is read again."""
        for start, stop in runs(sorted(self._own)):
            sums = np.concatenate([self._own[number] for number in range(start, stop)])
            self._file.write(((int(self._first[start]), int(self._first[stop])),), sums)
        self._own.clear()
        self._shared = None

    def read(self, box: Box) -> np.ndarray:
        """Return the sums of a run of pages."""
        if self._count > self.FEW:
            return self._file.read(box)
        if self._shared is None:
            self._shared = self._file.read(((0, self._count),))
        ((start, stop),) = box
        return self._shared[start:stop]

    def close(self) -> None:
        self._file.close()
