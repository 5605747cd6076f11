"""Users' functions on blocks: map_blocks, map_overlap, apply_gufunc and reduction."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.arrays.array import Array
from mpiimg.arrays.axes import AxesLike, axes_tuple, check_known, checked_axes, checked_mapping, said
from mpiimg.arrays.expressions import _check_number, checked_mode, node_of, transpose
from mpiimg.arrays.graph import Node, digest
from mpiimg.arrays.identity import Identity, identity
from mpiimg.arrays.stored import Call, Output, OutputOf
from mpiimg.engine.names import file_name
from mpiimg.errors import BadInput

#: Bytes of an array that arrives whole at a function, at most.
MAX_WHOLE = 64 << 20

#: Types of numbers that a function may return.
_KINDS = "biufc"


def map_blocks(
    function: Callable,
    *arrays: Array,
    each: AxesLike = (),
    whole: AxesLike = (),
    out: AxesLike | Sequence[AxesLike] | None = None,
    output_sizes: Mapping[str, int] | None = None,
    dtype: Any = None,
    chunks: Mapping[str, int] | None = None,
    weight: Array | None = None,
    **keywords: Any,
) -> Array | tuple[Array, ...]:
    """Call a function on blocks of arrays.

    The function gets a NumPy block of each array, in the array's own order of axes; arrays are aligned by the
    names of their axes, and one that lacks an axis is given with every block along it. It returns one block,
    or a tuple where `out` names several.

    Parameters
    ----------
    function : callable
        Called as function(*blocks, **keywords).
    *arrays : Array
    each : str or tuple of str
        Axes that are looped over: the function is called once per index, with blocks that do not have them.
    whole : str or tuple of str
        Axes that are not cut: every block has all of them.
    out : str or tuple of str, optional
        The axes of the block that is returned, e.g. "x y z"; a tuple of such texts, one per block, where
        several
        are returned; "" for one value. By default those of the first block. Axes of `each` are put back.
    output_sizes : mapping of str to int, optional
        Lengths of axes that the arrays do not have, or of whole ones that come out in another length.
    dtype : dtype or tuple of dtype, optional
        Of what is returned; by default found out in a rehearsal on a small block.
    chunks : mapping of str to int, optional
        Items of a block along some axes, where the choice that follows from the data will not do.
    weight : Array, optional
        Whose sum over a block says how much work is in it, e.g. a mask.
    **keywords
        Of the function. An Array arrives whole, as a NumPy array (a NumPy scalar where it has no axes).
        A function that has a parameter `block_info` is told where its block lies.

    Returns
    -------
    Array or tuple of Array

    Raises
    ------
    mpiimg.errors.BadInput
        An argument makes no sense; the message names the axes.
    """
    return _mapped(
        "map_blocks", function, arrays, each, whole, out, output_sizes, dtype, chunks, weight, keywords
    )


def map_overlap(
    function: Callable,
    *arrays: Array,
    depth: Mapping[str, int] | int,
    boundary: str = "none",
    cval: Any = 0,
    each: AxesLike = (),
    whole: AxesLike = (),
    out: AxesLike | Sequence[AxesLike] | None = None,
    output_sizes: Mapping[str, int] | None = None,
    dtype: Any = None,
    chunks: Mapping[str, int] | None = None,
    weight: Array | None = None,
    **keywords: Any,
) -> Array | tuple[Array, ...]:
    """Call a function on blocks of arrays with items more on their sides, which are cut off the result.

    Parameters
    ----------
    function : callable
        As for :func:`map_blocks`; what it returns is as large as what it gets along the axes of `depth`.
    *arrays : Array
    depth : mapping of str to int, or int
        Items more on both sides, by axis; a number is for all axes of the first array.
    boundary : {"none", "reflect", "mirror", "nearest", "wrap", "constant"}
        What lies beyond the ends of the array, as scipy.ndimage has it: reflect repeats the edge (NumPy's
        "symmetric"), mirror does not (NumPy's "reflect"). "none" is nothing: blocks at the ends are smaller.
    cval : scalar
        What lies there, for "constant".
    each, whole, out, output_sizes, dtype, chunks, weight, **keywords
        As for :func:`map_blocks`.

    Returns
    -------
    Array or tuple of Array

    Raises
    ------
    mpiimg.errors.BadInput
        An argument makes no sense; the message names the axes.
    """
    call = "map_overlap"
    nodes = _nodes(call, function, arrays)
    if isinstance(depth, int) and not isinstance(depth, bool):
        looped = axes_tuple(each, f"{call}: each")
        depth = {axis: depth for axis in nodes[0].axes if axis not in looped}
    known = tuple(dict.fromkeys(axis for node in nodes for axis in node.axes))
    by_axis = {}
    for axis, items in checked_mapping(depth, known, f"{call}: depth", "depth={'z': 2}").items():
        if isinstance(items, tuple | list):
            raise BadInput(
                f"{call}: depth of {axis} = {items!r}: is the same on both sides; give the larger one"
            )
        if isinstance(items, bool) or not isinstance(items, int | np.integer) or items < 0:
            raise BadInput(f"{call}: depth of {axis} = {items!r}: must be a whole number from 0 on")
        if items:
            by_axis[axis] = int(items)
    if isinstance(boundary, Mapping):
        raise BadInput(
            f"{call}: boundary is one word for all axes: none, reflect, mirror, nearest, wrap, constant"
        )
    checked_mode(boundary, call, ("none",))
    _check_number(cval, f"{call}: cval")
    return _mapped(
        call, function, arrays, each, whole, out, output_sizes, dtype, chunks, weight, keywords,
        by_axis, boundary, cval,
    )  # fmt: skip


def apply_gufunc(
    function: Callable,
    signature: str,
    *arrays: Array,
    output_sizes: Mapping[str, int] | None = None,
    output_dtypes: Any = None,
    **keywords: Any,
) -> Array | tuple[Array, ...]:
    """Call a generalised ufunc: its core axes are whole and come last, over all others it is called in
    blocks.

    Parameters
    ----------
    function : callable
        Takes blocks whose last axes are the core axes of `signature`, and broadcasts over the others.
    signature : str
        As NumPy has them, with names of axes: "(t),()->(c)".
    *arrays : Array
    output_sizes : mapping of str to int, optional
        Lengths of core axes that only results have.
    output_dtypes : dtype or sequence of dtype, optional
    **keywords
        Of the function.

    Returns
    -------
    Array or tuple of Array

    Raises
    ------
    mpiimg.errors.BadInput
        The signature does not fit the arrays.
    """
    call = "apply_gufunc"
    takes, gives = _parsed(signature, call)
    nodes = _nodes(call, function, arrays)
    if len(takes) != len(nodes):
        raise BadInput(f"{call}: {signature} takes {len(takes)} arrays, and there are {len(nodes)}")
    core = tuple(dict.fromkeys(axis for axes in takes for axis in axes))
    ordered = []
    for number, (node, axes) in enumerate(zip(nodes, takes, strict=True), 1):
        check_known(axes, node.axes, f"{call}: array {number} of {signature}")
        others = tuple(axis for axis in node.axes if axis not in axes)
        inner = [axis for axis in others if axis in core]
        if inner:
            raise BadInput(
                f"{call}: array {number} has the axis {inner[0]}, which is a core axis of another array"
            )
        ordered.append(transpose(node, (*others, *axes)))
    loop = tuple(dict.fromkeys(axis for node in ordered for axis in node.axes if axis not in core))
    # Blocks of all arrays broadcast against each other: they all have the loop axes, in one order.
    aligned = [Array(_with_axes(node, loop, axes)) for node, axes in zip(ordered, takes, strict=True)]
    out = tuple(" ".join((*loop, *axes)) for axes in gives)
    dtype = output_dtypes
    if dtype is not None and len(gives) == 1 and isinstance(dtype, list | tuple):
        (dtype,) = dtype
    made = _mapped(
        call, function, aligned, (), core, out if len(out) > 1 else out[0], output_sizes,
        tuple(dtype) if isinstance(dtype, list) else dtype, None, None, keywords,
    )  # fmt: skip
    return made


def _with_axes(node: Node, loop: Sequence[str], core: Sequence[str]) -> Node:
    from mpiimg.arrays.expressions import expand

    # Of the loop axes in front an array may lack some: NumPy broadcasts from the last one.
    first = next((place for place, axis in enumerate(loop) if axis in node.axes), len(loop))
    for place, axis in enumerate(loop[first:]):
        if axis not in node.axes:
            node = expand(node, axis, place)
    return transpose(node, (*loop[first:], *core))


def _parsed(signature: Any, call: str) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    if not isinstance(signature, str) or not re.fullmatch(r"\s*\(.*\)\s*->\s*\(.*\)\s*", signature):
        raise BadInput(f"{call}: signature {signature!r}: write e.g. '(t),()->(c)'")
    sides = signature.split("->")
    if len(sides) != 2:
        raise BadInput(f"{call}: signature {signature!r}: write e.g. '(t),()->(c)'")
    parsed = []
    for side in sides:
        groups = re.findall(r"\(([^()]*)\)", side)
        parsed.append([axes_tuple(group.replace(",", " "), f"{call}: {signature}") for group in groups])
    return parsed[0], parsed[1]


# --- What is common to them -------------------------------------------------------------------------------


def _nodes(call: str, function: Any, arrays: Sequence[Any]) -> list[Node]:
    if hasattr(function, "_node"):
        raise BadInput(f"{call}: the function comes first, then the arrays")
    if not callable(function):
        called = "; name it without calling it: f, and not f(x)" if isinstance(function, np.ndarray) else ""
        raise BadInput(f"{call}: the first argument is a function, and not {type(function).__name__}{called}")
    if not arrays:
        raise BadInput(f"{call}({_called(function)}): there is no array")
    return [node_of(one, f"{call}({_called(function)})") for one in arrays]


def _called(function: Any) -> str:
    """Return the name of a function, for messages and labels."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return "function" if name == "<lambda>" else name


def _mapped(
    call, function, arrays, each, whole, out, output_sizes, dtype, chunks, weight, keywords,
    depth=None, boundary="none", cval=0,
):  # fmt: skip
    made, new_sizes = made_call(
        call, function, arrays, each, whole, output_sizes, chunks, weight, keywords, depth, boundary, cval
    )
    nodes = made.inputs
    outputs, several = _outputs(
        made.name, nodes, out, dtype, made.axes, made.sizes, made.each, made.whole, new_sizes, made.depth
    )
    call_made = dataclasses.replace(made, outputs=outputs)
    arrays_made = tuple(Array(_output(call_made, number, nodes)) for number in range(len(outputs)))
    return arrays_made if several else arrays_made[0]


def made_call(
    call, function, arrays, each=(), whole=(), output_sizes=None, chunks=None, weight=None, keywords=(),
    depth=None, boundary="none", cval=0,
):  # fmt: skip
    """Return a call, all of whose arguments are checked but for its outputs, and the lengths of new axes.

    Raises
    ------
    BadInput
        An argument makes no sense.
    """
    nodes = _nodes(call, function, arrays)
    named = f"{call}({_called(function)})"
    for name, value in dict(keywords).items():
        inner = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
        )
        if any(hasattr(one, "_node") for one in inner):
            raise BadInput(
                f"{named}: {name} is a {type(value).__name__} with a lazy array in it; give each array as a "
                "keyword of its own"
            )
    made = Call(
        function=function, identity=identity(function), name=named, inputs=tuple(nodes), depth=depth or {},
        boundary=boundary, cval=cval, order=nodes[0].order,
        label=file_name(_called(function))[:40] or "function",
        keywords={name: getattr(value, "_node", value) for name, value in dict(keywords).items()},
        weight=None if weight is None else node_of(weight, f"{named}: weight"),
    )  # fmt: skip
    axes, sizes = made.axes, made.sizes
    looped = checked_axes(each, axes, f"{named}: each")
    uncut = checked_axes(whole, axes, f"{named}: whole")
    for axis in looped:
        if axis in uncut or axis in made.depth:
            other = "whole" if axis in uncut else "depth"
            raise BadInput(
                f"{named}: axis {axis} is in each and in {other}: a block either has it, or has not"
            )
    new_sizes = _checked_sizes(output_sizes, sizes, uncut, named)
    _check_keywords(function, made, named)
    if made.weight is not None:
        check_known(made.weight.axes, axes, f"{named}: weight")
    checked = dataclasses.replace(
        made,
        each=looped,
        whole=uncut,
        chunks=_checked_chunks(chunks, sizes, looped, uncut, named),
        block_info=_takes(function, "block_info") and "block_info" not in made.keywords,
        identity=_with_keywords(made.identity, made.plain),
    )
    return checked, new_sizes


