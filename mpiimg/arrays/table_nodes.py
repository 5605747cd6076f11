"""Tables in the graph: each is made of parts, which are records of rows that fit a rank many times over."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mpiimg.arrays.graph import Node
from mpiimg.arrays.identity import Identity
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.codec import decode, parts
from mpiimg.engine.needs import Chunk
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.stage import Records, Stages
from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows, Schema, in_unit, joined, unified
from mpiimg.formats.tables.files import read_piece
from mpiimg.formats.tables.rows import as_rows

#: Times the bytes of rows that the work on them takes: decoded, together, in order, and what they become.
WORK_COPIES = 5

#: Bytes of the records that become one part of a table, about.
PART_BYTES = 16 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class TableNode(Node):
    """A table: rows in parts, in order. Its records are rows, with their number and columns as facts."""

    axes: tuple[str, ...] = ("row",)
    shape: tuple[int, ...] = (0,)
    dtype: str | None = "|u1"
    label: str = "table"
    steps: tuple[Any, ...] = ()
    #: The column of whose values each part says which it has.
    partition_on: str | None = None
    #: Its columns as far as they are known before it is made: what a table of no rows has, and plans expect.
    expected: Schema = field(default=Schema(()))
    is_stored = True
    is_tried = False

    @property
    def content(self) -> tuple:
        return (self.partition_on, *(step.described()[0] for step in self.steps))

    def whole(self, index: Index) -> Schema:
        """Return the columns of all parts; in a plan, or where there is no part, those that are expected."""
        return schema_of(index) if len(index) else _filled(self.expected)

    def made_of(self, sizes: Iterable[int]) -> Index:
        """Return what a plan expects: parts of so many bytes."""
        facts = {"rows": 0, "schema": _filled(self.expected).to_record()}
        if self.partition_on is not None:
            facts["values"] = []
        return Index.of(self.name, [(n, n, int(size), facts) for n, size in enumerate(sizes)], {})

    @property
    def why(self) -> str:
        """What cannot be known of it."""
        return next((why for step in self.steps for why in [step.described()[1]] if why), "")

    @property
    def known(self) -> bool:
        return not self.why

    @property
    def identity(self) -> Identity:
        """What is known of its steps, as warnings say it."""
        return Identity(self.key, self.known, self.why)

    def stages(self, lowering: Any) -> Stages[None]:
        """Yield the stages that make its parts."""
        raise NotImplementedError

    def rehearse(self, rehearsal: Any) -> None:
        """Do nothing: what is done with rows is cheap, and its errors name the columns."""

    def part(self, number: int, rows: Rows) -> tuple:
        """Return a part of the table as a record, once all steps are done with its rows."""
        made = functools.reduce(lambda made, step: step(made), self.steps, rows)
        key, data, facts = record(number, made)
        return key, data, {**facts, **_values_of(made, self.partition_on)}


# --- Parts ------------------------------------------------------------------------------------------------


def record(key: Any, rows: Rows) -> tuple:
    """Return rows as the work of a stage of records yields them."""
    return key, parts(rows.to_record()), {"rows": len(rows), "schema": rows.schema.to_record()}


def _values_of(rows: Rows, column: str | None) -> dict[str, list]:
    """Return the values that a column has, for the facts of a part; nothing where no column is asked for."""
    if column is None:
        return {}
    values = rows[column]
    if not len(rows):
        return {"values": []}
    if values.dtype.kind not in "biuU" or values.ndim > 1:
        raise BadInput(f"table: column {column} is {values.dtype}: folders are named by text and integers")
    return {"values": np.unique(values).tolist()}


def rows_of(data: Any) -> Rows:
    """Return the rows of a record."""
    return Rows.of_record(decode(data))


def schema_of(index: Index, declared: Schema | None = None, name: Callable[[int], str] = "part {}".format):
    """Return the columns of all parts of a table."""
    facts = enumerate(index.facts)
    return unified(((name(n), fact["rows"], Schema.of_record(fact["schema"])) for n, fact in facts), declared)


def _filled(schema: Schema) -> Schema:
    """Return columns with types where nothing has said any."""
    return Schema(tuple(replace(one, dtype=one.dtype or "f8") for one in schema.columns))


def count_of(index: Index) -> int:
    """Return the number of rows of a table."""
    return sum(fact["rows"] for fact in index.facts)


def runs_of(sizes: Sequence[int], limit: int = 0) -> list[range]:
    """Cut records into runs of about as many bytes as a part is to have; what is larger stands alone."""
    limit = limit or PART_BYTES
    runs, start, held = [], 0, 0
    for number, size in enumerate(map(int, sizes)):
        if held and held + size > limit:
            runs.append(range(start, number))
            start, held = number, 0
        held += size
    if len(sizes) > start:
        runs.append(range(start, len(sizes)))
    return runs


def cast_all(records: Sequence, schema: Schema) -> Rows:
    """Return the rows of records, one behind the other."""
    return joined(list(map(rows_of, records)), schema)


def _grid(count: int) -> ChunkGrid:
    return ChunkGrid(("part",), (count,), (1,))


def stage_of(name: str, count: int, work: Callable, reads: Sequence[RecordsOf], **more: Any) -> Records:
    stage = Records(name, _grid(count), reads=tuple(reads), work=work, **more)
    chunks = [stage.chunk(number) for number in range(count)]
    largest = max((sum(_bytes_of(need, chunk) for need in reads) for chunk in chunks), default=0)
    return replace(stage, scratch=WORK_COPIES * largest) if reads else stage


def _bytes_of(need: RecordsOf, chunk: Chunk) -> int:
    return int(need.array.shapes.sizes[list(need.numbers(chunk))].sum())


# --- From records, and from files -------------------------------------------------------------------------


@dataclass(frozen=True)
class RowsOf:
    """Makes of what a user's function returned, an item at a time, the record of its rows.

    Parameters
    ----------
    names : tuple of str
        Of the columns; none where each record names its own.
    declared : Schema
        Types and units that the user has given.
    """

    names: tuple[str, ...]
    declared: Schema

    __name__ = "rows"

    def __call__(self, record: Any, key: Any) -> dict[str, Any]:
        where = f"item {key}"
        rows = as_rows(record, self.names, where)
        for column in self.declared.columns:
            if column.name in rows.units:
                rows = in_unit(rows, column.name, column.unit, where)
        return rows.to_record()

    def __dask_tokenize__(self) -> tuple:
        return ("mpiimg.table", self.names, self.declared.to_record())


@dataclass(frozen=True, eq=False, kw_only=True)
class FromRecords(TableNode):
    """The rows of records of items, in the order of items.

    Parameters
    ----------
    parent : Kept
        Whose stages leave an :class:`Index` of what :class:`RowsOf` has made.
    names : tuple of str
        Of the columns; none where each record names its own.
    declared : Schema
        Types and units that the user has given.
    """

    parent: Any
    names: tuple[str, ...]
    declared: Schema

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return (self.names, self.declared.to_record(), *super().content)

    def stages(self, lowering: Any) -> Stages[None]:
        index = lowering.made[self.parent.key]
        runs = runs_of(index.sizes)

        def work(chunk: Chunk, records: Sequence) -> Iterator[tuple]:
            run = runs[chunk.number]
            made = list(map(rows_of, records))
            named = [(f"item {index.keys[n]}", len(r), r.schema) for n, r in zip(run, made, strict=True)]
            yield self.part(chunk.number, joined(made, unified(named, self.declared)))

        reads = RecordsOf(index.array, lambda chunk: runs[chunk.number])
        parameters, expected = (
            lowering.parameters(self),
            self.made_of(sum(index.sizes[list(run)]) for run in runs),
        )
        lowering.made[self.key] = yield stage_of(
            self.name, len(runs), work, [reads], parameters=parameters, expected=expected
        )

    def rehearse(self, rehearsal: Any) -> None:
        """Make rows of the first record, where the rehearsal has made one as the run will make it."""
        tried = rehearsal.__dict__.get("tried_items", {}).get(self.parent.key)
        if tried is not None and tried.whole and tried.records:
            key, data = tried.records[0]
            rows = rows_of(bytearray(data))
            self.part(0, joined([rows], unified([(f"item {key}", len(rows), rows.schema)], self.declared)))


@dataclass(frozen=True, eq=False, kw_only=True)
class FromTableFile(TableNode):
    """The rows of a table in files.

    Parameters
    ----------
    pieces : tuple of dict
        As :func:`mpiimg.formats.tables.files.pieces` returns them.
    """

    pieces: tuple[Mapping[str, Any], ...]

    @property
    def content(self):
        return (*map(dict, self.pieces), *super().content)

    def stages(self, lowering: Any) -> Stages[None]:
        def work(chunk: Chunk) -> Iterator[tuple]:
            yield self.part(chunk.number, read_piece(self.pieces[chunk.number]))

        sizes = [max(1, piece.get("bytes", 1)) for piece in self.pieces]
        lowering.made[self.key] = yield stage_of(
            self.name,
            len(self.pieces),
            work,
            (),
            parameters=lowering.parameters(self),
            expected=self.made_of(sizes),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Stepped(TableNode):
    """The rows of a table that is dear to make, once its own steps are done with them.

    Parameters
    ----------
    parent : TableNode
    """

    parent: TableNode

    @property
    def parents(self):
        return (self.parent,)

    def stages(self, lowering: Any) -> Stages[None]:
        index = lowering.made[self.parent.key]
        schema = self.parent.whole(index)

        def work(chunk: Chunk, records: Sequence) -> Iterator[tuple]:
            yield self.part(chunk.number, cast_all(records, schema))

        parameters = {**lowering.parameters(self), "schema": schema.to_record()}
        lowering.made[self.key] = yield stage_of(
            self.name,
            len(index),
            work,
            [RecordsOf(index.array, lambda chunk: (chunk.number,))],
            parameters=parameters,
            expected=self.made_of(index.sizes.tolist()),
        )


def stepped(node: TableNode, step: Any) -> TableNode:
    """Return a table with one more step: done as its parts are made, where that is cheap to do again."""
    if isinstance(node, FromRecords | FromTableFile | Stepped):
        return replace(node, steps=(*node.steps, step))
    return Stepped(parent=node, steps=(step,), partition_on=node.partition_on, label="table")
