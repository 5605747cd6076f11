"""The public items: lazy, keyed records of arrays and facts, and what is made of them."""

from __future__ import annotations

import html
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from mpiimg.arrays import item_lists
from mpiimg.arrays.axes import AxesLike, checked_axes
from mpiimg.arrays.graph import Node, digest
from mpiimg.arrays.identity import identity
from mpiimg.arrays.items_graph import (
    FILTER,
    FLAT_MAP,
    MAP,
    REDUCE,
    Function,
    Grouped,
    ItemsNode,
    Kept,
    Listed,
    Slices,
    Step,
    kept,
    noted,
)
from mpiimg.engine.mpi import scripts
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.names import file_name
from mpiimg.errors import BadInput

#: What is done with a record that raises.
RAISE, LEAVE_OUT = "raise", "leave out"


def items(
    paths_or_records: Any,
    load: Callable | None = None,
    *,
    key: Callable | Sequence | None = None,
    on_error: str = RAISE,
    **keywords: Any,
) -> Items:
    """Return records, one for each file of a pattern, or for each member of a list. Collective.

    Parameters
    ----------
    paths_or_records : str, path, iterable or mapping
        A pattern such as "night/*.fits", whose files are listed on one rank, in the order of their names; or
        paths, or records, in the order they have; of a mapping its values, with its keys.
    load : callable, optional
        Called as load(path, **keywords), or load(record, **keywords), on the rank that works on it; returns
        the record.
    key : callable or sequence, optional
        Called as key(path) or key(record) for each, returns its key: int, str or a tuple of these; or all
        keys. By default the path of each as text, or its number where one is no path.
    on_error : {"raise", "leave out"}
        What is done with a record whose function raises, here and in all that is made of these items: it ends
        the run; or it is left out, and run.json and the exit status 3 say so.
    **keywords
        Of `load`; an Array arrives whole, as a NumPy array.

    Raises
    ------
    mpiimg.errors.BadInput
        There is no such file, or something cannot be an item.
    """
    if on_error not in (RAISE, LEAVE_OUT):
        raise BadInput(f"items: on_error = {on_error!r}: must be {RAISE!r} or {LEAVE_OUT!r}")
    if load is not None and not callable(load):
        raise BadInput(f"items: load = {load!r}: cannot be called; keys are given as key=")
    pattern = item_lists.is_pattern(paths_or_records)
    if isinstance(paths_or_records, Mapping):
        if key is not None:
            raise BadInput("items: of a mapping the keys are its own; give its values with key=, or no key")
        paths_or_records, key = list(paths_or_records.values()), list(paths_or_records)
    given = paths_or_records if pattern else item_lists.plain(item_lists.checked_values(paths_or_records))

    def look() -> Listed:
        values, origin = item_lists.listed(given, pattern)
        is_path = pattern or load is not None
        found = item_lists.items_of(values, item_lists.keys_of(values, key, is_path), is_path)
        return Listed(label="items", leave_out=on_error == LEAVE_OUT, items=found, origin=origin)

    with scripts.collective("items", digest(_said(given), on_error)) as comm:
        node: ItemsNode = on_root(comm, look)
    if load is None:
        if keywords:
            raise BadInput(f"items: {next(iter(keywords))}=: there is no load that takes it")
        return Items(node)
    return Items(_step(node, MAP, [(load, "load")], keywords))


def _said(given: Any) -> Any:
    """Return what tells what ranks were given from what others were."""
    if item_lists.is_pattern(given):
        return os.fspath(given)
    return [len(given), [os.fspath(one) for one in given if isinstance(one, str | os.PathLike)]]