def _with_keywords(known: Identity, keywords: Mapping[str, Any]) -> Identity:
    """Return the identity of a function together with its keywords."""
    if not keywords:
        return known
    values = {name: identity(value) for name, value in sorted(keywords.items())}
    unknown = next((f"{name}: {one.why}" for name, one in values.items() if not one.known), "")
    return Identity(
        digest(known.digest, {name: one.digest for name, one in values.items()}),
        known.known and not unknown,
        known.why or unknown,
    )


def _checked_sizes(sizes_given: Any, sizes: Any, whole: Any, call: str) -> dict[str, int]:
    checked = {}
    if sizes_given is not None and not isinstance(sizes_given, Mapping):
        raise BadInput(f"{call}: output_sizes = {sizes_given!r}: write e.g. output_sizes={{'c': 3}}")
    for axis, length in (sizes_given or {}).items():
        axes_tuple((axis,), f"{call}: output_sizes")
        if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 0:
            raise BadInput(f"{call}: output_sizes: {axis} = {length!r}: must be a whole number from 0 on")
        if axis in sizes and axis not in whole and length != sizes[axis]:
            raise BadInput(
                f"{call}: output_sizes: axis {axis} is cut, and comes out as it goes in; "
                f"name it in whole=, or choose another name"
            )
        checked[axis] = int(length)
    return checked


