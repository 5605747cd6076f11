"""From arrays to items and back, and to xarray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays.array import Array
from mpiimg.arrays.axes import AxesLike, axes_tuple
from mpiimg.arrays.graph import Node, digest
from mpiimg.arrays.items import Items, count_of, items_along
from mpiimg.arrays.items_graph import Kept, Slices, Step, kept
from mpiimg.arrays.items_stages import ITEM, ItemCosts, index_of
from mpiimg.arrays.lower import Lowering, stored_array, to_storage
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.codec import decode
from mpiimg.engine.mpi import scripts
from mpiimg.engine.needs import At, Chunk
from mpiimg.engine.record_index import RecordsOf
from mpiimg.engine.stage import Compute, Stages
from mpiimg.errors import BadInput

#: What axes of records are called that nobody has named.
_PLAIN = {0: (), 1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x"), 4: ("t", "z", "y", "x")}


def to_items(array: Any, axes: AxesLike) -> Items:
    """Return the blocks of an array at each index along some axes, which they do not have.

    Their keys are the indices, in tuples where there are several axes.
    """
    return items_along(array, axes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stacked(Node):
    """Records that are arrays of one shape, side by side along the first axis.

    Parameters
    ----------
    parent : Kept
    """

    parent: Kept
    is_stored = True

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return ()

    def stages(self, lowering: Lowering) -> Stages[None]:
        """Yield the stage that puts the records side by side."""
        index = index_of(lowering, self.parent)
        array = stored_array(self.name, self.axes, self.shape, self.dtype, self.order)
        lowering.made[self.key] = array
        count, names = self.shape[0], self.axes
        grid = ChunkGrid((ITEM,), (count,), (1,))

        def box(chunk: Chunk):
            return ((chunk.number, chunk.number + 1), *((0, n) for n in self.shape[1:]))

        def work(chunk: Chunk, blocks):
            value = decode(blocks[0])
            block = _as_array(value, f"record {index.keys[chunk.number]!r}")
            if block.shape != self.shape[1:] or not np.can_cast(block.dtype, self.dtype, "same_kind"):
                raise BadInput(
                    f"stack: record {index.keys[chunk.number]!r} has shape {block.shape} and type "
                    f"{block.dtype.name}, and the first one {self.shape[1:]} and "
                    f"{np.dtype(self.dtype).name}: all must be alike"
                )
            return (to_storage(block[None], names, array.axes, array.dtype),)

        # A plan may know of fewer records than there will be.
        reads = RecordsOf(index.array, lambda chunk: range(len(index))[chunk.number : chunk.number + 1])
        yield Compute(
            self.name,
            grid,
            reads=(reads,),
            writes=(At(array, box),),
            work=work,
            parameters=lowering.parameters(self),
        )

    def rehearse(self, rehearsal: Any) -> None:
        """Take the first record for a sample."""
        tried = rehearsal.__dict__.get("tried_items", {}).get(self.parent.key)
        shape = (1, *self.shape[1:])
        if tried is None or not tried.records:
            rehearsal.samples[self.key] = np.zeros(shape, self.dtype)
        else:
            value = np.asarray(decode(tried.records[0][1]), self.dtype)
            rehearsal.samples[self.key] = value.reshape(shape)


def stack_items(
    items: Items, axis: str, axes: AxesLike | None = None, *, shape: Any = None, dtype: Any = None
) -> Array:
    """Return records that are arrays of one shape side by side, along a new first axis.

    Parameters
    ----------
    items : Items
    axis : str
        Name of the new axis.
    axes : str or tuple of str, optional
        Names of the axes of a record; by default those of the array that the items are of, or y x, z y x.
    shape : tuple of int, optional
        Of a record; by default that of the first one, which is made to find out. Collective then.
    dtype : dtype, optional
        Likewise.

    Raises
    ------
    BadInput
        Nobody can say how many records there will be, or the first is no array.
    """
    (new,) = axes_tuple(axis, "stack: axis") or ("",)
    if not new:
        raise BadInput("stack: name the new axis: x.stack('n')")
    node = items._items
    count = count_of(node)
    if count is None:
        raise BadInput(
            "stack: how many records there are is known when they are made, since a filter, a flat_map or "
            "on_error='leave out' decides; use .compute() and mi.from_array, or .table(...)"
        )
    parent = kept(node)
    if shape is None or dtype is None:
        shape, dtype = _first_shape(parent)
    else:
        shape, dtype = tuple(int(n) for n in shape), np.dtype(dtype).str
    names = axes_tuple(axes, "stack: axes") if axes is not None else _names(node, len(shape))
    if len(names) != len(shape):
        raise BadInput(
            f"stack: axes = {' '.join(names)!r} names {len(names)} axes, and a record has {len(shape)}"
        )
    if new in names:
        raise BadInput(f"stack: axis {new} is one of the records already; give another name")
    made = Stacked(
        axes=(new, *names), shape=(count, *shape), dtype=dtype, label=f"stack-{parent.label}", parent=parent
    )
    return Array(made)


def _first_shape(parent: Kept) -> tuple[tuple[int, ...], str]:
    """Return shape and type of the first record. Collective."""
    from mpiimg.arrays import rehearsing
    from mpiimg.arrays.session import current

    with scripts.collective("stack", digest(parent.key)) as comm:
        session = current()
        if not isinstance(session.costs.get(parent.key), ItemCosts):
            rehearsing.rehearsed(session, [parent], comm)
        costs = session.costs.get(parent.key)
    if not isinstance(costs, ItemCosts) or costs.shape is None:
        raise BadInput("stack: the first record is no array, or there is none; give shape= and dtype=")
    return costs.shape, costs.dtype


def _names(node: Any, count: int) -> tuple[str, ...]:
    start = node
    while isinstance(start, Step | Kept):
        start = start.parent
    if isinstance(start, Slices):
        left = tuple(axis for axis in start.array.axes if axis not in start.along)
        if len(left) == count:
            return left
    if count not in _PLAIN:
        raise BadInput(f"stack: a record has {count} axes; name them: x.stack('n', axes='...')")
    return _PLAIN[count]


def _as_array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic | int | float | complex | bool):
        return np.asarray(value)
    raise BadInput(
        f"stack: {name} is of type {type(value).__name__}, and no array; map the records to arrays first"
    )


def to_xarray(array: Array) -> Any:
    """Compute an array, and return it as an xarray.DataArray. Collective."""
    try:
        import xarray
    except ImportError:
        raise BadInput("to_xarray: needs the package xarray: pip install 'mpiimg[xarray]'") from None
    return xarray.DataArray(array.compute(), dims=array.axes, attrs=dict(array.attrs))
