"""The first lines of every tool, ahead of what takes time to import, and the last."""

from __future__ import annotations

import sys

from mpiimg.engine.mpi.exits import leave_what_is_left
from mpiimg.engine.mpi.lifetime import living
from mpiimg.tools import environment


def start(name: str) -> int:
    """Run tool `name`, or the one that mpiimg is told, as this process's program; return its exit status."""
    if problem := environment.prepare():
        return environment.refuse(problem)
    if name == "mpiimg":
        from mpiimg.tools.umbrella import chosen

        words = sys.argv[1:]
        name = chosen(words)
        sys.argv = [name, *words]
    with living(owner=True) as life:
        # Threads that libraries start have signals held back for good, so that the main one gets them.
        with life.stop.held_back():
            from mpiimg.engine.mpi import runtime
            from mpiimg.tools.cli import main
        status = main(name)
        # How it ends is decided.
        life.stop.ignore()
        runtime.end_world()
    if not life.is_of_script:
        leave_what_is_left(status)
    return status
