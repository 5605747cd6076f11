"""What each rank is at just now: a small file per rank, written over at each turn, and read after a death.

What a rank notes in its events comes too late for that: they are buffered, and a chunk has its line when it
is done. These files hold one record each, of one size, which costs some microseconds to write.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpiimg.engine.records import DamagedRecord, line_of, parsed

#: Bytes of a file; what does not fit is cut.
_SIZE = 512

_MAX_WHAT = 200


@dataclass(frozen=True)
class Activity:
    """What a rank is at, or was at when it died.

    Parameters
    ----------
    rank : int
    host : str
    pid : int
        Number of its process on that host.
    what : str
    since : float
        In seconds since 1970.
    waits : bool
        Whether it waits for other ranks.
    """

    rank: int
    host: str
    pid: int
    what: str
    since: float
    waits: bool

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (process {self.pid})"


class ActivityFile:
    """Say what this rank is at.

    Parameters
    ----------
    folder : Path, optional
        Of the events; None to write nothing. What cannot be written never makes the run fail.
    rank : int
    """

    def __init__(self, folder: Path | None, rank: int):
        self._who = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._descriptor: int | None = None
        if folder is not None:
            self._path = folder / f"{rank}.at"
            with contextlib.suppress(OSError):
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, what: str, waits: bool) -> None:
        """Note what this rank turns to."""
        if self._descriptor is None:
            return
        ascii_text = what[:_MAX_WHAT].encode("ascii", "backslashreplace").decode()[:_MAX_WHAT]
        line = line_of({**self._who, "what": ascii_text, "since": round(time.time(), 3), "waits": waits})
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, line.ljust(_SIZE - 1, b" ") + b"\n", 0)

    def close(self) -> None:
        """Remove the file: this rank is through with the run."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                self._path.unlink()


def read_activities(folder: Path) -> dict[int, Activity]:
    """Return what each rank is at, or was when it died; ranks that are through with the run have no file."""
    activities = {}
    for path in activity_files(folder):
        with contextlib.suppress(OSError, DamagedRecord, TypeError, ValueError):
            activity = Activity(**parsed(path.read_bytes().rstrip(b" \n") + b"\n"))
            activities[activity.rank] = activity
    return activities


def activity_files(folder: Path) -> list[Path]:
    """Return the files of all ranks in an events folder."""
    return list(Path(folder).glob("*.at"))


def interrupted_at(activities: Mapping[int, Activity]) -> list[Activity]:
    """Return what a run that died was interrupted at: the ranks at work, else the one that waits longest."""
    at_work = [activity for activity in activities.values() if not activity.waits]
    ordered = sorted(at_work or activities.values(), key=lambda activity: activity.since)
    return ordered if at_work else ordered[:1]


def last_activity(folder: Path) -> str:
    """Say what a run whose events lie in `folder` was at when it died; nothing where that is not known."""
    interrupted = interrupted_at(read_activities(folder))
    if not interrupted:
        return ""
    first, more = interrupted[0], len(interrupted) - 1
    also = f", and {more} more {'rank was' if more == 1 else 'ranks were'} at work" if more else ""
    return f"{first} was at {first.what}{also}"
