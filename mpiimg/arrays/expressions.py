"""Expressions: from what a user writes to nodes of the graph, with all checks that need no data."""

from __future__ import annotations

import builtins
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays.axes import (
    AxesLike,
    axes_tuple,
    check_known,
    checked_axes,
    checked_mapping,
    common_sizes,
    said,
    union,
)
from mpiimg.arrays.graph import C, Coarsen, Elementwise, F, Join, Node, Pad, Reorder, Scalar, Take
from mpiimg.arrays.program import MODES
from mpiimg.arrays.reductions import check_operation, result_dtype
from mpiimg.arrays.stored import Persisted, Reduced
from mpiimg.arrays.types_of import Types, elementwise_dtype
from mpiimg.engine.view import as_pick
from mpiimg.errors import BadInput


def node_of(value: Any, call: str) -> Node:
    """Return the node of a lazy array.

    Raises
    ------
    BadInput
        It is something else.
    """
    node = getattr(value, "_node", None)
    if isinstance(node, Node):
        return node
    if isinstance(value, Node):
        return value
    what = type(value).__name__
    if isinstance(value, np.ndarray):
        raise BadInput(f"{call}: takes lazy arrays, and not an ndarray; wrap it: mi.from_array(x, 'x y z')")
    if isinstance(value, str):
        raise BadInput(f"{call}: takes lazy arrays, and not a text; read a file by mi.read({value!r})")
    raise BadInput(f"{call}: takes lazy arrays, and not {what}; make one by mi.read or mi.from_array")


def _followed(space: Any, method: str, *args: Any) -> Any:
    return None if space is None else getattr(space, method)(*args)


# --- By position ------------------------------------------------------------------------------------------


def index(node: Node, key: Any) -> Node:
    """Return what x[key] is."""
    keys = key if isinstance(key, tuple) else (key,)
    if any(hasattr(one, "_node") for one in keys):
        raise BadInput(
            "x[condition]: how many items there are would be known only at run time; "
            "use mi.where(condition, x, other), or map_blocks"
        )
    if builtins.any(one is None for one in keys):
        raise BadInput("x[None]: a new axis needs a name; use x.expand_dims('name')")
    if keys.count(Ellipsis) > 1 if _plain(keys) else False:
        raise BadInput("x[...]: more than one ...")
    places = [n for n, one in enumerate(keys) if one is Ellipsis]
    rest = len(node.axes) - (len(keys) - len(places))
    if rest < 0:
        raise BadInput(f"x[...]: {len(keys) - len(places)} indices for the axes {said(node.axes)}")
    fill = (slice(None),) * rest
    keys = (*keys[: places[0]], *fill, *keys[places[0] + 1 :]) if places else (*keys, *fill)
    return isel(node, dict(zip(node.axes, keys, strict=True)), "x[...]")


def _plain(keys: Sequence[Any]) -> bool:
    return not builtins.any(isinstance(one, np.ndarray | list) for one in keys)


def isel(node: Node, indexers: Mapping[str, Any], call: str = "isel") -> Node:
    """Return items by position along named axes."""
    check_known(list(indexers), node.axes, call)
    picks, at = {}, {}
    space = node.space
    for axis, key in indexers.items():
        length = node.sizes[axis]
        if isinstance(key, slice):
            picked = _sliced(key, length, axis, call)
            if picked == range(length):
                continue
            picks[axis] = picked
            space = _followed(space, "taken", axis, picked.start, picked.step)
        elif isinstance(key, bool | np.bool_):
            raise BadInput(f"{call}: {axis} = {key}: a truth value is no position")
        elif isinstance(key, numbers.Integral) or (isinstance(key, np.ndarray) and key.ndim == 0):
            at[axis] = _position(
                operator.index(key.item() if isinstance(key, np.ndarray) else key), length, axis, call
            )
            space = _followed(space, "without", axis, at[axis])
        else:
            picks[axis] = pick = as_pick(_listed(key, length, axis, call))
            even = isinstance(pick, range) and len(pick)
            space = _followed(space, "taken", axis, pick.start, pick.step) if even else _lost(space, axis)
    if not picks and not at:
        return node
    axes = tuple(axis for axis in node.axes if axis not in at)
    shape = tuple(len(picks[axis]) if axis in picks else node.sizes[axis] for axis in axes)
    return Take(
        axes=axes, shape=shape, dtype=node.dtype, order=node.order, space=space, attrs=node.attrs,
        label=node.label, parent=node, picks=picks, at=at,
    )  # fmt: skip


