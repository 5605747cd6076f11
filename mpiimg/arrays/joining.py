"""Functions of several arrays: where, stack and concatenate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mpiimg.arrays import expressions
from mpiimg.arrays.array import Array
from mpiimg.arrays.stored import bounded


def where(condition: Any, a: Any, b: Any) -> Array:
    """Return `a` where a condition holds and `b` elsewhere, aligned by the names of axes.

    Parameters
    ----------
    condition, a, b : Array or number
    """
    return Array(bounded(expressions.elementwise(np.where, "where", [condition, a, b])))


def stack(arrays: Iterable[Array], axis: str, position: int = 0) -> Array:
    """Return arrays side by side along a new axis, the first one by default.

    Parameters
    ----------
    arrays : iterable of Array
        All alike.
    axis : str
        Name of the new axis.
    position : int
        Its place among the axes.
    """
    return Array(bounded(expressions.stack(arrays, axis, position)))


def concatenate(arrays: Iterable[Array], axis: str) -> Array:
    """Return arrays end to end along an axis that all have.

    Parameters
    ----------
    arrays : iterable of Array
        Alike but for their lengths along `axis`.
    axis : str
    """
    return Array(bounded(expressions.concatenate(arrays, axis)))
