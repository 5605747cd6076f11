"""What a run will do: which rank owns which chunks, what is kept where, and what that costs.

A plan is a pure function of shapes, stages, ranks, nodes and memory. The chunks
are the data's: the plan may group and place them, never cut them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine import forecast as exchange
from mpiimg.engine import predict
from mpiimg.engine.boxes import Partition
from mpiimg.engine.forecast import Flow, Placement
from mpiimg.engine.predict import ChunkBytes
from mpiimg.engine.rates import DEFAULTS, Rates
from mpiimg.engine.stage import Stage
from mpiimg.errors import BadInput
from mpiimg.neuro.nifti import Image

#: Most bytes that one rank gathers from others at a time.
IN_FLIGHT = 64 << 20

#: Bytes of a rank's own with libraries and kernels loaded, before it holds any data: of stages on images, and
#: of those on surveys, which load astropy and sep as well (124 MiB at most) and leave gaps in the heap
#: between pieces of all sizes (26 MiB were seen).
BASELINE, SURVEY_BASELINE = 110 << 20, 150 << 20

#: Share of the memory beside the baseline that may be in flight.
IN_FLIGHT_SHARE = 8

Values = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """The stages of a pipeline, each built when its turn comes from what is known by then.

    Parameters
    ----------
    tool : name of the program
    stem : that outputs and the work folder begin with
    inputs : arrays that lie in files which any rank may read in any order
    steps : called as step(values), return a Stage, or None where there is nothing to do
    values : known from headers and parameters: with these alone, steps give upper bounds for the plan
    documents : called as documents(values), returns small files by name, written at the end
    parameters : of the run, for run.json
    sources : of the run, for run.json and to tell one run from another
    record : name of the file that says how the run went
    warnings : to be said at the start
    staged_outputs : arrays whose staged file is a result: its name and the attributes of its dataset
    kernels : parts of kernels.precompile that the stages call
    files : inputs whose sizes and times must not change while the run reads them
    baseline : bytes of a rank with the libraries and kernels of the stages loaded, before it holds any data
    """

    tool: str
    stem: str
    inputs: Mapping[str, Image]
    steps: Sequence[Callable[[Values], Stage | None]]
    values: Values
    documents: Callable[[Values], dict[str, bytes]]
    parameters: Mapping[str, Any]
    sources: Mapping[str, Any]
    record: str
    warnings: tuple[str, ...] = ()
    staged_outputs: Mapping[str, tuple[str, dict]] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    baseline: int = BASELINE


@dataclass(frozen=True)
class Options:
    """How to run, as against what.

    Parameters
    ----------
    out : folder of the results, made if missing
    memory : bytes a rank
    force : overwrite results that are there
    in_memory : stage nothing on disk; a run that dies starts over
    keep_work : leave the staged arrays and marks when done
    progress : draw a line a stage on stderr
    timeout : seconds that a chunk or an exchange may take before a rank ends the job
    sync_every : seconds between syncs of the marks
    records : folder of run.json, events and work; `out` without one
    label : what lines on stderr begin with, where several runs speak at a time
    command : as a user gave it, to say how to go on
    """

    out: Path
    memory: int
    force: bool = False
    in_memory: bool = False
    keep_work: bool = False
    progress: bool = False
    timeout: float = 3600.0
    sync_every: float = 5.0
    records: Path | None = None
    label: str = ""
    command: str = ""


@dataclass(frozen=True)
class Resources:
    """What a run has.

    Parameters
    ----------
    ranks : of the run
    memory : bytes a rank
    in_memory : nothing may be staged on disk
    nodes : that the ranks are spread over, consecutive ones together
    rates : CPU-seconds a unit of work, for predictions of time alone
    baseline : bytes of a rank before it holds any data; :meth:`of` takes those of a recipe
    """

    ranks: int
    memory: int
    in_memory: bool = False
    nodes: int = 1
    rates: Rates = field(default_factory=lambda: DEFAULTS, repr=False, compare=False)
    baseline: int = BASELINE

    def of(self, recipe: Recipe) -> Resources:
        """Return the same for ranks that load what `recipe` needs."""
        return dataclasses.replace(self, baseline=recipe.baseline)

    @property
    def in_flight(self) -> int:
        """Bytes that a rank gathers from others at a time."""
        return min(IN_FLIGHT, max(0, self.memory - self.baseline) // IN_FLIGHT_SHARE)


@dataclass(frozen=True)
class Section:
    """The plan of one stage.

    Parameters
    ----------
    stage, kind : what runs
    partition : of its chunks over the ranks
    batch : chunks that a rank gathers inputs for, or writes, at once
    in_flight : bytes below which all that a rank's chunks read comes at once
    placements : of the arrays that it writes
    spilled : names of earlier arrays that memory is needed from: from here on they are read from their files
    peak : bytes a rank needs at most while it runs, arrays of other stages included
    read, written : bytes from and to files, all ranks together
    moved, between_nodes : bytes that ranks send each other, and those of them that leave a node
    messages : in which they do
    moved_a_rank, messages_a_rank : bytes and messages of the rank that sends most
    cpu_seconds : of all ranks together
    seconds : on the rank that takes longest: nobody waits longer than that
    """

    stage: str
    kind: str
    partition: Partition
    batch: int
    in_flight: int
    placements: tuple[Placement, ...]
    spilled: tuple[str, ...]
    peak: int
    read: int
    written: int
    moved: int
    between_nodes: int
    messages: int
    moved_a_rank: int
    messages_a_rank: int
    cpu_seconds: float
    seconds: float

    @property
    def chunks(self) -> int:
        return self.partition.cuts[-1]


def bind(stage: Stage, resources: Resources, placed: Mapping[str, Placement], todo: Iterable[int]) -> Section:
    """Decide how `stage` runs, given where earlier arrays are and which chunks are still to do.

    Arrays are kept in memory as far as it goes; the largest gives way first, since all of them lie in files
    as well. What a rank needs then is what one chunk takes, so what :func:`check` accepts can be bound.

    Raises
    ------
    BadInput : the run may not stage, and a rank cannot hold its share
    """
    section = _bind(stage, predict.chunk_bytes(stage), resources, placed, todo)
    if section.peak > resources.memory and resources.in_memory:
        raise BadInput(
            f"stage {stage.name} needs {_megabytes(section.peak)} MB a rank and has "
            f"{resources.memory >> 20}: leave out --in-memory, use more ranks, or give at least "
            f"--memory {_megabytes(section.peak)}M"
        )
    return section


def _bind(
    stage: Stage,
    sizes: ChunkBytes,
    resources: Resources,
    placed: Mapping[str, Placement],
    todo: Iterable[int],
) -> Section:
    numbers = np.fromiter(todo, dtype=np.int64)
    partition = _partition(stage, resources.ranks, numbers)
    batch = _batch(stage, sizes, resources)
    owners = partition.owners()
    new = {
        array.name: Placement(array, stage.output_boxes(array), owners, True, not resources.in_memory)
        for array in stage.writes
    }
    kept = {**placed, **new}
    while True:
        in_rounds = exchange.rounds(stage, partition, batch, resources.in_flight, kept, numbers.tolist())
        flow = exchange.flow(stage, partition, in_rounds, kept, resources.nodes)
        flow = _with_own_messages(stage, flow, kept, numbers)
        held = sum((placement.share(resources.ranks) for placement in kept.values()), np.int64(0))
        peak = resources.baseline + int((held + predict.rank_bytes(stage, sizes, batch, kept, flow)).max())
        largest = max(kept.values(), key=lambda one: one.share(resources.ranks).max(), default=None)
        if peak <= resources.memory or resources.in_memory or largest is None or not largest.memory:
            break
        kept[largest.array.name] = dataclasses.replace(largest, memory=False)
    taken = predict.seconds(
        stage, sizes, partition, numbers, flow, resources.nodes, not resources.in_memory, resources.rates
    )
    return Section(
        stage=stage.name,
        kind=stage.kind,
        partition=partition,
        batch=batch,
        in_flight=resources.in_flight,
        placements=tuple(kept[name] for name in new),
        spilled=tuple(name for name in placed if placed[name].memory and not kept[name].memory),
        peak=peak,
        read=int(predict.read_bytes(stage, sizes, kept)[numbers].sum()),
        written=0 if resources.in_memory else sum(array.nbytes for array in stage.writes),
        moved=flow.moved,
        between_nodes=flow.between_nodes,
        messages=int(flow.messages.sum()),
        moved_a_rank=int(flow.sent.max()),
        messages_a_rank=int(flow.messages.max()),
        cpu_seconds=float(taken.sum()),
        seconds=float(taken.max(initial=0)),
    )


def _partition(stage: Stage, ranks: int, numbers: np.ndarray) -> Partition:
    """Balance the work that is left; a chunk that is done still costs a little: it is read and checked."""
    weights = np.ones(len(stage.grid), dtype=np.int64)
    if len(numbers):
        work = np.asarray(stage.weights) if stage.weights is not None else weights
        weights[numbers] += 1_000_000 * work[numbers] // max(1, work.max(initial=0))
    return Partition.balanced(weights.tolist(), ranks)


def _batch(stage: Stage, sizes: ChunkBytes, resources: Resources) -> int:
    return max(1, resources.in_flight // max(1, sizes.largest + stage.output_bytes))


def _with_own_messages(stage: Stage, flow: Flow, kept: Mapping[str, Placement], numbers: np.ndarray) -> Flow:
    """Add what a source hands out, or what the end of a reduce brings to rank 0."""
    ends = stage.finish is not None and kept[stage.writes[0].name].memory
    if stage.kind != "source" and not ends:
        return flow
    share = kept[stage.writes[0].name]
    chunks = numbers if stage.kind == "source" else np.arange(len(share.owners))
    away = chunks[share.owners[chunks] != 0]
    items = np.prod(share.boxes[away, :, 1] - share.boxes[away, :, 0], axis=1)
    givers = np.zeros(len(away), np.int64) if stage.kind == "source" else share.owners[away]
    sent, messages = flow.sent.copy(), flow.messages.copy()
    np.add.at(sent, givers, items * np.dtype(share.array.dtype).itemsize)
    # A source sends each block by itself, a rank its rows in one piece.
    np.add.at(messages, givers if stage.kind == "source" else np.unique(givers[items > 0]), 1)
    return dataclasses.replace(flow, sent=sent, messages=messages)


def rounds(
    stage: Stage, section: Section, placed: Mapping[str, Placement], todo: Sequence[int]
) -> list[list[list[int]]]:
    """Return, round by round, the chunks that each rank gathers inputs for."""
    return exchange.rounds(stage, section.partition, section.batch, section.in_flight, placed, list(todo))


def static_plan(recipe: Recipe, resources: Resources) -> list[tuple[Stage, Section]]:
    """Plan a whole recipe from its headers alone: upper bounds where the data will decide.

    Raises
    ------
    BadInput : a rank has too little memory; says what would do
    """
    stages = _sized(recipe)
    _check(stages, recipe.baseline, resources)
    resources = resources.of(recipe)
    plan = _bind_all(stages, resources)
    worst = max((section for _, section in plan), key=lambda section: section.peak, default=None)
    if worst is not None and worst.peak > resources.memory:
        raise BadInput(_in_memory_remedy(stages, resources, worst))
    return plan


def _sized(recipe: Recipe) -> list[tuple[Stage, ChunkBytes]]:
    """Return every stage with what its chunks read and write, which takes a while where there are many."""
    return [(stage, predict.chunk_bytes(stage)) for stage in static_stages(recipe)]


def _bind_all(sized: Sequence[tuple[Stage, ChunkBytes]], resources: Resources) -> list[tuple[Stage, Section]]:
    placed: dict[str, Placement] = {}
    plan = []
    stages = [stage for stage, _ in sized]
    for stage, sizes in sized:
        kept = still_read(stages, stage.name)
        placed = {name: placement for name, placement in placed.items() if name in kept}
        section = _bind(stage, sizes, resources, placed, range(len(stage.grid)))
        for name in section.spilled:
            placed[name] = dataclasses.replace(placed[name], memory=False)
        placed.update({placement.array.name: placement for placement in section.placements})
        plan.append((stage, section))
    return plan


def check(recipe: Recipe, resources: Resources) -> None:
    """Refuse a run whose largest chunk does not fit the memory of a rank. Cheap.

    Raises
    ------
    BadInput : says how much memory would do
    """
    _check(_sized(recipe), recipe.baseline, resources)


def _check(sized: Sequence[tuple[Stage, ChunkBytes]], baseline: int, resources: Resources) -> None:
    least, stage = _least_of(sized, baseline)
    if least > resources.memory:
        raise BadInput(
            f"stage {stage} needs {_megabytes(least)} MB a rank and has {resources.memory >> 20}: one chunk "
            f"and the libraries take that much on any number of ranks; give --memory {_megabytes(least)}M, "
            "with fewer ranks on a node if need be"
        )


def least_memory(recipe: Recipe) -> tuple[int, str]:
    """Return the least bytes a rank that a staged run can do with, and the stage that needs them.

    It does not depend on the number of ranks: a rank holds one chunk, all arrays lie in files.
    """
    return _least_of(_sized(recipe), recipe.baseline)


def _least_of(sized: Sequence[tuple[Stage, ChunkBytes]], baseline: int) -> tuple[int, str]:
    needs = ((_least(stage, sizes, baseline), stage.name) for stage, sizes in sized)
    return max(needs, default=(baseline, ""))


def _least(stage: Stage, sizes: ChunkBytes, baseline: int) -> int:
    """Return the least memory in which a stage runs from files alone: more of it lets more be in flight."""
    low, high = baseline, 1 << 62
    need = baseline + predict.files_only_bytes(stage, sizes, 1)
    while low < high and stage.kind == "sink":
        middle = (low + high) // 2
        batch = _batch(stage, sizes, Resources(1, middle, baseline=baseline))
        if baseline + predict.files_only_bytes(stage, sizes, batch) <= middle:
            high = middle
        else:
            low = middle + 1
    return max(need, high) if stage.kind == "sink" else need


def _in_memory_remedy(
    stages: Sequence[tuple[Stage, ChunkBytes]], resources: Resources, worst: Section
) -> str:
    """Say what would let a run in memory go: staging, more memory, more ranks; each of them was tried."""

    def peak(ranks: int, memory: int) -> int:
        plan = _bind_all(stages, dataclasses.replace(resources, ranks=ranks, memory=memory))
        return max(section.peak for _, section in plan)

    memory = worst.peak
    while peak(resources.ranks, memory) > memory:
        memory = peak(resources.ranks, memory)
    enough = None
    most = max(len(stage.grid) for stage, _ in stages)
    ranks = resources.ranks
    while enough is None and ranks < most:
        ranks = min(2 * ranks, most)
        if peak(ranks, resources.memory) <= resources.memory:
            enough = ranks
    more = f"use {enough} ranks with as much memory each, " if enough else ""
    return (
        f"stage {worst.stage} needs {_megabytes(worst.peak)} MB a rank and has {resources.memory >> 20}: "
        f"leave out --in-memory, {more}or give --memory {_megabytes(memory)}M"
    )


def static_stages(recipe: Recipe) -> list[Stage]:
    """Build every stage from what is known before the run, alternatives included."""
    return [stage for step in recipe.steps if (stage := step(recipe.values)) is not None]


def still_read(stages: Sequence[Stage], name: str) -> set[str]:
    """Return the names of arrays that stage `name` of `stages` or a later one reads."""
    here = [stage.name for stage in stages].index(name)
    return {need.array.name for stage in stages[here:] for need in stage.reads}


def output_names(recipe: Recipe) -> list[str]:
    """Return the names of all files that a run writes."""
    stages = static_stages(recipe)
    images = [stage.output for stage in stages if stage.kind == "sink"]
    images += [name for stage in stages for name in stage.outputs]
    staged = [name for name, _ in recipe.staged_outputs.values()]
    return [*images, *staged, *recipe.documents(recipe.values), recipe.record]


def work_bytes(recipe: Recipe) -> int:
    """Return an upper bound of what the work folder takes on disk: staged arrays and outputs."""
    return sum(array.nbytes for stage in static_stages(recipe) for array in stage.writes)


def _megabytes(count: int) -> int:
    return -(-count // (1 << 20))
