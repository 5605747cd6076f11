"""Reductions: what comes of a block, of blocks in the order of chunks, and at the end.

Sums of floating-point numbers are made in float64, one item after the other in the order of storage, so that
no
bit depends on where a vector or a pairwise sum begins. A missing value (NaN) makes a result NaN, as in NumPy;
``skipna=True`` leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.errors import BadInput

#: What a reduction may be called; xarray and dask have them under the same names.
OPERATIONS = (
    "sum",
    "prod",
    "mean",
    "std",
    "var",
    "min",
    "max",
    "any",
    "all",
    "count",
    "argmax",
    "argmin",
    "histogram",
)


def accumulator(dtype: Any) -> np.dtype:
    """Return the type that values are summed in."""
    kind = np.dtype(dtype)
    if kind.kind in "bi":
        return np.dtype("i8")
    if kind.kind == "u":
        return np.dtype("u8")
    return np.dtype("c16") if kind.kind == "c" else np.dtype("f8")


def result_dtype(operation: str, options: Mapping[str, Any], dtype: str) -> str:
    """Return the type of the result of a reduction of values of a type."""
    asked = options.get("dtype")
    if asked is not None:
        return np.dtype(asked).str
    kind = np.dtype(dtype)
    if operation in ("sum", "prod"):
        return kind.str if kind.kind in "fc" else accumulator(kind).str
    if operation == "mean":
        return kind.str if kind.kind in "fc" else "<f8"
    if operation in ("std", "var"):
        if kind.kind == "c":
            return np.dtype(f"f{kind.itemsize // 2}").str
        return kind.str if kind.kind == "f" else "<f8"
    if operation in ("any", "all"):
        return "|b1"
    if operation in ("count", "argmax", "argmin", "histogram"):
        return "<i8"
    return kind.str


def sequential_sum(values: np.ndarray, axes: Sequence[int], dtype: Any) -> np.ndarray:
    """Return the sum along some axes, one item after the other in the order of memory.

    Parameters
    ----------
    values : ndarray
    axes : sequence of int
    dtype : dtype
        In which they are summed.
    """
    # Slowest axes in memory first: the sum goes through memory from front to back.
    order = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
    over = [axis for axis in order if axis in axes]
    kept = [axis for axis in range(values.ndim) if axis not in axes]
    moved = values.transpose(over + kept)
    shape = moved.shape[len(over) :]
    rows = moved.reshape(math.prod(moved.shape[: len(over)]), math.prod(shape))
    if rows.dtype.kind in "biu" and np.dtype(dtype).kind in "iu":
        return rows.sum(axis=0, dtype=dtype).reshape(shape)
    if not rows.shape[0]:
        return np.zeros(shape, dtype)
    if rows.shape[1] == 1:
        # NumPy adds a single column by pairs, but accumulates it one by one.
        return np.add.accumulate(rows[:, 0], dtype=dtype)[-1:].reshape(shape)
    # Along the slower of two axes NumPy adds row by row.
    return np.add.reduce(np.ascontiguousarray(rows, dtype=dtype), axis=0).reshape(shape)


# --- Blocks -----------------------------------------------------------------------------------------------


def partial(
    block: np.ndarray, axes: tuple[int, ...], operation: str, options: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return what comes of a block, in arrays that keep the axes that are not reduced.

    Parameters
    ----------
    block : ndarray
    axes : tuple of int
        The axes that are reduced.
    operation : str
    options : mapping
        skipna, dtype, and for a histogram its bins and range.
    """
    skipna = bool(options.get("skipna")) and block.dtype.kind in "fc"
    missing = np.isnan(block) if skipna else None
    if operation == "count":
        valid = ~np.isnan(block) if block.dtype.kind in "fc" else np.ones(block.shape, bool)
        return {"count": np.count_nonzero(valid, axis=axes).astype(np.int64)}
    if operation in ("sum", "mean", "var", "std"):
        return _moments(block, axes, operation, options, missing)
    if operation == "prod":
        dtype = np.dtype(options.get("dtype") or accumulator(block.dtype))
        dtype = accumulator(dtype)
        values = block if missing is None else np.where(missing, block.dtype.type(1), block)
        return {"product": np.multiply.reduce(values, axis=axes, dtype=dtype)}
    if operation in ("any", "all"):
        return {operation: (np.any if operation == "any" else np.all)(block, axis=axes)}
    if operation in ("min", "max"):
        return _extremes(block, axes, operation, missing)
    if operation == "histogram":
        return {"counts": _histogram(block, options)}
    raise ValueError(operation)


