"""From nodes of the graph to stages of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.chunks import Sized, block_shape
from mpiimg.arrays.graph import F, FromInput, Node, OfRun
from mpiimg.arrays.program import Program
from mpiimg.arrays.stored import Output, Reduced, StoredParent
from mpiimg.arrays.types_of import Types
from mpiimg.engine.array import AnyArray, Array
from mpiimg.engine.boxes import Box, ChunkGrid
from mpiimg.engine.inputs import Input, Reader, stream_input
from mpiimg.engine.needs import At, Chunk
from mpiimg.engine.stage import Compute, Stages
from mpiimg.engine.view import Cut, View, grid_cut
from mpiimg.errors import BadInput

#: The axis of arrays that have none, and that of partial results.
ONE = "#"

#: The type that plans count with where only a rehearsal would tell; no run does.
UNKNOWN = "<f4"


@dataclass(frozen=True)
class StoredInput:
    """An input under the names that its array has in the graph; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    source : Input
    array : Array
    """

    source: Input
    array: AnyArray

    @property
    def identity(self):
        return self.source.identity

    @property
    def sample(self):
        return self.source.sample

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(getattr(self.source, "files", ()))

    @property
    def parallel(self) -> bool:
        return getattr(self.source, "parallel", True)

    def open(self) -> Reader:
        return self.source.open()

    def blocks(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        return self.source.blocks(boxes)


@dataclass(frozen=True)
class Costs:
    """What the rehearsal tells of a user's function.

    Parameters
    ----------
    seconds : float
        CPU time of an item of what it is given.
    scratch : float
        Bytes that it takes at once for each byte that it is given and returns; None where nobody knows.
    returned : int
        Bytes of a partial result, or of a record.
    """

    seconds: float = 0.0
    scratch: float | None = None
    returned: int = 0


@dataclass
class Lowering:
    """Makes the stages of a run; one for each time that a generator is driven.

    Parameters
    ----------
    types : Types
    costs : mapping of str to Costs
        Of calls, by key.
    ready : mapping of str to Array
        Stored nodes that are there already, by key.
    nonce : str
        Stands for what cannot be known of functions, different in every run.
    names : mapping of str to str
        What stages of calls are named, by their keys, and arrays, by the same and "-0" and so on where there
        are several; without it a name follows from what is made.
    """

    types: Types
    costs: Mapping[str, Costs] = field(default_factory=dict)
    ready: Mapping[str, Array] = field(default_factory=dict)
    nonce: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def stored(self, targets: Sequence[Node]) -> Stages[None]:
        """Yield the stages that make all stored nodes below `targets`, and these where they are stored."""
        for node in needed([*targets], {**self.ready, **self.made}):
            yield from self.make(node)

    def make(self, node: Node) -> Stages[None]:
        """Yield the stages that make a stored node, whose parents are made."""
        from mpiimg.arrays import call_stages, reduction_stages

        if node.key in self.made or node.key in self.ready:
            return
        if isinstance(node, FromInput):
            yield from self._read(node)
        elif isinstance(node, Output):
            yield from call_stages.stages(self, node.call)
        elif isinstance(node, Reduced):
            yield from reduction_stages.stages(self, node)
        elif isinstance(node, OfRun):
            self.made[node.key] = node.array
        elif isinstance(node, StoredParent):
            yield copied(self, node)
        else:
            yield from node.stages(self)

    def _read(self, node: FromInput) -> Stages[None]:
        source = stored_input(node)
        self.made[node.key] = source.array
        if not source.parallel:
            yield stream_input(source, stream_grid(source))

    def array_of(self, node: Node) -> Array:
        """Return the array of a stored node that is made."""
        return self.made[node.key] if node.key in self.made else self.ready[node.key]

    def dtype_of(self, node: Node) -> str:
        """Return the type of a node; for plans alone a guess, where that is not known yet."""
        return self.types.of(node) or UNKNOWN

    def name_of(self, call: Any, suffix: str = "") -> str:
        """Return what the stage or an array of a call is named."""
        return self.names.get(f"{call.key}{suffix}") or f"{call.label}{suffix}-{call.key[:12]}"

    def parameters(self, node: Any) -> dict[str, Any]:
        """Return what enters the provenance of the stages of a node."""
        known = node.identity.known if hasattr(node, "identity") else node.known
        return {"key": node.key, **({} if known else {"run": self.nonce})}


def needed(targets: Sequence[Node], there: Mapping[str, Any]) -> Iterator[Node]:
    """Yield the stored nodes that targets are made of, those first that others are made of."""
    seen: set[int] = set()
    pending = [(node, False) for node in reversed(targets)]
    while pending:
        node, complete = pending.pop()
        if complete:
            if node.is_stored:
                yield node
        elif id(node) not in seen and not (node.is_stored and node.key in there):
            seen.add(id(node))
            pending.append((node, True))
            pending += [(parent, False) for parent in reversed(node.parents)]


# --- Arrays -----------------------------------------------------------------------------------------------


def storage_axes(axes: Sequence[str], order: str) -> tuple[str, ...]:
    """Return axes in the order of storage, the slowest first; one of one item where there are none."""
    return tuple(reversed(axes) if order == F else axes) or (ONE,)


def stored_array(name: str, axes: Sequence[str], shape: Sequence[int], dtype: str, order: str) -> Array:
    """Return the array of a run that holds an array of the graph."""
    sizes = {**dict(zip(axes, shape, strict=True)), ONE: 1}
    stored = storage_axes(axes, order)
    return Array(name, stored, tuple(sizes[axis] for axis in stored), np.dtype(dtype).name)


def stored_input(node: FromInput) -> StoredInput:
    """Return an input with the name and the axes that it has in the graph."""
    source = node.input
    own = source.array
    if not node.axes:
        return StoredInput(source, Array(node.name, (ONE,), (1,), own.dtype))
    names = dict(zip(tuple(getattr(source, "axes", None) or own.axes), node.axes, strict=True))
    array = Array(node.name, tuple(names[axis] for axis in own.axes), own.shape, own.dtype)
    return StoredInput(source, array)


def stream_grid(source: StoredInput) -> ChunkGrid:
    """Return the chunks that an input is read in, front to back."""
    own = getattr(source.source, "grid", None)
    if own is not None:
        names = dict(zip(source.source.array.axes, source.array.axes, strict=True))
        return ChunkGrid(tuple(names[axis] for axis in own.axes), own.shape, own.block)
    array = source.array
    sizes = dict(zip(array.axes, array.shape, strict=True))
    block = block_shape(array.axes, sizes, [Sized(array.axes, np.dtype(array.dtype).itemsize, {})])
    # A stream is cut along leading axes only, so that chunks follow each other in the file.
    cut = {}
    for axis in array.axes:
        cut[axis] = max(block[axis], 1)
        if cut[axis] > 1:
            break
    return array.cut(cut)


def grid_of(axes: Sequence[str], sizes: Mapping[str, int], block: Mapping[str, int]) -> ChunkGrid:
    """Return the grid of chunks along those axes that are cut."""
    if not axes:
        return ChunkGrid((ONE,), (1,), (1,))
    return ChunkGrid(
        tuple(axes), tuple(sizes[axis] for axis in axes), tuple(max(1, block[axis]) for axis in axes)
    )


# --- What the work on a chunk reads -----------------------------------------------------------------------


@dataclass
class Reads:
    """What the stages of a node read, as expressions over stored arrays.

    Parameters
    ----------
    lowering : Lowering
    grid : ChunkGrid
    """

    lowering: Lowering
    grid: ChunkGrid

    def __post_init__(self):
        self.program = Program(self.grid, self.lowering.dtype_of)
        self.places: list[int] = []

    def add(self, node: Node, cuts: Mapping[str, Cut]) -> int:
        """Read what `cuts` say of a node; return its number among the values of :meth:`values`."""
        self.places.append(self.program.add(node, cuts))
        return len(self.places) - 1

    def needs(self) -> tuple[View, ...]:
        """Return what the stage reads, once all is added."""
        self.program.keep(self.places)
        self._views = tuple(self._view(leaf.node, leaf.cuts) for leaf in self.program.leaves)
        self._orders = [
            _onto(leaf.node.axes, view.array.axes)
            for leaf, view in zip(self.program.leaves, self._views, strict=True)
        ]
        return self._views

    def _view(self, node: Node, cuts: Mapping[str, Cut]) -> View:
        array = self.lowering.array_of(node)
        by_axis = tuple(Cut.whole(1) if axis == ONE and not node.axes else cuts[axis] for axis in array.axes)
        return View(array, by_axis, self.grid)

    def values(self, number: int, blocks: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Return what was added, for a chunk, from what its needs brought."""
        leaves = [
            order(view.assemble(number, list(parts)))
            for view, order, parts in zip(self._views, self._orders, blocks, strict=True)
        ]
        values = self.program.run(number, leaves)
        return [values[place] for place in self.places]