def _lost(space: Any, axis: str) -> Any:
    """Return a space after uneven items of an axis were taken: none, if it has that axis."""
    return None if space is None or axis in space.axes else space


def _sliced(key: slice, length: int, axis: str, call: str) -> range:
    try:
        return range(length)[key]
    except (TypeError, ValueError) as error:
        raise BadInput(f"{call}: {axis} = {key}: {error}") from None


def _position(place: int, length: int, axis: str, call: str) -> int:
    if not -length <= place < length:
        raise BadInput(f"{call}: {axis} = {place}: the axis has {length} items")
    return place % length


def _listed(key: Any, length: int, axis: str, call: str) -> np.ndarray:
    try:
        array = np.asarray(key)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.ndim != 1 or (array.dtype.kind not in "biu" and array.size):
        raise BadInput(
            f"{call}: {axis} = {key!r}: give a number, a slice, or a list of numbers or of truth values"
        )
    if array.dtype.kind == "b":
        if len(array) != length:
            raise BadInput(f"{call}: {axis} has {length} items, and there are {len(array)} truth values")
        return np.flatnonzero(array)
    items = array.astype(np.int64)
    if items.size and (items.min() < -length or items.max() >= length):
        wrong = items[(items < -length) | (items >= length)][0]
        raise BadInput(f"{call}: {axis} = {wrong}: the axis has {length} items")
    return items % max(length, 1)


# --- Axes -------------------------------------------------------------------------------------------------


def _reordered(
    node: Node, axes: tuple[str, ...], came_from: Mapping[str, str], order: str, space: Any
) -> Node:
    shape = tuple(node.sizes[came_from[axis]] if axis in came_from else 1 for axis in axes)
    return Reorder(
        axes=axes, shape=shape, dtype=node.dtype, order=order, space=space, attrs=node.attrs,
        label=node.label, parent=node, came_from=dict(came_from),
    )  # fmt: skip


def transpose(node: Node, order: Sequence[str]) -> Node:
    """Return the axes in another order."""
    check_known(order, node.axes, "transpose")
    if sorted(order) != sorted(node.axes):
        missing = [axis for axis in node.axes if axis not in order]
        raise BadInput(f"transpose: name all axes; {said(missing)} of {said(node.axes)} are missing")
    if tuple(order) == node.axes:
        return node
    memory = {C: F, F: C}[node.order] if tuple(order) == node.axes[::-1] else node.order
    space = _followed(node.space, "reordered", tuple(order))
    return _reordered(node, tuple(order), {axis: axis for axis in order}, memory, space)


def expand(node: Node, axis: Any, position: int = 0) -> Node:
    """Return a new axis of one item."""
    (name,) = _one_axis(axis, "expand_dims")
    if name in node.axes:
        raise BadInput(f"expand_dims: there is an axis {name} already; the axes are {said(node.axes)}")
    count = len(node.axes) + 1
    if isinstance(position, bool) or not isinstance(position, int) or not -count <= position < count:
        raise BadInput(f"expand_dims: position = {position!r}: a number from 0 to {count - 1}")
    place = position % count
    axes = (*node.axes[:place], name, *node.axes[place:])
    return _reordered(node, axes, {axis: axis for axis in node.axes}, node.order, node.space)


def _one_axis(axis: Any, call: str) -> tuple[str, ...]:
    names = axes_tuple(axis, call)
    if len(names) != 1:
        raise BadInput(f"{call}: takes the name of one axis, and not {axis!r}")
    return names


def squeeze(node: Node, axes: AxesLike | None) -> Node:
    """Return the array without axes of one item."""
    gone = checked_axes(axes, node.axes, "squeeze")
    if axes is None:
        gone = tuple(axis for axis, length in node.sizes.items() if length == 1)
    long = [axis for axis in gone if node.sizes[axis] != 1]
    if long:
        raise BadInput(f"squeeze: axis {long[0]} has {node.sizes[long[0]]} items")
    return isel(node, dict.fromkeys(gone, 0), "squeeze")


