"""The stage of a user's function on blocks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.arrays.chunks import Sized, block_shape
from mpiimg.arrays.graph import F, Node, Pad, stored_below
from mpiimg.arrays.lower import (
    ONE,
    UNKNOWN,
    Costs,
    Lowering,
    Reads,
    grid_of,
    plain_cuts,
    storage_axes,
    stored_array,
    to_storage,
)
from mpiimg.arrays.process import put_back
from mpiimg.arrays.stored import Call, OutputOf, output_key
from mpiimg.arrays.types_of import Types
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Chunk
from mpiimg.engine.stage import Compute, Found, Reduce, Stages
from mpiimg.engine.view import Cut, grid_cut


class WrongResult(ValueError):
    """A user's function returned something else than its declaration says."""


def stages(lowering: Lowering, call: Call) -> Stages[None]:
    """Yield the stages of a call: that of its weights, if it has some, and its own."""
    if output_key(call, 0) in lowering.made:
        return
    grid = call_grid(call, lowering.types)
    weights = None
    if call.weight is not None:
        counts = yield _weighed(lowering, call, grid)
        # Work that is nowhere is spread evenly.
        weights = None if counts is None else tuple(int(one) + 1 for one in counts)
    yield stage_of(lowering, call, grid, weights)


def blocks_of(call: Call, types: Types) -> dict[str, int]:
    """Return how many items of each axis of the inputs a chunk of a call has."""
    stored = storage_axes(call.axes, call.order) if call.axes else ()
    block = block_shape(
        stored,
        call.sizes,
        sized(call, types),
        call.whole,
        call.each,
        call.depth,
        stored_below(call.inputs),
    )
    return {**block, **call.chunks}


def sized(call: Call, types: Types) -> list[Sized]:
    """Return what a call reads and writes, to know the bytes of its chunks."""
    arrays = []
    for node in call.inputs:
        lengths = {axis: 1 for axis, length in node.sizes.items() if length == 1 and call.sizes[axis] != 1}
        arrays.append(Sized(node.axes, _itemsize(types.of(node)), lengths))
    for number, of in enumerate(call.outputs):
        lengths = dict(zip(of.axes, of.shape, strict=True))
        new = {axis: n for axis, n in lengths.items() if axis not in call.sizes or n != call.sizes[axis]}
        arrays.append(Sized(of.axes, _itemsize(of.dtype or types.known(output_key(call, number))), new))
    return arrays


def _itemsize(dtype: str | None) -> int:
    # Before the rehearsal the type of a result is not known; plans that are made then are estimates.
    return np.dtype(dtype or UNKNOWN).itemsize


def call_grid(call: Call, types: Types) -> ChunkGrid:
    """Return the chunks of a call."""
    block = blocks_of(call, types)
    stored = storage_axes(call.axes, call.order) if call.axes else ()
    return grid_of([axis for axis in stored if axis not in call.whole], call.sizes, block)


def input_cuts(call: Call, node: Node, grid: ChunkGrid) -> tuple[Node, dict[str, Cut]]:
    """Return what a chunk reads of an input, and of which node: the input, or that with its boundary."""
    depth = {axis: items for axis, items in call.depth.items() if has_depth(call, node, axis)}
    padded = {axis: (items, items) for axis, items in depth.items()} if call.boundary != "none" else {}
    read = node
    if padded:
        shape = tuple(length + 2 * depth.get(axis, 0) for axis, length in node.sizes.items())
        read = Pad(
            axes=node.axes, shape=shape, dtype=node.dtype, order=node.order, label=node.label, parent=node,
            widths=padded, mode=call.boundary, cval=call.cval,
        )  # fmt: skip
    cuts = {}
    for axis, length in node.sizes.items():
        halo = depth.get(axis, 0)
        if length == 1 and call.sizes[axis] != 1:
            cuts[axis] = Cut.whole(1)
        elif axis not in grid.axes:
            cuts[axis] = Cut.whole(length + (2 * halo if axis in padded else 0))
        elif axis in padded or not halo:
            cuts[axis] = grid_cut(grid, axis, halo)
        else:
            plain = grid_cut(grid, axis)
            cuts[axis] = plain.map(functools.partial(_clipped, halo=halo, length=length))
    return read, cuts


def has_depth(call: Call, node: Node, axis: str) -> bool:
    """Say whether an input is read with its neighbours along an axis: not where its one item fits any."""
    return axis in node.axes and (node.sizes[axis] != 1 or call.sizes[axis] == 1)


def _clipped(bounds: range, halo: int, length: int) -> range:
    return range(max(bounds.start - halo, 0), min(bounds.stop + halo, length))


