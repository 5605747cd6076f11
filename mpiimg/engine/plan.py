"""What a run will do: which rank owns which chunks, where arrays lie, and what that costs.

A plan is a pure function of shapes, stages, ranks, nodes and memory. The chunks belong to the data: a plan
may group them and place them, but never cut them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from mpiimg.engine import forecast
from mpiimg.engine.blocks import Placement
from mpiimg.engine.boxes import Partition
from mpiimg.engine.exchanges import forecast_exchange, gather_rounds
from mpiimg.engine.forecast import StageSizes
from mpiimg.engine.rates import DEFAULTS, Rates
from mpiimg.engine.recipe import BASELINE, Recipe
from mpiimg.engine.record_index import RecordTable
from mpiimg.engine.stage import Records, Sink, Stage
from mpiimg.errors import BadInput

#: Most bytes that one rank gathers from others at a time.
IN_FLIGHT = 64 << 20

#: Share of the memory beside the baseline that may be in flight.
IN_FLIGHT_SHARE = 8


@dataclass(frozen=True)
class Resources:
    """What a run has to work with.

    Parameters
    ----------
    ranks : int
    memory : int
        Bytes per rank.
    in_memory : bool
        Nothing may be staged on disk.
    nodes : int
        The nodes that the ranks are spread over, consecutive ranks together.
    rates : mapping of str to float
        CPU-seconds per unit of work, for predictions of time alone; :meth:`of` adds those of a recipe.
    baseline : int
        Bytes of a rank before it holds any data; :meth:`of` takes those of a recipe.
    """

    ranks: int
    memory: int
    in_memory: bool = False
    nodes: int = 1
    rates: Rates = field(default_factory=lambda: DEFAULTS, repr=False, compare=False)
    baseline: int = BASELINE

    def of(self, recipe: Recipe) -> Resources:
        """Return the same for ranks that load what `recipe` needs, with the rates of its stages."""
        return dataclasses.replace(self, baseline=recipe.baseline, rates={**recipe.rates, **self.rates})

    @property
    def in_flight(self) -> int:
        """Bytes that a rank gathers from others at a time."""
        return min(IN_FLIGHT, max(0, self.memory - self.baseline) // IN_FLIGHT_SHARE)


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage.

    Parameters
    ----------
    stage, kind : str
        Name and kind of the stage.
    partition : Partition
        Of its chunks over the ranks.
    batch : int
        Chunks that a rank gathers inputs for, or writes, at once.
    in_flight : int
        Where the chunks of a rank read fewer bytes than this, they gather their inputs all at once.
    placements : tuple of Placement
        Of the arrays that the stage writes.
    expected : tuple of Placement
        Of the records that it makes, as far as anybody can say; where they lie is known when they are there.
    spilled : tuple of str
        Earlier arrays that leave memory to make room: from here on they are read from their files.
    peak : int
        Bytes that a rank needs at most while the stage runs, arrays of other stages included.
    read, written : int
        Bytes from and to files, of all ranks.
    moved, between_nodes : int
        Bytes that ranks send each other, and those of them that leave a node.
    messages : int
        How many messages they take.
    moved_per_rank, messages_per_rank : int
        Bytes and messages of the rank that sends most.
    cpu_seconds : float
        Of all ranks.
    seconds : float
        On the rank that takes longest.
    """

    stage: str
    kind: str
    partition: Partition
    batch: int
    in_flight: int
    placements: tuple[Placement, ...]
    expected: tuple[Placement, ...]
    spilled: tuple[str, ...]
    peak: int
    read: int
    written: int
    moved: int
    between_nodes: int
    messages: int
    moved_per_rank: int
    messages_per_rank: int
    cpu_seconds: float
    seconds: float

    @property
    def chunks(self) -> int:
        """Number of chunks of the stage."""
        return self.partition.cuts[-1]

    def rounds(
        self, stage: Stage, placed: Mapping[str, Placement], todo: Sequence[int]
    ) -> list[list[list[int]]]:
        """Return, round by round, the chunks of `todo` that each rank gathers inputs for."""
        return gather_rounds(stage, self.partition, self.batch, self.in_flight, placed, list(todo))


def plan_stage(
    stage: Stage,
    sizes: StageSizes,
    resources: Resources,
    placed: Mapping[str, Placement],
    todo: Iterable[int],
) -> StagePlan:
    """Decide how `stage` runs, given where earlier arrays are and which chunks are still to do.

    Arrays stay in memory as far as it goes; the largest is spilled first, since all of them lie in files as
    well. What a rank needs then is what one chunk takes, so what :func:`check` accepts can be planned.

    Raises
    ------
    BadInput
        The run may not stage, and a rank cannot hold its share.
    """
    planned = _plan_stage(stage, sizes, resources, placed, todo)
    if planned.peak > resources.memory and resources.in_memory:
        raise BadInput(
            f"stage {stage.name} needs {_megabytes(planned.peak)} MB per rank and has "
            f"{resources.memory >> 20}: leave out --in-memory, use more ranks, or give at needed "
            f"--memory {_megabytes(planned.peak)}M"
        )
    return planned


