"""Lazy tables: columns with units, in parts that no rank holds all of; joined, grouped, read and written."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mpiimg.arrays.graph import digest
from mpiimg.arrays.table_joins import Grouped, Joined
from mpiimg.arrays.table_nodes import FromRecords, FromTableFile, RowsOf, TableNode, stepped
from mpiimg.arrays.table_ops import OPERATIONS, Aggregation, Join
from mpiimg.arrays.table_results import KEPT, TableResult
from mpiimg.arrays.table_steps import Expression, Filter, Rename, Select, With, how_of
from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Column, Rows, Schema, type_name


class Table:
    """A lazy table: nothing is worked on before `write` or `compute`. All ranks make the same ones.

    Made by :func:`read_table` and by `items.table()`. Rows are in the order of items, then as their records
    give them.
    """

    def __init__(self, node: TableNode, columns: Sequence[Column] | None):
        self._columns = None if columns is None else tuple(columns)
        self._table = dataclasses.replace(node, expected=Schema(self._columns or ()))

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the columns; None where only the records say."""
        return None if self._columns is None else tuple(column.name for column in self._columns)

    # --- Rows and columns ---------------------------------------------------------------------------------

    def select(self, *columns: str) -> Table:
        """Return some columns, in this order: t.select("x", "y") or t.select("x y")."""
        names = _names(columns, "select")
        _refuse_twice(names, "select")
        return self._stepped(Select(names), self._known(names, "select"))

    def rename(self, **names: str) -> Table:
        """Return it with other names of columns: t.rename(x="x_image") calls x x_image."""
        self._known(tuple(names), "rename")
        new = None
        if self._columns is not None:
            new = tuple(dataclasses.replace(one, name=names.get(one.name, one.name)) for one in self._columns)
            _refuse_twice([column.name for column in new], "rename")
        made = self._stepped(Rename(tuple(names.items())), new)
        column = made._table.partition_on
        return made if column is None else made.partition_on(names.get(column, column))

    def filter(self, how: str | Callable) -> Table:
        """Return the rows for which something is true.

        Parameters
        ----------
        how : str or callable
            "flux > 5 and flags == 0"; or a function, called with the columns that its parameters are named
            by (or with a dict of all columns), that returns one truth value per row.
        """
        made = how_of(how, "filter")
        self._check(made, "filter")
        return self._stepped(Filter(made), self._columns)

    def with_column(self, name: str, how: str | Callable, unit: Any = "") -> Table:
        """Return it with one more column, or another one in place of one.

        Parameters
        ----------
        name : str
        how : str or callable
            "-2.5 * log10(flux)"; or a function as for :meth:`filter`, that returns one value per row.
        unit : str or astropy unit
        """
        if not isinstance(name, str) or not name:
            raise BadInput(f"with_column: {name!r} is no name of a column")
        made, text = how_of(how, "with_column"), _unit(unit, name)
        self._check(made, "with_column")
        columns = None
        if self._columns is not None:
            new = Column(name, "", text)
            there = any(one.name == name for one in self._columns)
            columns = [new if one.name == name else one for one in self._columns] + [new] * (not there)
        return self._stepped(With(name, made, text), columns)

    def partition_on(self, column: str) -> Table:
        """Return it to be written as Parquet files in a folder for each value of a column."""
        self._known(_names((column,), "partition_on"), "partition_on")
        return Table(dataclasses.replace(self._table, partition_on=column), self._columns)

    # --- Tables -------------------------------------------------------------------------------------------

    def join(
        self,
        other: Table,
        on: str | Sequence[str],
        how: str = "inner",
        suffix: str = "_right",
        fill: Mapping[str, Any] | None = None,
    ) -> Table:
        """Return rows of this table with those of another that have the same keys.

        Parameters
        ----------
        other : Table
        on : str or sequence of str
            The columns that are equal. NaN equals nothing.
        how : {"inner", "left"}
            Rows of this table without a partner are left out, or stay.
        suffix : str
            Added to names of the other table that this one has too.
        fill : mapping, optional
            By column of the other table, what stands for a missing partner: by default NaN in floats and ""
            in text; integers and truth values have none.

        Returns
        -------
        Table
            In the order of this table's rows, then of the other's.
        """
        if not isinstance(other, Table):
            raise BadInput(f"join: takes a table, not {type(other).__name__}")
        if how not in ("inner", "left"):
            raise BadInput(f"join: how={how!r}: there are 'inner' and 'left'")
        join = Join(_names((on,), "join"), how, suffix, tuple((fill or {}).items()))
        columns = None
        if self._columns is not None and other._columns is not None:
            names = join.renamed([c.name for c in self._columns], [c.name for c in other._columns])
            more = [dataclasses.replace(c, name=names[c.name]) for c in other._columns if c.name in names]
            columns = (*self._columns, *more)
        node = Joined(
            left=self._table,
            right=other._table,
            join=join,
            label="join",
            partition_on=self._table.partition_on,
        )
        return Table(node, columns)

    def group(self, *by: str) -> Groups:
        """Return groups of rows with equal keys, to be aggregated: t.group("night").agg(flux="mean")."""
        names = _names(by, "group")
        _refuse_twice(names, "group")
        self._known(names, "group")
        return Groups(self, names)

    # --- Results ------------------------------------------------------------------------------------------

    def compute(self, root: int | None = None, memory: Any = None) -> Any:
        """Return an astropy Table: the same on every rank, or on `root` alone. Collective."""
        from mpiimg.arrays.session import compute

        return compute(self, root=root, memory=memory)

    def write(self, path: Any, **options: Any) -> Any:
        """Write it by its ending: .parquet, .fits, .ecsv, .csv, or a folder/ of Parquet. Collective."""
        from mpiimg.arrays.session import write

        text = str(path)
        folder, _, name = text.rstrip("/").rpartition("/")
        slash = "/" if text.endswith("/") else ""
        return write({f"{name}{slash}": self}, folder or ("/" if text.startswith("/") else "."), **options)

    def _as_result(self, file: str) -> TableResult:
        result = TableResult(self._table, KEPT if file == "plan" else file)
        result.check(None)
        return result

    def _computed(self, root: int | None, memory: Any) -> Any:
        from mpiimg.arrays import table_compute

        found = table_compute.computed(self._table, root, memory)
        return None if found is None else as_astropy(*found)

    # --- What it is ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        raise TypeError("how many rows a table has is known when it is made: call compute(), then len()")

    def __bool__(self) -> bool:
        raise TypeError("a table is lazy, and neither true nor false; call compute()")

    def __iter__(self):
        raise TypeError("a table is lazy: call compute(), or use filter and with_column")

    def __getitem__(self, name: Any) -> NoReturn:
        raise TypeError(f"a table is lazy: t.select({name!r}), t.filter(...), or t.compute()[{name!r}]")

    def __repr__(self) -> str:
        if self._columns is None:
            return "<mpiimg.Table: columns as the records have them>"
        return f"<mpiimg.Table: {', '.join(map(_said, self._columns))}>"

    def _repr_html_(self) -> str:
        if self._columns is None:
            return html.escape(repr(self))
        cells = [[column.name, _kind(column), column.unit] for column in self._columns]
        rows = zip(("column", "type", "unit"), *cells, strict=True)
        body = "".join(
            f"<tr><th>{html.escape(head)}</th>{''.join(f'<td>{html.escape(one)}</td>' for one in rest)}</tr>"
            for head, *rest in rows
        )
        return f"<table><caption>mpiimg.Table, lazy</caption>{body}</table>"

    # --- Graph --------------------------------------------------------------------------------------------

    def _stepped(self, step: Any, columns: Sequence[Column] | None) -> Table:
        return Table(stepped(self._table, step), columns)

    def _known(self, names: Sequence[str], call: str) -> tuple[Column, ...] | None:
        if self._columns is None:
            return None
        schema = Schema(self._columns)
        return tuple(schema.columns[schema.index(name, call)] for name in names)

    def _check(self, how: Any, call: str) -> None:
        if isinstance(how, Expression):
            self._known(how.columns, call)


