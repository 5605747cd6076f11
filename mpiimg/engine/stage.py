"""What a stage is: arrays read and written, the chunks it works on, and the work on one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpiimg.engine.boxes import Box, ChunkGrid, box_in_array, runs
from mpiimg.engine.stores import Array

#: Limits of a parameter that must be above 0 and finite.
POSITIVE = (sys.float_info.min, sys.float_info.max)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a stage; it makes an option of the command line.

    Parameters
    ----------
    name : as in Python; the option is --name with dashes
    default : its value, or None
    help : one line; unit is appended
    type : of the value; bool makes a switch
    unit : as a reader writes it, e.g. "s/mm^2"
    choices : allowed values
    limits : smallest and largest allowed value
    metavar : placeholder in the help
    repeated : the option may be given more than once; the value is a list
    bare : the value that the option alone stands for; another one is given as --name=value
    """

    name: str
    default: Any
    help: str
    type: Callable = str
    unit: str = ""
    choices: tuple | None = None
    limits: tuple[float, float] | None = None
    metavar: str | None = None
    repeated: bool = False
    bare: Any = None


@dataclass(frozen=True)
class Chunk:
    """The unit of work: its number, its bounds by axis, and the same with names."""

    number: int
    axes: str
    box: Box

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        return dict(zip(self.axes, self.box, strict=True))


@dataclass(frozen=True)
class Need:
    """What the work on a chunk reads of one array.

    Parameters
    ----------
    array : that is read
    halo : items more on both sides by axis, clipped at the array's ends
    rows : only these indices of the first axis, ascending; joined in the block that the work sees
    place : the boxes of a chunk, for arrays that share no axis with the grid; the work sees a list of blocks
    offsets : for an axis of voxels inside a mask: item z is where slice z begins, (nz + 1,)
    """

    array: Array
    halo: Mapping[str, int] = field(default_factory=dict)
    rows: tuple[int, ...] | None = None
    place: Callable[[Chunk], tuple[Box, ...]] | None = None
    offsets: tuple[int, ...] | None = None

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes that the work on `chunk` reads."""
        if self.place is not None:
            return self.place(chunk)
        box = array_box(self.array, chunk, self.halo, self.offsets)
        if self.rows is None:
            return (box,)
        return tuple((run, *box[1:]) for run in runs(self.rows))

    def join(self, blocks: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """Return what the work sees of the blocks at :meth:`boxes`."""
        if self.place is not None:
            return blocks
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def array_box(
    array: Array,
    chunk: Chunk,
    halo: Mapping[str, int] | None = None,
    offsets: tuple[int, ...] | None = None,
) -> Box:
    """Return the part of `array` that belongs to `chunk`.

    Axes that they share are bounded by the chunk, others are whole; an axis n
    of masked voxels follows the chunk's z through `offsets`.
    """
    bounds = chunk.bounds
    if offsets is not None and "z" in bounds:
        bounds["n"] = tuple(offsets[z] for z in bounds["z"])
    return box_in_array(array.axes, array.shape, bounds, halo)


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline, as declared; the executor in pipeline/ runs it.

    Parameters
    ----------
    name : unique in a run; it names marks and log lines
    kind : "source", "map", "stencil", "reduce", "regroup", "sink" or "files". Map, stencil, reduce and
        regroup run alike: the needs say what is exchanged. The kind says what a reader should expect.
    grid : the chunks; their extents follow from the data alone
    reads : what the work on a chunk needs
    writes : the arrays that it returns blocks of, in this order
    work : called as work(chunk, *blocks), returns a tuple of blocks, one an array written;
        for a sink, bytes that follow those of the chunk before;
        for files, work(chunk, folder, *blocks) writes its files into a folder
    parameters : what enters the provenance beside the inputs
    chunk_parameters : for a stage that reads no array: called as chunk_parameters(number), returns what a
        chunk depends on beside `parameters`, whatever other chunks there are. Its mark then serves in a run
        with other chunks too, wherever they lie
    left_out : called as left_out(*blocks) with what the work on a chunk returned: whether it stands for
        something that could not be used, so that the next run is to try again
    weights : (chunks,) integers: relative work, known from data; None where all weigh the same
    offsets : as in Need, for the arrays written
    place : by name of an array written: the box that a chunk fills in it, where axes do not tell
    finish : for a reduce: called on one rank as finish(rows) with the (chunks, ...) rows of the array
        written, in chunk order; what it returns goes to all, for the stages after it
    blocks : for a source: yields the blocks of all chunks in order, on the rank that reads
    output, head : for a sink: name of the file, and what returns the bytes it begins with, on one rank
    outputs : for files: the names of all, below the folder
    output_bytes : for a sink or files: the most bytes that the work on a chunk returns
    cost : what all chunks together cost: the rate by which they are timed (pipeline/rates.py) and how many of
        its units they are; None for a pass over the bytes read and written. A chunk has its weight's share
    scratch : the most bytes that the work on a chunk takes at once beside what it is given and returns; None
        where nobody knows: then three times that is left for it
    """

    name: str
    kind: str
    grid: ChunkGrid
    reads: tuple[Need, ...] = ()
    writes: tuple[Array, ...] = ()
    work: Callable | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    chunk_parameters: Callable[[int], Mapping[str, Any]] | None = None
    left_out: Callable[..., bool] | None = None
    weights: tuple[int, ...] | None = None
    offsets: tuple[int, ...] | None = None
    place: Mapping[str, Callable[[Chunk], Box]] = field(default_factory=dict)
    finish: Callable[[np.ndarray], dict[str, Any]] | None = None
    blocks: Callable[[], Iterator[np.ndarray]] | None = None
    output: str = ""
    head: Callable[[], bytes] = bytes
    outputs: tuple[str, ...] = ()
    output_bytes: int = 0
    cost: tuple[str, float] | None = None
    scratch: int | None = None

    def chunk(self, number: int) -> Chunk:
        return Chunk(number, self.grid.axes, self.grid.bounds(number))

    def output_box(self, array: Array, chunk: Chunk) -> Box:
        """Return the box of `array` that the work on `chunk` fills."""
        if array.name in self.place:
            return self.place[array.name](chunk)
        if self.kind == "reduce":
            return ((chunk.number, chunk.number + 1), *((0, n) for n in array.shape[1:]))
        return array_box(array, chunk, offsets=self.offsets)

    def output_boxes(self, array: Array) -> np.ndarray:
        """Return the boxes of all chunks in `array`, (chunks, axes, 2) int64."""
        boxes = [self.output_box(array, self.chunk(number)) for number in range(len(self.grid))]
        return np.array(boxes, dtype=np.int64).reshape(len(self.grid), len(array.shape), 2)


