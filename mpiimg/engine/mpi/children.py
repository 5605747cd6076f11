"""Programs of others that a rank runs: found, given an environment of no rank, watched, and ended with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiimg.engine.mpi.job import OF_RANKS
from mpiimg.errors import BadInput

#: Variables by which programs learn how many threads to start.
OF_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)

#: Bytes of what a program says that are kept for messages, the last ones.
LAST_BYTES = 1 << 16

#: Seconds for which the processes of a program that took too long may put their things in order.
_GRACE = 2.0

# Waits for the end of the rank, whatever it is: the pipe to it closes. Then it ends the program that runs and
# its group, whose number it was told last (0 for none), and removes the scratch folder. It has a session of
# its own, so that an interrupt from a terminal spares it. dash knows no "kill -KILL -- -1".
_GUARD = 'g=0; while read -r n; do g=$n; done; [ "$g" != 0 ] && kill -9 "-$g"; rm -rf -- "$1"'


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Parameters
    ----------
    status : int
        Its exit status; the negative number of a signal that ended it.
    late : bool
        It took longer than it was allowed to, and was ended for that.
    stdout, stderr : Path
        What it said.
    """

    status: int
    late: bool
    stdout: Path
    stderr: Path

    @property
    def how(self) -> str:
        """Say how it ended."""
        if self.status >= 0:
            return f"ended with exit status {self.status}"
        with contextlib.suppress(ValueError):
            return f"was ended by signal {-self.status} ({signal.Signals(-self.status).name})"
        return f"was ended by signal {-self.status}"


def find_program(name: str) -> str | None:
    """Return the path of a program as a shell would find it; None where there is none."""
    return shutil.which(name)


def environment_of_program(threads: int | None, extra: Mapping[str, str | None]) -> dict[str, str]:
    """Return an environment in which a program is no rank of an MPI job.

    Parameters
    ----------
    threads : int, optional
        How many threads it is told to use; None leaves that as it is.
    extra : mapping
        Variables to set, or, where None, to leave out.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}
    if threads is not None:
        clean |= dict.fromkeys(OF_THREADS, str(threads))
        # MRtrix3: 0 works in the main thread alone, 1 in a second one.
        clean["MRTRIX_NTHREADS"] = str(threads if threads > 1 else 0)
    clean |= {name: value for name, value in extra.items() if value is not None}
    return {name: value for name, value in clean.items() if extra.get(name, value) is not None}


class _Scratch:
    """The scratch folder of this process, and the guard that removes it when the process is gone."""

    def __init__(self, base: str | None):
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="mpiimg-", dir=base))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise BadInput(
                f"{base}: cannot hold the scratch files of programs: {error.strerror}; let TMPDIR name "
                "a folder on this node's disk"
            ) from None
        self.process = os.getpid()
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "mpiimg-guard", self.folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError:
            self.folder.rmdir()
            raise
        # It lives as long as this process: nobody waits for it.
        self._guard.returncode = 0

    def running(self, group: int) -> None:
        """Tell the guard which group of processes runs; 0 for none."""
        with contextlib.suppress(OSError):
            os.write(self._guard.stdin.fileno(), f"{group}\n".encode())


_scratch: _Scratch | None = None


def _own_scratch() -> _Scratch:
    global _scratch
    gone = _scratch is not None and not _scratch.folder.is_dir()
    if _scratch is None or gone or _scratch.process != os.getpid():
        _scratch = _Scratch(scratch_base())
    return _scratch


def scratch_base() -> str:
    """Return the folder for files that only this node needs, for a while: what TMPDIR names, or /tmp."""
    return os.environ.get("TMPDIR") or "/tmp"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder on this node's own disk; it is removed at the end, also where the process dies.

    Raises
    ------
    BadInput
        The folder that TMPDIR names is not there, or closed.
    OSError
        It cannot be made, with its name.
    """
    folder = Path(tempfile.mkdtemp(prefix="call-", dir=_own_scratch().folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_program(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    timeout: float | None = None,
    cwd: Path | None = None,
) -> Outcome:
    """Run a program to its end, in a group of processes of its own.

    Python starts it by vfork, which copies nothing of a process that has MPI's memory. Signals to this
    process are handled meanwhile, and do not end the program; where this process dies, the guard ends it.

    Parameters
    ----------
    words : sequence of str
        Program and arguments; no shell sees them.
    folder : Path
        From :func:`scratch_folder`; what the program says is kept there.
    environment : mapping
    timeout : float, optional
        Seconds after which it is ended, with all processes that it started.
    cwd : Path, optional
        Where it runs; by default where this process does.

    Raises
    ------
    OSError
        It cannot be started.
    """
    stdout, stderr = folder / ".stdout", folder / ".stderr"
    with open(stdout, "wb") as said, open(stderr, "wb") as complained:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=complained,
            env=environment,
            cwd=cwd,
            process_group=0,
        )
    late, scratch = False, _own_scratch()
    scratch.running(process.pid)
    try:
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
    finally:
        # Also what it left behind in its group, as in the background; nothing of it may go on writing.
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        scratch.running(0)
    return Outcome(process.returncode, late, stdout, stderr)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of what a program said; what it drew over (carriage returns) left out."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - LAST_BYTES, 0))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip().rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