def _outputs(call, nodes, out, dtype, axes, sizes, each, whole, new_sizes, depth):
    several = isinstance(out, tuple | list)
    given = list(out) if several else [out]
    if several and not given:
        raise BadInput(f"{call}: out = (): names no block; give '' for one value")
    types = list(dtype) if isinstance(dtype, tuple | list) else [dtype] * len(given)
    if len(types) != len(given):
        raise BadInput(f"{call}: there are {len(given)} outputs and {len(types)} types")
    first = nodes[0].axes
    outputs = []
    for one, kind in zip(given, types, strict=True):
        asked = tuple(axis for axis in first) if one is None else axes_tuple(one, f"{call}: out")
        full = _put_back(asked, each, first, axes)
        unknown = [axis for axis in full if axis not in sizes and axis not in new_sizes]
        if unknown:
            raise BadInput(
                f"{call}: out names the axis {unknown[0]}, which no array has; "
                f"the axes are {said(axes)}; give its length: output_sizes={{{unknown[0]!r}: ...}}"
            )
        cut = [axis for axis in axes if axis not in each and axis not in whole and axis not in full]
        cut = [axis for axis in cut if sizes[axis] != 1 or one is not None]
        if cut:
            raise BadInput(
                f"{call}: axis {cut[0]} is cut into blocks, and out = {' '.join(full)!r} does not have it; "
                + "name it in whole=, in each= or in out="
                + (
                    "; a tuple names several blocks, and one block has one text, as in out='x y z'"
                    if several
                    else ""
                )
            )
        lengths = {**sizes, **new_sizes}
        shape = tuple(lengths[axis] for axis in full)
        block_axes = tuple(axis for axis in full if axis not in each)
        outputs.append(OutputOf(block_axes, full, shape, _checked_dtype(kind, call)))
    gone = [axis for axis in depth if all(axis not in one.axes for one in outputs) and axis not in whole]
    if gone:
        raise BadInput(f"{call}: axis {gone[0]} has a depth, and no output has it to cut it off from")
    check_used(new_sizes, [axis for one in outputs for axis in one.axes], call)
    return tuple(outputs), several


