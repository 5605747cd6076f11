"""How sizes, times and tables are written for people."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Collection, Sequence

#: Spaces between columns.
_GAP = "  "


def columns(rows: Sequence[Sequence[object]], left: Collection[int] = (0,)) -> list[str]:
    """Return rows of cells as lines; each column is as wide as its widest cell, so that none ever touch.

    Parameters
    ----------
    rows : sequence of sequence of object
        As many cells in each, of which the text is shown.
    left : collection of int
        The columns that are flush left; the others are flush right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _width(cell))
            padded.append(cell + space if number in left else space + cell)
        lines.append(_GAP.join(padded).rstrip())
    return lines


def _width(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) > 0 for one in text)


def step_of(stage: str) -> str:
    """Return the step that the name of a stage begins with; of one that is of no step, the whole name."""
    step, _, _ = stage.partition(".")
    return stage if step.startswith(("write-", "read-")) else step


def megabytes(count: int) -> int:
    """Return MiB, rounded up."""
    return -(-int(count) // (1 << 20))


def size(count: float) -> str:
    """Return bytes as e.g. 12 MB, 1.5 GB or 3.2 TB, by powers of 1024, rounded up to a megabyte."""
    if count < 1000 << 20:
        return f"{megabytes(int(count))} MB"
    if count < 1000 << 30:
        return f"{count / (1 << 30):.3g} GB"
    return f"{count / (1 << 40):.3g} TB"


def many(count: int, what: str) -> str:
    """Return e.g. 1 rank or 2 ranks."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def span(seconds: float) -> str:
    """Return e.g. 7 s, 3 min 5 s or 2 h 10 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def about(seconds: float) -> str:
    """Return a time that is only estimated: under 10 s, about 40 s, about 3 min, about 2 h 10 min, ..."""
    if seconds < 10:
        return "under 10 s"
    if seconds < 55:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 5400:
        return f"about {max(1, round(seconds / 60))} min"
    if seconds < 48 * 3600:
        minutes = round(seconds / 600) * 10
        return f"about {minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"about {round(seconds / 86400)} days"


def clock(when: float) -> str:
    """Return a time since 1970 in seconds as the local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
