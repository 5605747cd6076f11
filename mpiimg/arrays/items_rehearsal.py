"""The rehearsal of items: their functions are called on the first one, and on what comes of it."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays.items_graph import REDUCE, Function, Grouped, ItemsNode, Listed, Slices, Step, chain
from mpiimg.arrays.items_stages import ItemCosts, kept_bytes
from mpiimg.arrays.items_work import records, settled
from mpiimg.engine.codec import decode
from mpiimg.engine.keys import Key
from mpiimg.engine.view import Cut

#: Records that are taken on to what is made of them; of others only the sizes count.
FEW = 16


@dataclass(frozen=True)
class Tried:
    """What the rehearsal has made of the first item.

    Parameters
    ----------
    records : tuple of (key, bytes)
        The first ones.
    whole : bool
        Whether they are what the run will make, as against groups of which only the first members are there.
    """

    records: tuple[tuple[Key, bytes], ...]
    whole: bool


def rehearse(rehearsal: Any, node: ItemsNode) -> None:
    """Make the records of a stored node from the first item, if there is one.

    What fails with a group of which most members are missing says nothing, nor does an item that may be left
    out. Then nothing is known of what comes after it.

    Raises
    ------
    Exception
        What a function raises, with an attribute `rehearsed`: the name of the call, and that of the record.
    """
    tried = rehearsal.__dict__.setdefault("tried_items", {})
    start, steps = chain(node)
    first = _first(rehearsal, start, tried, bool(steps) and steps[0].kind == REDUCE)
    if first is None:
        return
    key, value, name, whole = first
    try:
        given = _given(rehearsal, steps)
        tracemalloc.start()
        started = time.process_time()
        try:
            made, few = _made(steps, key, value, given, name)
            seconds = time.process_time() - started
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    except Exception as error:
        if node.leave_out or not whole:
            return
        error.rehearsed = (", ".join(step.uses[-1].name for step in steps) or node.label, name)
        raise
    shape, dtype = _described(few)
    rehearsal.costs[node.key] = ItemCosts(
        seconds=seconds, scratch=float(peak), made=tuple(made), shape=shape, dtype=dtype
    )
    tried[node.key] = Tried(tuple(few), whole)


def _described(few: list[tuple[Key, bytes]]) -> tuple[tuple[int, ...] | None, str]:
    """Return shape and type of the first record, where it is an array or a number."""
    value = decode(few[0][1]) if few else None
    if (
        isinstance(value, np.ndarray | np.generic | int | float | complex)
        and np.asarray(value).dtype.kind in "biufc"
    ):
        return np.shape(value), np.asarray(value).dtype.newbyteorder("=").str
    return None, ""


def _made(
    steps: list[Step], key: Key, value: Any, given: dict[Function, dict[str, Any]], name: str
) -> tuple[list[tuple[Key, int]], list[tuple[Key, bytes]]]:
    made, few = [], []
    for made_key, record in records(steps, key, value, given, name):
        pieces = kept_bytes(record, steps, name)
        made.append((made_key, sum(map(len, pieces))))
        if len(few) < FEW:
            few.append((made_key, b"".join(pieces)))
    return made, few


def _first(
    rehearsal: Any, start: ItemsNode, tried: dict[str, Tried], streamed: bool
) -> tuple[Key, Any, str, bool] | None:
    """Return key, value and name of the first that there is, and whether it is whole."""
    if isinstance(start, Listed):
        if not start.items:
            return None
        one = start.items[0]
        return one.key, settled(one.value, copy=True), one.name, True
    if isinstance(start, Slices):
        return _first_slice(rehearsal, start)
    before = tried.get(start.parent.key if isinstance(start, Grouped) else start.key)
    if before is None or not before.records:
        return None
    key = before.records[0][0]
    if not isinstance(start, Grouped):
        return key, decode(bytearray(before.records[0][1])), f"record {key!r} of {start.label}", before.whole
    key = 0 if start.together else key
    members = [decode(bytearray(data)) for one, data in before.records if start.together or one == key]
    return key, iter(members) if streamed else members, f"group {key!r} of {start.label}", False


def _first_slice(rehearsal: Any, start: Slices) -> tuple[Key, Any, str, bool] | None:
    node = start.array
    lengths = {axis: 1 if axis in start.along else length for axis, length in node.sizes.items()}
    if not all(lengths.values()) or not all(node.shape):
        return None
    (block,) = rehearsal.values([(node, {axis: Cut(None, (range(n),)) for axis, n in lengths.items()})])
    index = tuple(0 if axis in start.along else slice(None) for axis in node.axes)
    key: Key = (0,) * len(start.along) if len(start.along) > 1 else 0
    return key, np.array(block[index], order=node.order, copy=True), f"the first of {node.label}", True


def _given(rehearsal: Any, steps: list[Step]) -> dict[Function, dict[str, Any]]:
    """Return the arrays that arrive whole, of the values of samples."""
    given: dict[Function, dict[str, Any]] = {}
    for step in steps:
        for function in step.uses:
            for name, node in function.given.items():
                cuts = {axis: Cut.whole(length) for axis, length in node.sizes.items()}
                (values,) = rehearsal.values([(node, cuts)])
                given.setdefault(function, {})[name] = values
    return given