def _plan_stage(
    stage: Stage,
    sizes: StageSizes,
    resources: Resources,
    placed: Mapping[str, Placement],
    todo: Iterable[int],
) -> StagePlan:
    numbers = np.fromiter(todo, dtype=np.int64)
    partition = _partition(stage, resources.ranks, numbers)
    batch = _batch(stage, sizes, resources)
    owners = partition.owners()
    new = {
        array.name: Placement(array, table, table.owners(owners), True, not resources.in_memory)
        for array, table in zip(stage.arrays, sizes.tables, strict=True)
    }
    expected = _expected_records(stage, owners, not resources.in_memory)
    after = {**placed, **new, **expected}
    while True:
        in_rounds = gather_rounds(stage, partition, batch, resources.in_flight, after, numbers.tolist())
        exchange = forecast_exchange(stage, partition, in_rounds, after, numbers, resources.nodes)
        held = sum((placement.share(resources.ranks) for placement in after.values()), np.int64(0))
        needed = held + forecast.rank_bytes(stage, sizes, batch, after, exchange)
        peak = resources.baseline + int(needed.max())
        largest = max(after.values(), key=lambda one: one.share(resources.ranks).max(), default=None)
        if peak <= resources.memory or resources.in_memory or largest is None or not largest.memory:
            break
        after[largest.array.name] = dataclasses.replace(largest, memory=False)
    taken = forecast.rank_seconds(
        stage, sizes, partition, numbers, exchange, resources.nodes, not resources.in_memory, resources.rates
    )
    return StagePlan(
        stage=stage.name,
        kind=stage.kind,
        partition=partition,
        batch=batch,
        in_flight=resources.in_flight,
        placements=tuple(after[name] for name in new),
        expected=tuple(after[name] for name in expected),
        spilled=tuple(name for name in placed if placed[name].memory and not after[name].memory),
        peak=peak,
        read=int(forecast.read_bytes(stage, sizes, after)[numbers].sum()),
        written=0
        if resources.in_memory
        else sum(array.nbytes for array in stage.arrays) + stage.expected_bytes,
        moved=exchange.moved,
        between_nodes=exchange.between_nodes,
        messages=int(exchange.messages.sum()),
        moved_per_rank=int(exchange.sent.max()),
        messages_per_rank=int(exchange.messages.max()),
        cpu_seconds=float(taken.sum()),
        seconds=float(taken.max(initial=0)),
    )


def _expected_records(stage: Stage, owners: np.ndarray, staged: bool) -> dict[str, Placement]:
    """Return where the records of a stage will lie, by what plans reckon with."""
    if not isinstance(stage, Records) or not stage.expected_bytes:
        return {}
    index = stage.expected_index
    table = RecordTable(index, len(stage.grid))
    return {index.name: Placement(index.array, table, table.owners(owners), True, staged)}


def _partition(stage: Stage, ranks: int, numbers: np.ndarray) -> Partition:
    """Balance the work that is left; a chunk that is done still costs a little: it is read and checked."""
    weights = np.ones(len(stage.grid), dtype=np.int64)
    if len(numbers):
        work = np.asarray(stage.weights) if stage.weights is not None else weights
        weights[numbers] += 1_000_000 * work[numbers] // max(1, work.max(initial=0))
    return Partition.balanced(weights.tolist(), ranks)


