"""What a stage is: arrays read and written, the chunks it works on, and the work on one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from mpiimg.engine.array import AnyArray, Array, Ragged
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.containment import Units
from mpiimg.engine.needs import Chunk, Need, OwnRow, Part, Target
from mpiimg.engine.record_index import Index, RecordsOf

_V = TypeVar("_V")
_S = TypeVar("_S")


# --- What the work on a chunk reads and fills -------------------------------------------------------------


# --- Stages ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found(Generic[_V]):
    """What the end of a reduction comes to, on the one rank that decides for all.

    Parameters
    ----------
    value : object
        Sent to the generator that declared the stage, on every rank.
    warnings, notes : tuple of str
        To be said, unless a run is quiet, and kept in its record; a note says what a value came to.
    left_out : mapping of str to str
        Units (exposures, scans) that cannot be used, and why.
    """

    value: _V
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
    reads : tuple of Need or RecordsOf
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
    units : Units, optional
        What the chunks are parts of, of which one may fail without the others. An error in the work on a
        chunk then leaves its unit out (engine/containment.py), and the generator of the stages is sent which
        chunks failed, and why: a mapping of numbers to reasons. Without it any error ends the run.
    """

    name: str
    grid: ChunkGrid
    reads: tuple[Need | RecordsOf, ...] = field(default=(), kw_only=True)
    parameters: Mapping[str, Any] | None = field(default=None, kw_only=True)
    follows: tuple[str, ...] = field(default=(), kw_only=True)
    weights: tuple[int, ...] | None = field(default=None, kw_only=True)
    cost: tuple[str, float] | None = field(default=None, kw_only=True)
    scratch: int | None = field(default=None, kw_only=True)
    units: Units | None = field(default=None, kw_only=True)

    @property
    def retried(self) -> bool:
        """Whether some chunks may stand for what could not be used, which the next run tries again."""
        return self.units is not None

    @property
    def kind(self) -> str:
        """The kind of stage, for readers of plans and logs."""
        return type(self).__name__.lower()

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the work on a chunk fills of the arrays written, in the order of the blocks it returns."""
        return ()

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        """The arrays written."""
        return tuple(target.array for target in self.targets)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the result files written, below the folder of results."""
        return ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the folders, below that of results, in which the work decides what files there are."""
        return ()

    @property
    def returned_bytes(self) -> int:
        """The most bytes that the work on a chunk returns or writes beside blocks of arrays."""
        return 0

    @property
    def expected_bytes(self) -> int:
        """Bytes that are staged beside arrays, as far as anybody can say."""
        return 0

    def chunk(self, number: int) -> Chunk:
        """Return chunk `number`."""
        return Chunk.of(self.grid, number)


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
    def targets(self) -> tuple[Target, ...]:
        return (Part(self.array),)


@dataclass(frozen=True, kw_only=True)
class Compute(Stage):
    """Make blocks of arrays from blocks of arrays: maps, stencils and whatever regroups.

    Parameters
    ----------
    writes : tuple of Array, Ragged or Target
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
    without : callable, optional
        Called as without(chunk), where the stage has units; returns blocks that stand for one that failed.
    """

    writes: tuple[AnyArray | Target, ...]
    work: Callable[..., tuple]
    depends: Callable[[int], Mapping[str, Any]] | None = None
    unusable: Callable[..., bool] | None = None
    without: Callable[[Chunk], tuple] | None = None

    @property
    def retried(self) -> bool:
        return self.units is not None or self.unusable is not None

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(Part(one) if isinstance(one, Array | Ragged) else one for one in self.writes)


@dataclass(frozen=True, kw_only=True)
class Reduce(Stage, Generic[_V]):
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
    without : object
        The row that stands for a unit that failed, where the stage has units.
    """

    work: Callable[..., Any]
    row: tuple[tuple[int, ...], str]
    finish: Callable[[np.ndarray], Found[_V]] = Found
    expected: _V | None = None
    finish_bytes: int = 0
    without: Any = None

    @property
    def rows(self) -> Array:
        """The array of all rows."""
        shape, dtype = self.row
        axes = ("k", *(f"k{axis}" for axis in range(len(shape))))
        return Array(f"{self.name}-rows", axes, (len(self.grid), *shape), dtype)

    @property
    def targets(self) -> tuple[Target, ...]:
        return (OwnRow(self.rows),)


@dataclass(frozen=True, kw_only=True)
class Records(Stage):
    """Make records: keyed bytes of which nobody knows beforehand how many there are, nor how large.

    The generator of the stages is sent their :class:`~mpiimg.engine.record_index.Index` when all are there;
    later stages read them by :class:`~mpiimg.engine.record_index.RecordsOf` its array. A rank keeps its
    records in memory while there is room, and in a file of its own in any case, so their sizes never break
    its cap; a run that stages nothing ends where they do not fit.

    Parameters
    ----------
    work : callable
        Called as work(chunk, *blocks); returns an iterable of (key, pieces) or (key, pieces, facts): an
        int, str or tuple of these; the bytes of the record in pieces, each bytes-like; and what the index is
        to say of it, as JSON has it.
    depends : callable, optional
        As a :class:`Compute` has it.
    expected : Index, optional
        What plans reckon with before the index is known; by default that there is none.
    """

    work: Callable[..., Iterable[tuple]]
    depends: Callable[[int], Mapping[str, Any]] | None = None
    expected: Index | None = None

    @property
    def records(self) -> str:
        """The name of the array that the records are."""
        return f"{self.name}-records"

    @property
    def expected_index(self) -> Index:
        """What plans reckon with, under the name that the array will have."""
        if self.expected is None:
            return Index.of(self.records, (), {})
        return dataclasses.replace(self.expected, name=self.records)

    @property
    def expected_bytes(self) -> int:
        return self.expected_index.nbytes


