"""The stages of reductions: partial results of chunks, and what comes of them in the order of chunks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpiimg.arrays import reductions
from mpiimg.arrays.chunks import Sized, block_shape
from mpiimg.arrays.lower import (
    ONE,
    Lowering,
    Reads,
    Regular,
    grid_of,
    own_part,
    plain_cuts,
    storage_axes,
    stored_array,
    to_storage,
)
from mpiimg.arrays.stored import Reduced
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Chunk
from mpiimg.engine.stage import Compute, Stages
from mpiimg.engine.view import Cut, View, grid_cut, grid_index


def stages(lowering: Lowering, node: Reduced) -> Stages[None]:
    """Yield the stages of a reduction: one where no axis that goes is cut, else two."""
    if node.functions is not None:
        from mpiimg.arrays import own_reductions

        yield from own_reductions.stages(lowering, node)
        return
    parent, operation = node.parent, node.operation
    dtype = lowering.dtype_of(parent)
    stored = storage_axes(parent.axes, parent.order)
    sizes = {**parent.sizes, **({} if parent.axes else {ONE: 1})}
    block = block_shape(stored, sizes, [Sized(stored, np.dtype(dtype).itemsize, {})])
    grid = grid_of(stored if parent.axes else (), sizes, block)
    over = [axis for axis in grid.axes if axis in node.over]
    counts = {axis: grid.counts[grid.axes.index(axis)] for axis in over}
    rows = int(np.prod(list(counts.values()), dtype=np.int64))
    reads = Reads(lowering, grid)
    reads.add(parent, plain_cuts(parent, grid))
    needs = reads.needs()
    partial = _Partial(node)
    final = stored_array(node.name, node.axes, node.shape, lowering.dtype_of(node), node.order)
    lowering.made[node.key] = final
    if rows == 1 and operation != "histogram":

        def work(chunk: Chunk, *blocks):
            (values,) = reads.values(chunk.number, blocks)
            parts = partial(chunk, values)
            result = reductions.finished(parts, operation, node.options, final.dtype)
            return (to_storage(result, node.axes, final.axes, final.dtype),)

        yield Compute(
            node.name, grid, reads=needs, writes=(own_part(final, grid),), work=work,
            parameters=lowering.parameters(node),
        )  # fmt: skip
        return
    if rows == 0:
        yield _of_nothing(lowering, node, final)
        return
    arrays = _partial_arrays(node, dtype, rows)

    def work_partial(chunk: Chunk, *blocks):
        (values,) = reads.values(chunk.number, blocks)
        parts = partial(chunk, values)
        kept = [axis for axis in parent.axes if axis not in node.over]
        return tuple(_as_row(parts[name], kept, array) for name, array in arrays.items())

    yield Compute(
        f"partial-{node.name}", grid, reads=needs,
        writes=tuple(_row(array, counts, grid) for array in arrays.values()), work=work_partial,
        parameters=lowering.parameters(node),
    )  # fmt: skip
    yield _combined(lowering, node, arrays, final)


class _Partial:
    """The partial result of a chunk."""

    def __init__(self, node: Reduced):
        self._node = node
        parent = node.parent
        self._axes = tuple(parent.axes.index(axis) for axis in node.over)
        lengths = [parent.sizes[axis] for axis in node.over]
        self._steps = [int(np.prod(lengths[n + 1 :], dtype=np.int64)) for n in range(len(lengths))]

    def __call__(self, chunk: Chunk, values: np.ndarray) -> dict[str, np.ndarray]:
        node = self._node
        if node.operation not in ("argmax", "argmin"):
            return reductions.partial(values, self._axes, node.operation, node.options)
        bounds = chunk.bounds
        positions = np.zeros((), np.int64)
        for n, (axis, step) in enumerate(zip(node.over, self._steps, strict=True)):
            start, stop = bounds.get(axis, (0, node.parent.sizes[axis]))
            shape = (-1, *(1,) * (len(self._steps) - n - 1))
            positions = positions + (np.arange(start, stop) * step).reshape(shape)
        return reductions.partial_position(values, self._axes, node.operation, node.options, positions)


def _partial_arrays(node: Reduced, dtype: str, rows: int) -> dict[str, Array]:
    """Return the arrays of partial results by name: a row per chunk along the axes that go."""
    parent = node.parent
    sample = np.ones((1,) * len(parent.axes), dtype)
    axes = tuple(parent.axes.index(axis) for axis in node.over)
    if node.operation in ("argmax", "argmin"):
        positions = np.zeros((1,) * len(axes), np.int64)
        parts = reductions.partial_position(sample, axes, node.operation, node.options, positions)
    else:
        parts = reductions.partial(sample, axes, node.operation, node.options)
    stored = storage_axes(node.axes, node.order) if node.axes else ()
    shape = (rows, *(node.sizes[axis] for axis in stored))
    return {
        name: Array(f"{name}-{node.name}", (ONE, *stored), shape, part.dtype.name)
        for name, part in parts.items()
    }


def _as_row(part: np.ndarray, kept: list[str], array: Array) -> np.ndarray:
    stored = array.axes[1:]
    if not kept:
        return np.asarray(part, dtype=array.dtype).reshape(1, *part.shape)
    moved = part.transpose([kept.index(axis) for axis in stored])
    return np.ascontiguousarray(moved, dtype=array.dtype)[None]


def _row(array: Array, counts: Mapping[str, int], grid: ChunkGrid) -> Regular:
    """Return where a chunk's partial result lies: its row, and its own part of the axes that stay."""
    numbers = tuple(counts)
    cuts: list[Cut] = []
    if len(numbers) == 1:
        first = Cut(numbers[0], tuple(range(n, n + 1) for n in range(counts[numbers[0]])))
        cuts = [
            first,
            *(grid_cut(grid, axis) if axis in grid.axes else Cut.whole(n) for axis, n in _rest(array)),
        ]
        return Regular(array, cuts=tuple(cuts), grid=grid)
    return _Row(array, counts=dict(counts), grid=grid)


