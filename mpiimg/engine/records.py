"""Records: what a run writes for runs after it, and for people, each with a checksum of itself.

A record is a JSON object. Its last field is the CRC32 of all bytes before that field, and the first one the
version of its form:

    {"format": 1, "stage": "denoise", "chunk": 7, ..., "crc32": "1c291ca3"}

So any JSON reader reads it, and a record that is not as it was written is noticed, whichever bit it is. A
file holds one record, indented for people (:func:`write_record`), or one a line (:class:`RecordFile`). What
is damaged is never believed: of a file of lines it is left out, of a single one the reader is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from mpiimg.engine.atomic import sync, write_file
from mpiimg.engine.system_errors import naming

#: Version of the form of records; those of another one are not read.
FORMAT = 1

_LINE_END = ', "crc32": "{}"}}\n'
_DOCUMENT_END = ',\n  "crc32": "{}"\n}}\n'
_SUM = re.compile(rb'"crc32": "([0-9a-f]{8})"\s*}\s*\Z')


class DamagedRecord(ValueError):
    """A record is not as it was written, or of a version that is not read here."""


def line_of(content: Mapping[str, Any]) -> bytes:
    """Return a record as a line of a file of many."""
    return _sealed(json.dumps({"format": FORMAT, **content})[: -len("}")], _LINE_END)


def document_of(content: Mapping[str, Any]) -> bytes:
    """Return a record as a file of its own, indented for people."""
    return _sealed(json.dumps({"format": FORMAT, **content}, indent=2)[: -len("\n}")], _DOCUMENT_END)


def parsed(data: bytes) -> dict[str, Any]:
    """Return the content of a line or a document.

    Raises
    ------
    DamagedRecord
        It is not as it was written.
    """
    end = _SUM.search(data)
    if end is None:
        raise DamagedRecord("has no checksum at its end")
    for form in (_LINE_END, _DOCUMENT_END):
        tail = form.format(end[1].decode()).encode()
        if data.endswith(tail):
            body = data[: -len(tail)]
            if f"{crc32(body):08x}".encode() != end[1]:
                raise DamagedRecord("does not have the checksum that it was written with")
            try:
                content = json.loads(body + b"}")
            except ValueError:
                raise DamagedRecord("is no JSON, though its checksum fits") from None
            if content.pop("format", None) != FORMAT:
                raise DamagedRecord("was written by another version of mpiimg")
            return content
    raise DamagedRecord("does not end as records do")


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record to a file of its own, whole and durable, or leave what was there.

    Raises
    ------
    OSError
        It cannot be written.
    """
    write_file(path, document_of(content))


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record in a file; None where there is no file.

    Raises
    ------
    DamagedRecord
        There is a file, and it is not as it was written.
    OSError
        It cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parsed(data)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of lines; damaged, torn and foreign lines are left out.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    with open(path, "rb") as file:
        for data in file:
            with contextlib.suppress(DamagedRecord):
                yield parsed(data)


class RecordFile:
    """Append records to a file of lines, of which this process is the only writer.

    Parameters
    ----------
    path : Path
        The file; one that is there is emptied.
    durable : bool
        The name of the file is to survive a power loss.

    Raises
    ------
    OSError
        It cannot be made.
    """

    def __init__(self, path: Path, durable: bool = True):
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        self._path, self._torn = path, False
        if durable:
            sync(Path(path).parent)

    def append(self, lines: Iterable[bytes]) -> None:
        """Append lines as :func:`line_of` made them.

        What could not be written whole is never taken for part of what comes after it.

        Raises
        ------
        OSError
            They cannot be written, as on a full disk.
        """
        data = memoryview(b"\n" * self._torn + b"".join(lines))
        self._torn = bool(data)
        with naming(self._path):
            while data:
                data = data[os.write(self._descriptor, data) :]
        self._torn = False

    def sync(self) -> None:
        """Return when what was appended would survive a power loss."""
        with naming(self._path):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _sealed(body: str, tail: str) -> bytes:
    data = body.encode()
    return data + tail.format(f"{crc32(data):08x}").encode()
