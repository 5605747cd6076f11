"""The first lines of every tool, and the last: nothing of it is out of sight, not even its imports."""

from __future__ import annotations

from mpiimg.engine.mpi.lifetime import living


def start(name: str) -> int:
    """Run tool `name` as the program of this process; return its exit status."""
    with living(owner=True) as life:
        # Threads that libraries start have signals held back for good, so that the main one gets them.
        with life.stop.held_back():
            from mpiimg.engine.mpi import runtime
            from mpiimg.tools.cli import main
        status = main(name)
        # How it ends is decided.
        life.stop.ignore()
        runtime.end_world()
    return status
