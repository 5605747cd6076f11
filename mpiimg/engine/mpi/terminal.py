"""The terminal that a person looks at: that of this process, or of the launcher that has started it."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TextIO

from mpiimg.engine.mpi.processes import ProcessStat, process_stat

#: Names of programs that start ranks, as the kernel has them: 15 characters at most.
LAUNCHERS = frozenset(
    {
        *("mpiexec", "mpiexec.hydra", "mpirun", "hydra_pmi_proxy", "orterun", "orted"),
        *("prterun", "prte", "prted", "mpiexec.mpich", "mpirun.mpich", "mpiexec.openmpi", "mpirun.openmpi"),
    }
)
_LAUNCHERS = frozenset(name[:15] for name in LAUNCHERS)


@dataclass(frozen=True)
class Terminal:
    """A terminal to draw on.

    Parameters
    ----------
    stream : TextIO
    process : int
        The process that it is the terminal of.
    is_own : bool
        Whether the stream was opened for this and is to be closed.
    """

    stream: TextIO
    process: int
    is_own: bool = False

    def is_ours(self) -> bool:
        """Say whether the job is in the foreground there, and not one that was sent to the background."""
        stat = process_stat(self.process)
        return stat is not None and stat.foreground in (-1, stat.group)

    @property
    def columns(self) -> int:
        """How wide it is; 0 where it does not tell."""
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(self.stream.fileno()).columns
        return 0

    def close(self) -> None:
        """Close what was opened."""
        if self.is_own:
            with contextlib.suppress(OSError):
                self.stream.close()


def terminal() -> Terminal | None:
    """Return the terminal that what this rank says on stderr comes to; None where it comes to none.

    Ranks have no terminal under mpiexec: their stderr is a pipe to it. Where its own stderr is a terminal,
    and it runs on this node, that is the one.
    """
    if os.environ.get("TERM", "dumb") == "dumb":
        return None
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            return Terminal(sys.stderr, os.getpid())
        launcher = _launcher()
        if launcher is None:
            return None
        path = os.readlink(f"/proc/{launcher}/fd/2")
        if not path.startswith(("/dev/pts/", "/dev/tty")):
            return None
        descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY)
        if not os.isatty(descriptor):
            os.close(descriptor)
            return None
        return Terminal(open(descriptor, "w", errors="replace"), launcher, is_own=True)
    return None


def _launcher() -> int | None:
    """Return the process that has started the ranks, the uppermost one; None where none did, on this node.

    What stands between it and this process, such as a shell, must have the same stderr.
    """
    ours = os.readlink("/proc/self/fd/2")
    found, process = None, os.getppid()
    while process > 1 and (stat := process_stat(process)) is not None:
        if _is_launcher(stat):
            found = process
        elif found is not None or os.readlink(f"/proc/{process}/fd/2") != ours:
            break
        process = stat.parent
    return found


def _is_launcher(stat: ProcessStat) -> bool:
    return stat.command in _LAUNCHERS
