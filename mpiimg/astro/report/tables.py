"""Tables of a survey, as its page reads them: by columns, or row by row where there may be millions."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np


def rows_of(path: Path, separator: str = " ") -> Iterator[dict[str, str]]:
    """Yield the rows of an ECSV file, or of a TSV, as text by column, one at a time."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        yield from csv.DictReader(lines, delimiter=separator)


def columns_of(path: Path, separator: str = " ") -> dict[str, np.ndarray]:
    """Return the columns of an ECSV file, or of a TSV: numbers where all of it are, and else text.

    "n/a" and nothing are NaN among numbers.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        header, *rows = csv.reader(lines, delimiter=separator)
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return {name: _values(column) for name, column in zip(header, columns, strict=True)}


def _values(column: tuple[str, ...]) -> np.ndarray:
    try:
        return np.array([np.nan if text in ("", "n/a") else float(text) for text in column], np.float64)
    except ValueError:
        return np.array(column, dtype=str)


def where(columns: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Return the chosen rows of columns."""
    return {name: values[chosen] for name, values in columns.items()}
