"""From items to stages of records."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays.items_graph import (
    FLAT_MAP,
    REDUCE,
    Function,
    Grouped,
    ItemsNode,
    Listed,
    Slices,
    Step,
    chain,
    identity_of,
)
from mpiimg.arrays.items_work import records, settled
from mpiimg.arrays.lower import Costs, Lowering, Reads
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.codec import CannotKeep, decode, parts
from mpiimg.engine.containment import Units
from mpiimg.engine.keys import Key, check_comparable
from mpiimg.engine.needs import Chunk
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.stage import Records, Stages
from mpiimg.engine.view import Cut, grid_cut
from mpiimg.errors import BadInput

#: The axis of chunks that are items.
ITEM = "#item"

#: Records of one step, at most: each has a mark, and all ranks know of each.
MAX_RECORDS = 1_000_000

#: Times the bytes of an item's files that its work is taken to need, where no rehearsal says.
SCRATCH_OF_FILES = 8


@dataclass(frozen=True)
class ItemCosts(Costs):
    """What the rehearsal tells of a step of items.

    Parameters
    ----------
    seconds : float
        CPU time of one item.
    scratch : float
        Bytes that the work on it takes at once.
    made : tuple of (key, int)
        The records that it makes, and their bytes.
    shape, dtype
        Of the first of them, where it is an array or a number.
    """

    made: tuple[tuple[Key, int], ...] = ()
    shape: tuple[int, ...] | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Given:
    """What the chunks of a stage of items are given.

    Parameters
    ----------
    keys : sequence of key
        Of what each chunk is given.
    names : callable
        Called as names(number); returns what messages call it.
    depends : callable
        Called as depends(number); returns what it is known by beside what it reads.
    weights : tuple of int, optional
    need : RecordsOf, optional
        What it reads of records.
    value : callable
        Called as value(number, blocks); returns what the first function is given.
    nbytes : int
        The most bytes that files of one have.
    kind : str
    """

    keys: Sequence[Key]
    names: Callable[[int], str]
    depends: Callable[[int], Mapping[str, Any]]
    value: Callable[[int, Any], Any]
    need: RecordsOf | None = None
    weights: tuple[int, ...] | None = None
    nbytes: int = 0
    kind: str = "item"


def index_of(lowering: Lowering, node: ItemsNode) -> Index:
    """Return the index of the records of a stored node that is made."""
    return lowering.made[node.key]


def stages(lowering: Lowering, node: ItemsNode) -> Stages[None]:
    """Yield the stage that makes the records of a stored node."""
    start, steps = chain(node)
    if isinstance(start, Slices):
        units, grid, reads = _of_slices(lowering, start)
    else:
        units = _of_start(lowering, start, steps)
        grid = ChunkGrid((ITEM,), (len(units.keys),), (1,))
        reads = Reads(lowering, grid)
    if len(units.keys) > MAX_RECORDS:
        raise BadInput(
            f"{node.label}: {len(units.keys)} items, and at most {MAX_RECORDS} can be worked on one by one; "
            "put several into one item"
        )
    places = given_places(reads, [function for step in steps for function in step.uses])
    views = reads.needs()
    needs = (*([units.need] if units.need is not None else []), *views)

    def work(chunk: Chunk, *blocks):
        own = blocks[0] if units.need is not None else None
        values = reads.values(chunk.number, blocks[len(blocks) - len(views) :]) if views else []
        number = chunk.number
        value = units.value(number, values[0] if isinstance(start, Slices) else own)
        given: dict[Function, dict[str, Any]] = {}
        for function, name, place in places:
            given.setdefault(function, {})[name] = values[place]
        name = units.names(number)
        for key, made in records(steps, units.keys[number], value, given, name):
            yield key, kept_bytes(made, steps, name)

    name = unique_name(lowering, node)
    costs = lowering.costs.get(node.key)
    known = identity_of(steps).known
    index = yield Records(
        name,
        grid,
        reads=needs,
        work=work,
        depends=units.depends,
        parameters={"steps": [step.content for step in steps], **({} if known else {"run": lowering.nonce})},
        weights=units.weights,
        scratch=_scratch(units, costs),
        cost=None if costs is None else ("second", costs.seconds * len(units.keys)),
        units=Units(units.names, len(units.keys), units.kind, kept=True) if node.leave_out else None,
        expected=_expected(units, steps, costs),
    )
    lowering.made[node.key] = index


def unique_name(lowering: Lowering, node: ItemsNode) -> str:
    """Return what a stage is called: the same whatever items there are, and as no other of the run."""
    taken = lowering.made.setdefault("names of items", {})
    name = node.name
    if taken.setdefault(name, node.key) != node.key:
        name = f"{node.label}-{node.key[:12]}"
        taken[name] = node.key
    return name


def kept_bytes(made: Any, steps: Sequence[Step], name: str) -> list:
    """Return a record as bytes, in pieces.

    Raises
    ------
    BadInput
        There is something in it that cannot be kept; the message names function, record and place.
    """
    try:
        return parts(made)
    except CannotKeep as error:
        by = f"{steps[-1].uses[-1].name} of " if steps else ""
        raise BadInput(f"{by}{name}: {error}") from None


def given_places(reads: Reads, functions: Sequence[Function]) -> list[tuple[Function, str, int]]:
    """Add the arrays that arrive whole; return of each its function, keyword and place among the values."""
    places = []
    for function in functions:
        for name, node in function.given.items():
            place = reads.add(node, {axis: Cut.whole(length) for axis, length in node.sizes.items()})
            places.append((function, name, place))
    return places


# --- Where records come from ------------------------------------------------------------------------------


def _of_start(lowering: Lowering, start: ItemsNode, steps: Sequence[Step]) -> Given:
    if isinstance(start, Listed):
        return _of_list(start)
    if isinstance(start, Grouped):
        return _of_groups(index_of(lowering, start.parent), start, bool(steps) and steps[0].kind == REDUCE)
    return _of_records(index_of(lowering, start), start)


def _of_list(start: Listed) -> Given:
    items = start.items
    sizes = tuple(one.nbytes for one in items)
    return Given(
        keys=[one.key for one in items],
        names=lambda number: items[number].name,
        depends=lambda number: {"key": items[number].key, "item": items[number].identity},
        value=lambda number, block: settled(items[number].value, copy=True),
        weights=tuple(size + 1 for size in sizes) if any(sizes) else None,
        nbytes=max(sizes, default=0),
    )


def _of_slices(lowering: Lowering, start: Slices) -> tuple[Given, ChunkGrid, Reads]:
    node, along = start.array, start.along
    lengths = tuple(node.sizes[axis] for axis in along)
    grid = ChunkGrid(along, lengths, (1,) * len(along))
    reads = Reads(lowering, grid)
    reads.add(
        node,
        {axis: grid_cut(grid, axis) if axis in along else Cut.whole(n) for axis, n in node.sizes.items()},
    )
    index = tuple(0 if axis in along else slice(None) for axis in node.axes)
    places = list(itertools.product(*map(range, lengths)))
    keys: list[Key] = [place if len(along) > 1 else place[0] for place in places]

    def name(number: int) -> str:
        place = ", ".join(f"{axis} = {at}" for axis, at in zip(along, places[number], strict=True))
        return f"{node.label} at {place}"

    units = Given(
        keys=keys,
        names=name,
        depends=lambda number: {"key": keys[number]},
        value=lambda number, block: np.array(block[index], order=node.order, copy=True),
    )
    return units, grid, reads


def _of_records(index: Index, start: ItemsNode) -> Given:
    return Given(
        keys=index.keys,
        names=lambda number: f"record {index.keys[number]!r} of {start.label}",
        depends=lambda number: {"key": index.keys[number]},
        value=lambda number, blocks: decode(blocks[0]),
        need=RecordsOf(index.array, lambda chunk: (chunk.number,)),
        weights=_weights(index.sizes),
    )


def _of_groups(index: Index, start: Grouped, streamed: bool) -> Given:
    groups = grouped(index, start.label) if not start.together else {0: list(range(len(index)))}
    groups = {key: members for key, members in groups.items() if members}
    keys, members = list(groups), list(groups.values())
    sizes = np.array([index.sizes[numbers].sum() for numbers in members], np.int64)

    def value(number: int, blocks):
        return map(decode, blocks) if streamed else [decode(block) for block in blocks]

    return Given(
        keys=keys,
        names=lambda number: f"group {keys[number]!r} of {start.label}",
        depends=lambda number: {"key": keys[number]},
        value=value,
        need=RecordsOf(index.array, lambda chunk: members[chunk.number], one_by_one=streamed),
        weights=_weights(sizes),
        kind="group",
    )


def grouped(index: Index, call: str) -> dict[Key, list[int]]:
    """Return the numbers of the records of each key, in the order of keys.

    Raises
    ------
    BadInput
        Keys are of different types; two are named.
    """
    check_comparable(index.keys, f"{call}.group_by_key")
    groups: dict[Key, list[int]] = {}
    for number, key in enumerate(index.keys):
        groups.setdefault(key, []).append(number)
    return {key: groups[key] for key in sorted(groups)}


def _weights(sizes: np.ndarray) -> tuple[int, ...] | None:
    return tuple((sizes + 1).tolist()) if len(sizes) else None


# --- What plans reckon with -------------------------------------------------------------------------------


def _scratch(units: Given, costs: ItemCosts | None) -> int | None:
    if costs is not None and costs.scratch is not None:
        return int(costs.scratch)
    return SCRATCH_OF_FILES * units.nbytes if units.need is None and units.nbytes else None


def _expected(units: Given, steps: Sequence[Step], costs: ItemCosts | None) -> Index:
    """Return the index that a plan reckons with: each item makes what the first one did in the rehearsal.

    Without a rehearsal each makes one record, of no bytes.
    """
    flat = any(step.kind == FLAT_MAP for step in steps)
    made: list[tuple[int, Key, int, Any]] = []
    for number, key in enumerate(units.keys):
        if costs is None:
            made.append((number, key, 0, None))
        else:
            made += [(number, own if flat else key, size, None) for own, size in costs.made]
    return Index.of("", made, {})