def check_used(sizes: Mapping[str, int], axes: Sequence[str], call: str) -> None:
    """Refuse the length of an axis that no result has.

    Raises
    ------
    BadInput
        There is one.
    """
    unused = [axis for axis in sizes if axis not in axes]
    if unused:
        raise BadInput(f"{call}: output_sizes: axis {unused[0]} is in no result; name it in out=")


def _put_back(asked: Any, each: Any, first: Any, axes: Any) -> tuple[str, ...]:
    """Return axes of an output with those that are looped over at their places."""
    full = list(asked)
    for axis in each:
        if axis in full:
            continue
        order = first if axis in first else axes
        after = [one for one in order[: order.index(axis)] if one in full]
        before = [one for one in order[order.index(axis) + 1 :] if one in full]
        if after:
            full.insert(full.index(after[-1]) + 1, axis)
        elif before:
            full.insert(full.index(before[0]), axis)
        else:
            full.append(axis)
    return tuple(full)


def _checked_dtype(dtype: Any, call: str) -> str | None:
    if dtype is None:
        return None
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
        raise BadInput(f"{call}: dtype = {dtype!r}: numpy knows no such type; e.g. 'float32'") from None
    if kind.kind not in _KINDS:
        raise BadInput(f"{call}: dtype = {kind}: holds no numbers; records go through mi.items")
    return kind.newbyteorder("=").str


