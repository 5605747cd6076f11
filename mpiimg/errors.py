"""The ways a run ends, and the exceptions that lead there."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit status of every tool."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    PARTIAL = 3
    STOPPED = 75

    @property
    def words(self) -> str:
        """What it means, in words."""
        return _WORDS[self]


_WORDS = {
    Exit.DONE: "done",
    Exit.FAILED: "failed; once the cause is mended, the same command goes on",
    Exit.BAD_INPUT: "wrong input or options; nothing was done",
    Exit.PARTIAL: "done, but some scans or exposures were left out; the same command takes them alone",
    Exit.STOPPED: "stopped by a signal; the same command goes on",
}


class BadInput(Exception):
    """What the user gave cannot be used: one line that says what, where, and what to do. Exit 2."""


class RunFailed(Exception):
    """A rank raised while it worked; all ranks have agreed to end. Exit 1.

    Parameters
    ----------
    report : str
        Rank, host, place and traceback.
    place : str
        Type of the error and the line that raised it, where known: engine/containment.py.
    of_system : bool
        It is of the memory or the file system, which no other work of this job would be spared.
    details : str
        The traceback, where the report says in one line what it comes to.
    """

    def __init__(self, report: str = "", place: str = "", of_system: bool = False, details: str = ""):
        super().__init__(report)
        self.place, self.of_system, self.details = place, of_system, details


class RunStopped(Exception):
    """A signal asked the run to end at a chunk boundary; it can be resumed. Exit 75."""


class DamagedData(RunStopped):
    """What was staged is no longer what was written; says of which array and chunk. The next run mends it."""


class LeftInside(Exception):
    """Code that a run calls wants to end the process; it ends the work that it was called for."""


#: What may come out of work that is not ours to trust: sys.exit() in it is an error of its own, no end.
WORK_ERRORS = (Exception, SystemExit)