class Items:
    """Lazy records, each with a key: nothing is read or worked on before `compute` or `write`.

    A record is what a function returned: arrays, numbers, text, None, and lists, tuples, named tuples, dicts
    and dataclasses of these, whose types are kept. Keys are int, str or tuples of these.

    They are made by :func:`mpiimg.items`, and by calls on other items.

    Parameters
    ----------
    node : ItemsNode
        Of the graph.
    """

    __slots__ = ("_items",)

    def __init__(self, node: ItemsNode):
        self._items = node

    # --- What is made of them -----------------------------------------------------------------------------

    def map(self, function: Callable, **keywords: Any) -> Items:
        """Return what a function makes of each record, under the same key.

        Parameters
        ----------
        function : callable
            Called as function(record, **keywords), and with `key` if it takes a parameter of this name;
            returns the new record. Of groups the record is the list of their members.
        **keywords
            An Array arrives whole, as a NumPy array.
        """
        return Items(_step(self._items, MAP, [(function, "map")], keywords))

    def filter(self, function: Callable, **keywords: Any) -> Items:
        """Return the records for which a function returns True.

        Parameters
        ----------
        function : callable
            Called as for :meth:`map`; returns True or False.
        **keywords
            As for :meth:`map`.
        """
        return Items(_step(self._items, FILTER, [(function, "filter")], keywords))

    def flat_map(self, function: Callable, **keywords: Any) -> Items:
        """Return any number of records for each one.

        Parameters
        ----------
        function : callable
            Called as for :meth:`map`; yields, or returns a list of, (key, record).
        **keywords
            As for :meth:`map`.
        """
        return Items(_step(self._items, FLAT_MAP, [(function, "flat_map")], keywords))

    def group_by_key(self) -> Groups:
        """Return the records of each key together, as a list in the order of the items.

        Groups come in the order of their keys, which must be of one type.
        """
        stored = kept(self._items)
        return Groups(Grouped(label=stored.label, leave_out=stored.leave_out, parent=stored))

    def reduce(self, init: Any, step: Callable, finish: Callable | None = None, **keywords: Any) -> Items:
        """Return what all records come to, as the only record, with one of them in hand at a time.

        It is made by one rank; for what can be reduced in parts, give records keys and reduce groups.

        Parameters
        ----------
        init, step, finish, **keywords
            As :meth:`Groups.reduce` has them.
        """
        stored = kept(self._items)
        together = Grouped(label=stored.label, leave_out=stored.leave_out, parent=stored, together=True)
        return _reduced(together, init, step, finish, keywords)

    # --- Where they go ------------------------------------------------------------------------------------

    def compute(self, root: int | None = None, memory: Any = None) -> list[Any] | None:
        """Run all that is needed; return the records as a list, in their order, on every rank. Collective.

        Parameters
        ----------
        root : int, optional
            The only rank that gets them; the others get None.
        memory : int or str, optional
            Bytes that each rank may use.
        """
        return self._computed(root, memory)

    def keyed(self, root: int | None = None, memory: Any = None) -> list[tuple[Any, Any]] | None:
        """Return (key, record) pairs, as :meth:`compute` does records; dict(x.keyed()) has one per key."""
        from mpiimg.arrays.items_results import computed

        return computed(kept(self._items), root, memory)

    def keys(self) -> list[Any]:
        """Return the keys of the records, in their order, on every rank; runs what is needed. Collective."""
        from mpiimg.arrays.items_results import keys

        return keys(kept(self._items))

    def write(self, path: Any, **options: Any) -> Any:
        """Refuse: say what is to be written of records, and how."""
        raise BadInput(
            f"x.write({os.fspath(path)!r}): records have no format of their own; use .table(...) for "
            "rows of a catalogue, .files(save) for files that a function writes, or .stack(axis) for an array"
        )

    def files(self, save: Callable, **keywords: Any) -> Any:
        """Return files that a function writes, for :func:`mpiimg.write`: {"patches/": x.files(save)}.

        Parameters
        ----------
        save : callable
            Called as save(folder, record, **keywords), and with `key` if it takes it; writes any files into
            the folder, under names that no other record's files have.
        **keywords
            As for :meth:`map`.
        """
        from mpiimg.arrays.items_results import FilesOf

        function, _ = _function(save, "files", keywords, ("folder", "record"))
        return FilesOf(kept(self._items), function)

    def table(
        self, columns: Any = None, units: Mapping[str, str] | None = None, partition_on: Any = None
    ) -> Any:
        """Return the table of the rows that records give, in the order of the records.

        A record may be a structured array, a dict of columns, a (rows, columns) array, a table, or None for
        no row.

        Parameters
        ----------
        columns : str, list of str, or mapping of str to dtype; optional
            Names of the columns, also as one string with blanks; by default those that the records name.
        units : mapping of str to unit, optional
        partition_on : str, optional
            The column whose values name the folders that the table is written to.
        """
        from mpiimg.arrays.tables import table_of

        return table_of(self._items, columns, units, partition_on)

    def stack(self, axis: str, axes: Any = None, *, shape: Any = None, dtype: Any = None) -> Any:
        """Return records that are arrays of one shape as an array, side by side along a new first axis.

        Parameters
        ----------
        axis : str
            Name of the new axis.
        axes : str or tuple of str, optional
            Names of the axes of a record; by default those of the array that the items are of, or y x, z y x.
        shape, dtype : optional
            Of a record; by default those of the first one, which is made to find out. Collective then.
        """
        from mpiimg.arrays.bridges import stack_items

        return stack_items(self, axis, axes, shape=shape, dtype=dtype)

    def persist(self) -> Items:
        """Return these records as ones that are made once, and kept for all runs of this program."""
        return type(self)(kept(self._items, persisted=True))

    # --- What they show of themselves ---------------------------------------------------------------------

    def __len__(self) -> int:
        count = count_of(self._items)
        if count is None:
            raise TypeError(
                "len() of items that are not made yet: a filter or a flat_map decides how many there are; "
                "use len(x.keys()) or len(x.compute())"
            )
        return count

    def __iter__(self):
        raise TypeError("items are lazy: go through x.compute(), or use x.map(function)")

    def __getitem__(self, number):
        raise TypeError("items are lazy: use x.compute()[...], or x.filter(...)")

    def __bool__(self) -> bool:
        raise TypeError("items are lazy: whether there are any is known by x.keys()")

    def __repr__(self) -> str:
        count = count_of(self._items)
        many = "any number of records" if count is None else f"{count} record{'s' * (count != 1)}"
        return f"<mpiimg.{type(self).__name__} of {many}: {' | '.join(_told(self._items))}>"

    def _repr_html_(self) -> str:
        count = count_of(self._items)
        rows = [("Records", "known when they are made" if count is None else str(count))]
        rows += [("Made by", " | ".join(_told(self._items)))]
        body = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<table><caption>mpiimg.{type(self).__name__}</caption>{body}</table>"

    def _computed(self, root: int | None, memory: Any) -> list[Any] | None:
        pairs = self.keyed(root, memory)
        return None if pairs is None else [record for _, record in pairs]

    def _planned(self) -> Any:
        from mpiimg.arrays.items_results import Collected

        return Collected(kept(self._items), None)

    def _as_result(self, file: str) -> Any:
        return self.write(file)


