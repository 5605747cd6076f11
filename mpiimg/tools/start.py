"""The first lines of every tool, ahead of what takes time to import."""

from __future__ import annotations

from mpiimg.tools import environment


def start(name: str) -> int:
    """Run tool `name` as the program of this process; return its exit status."""
    if problem := environment.prepare():
        return environment.refuse(problem)
    from mpiimg.tools.cli import main

    return main(name)
