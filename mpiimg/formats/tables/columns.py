"""Columns of a table, rows of it, and one schema of many parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mpiimg.errors import BadInput


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    name : str
    dtype : str
        As NumPy writes it, in the machine's byte order: "f8", "i4", "?", and "U" for text of any length.
    unit : str
        As astropy writes it; empty where there is none.
    shape : tuple of int
        Of what is in one row: () for a number, (3,) for a vector.
    """

    name: str
    dtype: str
    unit: str = ""
    shape: tuple[int, ...] = ()

    @property
    def is_text(self) -> bool:
        return self.dtype.startswith("U")

    def __str__(self) -> str:
        vector = f"({', '.join(map(str, self.shape))})" if self.shape else ""
        kind = "text" if self.is_text else np.dtype(self.dtype).name
        return f"{self.name} {kind}{vector}{f' [{self.unit}]' if self.unit else ''}"


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in order.

    Parameters
    ----------
    columns : tuple of Column
    """

    columns: tuple[Column, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def __getitem__(self, name: str) -> Column:
        return self.columns[self.index(name)]

    def index(self, name: str, what: str = "table") -> int:
        """Return the place of a column.

        Raises
        ------
        BadInput
            There is none of this name.
        """
        if name not in self.names:
            raise BadInput(f"{what}: has no column {name}; it has: {', '.join(self.names) or 'none'}")
        return self.names.index(name)

    def without(self, names: Iterable[str]) -> Schema:
        """Return it without some columns."""
        left_out = set(names)
        return Schema(tuple(column for column in self.columns if column.name not in left_out))

    def to_record(self) -> list:
        """Return it as JSON knows it."""
        return [[one.name, one.dtype, one.unit, list(one.shape)] for one in self.columns]

    @classmethod
    def of_record(cls, record: list) -> Schema:
        """Return the schema that JSON is of."""
        return cls(tuple(Column(name, dtype, unit, tuple(shape)) for name, dtype, unit, shape in record))

    def empty(self) -> Rows:
        """Return no rows of it."""
        arrays = {one.name: np.zeros((0, *one.shape), one.dtype) for one in self.columns}
        return Rows(arrays, {one.name: one.unit for one in self.columns})


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a table.

    Parameters
    ----------
    columns : mapping of str to ndarray
        Of one length; the first axis is that of the rows.
    units : mapping of str to str
        Of those columns that have one.
    """

    columns: Mapping[str, np.ndarray]
    units: Mapping[str, str]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())

    @property
    def schema(self) -> Schema:
        """Its columns, text with the width that these rows take."""
        made = (
            Column(n, type_name(a.dtype), self.units.get(n, ""), a.shape[1:]) for n, a in self.columns.items()
        )
        return Schema(tuple(made))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise BadInput(f"table: has no column {name}; it has: {', '.join(self.columns) or 'none'}")
        return self.columns[name]

    def taken(self, places: Any) -> Rows:
        """Return some rows: a slice, a mask or numbers of rows."""
        return Rows({name: values[places] for name, values in self.columns.items()}, self.units)

    def selected(self, names: Iterable[str]) -> Rows:
        """Return some columns, in this order."""
        names = tuple(names)
        return Rows({name: self[name] for name in names}, {n: u for n, u in self.units.items() if n in names})

    def to_record(self) -> dict[str, Any]:
        """Return it as records hold it."""
        return {"columns": dict(self.columns), "units": dict(self.units)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Rows:
        """Return the rows that a record holds."""
        return cls(record["columns"], record["units"])


def joined(parts: Sequence[Rows], schema: Schema) -> Rows:
    """Return the rows of all parts, one behind the other, as columns of a schema."""
    parts = [cast(part, schema) for part in parts] or [schema.empty()]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in schema.names}
    return Rows(columns, {one.name: one.unit for one in schema.columns if one.unit})


def cast(rows: Rows, schema: Schema, where: str = "table") -> Rows:
    """Return rows as columns of a schema.

    Raises
    ------
    BadInput
        A value is lost: a number that does not fit, a fraction in a column of integers.
    """
    columns = {}
    for column in schema.columns:
        values = rows[column.name]
        columns[column.name] = _cast(values, column, where) if len(rows) else _none(column)
    return Rows(columns, {one.name: one.unit for one in schema.columns if one.unit})


def _none(column: Column) -> np.ndarray:
    return np.zeros((0, *column.shape), column.dtype)


