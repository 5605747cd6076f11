"""What a folder can take: space, inodes, limits on a user, and whether ranks see each other's writes."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.raw import free_bytes
from mpiimg.engine.staged_file import remove_staged
from mpiimg.engine.stores import StagedStore
from mpiimg.errors import DamagedData

#: File systems on which writes of several nodes to one file are not seen at once.
INCOHERENT = ("nfs", "nfs4")


@dataclass(frozen=True)
class Space:
    """Space on the file system of a folder.

    Parameters
    ----------
    kind : str
        The kind of file system, e.g. "lustre".
    free : int
        Bytes.
    inodes : int, optional
        Files that can still be made; None where the file system does not count them.
    largest_file : int, optional
        Bytes that a file may have (RLIMIT_FSIZE); None without a limit.
    quota : int, optional
        Bytes that the user's quota leaves; None where no quota is known.
    """

    kind: str
    free: int
    inodes: int | None
    largest_file: int | None
    quota: int | None


def space(folder: Path) -> Space:
    """Return the space that this user has where `folder` lies."""
    stat = os.statvfs(folder)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    kind = file_system(folder)
    return Space(
        kind,
        free_bytes(folder),
        stat.f_favail if stat.f_files else None,
        None if limit == resource.RLIM_INFINITY else limit,
        quota_left(quota_report(folder, kind)),
    )


def file_system(folder: Path, mounts: str = "/proc/self/mounts") -> str:
    """Return the kind of the file system that `folder` lies on."""
    path, best = Path(folder).resolve(), ("", "unknown")
    with open(mounts) as lines:
        for line in lines:
            _, point, kind, *_ = line.split()
            point = point.encode().decode("unicode_escape")
            if path.is_relative_to(point) and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def quota_report(folder: Path, kind: str) -> str:
    """Return the system's report of this user's quota where `folder` lies; "" where it has no quotas."""
    user = pwd.getpwuid(os.getuid()).pw_name
    commands = {"lustre": ["lfs", "quota", "-q", "-u", user, str(folder)]}
    command = commands.get(kind, ["quota", "-w", "-f", str(folder)])
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def quota_left(report: str) -> int | None:
    """Return the bytes that a report of `quota -w` or `lfs quota` leaves, None where it names no limit.

    Both print a line per file system: name, kilobytes used (with a star where over), soft and hard limit, ...
    """
    remaining = []
    for line in report.splitlines():
        words = line.replace("*", "").split()
        numbers = [int(word) for word in words[1:4] if word.isdecimal()]
        if len(numbers) == 3:
            used, soft, hard = numbers
            remaining += [max(limit - used, 0) << 10 for limit in (soft, hard) if limit]
    return min(remaining, default=None)


def stage_together(folder: Path, comm) -> None:
    """Let every rank write its part of a staged array in `folder`, and read all parts of it. Collective.

    Raises
    ------
    OSError
        On every rank alike: a rank cannot write there, or does not see what another wrote.
    """
    array = Array("mpiimg-doctor", "kx", (comm.size, 4096), "float32")
    boxes = np.array([[(rank, rank + 1), (0, 4096)] for rank in range(comm.size)])
    store, problem = StagedStore(folder, comm), None
    try:
        store.create(array, boxes, np.arange(comm.size))
        try:
            store.write(array.name, comm.rank, np.full((1, 4096), comm.rank + 1, np.float32))
            store.sync()
        except OSError as error:
            problem = f"rank {comm.rank} cannot write: {error}"
        comm.Barrier()  # a rank would read before another has written
        for rank in range(comm.size):
            if problem is None and not _sees(store, array.name, rank):
                problem = f"rank {comm.rank} does not see what rank {rank} wrote"
        store.close()
    finally:
        comm.Barrier()  # no rank may have the file open when it is removed
        if comm.rank == 0:
            remove_staged(store.path(array.name))
    problems = [text for text in comm.allgather(problem) if text]
    if problems:
        raise OSError(problems[0])


def _sees(store: StagedStore, name: str, rank: int) -> bool:
    """Say whether this rank reads what another has written."""
    try:
        return bool((store.read(name, rank) == rank + 1).all())
    except (DamagedData, OSError):
        return False