def rename(node: Node, names: Mapping[str, str]) -> Node:
    """Return the axes under other names."""
    check_known(list(names), node.axes, "rename")
    for new in names.values():
        _one_axis(new, "rename")
    axes = axes_tuple([names.get(axis, axis) for axis in node.axes], "rename")
    if axes == node.axes:
        return node
    space = _followed(node.space, "renamed", dict(names))
    return _reordered(node, axes, {names.get(axis, axis): axis for axis in node.axes}, node.order, space)


def pad(node: Node, widths: Mapping[str, Any], mode: str, cval: Any) -> Node:
    """Return items more on both sides."""
    call = "pad"
    checked_mode(mode, call)
    by_axis = {}
    for axis, width in checked_mapping(widths, node.axes, call, "x=(1, 1)").items():
        both = (width, width) if isinstance(width, int) else width
        try:
            before, after = map(operator.index, both)
        except (TypeError, ValueError):
            raise BadInput(f"{call}: {axis} = {width!r}: give items before and after, as in (1, 1)") from None
        if min(before, after) < 0:
            raise BadInput(f"{call}: {axis} = {width!r}: is negative; use isel to take items away")
        if node.sizes[axis] == 0 and mode != "constant" and before + after:
            raise BadInput(f"{call}: axis {axis} has no items to continue it by")
        if before or after:
            by_axis[axis] = (before, after)
    if not by_axis:
        return node
    _check_number(cval, f"{call}: cval")
    space = node.space
    for axis, (before, _) in by_axis.items():
        space = _followed(space, "padded", axis, before)
    shape = tuple(length + sum(by_axis.get(axis, (0, 0))) for axis, length in node.sizes.items())
    return Pad(
        axes=node.axes, shape=shape, dtype=node.dtype, order=node.order, space=space, attrs=node.attrs,
        label=node.label, parent=node, widths=by_axis, mode=mode, cval=cval,
    )  # fmt: skip


def _check_number(value: Any, call: str) -> None:
    if not isinstance(value, numbers.Number | np.generic):
        raise BadInput(f"{call} = {value!r}: must be a number")


def checked_mode(mode: Any, call: str, more: Sequence[str] = ()) -> None:
    """Refuse a word for a boundary that scipy.ndimage does not have."""
    words = (*MODES, *more)
    if mode in words:
        return
    hint = {"symmetric": "reflect", "edge": "nearest", "periodic": "wrap", "grid-wrap": "wrap"}.get(mode)
    raise BadInput(
        f"{call}: {mode!r} is no boundary; there are {', '.join(words)}, as scipy.ndimage has them"
        + (f"; {mode} is {hint} there" if hint else "")
    )


# --- Several arrays ---------------------------------------------------------------------------------------


def concatenate(arrays: Any, axis: Any) -> Node:
    """Return arrays end to end along an axis that all have."""
    call = "concatenate"
    members = _members(arrays, call)
    (name,) = _one_axis(axis, call)
    first = members[0]
    check_known([name], first.axes, call)
    for number, member in enumerate(members[1:], 2):
        if set(member.axes) != set(first.axes):
            raise BadInput(
                f"{call}: array 1 has the axes {said(first.axes)}, and array {number} has {said(member.axes)}"
            )
        for other, length in first.sizes.items():
            if other != name and member.sizes[other] != length:
                raise BadInput(
                    f"{call}: axis {other} has {length} items in array 1 and {member.sizes[other]} in "
                    f"array {number}"
                )
    members = [transpose(member, first.axes) for member in members]
    return _joined(members, name, first)


def stack(arrays: Any, axis: Any, position: int = 0) -> Node:
    """Return arrays side by side along a new axis."""
    call = "stack"
    members = _members(arrays, call)
    (name,) = _one_axis(axis, call)
    first = members[0]
    for number, member in enumerate(members[1:], 2):
        if member.sizes != first.sizes:
            raise BadInput(
                f"{call}: array 1 is {_shaped(first)} and array {number} {_shaped(member)}; make them alike"
            )
    members = [expand(transpose(member, first.axes), name, position) for member in members]
    return _joined(members, name, members[0])


