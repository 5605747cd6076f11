"""Blocks of items that are each to become one, as xarray has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpiimg.arrays import expressions


class Coarsened:
    """An array in blocks of so many items, waiting for a reduction: x.coarsen(x=2, y=2).mean().

    Parameters
    ----------
    array : Array
    factors : mapping of str to int
    boundary : {"exact", "trim"}
    """

    def __init__(self, array: Any, factors: Mapping[str, int], boundary: str):
        self._array = array
        self._node, self._factors = expressions.to_coarsen(array._node, factors, boundary)

    def _reduced(self, operation: str, **options: Any):
        options = {name: value for name, value in options.items() if value not in (None, False)}
        return type(self._array)(expressions.coarsened(self._node, self._factors, operation, options))

    def sum(self, *, skipna: bool = False):
        """Return the sum of each block."""
        return self._reduced("sum", skipna=skipna)

    def mean(self, *, skipna: bool = False):
        """Return the mean of each block."""
        return self._reduced("mean", skipna=skipna)

    def std(self, *, skipna: bool = False, ddof: int = 0):
        """Return the standard deviation within each block."""
        return self._reduced("std", skipna=skipna, ddof=ddof)

    def var(self, *, skipna: bool = False, ddof: int = 0):
        """Return the variance within each block."""
        return self._reduced("var", skipna=skipna, ddof=ddof)

    def min(self, *, skipna: bool = False):
        """Return the smallest item of each block."""
        return self._reduced("min", skipna=skipna)

    def max(self, *, skipna: bool = False):
        """Return the largest item of each block."""
        return self._reduced("max", skipna=skipna)

    def any(self):
        """Return whether any item of each block is true."""
        return self._reduced("any")

    def all(self):
        """Return whether all items of each block are true."""
        return self._reduced("all")

    def count(self):
        """Return how many items of each block are not NaN."""
        return self._reduced("count")

    def __repr__(self) -> str:
        blocks = ", ".join(f"{axis}={factor}" for axis, factor in self._factors.items())
        return f"<mpiimg.Coarsened {blocks}: call mean(), sum(), min(), max(), ...>"
