"""Joins and groups of rows, as functions of rows: the same on any ranks, in the order of rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows

#: What a group of rows can be brought to.
OPERATIONS = ("count", "first", "last", "max", "mean", "min", "std", "sum")


def bucket_of(rows: Rows, on: Sequence[str], count: int) -> np.ndarray:
    """Return which of so many buckets each row belongs to: equal keys share one, whatever their width.

    Returns
    -------
    (rows,) int64
    """
    mixed = np.zeros(len(rows), np.uint64)
    for name in on:
        mixed = _scrambled(mixed * np.uint64(31) + _hashes(_key(rows, name)))
    return (mixed % np.uint64(count)).astype(np.int64)


def _hashes(values: np.ndarray) -> np.ndarray:
    """Return a number of 64 bits for each value, the same for equal ones."""
    if values.dtype.kind == "U":
        unique, inverse = np.unique(values, return_inverse=True)
        sums = np.array([zlib.crc32(text.encode()) for text in unique.tolist()], np.uint64)
        return sums[inverse] if len(sums) else np.zeros(0, np.uint64)
    if values.dtype.kind == "f":
        # Of zero and of NaN there is more than one.
        numbers = values.astype(np.float64) + 0.0
        return np.where(np.isnan(numbers), np.nan, numbers).view(np.uint64)
    return values.astype(np.int64).view(np.uint64) if values.dtype != np.uint64 else values


def _scrambled(numbers: np.ndarray) -> np.ndarray:
    """Mix the bits of numbers (splitmix64)."""
    with np.errstate(over="ignore"):
        numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _key(rows: Rows, name: str) -> np.ndarray:
    values = rows[name]
    if values.ndim != 1:
        raise BadInput(f"table: column {name} holds vectors, and is no key")
    if values.dtype.kind == "c":
        raise BadInput(f"table: column {name} holds complex numbers, which have no order, and is no key")
    return values


# --- Join -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Join:
    """How two tables are joined.

    Parameters
    ----------
    on : tuple of str
        The columns that are equal.
    how : {"inner", "left"}
        Rows of the left table that have no partner are left out, or stay.
    suffix : str
        Added to names of the right table that the left one has too.
    fill : mapping
        By column of the right table, what stands for a partner that is not there; by default NaN for floats
        and "" for text.
    """

    on: tuple[str, ...]
    how: str = "inner"
    suffix: str = "_right"
    fill: Mapping[str, Any] | tuple = ()

    def renamed(self, left: Sequence[str], right: Sequence[str]) -> dict[str, str]:
        """Return the names of the right table's columns in the result.

        Raises
        ------
        BadInput
            A key is missing, or two columns would have one name.
        """
        for side, names in (("left", left), ("right", right)):
            missing = [name for name in self.on if name not in names]
            if missing:
                raise BadInput(
                    f"join: the {side} table has no column {missing[0]}; it has: {', '.join(names) or 'none'}"
                )
        names = {n: f"{n}{self.suffix}" if n in left else n for n in right if n not in self.on}
        twice = [new for old, new in names.items() if new in left or (new != old and new in right)]
        if twice:
            raise BadInput(f"join: two columns would be called {twice[0]}; give another suffix=")
        return names

    def __call__(self, left: Rows, right: Rows) -> tuple[Rows, np.ndarray]:
        """Join rows, in the order of the left ones, and of the right ones within each.

        NaN equals nothing, as in NumPy.

        Returns
        -------
        rows : Rows
        places : (rows,) int64
            The left row of each.

        Raises
        ------
        BadInput
            Keys are of different kinds, or a partner is missing and nothing can stand for it.
        """
        names = self.renamed(left.names, right.names)
        for name in self.on:
            units = left.units.get(name), right.units.get(name)
            if all(units) and units[0] != units[1]:
                raise BadInput(
                    f"join: column {name} is in {units[0]} on the left and in {units[1]} on the right"
                )
        one, other = _codes([left, right], self.on)
        order = np.argsort(other, kind="stable")
        found = other[order]
        starts, stops = np.searchsorted(found, one, "left"), np.searchsorted(found, one, "right")
        starts, stops = np.where(one < 0, 0, starts), np.where(one < 0, 0, stops)
        counts = stops - starts
        repeats = np.maximum(counts, 1) if self.how == "left" else counts
        places = np.repeat(np.arange(len(left)), repeats)
        within = np.arange(len(places)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        partner = np.repeat(starts, repeats) + within
        lonely = np.repeat(counts == 0, repeats)
        columns = dict(left.taken(places).columns)
        units = dict(left.units)
        for name, new in names.items():
            columns[new] = self._partners(right[name], order, partner, lonely, name)
            if name in right.units:
                units[new] = right.units[name]
        return Rows(columns, units), places

    def _partners(self, values, order, partner, lonely, name: str) -> np.ndarray:
        if not lonely.any():
            return values[order[partner]]
        filling = dict(self.fill).get(name, {"f": np.nan, "c": np.nan, "U": ""}.get(values.dtype.kind))
        if filling is None:
            raise BadInput(
                f"join: {int(lonely.sum())} rows have no partner, and column {name} ({values.dtype.name}) "
                f"has no value that says so; give fill={{{name!r}: ...}}"
            )
        if values.dtype.kind == "U":
            values = values.astype(np.result_type(values.dtype, np.array(str(filling)).dtype))
        made = np.full((len(lonely), *values.shape[1:]), filling, values.dtype)
        made[~lonely] = values[order[partner[~lonely]]]
        return made


def _codes(tables: Sequence[Rows], on: Sequence[str]) -> list[np.ndarray]:
    """Return a number for the key of each row, in the order of keys; -1 where one is NaN."""
    lengths = [len(rows) for rows in tables]
    codes = np.zeros(sum(lengths), np.int64)
    nothing = np.zeros(sum(lengths), bool)
    for name in on:
        parts = [_key(rows, name) for rows in tables]
        kinds = {"number" if part.dtype.kind in "iu" else part.dtype.kind for part in parts if len(part)}
        if len(kinds) > 1:
            said = " and ".join(part.dtype.name for part in parts)
            raise BadInput(f"join: column {name} is {said}: keys must be of one kind")
        values = _together([part for part in parts if len(part)])
        if not len(values):
            break
        if values.dtype.kind == "f":
            nothing |= np.isnan(values)
        _, one = np.unique(values, return_inverse=True)
        _, codes = np.unique(codes * (one.max(initial=0) + 1) + one, return_inverse=True)
    codes = np.where(nothing, -1, codes)
    return np.split(codes, np.cumsum(lengths)[:-1])


def _together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return keys of several tables in one array; of unsigned and signed integers without rounding."""
    if not parts:
        return np.zeros(0)
    if {part.dtype.kind for part in parts} == {"i", "u"} and any(p.dtype == np.uint64 for p in parts):
        # What is above the range of int64 has no equal among signed numbers, nor has what is negative.
        return np.concatenate([part.astype(object) for part in parts])
    return np.concatenate(parts)


