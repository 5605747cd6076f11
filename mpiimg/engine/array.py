"""Arrays of a run: what is read and written, in one dense piece or item after item."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpiimg.engine.axes import axes_text, named_axes
from mpiimg.engine.boxes import Box, ChunkGrid, box_in_array


@dataclass(frozen=True)
class Packing:
    """How one axis of an array follows another that the array does not have.

    The voxels inside a mask are numbered slice by slice: those of slices z0 to z1 are a run of axis n.

    Parameters
    ----------
    axis : str
        The axis that holds the runs, e.g. "n".
    along : str
        The axis that they follow, e.g. "z".
    offsets : tuple of int
        Where the run of each index of `along` begins; one more number than indices, the last is the length.
    """

    axis: str
    along: str
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Array:
    """What a stage reads or writes: a dense array with named axes.

    Parameters
    ----------
    name : str
        Unique in a run.
    axes : tuple of str
        A name per axis, the partitioned one first; or one text, as :func:`~mpiimg.engine.axes.named_axes`
        takes it. Of our own: v volume, z, y, x, n voxel in the mask, c component.
    shape : tuple of int
        Items along each axis.
    dtype : str
        NumPy's name, e.g. "float32".
    packing : Packing, optional
        For an array of masked voxels: how its axis of voxels follows the slices.

    Raises
    ------
    ValueError
        Axes and shape are not of one length, or a name comes twice.
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    packing: Packing | None = None

    def __post_init__(self):
        object.__setattr__(self, "axes", _named(self.name, self.axes))
        if len(self.axes) != len(self.shape):
            said = axes_text(self.axes)
            raise ValueError(f"array {self.name}: axes {said!r} and shape {self.shape} do not fit")

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return math.prod(self.stored_shape) * np.dtype(self.dtype).itemsize

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the dataset that holds the array in a file; of a single value without axes (1,)."""
        return self.shape or (1,)

    def part(self, bounds: Mapping[str, tuple[int, int]], halo: Mapping[str, int] | None = None) -> Box:
        """Return the part that belongs to a chunk.

        Axes that array and chunk share are bounded by the chunk, others are whole.

        Parameters
        ----------
        bounds : mapping of str to (int, int)
            Of the chunk, by axis.
        halo : mapping of str to int, optional
            Items more on both sides, by axis; clipped at the array's ends.
        """
        packing = self.packing
        if packing is not None and packing.along in bounds:
            start, stop = bounds[packing.along]
            margin = (halo or {}).get(packing.along, 0)
            last = len(packing.offsets) - 1
            ends = packing.offsets[max(start - margin, 0)], packing.offsets[min(stop + margin, last)]
            bounds = {**bounds, packing.axis: ends}
        return box_in_array(self.axes, self.shape, bounds, halo)

    def table(self, grid: ChunkGrid, halo: Mapping[str, int] | None = None) -> np.ndarray:
        """Return the parts that belong to all chunks, (chunks, axes, 2) int64: :meth:`part` of each."""
        bounds, halo, packing = _bounds_by_axis(grid), halo or {}, self.packing
        if packing is not None and packing.along in bounds:
            start, stop = bounds[packing.along].T
            margin, offsets = halo.get(packing.along, 0), np.array(packing.offsets, np.int64)
            first, last = np.maximum(start - margin, 0), np.minimum(stop + margin, len(offsets) - 1)
            bounds[packing.axis] = np.stack([offsets[first], offsets[last]], axis=1)
        boxes = np.empty((len(grid), len(self.axes), 2), np.int64)
        for place, (axis, length) in enumerate(zip(self.axes, self.shape, strict=True)):
            boxes[:, place] = bounds.get(axis, (0, length))
            boxes[:, place] += np.array((-1, 1)) * halo.get(axis, 0)
            np.maximum(boxes[:, place, 0], 0, out=boxes[:, place, 0])
            np.minimum(boxes[:, place, 1], length, out=boxes[:, place, 1])
        return boxes

    def runs(self, box: Box) -> Iterator[tuple[int, int, int]]:
        """Yield (first item in storage, first item in the block, items) for each run of consecutive items."""
        return dense_runs(self.shape, box)

    def like(self, name: str, axes: str | Iterable[str] = "", dtype: str = "") -> Array:
        """Return another array as long along the same axes.

        Parameters
        ----------
        name : str
        axes : str or iterable of str
            Those of its axes that the other one has; by default all.
        dtype : str
            By default the same.
        """
        axes = named_axes(axes) or self.axes
        return Array(name, axes, tuple(map(self._length, axes)), dtype or self.dtype)

    def cut(self, block: Mapping[str, int] | None = None, /, **more: int) -> ChunkGrid:
        """Return chunks of it, with so many items along each axis that is cut: cut(t=1, y=64).

        Parameters
        ----------
        block : mapping of str to int, optional
            The same for axes whose names are no identifiers: cut({"z-step": 1}).

        Raises
        ------
        ValueError
            It has no such axis.
        """
        block = {**(block or {}), **more}
        shape = {axis: self._length(axis) for axis in block}
        axes = tuple(axis for axis in self.axes if axis in block)
        return ChunkGrid(axes, tuple(shape[axis] for axis in axes), tuple(block[axis] for axis in axes))

    def _length(self, axis: str) -> int:
        if axis not in self.axes:
            raise ValueError(f"array {self.name}: has axes {axes_text(self.axes)!r}, and not {axis!r}")
        return self.shape[self.axes.index(axis)]


@dataclass(frozen=True)
class Ragged:
    """Items of different shapes, one after the other: exposures, patches, pieces of them.

    A box is (item, rows, columns, ...) with one item, and bounds within that item; so whole items, and runs
    of their rows, lie in one piece in a file.

    Parameters
    ----------
    name : str
        Unique in a run.
    axes : tuple of str
        A name per axis, that of the items first, e.g. "eyx"; as an :class:`Array` has them.
    shapes : tuple of tuple of int
        The shape of each item, without the axis of the items.
    dtype : str
        NumPy's name.

    Raises
    ------
    ValueError
        An item has another number of axes, or a name comes twice.
    """

    name: str
    axes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str

    def __post_init__(self):
        object.__setattr__(self, "axes", _named(self.name, self.axes))
        if not self.axes or any(len(shape) != len(self.axes) - 1 for shape in self.shapes):
            raise ValueError(f"array {self.name}: the items do not have axes {axes_text(self.axes[1:])!r}")

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each item begins in storage; one more number than items, the last is the length."""
        return tuple(itertools.accumulate(map(math.prod, self.shapes), initial=0))

    @cached_property
    def _lengths(self) -> np.ndarray:
        """The shapes of all items, (items, axes - 1) int64."""
        return np.array(self.shapes, np.int64).reshape(len(self.shapes), len(self.axes) - 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return self.starts[-1] * np.dtype(self.dtype).itemsize

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the dataset that holds the array in a file: one axis, item after item."""
        return (self.starts[-1],)

    def item(self, number: int) -> Box:
        """Return the box of a whole item."""
        return ((number, number + 1), *((0, n) for n in self.shapes[number]))

    def part(self, bounds: Mapping[str, tuple[int, int]], halo: Mapping[str, int] | None = None) -> Box:
        """Return the part that belongs to a chunk of one item; a halo is clipped at the item's edges.

        Items are of different lengths, and the grid of chunks is that of the longest: of a chunk that lies
        behind the end of its item the part is empty.

        Parameters
        ----------
        bounds : mapping of str to (int, int)
            Of the chunk, by axis: one item, and whatever part of it.
        halo : mapping of str to int, optional
            Items more on both sides, by axis.

        Raises
        ------
        ValueError
            The chunk is not of one item.
        """
        number, after = bounds.get(self.axes[0], (0, len(self.shapes)))
        if after != number + 1:
            raise ValueError(f"array {self.name}: a chunk has one item along {self.axes[0]!r}")
        shape = dict(zip(self.axes[1:], self.shapes[number], strict=True))
        behind = {axis for axis, n in shape.items() if axis in bounds and bounds[axis][0] >= n}
        within = {axis: (min(a, shape[axis]), b) for axis, (a, b) in bounds.items() if axis in shape}
        near = {axis: margin for axis, margin in (halo or {}).items() if axis not in behind}
        return ((number, after), *box_in_array(self.axes[1:], self.shapes[number], within, near))

    def table(self, grid: ChunkGrid, halo: Mapping[str, int] | None = None) -> np.ndarray:
        """Return the parts that belong to all chunks, (chunks, axes, 2) int64: :meth:`part` of each.

        Raises
        ------
        ValueError
            A chunk is not of one item.
        """
        bounds, halo = _bounds_by_axis(grid), halo or {}
        boxes = np.empty((len(grid), len(self.axes), 2), np.int64)
        boxes[:, 0] = bounds.get(self.axes[0], (0, len(self.shapes)))
        if (boxes[:, 0, 1] != boxes[:, 0, 0] + 1).any():
            raise ValueError(f"array {self.name}: a chunk has one item along {self.axes[0]!r}")
        lengths = self._lengths[boxes[:, 0, 0]]
        for place, axis in enumerate(self.axes[1:], start=1):
            length, margin = lengths[:, place - 1], halo.get(axis, 0)
            start, stop = bounds[axis].T if axis in bounds else (np.zeros_like(length), length)
            margin = np.where(start < length, margin, 0) if axis in bounds else margin
            np.maximum(np.minimum(start, length) - margin, 0, out=boxes[:, place, 0])
            np.minimum(stop + margin, length, out=boxes[:, place, 1])
        return boxes

    def runs(self, box: Box) -> Iterator[tuple[int, int, int]]:
        """Yield (first item in storage, first item in the block, items) for each run of consecutive items."""
        ((number, _), *rest) = box
        for first, place, count in dense_runs(self.shapes[number], tuple(rest)):
            yield self.starts[number] + first, place, count


AnyArray = Array | Ragged


def _bounds_by_axis(grid: ChunkGrid) -> dict[str, np.ndarray]:
    """Return the bounds of all chunks along each axis that is cut, (chunks, 2) int64."""
    return dict(zip(grid.axes, grid.table().transpose(1, 0, 2), strict=True))


def _named(array: str, axes: str | Iterable[str]) -> tuple[str, ...]:
    try:
        return named_axes(axes)
    except ValueError as error:
        raise ValueError(f"array {array}: {error}") from None


def dense_runs(shape: tuple[int, ...], box: Box) -> Iterator[tuple[int, int, int]]:
    """Yield the runs of consecutive items that a box of a dense array in C order is made of.

    Yields
    ------
    first : int
        Number of the run's first item in the array.
    place : int
        Number of the same item in the box.
    count : int
        Items in the run.
    """
    whole = len(shape)
    while whole and box[whole - 1] == (0, shape[whole - 1]):
        whole -= 1
    cut = max(whole - 1, 0)
    strides = list(itertools.accumulate(shape[:0:-1], operator.mul, initial=1))[::-1]
    count = math.prod(stop - start for start, stop in box[cut:])
    firsts: Iterable[int] = (box[cut][0] * strides[cut] if shape else 0,)
    for (start, stop), stride in zip(box[:cut], strides[:cut], strict=True):
        firsts = _spread(firsts, range(start, stop), stride)
    for place, first in enumerate(firsts):
        yield first, place * count, count


def _spread(firsts: Iterable[int], indices: range, stride: int) -> Iterator[int]:
    for first in firsts:
        yield from [first + index * stride for index in indices]