class Groups(Items):
    """Groups of records: each is a list of the records of a key, in the order of the items."""

    __slots__ = ()

    def reduce(self, init: Any, step: Callable, finish: Callable | None = None, **keywords: Any) -> Items:
        """Return what each group comes to, with one of its members in hand at a time.

        Parameters
        ----------
        init : callable
            Called as init(), and with `key` if it takes it; returns the state that a group begins with. Or a
            number, str or tuple of these.
        step : callable
            Called as step(state, record, **keywords) for each member, in the order of the items; returns the
            next state.
        finish : callable, optional
            Called as finish(state); returns the record. By default that is the last state.
        **keywords
            Of `step`, as for :meth:`map`.
        """
        grouped = cast(Grouped, self._items)
        return _reduced(grouped, init, step, finish, keywords)

    def group_by_key(self) -> Groups:
        """Refuse: they are groups already."""
        raise BadInput(
            "group_by_key: these are groups already; map them first, or flat_map them to other keys"
        )


def _reduced(groups: Grouped, init: Any, step: Callable, finish: Any, keywords: Mapping[str, Any]) -> Items:
    if not callable(init):
        if not isinstance(init, int | float | complex | str | tuple | bool):
            raise BadInput(
                f"reduce: init = {type(init).__name__}: give a function that makes the first state, "
                "such as lambda: np.zeros(3), since each group changes its own"
            )
        init = _Constant(init)
    given = [(init, "reduce init", {}, ()), (step, "reduce", keywords, ("state", "record"))]
    if finish is not None:
        given.append((finish, "reduce finish", {}, ("state",)))
    functions = tuple(_function(one, name, own, parameters)[0] for one, name, own, parameters in given)
    return Items(_with(groups, REDUCE, functions, _label(step)))


class _Constant:
    """Returns the same value each time it is called."""

    def __init__(self, value: Any):
        self.value = value

    def __call__(self) -> Any:
        return self.value