def _onto(axes: Sequence[str], stored: Sequence[str]):
    """Return what gives a block in the order of storage the axes of its node."""
    if not axes:
        return lambda block: block.reshape(())
    order = [stored.index(axis) for axis in axes]
    return lambda block: block.transpose(order)


def plain_cuts(node: Node, grid: ChunkGrid) -> dict[str, Cut]:
    """Return that each chunk takes its own part of a node."""
    return {
        axis: grid_cut(grid, axis) if axis in grid.axes else Cut.whole(length)
        for axis, length in node.sizes.items()
    }


def to_storage(block: np.ndarray, axes: Sequence[str], stored: Sequence[str], dtype: str) -> np.ndarray:
    """Return a block in the order of storage."""
    if not axes:
        return np.asarray(block, dtype=dtype).reshape(1)
    return np.ascontiguousarray(block.transpose([axes.index(axis) for axis in stored]), dtype=dtype)


@dataclass(frozen=True)
class Regular(At):
    """The one box of an array that each chunk fills, told by the chunk's place in the grid.

    Parameters
    ----------
    cuts : tuple of Cut
        One per axis of the array, each one range.
    grid : ChunkGrid
    """

    array: Array
    box: Any = None
    cuts: tuple[Cut, ...] = ()
    grid: ChunkGrid | None = None

    def __post_init__(self):
        view = View(self.array, self.cuts, self.grid)
        object.__setattr__(self, "box", lambda chunk: view.boxes(chunk)[0])
        object.__setattr__(self, "table", view.table)


