"""What is known of the records that a stage has made, and how later stages read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpiimg.engine.array import Ragged
from mpiimg.engine.blocks import BlockTable
from mpiimg.engine.boxes import Box
from mpiimg.engine.keys import Key
from mpiimg.engine.needs import Chunk


class RecordShapes(Sequence):
    """The shapes of records as items of a :class:`Ragged`: so many bytes each.

    Parameters
    ----------
    sizes : (records,) int64
    """

    def __init__(self, sizes: np.ndarray):
        self.sizes = np.asarray(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return RecordShapes(self.sizes[number])
        return (int(self.sizes[number]),)

    def __iter__(self) -> Iterator[tuple[int]]:
        return ((size,) for size in self.sizes.tolist())

    def __eq__(self, other) -> bool:
        return isinstance(other, RecordShapes) and np.array_equal(self.sizes, other.sizes)

    def __hash__(self) -> int:
        return hash(self.sizes.tobytes())


@dataclass(frozen=True, eq=False)
class Index:
    """The records that a stage has made, in the order of chunks, and of a chunk as its work yielded them.

    The same on every rank.

    Parameters
    ----------
    name : str
        Of the array that the records are for later stages.
    chunks : (records,) int64
        The chunk that each comes from.
    keys : tuple of int, str or tuple
    sizes : (records,) int64
        Bytes of each.
    facts : tuple
        What the work said of each, as JSON has it; None where it said nothing.
    lost : mapping of int to str
        Chunks that failed, and why, where the stage has units.
    """

    name: str
    chunks: np.ndarray
    keys: tuple[Key, ...]
    sizes: np.ndarray
    facts: tuple[Any, ...] = ()
    lost: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, records: Iterable[tuple[int, Key, int, Any]], lost: Mapping[int, str]) -> Index:
        """Return the index of records: chunk, key, bytes and facts of each, in any order of the chunks."""
        records = sorted(records, key=lambda record: record[0])
        chunks, keys, sizes, facts = zip(*records, strict=True) if records else ((), (), (), ())
        return cls(name, np.array(chunks, np.int64), keys, np.array(sizes, np.int64), facts, lost)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def array(self) -> Ragged:
        """The records as an array: the bytes of one are an item."""
        return Ragged(self.name, "rb", RecordShapes(self.sizes), "uint8")

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return int(self.sizes.sum())


class RecordTable(BlockTable):
    """Where the records of a stage lie as blocks of their array: each is one.

    Parameters
    ----------
    index : Index
    count : int
        Chunks of the stage.
    """

    def __init__(self, index: Index, count: int):
        numbers = np.arange(len(index), dtype=np.int64)
        boxes = np.zeros((len(index), 2, 2), np.int64)
        boxes[:, 0, 0], boxes[:, 0, 1], boxes[:, 1, 1] = numbers, numbers + 1, index.sizes
        self.boxes = boxes
        self.starts = np.searchsorted(index.chunks, np.arange(count + 1))


@dataclass(frozen=True)
class RecordsOf:
    """The bytes of some records, as a list of (bytes,) uint8 arrays.

    Parameters
    ----------
    array : Ragged
        Of an :class:`Index`.
    numbers : callable
        Called as numbers(chunk); returns the numbers of the records that the work on a chunk reads.
    one_by_one : bool
        The work is given an iterable that has one of them in hand at a time, as it is read from its file; in
        a run that stages nothing all are gathered before.
    """

    array: Ragged
    numbers: Callable[[Chunk], Sequence[int]]
    one_by_one: bool = False

    copies = False

    def boxes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes of these records."""
        return tuple(self.array.item(number) for number in self.numbers(chunk))

    def join(self, blocks: list[np.ndarray]) -> list[np.ndarray]:
        """Return what the work sees of the blocks at :meth:`boxes`."""
        return [block.reshape(-1) for block in blocks]


class OneByOne:
    """Records that are read when their turn comes, as often as they are gone through.

    Parameters
    ----------
    read : callable
        Called as read(box).
    boxes : sequence of Box
    """

    def __init__(self, read: Callable[[Box], np.ndarray], boxes: Sequence[Box]):
        self._read, self._boxes = read, boxes

    def __len__(self) -> int:
        return len(self._boxes)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._read(box).reshape(-1) for box in self._boxes)
