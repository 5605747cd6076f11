"""Tables as FITS binary tables: a head, then the rows of part after part, whoever writes them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Column, Rows, Schema

#: Bytes that a FITS file is a multiple of.
_BLOCK = 2880

#: NumPy type -> letter of FITS, type in the file, and what is added to what is stored (TZERO).
_TYPES = {
    "?": ("L", "u1", 0),
    "i1": ("B", "u1", -128),
    "u1": ("B", "u1", 0),
    "i2": ("I", ">i2", 0),
    "u2": ("I", ">i2", 1 << 15),
    "i4": ("J", ">i4", 0),
    "u4": ("J", ">i4", 1 << 31),
    "i8": ("K", ">i8", 0),
    "u8": ("K", ">i8", 1 << 63),
    "f2": ("E", ">f4", 0),
    "f4": ("E", ">f4", 0),
    "f8": ("D", ">f8", 0),
    "c8": ("C", ">c8", 0),
    "c16": ("M", ">c16", 0),
}


def head(schema: Schema, rows: int) -> bytes:
    """Return what a file begins with: an empty primary unit, and the header of the table.

    Parameters
    ----------
    schema : Schema
        Text with its width.
    rows : int
        Of the whole table.
    """
    from astropy.io import fits

    columns = [_column(column) for column in schema.columns]
    table = fits.BinTableHDU.from_columns(columns, nrows=0, name="TABLE")
    table.header["NAXIS1"], table.header["NAXIS2"] = _row_type(schema).itemsize, rows
    primary = fits.PrimaryHDU().header.tostring()
    return (primary + table.header.tostring()).encode("ascii")


def encode(schema: Schema, rows: Rows) -> bytes:
    """Return rows as they lie in the file.

    Raises
    ------
    BadInput
        Text that is no ASCII.
    """
    packed = np.zeros(len(rows), _row_type(schema))
    for number, column in enumerate(schema.columns):
        packed[f"c{number}"] = _stored(rows[column.name], column)
    return packed.tobytes()


def tail(schema: Schema, rows: int) -> bytes:
    """Return what fills the last block of a file of so many rows."""
    return bytes(-rows * _row_type(schema).itemsize % _BLOCK)


def _row_type(schema: Schema) -> np.dtype:
    return np.dtype([(f"c{n}", *_in_file(column)) for n, column in enumerate(schema.columns)])


def _in_file(column: Column) -> tuple[str, tuple[int, ...]]:
    return (f"S{_width(column)}" if column.is_text else _TYPES[column.dtype][1]), column.shape


def _width(column: Column) -> int:
    return max(1, int(column.dtype[1:] or 1))


def _column(column: Column):
    from astropy.io import fits

    count, dims = math.prod(column.shape), column.shape[::-1]
    letter, _, zero = ("A", "", 0) if column.is_text else _TYPES[column.dtype]
    if column.is_text:
        count, dims = count * _width(column), (_width(column), *dims)
    options = {"bzero": zero} if zero else {}
    if len(dims) > 1:
        options["dim"] = f"({','.join(map(str, dims))})"
    return fits.Column(column.name, f"{count}{letter}", unit=column.unit or None, **options)


def _stored(values: np.ndarray, column: Column) -> np.ndarray:
    if column.is_text:
        try:
            return np.char.encode(values, "ascii") if values.size else values.astype("S")
        except UnicodeEncodeError as error:
            raise BadInput(
                f"table: column {column.name}: FITS holds ASCII text, not {str(error.object)!r}; "
                "write .parquet or .ecsv"
            ) from None
    if column.dtype == "?":
        return np.where(values, ord("T"), ord("F"))
    zero = _TYPES[column.dtype][2]
    if zero < 0:
        return values.astype("i2") - zero
    if zero:
        # To subtract half the range is to turn the highest bit.
        return (values ^ values.dtype.type(zero)).view(values.dtype.str.replace("u", "i"))
    return values


def read(path: Path, start: int | None = None, stop: int | None = None, hdu: int | None = None) -> Rows:
    """Return rows of a table in a FITS file: of its first table, or of a given unit."""
    from astropy.io import fits

    from mpiimg.formats.tables.rows import as_rows

    with fits.open(path, memmap=True) as units:
        table = _table(units, path, hdu)
        part = table.data[start:stop]
        columns, header = {}, table.columns
        for name in header.names:
            values = np.array(part[name])
            if values.dtype.kind not in "biufcUS":
                raise BadInput(
                    f"{path}: column {name}: rows of different lengths cannot be read; leave it out"
                )
            columns[name] = values.astype(values.dtype.newbyteorder("="), copy=False)
            del values
        texts = {name: unit for name, unit in zip(header.names, header.units, strict=True) if unit}
        del part
    rows = as_rows(columns, where=str(path))
    return Rows(rows.columns, texts)


def length(path: Path, hdu: int | None = None) -> int:
    """Return how many rows the table in a file has."""
    from astropy.io import fits

    with fits.open(path, memmap=True) as units:
        return int(_table(units, path, hdu).header["NAXIS2"])


def _table(units, path: Path, hdu: int | None):
    from astropy.io import fits

    if hdu is not None:
        return units[hdu]
    for unit in units:
        if isinstance(unit, fits.BinTableHDU) and not isinstance(unit, fits.CompImageHDU):
            return unit
    raise BadInput(f"{path}: holds no binary table")