def items_along(array: Any, axes: AxesLike) -> Items:
    """Return the blocks of an array at each index along some axes, which they do not have.

    Their keys are the indices, in tuples where there are several axes.
    """
    from mpiimg.arrays.expressions import node_of

    node = node_of(array, "to_items")
    along = checked_axes(axes, node.axes, "to_items: axes")
    if not along:
        raise BadInput("to_items: name the axis along which the items are: x.to_items('t')")
    return Items(Slices(label=node.label, leave_out=False, array=node, along=along))


# --- Steps ------------------------------------------------------------------------------------------------


def _step(
    parent: ItemsNode, kind: str, given: Sequence[tuple[Any, str]], keywords: Mapping[str, Any]
) -> Step:
    ((call, name),) = given
    function, _ = _function(call, name, keywords, ("record",))
    return _with(parent, kind, (function,), _label(call))


def _with(parent: ItemsNode, kind: str, functions: tuple[Function, ...], label: str) -> Step:
    made = Step(label=label, leave_out=parent.leave_out, parent=parent, kind=kind, uses=functions)
    noted(parent, made)
    return made


def _function(
    call: Any, step: str, keywords: Mapping[str, Any], takes: Sequence[str]
) -> tuple[Function, str]:
    """Return a user's function with its keywords, once it is known that Python will call it so.

    Parameters
    ----------
    call : callable
    step : str
        Names the call in messages.
    keywords : mapping
    takes : sequence of str
        What it is given without a name.
    """
    if not callable(call):
        raise BadInput(f"{step}: takes a function, and not {type(call).__name__}")
    name = f"{step}({_called(call)})"
    given = {
        word: value._node
        for word, value in keywords.items()
        if isinstance(getattr(value, "_node", None), Node)
    }
    plain = {word: value for word, value in keywords.items() if word not in given}
    for word, value in plain.items():
        if hasattr(value, "_computed"):
            raise BadInput(
                f"{name}: {word} = {value!r} is lazy; give {word}.compute(), or what is needed of it"
            )
    takes_key = False
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        takes_key = "key" in signature.parameters and "key" not in keywords
        positional = signature.parameters.get("key")
        if positional is not None and positional.kind is inspect.Parameter.POSITIONAL_ONLY:
            takes_key = False
        try:
            signature.bind(*takes, **keywords, **({"key": None} if takes_key else {}))
        except TypeError as error:
            due = ", ".join((*takes, *(f"{word}=" for word in keywords), *(["key="] if takes_key else [])))
            raise BadInput(f"{name}: is called with ({due}), and takes {signature}: {error}") from None
    for word, node in given.items():
        _check_whole(name, word, node)
    return Function(call, identity(call, plain), name, plain, given, takes_key), name


def _check_whole(name: str, word: str, node: Node) -> None:
    import numpy as np

    from mpiimg.arrays.calls import MAX_WHOLE

    size = int(np.prod(node.shape, dtype=np.int64)) * (np.dtype(node.dtype).itemsize if node.dtype else 4)
    if size > MAX_WHOLE:
        raise BadInput(
            f"{name}: {word} = an array of {size >> 20} MB: what arrives whole on every rank has at most "
            f"{MAX_WHOLE >> 20} MB"
        )


def _called(call: Any) -> str:
    inner = call
    while hasattr(inner, "func") and not hasattr(inner, "__name__"):
        inner = inner.func
    return getattr(inner, "__name__", None) or type(inner).__name__


def _label(call: Any) -> str:
    return file_name(_called(call))[:40] or "function"


def count_of(node: ItemsNode) -> int | None:
    """Return how many records there are, None where that is known when they are made."""
    if isinstance(node, Listed):
        return len(node.items) if not node.leave_out else None
    if isinstance(node, Slices):
        return math.prod(node.array.sizes[axis] for axis in node.along)
    if isinstance(node, Kept):
        return count_of(node.parent)
    if isinstance(node, Step) and node.kind == MAP and not node.leave_out:
        return count_of(node.parent)
    return None


def _told(node: ItemsNode) -> list[str]:
    """Return in words what records are made by, the first first."""
    if isinstance(node, Listed):
        return [f"{len(node.items)} items"]
    if isinstance(node, Slices):
        return [f"{node.array.label} along {' '.join(node.along)}"]
    if isinstance(node, Grouped):
        return [*_told(node.parent), *(() if node.together else ("group_by_key",))]
    if isinstance(node, Step):
        return [*_told(node.parent), node.uses[-1 if node.kind != REDUCE else 1].name]
    return _told(cast(Kept, node).parent)