@dataclass(frozen=True)
class Digested:
    """Bytes for a file, and what the end of the file is to know of them.

    Parameters
    ----------
    data : bytes
    digest : object
        Small, such as a checksum: one rank brings those of all chunks together.
    """

    data: bytes
    digest: Any


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
    tail : callable, optional
        Where the end of the file depends on all that is before it: called on one rank as tail(digests), with
        those of the head and of all chunks in their order; returns the bytes that the file ends with. `head`
        and `work` then return :class:`Digested`.
    chunk_bytes : int
        The most bytes that the work on a chunk returns.
    """

    work: Callable[..., bytes | Digested]
    file: str
    head: Callable[[], bytes | Digested] = bytes
    tail: Callable[[Sequence[Any]], bytes] | None = None
    chunk_bytes: int = 0

    def digested(self, made: bytes | Digested) -> Digested:
        """Return what `head` or `work` has made as bytes with their digest: None where there is no tail."""
        return Digested(made, None) if self.tail is None else made

    def whole(self, made: Iterable[bytes | Digested]) -> bytes:
        """Return the bytes of the file from what `work` has made of its chunks, in a process alone."""
        pieces = [self.digested(one) for one in (self.head(), *made)]
        tail = b"" if self.tail is None else self.tail([piece.digest for piece in pieces])
        return b"".join([*(piece.data for piece in pieces), tail])

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)

    @property
    def returned_bytes(self) -> int:
        return self.chunk_bytes


@dataclass(frozen=True, kw_only=True)
class PlacedSink(Stage):
    """Write one file in which an array lies in one piece: each chunk's items at their places, by any rank.

    Parameters
    ----------
    work : callable
        Called as work(chunk, *blocks); returns the block of the chunk.
    file : str
        Name of the file, below the folder of results.
    layout : Array
        The array as it lies in the file, in C order. Chunks are of its axes.
    stored : dtype
        Of its items in the file, with their byte order.
    create : callable
        Called on one rank as create(path, further); makes the file with all that is not the array, and
        returns the bytes before the array. `further` says whether a stage before this one has written to
        it.
    prove : callable
        Called on one rank before the first stage; raises what would keep `create` from making a file.
    shared : bool
        Several stages may write to this file.
    """

    work: Callable[..., np.ndarray]
    file: str
    layout: Array
    stored: np.dtype
    create: Callable[[Path, bool], int]
    prove: Callable[[], object] = bool
    shared: bool = False

    @property
    def kind(self) -> str:
        return "sink"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)


@dataclass(frozen=True, kw_only=True)
class Files(Stage):
    """Let the work on each chunk write whole files.

    Parameters
    ----------
    work : callable
        Called as work(chunk, folder, *blocks); writes its files into the folder.
    names : tuple of str
        The names of all files, below the folder of results.
    of_chunk : callable, optional
        Called as of_chunk(number), where the stage has units, or many folders; returns the names of the
        files of a chunk, which are not there if it fails.
    folder : str
        The folder below that of results that is one result, such as a Zarr store: the files of this stage
        become all that is in it. "" where each file is a result.
    marks : tuple of str
        Names of which one lies in a folder of this kind: one without them is not replaced, not by force.
    shared : tuple of str
        Those of the names that other stages of the same folder have too, and write alike.
    within : str
        In place of names: a folder below that of results, in which the work on each chunk writes files of any
        names that no other chunk's have. It is given a folder that stands for this one, and is empty.
    """

    work: Callable[..., None]
    names: tuple[str, ...] = ()
    of_chunk: Callable[[int], tuple[str, ...]] | None = None
    folder: str = ""
    marks: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    within: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        return self.names

    @property
    def folders(self) -> tuple[str, ...]:
        return (self.within,) if self.within else ()


#: A generator of stages: it yields a stage, is sent what a Reduce found or the index of Records (after any
#: other stage which of its chunks failed, or None), and returns what it comes to. Whoever drives it may be a
#: run, or a plan that sends what it can expect.
Stages = Generator[Stage, Any, _S]


def expected_stages(stages: Stages[_S]) -> tuple[list[Stage], _S]:
    """Drive a generator with what plans reckon with; return every stage that may come, and its result."""
    declared: list[Stage] = []
    value = None
    try:
        while True:
            stage = stages.send(value)
            declared.append(stage)
            value = None
            if isinstance(stage, Reduce | Records):
                value = stage.expected if isinstance(stage, Reduce) else stage.expected_index
    except StopIteration as end:
        return declared, end.value
