"""Tables written to files, and brought to every rank."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.table_nodes import TableNode, count_of, rows_of, runs_of
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.codec import decode, encode
from mpiimg.engine.needs import Chunk
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.stage import Files, Sink, Stages
from mpiimg.errors import BadInput
from mpiimg.formats.tables import files, parquet
from mpiimg.formats.tables.columns import Rows, Schema, cast, joined

#: Most bytes of a number as text, with what is between it and the next.
_TEXT_BYTES = 26

#: Bytes that the libraries take which write text and FITS, and which write Parquet.
_ASTROPY, _PYARROW = 30 << 20, 110 << 20

#: Values of a column that a table may be parted by.
MAX_FOLDERS = 10_000

#: The ending of the file in which a table lies for :func:`load`.
KEPT = ".mpiimg-table"

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, eq=False)
class TableResult:
    """A table that becomes a file, or a folder of files.

    Parameters
    ----------
    node : TableNode
    file : str
        With a slash at its end for a folder of Parquet files.
    """

    node: TableNode
    file: str

    @property
    def targets(self) -> tuple[TableNode, ...]:
        """The nodes that it is made of."""
        return (self.node,)

    def check(self, lowering: Any) -> None:
        """Refuse names that no format of tables has.

        Raises
        ------
        BadInput
        """
        if self.file.endswith(KEPT):
            return
        files.in_order(self.file)
        if self.node.partition_on is not None and not self.file.endswith("/"):
            raise BadInput(
                f"{self.file}: a table parted by {self.node.partition_on} becomes a folder of Parquet "
                f"files: name it {self.file.rpartition('.')[0] or self.file}.parquet/"
            )

    def stages(self, lowering: Any) -> Stages[None]:
        """Yield the stage that writes it, once its parts are made."""
        index = lowering.made[self.node.key]
        schema = self.node.whole(index)
        said = {**lowering.parameters(self.node), "schema": schema.to_record(), "rows": count_of(index)}
        if self.file.endswith(KEPT):
            yield self._kept(index, schema, said)
        elif self.file.endswith("/"):
            parquet.check(schema)
            yield self._folder(index, schema, said)
        elif files.in_order(self.file) is None:
            parquet.check(schema)
            yield self._parquet(index, schema, said)
        else:
            yield self._in_order(index, schema, said)

    def _in_order(self, index: Index, schema: Schema, said: dict) -> Sink:
        how, count = files.in_order(self.file), count_of(index)
        how.check(schema)
        runs = runs_of(index.sizes) or [range(0)]

        def work(chunk: Chunk, records: Sequence) -> bytes:
            data = b"".join(how.encode(schema, part) for part in _cast(records, schema))
            return data + (how.tail(schema, count) if chunk.number == len(runs) - 1 else b"")

        rows = [fact["rows"] for fact in index.facts]
        most = max(sum(rows[n] for n in run) for run in runs)
        return Sink(
            f"write-{self.file}",
            ChunkGrid(("part",), (len(runs),), (1,)),
            reads=(RecordsOf(index.array, lambda chunk: runs[chunk.number]),),
            work=work,
            file=self.file,
            head=lambda: how.head(schema, count),
            chunk_bytes=most * _row_bytes(schema) + 2880,
            scratch=3 * _largest(index, runs) + _ASTROPY,
            parameters=said,
        )

    def _kept(self, index: Index, schema: Schema, said: dict) -> Sink:
        """Declare the writing of records as they are, each behind its length."""

        def work(chunk: Chunk, records: Sequence) -> bytes:
            data = b"".join(bytes(one) for one in records)
            return _LENGTH.pack(len(data)) + data

        head = encode({"schema": schema.to_record(), "parts": len(index)})
        return Sink(
            f"keep-{self.node.name}",
            ChunkGrid(("part",), (len(index),), (1,)),
            reads=(RecordsOf(index.array, lambda chunk: [chunk.number]),),
            work=work,
            file=self.file,
            head=lambda: _LENGTH.pack(len(head)) + head,
            chunk_bytes=int(index.sizes.max(initial=0)) + _LENGTH.size,
            scratch=2 * int(index.sizes.max(initial=0)),
            parameters=said,
        )

    def _parquet(self, index: Index, schema: Schema, said: dict) -> Files:
        """Declare the writing of one file by one rank, which has one part of the table in hand at a time."""

        def work(chunk: Chunk, folder: Path, records: Iterable) -> None:
            parquet.write(folder / self.file, schema, _cast(records, schema))

        return Files(
            f"write-{self.file}",
            ChunkGrid(("file",), (1,), (1,)),
            reads=(RecordsOf(index.array, lambda chunk: range(len(index)), one_by_one=True),),
            work=work,
            scratch=4 * int(index.sizes.max(initial=0)) + _PYARROW,
            names=(self.file,),
            parameters=said,
        )

    def _folder(self, index: Index, schema: Schema, said: dict) -> Files:
        runs = runs_of(index.sizes) or [range(0)]
        place = self.file.rstrip("/")
        if self.node.partition_on is not None:
            if schema.columns:
                schema.index(self.node.partition_on, self.file)
            return self._in_folders(index, schema, said)

        def work(chunk: Chunk, folder: Path, records: Sequence) -> None:
            rows = joined(list(map(rows_of, records)), schema)
            (folder / _part(chunk.number)).write_bytes(parquet.encode(schema, rows))

        return Files(
            f"write-{place}",
            ChunkGrid(("part",), (len(runs),), (1,)),
            reads=(RecordsOf(index.array, lambda chunk: runs[chunk.number]),),
            work=work,
            within=place,
            scratch=4 * _largest(index, runs) + _PYARROW,
            parameters=said,
        )

    def _in_folders(self, index: Index, schema: Schema, said: dict) -> Files:
        """Declare the writing of a folder for each value of a column; parts say which values they have."""
        column, place = self.node.partition_on, self.file.rstrip("/")
        by_value: dict[Any, list[int]] = {}
        for number, fact in enumerate(index.facts):
            for value in fact.get("values", ()):
                by_value.setdefault(value, []).append(number)
        values = sorted(by_value)
        if len(values) > MAX_FOLDERS:
            raise BadInput(
                f"{self.file}: column {column} has {len(values)} values, and each would be a folder; "
                f"up to {MAX_FOLDERS} can be"
            )
        rest = schema.without([column])

        def work(chunk: Chunk, folder: Path, records: Iterable) -> None:
            value = values[chunk.number]
            kept = (rows.taken(rows[column] == value) for rows in _cast(records, schema))
            own = folder / parquet.folder_of(column, value)
            own.mkdir(parents=True)
            parquet.write(own / _part(0), rest, (rows.selected(rest.names) for rows in kept if len(rows)))

        reads = RecordsOf(index.array, lambda chunk: by_value[values[chunk.number]], one_by_one=True)
        return Files(
            f"write-{place}",
            ChunkGrid(("value",), (len(values),), (1,)),
            reads=(reads,),
            work=work,
            within=place,
            scratch=4 * int(index.sizes.max(initial=0)) + _PYARROW,
            parameters={**said, "values": [str(value) for value in values]},
        )


def _largest(index: Index, runs: Sequence[range]) -> int:
    """Return the most bytes that a run of records has."""
    return max(int(index.sizes[list(run)].sum()) for run in runs)


def _cast(records: Iterable, schema: Schema) -> Iterator[Rows]:
    return (cast(rows_of(data), schema) for data in records)


def _part(number: int) -> str:
    return f"part-{number:05}.parquet"


def _row_bytes(schema: Schema) -> int:
    """Return the most bytes of a row, in binary or as text."""
    total = 0
    for column in schema.columns:
        width = 4 * int(column.dtype[1:] or 1) + 4 if column.is_text else _TEXT_BYTES
        total += width * int(np.prod(column.shape, dtype=np.int64))
    return total


# --- On every rank ----------------------------------------------------------------------------------------


def load(path: Path) -> tuple[Schema, Rows]:
    """Return the table that lies in a kept file."""
    with open(path, "rb") as file:
        blocks = iter(lambda: _block(file), b"")
        about = decode(np.frombuffer(next(blocks), np.uint8))
        schema = Schema.of_record(about["schema"])
        parts = [rows_of(np.frombuffer(block, np.uint8)) for block in blocks]
    if len(parts) != about["parts"]:
        raise BadInput(f"{path}: holds {len(parts)} of {about['parts']} parts of a table; remove it")
    return schema, joined(parts, schema)


def _block(file: Any) -> bytes:
    head = file.read(_LENGTH.size)
    return file.read(_LENGTH.unpack(head)[0]) if head else b""