def own_part(array: Array, grid: ChunkGrid) -> Regular:
    """Return that each chunk fills its own part of an array, and all along axes that are not cut."""
    cuts = tuple(
        grid_cut(grid, axis) if axis in grid.axes and axis != ONE else Cut.whole(length)
        for axis, length in zip(array.axes, array.shape, strict=True)
    )
    return Regular(array, cuts=cuts, grid=grid)


def copied(lowering: Lowering, node: StoredParent) -> Compute:
    """Declare the stage that makes an array of an expression."""
    (parent,) = node.parents
    array = stored_array(node.name, node.axes, node.shape, lowering.dtype_of(node), node.order)
    stored = storage_axes(node.axes, node.order)
    sizes = {**node.sizes, **({} if node.axes else {ONE: 1})}
    block = block_shape(stored, sizes, [Sized(stored, np.dtype(array.dtype).itemsize, {})])
    grid = grid_of(stored if node.axes else (), sizes, block)
    reads = Reads(lowering, grid)
    reads.add(parent, plain_cuts(parent, grid))
    needs = reads.needs()

    def work(chunk: Chunk, *blocks):
        (block,) = reads.values(chunk.number, blocks)
        return (to_storage(block, node.axes, stored, array.dtype),)

    lowering.made[node.key] = array
    return Compute(
        node.name, grid, reads=needs, writes=(array,), work=work, parameters=lowering.parameters(node)
    )


def chunks_of(node: Node, types: Types) -> tuple[tuple[int, ...], ...]:
    """Return the lengths of the chunks along each axis of a node, where it is stored."""
    from mpiimg.arrays import call_stages

    dtype = types.of(node) or UNKNOWN
    stored = storage_axes(node.axes, node.order)
    if not node.axes:
        return ()
    if isinstance(node, Output):
        block = {**node.sizes, **call_stages.blocks_of(node.call, types)}
    elif isinstance(node, FromInput) and not stored_input(node).parallel:
        grid = stream_grid(stored_input(node))
        block = {**node.sizes, **dict(zip(grid.axes, grid.block, strict=True))}
    else:
        block = block_shape(stored, node.sizes, [Sized(stored, np.dtype(dtype).itemsize, {})])
    return tuple(
        tuple(min(block[axis], length - start) for start in range(0, length, max(1, block[axis]))) or (0,)
        for axis, length in node.sizes.items()
    )


def check_axes(nodes: Iterable[Node]) -> None:
    """Refuse axes that are called as ours within a run."""
    for node in nodes:
        if ONE in node.axes:
            raise BadInput(f"an axis cannot be called {ONE!r}; rename it")
