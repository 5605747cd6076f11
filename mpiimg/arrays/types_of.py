"""The types of arrays in a graph, as far as they are known before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.arrays.graph import Coarsen, Elementwise, Join, Node, Scalar, walk
from mpiimg.arrays.reductions import result_dtype
from mpiimg.arrays.stored import Output, Reduced
from mpiimg.errors import BadInput


def elementwise_dtype(
    function: Callable, operands: Sequence[Any], options: Mapping[str, Any], name: str
) -> str:
    """Return the type of an elementwise result.

    Parameters
    ----------
    function : callable
    operands : sequence of str or Scalar
        Types of arrays, and numbers.
    options : mapping
    name : str
        Of the operation, for messages.

    Raises
    ------
    BadInput
        NumPy has no such operation for these types.
    """
    samples = [one.value if isinstance(one, Scalar) else np.ones(1, one) for one in operands]
    try:
        with np.errstate(all="ignore"):
            return np.asarray(function(*samples, **options)).dtype.str
    except (TypeError, OverflowError, ValueError) as error:
        types = " and ".join(
            repr(one.value) if isinstance(one, Scalar) else np.dtype(one).name for one in operands
        )
        raise BadInput(f"{name}: cannot be done with {types}: {' '.join(str(error).split())}") from None


class Types:
    """The types of arrays, once the rehearsal has found out those of users' functions.

    Parameters
    ----------
    known : mapping of str to str
        Types of stored nodes by key.
    """

    def __init__(self, known: Mapping[str, str] = ()):
        self._known = dict(known)

    def learn(self, key: str, dtype: str) -> None:
        """Take the type of a stored node."""
        self._known[key] = dtype

    def as_json(self) -> dict[str, str]:
        """Return all that is known, as JSON has it."""
        return dict(self._known)

    def known(self, key: str) -> str | None:
        """Return the type of a stored node by its key, None where it is not known yet."""
        return self._known.get(key)

    def of(self, node: Node) -> str | None:
        """Return the type of a node, None where it is not known yet."""
        if node.dtype is not None:
            return node.dtype
        for one in walk([node]):
            if one.key not in self._known and (dtype := self._one(one)) is not None:
                self._known[one.key] = dtype
        return self._known.get(node.key)

    def _one(self, node: Node) -> str | None:
        if node.dtype is not None:
            return node.dtype
        below = [self._known.get(parent.key) for parent in node.parents]
        if any(dtype is None for dtype in below) or isinstance(node, Output):
            return None
        if isinstance(node, Elementwise):
            types = iter(below)
            operands = [one if isinstance(one, Scalar) else next(types) for one in node.operands]
            return elementwise_dtype(node.function, operands, node.options, node.operation)
        if isinstance(node, Join):
            return np.result_type(*below).str
        if isinstance(node, Coarsen | Reduced):
            if isinstance(node, Reduced) and node.functions is not None:
                return None
            return result_dtype(node.operation, node.options, below[0])
        return below[0]
