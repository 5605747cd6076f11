"""Tables as text: ECSV, which keeps types and units, and CSV, which keeps neither."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows, Schema


def head(schema: Schema, ecsv: bool) -> bytes:
    """Return the lines before the first row."""
    return _written(schema.empty(), schema, ecsv)


def encode(schema: Schema, rows: Rows, ecsv: bool) -> bytes:
    """Return rows as lines."""
    return _written(rows, schema, ecsv)[len(head(schema, ecsv)) :] if len(rows) else b""


def check(schema: Schema, ecsv: bool) -> None:
    """Refuse columns that the format does not have.

    Raises
    ------
    BadInput
    """
    for column in schema.columns if not ecsv else ():
        if column.shape:
            raise BadInput(
                f"table: column {column.name}: CSV holds no vectors; write .ecsv, .parquet or .fits"
            )


def _written(rows: Rows, schema: Schema, ecsv: bool) -> bytes:
    from astropy.io import ascii

    out = io.StringIO()
    if ecsv:
        ascii.write(as_table(rows, schema), out, format="ecsv", delimiter=",")
    else:
        ascii.write(as_table(rows, schema), out, format="csv")
    return out.getvalue().encode()


def as_table(rows: Rows, schema: Schema):
    """Return an astropy Table with units."""
    from astropy.table import Column, Table

    return Table([Column(rows[one.name], one.name, unit=one.unit or None) for one in schema.columns])


def read(path: Path, ecsv: bool) -> Rows:
    """Return the rows of a file."""
    from astropy.table import Table

    from mpiimg.formats.tables.rows import as_rows

    table = Table.read(path, format="ascii.ecsv" if ecsv else "ascii.csv")
    if not ecsv:
        _guess(table)
    return as_rows(table, where=str(path))


def _guess(table) -> None:
    """Take what CSV does not say for what it looks like: bools, and integers of which some are missing."""
    for name in table.colnames:
        values = table[name]
        if values.dtype.kind == "U" and len(values) and set(values.tolist()) <= {"True", "False"}:
            table[name] = values == "True"
        elif values.dtype.kind == "i" and getattr(values, "mask", np.False_).any():
            table[name] = values.astype(float)
