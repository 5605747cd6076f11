"""NumPy's functions of lazy arrays: what they are here, or what to use in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.arrays import expressions
from mpiimg.arrays.array import Array, reduced
from mpiimg.arrays.graph import Node
from mpiimg.arrays.stored import bounded
from mpiimg.errors import BadInput

#: NumPy functions that are elementwise, and no ufuncs.
_NUMPY_FUNCTIONS = ("where", "clip", "real", "imag", "round", "around", "nan_to_num", "angle", "isclose")

#: Its reductions that are methods of arrays of the same name, but for amin and amax.
_REDUCTIONS = frozenset(
    ("sum", "prod", "mean", "std", "var", "min", "max", "amin", "amax", "any", "all", "argmax", "argmin")
)


def wrapped(node: Node) -> Array:
    """Return the lazy array of a node."""
    return Array(bounded(node))


def apply_ufunc(ufunc, method: str, inputs: Sequence[Any], options: Mapping[str, Any]):
    """Return what a ufunc of lazy arrays is: what numpy calls by ``__array_ufunc__``.

    Raises
    ------
    BadInput
        It is none that works item by item, or reduces.
    """
    call = f"numpy.{ufunc.__name__}"
    if method == "reduce":
        names = {"add": "sum", "multiply": "prod", "minimum": "min", "maximum": "max"}
        names |= {"logical_and": "all", "logical_or": "any"}
        if ufunc.__name__ in names and isinstance(inputs[0], Array):
            given = {
                name: value for name, value in options.items() if value is not None and value is not False
            }
            if set(given) - {"axis"}:
                extra = sorted(set(given) - {"axis"})[0]
                raise BadInput(f"{call}.reduce: the option {extra} is not offered for lazy arrays")
            # NumPy's takes the first axis where none is named; all are axis=None.
            return reduced(inputs[0], names[ufunc.__name__], options.get("axis", 0), {})
    if method != "__call__" or ufunc.signature is not None:
        raise BadInput(f"{call}.{method}: lazy arrays have no such operation; use map_blocks or apply_gufunc")
    if options.get("out") is not None or options.get("where", True) is not True:
        raise BadInput(f"{call}: a lazy array has no out= and no where=; use mi.where(condition, a, b)")
    keywords = {name: np.dtype(value).str for name, value in options.items() if name == "dtype" and value}
    unknown = set(options) - {"dtype", "out", "where"}
    if unknown:
        raise BadInput(f"{call}: the option {sorted(unknown)[0]} is not offered for lazy arrays")
    if ufunc.nout == 1:
        return wrapped(expressions.elementwise(ufunc, call, inputs, keywords))
    return tuple(
        wrapped(expressions.elementwise(expressions.NthOf(ufunc, n), f"{call}[{n}]", inputs, keywords))
        for n in range(ufunc.nout)
    )


def apply_function(function, args, kwargs):
    """Return what another function of NumPy of lazy arrays is: what numpy calls by ``__array_function__``.

    Raises
    ------
    BadInput
        It has no meaning for them.
    """
    name = function.__name__
    full = f"{function.__module__ or 'numpy'}.{name}"
    if name in ("concatenate", "stack"):
        raise BadInput(f"numpy.{name}: axes have names here; use mi.{name}(arrays, axis)")
    if name == "transpose" and len(args) == 1 and not kwargs:
        return args[0].T
    if name in _REDUCTIONS:
        plain = {"amin": "min", "amax": "max"}.get(name, name)
        return getattr(args[0], plain)(*args[1:], **kwargs)
    skipping = {"nansum": "sum", "nanmean": "mean", "nanstd": "std", "nanvar": "var", "nanmin": "min"}
    skipping |= {"nanmax": "max", "nanprod": "prod"}
    if name in skipping:
        return getattr(args[0], skipping[name])(*args[1:], skipna=True, **kwargs)
    if name in ("shape", "ndim", "size"):
        return getattr(args[0], name)
    if name in ("squeeze",) and len(args) == 1:
        return args[0].squeeze()
    if name in _NUMPY_FUNCTIONS:
        return wrapped(expressions.elementwise(function, f"numpy.{name}", args, kwargs))
    raise BadInput(
        f"{full}: is not offered for lazy arrays; use map_blocks({full.replace('numpy', 'np', 1)}, ...), "
        "or compute() first"
    )
