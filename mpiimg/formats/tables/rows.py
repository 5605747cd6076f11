"""Rows of a table from what users' functions return: arrays, dicts, lists, tables of other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows

#: Kinds of NumPy types that a column may have: bool, integers, floats, complex numbers, text.
_KINDS = "biufcU"


def as_rows(value: Any, names: Sequence[str] = (), where: str = "table") -> Rows:
    """Return the rows that a value stands for.

    Parameters
    ----------
    value : object
        A structured array, an astropy Table, a dict of columns (a number stands in every row; where all are
        numbers there is one), a (rows, columns) array, a tuple of columns, a list of rows as tuples or dicts,
        one row as a tuple; None for no row.
    names : sequence of str
        The columns wanted; all that `value` names, where none is.
    where : str
        Says in messages what `value` is of.

    Raises
    ------
    BadInput
        A column is missing, of another length than others, or of a type that tables do not have.
    """
    names = tuple(names)
    found = _columns(value, names, where)
    for name in names:
        if name not in found:
            raise BadInput(f"{where}: has no column {name}; it has: {', '.join(map(str, found)) or 'none'}")
    columns, units = {}, {}
    for name in names or found:
        unit = getattr(found[name], "unit", None)
        if unit is not None and str(unit):
            units[str(name)] = str(unit)
        columns[str(name)] = _as_array(found[name], f"{where}: column {name}")
    count = next((len(column) for column in columns.values() if column.ndim), 1)
    columns = {n: column if column.ndim else np.repeat(column[None], count) for n, column in columns.items()}
    lengths = {name: column.shape[:1] for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length[0] if length else 'one'}" for name, length in lengths.items())
        raise BadInput(f"{where}: its columns have different lengths: {said}")
    return Rows(columns, units)


def _columns(value: Any, names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if value is None:
        return {name: np.zeros(0) for name in names}
    if isinstance(value, Rows):
        return {name: _WithUnit(a, value.units.get(name, "")) for name, a in value.columns.items()}
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "colnames"):
        return {name: value[name] for name in value.colnames}
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, np.ndarray | np.void) and value.dtype.names:
        return {name: value[name] for name in value.dtype.names}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return {name: value[name].to_numpy() for name in value.columns}
    if not names:
        raise BadInput(f"{where}: a {type(value).__name__} names no columns; name them in table(columns)")
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _of_array(value, names, where)
    if isinstance(value, tuple) and len(value) == len(names) and not _are_rows(value, names):
        return dict(zip(names, value, strict=True))
    if isinstance(value, list | tuple):
        return _of_rows(value, names, where)
    if (
        len(names) == 1
        and np.ndim(value) == 0
        and isinstance(value, int | float | complex | str | np.generic)
    ):
        return {names[0]: value}
    raise BadInput(
        f"{where}: a {type(value).__name__} is no rows of a table: return a structured array, a dict of "
        f"columns, or a (rows, {len(names)}) array"
    )


def _are_rows(value: tuple, names: tuple[str, ...]) -> bool:
    """Say whether a tuple of as many members as there are columns holds rows, as against columns."""
    return all(isinstance(one, tuple | dict) for one in value) and bool(value)


def _of_array(value: np.ndarray, names: tuple[str, ...], where: str) -> Mapping[str, np.ndarray]:
    if value.ndim == 1 and len(names) == 1:
        return {names[0]: value}
    if value.ndim == 1 and (len(value) == len(names) or not len(value)):
        value = value[None] if len(value) else value.reshape(0, len(names))
    if value.ndim == 2 and value.shape[1] == len(names):
        return {name: value[:, number] for number, name in enumerate(names)}
    raise BadInput(
        f"{where}: an array of shape {value.shape} for {len(names)} columns ({', '.join(names)}): "
        f"return (rows, {len(names)})"
    )


def _of_rows(rows: Sequence, names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    columns: dict[str, list] = {name: [] for name in names}
    for number, row in enumerate(rows):
        if isinstance(row, Mapping):
            missing = [name for name in names if name not in row]
            values = () if missing else tuple(row[name] for name in names)
        else:
            values = row if isinstance(row, tuple | list | np.ndarray | np.void) else (row,)
        if len(values) != len(names):
            raise BadInput(
                f"{where}: row {number} is {_short(row)}, where {len(names)} columns are due: "
                f"{', '.join(names)}"
            )
        for name, one in zip(names, values, strict=True):
            columns[name].append(one)
    return columns


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


@dataclass(frozen=True, eq=False)
class _WithUnit:
    values: np.ndarray
    unit: str

    def __array__(self, dtype=None, copy=None):
        return self.values


def _as_array(values: Any, what: str) -> np.ndarray:
    """Return a column as an array of a type that tables have, in the machine's byte order."""
    if isinstance(values, np.ma.MaskedArray):
        values = _unmasked(values, what)
    values = getattr(values, "value", values) if hasattr(values, "unit") else values
    try:
        array = np.asarray(values)
    except ValueError:
        raise BadInput(f"{what}: its rows hold different numbers of values") from None
    if array.dtype.kind == "O" or (array.dtype.kind == "U" and isinstance(values, list | tuple)):
        _check_members(values, what)
        array = np.array([str(one) for one in np.ravel(array)], "U").reshape(array.shape)
    if array.dtype.kind == "T":
        array = array.astype("U")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    if array.dtype.kind not in _KINDS or (array.dtype.kind == "f" and array.dtype.itemsize == 16):
        raise BadInput(
            f"{what}: is of type {array.dtype}; tables hold bool, integers, float32 and float64, complex "
            "numbers and text (times: as text, or days)"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array) if array.ndim else array


def _check_members(values: Any, what: str) -> None:
    for number, one in enumerate(values if np.ndim(values) == 1 else np.ravel(np.asarray(values, object))):
        if not isinstance(one, str):
            raise BadInput(
                f"{what}: row {number} is {_short(one)}; a column is text, or numbers, in all rows"
            )


def _unmasked(values: np.ma.MaskedArray, what: str) -> Any:
    """Return a masked column without its mask: NaN where a number is missing, nothing where text is."""
    if not np.ma.is_masked(values):
        return values.data
    filling = {"f": np.nan, "c": np.nan, "U": "", "S": b""}
    if values.dtype.kind not in filling:
        raise BadInput(
            f"{what}: values are missing (masked), and {values.dtype} has none for that; fill them"
        )
    return values.filled(filling[values.dtype.kind]).data if hasattr(values, "filled") else values