def _batch(stage: Stage, sizes: StageSizes, resources: Resources) -> int:
    return max(1, resources.in_flight // max(1, sizes.largest + stage.returned_bytes))


def plan_recipe(recipe: Recipe, resources: Resources) -> list[tuple[Stage, StagePlan]]:
    """Plan a whole recipe from its headers alone: upper bounds where the data will decide.

    Raises
    ------
    BadInput
        A rank has too little memory; the message says how much would do.
    """
    stages = _sized(recipe)
    _check(stages, recipe.baseline, resources)
    resources = resources.of(recipe)
    plan = _plan_all(stages, resources, recipe.kept)
    worst = max((planned for _, planned in plan), key=lambda planned: planned.peak, default=None)
    if worst is not None and worst.peak > resources.memory:
        raise BadInput(_in_memory_remedy(stages, resources, recipe.kept, worst))
    return plan


def _sized(recipe: Recipe) -> list[tuple[Stage, StageSizes]]:
    """Return every stage with what its chunks read and write, which takes a while where there are many."""
    return [(stage, forecast.stage_sizes(stage)) for stage in recipe.expected]


def _plan_all(
    sized: Sequence[tuple[Stage, StageSizes]], resources: Resources, kept: Set[str]
) -> list[tuple[Stage, StagePlan]]:
    placed: dict[str, Placement] = {}
    plan = []
    stages = [stage for stage, _ in sized]
    for stage, sizes in sized:
        names = still_read(stages, stage.name, kept)
        placed = {name: placement for name, placement in placed.items() if name in names}
        planned = _plan_stage(stage, sizes, resources, placed, range(len(stage.grid)))
        for name in planned.spilled:
            placed[name] = dataclasses.replace(placed[name], memory=False)
        new = (*planned.placements, *planned.expected)
        placed.update({placement.array.name: placement for placement in new})
        plan.append((stage, planned))
    return plan


def check(recipe: Recipe, resources: Resources) -> list[float]:
    """Refuse a run whose largest chunk does not fit the memory of a rank. Cheap.

    Returns
    -------
    list of float
        Seconds that each stage takes, from the headers alone and without exchanges.

    Raises
    ------
    BadInput
        It does not fit; the message says how much memory would do.
    """
    sized = _sized(recipe)
    _check(sized, recipe.baseline, resources)
    ranks, staged, rates = resources.ranks, not resources.in_memory, resources.of(recipe).rates
    return [forecast.seconds_alone(stage, sizes, ranks, staged, rates) for stage, sizes in sized]


def _check(sized: Sequence[tuple[Stage, StageSizes]], baseline: int, resources: Resources) -> None:
    needed, stage = _largest_need(sized, baseline)
    if needed > resources.memory:
        raise BadInput(
            f"stage {stage} needs {_megabytes(needed)} MB per rank and has {resources.memory >> 20}: "
            "one chunk and the libraries take that much on any number of ranks; give --memory "
            f"{_megabytes(needed)}M, with fewer ranks on a node if need be"
        )


def min_memory(recipe: Recipe) -> tuple[int, str]:
    """Return the fewest bytes per rank that a staged run can do with, and the stage that needs them.

    It does not depend on the number of ranks: a rank holds one chunk, all arrays lie in files.
    """
    return _largest_need(_sized(recipe), recipe.baseline)


def _largest_need(sized: Sequence[tuple[Stage, StageSizes]], baseline: int) -> tuple[int, str]:
    needs = ((_min_memory_of(stage, sizes, baseline), stage.name) for stage, sizes in sized)
    return max(needs, default=(baseline, ""))


def _min_memory_of(stage: Stage, sizes: StageSizes, baseline: int) -> int:
    """Return the needed memory in which a stage runs from files alone: more of it lets more be in flight."""
    low, high = baseline, 1 << 62
    need = baseline + forecast.files_only_bytes(stage, sizes, 1)
    while low < high and isinstance(stage, Sink):
        middle = (low + high) // 2
        batch = _batch(stage, sizes, Resources(1, middle, baseline=baseline))
        if baseline + forecast.files_only_bytes(stage, sizes, batch) <= middle:
            high = middle
        else:
            low = middle + 1
    return max(need, high) if isinstance(stage, Sink) else need


def _in_memory_remedy(
    stages: Sequence[tuple[Stage, StageSizes]], resources: Resources, kept: Set[str], worst: StagePlan
) -> str:
    """Say what would let a run in memory go: staging, more memory, more ranks; each of them was tried."""

    def peak(ranks: int, memory: int) -> int:
        plan = _plan_all(stages, dataclasses.replace(resources, ranks=ranks, memory=memory), kept)
        return max(planned.peak for _, planned in plan)

    memory = worst.peak
    while peak(resources.ranks, memory) > memory:
        memory = peak(resources.ranks, memory)
    enough = None
    max_ranks = max(len(stage.grid) for stage, _ in stages)
    ranks = resources.ranks
    while enough is None and ranks < max_ranks:
        ranks = min(2 * ranks, max_ranks)
        if peak(ranks, resources.memory) <= resources.memory:
            enough = ranks
    more = f"use {enough} ranks with as much memory each, " if enough else ""
    return (
        f"stage {worst.stage} needs {_megabytes(worst.peak)} MB per rank and has {resources.memory >> 20}: "
        f"leave out --in-memory, {more}or give --memory {_megabytes(memory)}M"
    )


def still_read(stages: Sequence[Stage], name: str, kept: Set[str] = frozenset()) -> set[str]:
    """Return the names of arrays that stage `name` of `stages` or a later one reads, and of those `kept`."""
    index = [stage.name for stage in stages].index(name)
    return {need.array.name for stage in stages[index:] for need in stage.reads} | kept


def _megabytes(count: int) -> int:
    return -(-count // (1 << 20))
