"""Does what lies outside the declared depth change what lies within? Blocks are made larger, by other data.

A function on blocks is right if the result for a block is what it would be in any larger block: what lies
beyond the depth must not move it. So a function is called on blocks as it will see them, and on the same
blocks with items more on all sides that are cut, which hold something else: larger values, zeros, noise.
Where the inside moves, the depth is too small, or the function looks at its block as a whole (its maximum,
its first volume).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays import call_stages, rehearsal
from mpiimg.arrays.differences import beyond_rounding
from mpiimg.arrays.graph import Node
from mpiimg.arrays.lower import needed
from mpiimg.arrays.stored import Call, Output

#: Items more on each side, beside the depth; blocks that are looked at; and larger depths that are tried.
MORE, PLACES, MAX_LARGER = 5, 3, 16

#: Seconds after which no further places of a call are looked at.
ENOUGH = 20.0


@dataclass(frozen=True)
class Report:
    """What the check of a call found.

    Parameters
    ----------
    name : str
        Of the call.
    enough : bool
    line : str
        In words.
    """

    name: str
    enough: bool
    line: str


def check(targets: Sequence[Node]) -> list[Report]:
    """Look at every call in a graph whose blocks are cut along some axis, in this process.

    Parameters
    ----------
    targets : sequence of Node
    """
    made = rehearsal.Rehearsal({})
    reports, seen = [], set()
    for node in needed(list(targets), {}):
        made.node(node)
        if isinstance(node, Output) and node.call.key not in seen:
            seen.add(node.call.key)
            reports.append(_checked(node.call, made))
    return reports


def cut_axes(call: Call) -> tuple[str, ...]:
    """Return the axes along which other blocks lie beside a block, in the same call of the function."""
    return tuple(
        axis
        for axis, length in call.sizes.items()
        if axis not in call.each and axis not in call.whole and length > 1
    )


def _checked(call: Call, made: Any) -> Report:
    axes = cut_axes(call)
    depth = ", ".join(f"{axis}={call.depth.get(axis, 0)}" for axis in axes)
    if not axes:
        return Report(call.name, True, f"{call.name}: blocks are whole: there is no depth to check")
    largest = _movement(call, made, dict(call.depth), axes)
    if largest is None:
        return Report(
            call.name, True, f"{call.name}: depth {depth} is enough: what lies outside changes nothing"
        )
    for larger in _larger(call, axes):
        if _movement(call, made, larger, axes) is None:
            advice = ", ".join(f"{axis!r}: {items}" for axis, items in larger.items() if items)
            return Report(
                call.name,
                False,
                f"{call.name}: depth {depth} is not enough: {largest}; depth={{{advice}}} is",
            )
    return Report(
        call.name,
        False,
        f"{call.name}: depth {depth} is not enough: {largest}; nor is {MAX_LARGER} more: the function "
        "looks at its block as a whole (its extremes, its mean, its first items); name the axis in whole= or "
        "each=, or bring what is of the whole array as a keyword",
    )


def _larger(call: Call, axes: Sequence[str]) -> Iterator[dict[str, int]]:
    """Yield larger depths: along one axis first, then along all."""
    for more in range(1, MAX_LARGER + 1):
        for some in (*((axis,) for axis in axes), axes) if len(axes) > 1 else (axes,):
            yield {axis: call.depth.get(axis, 0) + (more if axis in some else 0) for axis in axes}


def _movement(call: Call, made: Any, depth: Mapping[str, int], axes: Sequence[str]) -> str | None:
    """Return how much the inside of blocks moves with what lies outside, in words; None where it does not."""
    started = time.monotonic()
    for bounds in _places(call):
        blocks, given = _blocks(call, made, bounds, depth, {})
        inside = _inner(call, made, bounds, depth, {}, blocks, given)
        for name, disturb in _disturbances():
            margins = {axis: MORE for axis in axes}
            wider, _ = _blocks(call, made, bounds, depth, margins)
            for node, block in zip(call.inputs, wider, strict=True):
                _disturb(node, block, margins, disturb)
            outside = _inner(call, made, bounds, depth, margins, wider, given)
            for one, other in zip(inside, outside, strict=True):
                if moved := _difference(one, other):
                    return f"{moved} where {name} beyond it"
        if time.monotonic() - started > ENOUGH:
            break
    return None


def _places(call: Call) -> Iterator[dict[str, tuple[int, int]]]:
    """Yield chunks that are looked at: at the front, in the midst and at the end of all axes."""
    small = rehearsal.small_block(call)
    for place in range(PLACES):
        bounds = {}
        for axis, length in call.sizes.items():
            count = small[axis] if axis not in cut_axes(call) else max(1, min(length, small[axis], 6))
            first = (length - count) * place // (PLACES - 1)
            bounds[axis] = (0, count) if axis in call.whole else (first, first + count)
        yield bounds


def _blocks(call: Call, made: Any, bounds, depth, margins) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Return the blocks of a chunk with its depth and items more beyond it, and what arrives whole."""
    asked = []
    for node in call.inputs:
        cuts = {}
        for axis, length in node.sizes.items():
            start, stop = bounds[axis]
            more = depth.get(axis, 0) + margins.get(axis, 0)
            if length == 1 and call.sizes[axis] != 1:
                start, stop, more = 0, 1, 0
            cuts[axis] = rehearsal.span(range(start - more, stop + more), length)
        asked.append((node, cuts))
    asked += [(node, rehearsal.spans(node, node.sizes)) for node in call.given.values()]
    values = [np.array(value, order="K", copy=True) for value in made.values(asked)]
    count = len(call.inputs)
    return values[:count], dict(zip(call.given, values[count:], strict=True))


