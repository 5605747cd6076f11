"""Expressions compiled for the chunks of a stage: what each reads, and the straight line of work on it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays.graph import (
    Coarsen,
    Elementwise,
    Join,
    Node,
    Pad,
    Reorder,
    Scalar,
    Take,
)
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.halo import reflect
from mpiimg.engine.view import Cut, Pick, as_pick, compose, grid_index

#: Boundaries of scipy.ndimage; "none" clips.
MODES = ("reflect", "mirror", "nearest", "wrap", "constant")


@dataclass(frozen=True)
class Leaf:
    """A stored array as an expression reads it.

    Parameters
    ----------
    node : Node
    cuts : mapping of str to Cut
        By axis of the node.
    """

    node: Node
    cuts: Mapping[str, Cut]


#: A step of the work: called with all values so far, and the place in the grid; returns the next value.
_Step = Callable[[list, Mapping[str, int]], np.ndarray]


class Program:
    """Expressions over the chunks of a grid.

    Parameters
    ----------
    grid : ChunkGrid
    dtype_of : callable
        Returns the type of a node.
    """

    def __init__(self, grid: ChunkGrid, dtype_of: Callable[[Node], str]):
        self.grid, self._dtype_of = grid, dtype_of
        self.leaves: list[Leaf] = []
        self._steps: list[_Step] = []
        self._places: dict[Any, int] = {}
        self._of_leaf: dict[int, int] = {}

    def add(self, node: Node, cuts: Mapping[str, Cut]) -> int:
        """Compile what a chunk takes of a node; return which value of :meth:`run` it is.

        Parameters
        ----------
        node : Node
        cuts : mapping of str to Cut
            By axis of the node.
        """
        key = (id(node), tuple(cuts[axis] for axis in node.axes))
        if key not in self._places:
            step = self._compile(node, dict(cuts))
            self._steps.append(step)
            self._places[key] = len(self._steps) - 1
        return self._places[key]

    def run(self, number: int, blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return all values for a chunk.

        Parameters
        ----------
        number : int
            Of the chunk.
        blocks : sequence of ndarray
            Of the leaves, in the axes of their nodes.
        """
        index = grid_index(self.grid, number)
        values: list[Any] = []
        last_use = self._last_uses
        with np.errstate(all="ignore"):
            for place, step in enumerate(self._steps):
                values.append(step((values, blocks), index))
                for spent in last_use.get(place, ()):
                    values[spent] = None
        return values

    def keep(self, places: Sequence[int]) -> None:
        """Say which values are asked for; others are let go as soon as nothing needs them."""
        last: dict[int, int] = {}
        for place, step in enumerate(self._steps):
            for used in getattr(step, "uses", ()):
                last[used] = place
        by_place: dict[int, list[int]] = {}
        for used, place in last.items():
            if used not in places:
                by_place.setdefault(place, []).append(used)
        self._last_uses = by_place

    _last_uses: Mapping[int, Sequence[int]] = {}

    # --- Kinds of nodes -----------------------------------------------------------------------------------

    def _compile(self, node: Node, cuts: dict[str, Cut]) -> _Step:
        if node.is_stored:
            return self._leaf(node, cuts)
        compile_kind = {
            Take: self._take,
            Reorder: self._reorder,
            Pad: self._pad,
            Join: self._join,
            Coarsen: self._coarsen,
            Elementwise: self._elementwise,
        }[type(node)]
        return compile_kind(node, cuts)

    def _leaf(self, node: Node, cuts: dict[str, Cut]) -> _Step:
        number = len(self.leaves)
        self.leaves.append(Leaf(node, cuts))
        return _step((), lambda state, index: state[1][number])

    def _take(self, node: Take, cuts: dict[str, Cut]) -> _Step:
        below = {}
        for axis, length in node.parent.sizes.items():
            if axis in node.at:
                below[axis] = Cut(None, (range(node.at[axis], node.at[axis] + 1),))
            elif axis in node.picks:
                below[axis] = cuts[axis].map(functools.partial(compose, node.picks[axis]))
            else:
                below[axis] = cuts[axis]
            _ = length
        parent = self.add(node.parent, below)
        index_of = tuple(0 if axis in node.at else slice(None) for axis in node.parent.axes)
        return _step((parent,), lambda state, index: state[0][parent][index_of])

    def _reorder(self, node: Reorder, cuts: dict[str, Cut]) -> _Step:
        below = {old: cuts[new] for new, old in node.came_from.items()}
        # An axis of one item that went is read whole.
        below |= {axis: Cut.whole(length) for axis, length in node.parent.sizes.items() if axis not in below}
        parent = self.add(node.parent, below)
        gone = tuple(n for n, axis in enumerate(node.parent.axes) if axis not in node.came_from.values())
        left = [axis for axis in node.parent.axes if axis in node.came_from.values()]
        order = [left.index(node.came_from[axis]) for axis in node.axes if axis in node.came_from]
        new = [(n, axis) for n, axis in enumerate(node.axes) if axis not in node.came_from]

        def work(state, index):
            block = state[0][parent]
            block = np.squeeze(block, gone) if gone else block
            block = block.transpose(order)
            for place, axis in new:
                block = np.expand_dims(block, place)
                count = len(cuts[axis].picks[cuts[axis].place(index)])
                block = block if count == 1 else np.repeat(block, count, axis=place)
            return block

        return _step((parent,), work)

    def _pad(self, node: Pad, cuts: dict[str, Cut]) -> _Step:
        below, filled = dict(cuts), {}
        for axis, (before, _) in node.widths.items():
            length = node.parent.sizes[axis]
            inside = [_mapped(pick, before, length, node.mode) for pick in cuts[axis].picks]
            below[axis] = Cut(cuts[axis].along, tuple(items for items, _ in inside))
            if any(places is not None for _, places in inside):
                filled[axis] = [
                    (len(pick), places) for pick, (_, places) in zip(cuts[axis].picks, inside, strict=True)
                ]
        parent = self.add(node.parent, below)
        if not filled:
            return _step((parent,), lambda state, index: state[0][parent])

        def work(state, index):
            block = state[0][parent]
            for axis, by_pick in filled.items():
                length, places = by_pick[cuts[axis].place(index)]
                if places is not None:
                    where = node.axes.index(axis)
                    shape = (*block.shape[:where], length, *block.shape[where + 1 :])
                    wider = np.full(shape, node.cval, block.dtype, order=node.order)
                    wider[(slice(None),) * where + (places,)] = block
                    block = wider
            return block

        return _step((parent,), work)

    def _join(self, node: Join, cuts: dict[str, Cut]) -> _Step:
        cut, where = cuts[node.axis], node.axes.index(node.axis)
        dtype = np.dtype(self._dtype_of(node))
        members, offset = [], 0
        for member in node.members:
            length = member.sizes[node.axis]
            split = [_within(pick, offset, length) for pick in cut.picks]
            if any(len(items) for items, _ in split):
                below = {**cuts, node.axis: Cut(cut.along, tuple(items for items, _ in split))}
                members.append((self.add(member, below), [places for _, places in split]))
            offset += length

        def work(state, index):
            pick = cut.place(index)
            parts = [(state[0][place], places[pick]) for place, places in members if places[pick] is not None]
            count = len(cut.picks[pick])
            if len(parts) == 1 and parts[0][0].shape[where] == count:
                ((block, places),) = parts
                if isinstance(places, slice) and places.start == 0:
                    return block.astype(dtype, copy=False)
            shape = [
                0 if axis == node.axis else len(cuts[axis].picks[cuts[axis].place(index)])
                for axis in node.axes
            ]
            shape[where] = count
            joined = np.empty(shape, dtype, order=node.order)
            for block, places in parts:
                joined[(slice(None),) * where + (places,)] = block
            return joined

        return _step(tuple(place for place, _ in members), work)

    def _coarsen(self, node: Coarsen, cuts: dict[str, Cut]) -> _Step:
        from mpiimg.arrays.reductions import reduce_block

        below = dict(cuts)
        for axis, factor in node.factors.items():
            below[axis] = cuts[axis].map(functools.partial(_widened, factor=factor))
        parent = self.add(node.parent, below)
        over, place = [], 0
        for axis in node.axes:
            place += 1
            if axis in node.factors:
                over.append(place)
                place += 1

        def work(state, index):
            block = state[0][parent]
            shape: list[int] = []
            for axis, length in zip(node.axes, block.shape, strict=True):
                factor = node.factors.get(axis)
                shape += [length] if factor is None else [length // factor, factor]
            return reduce_block(block.reshape(shape), tuple(over), node.operation, node.options)

        return _step((parent,), work)

    def _elementwise(self, node: Elementwise, cuts: dict[str, Cut]) -> _Step:
        operands: list[tuple[int | None, Any]] = []
        for operand in node.operands:
            if isinstance(operand, Scalar):
                operands.append((None, operand.value))
                continue
            below = {
                axis: Cut.whole(1) if length == 1 and node.sizes[axis] != 1 else cuts[axis]
                for axis, length in operand.sizes.items()
            }
            operands.append((self.add(operand, below), _alignment(operand.axes, node.axes)))

        def work(state, index):
            values = [value if place is None else value(state[0][place]) for place, value in operands]
            return np.asarray(node.function(*values, **node.options))

        return _step(tuple(place for place, _ in operands if place is not None), work)


def _step(uses: tuple[int, ...], work: _Step) -> _Step:
    work.uses = uses
    return work


def _alignment(axes: Sequence[str], onto: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives a block of some axes those of another one, of one item where it has none."""
    common = [axis for axis in onto if axis in axes]
    order = [axes.index(axis) for axis in common]
    # Axes in front are added by broadcasting.
    first = onto.index(common[0]) if common else len(onto)
    index = tuple(slice(None) if axis in axes else None for axis in onto[first:])
    if order == list(range(len(order))) and all(part is not None for part in index):
        return lambda block: block
    return lambda block: block.transpose(order)[index]


def _widened(pick: Pick, factor: int) -> Pick:
    if isinstance(pick, range) and pick.step == 1:
        return range(pick.start * factor, pick.stop * factor)
    return as_pick([item * factor + within for item in pick for within in range(factor)])


def _within(pick: Pick, offset: int, length: int) -> tuple[Pick, Any]:
    """Return which items of a part of an axis a pick takes, and where among the pick they stand."""
    if isinstance(pick, range) and pick.step == 1:
        start, stop = max(pick.start, offset), min(pick.stop, offset + length)
        if stop <= start:
            return range(0), None
        return range(start - offset, stop - offset), slice(start - pick.start, stop - pick.start)
    items = np.asarray(pick, dtype=np.int64)
    places = np.flatnonzero((items >= offset) & (items < offset + length))
    return as_pick(items[places] - offset), places if len(places) else None


def _mapped(pick: Pick, before: int, length: int, mode: str) -> tuple[Pick, Any]:
    """Return which items of an axis a pick of the padded axis takes, and where; None for everywhere."""
    if mode != "constant":
        if (
            isinstance(pick, range)
            and pick.step == 1
            and pick.start >= before
            and pick.stop <= before + length
        ):
            return range(pick.start - before, pick.stop - before), None
        return as_pick(boundary_items(np.asarray(pick, dtype=np.int64) - before, length, mode)), None
    inside, places = _within(pick, before, length)
    if len(inside) == len(pick):
        return inside, None
    return inside, places if places is not None else slice(0, 0)


def boundary_items(positions: np.ndarray, length: int, mode: str) -> np.ndarray:
    """Return which items of an axis stand at positions that may lie beyond its ends.

    Parameters
    ----------
    positions : (n,) int64
        0 is the first item.
    length : int
        Of the axis.
    mode : {"reflect", "mirror", "nearest", "wrap"}
        As scipy.ndimage has them: reflect repeats the edge, mirror does not.
    """
    if mode == "nearest":
        return np.clip(positions, 0, length - 1)
    if mode == "wrap":
        return positions % length
    low = int(positions.min(initial=0))
    high = int(positions.max(initial=0)) + 1
    return reflect(low, high, length, mode == "reflect")[positions - low]


def chained(*parts: Sequence) -> list:
    """Return sequences end to end."""
    return list(itertools.chain(*parts))
