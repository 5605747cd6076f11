"""Sound inputs that are spoilt one way each, and what must be as before when they have been refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class Cases(dict):
    """Functions that spoil an input, with words that the message must hold, by the names of the functions."""

    def case(self, *words: str) -> Callable:
        """Register the function that follows."""

        def register(function):
            self[function.__name__] = function, words
            return function

        return register


def snapshot(folder: Path) -> dict:
    """Return what lies in a folder: names, times and sizes of files."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) if p.is_file() else None
        for p in folder.rglob("*")
    }