def _disturb(node: Node, block: np.ndarray, margins: Mapping[str, int], disturb) -> None:
    """Change what lies in the margins of a block."""
    inner = tuple(
        slice(margins[axis], length - margins[axis])
        if margins.get(axis) and length > 2 * margins[axis]
        else slice(None)
        for axis, length in zip(node.axes, block.shape, strict=True)
    )
    kept = block[inner].copy()
    with np.errstate(all="ignore"):
        block[...] = disturb(block)
    block[inner] = kept


def _disturbances() -> Iterator[tuple[str, Any]]:
    rng = np.random.default_rng(1)

    def larger(block):
        if block.dtype.kind == "b":
            return ~block
        if block.dtype.kind in "iu":
            return np.minimum(
                block.astype(np.int64) + 1 + abs(block.astype(np.int64)), np.iinfo(block.dtype).max
            )
        return 7 * np.abs(block) + 1 + np.nanmax(np.abs(block), initial=1.0)

    def noise(block):
        if block.dtype.kind == "b":
            return rng.random(block.shape) > 0.5
        return rng.permuted(block.reshape(-1)).reshape(block.shape)

    yield "values are larger", larger
    yield "there are zeros", np.zeros_like
    yield "values are in another order", noise


def _inner(call: Call, made: Any, bounds, depth, margins, blocks, given) -> list[np.ndarray]:
    """Call the function, and return the blocks of the chunk itself out of what it returns."""
    calls = call_stages.Calls(call)
    result = calls(bounds, [block.copy(order="K") for block in blocks], given)
    results = list(result) if len(call.outputs) > 1 else [result[0] if isinstance(result, tuple) else result]
    inner = []
    for of, block in zip(call.outputs, results, strict=True):
        index = []
        for axis, length in zip(of.block_axes, np.shape(block), strict=True):
            more = depth.get(axis, 0) + margins.get(axis, 0) if axis in cut_axes(call) else 0
            count = bounds[axis][1] - bounds[axis][0] if axis in bounds and more else length
            index.append(slice(more, more + count))
        inner.append(np.asarray(block)[tuple(index)])
    return inner


def _difference(one: np.ndarray, other: np.ndarray) -> str:
    """Say how two results differ by more than rounding; nothing where they do not."""
    if one.shape != other.shape:
        return f"the result has another shape ({one.shape} and {other.shape})"
    beyond = beyond_rounding(one, other)
    if beyond is None:
        return ""
    largest, share = beyond
    return f"the inside changes by up to {largest:.3g} in {100 * share:.0f} % of its items"
