"""What a stage is: arrays read and written, the chunks it works on, and the work on one of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from mpiimg.engine.array import AnyArray, Array
from mpiimg.engine.boxes import Box, ChunkGrid, intersections, runs

V = TypeVar("V")
S = TypeVar("S")


@dataclass(frozen=True)
class Chunk:
    """The unit of work: its number, its bounds by axis, and the same with names."""

    number: int
    axes: str
    box: Box

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        return dict(zip(self.axes, self.box, strict=True))


# --- What the work on a chunk reads and fills -------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The part of an array that belongs to a chunk, as one block.

    Parameters
    ----------
    array : Array or Ragged
    halo : mapping of str to int
        Items more on both sides by axis, clipped at the array's ends.
    """

    array: AnyArray
    halo: Mapping[str, int] = field(default_factory=dict)

    #: Whether the blocks that are read are joined in a copy.
    copies = False

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes that the work on `chunk` reads, or fills."""
        return (self.array.part(chunk.bounds, self.halo),)

    def join(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Return what the work sees of the blocks at :meth:`boxes`."""
        return blocks[0]


@dataclass(frozen=True)
class Rows:
    """The part of an array that belongs to a chunk, of some indices of the first axis, as one block.

    Parameters
    ----------
    array : Array
    rows : tuple of int
        Ascending indices along the first axis.
    halo : mapping of str to int
        As for :class:`Part`.
    """

    array: Array
    rows: tuple[int, ...]
    halo: Mapping[str, int] = field(default_factory=dict)

    @property
    def copies(self) -> bool:
        """Whether the blocks that are read are joined in a copy."""
        return self.rows[-1] - self.rows[0] >= len(self.rows)

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes that the work on `chunk` reads: one for each run of rows."""
        box = self.array.part(chunk.bounds, self.halo)
        return tuple((run, *box[1:]) for run in runs(self.rows))

    def join(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Return what the work sees of the blocks at :meth:`boxes`."""
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


@dataclass(frozen=True)
class At:
    """One box of an array, wherever it lies, or none.

    Parameters
    ----------
    array : Array or Ragged
    box : callable
        Called as box(chunk); returns a box, or None where the work on a chunk reads nothing.
    """

    array: AnyArray
    box: Callable[[Chunk], Box | None]

    copies = False

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the box, as the only one, or none."""
        box = self.box(chunk)
        return () if box is None else (box,)

    def join(self, blocks: list[np.ndarray]) -> np.ndarray | None:
        """Return what the work sees: a block, or None."""
        return blocks[0] if blocks else None


@dataclass(frozen=True)
class Pieces:
    """Any number of boxes of an array, of any shapes, as a list of blocks.

    Parameters
    ----------
    array : Array or Ragged
    pieces : callable
        Called as pieces(chunk); returns the boxes.
    """

    array: AnyArray
    pieces: Callable[[Chunk], Sequence[Box]]

    copies = False

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes that the work on `chunk` reads, or fills."""
        return tuple(self.pieces(chunk))

    def join(self, blocks: list[np.ndarray]) -> list[np.ndarray]:
        """Return what the work sees: the list."""
        return blocks


Need = Part | Rows | At | Pieces
Output = Part | At | Pieces


