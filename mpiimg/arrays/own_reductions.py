"""The stages of a user's own reduction: partial results of any size, combined by a fixed tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.arrays import call_stages
from mpiimg.arrays.call_stages import WrongResult
from mpiimg.arrays.lower import ONE, Lowering, grid_of, own_part, stored_array, to_storage
from mpiimg.arrays.process import put_back
from mpiimg.arrays.stored import Reduced
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.codec import decode, encode
from mpiimg.engine.needs import Chunk
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.stage import Compute, Records, Stages
from mpiimg.engine.view import grid_index

#: Partial results that are combined at a time: so many, or as many as have so many bytes, but at least two.
AT_A_TIME, BYTES_AT_A_TIME = 32, 256 << 20

#: Bytes of a partial result that plans reckon with where there was no rehearsal.
UNKNOWN_BYTES = 4096


def stages(lowering: Lowering, node: Reduced) -> Stages[None]:
    """Yield the stages of a user's reduction."""
    index, grid = yield from partials(lowering, node)
    yield _aggregated(lowering, node, index, grid)


def partials(lowering: Lowering, node: Reduced) -> Stages[tuple[Index, ChunkGrid]]:
    """Yield the stages up to one partial result per block that stays; return these, and the blocks."""
    call = node.functions.call
    grid = call_stages.call_grid(call, lowering.types)
    kept = [axis for axis in grid.axes if axis in node.axes]
    block = dict(zip(grid.axes, grid.block, strict=True))
    kept_grid = grid_of(kept, call.sizes, block)
    on_chunks = call_stages.OnChunks(lowering, call, grid)

    def partial(chunk: Chunk, *blocks) -> Iterator[tuple]:
        yield _place(grid, kept_grid, chunk.number), [encode(on_chunks(chunk, *blocks))]

    size = getattr(lowering.costs.get(node.key), "returned", UNKNOWN_BYTES)
    expected = Index.of("", [(n, _place(grid, kept_grid, n), size, None) for n in range(len(grid))], {})
    name = lowering.names.get(call.key) or f"partial-{node.name}"
    index = yield Records(
        name,
        grid,
        reads=on_chunks.needs,
        work=partial,
        expected=expected,
        **call_stages.about(lowering, call),
    )
    level = 0
    while groups := _groups(index):
        level += 1
        index = yield _combined(lowering, node, index, groups, level, size)
    return index, kept_grid


def _place(grid: ChunkGrid, kept: ChunkGrid, number: int) -> int:
    """Return the block of the axes that stay that a chunk belongs to."""
    index, place = grid_index(grid, number), 0
    for axis, count in zip(kept.axes, kept.counts, strict=True):
        place = place * count + index.get(axis, 0)
    return place


def _groups(index: Index) -> list[tuple[int, list[int]]]:
    """Return which records are combined next, in the order of chunks; none where each place has one."""
    by_place: dict[int, list[int]] = {}
    for number, key in enumerate(index.keys):
        by_place.setdefault(key, []).append(number)
    if all(len(numbers) == 1 for numbers in by_place.values()):
        return []
    largest = max(int(index.sizes.max(initial=1)), 1)
    count = max(2, min(AT_A_TIME, BYTES_AT_A_TIME // largest))
    return [
        (place, numbers[first : first + count])
        for place, numbers in sorted(by_place.items())
        for first in range(0, len(numbers), count)
    ]


def _combined(
    lowering: Lowering,
    node: Reduced,
    index: Index,
    groups: Sequence[tuple[int, list[int]]],
    level: int,
    size: int,
) -> Records:
    def work(chunk: Chunk, records: Sequence[np.ndarray]) -> Iterator[tuple]:
        place, numbers = groups[chunk.number]
        partials = [decode(record) for record in records]
        with put_back():
            yield place, [encode(node.functions.combine(partials) if len(numbers) > 1 else partials[0])]

    grid = ChunkGrid((ONE,), (len(groups),), (1,))
    return Records(
        f"combine-{level}-{node.name}", grid,
        reads=(RecordsOf(index.array, lambda chunk: groups[chunk.number][1]),),
        work=work, parameters=lowering.parameters(node),
        expected=Index.of("", [(n, place, size, None) for n, (place, _) in enumerate(groups)], {}),
    )  # fmt: skip


def _aggregated(lowering: Lowering, node: Reduced, index: Index, grid: ChunkGrid) -> Compute:
    final = stored_array(node.name, node.axes, node.shape, lowering.dtype_of(node), node.order)
    lowering.made[node.key] = final
    numbers = {key: number for number, key in enumerate(index.keys)}

    def work(chunk: Chunk, records: Sequence[np.ndarray]):
        (record,) = records
        with put_back():
            result = node.functions.aggregate(decode(record))
        due = tuple(
            chunk.bounds[axis][1] - chunk.bounds[axis][0] if axis in chunk.bounds else length
            for axis, length in node.sizes.items()
        )
        return (to_storage(checked(node, result, due, final), node.axes, final.axes, final.dtype),)

    reads = (RecordsOf(index.array, lambda chunk: [numbers[chunk.number]]),)
    return Compute(
        node.name, grid, reads=reads, writes=(own_part(final, grid),), work=work,
        parameters=lowering.parameters(node),
    )  # fmt: skip


def checked(node: Reduced, result: Any, due: tuple[int, ...], final: Array | None) -> np.ndarray:
    """Return what aggregate returned as an array, once it may be that.

    Raises
    ------
    WrongResult
        It has another shape or type.
    """
    try:
        block = np.asarray(result)
    except ValueError as error:
        raise WrongResult(f"{node.functions.name}: {error}") from None
    if block.dtype.kind not in "biufc":
        raise WrongResult(f"{node.functions.name}: the result is {type(result).__name__}, and no numbers")
    if block.shape != due:
        raise WrongResult(f"{node.functions.name}: the result has shape {block.shape}, and must have {due}")
    dtype = node.dtype or (final.dtype if final is not None else block.dtype)
    if not np.can_cast(block.dtype, dtype, "same_kind"):
        raise WrongResult(
            f"{node.functions.name}: the result is {block.dtype.name} where {np.dtype(dtype).name} is due"
        )
    return block.astype(dtype, copy=False)


def rehearsed(node: Reduced, partial: Any, lengths: Mapping[str, int]) -> tuple[np.ndarray, int]:
    """Return the result of a little of the data, to know its type, and the bytes of a partial result."""
    packed = encode(partial)
    with put_back():
        result = node.functions.aggregate(
            decode(encode(node.functions.combine([decode(packed), decode(packed)])))
        )
    due = tuple(lengths.get(axis, length) for axis, length in node.sizes.items())
    return checked(node, result, due, None), len(packed)
