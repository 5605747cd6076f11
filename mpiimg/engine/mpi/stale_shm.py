"""What killed ranks have left on a node: shared memory, and the session folders of Open MPI.

A launcher that is killed removes nothing, and neither does what it started: /dev/shm, which is memory, fills.
So the next run removes it, whichever launcher starts it. What nobody has open any more is told by a lease of
the kernel: it is given for a file that no process has open or mapped, in whatever container, and for none
other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mpiimg.engine.mpi.processes import process_stat
from mpiimg.errors import Exit

#: Names of the segments of MPICH, UCX, Open MPI 4 and Open MPI 5.
SEGMENTS = re.compile(r"(mpich_(shm|vci)_|ucx_shm_posix_|vader_segment\.|sm_segment\.)")

#: Names of the folders that the launchers of Open MPI 4 and 5 keep while they run, with their process.
SESSIONS = re.compile(r"(pid|dvm)\.(?P<process>[0-9]+)")

#: Seconds for which nothing is removed after it was written last. A segment is open from its birth; of a
#: session not every file is.
SEGMENT_AGE, SESSION_AGE = 10.0, 600.0

#: What launchers call a rank's number on its node; the last ones for where there is none.
LOCAL_RANK = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "PMI_RANK", "PMIX_RANK")


def segment_names(job: str, node: str) -> list[str]:
    """Return the names of the segments that MPICH makes on a node of a step, such as mpich_shm_f4999f4a_0.

    They follow from the step's name, 3877260.0, and so are those of the same job before it was requeued.

    Parameters
    ----------
    job : str
        Name of the step, as pmi2 tells it in PMI_JOBID.
    node : str
        Number of the node in it.
    """
    number = 2166136261
    for byte in job.encode():  # FNV-1a, of 32 bits
        number = (number ^ byte) * 16777619 & 0xFFFFFFFF
    return [f"mpich_{kind}_{number:x}_{node}" for kind in ("shm", "vci")]


def remove_stale_segments(
    environment=os.environ, folder: str = "/dev/shm", born: float | None = None
) -> None:
    """Remove what a killed run of this same step left; on every rank that srun started by pmi2, before MPI.

    MPICH takes a segment that is there for its own: it fails with "Out of memory" where that is too small,
    and otherwise finds in it the messages and the counters of ranks that are dead.

    Parameters
    ----------
    born : float, optional
        When SLURM began this step on this node, in seconds since 1970; by default as slurmstepd says. All
        ranks of the step start after that, so that what is older belongs to none of them.
    """
    if not {"SLURM_STEP_NUM_TASKS", "PMI_FD", "PMI_JOBID", "SLURM_NODEID"} <= environment.keys():
        return
    names = segment_names(environment["PMI_JOBID"], environment["SLURM_NODEID"])
    for path in (Path(folder, name) for name in names):
        with contextlib.suppress(FileNotFoundError):
            if not _is_ours(os.lstat(path)):
                # MPICH would take it for its own, and share its memory with whoever put it there.
                sys.stderr.write(f"mpiimg: error: {path} on {socket.gethostname()} is somebody else's\n")
                raise SystemExit(int(Exit.BAD_INPUT))
        with contextlib.suppress(OSError), _opened(path, os.O_RDONLY) as segment:
            # The ranks of a node come here in no order. One alone looks and removes at a time: another that
            # has opened the old one would remove the new one, of a rank whose MPI has started already.
            fcntl.flock(segment, fcntl.LOCK_EX)
            born = step_birth() if born is None else born
            if _is_named(segment, path) and os.fstat(segment).st_mtime < born:
                os.unlink(path)


def remove_left_behind(environment=os.environ, folder: str = "/dev/shm", sessions: str | None = None) -> None:
    """Remove what dead runs of this user left on this node; by the first rank of each node, before MPI.

    Parameters
    ----------
    folder : str
        Where segments are.
    sessions : str, optional
        Where Open MPI keeps the folders of its sessions; by default as TMPDIR says.
    """
    if next((environment[name] for name in LOCAL_RANK if name in environment), "0") != "0":
        return
    with contextlib.suppress(OSError):
        for name in filter(SEGMENTS.match, os.listdir(folder)):
            _remove_if_unused(Path(folder, name))
    base = Path(sessions or environment.get("TMPDIR") or "/tmp")
    for kind in ("ompi", "prte"):
        _remove_sessions(base / f"{kind}.{socket.gethostname().partition('.')[0]}.{os.getuid()}")


def _remove_if_unused(path: Path) -> None:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if _is_ours(status) and time.time() - status.st_mtime > SEGMENT_AGE:
            # The lease is held until the name is gone: who opens the file now is not overlooked.
            with _opened(path, os.O_RDWR) as segment:
                if _has_no_other_user(segment) and _is_named(segment, path):
                    os.unlink(path)


def _remove_sessions(folder: Path) -> None:
    """Remove the sessions of dead launchers; not those of which a process has a file open."""
    with contextlib.suppress(OSError):
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return
        for session in folder.iterdir():
            launcher = SESSIONS.fullmatch(session.name)
            old = time.time() - os.lstat(session).st_mtime > SESSION_AGE
            if launcher and old and process_stat(int(launcher["process"])) is None and _is_unused(session):
                shutil.rmtree(session, ignore_errors=True)


def _is_unused(folder: Path) -> bool:
    """Say whether no process has a file in a folder open."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            if stat.S_ISREG(os.lstat(path).st_mode):
                with _opened(path, os.O_RDWR) as file:
                    if not _has_no_other_user(file):
                        return False
    return True


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file of ours: no link is followed, and no pipe waited for."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()


def _is_named(descriptor: int, path: Path) -> bool:
    """Say whether what is open is the file of that name, and this user's."""
    status = os.fstat(descriptor)
    return _is_ours(status) and os.path.samestat(status, os.lstat(path))


def _has_no_other_user(descriptor: int) -> bool:
    """Say whether no other process has a file open or mapped; False also where the kernel does not tell."""
    try:
        # By default the kernel would end this process with SIGIO when somebody opens the file.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


def step_birth(process: int | None = None) -> float:
    """Return when the slurmstepd above this process was started, in seconds since 1970; 0 if none is seen."""
    process = os.getppid() if process is None else process
    while process > 1 and (stat := process_stat(process)) is not None:
        if stat.command.startswith("slurmstepd"):
            return stat.started
        process = stat.parent
    return 0.0