def _members(arrays: Any, call: str) -> list[Node]:
    if hasattr(arrays, "_node"):
        raise BadInput(f"{call}: takes a list of arrays, and not one array")
    members = [node_of(one, call) for one in arrays]
    if not members:
        raise BadInput(f"{call}: there is no array in the list")
    return members


def _shaped(node: Node) -> str:
    return " x ".join(f"{axis} {length}" for axis, length in node.sizes.items()) or "a value"


def _joined(members: list[Node], axis: str, first: Node) -> Node:
    lengths = [member.sizes[axis] for member in members]
    shape = tuple(sum(lengths) if one == axis else length for one, length in first.sizes.items())
    types = [member.dtype for member in members]
    dtype = None if None in types else np.result_type(*types).str
    return Join(
        axes=first.axes, shape=shape, dtype=dtype, order=first.order, space=first.space, attrs=first.attrs,
        label=first.label, members=tuple(members), axis=axis,
    )  # fmt: skip


# --- Elementwise ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NthOf:
    """One of the results of a function that returns several."""

    function: Callable
    number: int

    def __call__(self, *values: Any, **options: Any) -> np.ndarray:
        return self.function(*values, **options)[self.number]


def elementwise(
    function: Callable, name: str, operands: Sequence[Any], options: Mapping[str, Any] | None = None
) -> Node:
    """Return a function of the items of arrays, aligned by the names of their axes.

    Parameters
    ----------
    function : callable
        NumPy's.
    name : str
        Of the operation.
    operands : sequence
        Arrays, numbers, and NumPy arrays without axes.
    options : mapping, optional
    """
    if function is not np.clip and builtins.any(operand is None for operand in operands):
        raise BadInput(f"{name}: cannot be done with None: give lazy arrays and numbers")
    made = [_operand(operand, name) for operand in operands]
    nodes = [one for one in made if isinstance(one, Node)]
    axes = union(one.axes for one in nodes)
    sizes = common_sizes([(one.axes, one.shape) for one in nodes], name)
    types = [one if isinstance(one, Scalar) else Types().of(one) for one in made]
    options = dict(options or {})
    dtype = None if None in types else elementwise_dtype(function, types, options, name)
    model = max(nodes, key=lambda one: len(one.axes))
    space = next((one.space for one in nodes if one.space is not None), None)
    return Elementwise(
        axes=axes, shape=tuple(sizes[axis] for axis in axes), dtype=dtype, order=model.order, space=space,
        attrs=nodes[0].attrs, label=nodes[0].label, function=function, operation=name, operands=tuple(made),
        options=options,
    )  # fmt: skip


def _operand(value: Any, name: str) -> Node | Scalar:
    if hasattr(value, "_node"):
        return value._node
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if value is None or isinstance(value, numbers.Number | np.generic | bool):
        return Scalar(value)
    if isinstance(value, np.ndarray | list | tuple):
        raise BadInput(
            f"{name}: an array without names of axes cannot be aligned; wrap it: mi.from_array(a, 'z y x')"
        )
    raise BadInput(f"{name}: cannot be done with {type(value).__name__}: give lazy arrays and numbers")


def astype(node: Node, dtype: Any) -> Node:
    """Return the items as another type."""
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
        raise BadInput(f"astype: numpy knows no type {dtype!r}; e.g. 'float32', 'int16'") from None
    if kind.kind not in "biufc":
        raise BadInput(f"astype: {kind} holds no numbers")
    if node.dtype is not None and np.dtype(node.dtype) == kind:
        return node
    wrapped = type("_Wrapped", (), {"_node": node})()
    return elementwise(AsType(kind.str), f"astype {kind.str}", [wrapped])


@dataclass(frozen=True)
class AsType:
    """Converts items to a type."""

    dtype: str

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values).astype(self.dtype)


# --- Reductions -------------------------------------------------------------------------------------------