class Calls:
    """Calls a user's function on the blocks of chunks.

    Parameters
    ----------
    call : Call
    """

    def __init__(self, call: Call):
        self.call = call
        self._function = functools.partial(call.function, **call.plain) if call.plain else call.function

    def __call__(
        self, bounds: Mapping[str, tuple[int, int]], blocks: Sequence[np.ndarray], given: Mapping
    ) -> Any:
        """Return what the function returns for blocks in the axes of the inputs."""
        call = self.call
        arguments, seen = [], set()
        for node, block in zip(call.inputs, blocks, strict=True):
            index = tuple(0 if axis in call.each else slice(None) for axis in node.axes)
            argument = block[index] if block.ndim else block
            arguments.append(_own(argument, node.order, id(block) in seen))
            seen.add(id(block))
        keywords = {name: _keyword(value) for name, value in given.items()}
        if call.block_info:
            keywords["block_info"] = block_info(call, bounds)
        with put_back(), np.errstate():
            return self._function(*arguments, **keywords)


def _own(block: np.ndarray, order: str, seen: bool) -> np.ndarray:
    """Return a block that a user's function may write to, in the memory order of its array."""
    contiguous = block.flags.f_contiguous if order == F else block.flags.c_contiguous
    if contiguous and block.base is None and block.flags.owndata and block.flags.writeable and not seen:
        return block
    return np.array(block, order=order, copy=True)


def _keyword(value: np.ndarray) -> Any:
    return value[()] if value.ndim == 0 else np.array(value, order="K", copy=True)


