"""The log of a run: what each rank did and when, in one file per rank with one record per line.

Lines are buffered and flushed every few seconds. Short chunks that follow each other share a line. A file
that cannot be written never makes the run fail. A line that is torn or damaged is left out.

    start    what runs: tool, command, version, ranks, process, the stages as planned, and their seconds
    stage    a stage begins: its chunks, those that earlier runs have done, those of this rank, and the
             seconds planned for what is left
    chunks   one chunk or several short ones: the last one's number, how many, seconds, bytes
    doing    what this rank is at, where it has been at it for some seconds
    ended    this rank is through with a stage
    error    what went wrong on this rank
    hang     what this rank hung in when it ended the job
    end      the run is over: exit status, and why
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mpiimg.engine.mpi.processes import memory_status
from mpiimg.engine.records import DamagedRecord, RecordFile, line_of, parsed, read_lines

#: No event is from later than the year 5138, in seconds since the epoch.
MAX_TIME = 1e11


def events_folder(out: Path, record: str) -> Path:
    """Return where the events of a run lie whose record is called so: events, or events-<tool>."""
    name = record.removesuffix(".json").removeprefix("run").removeprefix("-")
    return Path(out) / ("-".join(filter(None, ["events", name])))


def record_of(events: Path) -> Path:
    """Return the record of the run whose events lie in a folder; see :func:`events_folder`."""
    name = Path(events).name.removeprefix("events").removeprefix("-")
    return Path(events).with_name(
        f"{name}.json" if "." in name else f"run-{name}.json" if name else "run.json"
    )


def runs_in(folder: Path) -> list[Path]:
    """Return the events folders in `folder`, the run that began last at the end."""
    folders = [path for path in Path(folder).glob("events*") if (path / "0.jsonl").is_file()]
    return sorted(folders, key=_began)


def _began(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return next(read_events(folder / "0.jsonl"), {}).get("time", 0.0)
    return 0.0


class EventLog:
    """Append the events of this rank.

    Parameters
    ----------
    folder : Path, optional
        Shared by all ranks; None to write nothing.
    rank : int
        This rank.
    every : float
        Seconds between flushes.
    together : float
        Chunks that follow each other within so many seconds share a line.
    """

    def __init__(self, folder: Path | None, rank: int, every: float = 5.0, together: float = 1.0):
        self._every, self._together = every, together
        self._who = {"rank": rank, "host": socket.gethostname()}
        self._lines: list[bytes] = []
        self._chunks: dict | None = None
        self._flushed = self._written = time.monotonic()
        self._lock = threading.Lock()
        self._file: RecordFile | None = None
        self.folder = folder
        if folder is not None:
            with contextlib.suppress(OSError):
                self._file = RecordFile(folder / f"{rank}.jsonl", durable=False)

    def write(self, event: str, **fields) -> None:
        """Note an event; it is in the file after the next flush."""
        self._close_chunks()
        self._add(event, fields)

    def chunk(self, stage: str, number: int, seconds: float, nbytes: int) -> None:
        """Note that a chunk is done, of which `nbytes` were written."""
        chunks = self._chunks
        if chunks is not None and chunks["stage"] != stage:
            self._close_chunks()
            chunks = None
        if chunks is None:
            chunks = self._chunks = {"stage": stage, "chunk": number, "chunks": 0, "seconds": 0.0, "bytes": 0}
        chunks["chunk"] = number
        chunks["chunks"] += 1
        chunks["seconds"] += seconds
        chunks["bytes"] += nbytes
        now = time.monotonic()
        if now - self._written > self._together:
            self._close_chunks()
        if now - self._flushed > self._every:
            self.flush()

    def flush(self) -> None:
        """Bring what was noted into the file; never raises."""
        # The watchdog flushes too: whichever of the two comes second leaves it to the first.
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._flushed = time.monotonic()
            lines, self._lines = self._lines, []
            if lines and self._file is not None:
                self._file.append(lines)
        except OSError:
            pass  # a full disk is the run's business, not the log's
        finally:
            self._lock.release()

    def close(self) -> None:
        """Flush, and write nothing more."""
        self._close_chunks()
        self.flush()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _close_chunks(self) -> None:
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            chunks["seconds"] = round(chunks["seconds"], 4)
            self._add("chunks", chunks)

    def _add(self, event: str, fields: dict) -> None:
        self._written = time.monotonic()
        line = {"time": round(time.time(), 3), **self._who, "event": event, **fields, "memory": _resident()}
        self._lines.append(line_of(line))


def read_events(path: Path) -> Iterator[dict]:
    """Yield the events of one rank; torn, damaged and foreign lines are left out.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    return filter(is_event, read_lines(path))


def is_event(record: dict) -> bool:
    """Say whether a record has what all events have; of another version it may have other things."""
    when = record.get("time")
    return (
        isinstance(when, int | float)
        and 0 <= when <= MAX_TIME
        and isinstance(record.get("rank"), int)
        and isinstance(record.get("host"), str)
        and isinstance(record.get("event"), str)
    )


def rank_files(folder: Path) -> list[Path]:
    """Return the logs in an events folder, by rank."""
    files = [path for path in Path(folder).glob("*.jsonl") if path.stem.isdecimal() and path.is_file()]
    return sorted(files, key=lambda path: int(path.stem))


def last_events(folder: Path, tail: int = 1 << 14) -> dict[int, dict]:
    """Return the last event of each rank, from the last `tail` bytes of the files, or more where need be."""
    last = {}
    for path in rank_files(folder):
        with contextlib.suppress(OSError):
            event = _last_event(path, tail)
            if event is not None:
                last[int(path.stem)] = event
    return last


def _last_event(path: Path, tail: int) -> dict | None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            file.seek(max(0, size - tail))
            for line in reversed(file.read().splitlines(keepends=True)):
                with contextlib.suppress(DamagedRecord):
                    event = parsed(line)
                    if is_event(event):
                        return event
            if tail >= size:
                return None
            tail *= 8


def any_recent(folder: Path, seconds: float, but: int) -> bool:
    """Say whether a rank other than `but` has written within the last `seconds`."""
    for path in Path(folder).glob("*.jsonl"):
        with contextlib.suppress(OSError):
            if path.stem != str(but) and time.time() - path.stat().st_mtime < seconds:
                return True
    return False


def _resident() -> int:
    """Return the bytes of memory that this process holds now."""
    try:
        return memory_status()["VmRSS"]
    except OSError:
        return 0