class Groups:
    """Rows with equal keys."""

    def __init__(self, table: Table, by: tuple[str, ...]):
        self._table, self._by = table, by

    def agg(self, *count: str, **columns: str | tuple[str, str]) -> Table:
        """Return one row per group, in the order of the keys.

        Parameters
        ----------
        *count : str
            "count", for a column of that name with the number of rows.
        **columns : str or (str, str)
            flux="mean" brings the column flux to its mean; bright=("flux", "max") calls the result bright.
            There are mean, sum, min, max, count, std, first and last. Sums are float64 in the order of rows,
            of integers int64; std divides by the number of rows; NaN stays NaN.
        """
        if any(one != "count" for one in count):
            raise BadInput(f"agg: {count[0]!r}: write agg(flux='mean') or agg(bright=('flux', 'max'))")
        found = [("count", self._by[0], "count") for _ in count[:1]]
        for name, how in columns.items():
            column, operation = (name, how) if isinstance(how, str) else _pair(name, how)
            if operation not in OPERATIONS:
                raise BadInput(f"agg: {name}={how!r}: there are {', '.join(OPERATIONS)}")
            found.append((name, column, operation))
        if not found:
            raise BadInput("agg: names no column: write agg(flux='mean') or agg('count')")
        _refuse_twice([*self._by, *(name for name, _, _ in found)], "agg")
        sources = self._table._known([*self._by, *(column for _, column, _ in found)], "agg")
        made = None
        if sources is not None:
            made = [*sources[: len(self._by)]]
            for (name, _, operation), source in zip(found, sources[len(self._by) :], strict=True):
                made.append(_aggregated(name, operation, source))
        aggregation = Aggregation(self._by, tuple(found))
        return Table(Grouped(parent=self._table._table, aggregation=aggregation, label="groups"), made)

    def __repr__(self) -> str:
        return f"<mpiimg.Groups by {', '.join(self._by)}: call agg(flux='mean')>"