def reduced(node: Node, operation: str, axes: Any, options: Mapping[str, Any]) -> Node:
    """Return a reduction along axes, or over all."""
    call = f"x.{operation}"
    if axes is None:
        over = node.axes
    elif isinstance(axes, int) or (
        isinstance(axes, tuple | list) and axes and all(isinstance(a, int) for a in axes)
    ):
        numbers_ = (axes,) if isinstance(axes, int) else axes
        wrong = [a for a in numbers_ if not -len(node.axes) <= a < len(node.axes)]
        if wrong:
            raise BadInput(f"{call}: axis = {wrong[0]}: the axes are {said(node.axes) or 'none'}")
        over = tuple(node.axes[a] for a in numbers_)
    else:
        over = checked_axes(axes, node.axes, call)
    over = tuple(axis for axis in node.axes if axis in over)
    lengths = [node.sizes[axis] for axis in over]
    if 0 in lengths and operation in ("min", "max", "argmax", "argmin"):
        raise BadInput(f"{call}: axis {over[lengths.index(0)]} has no items, and so no {operation}")
    kept = tuple(axis for axis in node.axes if axis not in over)
    known = Types().of(node)
    if known is not None:
        check_operation(operation, known, call)
    return Reduced(
        axes=kept, shape=tuple(node.sizes[axis] for axis in kept),
        dtype=None if known is None else result_dtype(operation, options, known),
        order=node.order, space=_without(node, over), attrs=node.attrs,
        label=f"{operation}-{node.label}"[:40],
        parent=node, over=over, operation=operation, options=dict(options),
    )  # fmt: skip


def _without(node: Node, over: Sequence[str]) -> Any:
    space = node.space
    for axis in over:
        space = _followed(space, "without", axis, (node.sizes[axis] - 1) // 2)
    return space


def histogram(array: Any, bins: Any, range: Any) -> tuple[Any, np.ndarray]:
    """Return counts and edges of a histogram of all items."""
    call = "x.histogram"
    try:
        low, high = map(float, range)
        edges = np.histogram_bin_edges(np.zeros(0), bins, (low, high))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{call}: bins = {bins!r}, range = {range!r}: {error}") from None
    node = node_of(array, call)
    known = Types().of(node)
    if known is not None:
        check_operation("histogram", known, call)
    plain = bins if isinstance(bins, int | np.integer) else [float(edge) for edge in edges]
    options = {"bins": int(plain) if isinstance(bins, int | np.integer) else plain, "range": [low, high]}
    counts = Reduced(
        axes=("bin",), shape=(len(edges) - 1,), dtype="<i8", label="histogram", parent=node, over=node.axes,
        operation="histogram", options=options,
    )  # fmt: skip
    return type(array)(counts), edges


# --- Coarser arrays ---------------------------------------------------------------------------------------


def to_coarsen(node: Node, factors: Mapping[str, int], boundary: str) -> tuple[Node, dict[str, int]]:
    """Return an array whose lengths are multiples of the factors, and these."""
    call = "coarsen"
    if boundary not in ("exact", "trim"):
        raise BadInput(f"{call}: boundary = {boundary!r}: must be 'exact' or 'trim'")
    checked = {}
    for axis, factor in checked_mapping(factors, node.axes, call, "x=2").items():
        if isinstance(factor, bool) or not isinstance(factor, int | np.integer) or factor < 1:
            raise BadInput(f"{call}: {axis} = {factor!r}: must be a whole number from 1 on")
        rest = node.sizes[axis] % int(factor)
        if rest and boundary == "exact":
            raise BadInput(
                f"{call}: {node.sizes[axis]} items of axis {axis} are no multiple of {factor}; "
                "give boundary='trim' to let the last ones go"
            )
        checked[axis] = int(factor)
    trimmed = {axis: slice(node.sizes[axis] // factor * factor) for axis, factor in checked.items()}
    return isel(node, trimmed, call), checked


def coarsened(node: Node, factors: Mapping[str, int], operation: str, options: Mapping[str, Any]) -> Node:
    """Return a coarser array."""
    known = Types().of(node)
    if known is not None:
        check_operation(operation, known, f"coarsen(...).{operation}")
    space = node.space
    for axis, factor in factors.items():
        space = _followed(space, "coarsened", axis, factor)
    shape = tuple(length // factors.get(axis, 1) for axis, length in node.sizes.items())
    return Coarsen(
        axes=node.axes, shape=shape, dtype=None if known is None else result_dtype(operation, options, known),
        order=node.order, space=space, attrs=node.attrs, label=node.label, parent=node, factors=dict(factors),
        operation=operation, options=dict(options),
    )  # fmt: skip


def persisted(node: Node) -> Node:
    """Return an array that is kept for all runs of a program."""
    return node if isinstance(node, Persisted) else Persisted.of(node)
