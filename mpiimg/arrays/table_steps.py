"""What is done with the rows of a table one part at a time: columns chosen, rows filtered, columns added."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays.identity import identity
from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows, in_unit
from mpiimg.formats.tables.rows import as_rows

#: What an expression may call.
_FUNCTIONS = (
    *("abs", "ceil", "clip", "exp", "floor", "hypot", "isfinite", "isnan", "log", "log10", "log2", "maximum"),
    *(
        "minimum",
        "round",
        "sign",
        "sqrt",
        "where",
        "sin",
        "cos",
        "tan",
        "arcsin",
        "arccos",
        "arctan",
        "arctan2",
    ),
    *("deg2rad", "rad2deg"),
)

_OPERATORS: Mapping[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Not: np.logical_not,
}


@dataclass(frozen=True)
class Expression:
    """Columns in the words of Python: "flux > 5 and flags == 0".

    Parameters
    ----------
    text : str
    """

    text: str

    def __post_init__(self):
        self.tree()

    def tree(self) -> ast.expr:
        """Return its syntax tree.

        Raises
        ------
        BadInput
            It is no expression of columns, numbers and text.
        """
        try:
            tree = ast.parse(self.text.strip(), mode="eval").body
        except SyntaxError as error:
            raise BadInput(f"table: {self.text!r} is no expression: {error.msg}") from None
        for node in ast.walk(tree):
            self._check(node)
        return tree

    @property
    def columns(self) -> tuple[str, ...]:
        """The names in it."""
        nodes = list(ast.walk(self.tree()))
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        names = (node for node in nodes if isinstance(node, ast.Name) and id(node) not in called)
        return tuple(dict.fromkeys(node.id for node in names))

    def __call__(self, rows: Rows) -> Any:
        """Return its value for rows."""
        return self._value(self.tree(), rows)

    def _check(self, node: ast.AST) -> None:
        known = (
            *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Name, ast.Constant, ast.Call, ast.Tuple),
            *(ast.List, ast.And, ast.Or, ast.In, ast.NotIn, ast.Load, ast.operator, ast.unaryop, ast.cmpop),
        )
        wrong = not isinstance(node, known)
        if isinstance(node, ast.operator | ast.unaryop | ast.cmpop):
            wrong = type(node) not in _OPERATORS and not isinstance(node, ast.In | ast.NotIn)
        if isinstance(node, ast.Call):
            wrong = (
                not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or bool(node.keywords)
            )
        if wrong:
            raise BadInput(
                f"table: {self.text!r}: an expression has columns, numbers, text, comparisons, 'and', 'or', "
                f"'not', 'in' and {', '.join(_FUNCTIONS)}; give a function for all else"
            )

    def _value(self, node: ast.expr, rows: Rows) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return rows[node.id]
            case ast.Tuple() | ast.List():
                return [self._value(one, rows) for one in node.elts]
            case ast.Call():
                return getattr(np, node.func.id)(*(self._value(one, rows) for one in node.args))
            case ast.UnaryOp():
                return _OPERATORS[type(node.op)](self._value(node.operand, rows))
            case ast.BoolOp():
                join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                values = [self._value(one, rows) for one in node.values]
                return join.reduce(np.broadcast_arrays(*values)) if len(values) > 1 else values[0]
            case ast.BinOp():
                left, right = self._value(node.left, rows), self._value(node.right, rows)
                if isinstance(node.op, ast.BitAnd | ast.BitOr) and _mixes(left, right):
                    raise BadInput(
                        f"table: {self.text!r}: & and | bind more tightly than comparisons; "
                        "write 'and' and 'or'"
                    )
                return _OPERATORS[type(node.op)](left, right)
        return self._compared(node, rows)

    def _compared(self, node: ast.Compare, rows: Rows) -> Any:
        result: Any = True
        left = self._value(node.left, rows)
        for sign, other in zip(node.ops, node.comparators, strict=True):
            right = self._value(other, rows)
            if isinstance(sign, ast.In | ast.NotIn):
                one = np.isin(left, right, invert=isinstance(sign, ast.NotIn))
            else:
                one = _OPERATORS[type(sign)](left, right)
            result, left = np.logical_and(result, one), right
        return result


def _mixes(left: Any, right: Any) -> bool:
    """Say whether & or | stands between truth values and something else, or between floats."""
    kinds = {np.asarray(left).dtype.kind, np.asarray(right).dtype.kind}
    return kinds != {"b"} and not kinds <= set("iu")


def how_of(how: Any, call: str) -> Callable[[Rows], Any]:
    """Return what makes a column of rows: an expression, or a user's function.

    Raises
    ------
    BadInput
        It is neither.
    """
    if isinstance(how, str):
        return Expression(how)
    if callable(how):
        return OfColumns(how)
    raise BadInput(f"{call}: takes an expression such as 'flux > 5', or a function, not {type(how).__name__}")


@dataclass(frozen=True)
class OfColumns:
    """A function of columns: called with those that its parameters are named by, or with a dict of all.

    Parameters
    ----------
    function : callable
    """

    function: Callable

    def __call__(self, rows: Rows) -> Any:
        """Return what it makes of rows."""
        names = self._parameters()
        if names and all(name in rows.columns for name in names):
            return self.function(**{name: rows[name] for name in names})
        if len(names) > 1:
            missing = next(name for name in names if name not in rows.columns)
            raise BadInput(
                f"{self.name}: has a parameter {missing}, and the table no such column; "
                f"it has: {', '.join(rows.names)}"
            )
        return self.function(dict(rows.columns))

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def _parameters(self) -> tuple[str, ...]:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):
            return ()
        return tuple(p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)


# --- Steps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Select:
    """Some columns, in an order of the user's."""

    names: tuple[str, ...]

    def __call__(self, rows: Rows) -> Rows:
        return rows.selected(self.names)

    def described(self) -> tuple[Any, str]:
        """Return what it is as JSON has it, and what cannot be known of it."""
        return ["select", *self.names], ""