def _cast(values: np.ndarray, column: Column, where: str) -> np.ndarray:
    dtype = np.dtype(column.dtype)
    if values.dtype == dtype or (column.is_text and values.dtype.kind == "U" and not dtype.itemsize):
        return values
    if column.is_text != (values.dtype.kind == "U"):
        raise BadInput(f"{where}: column {column.name}: {values.dtype.name} where {dtype.name} is due")
    if column.is_text and values.dtype.itemsize > dtype.itemsize > 0:
        too_long = np.char.str_len(values).max()
        if too_long > dtype.itemsize // 4:
            raise BadInput(f"{where}: column {column.name}: text of {too_long} letters, declared {dtype.str}")
    with np.errstate(all="ignore"):
        made = values.astype(dtype)
    exact = dtype.kind in "biu" or values.dtype.kind == "c" != dtype.kind
    if exact and not (made == values).all():
        wrong = values[(made != values).reshape(len(values), -1).any(1)][0]
        raise BadInput(f"{where}: column {column.name}: {wrong} does not fit into {dtype.name}")
    return made


def in_unit(rows: Rows, name: str, unit: str, where: str = "table") -> Rows:
    """Return rows with a column in a unit, which it is said to have where it has none.

    Raises
    ------
    BadInput
        It has another one, from which there is no way.
    """
    own = rows.units.get(name, "")
    if own in ("", unit) or not unit:
        return Rows(rows.columns, {**rows.units, **({name: unit} if unit else {})})
    from astropy import units

    try:
        factor = units.Unit(own).to(units.Unit(unit))
    except (ValueError, TypeError, units.UnitConversionError):
        raise BadInput(f"{where}: column {name}: is in {own}, which cannot become {unit}") from None
    values = rows[name] if factor == 1 else rows[name] * factor
    return Rows({**rows.columns, name: values}, {**rows.units, name: unit})


# --- Many parts, one schema -------------------------------------------------------------------------------


def unified(schemas: Iterable[tuple[Any, int, Schema]], declared: Schema | None = None) -> Schema:
    """Return the columns of a table from those of its parts.

    Types are promoted as NumPy does, widths of text to the widest. Parts without rows say nothing, unless all
    are: what a function makes of nothing has no type worth keeping.

    Parameters
    ----------
    schemas : iterable of (object, int, Schema)
        For each part, what names it in messages, how many rows it has, and its columns.
    declared : Schema, optional
        Types and units that hold whatever the parts say; a dtype of "" leaves it to them.

    Raises
    ------
    BadInput
        Parts have other columns, or one with other units, text and numbers, vectors of other lengths.
    """
    first: dict[str, tuple[Any, Column]] = {}
    columns: dict[str, Column] = {}
    names: tuple[str, ...] | None = None
    fallback: Schema | None = None
    origin: Any = None
    for where, count, schema in schemas:
        fallback = fallback or schema
        if not count:
            continue
        if names is None:
            names, origin = schema.names, where
        elif schema.names != names:
            odd = sorted(set(names) ^ set(schema.names)) or ["their order"]
            raise BadInput(f"table: the columns of {where} and {origin} differ: {', '.join(odd)}")
        for column in schema.columns:
            if column.name not in columns:
                columns[column.name], first[column.name] = column, (where, column)
            elif column != columns[column.name]:
                columns[column.name] = _promoted(columns[column.name], column, where, *first[column.name])
    if not columns and fallback is not None:
        columns = {column.name: column for column in fallback.columns}
    for column in declared.columns if declared else ():
        if origin is not None and column.name not in columns:
            raise BadInput(f"table: {origin} has no column {column.name}; it has: {', '.join(columns)}")
        found = columns.get(column.name, replace(column, dtype=column.dtype or "f8"))
        dtype = column.dtype if column.dtype not in ("", "U") else found.dtype
        columns[column.name] = replace(found, dtype=dtype, unit=column.unit or found.unit)
    return Schema(tuple(columns.values()))


def _promoted(one: Column, other: Column, where: Any, origin: Any, first: Column) -> Column:
    what = f"table: column {one.name}"
    if one.unit != other.unit:
        raise BadInput(
            f"{what}: unit {first.unit or 'none'} in {origin}, {other.unit or 'none'} in {where}; "
            "give units= to table()"
        )
    if one.shape != other.shape:
        raise BadInput(f"{what}: {first} in {origin}, {other} in {where}: a row must hold as many everywhere")
    if one.is_text != other.is_text:
        raise BadInput(f"{what}: {first} in {origin}, {other} in {where}; make it one of the two")
    if one.is_text:
        return one if int(one.dtype[1:] or 0) >= int(other.dtype[1:] or 0) else other
    made = np.result_type(one.dtype, other.dtype)
    if made.kind == "f" and np.dtype(one.dtype).kind + np.dtype(other.dtype).kind in ("iu", "ui"):
        raise BadInput(
            f"{what}: {first} in {origin}, {other} in {where}; no integer holds both: give a dtype"
        )
    return replace(one, dtype=type_name(made))


def type_name(dtype: np.dtype) -> str:
    """Return how a :class:`Column` names a type of NumPy."""
    return f"U{dtype.itemsize // 4}" if dtype.kind == "U" else dtype.str.lstrip("<>|=").replace("b1", "?")