def _moments(block, axes, operation, options, missing) -> dict[str, np.ndarray]:
    dtype = accumulator(block.dtype if options.get("dtype") is None else options["dtype"])
    if operation != "sum" and dtype.kind in "iu":
        dtype = np.dtype("f8")
    values = block if missing is None else np.where(missing, block.dtype.type(0), block)
    total = sequential_sum(values, axes, dtype)
    items = math.prod(block.shape[axis] for axis in axes)
    count = np.full(total.shape, items, np.int64)
    if missing is not None:
        count -= np.count_nonzero(missing, axis=axes)
    if operation in ("sum", "mean"):
        return {"total": total, "count": count}
    mean = total / np.where(count == 0, 1, count)
    where = tuple(1 if axis in axes else n for axis, n in enumerate(block.shape))
    away = values.astype(dtype) - mean.reshape(where)
    squares = (away.real**2 + away.imag**2) if dtype.kind == "c" else away**2
    if missing is not None:
        squares[missing] = 0
    return {"count": count, "mean": mean, "squares": sequential_sum(squares, axes, "f8")}


def _extremes(block, axes, operation, missing) -> dict[str, np.ndarray]:
    function = np.min if operation == "min" else np.max
    if missing is None:
        return {"value": function(block, axis=axes), "any": np.ones(_kept(block.shape, axes), bool)}
    worst = np.inf if operation == "min" else -np.inf
    value = function(np.where(missing, block.dtype.type(worst), block), axis=axes)
    return {"value": value, "any": (~missing).any(axis=axes)}


def _kept(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for axis, n in enumerate(shape) if axis not in axes)


