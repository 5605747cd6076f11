"""Runs of the systems as rows, and the CSV file that keeps them.

A row is a dict. What ran: `workload`, `size`, `system`, `round`, `by_steps`, `limit` in bytes or None,
`workers`, `lines` of code, and `tables` that it belongs to. How it ended: `result`, and `difference` from
the serial run. What it took: `seconds`, `cpu_seconds`, `peak_pss`, `peak_kept`, `processes`, `steps` (seconds
and CPU-seconds by name), `recorded` (the CPU-seconds that mpiimg's own record has for its steps), and
`rehearsal` (those in which users' functions were tried before the run). Under which conditions: `where`.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

#: What a cell of these columns becomes; all other columns are steps or conditions.
TYPES = {
    "workload": str,
    "size": str,
    "system": str,
    "round": int,
    "by_steps": lambda text: text == "True",
    "limit": lambda text: int(text) if text else None,
    "tables": lambda text: tuple(text.split()),
    "lines": int,
    "workers": int,
    "result": str,
    "difference": str,
    "seconds": float,
    "cpu_seconds": float,
    "peak_pss": int,
    "peak_kept": int,
    "processes": int,
    "rehearsal": float,
}

#: What follows the name of a step in the name of its column.
STEP_COLUMNS = ("s", "CPU-s", "recorded CPU-s")


def write(path: Path, rows: list[dict]) -> None:
    """Write all rows; a reader meets a whole file at any time."""
    flat = [_flatten(row) for row in rows]
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)
    os.replace(part, path)


def read(paths: list[Path]) -> list[dict]:
    """Return the rows of several files, one file after the other.

    Raises
    ------
    SystemExit
        A file cannot be read, or holds something else.
    """
    rows = []
    for path in paths:
        try:
            with open(path, newline="") as file:
                rows += [_unflatten(cells) for cells in csv.DictReader(file)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path}: not the runs of side_by_side.py: {error!r}") from None
    return rows


def require_one_cpu(rows: list[dict]) -> None:
    """Refuse to set figures of one CPU beside those of another.

    A model such as "AMD EPYC" says less than the target that numba finds, which was not always recorded.

    Raises
    ------
    SystemExit
        Rows were measured on different CPUs, or compiled for different ones.
    """
    told = {
        " for ".join((row["where"].get("cpu", "unknown"), row["where"].get("target", "unknown")))
        for row in rows
    }
    if len(told) > 1:
        raise SystemExit(
            f"figures of different CPUs ({'; '.join(sorted(told))}) say nothing beside each other: measure "
            "again on one of them"
        )


def _flatten(row: dict) -> dict:
    cells = {key: row.get(key) for key in TYPES} | {"tables": " ".join(row["tables"])}
    for step, (seconds, spent) in row["steps"].items():
        cells |= {f"{step} s": seconds, f"{step} CPU-s": spent}
    cells |= {f"{step} recorded CPU-s": spent for step, spent in row.get("recorded", {}).items()}
    return cells | row["where"]


def _unflatten(cells: dict[str, str]) -> dict:
    # A run that never was, of a system that is not installed, has no numbers.
    row = {key: kind(cells[key]) for key, kind in TYPES.items() if cells[key] or key == "limit"}
    row |= {"steps": {}, "recorded": {}, "where": {}}
    for column, text in cells.items():
        step, _, what = column.partition(" ")
        if what in STEP_COLUMNS and text:
            if what == "recorded CPU-s":
                row["recorded"][step] = float(text)
            elif what == "CPU-s":
                row["steps"][step] = (float(cells[f"{step} s"]), float(text))
        elif what == "" and column not in TYPES:
            row["where"][column] = text
    return row