def block_info(call: Call, bounds: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Return where a block lies, its depth included.

    First item and the one behind the last by axis, which may lie beyond the array where that has a boundary;
    the shape of the first array; and the space of its block.
    """
    model = call.inputs[0]
    inside = {}
    for axis, length in call.sizes.items():
        start, stop = bounds.get(axis, (0, length))
        before, after = margins(call, axis, start, stop)
        inside[axis] = start - before, stop + after
    space = model.space
    for axis, (start, _) in inside.items():
        if space is not None and axis in model.axes:
            space = space.without(axis, start) if axis in call.each else space.taken(axis, start, 1)
    return {**inside, "shape": model.shape, "space": space}


# --- Results ----------------------------------------------------------------------------------------------


def checked_results(
    call: Call, result: Any, bounds: Mapping[str, tuple[int, int]], lengths: Mapping[str, int]
) -> list[np.ndarray]:
    """Return the blocks that a function returned, once they are what it may return, without their halo.

    Parameters
    ----------
    call : Call
    result : object
        What the function returned.
    bounds : mapping
        Of the chunk, by axis.
    lengths : mapping of str to int
        Of the axes of blocks that are not cut.
    """
    if len(call.outputs) > 1 or (call.outputs and isinstance(result, tuple) and len(result) == 1):
        if not isinstance(result, tuple | list) or len(result) != len(call.outputs):
            has = f"{len(result)} blocks" if isinstance(result, tuple | list) else type(result).__name__
            raise WrongResult(f"returns {has}, and out names {len(call.outputs)}: return a tuple of as many")
        results = list(result)
    else:
        results = [result]
    return [
        _checked(call, of, block, bounds, lengths) for of, block in zip(call.outputs, results, strict=True)
    ]


def _checked(call: Call, of: OutputOf, result: Any, bounds, lengths) -> np.ndarray:
    if result is None:
        raise WrongResult("returns nothing; return an array")
    try:
        block = np.asarray(result)
    except ValueError as error:
        raise WrongResult(f"returns {type(result).__name__}: {error}") from None
    if block.dtype.kind not in "biufc":
        raise WrongResult(f"returns {block.dtype.name}, and no numbers")
    due, trimmed = [], []
    for axis in of.block_axes:
        start, stop = bounds[axis] if axis in bounds else (0, lengths[axis])
        before, after = margins(call, axis, start, stop)
        due.append(stop - start + before + after)
        trimmed.append(slice(before, before + stop - start))
    if block.shape != tuple(due):
        raise WrongResult(
            f"returns a block of shape {_shape(block.shape)}; for out = {' '.join(of.block_axes)!r} "
            f"it must be {_shape(due)}"
        )
    if of.dtype is not None and not np.can_cast(block.dtype, of.dtype, "same_kind"):
        raise WrongResult(
            f"returns {block.dtype.name} where {np.dtype(of.dtype).name} is due; "
            f"cast it, or give dtype={block.dtype.name!r}"
        )
    block = block[tuple(trimmed)] if trimmed else block
    for place, axis in enumerate(of.axes):
        if axis in call.each:
            block = np.expand_dims(block, place)
    return block


def margins(call: Call, axis: str, start: int, stop: int) -> tuple[int, int]:
    """Return the items that a block has more on both sides of a chunk along an axis."""
    halo = call.depth.get(axis, 0)
    if not halo or not any(has_depth(call, node, axis) for node in call.inputs):
        return 0, 0
    if call.boundary != "none":
        return halo, halo
    if axis in call.whole:
        return 0, 0
    return min(halo, start), min(halo, call.sizes[axis] - stop)


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


# --- Stages -----------------------------------------------------------------------------------------------


class OnChunks:
    """A user's function on the chunks of a grid.

    Parameters
    ----------
    lowering : Lowering
    call : Call
    grid : ChunkGrid

    Attributes
    ----------
    needs : tuple of View
        What it reads.
    """

    def __init__(self, lowering: Lowering, call: Call, grid: ChunkGrid):
        self._reads, self._count = Reads(lowering, grid), len(call.inputs)
        self._call, self._calls = call, Calls(call)
        for node in call.inputs:
            self._reads.add(*input_cuts(call, node, grid))
        for node in call.given.values():
            self._reads.add(node, {axis: Cut.whole(length) for axis, length in node.sizes.items()})
        self.needs = self._reads.needs()

    def __call__(self, chunk: Chunk, *blocks: Any) -> Any:
        """Return what the function returns for a chunk."""
        values = self._reads.values(chunk.number, blocks)
        given = dict(zip(self._call.given, values[self._count :], strict=True))
        return self._calls(bounds_of(chunk), values[: self._count], given)


def bounds_of(chunk: Chunk) -> dict[str, tuple[int, int]]:
    """Return the bounds of a chunk along axes of the user."""
    return {axis: box for axis, box in chunk.bounds.items() if axis != ONE}


def stage_of(
    lowering: Lowering, call: Call, grid: ChunkGrid, weights: tuple[int, ...] | None = None
) -> Compute:
    """Declare the stage of a call on the chunks of a grid."""
    on_chunks = OnChunks(lowering, call, grid)
    outputs = [_output(lowering, call, number) for number in range(len(call.outputs))]
    lengths = {axis: n for of in call.outputs for axis, n in zip(of.axes, of.shape, strict=True)}

    def work(chunk: Chunk, *blocks):
        results = checked_results(call, on_chunks(chunk, *blocks), bounds_of(chunk), lengths)
        return tuple(
            to_storage(block, of.axes, array.axes, _cast(block, array, call))
            for block, of, array in zip(results, call.outputs, outputs, strict=True)
        )

    return Compute(
        lowering.name_of(call),
        grid,
        reads=on_chunks.needs,
        writes=tuple(outputs),
        work=work,
        weights=weights,
        **about(lowering, call),
    )


def about(lowering: Lowering, call: Call) -> dict[str, Any]:
    """Return what stages say of a call: its provenance, its cost, and what it takes at once."""
    costs = lowering.costs.get(call.key)
    items = sum(int(np.prod(node.shape, dtype=np.int64)) for node in call.inputs)
    return {
        "parameters": lowering.parameters(call),
        "cost": None if costs is None else ("second", costs.seconds * items),
        "scratch": _scratch(lowering, call, costs),
    }


def _scratch(lowering: Lowering, call: Call, costs: Costs | None) -> int | None:
    """Return the bytes that the work on a chunk takes at once, as far as the rehearsal tells."""
    if costs is None or costs.scratch is None:
        return None
    block = blocks_of(call, lowering.types)
    largest = sum(array.nbytes(block, call.depth) for array in sized(call, lowering.types))
    # The function has blocks of its own beside those that were read; libraries take more than Python sees.
    return int((2 + 1.25 * costs.scratch) * largest)


def _cast(block: np.ndarray, array: Array, call: Call) -> str:
    if not np.can_cast(block.dtype, array.dtype, "same_kind"):
        raise WrongResult(
            f"returns {block.dtype.name} for this block, and returned {array.dtype} in the rehearsal; "
            "cast it, or give dtype="
        )
    return array.dtype


def _output(lowering: Lowering, call: Call, number: int) -> Array:
    of, key = call.outputs[number], output_key(call, number)
    dtype = of.dtype or lowering.types.known(key) or UNKNOWN
    suffix = f"-{number}" if len(call.outputs) > 1 else ""
    array = stored_array(lowering.name_of(call, suffix), of.axes, of.shape, dtype, call.order)
    lowering.made[key] = array
    return array


def _weighed(lowering: Lowering, call: Call, grid: ChunkGrid) -> Reduce:
    """Declare how much work is in each chunk: the sum of an array over it."""
    reads = Reads(lowering, grid)
    reads.add(call.weight, plain_cuts(call.weight, grid))
    needs = reads.needs()

    def work(chunk: Chunk, *blocks):
        (block,) = reads.values(chunk.number, blocks)
        total = float(np.nansum(np.abs(block.astype(np.float64))))
        return np.array([min(total, float(1 << 53))])

    return Reduce(
        f"weights-{call.key[:12]}",
        grid,
        reads=needs,
        row=((1,), "float64"),
        work=work,
        finish=_scaled_weights,
        parameters=lowering.parameters(call),
    )


def _scaled_weights(rows: np.ndarray):
    most = rows.max(initial=0)
    scaled = rows[:, 0] * (1_000_000 / most) if most > 0 else rows[:, 0]
    return Found(tuple(int(one) for one in scaled))
