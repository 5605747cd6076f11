"""Tables in the graph: each is made of parts, which are records of rows that fit a rank many times over."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mpiimg.arrays.graph import Node
from mpiimg.arrays.table_ops import Aggregation, Join, bucket_of
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.codec import decode, parts
from mpiimg.engine.needs import Chunk
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.stage import Records, Stages
from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows, Schema, joined, unified
from mpiimg.formats.tables.files import read_piece
from mpiimg.formats.tables.rows import as_rows

#: Bytes of the records that become one part of a table, or of the rows of one bucket.
PART_BYTES = 16 << 20

#: A table up to so many bytes goes to every part of the other one in a join.
BROADCAST_BYTES = 64 << 20

#: Where a row of a table came from, while it is elsewhere: part, and row in it.
_PART, _ROW = "#part", "#row"


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


def _grid(count: int) -> ChunkGrid:
    return ChunkGrid(("part",), (count,), (1,))


def _stage(name: str, count: int, work: Callable, reads: Sequence[RecordsOf], **more: Any) -> Records:
    return Records(name, _grid(count), reads=tuple(reads), work=work, **more)


# --- From records, and from files -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class FromRecords(TableNode):
    """The rows of records of items, in the order of items.

    Parameters
    ----------
    parent : Node
        Whose stages leave an :class:`Index` of the records.
    names : tuple of str
        Of the columns; none where each record names its own.
    declared : Schema
        Types and units that the user has given.
    """

    parent: Node
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
            made = [self._rows(data, index.keys[n]) for n, data in zip(run, records, strict=True)]
            named = [(f"item {index.keys[n]}", len(r), r.schema) for n, r in zip(run, made, strict=True)]
            yield self.part(chunk.number, joined(made, unified(named, self.declared)))

        reads = RecordsOf(index.array, lambda chunk: runs[chunk.number])
        parameters, expected = (
            lowering.parameters(self),
            self.made_of(sum(index.sizes[list(run)]) for run in runs),
        )
        lowering.made[self.key] = yield _stage(
            self.name, len(runs), work, [reads], parameters=parameters, expected=expected
        )

    def _rows(self, data: Any, key: Any) -> Rows:
        return as_rows(decode(data), self.names, f"item {key}")


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
        lowering.made[self.key] = yield _stage(
            self.name,
            len(self.pieces),
            work,
            (),
            parameters=lowering.parameters(self),
            expected=self.made_of(sizes),
        )


# --- Joins ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Joined(TableNode):
    """Two tables joined: rows in the order of the left one, then of the right one.

    Parameters
    ----------
    left, right : TableNode
    join : Join
    """

    left: TableNode
    right: TableNode
    join: Join

    @property
    def parents(self):
        return (self.left, self.right)

    @property
    def content(self):
        join = self.join
        return (join.on, join.how, join.suffix, sorted(dict(join.fill).items()), *super().content)

    def stages(self, lowering: Any) -> Stages[None]:
        left, right = lowering.made[self.left.key], lowering.made[self.right.key]
        schemas = self.left.whole(left), self.right.whole(right)
        if all(schema.columns for schema in schemas):
            self.join.renamed(schemas[0].names, schemas[1].names)
        said = {"schemas": [schema.to_record() for schema in schemas]}
        parameters = {**lowering.parameters(self), **said}
        # A part of the left table reads all of the right one: that pays while this is small beside the whole.
        small = right.nbytes <= BROADCAST_BYTES
        if small and (len(left) <= 4 or right.nbytes * len(left) <= max(left.nbytes + right.nbytes, 1 << 26)):
            made = yield self._broadcast(left, right, schemas, parameters)
        else:
            made = yield from self._exchanged(left, right, schemas, parameters)
        lowering.made[self.key] = made

    def _broadcast(self, left: Index, right: Index, schemas, parameters) -> Records:
        def work(chunk: Chunk, one: Sequence, others: Sequence) -> Iterator[tuple]:
            rows = joined(list(map(rows_of, one)), schemas[0])
            made, _ = self.join(rows, joined(list(map(rows_of, others)), schemas[1]))
            yield self.part(chunk.number, made)

        reads = RecordsOf(left.array, _own), RecordsOf(right.array, lambda chunk: range(len(right)))
        expected = self.made_of(left.sizes.tolist())
        return _stage(self.name, len(left), work, reads, parameters=parameters, expected=expected)

    def _exchanged(self, left: Index, right: Index, schemas, parameters) -> Stages[Index]:
        """Bring equal keys together in buckets, join there, and bring the rows back to the left parts."""
        count = max(2, -(-(left.nbytes + right.nbytes) // PART_BYTES))
        on = self.join.on
        one = yield _to_buckets(f"{self.name}-left", left, schemas[0], on, count, parameters, True)
        other = yield _to_buckets(f"{self.name}-right", right, schemas[1], on, count, parameters, False)
        of_bucket = _by_key(one), _by_key(other)

        def join(chunk: Chunk, records: Sequence, others: Sequence) -> Iterator[tuple]:
            whole = [cast_all(records, _with_origin(schemas[0])), cast_all(others, schemas[1])]
            made, _ = self.join(*whole)
            for part in np.unique(made[_PART]).tolist():
                yield record(part, made.taken(made[_PART] == part))

        reads = (
            RecordsOf(one.array, lambda chunk: of_bucket[0].get(chunk.number, ())),
            RecordsOf(other.array, lambda chunk: of_bucket[1].get(chunk.number, ())),
        )
        pairs = yield _stage(f"{self.name}-buckets", count, join, reads, parameters=parameters)
        of_part = _by_key(pairs)
        schema = unified([("left", 0, self._of_nothing(schemas)), *_named(pairs)])

        def collect(chunk: Chunk, records: Sequence) -> Iterator[tuple]:
            rows = cast_all(records, schema)
            order = np.argsort(rows[_ROW], kind="stable")
            kept = [name for name in rows.names if name not in (_PART, _ROW)]
            yield self.part(chunk.number, rows.taken(order).selected(kept))

        back = RecordsOf(pairs.array, lambda chunk: of_part.get(chunk.number, ()))
        said = {**parameters, "schema": schema.to_record()}
        return (yield _stage(self.name, len(left), collect, [back], parameters=said))

    def _of_nothing(self, schemas: Sequence[Schema]) -> Schema:
        """Return the columns of no rows joined; none in a plan that knows none."""
        if not all(schema.columns for schema in schemas):
            return Schema(())
        return self.join(_with_origin(schemas[0]).empty(), schemas[1].empty())[0].schema


def _own(chunk: Chunk) -> list[int]:
    return [chunk.number]


def _named(index: Index) -> Iterator[tuple[str, int, Schema]]:
    for number, fact in enumerate(index.facts):
        yield f"part {number}", fact["rows"], Schema.of_record(fact["schema"])


def _by_key(index: Index) -> dict[Any, list[int]]:
    """Return the numbers of the records of each key, in order."""
    numbers: dict[Any, list[int]] = {}
    for number, key in enumerate(index.keys):
        numbers.setdefault(key, []).append(number)
    return numbers


def _with_origin(schema: Schema) -> Schema:
    more = Rows({_PART: np.zeros(0, np.int64), _ROW: np.zeros(0, np.int64)}, {}).schema
    return Schema((*schema.columns, *more.columns))


def cast_all(records: Sequence, schema: Schema) -> Rows:
    """Return the rows of records, one behind the other."""
    return joined(list(map(rows_of, records)), schema)


def _to_buckets(
    name: str, index: Index, schema: Schema, on: Sequence[str], count: int, parameters: Mapping, origin: bool
) -> Records:
    """Declare the stage that sends rows to the buckets of their keys; with where they are from, if asked."""

    def work(chunk: Chunk, records: Sequence) -> Iterator[tuple]:
        rows = cast_all(records, schema)
        if origin:
            own = {_PART: np.full(len(rows), chunk.number), _ROW: np.arange(len(rows))}
            rows = Rows({**rows.columns, **own}, rows.units)
        buckets = bucket_of(rows, on, count)
        for bucket in np.unique(buckets).tolist():
            yield record(bucket, rows.taken(buckets == bucket))

    return _stage(name, len(index), work, [RecordsOf(index.array, _own)], parameters=parameters)


# --- Groups -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Grouped(TableNode):
    """One row for each group of rows, in the order of their keys.

    Parameters
    ----------
    parent : TableNode
    aggregation : Aggregation
    """

    parent: TableNode
    aggregation: Aggregation

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return (self.aggregation.by, self.aggregation.columns, *super().content)

    def stages(self, lowering: Any) -> Stages[None]:
        index = lowering.made[self.parent.key]
        schema = self.parent.whole(index)
        for name in self.aggregation.names if schema.columns else ():
            schema.index(name, "agg")
        parameters = {**lowering.parameters(self), "schema": schema.to_record()}
        count = -(-index.nbytes // PART_BYTES)
        if count > 1:
            index = yield from self._in_buckets(index, schema, count, parameters)
            schema = schema_of(index)

        def work(chunk: Chunk, records: Sequence) -> Iterator[tuple]:
            rows = cast_all(records, schema)
            made = self._ordered(rows) if count > 1 else self.aggregation(rows)
            yield self.part(chunk.number, made)

        reads = RecordsOf(index.array, lambda chunk: range(len(index)))
        lowering.made[self.key] = yield _stage(
            self.name, 1, work, [reads], parameters=parameters, expected=self.made_of([index.nbytes])
        )

    def _in_buckets(self, index: Index, schema: Schema, count: int, parameters: Mapping) -> Stages[Index]:
        """Bring the rows of each group together, in their order, and aggregate them."""
        by = self.aggregation.by
        apart = yield _to_buckets(f"{self.name}-rows", index, schema, by, count, parameters, False)
        of_bucket = _by_key(apart)

        def work(chunk: Chunk, records: Sequence) -> Iterator[tuple]:
            yield record(chunk.number, self.aggregation(cast_all(records, schema)))

        reads = RecordsOf(apart.array, lambda chunk: of_bucket.get(chunk.number, ()))
        return (yield _stage(f"{self.name}-buckets", count, work, [reads], parameters=parameters))

    def _ordered(self, rows: Rows) -> Rows:
        keys = [rows[name] for name in self.aggregation.by]
        return rows.taken(np.lexsort(keys[::-1]))
