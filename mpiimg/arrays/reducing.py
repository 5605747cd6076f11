"""A reduction by functions of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpiimg.arrays.array import Array
from mpiimg.arrays.axes import AxesLike, axes_tuple, checked_axes
from mpiimg.arrays.calls import _called, _checked_dtype, _checked_sizes, check_used, made_call
from mpiimg.arrays.expressions import node_of
from mpiimg.arrays.graph import digest
from mpiimg.arrays.identity import Identity, identity
from mpiimg.arrays.stored import Call, Reduced
from mpiimg.errors import BadInput


@dataclass(frozen=True)
class ReductionFunctions:
    """The functions of a user's reduction.

    Parameters
    ----------
    call : Call
        Of `chunk` on blocks.
    combine, aggregate : callable
    identity : Identity
        Of all three.
    """

    call: Call
    combine: Callable
    aggregate: Callable
    identity: Identity

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.call.name

    @property
    def digest(self) -> str:
        """Of all that it is."""
        return digest(self.identity.digest, self.call.content)


def reduction(
    array: Array,
    chunk: Callable,
    combine: Callable,
    aggregate: Callable | None = None,
    *,
    axes: AxesLike | None = None,
    whole: AxesLike = (),
    chunks: Mapping[str, int] | None = None,
    out: AxesLike = (),
    output_sizes: Mapping[str, int] | None = None,
    dtype: Any = None,
    **keywords: Any,
) -> Array:
    """Reduce an array by functions of your own.

    Parameters
    ----------
    array : Array
    chunk : callable
        Called as chunk(block, **keywords); returns a partial result: numbers, arrays, and dicts, lists and
        tuples of them.
    combine : callable
        Called as combine(partials) with a list of partial results, in the order of chunks, at most 32 at a
        time; returns another partial result.
    aggregate : callable, optional
        Called as aggregate(partial); returns the result. By default the last partial result is the result.
    axes : str or tuple of str, optional
        That go; by default all. Along others one result is made for each block.
    whole : str or tuple of str
        Axes that are not cut: every block has all of them, e.g. the time series of its voxels.
    chunks : mapping of str to int, optional
        Items of a block along some axes, where the choice that follows from the data will not do.
    out : str or tuple of str
        New axes that the result has behind those that are kept.
    output_sizes : mapping of str to int, optional
        Their lengths.
    dtype : dtype, optional
        Of the result; by default found out in the rehearsal.
    **keywords
        Of `chunk`. An Array arrives whole, as for :func:`mpiimg.map_blocks`.

    Raises
    ------
    mpiimg.errors.BadInput
        An argument makes no sense.
    """
    node = node_of(array, f"reduction({_called(chunk)})")
    call, _ = made_call("reduction", chunk, [array], whole=whole, chunks=chunks, keywords=keywords)
    new = axes_tuple(out, f"{call.name}: out")
    over = node.axes if axes is None else checked_axes(axes, node.axes, f"{call.name}: axes")
    sizes = _checked_sizes(output_sizes, {}, (), call.name)
    check_used(sizes, new, call.name)
    return reduced_by(call, combine, aggregate, over, new, sizes, dtype)


def reduced_by(
    call: Call,
    combine: Callable,
    aggregate: Callable | None,
    over: Sequence[str],
    new: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
    dtype: Any = None,
) -> Array:
    """Return the reduction of what a call makes of blocks.

    Parameters
    ----------
    call : Call
        Without outputs; what its function returns is a partial result.
    combine, aggregate : callable
        As for :func:`reduction`.
    over : sequence of str
        The axes that go.
    new : sequence of str
        Axes that the result has behind those that are kept.
    sizes : mapping of str to int, optional
        Their lengths.
    dtype : dtype, optional
    """
    node = call.inputs[0]
    for function, what in ((combine, "combine"), (aggregate, "aggregate")):
        if function is not None and not callable(function):
            raise BadInput(f"{call.name}: {what} = {function!r} cannot be called")
    over = tuple(axis for axis in call.axes if axis in over)
    kept = tuple(axis for axis in call.axes if axis not in over)
    new = tuple(axis for axis in new if axis not in kept)
    missing = [axis for axis in new if axis not in (sizes or {})]
    if missing:
        raise BadInput(
            f"{call.name}: give the length of the axis {missing[0]}: output_sizes={{{missing[0]!r}: ...}}"
        )
    end = aggregate if aggregate is not None else as_it_is
    parts = [call.identity, identity(combine), identity(end)]
    known = Identity(
        digest([one.digest for one in parts]),
        all(one.known for one in parts),
        next((one.why for one in parts if not one.known), ""),
    )
    shape = (*(call.sizes[axis] for axis in kept), *((sizes or {})[axis] for axis in new))
    return Array(
        Reduced(
            axes=(*kept, *new), shape=shape, dtype=_checked_dtype(dtype, call.name), order=node.order,
            label=call.label, parent=node, over=over, operation="own", options={},
            functions=ReductionFunctions(call, combine, end, known),
        )
    )  # fmt: skip


def as_it_is(partial: Any) -> Any:
    """Return what it is given."""
    return partial