# --- Stages ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found(Generic[V]):
    """What the end of a reduction comes to, on the one rank that decides for all.

    Parameters
    ----------
    value : V
        Sent to the generator that declared the stage, on every rank.
    warnings, notes : tuple of str
        To be said.
    left_out : mapping of str to str
        Units (exposures, scans) that cannot be used, and why.
    """

    value: V
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What all kinds of stages have in common.

    Parameters
    ----------
    name : str
        Unique in a run; it names marks and log lines.
    grid : ChunkGrid
        The chunks; their extents follow from the data alone.
    reads : tuple of Need
        What the work on a chunk reads.
    parameters : mapping, optional
        What enters the provenance beside what is read; as JSON knows it. Without it, and without `depends`,
        the composer takes all parameters of the steps so far, and `follows` all reductions so far: that is
        right for every stage, but makes more again than need be after some changes.
    follows : tuple of str
        Arrays of rows of reductions, whose values the work may use.
    weights : tuple of int, optional
        Relative work of each chunk, known from data; None where all weigh the same.
    cost : (str, float), optional
        What all chunks together cost: the rate by which they are timed (engine/rates.py) and how many of its
        units they are; None for a pass over the bytes read and written. A chunk has its weight's share.
    scratch : int, optional
        The most bytes that the work on a chunk takes at once beside what it is given and returns; None where
        nobody knows: then three times that is left for it.
    """

    name: str
    grid: ChunkGrid
    reads: tuple[Need, ...] = field(default=(), kw_only=True)
    parameters: Mapping[str, Any] | None = field(default=None, kw_only=True)
    follows: tuple[str, ...] = field(default=(), kw_only=True)
    weights: tuple[int, ...] | None = field(default=None, kw_only=True)
    cost: tuple[str, float] | None = field(default=None, kw_only=True)
    scratch: int | None = field(default=None, kw_only=True)

    @property
    def kind(self) -> str:
        """The kind of stage, for readers of plans and logs."""
        return type(self).__name__.lower()

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the work on a chunk fills of the arrays written, in the order of the blocks it returns."""
        return ()

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        """The arrays written."""
        return tuple(output.array for output in self.outputs)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the result files written, below the folder of results."""
        return ()

    @property
    def returned_bytes(self) -> int:
        """The most bytes that the work on a chunk returns or writes beside blocks of arrays."""
        return 0

    def chunk(self, number: int) -> Chunk:
        """Return chunk `number`."""
        return Chunk(number, self.grid.axes, self.grid.bounds(number))


@dataclass(frozen=True, kw_only=True)
class Stream(Stage):
    """Read what one rank alone can read, front to back, into an array.

    Parameters
    ----------
    array : Array
        Filled chunk by chunk, in the order of the stream.
    blocks : callable
        Called on the rank that reads; yields the blocks of all chunks in order.
    """

    array: Array
    blocks: Callable[[], Iterator[np.ndarray]]

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Part(self.array),)


@dataclass(frozen=True, kw_only=True)
class Compute(Stage):
    """Make blocks of arrays from blocks of arrays: maps, stencils and whatever regroups.

    Parameters
    ----------
    writes : tuple of Array, Ragged, At or Pieces
        What the work on a chunk fills; of an array as it is, the part that belongs to the chunk.
    work : callable
        Called as work(chunk, *blocks); returns a tuple of blocks, one per array written, and a list of them
        for :class:`Pieces`.
    depends : callable, optional
        Called as depends(number): what a chunk depends on beside `parameters` and the chunks that it reads,
        whatever other chunks there are. Its mark then serves in a run with other chunks too, wherever they
        lie.
    unusable : callable, optional
        Called as unusable(*blocks) with what the work on a chunk returned: whether it stands for something
        that could not be used, so that the next run is to try again.
    """

    writes: tuple[AnyArray | At | Pieces, ...]
    work: Callable[..., tuple]
    depends: Callable[[int], Mapping[str, Any]] | None = None
    unusable: Callable[..., bool] | None = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        return tuple(one if isinstance(one, At | Pieces) else Part(one) for one in self.writes)


@dataclass(frozen=True, kw_only=True)
class Reduce(Stage, Generic[V]):
    """Bring one row per chunk together in chunk order, whatever the ranks, and draw a value from them.

    Parameters
    ----------
    work : callable
        Called as work(chunk, *blocks); returns a row.
    row : (tuple of int, str)
        Shape and dtype of a row.
    finish : callable
        Called on one rank as finish(rows) with the (chunks, *shape) rows; returns a :class:`Found`, by
        default of the rows themselves.
    expected : V, optional
        The value that plans reckon with before it is known; None where nobody can say.
    finish_bytes : int
        The most bytes that `finish` takes beside the rows.
    """

    work: Callable[..., Any]
    row: tuple[tuple[int, ...], str]
    finish: Callable[[np.ndarray], Found[V]] = Found
    expected: V | None = None
    finish_bytes: int = 0

    @property
    def rows(self) -> Array:
        """The array of all rows."""
        shape, dtype = self.row
        return Array(f"{self.name}-rows", "k" + "abcdef"[: len(shape)], (len(self.grid), *shape), dtype)

    @property
    def outputs(self) -> tuple[Output, ...]:
        rows = self.rows
        rest = tuple((0, n) for n in rows.shape[1:])
        return (At(rows, lambda chunk: ((chunk.number, chunk.number + 1), *rest)),)


@dataclass(frozen=True, kw_only=True)
class Sink(Stage):
    """Write one file that all ranks fill, each chunk's bytes behind those of the chunk before.

    Parameters
    ----------
    work : callable
        Called as work(chunk, *blocks); returns bytes.
    file : str
        Name of the file, below the folder of results.
    head : callable
        Returns the bytes that the file begins with; called on one rank.
    chunk_bytes : int
        The most bytes that the work on a chunk returns.
    """

    work: Callable[..., bytes]
    file: str
    head: Callable[[], bytes] = bytes
    chunk_bytes: int = 0

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)

    @property
    def returned_bytes(self) -> int:
        return self.chunk_bytes


@dataclass(frozen=True, kw_only=True)
class Files(Stage):
    """Let the work on each chunk write whole files.

    Parameters
    ----------
    work : callable
        Called as work(chunk, folder, *blocks); writes its files into the folder.
    names : tuple of str
        The names of all files, below the folder of results.
    """

    work: Callable[..., None]
    names: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return self.names


#: A generator of stages: it yields a stage, is sent what a Reduce found (None after any other stage), and
#: returns what it comes to. Whoever drives it may be a run, or a plan that sends `Reduce.expected`.
Stages = Generator[Stage, Any, S]


def expected_stages(stages: Stages[S]) -> tuple[list[Stage], S]:
    """Drive a generator with what plans reckon with; return every stage that may come, and its result."""
    declared: list[Stage] = []
    value = None
    try:
        while True:
            stage = stages.send(value)
            declared.append(stage)
            value = stage.expected if isinstance(stage, Reduce) else None
    except StopIteration as end:
        return declared, end.value


class BlockTable:
    """Where the blocks that a stage writes of one array lie: a block per chunk, or any number of pieces.

    Parameters
    ----------
    boxes : (blocks, axes, 2) int64
        Of all blocks, in the order of chunks.
    starts : (chunks + 1,) int64
        The first block of each chunk; the last number is that of all blocks.
    """

    def __init__(self, output: Output, chunks: Sequence[Chunk]):
        of_chunks = [output.boxes(chunk) for chunk in chunks]
        flat = [box for boxes in of_chunks for box in boxes]
        self.boxes = np.array(flat, dtype=np.int64).reshape(len(flat), len(output.array.axes), 2)
        self.starts = np.cumsum([0, *map(len, of_chunks)])

    @cached_property
    def ordered(self) -> bool:
        """Whether the blocks follow each other along the first axis."""
        return bool((np.diff(self.boxes[:, 0], axis=0) >= 0).all())

    def parts(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the blocks that share items with `box`, and what they share.

        Returns
        -------
        blocks : (n,) int64
        common : (n, axes, 2) int64
        """
        first, stop = 0, len(self.boxes)
        if self.ordered:
            # There may be very many blocks, of which few lie there.
            (start, end), *_ = box
            first = int(np.searchsorted(self.boxes[:, 0, 1], start, side="right"))
            stop = max(first, int(np.searchsorted(self.boxes[:, 0, 0], end, side="left")))
        which, common = intersections(self.boxes[first:stop], box)
        return which + first, common

    def of_chunk(self, chunk: int) -> range:
        """Return the numbers of a chunk's blocks."""
        return range(int(self.starts[chunk]), int(self.starts[chunk + 1]))

    def items(self) -> np.ndarray:
        """Return the items in each block, (blocks,) int64."""
        return np.prod(self.boxes[..., 1] - self.boxes[..., 0], axis=1)

    def chunk_items(self) -> np.ndarray:
        """Return the items that each chunk writes, (chunks,) int64."""
        total = np.concatenate([[0], np.cumsum(self.items())])
        return total[self.starts[1:]] - total[self.starts[:-1]]

    def owners(self, of_chunks: np.ndarray) -> np.ndarray:
        """Return the owner of each block, from the owner of each chunk."""
        return np.repeat(of_chunks, np.diff(self.starts))


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


def trimmed(block: np.ndarray, bounds: tuple[int, int], halo: int) -> np.ndarray:
    """Return a block without its halo along the first axis.

    Parameters
    ----------
    block : ndarray
        Of what was read for `bounds` with `halo`, clipped at the array's ends.
    bounds : (int, int)
        Of the chunk along that axis.
    halo : int
        Items on both sides.
    """
    first = bounds[0] - max(bounds[0] - halo, 0)
    return block[first : first + bounds[1] - bounds[0]]


def extended(block: np.ndarray, bounds: tuple[int, int], halo: int, length: int, edge: bool) -> np.ndarray:
    """Return a block with its whole halo along the first axis, mirrored where the array ends.

    Parameters
    ----------
    block : ndarray
        What was read for `bounds` with `halo`, clipped at the array's ends.
    bounds : (int, int)
        Of the chunk along that axis.
    halo : int
        Items on both sides.
    length : int
        Of the array along that axis.
    edge : bool
        As in :func:`reflect`.
    """
    first = max(bounds[0] - halo, 0)
    return block[reflect(bounds[0] - halo, bounds[1] + halo, length, edge) - first]