def _checked_chunks(chunks: Any, sizes: Any, each: Any, whole: Any, call: str) -> dict[str, int]:
    checked = {}
    for axis, items in checked_mapping(chunks, tuple(sizes), f"{call}: chunks", "chunks={'z': 8}").items():
        if isinstance(items, bool) or not isinstance(items, int | np.integer) or items < 1:
            raise BadInput(f"{call}: chunks: {axis} = {items!r}: must be a whole number from 1 on")
        if axis in each or axis in whole:
            raise BadInput(f"{call}: chunks: axis {axis} is in {'each' if axis in each else 'whole'}")
        checked[axis] = int(items)
    return checked


def _takes(function: Any, name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _check_keywords(function: Callable, call: Call, named: str) -> None:
    """Refuse calls that Python would refuse, before anything runs."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        extra = {"block_info": None} if "block_info" in signature.parameters else {}
        try:
            signature.bind(*call.inputs, **{**extra, **call.keywords})
        except TypeError as error:
            raise BadInput(f"{named}: {_called(function)}{signature}: {error}") from None
    for name, node in call.given.items():
        size = int(np.prod(node.shape, dtype=np.int64)) * (np.dtype(node.dtype).itemsize if node.dtype else 4)
        if size > MAX_WHOLE:
            raise BadInput(
                f"{named}: {name} = an array of {size >> 20} MB: what arrives whole on all ranks has at most "
                f"{MAX_WHOLE >> 20} MB; give it among the arrays, to be aligned by its axes"
            )


def _output(call: Call, number: int, nodes: Sequence[Node]) -> Output:
    of = call.outputs[number]
    spaces = [node.space for node in nodes if node.space is not None]
    space = spaces[0] if spaces else None
    sizes = call.sizes
    if space is not None:
        for axis in space.axes:
            if axis not in of.axes and axis in sizes:
                space = space.without(axis, 0)
            elif axis in of.axes and axis in sizes and of.shape[of.axes.index(axis)] != sizes[axis]:
                space = None  # where its items lie now only the function knows
                break
    suffix = f"-{number}" if len(call.outputs) > 1 else ""
    return Output(
        axes=of.axes, shape=of.shape, dtype=of.dtype, order=call.order, space=space, attrs=nodes[0].attrs,
        label=f"{call.label}{suffix}", call=call, number=number,
    )  # fmt: skip