@dataclass(frozen=True)
class Rename:
    """Some columns under other names."""

    names: tuple[tuple[str, str], ...]

    def __call__(self, rows: Rows) -> Rows:
        new = dict(self.names)
        columns = {new.get(name, name): values for name, values in rows.columns.items()}
        return Rows(columns, {new.get(name, name): unit for name, unit in rows.units.items()})

    def described(self) -> tuple[Any, str]:
        """As of :class:`Select`."""
        return ["rename", *map(list, self.names)], ""


@dataclass(frozen=True)
class Filter:
    """The rows for which something is true."""

    how: Callable[[Rows], Any]

    def __call__(self, rows: Rows) -> Rows:
        if not len(rows):
            return rows
        mask = np.asarray(self.how(rows))
        if mask.dtype != bool or mask.shape not in ((len(rows),), ()):
            raise BadInput(
                f"filter: must come to one truth value per row ({len(rows)}), not {mask.dtype} of shape "
                f"{mask.shape}"
            )
        return rows.taken(np.broadcast_to(mask, len(rows)))

    def described(self) -> tuple[Any, str]:
        """As of :class:`Select`."""
        return _described("filter", self.how)


@dataclass(frozen=True)
class With:
    """One more column, or another in place of one."""

    name: str
    how: Callable[[Rows], Any]
    unit: str = ""

    def __call__(self, rows: Rows) -> Rows:
        values: Any = np.zeros(0) if not len(rows) else self.how(rows)
        if np.ndim(values) == 0:
            values = np.full(len(rows), values)
        made = as_rows({self.name: values}, where="with_column")
        if len(made) != len(rows):
            raise BadInput(f"with_column: {self.name} has {len(made)} values for {len(rows)} rows")
        made = in_unit(made, self.name, self.unit, "with_column")
        units = {**{n: u for n, u in rows.units.items() if n != self.name}, **made.units}
        return Rows({**rows.columns, self.name: made[self.name]}, units)

    def described(self) -> tuple[Any, str]:
        """As of :class:`Select`."""
        made, why = _described("with", self.how)
        return [*made, self.name, self.unit], why


def _described(kind: str, how: Callable) -> tuple[list, str]:
    if isinstance(how, Expression):
        return [kind, how.text], ""
    known = identity(how.function)
    return [kind, known.digest], "" if known.known else f"{how.name}: {known.why}"
