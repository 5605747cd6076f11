"""Tables as Parquet: one file, or a folder of files that Arrow, pandas and others read as one table."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows, Schema

#: What follows from the content alone, and readers of ten years know.
_OPTIONS = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "zstd",
    "compression_level": 3,
}


def libraries(what: str | Path) -> tuple[Any, Any]:
    """Return pyarrow and its parquet module.

    Raises
    ------
    BadInput
        It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadInput(f"{what}: needs the package pyarrow: pip install 'mpiimg[parquet]'") from None
    return pyarrow, pyarrow.parquet


def check(schema: Schema) -> None:
    """Refuse columns that the format does not have.

    Raises
    ------
    BadInput
    """
    for column in schema.columns:
        if column.dtype.startswith("c"):
            raise BadInput(
                f"table: column {column.name}: Parquet has no complex numbers; write .fits or .ecsv"
            )


def encode(schema: Schema, rows: Rows) -> bytes:
    """Return a whole file with some rows: one of a folder."""
    out = io.BytesIO()
    write(out, schema, [rows])
    return out.getvalue()


def write(file: Any, schema: Schema, parts: Iterable[Rows]) -> None:
    """Write a file in which each part is a row group; of the parts one is in hand at a time."""
    arrow, parquet = libraries("Parquet")
    arrow_schema = _schema(schema)
    with parquet.ParquetWriter(file, arrow_schema, **_OPTIONS) as writer:
        for rows in parts:
            columns = [_array(rows[one.name], one.shape) for one in schema.columns]
            writer.write_table(arrow.Table.from_arrays(columns, schema=arrow_schema), row_group_size=1 << 20)


def folder_of(column: str, value: Any) -> str:
    """Return the name of the folder of the rows in which a column has a value, as Hive names them."""
    text = str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
    return f"{quote(column, safe='')}={quote(text, safe='') or '__HIVE_DEFAULT_PARTITION__'}"


def _schema(schema: Schema) -> Any:
    """Return the columns as Arrow has them, with units where Arrow's readers look, and where astropy does."""
    from astropy.table.meta import get_yaml_from_table

    from mpiimg.formats.tables.text import as_table

    arrow, _ = libraries("Parquet")
    fields, about = [], {}
    for column in schema.columns:
        kind = arrow.string() if column.is_text else arrow.from_numpy_dtype(np.dtype(column.dtype))
        for count in reversed(column.shape):
            kind = arrow.list_(kind, count)
        fields.append(arrow.field(column.name, kind, nullable=False, metadata={"unit": column.unit}))
        if column.is_text:
            about[f"table::len::{column.name}"] = column.dtype[1:] or "1"
    about["table_meta_yaml"] = "\n".join(get_yaml_from_table(as_table(schema.empty(), schema)))
    return arrow.schema(fields, metadata=about)


def _array(values: np.ndarray, shape: tuple[int, ...]) -> Any:
    arrow, _ = libraries("Parquet")
    flat = np.ascontiguousarray(values).reshape(-1)
    made = arrow.array(flat)
    for count in reversed(shape):
        made = arrow.FixedSizeListArray.from_arrays(made, count)
    return made


# --- Reading ----------------------------------------------------------------------------------------------


def groups(path: Path) -> list[tuple[str, int, int]]:
    """Return the row groups of a file, or of the files in a folder: file, number, rows."""
    libraries(path)
    found = []
    for fragment in sorted(_dataset(path).get_fragments(), key=lambda one: one.path):
        found += [(fragment.path, one.id, one.num_rows) for one in fragment.row_groups]
    return found


def read(path: Path, file: str | None = None, group: int | None = None, stamp: str = "") -> Rows:
    """Return the rows of a row group, or of all; `stamp` is another one where files have changed."""
    dataset, fragments = _opened(str(path), stamp)
    if file is None:
        return _rows(dataset.to_table(), path)
    fragment = fragments[file]
    return _rows(fragment.subset(row_group_ids=[group]).to_table(schema=dataset.schema), path)


def schema_of(path: Path) -> Schema:
    """Return the columns of a file, or of the files in a folder."""
    return _rows(_dataset(path).schema.empty_table(), path).schema


@functools.lru_cache(maxsize=2)
def _opened(path: str, stamp: str) -> tuple[Any, dict[str, Any]]:
    """Return a table and its files by their names: of thousands, each is not looked for anew."""
    dataset = _dataset(Path(path))
    return dataset, {fragment.path: fragment for fragment in dataset.get_fragments()}


def _dataset(path: Path) -> Any:
    libraries(path)
    from pyarrow import dataset

    return dataset.dataset(str(path), format="parquet", partitioning="hive")


def _rows(table: Any, path: Path) -> Rows:
    from mpiimg.formats.tables.rows import as_rows

    columns, units = {}, {}
    for field in table.schema:
        columns[field.name] = _values(
            table.column(field.name).combine_chunks(), f"{path}: column {field.name}"
        )
        unit = (field.metadata or {}).get(b"unit", b"").decode()
        if unit:
            units[field.name] = unit
    rows = as_rows(columns, where=str(path))
    return Rows(rows.columns, units)


def _values(column: Any, what: str) -> np.ndarray:
    arrow, _ = libraries("Parquet")
    types = arrow.types
    if isinstance(column, arrow.ChunkedArray):
        column = arrow.concat_arrays(column.chunks) if column.num_chunks else arrow.array([], column.type)
    kind, shape = column.type, [len(column)]
    if types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if types.is_decimal(kind):
        column, kind = column.cast(arrow.float64()), arrow.float64()
    while types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        column, kind = column.flatten(), kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        column = column.fill_null("") if column.null_count else column
        values = np.array(column.to_pylist(), "U")
    elif any(is_one(kind) for is_one in (types.is_integer, types.is_floating, types.is_boolean)):
        if column.null_count and not types.is_floating(column.type):
            raise BadInput(f"{what}: {column.null_count} values are missing; fill them, or make it float64")
        values = column.to_numpy(zero_copy_only=False)
    else:
        raise BadInput(f"{what}: is of type {kind}; tables hold numbers, bool, text, and vectors of these")
    return values.reshape(shape) if math.prod(shape) == values.size else values