def reduction(
    name: str,
    grid: ChunkGrid,
    reads: tuple[Need, ...],
    partial: Callable,
    row: tuple[tuple[int, ...], str],
    finish: Callable[[np.ndarray], dict[str, Any]],
    parameters: Mapping[str, Any] | None = None,
    **known,
) -> Stage:
    """Declare a reduce: one row a chunk, brought together in chunk order on every rank.

    Parameters
    ----------
    partial : called as partial(chunk, *blocks), returns a row
    row : shape and dtype of a row
    finish : called with the (chunks, *shape) rows, in chunk order whatever the ranks
    known : cost, scratch or weights, as a :class:`Stage` has them
    """
    shape, dtype = row
    array = Array(f"{name}-rows", "k" + "abcdef"[: len(shape)], (len(grid), *shape), dtype)

    def work(chunk, *blocks):
        return (np.asarray(partial(chunk, *blocks), dtype=dtype).reshape(1, *shape),)

    return Stage(name, "reduce", grid, reads, (array,), work, parameters or {}, finish=finish, **known)


def reflect(start: int, stop: int, length: int, edge: bool) -> np.ndarray:
    """Return indices in [0, length) for positions start to stop, mirrored at the ends as often as needed.

    `edge` repeats the first and last item (numpy's "symmetric", scipy's
    "reflect"); without it they are not repeated (numpy's "reflect").
    """
    positions = np.arange(start, stop)
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * length if edge else 2 * (length - 1)
    positions = positions % period
    mirrored = period - positions - (1 if edge else 0)
    return np.where(positions < length, positions, mirrored)


def extended(block: np.ndarray, bounds: tuple[int, int], halo: int, length: int, edge: bool) -> np.ndarray:
    """Return a block with its whole halo along the first axis, mirrored where the array ends.

    Parameters
    ----------
    block : what was read for `bounds` with `halo`, clipped at the array's ends
    bounds : of the chunk along that axis
    halo : items on both sides
    length : of the array along that axis
    edge : as in :func:`reflect`
    """
    first = max(bounds[0] - halo, 0)
    return block[reflect(bounds[0] - halo, bounds[1] + halo, length, edge) - first]