def _pair(name: str, how: Any) -> tuple[str, str]:
    if isinstance(how, tuple | list) and len(how) == 2 and all(isinstance(one, str) for one in how):
        return how[0], how[1]
    raise BadInput(f"agg: {name}={how!r}: write {name}='mean', or {name}=('flux', 'mean')")


def _aggregated(name: str, operation: str, source: Column) -> Column:
    if operation == "count":
        return Column(name, "i8")
    if operation in ("first", "last", "min", "max"):
        return dataclasses.replace(source, name=name)
    if source.is_text:
        raise BadInput(f"agg: column {source.name} is text, and has no {operation}")
    kind = np.dtype(source.dtype or "f8").kind if source.dtype else ""
    whole = {"b": "i8", "i": "i8", "u": "u8"}.get(kind) if operation == "sum" else None
    dtype = "" if not kind else whole or ("c16" if kind == "c" and operation != "std" else "f8")
    return dataclasses.replace(source, name=name, dtype=dtype)


def as_astropy(schema: Schema, rows: Rows) -> Any:
    """Return an astropy Table with units."""
    from mpiimg.formats.tables.text import as_table

    return as_table(rows, schema)


# --- Where tables come from -------------------------------------------------------------------------------


def read_table(path: Any) -> Table:
    """Return a table that lies in a file: .parquet (or a folder of them), .fits, .ecsv or .csv. Collective.

    Parquet is read by row groups and FITS by runs of rows, by any rank; text by one rank.

    Raises
    ------
    BadInput
        It is not there, or no table.
    """
    from mpiimg.engine.mpi import scripts
    from mpiimg.engine.mpi.agreement import on_root

    place = Path(path)
    with scripts.collective("read_table", digest(str(place))) as comm:
        found, schema = on_root(comm, lambda: _looked_at(place))
    node = FromTableFile(pieces=tuple(found), label="table")
    return Table(node, Schema.of_record(schema).columns)


