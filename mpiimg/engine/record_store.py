"""The files of records: each rank of each run appends those of a stage to a file of its own.

They lie in records/<stage>/ below the work folder, one after the other with nothing between. Where each
begins, how long it is, and its CRC32 are in the mark of its chunk, and, once the stage is done, known to all
ranks. What is read is compared with its CRC32. Any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpiimg.engine.atomic import make_folder, sync
from mpiimg.engine.boxes import Box
from mpiimg.engine.keys import Key
from mpiimg.engine.raw import FileEnds
from mpiimg.engine.system_errors import naming
from mpiimg.errors import DamagedData

#: Bytes that a rank has written and not handed to the system yet.
_BUFFER = 1 << 20

#: Files that a rank has open for reading.
_MAX_OPEN = 64


class MadeRecord(NamedTuple):
    """A record that a chunk has made, and where it lies in the file of who made it."""

    key: Key
    facts: Any
    size: int
    checksum: int
    offset: int


@dataclass(frozen=True, eq=False)
class Places:
    """Where the records of a stage lie.

    Parameters
    ----------
    files : tuple of Path
    numbers : (records,) int64
        The file of each, in `files`.
    offsets, sizes : (records,) int64
    sums : (records,) int64
        CRC32.
    chunks : (records,) int64
        The chunk that each comes from.
    """

    files: tuple[Path, ...]
    numbers: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    sums: np.ndarray
    chunks: np.ndarray


def records_in(work: Path) -> Path:
    """Return the folder of all records in a work folder."""
    return Path(work) / "records"


class RecordStore:
    """Writes the records of this rank, and reads those of all.

    Parameters
    ----------
    work : Path
        The work folder, on a file system that all ranks share.
    rank : int
        This rank, for the names of its files.
    """

    def __init__(self, work: Path, rank: int):
        self._folder, self._rank = records_in(work), rank
        self._path: Path | None = None
        self._file = None
        self._position = 0
        self._places: dict[str, Places] = {}
        self._open: OrderedDict[Path, int] = OrderedDict()
        #: Spent on checksums of what was written.
        self.seconds = 0.0

    def __contains__(self, name: str) -> bool:
        return name in self._places

    # --- Writing ------------------------------------------------------------------------------------------

    def begin(self, stage: str) -> None:
        """Turn to a stage; its file is made when it has a first record."""
        self.end()
        stamp = f"{time.time_ns():x}-{os.getpid():x}-{self._rank}"
        self._path, self._position = self.folder_of(stage) / stamp, 0

    def folder_of(self, stage: str) -> Path:
        """Return the folder of the records of a stage."""
        return self._folder / stage

    @property
    def file(self) -> str:
        """The name of this rank's file of the stage."""
        return self._path.name

    def append(self, pieces: Sequence) -> tuple[int, int, int]:
        """Append a record; return where it begins, its bytes and its CRC32.

        Raises
        ------
        OSError
            It cannot be written.
        """
        from isal.isal_zlib import crc32

        if self._file is None:
            make_folder(self._path.parent)
            self._file = open(self._path, "xb", buffering=_BUFFER)  # noqa: SIM115  until end()
            sync(self._path.parent)
        start, checksum, size = self._position, 0, 0
        with naming(self._path):
            for piece in pieces:
                began = time.monotonic()
                checksum = crc32(piece, checksum)
                self.seconds += time.monotonic() - began
                self._file.write(piece)
                size += len(piece)
                self._position += len(piece)
        return start, size, checksum

    def share(self) -> None:
        """Let all ranks read what this one wrote."""
        if self._file is not None:
            with naming(self._path):
                self._file.flush()

    def sync(self) -> None:
        """Return when what this rank wrote would survive a power loss."""
        if self._file is not None:
            self.share()
            with naming(self._path):
                os.fdatasync(self._file.fileno())

    def end(self) -> None:
        """Close the file of the stage."""
        if self._file is not None:
            file, self._file = self._file, None
            with naming(self._path):
                file.close()

    # --- Reading ------------------------------------------------------------------------------------------

    def locate(self, name: str, places: Places) -> None:
        """Let records be read as an array."""
        self._places[name] = places

    def path_of(self, stage: str, file: str) -> Path:
        """Return a file of records."""
        return self.folder_of(stage) / Path(file).name

    def is_sound(self, path: Path, offset: int, size: int, checksum: int) -> bool:
        """Say whether a record is still what was written."""
        try:
            return _crc(self._read(path, offset, size)) == checksum
        except OSError:
            return False

    def read_box(self, name: str, box: Box) -> np.ndarray:
        """Return a part of one record, (1, bytes) uint8, as it was written.

        Raises
        ------
        DamagedData
            What is in the file now is something else, or cannot be read.
        """
        ((number, _), (start, stop)) = box
        places = self._places[name]
        path = places.files[places.numbers[number]]
        problem = "is not what was written"
        try:
            data = self._read(path, int(places.offsets[number]), int(places.sizes[number]))
            if _crc(data) == places.sums[number]:
                return data[None, start:stop]
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        raise DamagedData(f"{path}: what is there of chunk {places.chunks[number]} of {name} {problem}")

    def _read(self, path: Path, offset: int, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        rest, position = memoryview(data), offset
        descriptor = self._descriptor(path)
        while rest:
            with naming(path):
                count = os.preadv(descriptor, [rest[: 1 << 30]], position)
            if not count:
                raise FileEnds(f"{path} ends at byte {position}, before a record in it does")
            rest, position = rest[count:], position + count
        return data

    def _descriptor(self, path: Path) -> int:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[path] = os.open(path, os.O_RDONLY)
        return self._open[path]

    def drop(self, name: str) -> None:
        """Forget the records of a stage; their files stay."""
        places = self._places.pop(name, None)
        for path in places.files if places is not None else ():
            if path in self._open:
                os.close(self._open.pop(path))

    def close(self) -> None:
        """Release all files."""
        with contextlib.suppress(OSError):
            self.end()
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _crc(data: np.ndarray) -> int:
    from isal.isal_zlib import crc32

    return crc32(memoryview(data)) if data.size else 0