def _histogram(block: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    values = block.reshape(-1)
    if values.dtype.kind == "f":
        values = values[~np.isnan(values)]
    counts, _ = np.histogram(values, bins=options["bins"], range=tuple(options["range"]))
    return counts.astype(np.int64)


def partial_position(
    block: np.ndarray,
    axes: tuple[int, ...],
    operation: str,
    options: Mapping[str, Any],
    positions: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the extreme value of a block, and the first position at which it stands.

    Parameters
    ----------
    positions : ndarray
        Of each item among all that are reduced, in C order, of the shape of the reduced axes in their order.
    """
    kept = [axis for axis in range(block.ndim) if axis not in axes]
    moved = block.transpose([*kept, *axes])
    rows = moved.reshape(*moved.shape[: len(kept)], -1)
    flat = np.broadcast_to(positions, moved.shape[len(kept) :]).reshape(-1)
    # Among equal ones the first in C order of the whole array is meant, wherever its chunk lies.
    order = np.argsort(flat, kind="stable")
    rows, flat = rows[..., order], flat[order]
    best = (np.argmax if operation == "argmax" else np.argmin)(rows, axis=-1)
    value = np.take_along_axis(rows, best[..., None], -1)[..., 0]
    return {"value": value, "position": flat[best].astype(np.int64)}


# --- Chunks -----------------------------------------------------------------------------------------------


def combined(rows: Mapping[str, np.ndarray], operation: str) -> dict[str, np.ndarray]:
    """Return what comes of the partial results of several chunks, which lie along the first axis, in order.

    Parameters
    ----------
    rows : mapping of str to ndarray
        As :func:`partial` returns them, stacked.
    operation : str
    """
    if operation in ("sum", "mean"):
        total = rows["total"][0].copy()
        for row in rows["total"][1:]:
            total = total + row
        return {"total": total, "count": rows["count"].sum(axis=0)}
    if operation in ("var", "std"):
        return _combined_variance(rows)
    if operation == "prod":
        product = rows["product"][0].copy()
        for row in rows["product"][1:]:
            product = product * row
        return {"product": product}
    if operation in ("min", "max"):
        return _combined_extremes(rows, operation)
    if operation in ("argmax", "argmin"):
        return _combined_positions(rows, operation)
    if operation in ("any", "all"):
        return {operation: (np.any if operation == "any" else np.all)(rows[operation], axis=0)}
    name = "count" if operation == "count" else "counts"
    return {name: rows[name].sum(axis=0)}


def _combined_variance(rows) -> dict[str, np.ndarray]:
    """Chan, Golub and LeVeque (1979): add the squares about two means to those about the common one."""
    count, mean, squares = (rows[name][0].copy() for name in ("count", "mean", "squares"))
    for n, m, s in zip(rows["count"][1:], rows["mean"][1:], rows["squares"][1:], strict=True):
        both = np.maximum(count + n, 1)
        away = m - mean
        distance = (away.real**2 + away.imag**2) if np.iscomplexobj(away) else away**2
        squares = squares + s + distance * (count * n / both)
        mean = np.where(n == 0, mean, np.where(count == 0, m, mean + away * (n / both)))
        count = count + n
    return {"count": count, "mean": mean, "squares": squares}


def _combined_extremes(rows, operation) -> dict[str, np.ndarray]:
    function = np.minimum if operation == "min" else np.maximum
    value, known = rows["value"][0].copy(), rows["any"][0].copy()
    for other, its in zip(rows["value"][1:], rows["any"][1:], strict=True):
        best = function(value, other)
        value = np.where(known & its, best, np.where(its, other, value))
        known = known | its
    return {"value": value, "any": known}


def _combined_positions(rows, operation) -> dict[str, np.ndarray]:
    value, position = rows["value"][0].copy(), rows["position"][0].copy()
    for other, place in zip(rows["value"][1:], rows["position"][1:], strict=True):
        better = other > value if operation == "argmax" else other < value
        if other.dtype.kind in "fc":
            better |= np.isnan(other) & ~np.isnan(value)
        equal = (other == value) | (
            (np.isnan(other) & np.isnan(value)) if other.dtype.kind in "fc" else False
        )
        taken = better | (equal & (place < position))
        value, position = np.where(taken, other, value), np.where(taken, place, position)
    return {"value": value, "position": position}


# --- The end ----------------------------------------------------------------------------------------------


def finished(parts: Mapping[str, np.ndarray], operation: str, options: Mapping[str, Any], dtype: str):
    """Return the result of all, of type `dtype`."""
    with np.errstate(all="ignore"):
        return np.asarray(_finished(parts, operation, options)).astype(dtype)


def _finished(parts, operation, options):
    if operation == "sum":
        return parts["total"]
    if operation == "mean":
        return parts["total"] / parts["count"]
    if operation in ("var", "std"):
        freedom = parts["count"] - options.get("ddof", 0)
        variance = np.where(freedom > 0, parts["squares"] / np.where(freedom > 0, freedom, 1), np.nan)
        return np.sqrt(variance) if operation == "std" else variance
    if operation in ("min", "max"):
        value = parts["value"]
        if options.get("skipna") and value.dtype.kind == "f":
            return np.where(parts["any"], value, np.nan)
        return value
    if operation in ("argmax", "argmin"):
        return parts["position"]
    return next(iter(parts.values()))


def reduce_block(
    block: np.ndarray, axes: tuple[int, ...], operation: str, options: Mapping[str, Any]
) -> np.ndarray:
    """Return a block reduced along some of its axes, for a coarser array."""
    parts = partial(block, axes, operation, options)
    return finished(parts, operation, options, result_dtype(operation, options, block.dtype.str))


def check_operation(operation: str, dtype: str, call: str) -> None:
    """Refuse a reduction of values that it is not for.

    Raises
    ------
    BadInput
        Complex numbers have no order, and so no minimum.
    """
    ordered = ("min", "max", "argmax", "argmin", "histogram")
    if np.dtype(dtype).kind == "c" and operation in ordered:
        raise BadInput(f"{call}: complex numbers have no order; take abs(x) or x.real first")