def _rest(array: Array):
    return zip(array.axes[1:], array.shape[1:], strict=True)


class _Row(Regular):
    """Where a chunk's partial result lies, if several axes that go are cut."""

    def __init__(self, array: Array, counts: Mapping[str, int], grid: ChunkGrid):
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "_counts", dict(counts))
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "cuts", ())
        object.__setattr__(self, "box", self._box)
        object.__setattr__(self, "table", self._table)

    def _box(self, chunk: Chunk):
        index = grid_index(self.grid, chunk.number)
        row = 0
        for axis, count in self._counts.items():
            row = row * count + index[axis]
        bounds = chunk.bounds
        return ((row, row + 1), *(bounds.get(axis, (0, n)) for axis, n in _rest(self.array)))

    def _table(self, grid: ChunkGrid) -> np.ndarray:
        places = dict(zip(grid.axes, np.unravel_index(np.arange(len(grid)), grid.counts), strict=True))
        table = np.empty((len(grid), len(self.array.axes), 2), np.int64)
        row = np.zeros(len(grid), np.int64)
        for axis, count in self._counts.items():
            row = row * count + places[axis]
        table[:, 0] = np.stack([row, row + 1], axis=1)
        for n, (axis, length) in enumerate(_rest(self.array), 1):
            if axis in grid.axes:
                block = grid.block[grid.axes.index(axis)]
                table[:, n, 0] = places[axis] * block
                table[:, n, 1] = np.minimum(places[axis] * block + block, length)
            else:
                table[:, n] = 0, length
        return table


def _combined(lowering: Lowering, node: Reduced, arrays: Mapping[str, Array], final: Array) -> Compute:
    """Declare the end: what comes of all partial results, along the axes that stay."""
    kept = tuple(axis for axis in final.axes if axis != ONE and node.operation != "histogram")
    sizes = dict(zip(final.axes, final.shape, strict=True))
    sized = [
        Sized(array.axes, np.dtype(array.dtype).itemsize, {ONE: array.shape[0]}) for array in arrays.values()
    ]
    block = block_shape(kept, sizes, sized) if kept else {}
    grid = grid_of(kept, sizes, block)
    needs = tuple(
        View(
            array,
            tuple(
                grid_cut(grid, axis) if axis in grid.axes and axis != ONE else Cut.whole(length)
                for axis, length in zip(array.axes, array.shape, strict=True)
            ),
            grid,
        )
        for array in arrays.values()
    )

    def work(chunk: Chunk, *blocks):
        rows = {
            name: view.assemble(chunk.number, list(parts))
            for name, view, parts in zip(arrays, needs, blocks, strict=True)
        }
        parts = reductions.combined(rows, node.operation)
        result = reductions.finished(parts, node.operation, node.options, final.dtype)
        return (
            np.ascontiguousarray(result, dtype=final.dtype).reshape(
                -1 if final.axes == (ONE,) else result.shape
            ),
        )

    return Compute(
        node.name, grid, reads=needs, writes=(own_part(final, grid),), work=work,
        parameters=lowering.parameters(node),
    )  # fmt: skip


def _of_nothing(lowering: Lowering, node: Reduced, final: Array) -> Compute:
    """Declare the result of no items at all: zero, or NaN."""
    grid = grid_of(
        final.axes if node.axes else (),
        dict(zip(final.axes, final.shape, strict=True)),
        dict(zip(final.axes, final.shape, strict=True)),
    )

    def work(chunk: Chunk):
        shape = tuple(0 if axis in node.over else length for axis, length in node.parent.sizes.items())
        axes = tuple(node.parent.axes.index(axis) for axis in node.over)
        empty = np.zeros(shape, lowering.dtype_of(node.parent))
        parts = reductions.partial(empty, axes, node.operation, node.options)
        result = reductions.finished(parts, node.operation, node.options, final.dtype)
        return (to_storage(result, node.axes, final.axes, final.dtype),)

    return Compute(node.name, grid, writes=(final,), work=work, parameters=lowering.parameters(node))