def _looked_at(path: Path) -> tuple[list, list]:
    from mpiimg.formats.tables import files

    found = files.pieces(path)
    return found, files.schema_of(path).to_record()


def table_of(items: Any, columns: Any = None, units: Any = None, partition_on: str | None = None) -> Table:
    """Return the table of the rows that records give: what `items.table()` calls.

    Parameters
    ----------
    items : node
        Of the records.
    columns : str, list of str, or mapping of str to dtype; optional
        Names, also as one string with blanks; by default those that the records name.
    units : mapping of str to unit, optional
    partition_on : str, optional
        The column whose values name the folders that the table is written to.

    Raises
    ------
    BadInput
        Names, types or units make no sense.
    """
    types = dict(columns) if isinstance(columns, Mapping) else {}
    names = tuple(types) if types else (() if columns is None else _names((columns,), "table"))
    _refuse_twice(names, "table")
    given = dict(units or {})
    for name in (*given, *([partition_on] if partition_on is not None else [])):
        if names and name not in names:
            raise BadInput(f"table: has no column {name}; it has: {', '.join(names)}")
    declared = tuple(
        Column(name, _dtype(types.get(name), name), _unit(given.get(name, ""), name))
        for name in names or given
    )
    from mpiimg.arrays import items as of_items
    from mpiimg.arrays.items_graph import MAP, kept

    # In the step of the user's function: what it returns may be of a kind that records cannot hold.
    rows = of_items._step(items, MAP, [(RowsOf(names, Schema(declared)), "table")], {})
    node = FromRecords(
        parent=kept(rows), names=names, declared=Schema(declared), partition_on=partition_on, label="table"
    )
    return Table(node, declared if names else None)


def _names(columns: Sequence[Any], call: str) -> tuple[str, ...]:
    """Return names of columns: each argument is one, several between blanks, or a list of them."""
    names: list[str] = []
    for one in columns:
        if isinstance(one, str):
            names += one.split()
        elif isinstance(one, list | tuple) and all(isinstance(name, str) for name in one):
            names += one
        else:
            raise BadInput(f"{call}: {one!r} is no name of a column; write 'x y flux', or a list of names")
    if not names:
        raise BadInput(f"{call}: names no column")
    return tuple(names)


def _refuse_twice(names: Sequence[str], call: str) -> None:
    twice = [name for n, name in enumerate(names) if name in names[:n]]
    if twice:
        raise BadInput(f"{call}: two columns are called {twice[0]}")


def _dtype(dtype: Any, name: str) -> str:
    if dtype is None:
        return ""
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
        raise BadInput(f"table: column {name}: {dtype!r} is no type of NumPy; e.g. 'float32'") from None
    if kind.kind in "US":
        return f"U{kind.itemsize // (4 if kind.kind == 'U' else 1)}" if kind.itemsize else "U"
    if kind.kind not in "biufc" or kind.subdtype is not None:
        raise BadInput(f"table: column {name}: of type {kind}; tables hold numbers, truth values and text")
    return type_name(kind)


def _unit(unit: Any, name: str) -> str:
    """Return a unit as astropy writes it; what astropy does not know stays as it is given, if it is text."""
    text = "" if unit is None else str(unit)
    if not isinstance(unit, str) and not hasattr(unit, "to_string") and unit is not None:
        raise BadInput(f"table: column {name}: unit {unit!r}: give text such as 'mag', or an astropy unit")
    return text.strip()


def _kind(column: Column) -> str:
    if not column.dtype:
        return ""
    return str(dataclasses.replace(column, unit="", name="")).strip()


def _said(column: Column) -> str:
    return " ".join(filter(None, (column.name, _kind(column), f"[{column.unit}]" if column.unit else "")))