# --- Groups -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aggregation:
    """What groups of rows are brought to.

    Parameters
    ----------
    by : tuple of str
        The columns that are equal in a group.
    columns : tuple of (str, str, str)
        Name, column and operation of each column of the result behind these.
    """

    by: tuple[str, ...]
    columns: tuple[tuple[str, str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that it needs."""
        return tuple(dict.fromkeys((*self.by, *(column for _, column, _ in self.columns))))

    def __call__(self, rows: Rows) -> Rows:
        """Return one row per group, in the order of the keys.

        NaN is a key like others, the last one. Sums are float64 (of integers int64 or uint64), in the order
        of rows; NaN stays NaN. `std` divides by the number of rows.

        Raises
        ------
        BadInput
            There is no such column, or none that can be brought to this.
        """
        keys = [_key(rows, name) for name in self.by]
        order = np.lexsort(keys[::-1]) if keys else np.arange(len(rows))
        changed = np.ones(len(rows), bool)
        changed[1:] = False
        for key in keys:
            ordered = key[order]
            differ = ordered[1:] != ordered[:-1]
            if key.dtype.kind == "f":
                differ &= ~(np.isnan(ordered[1:]) & np.isnan(ordered[:-1]))
            changed[1:] |= differ
        starts = np.flatnonzero(changed)
        firsts = order[starts]
        columns = {name: rows[name][firsts] for name in self.by}
        units = {name: rows.units[name] for name in self.by if name in rows.units}
        for new, name, operation in self.columns:
            values = rows[name][order]
            columns[new] = _aggregated(values, starts, operation, name)
            if operation != "count" and name in rows.units:
                units[new] = rows.units[name]
        return Rows(columns, units)


def _aggregated(values: np.ndarray, starts: np.ndarray, operation: str, name: str) -> np.ndarray:
    stops = np.append(starts[1:], len(values))[: len(starts)]
    counts = (stops - starts)[(...,) + (None,) * (values.ndim - 1)]
    if operation == "count":
        return stops - starts
    if operation == "first":
        return values[starts]
    if operation == "last":
        return values[stops - 1]
    if operation in ("min", "max"):
        return _extreme(values, starts, operation)
    if values.dtype.kind == "U":
        raise BadInput(f"agg: column {name} is text, and has no {operation}")
    if operation == "sum" and values.dtype.kind in "biu":
        wide = np.uint64 if values.dtype.kind == "u" else np.int64
        return np.add.reduceat(values.astype(wide), starts, axis=0) if len(starts) else values.astype(wide)
    total = _sums(values, starts)
    if operation == "sum":
        return total
    mean = total / counts
    if operation == "mean":
        return mean
    lengths = stops - starts
    off = np.abs(values - np.repeat(mean, lengths, axis=0)) ** 2
    return np.sqrt(_sums(off, starts) / counts)


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return float64 sums of runs of rows, each added to the ones before, in order."""
    if not len(values):
        return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    if values.dtype.kind == "c":
        return _sums(values.real, starts) + 1j * _sums(values.imag, starts)
    group = np.zeros(len(values), np.int64)
    group[starts[1:]] = 1
    group = np.cumsum(group)
    flat = values.reshape(len(values), -1)
    sums = [np.bincount(group, flat[:, n], minlength=len(starts)) for n in range(flat.shape[1])]
    return np.stack(sums, 1).reshape(len(starts), *values.shape[1:])


def _extreme(values: np.ndarray, starts: np.ndarray, operation: str) -> np.ndarray:
    if not len(values):
        return values
    if values.dtype.kind != "U":
        return getattr(np, {"min": "minimum", "max": "maximum"}[operation]).reduceat(values, starts, axis=0)
    stops, place = np.append(starts[1:], len(values)), 0 if operation == "min" else -1
    runs = zip(starts.tolist(), stops.tolist(), strict=True)
    return np.array([np.sort(values[start:stop], axis=0)[place] for start, stop in runs])
