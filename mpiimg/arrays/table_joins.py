"""Joins and groups of tables in the graph: rows with equal keys meet in buckets, which are records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays.table_nodes import TableNode, cast_all, record, stage_of
from mpiimg.arrays.table_ops import Aggregation, Join, bucket_of
from mpiimg.engine.needs import Chunk
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.stage import Records, Stages
from mpiimg.formats.tables.columns import Rows, Schema, unified

#: Bytes of the rows of one bucket, about.
BUCKET_BYTES = 16 << 20

#: A table up to so many bytes may go to every part of the other one in a join.
BROADCAST_BYTES = 64 << 20

#: Where a row of a table came from, while it is elsewhere: part, and row in it.
_PART, _ROW = "#part", "#row"


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
        # A plan has the same stages, whatever the data: what is not needed has no chunks.
        count = self._buckets(left, right)
        on, name = self.join.on, self.name
        one = yield _to_buckets(f"{name}-left", left, schemas[0], on, count, parameters, True)
        other = yield _to_buckets(f"{name}-right", right, schemas[1], on, count, parameters, False)
        pairs = yield self._in_buckets(one, other, schemas, count, parameters)
        whole, of_part = len(right) if not count else 0, _by_key(pairs)
        schema = unified([("left", 0, self._of_nothing(schemas)), *_named(pairs)])

        def work(chunk: Chunk, own: Sequence, others: Sequence, back: Sequence) -> Iterator[tuple]:
            if count:
                rows = cast_all(back, schema)
                order = np.argsort(rows[_ROW], kind="stable")
                kept = [name for name in rows.names if name not in (_PART, _ROW)]
                made = rows.taken(order).selected(kept)
            else:
                made, _ = self.join(cast_all(own, schemas[0]), cast_all(others, schemas[1]))
            yield self.part(chunk.number, made)

        reads = (
            RecordsOf(left.array, lambda chunk: () if count else (chunk.number,)),
            RecordsOf(right.array, lambda chunk: range(whole)),
            RecordsOf(pairs.array, lambda chunk: of_part.get(chunk.number, ())),
        )
        lowering.made[self.key] = yield stage_of(
            name,
            len(left),
            work,
            reads,
            parameters={**parameters, "schema": schema.to_record()},
            expected=self.made_of(left.sizes.tolist()),
        )

    def _buckets(self, left: Index, right: Index) -> int:
        """Return how many buckets the rows are brought to; 0 where left parts read the whole right table.

        That pays while the right one is small beside what would be moved.
        """
        both = left.nbytes + right.nbytes
        small = right.nbytes <= BROADCAST_BYTES
        if small and (len(left) <= 4 or right.nbytes * len(left) <= max(both, BROADCAST_BYTES)):
            return 0
        return max(2, -(-both // BUCKET_BYTES))

    def _in_buckets(self, one: Index, other: Index, schemas, count: int, parameters) -> Records:
        """Declare the stage that joins rows in buckets, and sends them back to the left parts."""
        left, right = _by_key(one), _by_key(other)

        def work(chunk: Chunk, records: Sequence, others: Sequence) -> Iterator[tuple]:
            rows = cast_all(records, _with_origin(schemas[0])), cast_all(others, schemas[1])
            made, _ = self.join(*rows)
            for part in np.unique(made[_PART]).tolist():
                yield record(part, made.taken(made[_PART] == part))

        reads = (
            RecordsOf(one.array, lambda chunk: left.get(chunk.number, ())),
            RecordsOf(other.array, lambda chunk: right.get(chunk.number, ())),
        )
        return stage_of(f"{self.name}-buckets", count, work, reads, parameters=parameters)

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

    chunks = len(index) if count else 0
    return stage_of(name, chunks, work, [RecordsOf(index.array, _own)], parameters=parameters)


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
        # As for joins: without buckets, both stages have no chunk.
        count = -(-index.nbytes // BUCKET_BYTES) if index.nbytes > BUCKET_BYTES else 0
        apart = yield _to_buckets(
            f"{self.name}-rows", index, schema, self.aggregation.by, count, parameters, False
        )
        grouped = yield self._in_buckets(apart, schema, count, parameters)
        of_groups = unified(_named(grouped))

        def work(chunk: Chunk, records: Sequence, groups: Sequence) -> Iterator[tuple]:
            made = (
                self._ordered(cast_all(groups, of_groups))
                if count
                else self.aggregation(cast_all(records, schema))
            )
            yield self.part(chunk.number, made)

        reads = (
            RecordsOf(index.array, lambda chunk: () if count else range(len(index))),
            RecordsOf(grouped.array, lambda chunk: range(len(grouped))),
        )
        parameters = {**parameters, "groups": of_groups.to_record()}
        lowering.made[self.key] = yield stage_of(
            self.name,
            1,
            work,
            reads,
            parameters=parameters,
            expected=self.made_of([min(index.nbytes, BUCKET_BYTES // 4)]),
        )

    def _in_buckets(self, apart: Index, schema: Schema, count: int, parameters: Mapping) -> Records:
        """Declare the stage that aggregates the rows of each bucket, which are in their order."""
        of_bucket = _by_key(apart)

        def work(chunk: Chunk, records: Sequence) -> Iterator[tuple]:
            yield record(chunk.number, self.aggregation(cast_all(records, schema)))

        reads = RecordsOf(apart.array, lambda chunk: of_bucket.get(chunk.number, ()))
        return stage_of(f"{self.name}-buckets", count, work, [reads], parameters=parameters)

    def _ordered(self, rows: Rows) -> Rows:
        keys = [rows[name] for name in self.aggregation.by]
        return rows.taken(np.lexsort(keys[::-1]))
