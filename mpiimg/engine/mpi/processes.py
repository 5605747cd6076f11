"""What the kernel tells of processes: the one reader of their files in /proc."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessStat:
    """What /proc/PID/stat says.

    Parameters
    ----------
    command : str
        Name of the program.
    state : str
        One letter; Z and X are dead ones.
    parent : int
    ticks : int
        When it was started, in clock ticks since the machine was.
    group, foreground : int
        Its process group, and the one in the foreground of its terminal; -1 where it has no terminal.
    """

    command: str
    state: str
    parent: int
    ticks: int
    group: int = -1
    foreground: int = -1

    @property
    def is_alive(self) -> bool:
        """Whether it runs, as against waiting for its parent to take note of its end."""
        return self.state not in "ZX"

    @property
    def started(self) -> float:
        """When it was started, in seconds since 1970."""
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - self.ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age


def process_stat(process: int) -> ProcessStat | None:
    """Return what the kernel says of a process; None if there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # pid (command) state parent ..., where the command may hold spaces and brackets
        text = Path(f"/proc/{process}/stat").read_text()
        command, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        parent, group, _, _, foreground = map(int, fields[1:6])
        return ProcessStat(command, fields[0], parent, int(fields[19]), group, foreground)
    return None


@dataclass(frozen=True)
class RankProcess:
    """The process of a rank on this node.

    Parameters
    ----------
    rank : int
    pid : int
    ticks : int
        When it was started, which tells it from another that got its number.
    namespace : str
        That `pid` belongs to.
    """

    rank: int
    pid: int
    ticks: int
    namespace: str

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, as far as can be known here."""
        return self._is_known and self._stat() is None

    @classmethod
    def own(cls, rank: int) -> RankProcess:
        """Return that of this process."""
        stat = process_stat(os.getpid())
        return cls(rank, os.getpid(), stat.ticks if stat else 0, pid_namespace())

    def trouble(self) -> str:
        """Say what keeps it from going on; empty where nothing does, or nothing is known."""
        if not self._is_known:
            return ""
        stat = self._stat()
        return (
            "is gone"
            if stat is None
            else {
                "T": "is stopped by a signal (state T)",
                "t": "is stopped by a debugger (state t)",
                "D": "waits for a disk or a file system (state D)",
            }.get(stat.state, "")
        )

    @property
    def _is_known(self) -> bool:
        return self.ticks > 0 and self.namespace == pid_namespace()

    def _stat(self) -> ProcessStat | None:
        """Return what the kernel says of it while it runs."""
        stat = process_stat(self.pid)
        return stat if stat is not None and stat.ticks == self.ticks and stat.is_alive else None


def memory_status(process: int | str = "self") -> dict[str, int]:
    """Return the sizes in /proc/PID/status by name, in bytes: VmRSS, VmHWM, RssAnon, RssFile, ..."""
    with open(f"/proc/{process}/status") as lines:
        fields = (line.split() for line in lines)
        return {words[0][:-1]: int(words[1]) << 10 for words in fields if words[-1] == "kB"}


def pid_namespace() -> str:
    """Return the namespace that numbers of processes belong to; empty where the kernel does not tell."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def boot_id() -> str:
    """Return what tells this start of the machine from others; empty where the kernel does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def mapped_files(maps: str = "/proc/self/maps") -> set[str]:
    """Return the paths of the files mapped into this process; none where the kernel does not tell."""
    with contextlib.suppress(OSError), open(maps) as lines:
        return {words[-1] for words in map(str.split, lines) if words}
    return set()


def cgroup_names(table: str = "/proc/self/cgroup") -> list[str]:
    """Return the names of the cgroups, of version 2, that this process is in."""
    with contextlib.suppress(OSError):
        entries = (line.split(":", 2) for line in Path(table).read_text().splitlines())
        return [name for _, controllers, name in entries if not controllers]
    return []


def forget_peak_memory() -> None:
    """Let the kernel forget the highest resident size so far; not every container allows it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
