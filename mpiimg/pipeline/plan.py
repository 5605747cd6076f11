"""What a run will do: which rank owns which chunks, what is kept where, and what that costs.

A plan is a pure function of shapes, stages, ranks and memory. The chunks are
the data's: the plan may group and place them, never cut them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.io.nifti import Image
from mpiimg.io.store import Array
from mpiimg.partition import Box, Partition, box_size, intersections
from mpiimg.stages.stage import Need, Stage

#: Bytes that one rank gathers from others at a time.
IN_FLIGHT = 64 << 20

#: Resident bytes of a rank with the libraries of a pipeline loaded, before it holds any data.
BASELINE = 200 << 20

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
    kernels : parts of kernels.warm that the stages call
    files : inputs whose sizes and times must not change while the run reads them
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
    """What a run has: ranks, bytes of memory a rank, and whether it may stage arrays on disk."""

    ranks: int
    memory: int
    in_memory: bool = False


@dataclass(frozen=True)
class Placement:
    """Where an array is during a run: block boxes and owners, and which stores hold it."""

    array: Array
    boxes: np.ndarray = field(repr=False)
    owners: np.ndarray = field(repr=False)
    memory: bool
    staged: bool

    def share(self, ranks: int) -> int:
        """Return the most bytes of it that a rank keeps in memory."""
        if not self.memory:
            return 0
        items = np.prod(self.boxes[..., 1] - self.boxes[..., 0], axis=1)
        held = np.bincount(self.owners, weights=items, minlength=ranks).max(initial=0)
        return int(held) * np.dtype(self.array.dtype).itemsize


@dataclass(frozen=True)
class Section:
    """The plan of one stage.

    Parameters
    ----------
    stage, kind : what runs
    partition : of its chunks over the ranks
    batch : chunks that a rank gathers inputs for, or writes, at once
    placements : of the arrays that it writes
    peak : bytes a rank needs at most while it runs, arrays of other stages included
    read, written : bytes from and to files, all ranks together
    """

    stage: str
    kind: str
    partition: Partition
    batch: int
    placements: tuple[Placement, ...]
    peak: int
    read: int
    written: int

    @property
    def chunks(self) -> int:
        return self.partition.cuts[-1]


def bind(
    stage: Stage,
    resources: Resources,
    placed: Mapping[str, Placement],
    todo: Iterable[int],
    reserve: int = 0,
) -> Section:
    """Decide how `stage` runs, given where earlier arrays are and which chunks are still to do.

    `reserve` bytes are left free of arrays that need not be in memory: what any stage of the recipe works
    in, so that none fails for what an earlier one kept.

    Raises
    ------
    BadInput : the run may not stage and a rank cannot hold its share
    """
    numbers = np.fromiter(todo, dtype=np.int64)
    weights = np.ones(len(stage.grid), dtype=np.int64)
    if len(numbers):
        work = np.asarray(stage.weights) if stage.weights is not None else weights
        # A chunk that is done still costs a little: it is read and checked.
        weights[numbers] += 1_000_000 * work[numbers] // max(1, work.max(initial=0))
    partition = Partition.balanced(weights.tolist(), resources.ranks)
    owners = partition.owners()

    held = sum(placement.share(resources.ranks) for placement in placed.values())
    working = _working_bytes(stage)
    placements = []
    for array in stage.writes:
        boxes = stage.output_boxes(array)
        in_memory = Placement(array, boxes, owners, True, not resources.in_memory)
        need = BASELINE + held + in_memory.share(resources.ranks) + max(working, reserve)
        if need <= resources.memory or resources.in_memory:
            placements.append(in_memory)
            held += in_memory.share(resources.ranks)
        else:
            placements.append(dataclasses.replace(in_memory, memory=False))
    peak = BASELINE + held + working
    if peak > resources.memory:
        raise BadInput(
            f"stage {stage.name} needs {_megabytes(peak)} MB a rank and has {_megabytes(resources.memory)}; "
            + ("leave out --in-memory, or " if resources.in_memory else "")
            + "use more ranks on more nodes, or raise --memory"
        )
    exchanged = exchanged_needs(stage, placed)
    from_files = [need for need in stage.reads if need not in exchanged]
    read = sum(_need_bytes(stage, need, number) for need in from_files for number in numbers)
    written = sum(array.nbytes for array in stage.writes) if not resources.in_memory else 0
    batch = max(1, IN_FLIGHT // max(1, _chunk_bytes(stage)))
    return Section(stage.name, stage.kind, partition, batch, tuple(placements), peak, read, written)


def rounds(
    stage: Stage, section: Section, placed: Mapping[str, Placement], todo: Sequence[int]
) -> list[list[list[int]]]:
    """Return, round by round, the chunks that each rank gathers inputs for.

    What all ranks can hold at once comes in one round, after which nobody
    waits for anybody. The chunks of a sink go in order through all ranks,
    since the place of one's bytes depends on those before.
    """
    ranks = section.partition.ranks
    if stage.kind == "sink":
        step = ranks * section.batch
        parts = [
            (first, Partition.even(min(step, len(todo) - first), ranks))
            for first in range(0, len(todo), step)
        ]
        return [
            [[todo[first + i] for i in part.owned(rank)] for rank in range(ranks)] for first, part in parts
        ]
    owners = section.partition.owners()
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for number in todo:
        shares[owners[number]].append(number)
    exchanged = exchanged_needs(stage, placed)
    at_once = max(sum(_gathered_bytes(stage, need, theirs) for need in exchanged) for theirs in shares)
    if at_once <= IN_FLIGHT:
        return [shares]
    longest = max(map(len, shares))
    return [
        [theirs[first : first + section.batch] for theirs in shares]
        for first in range(0, longest, section.batch)
    ]


def exchanged_needs(stage: Stage, placed: Mapping[str, Placement]) -> list[Need]:
    """Return what `stage` reads from the memory of ranks, as against files."""
    return [need for need in stage.reads if need.array.name in placed and placed[need.array.name].memory]


def gathered_boxes(stage: Stage, need: Need, numbers: Iterable[int]) -> list[Box]:
    """Return the boxes that a rank gathers for chunks `numbers`, each once."""
    return list(dict.fromkeys(box for n in numbers for box in need.boxes(stage.chunk(n))))


def moved_bytes(stage: Stage, section: Section, placed: Mapping[str, Placement], todo: Sequence[int]) -> int:
    """Return the bytes that ranks send each other for the inputs of `stage`, and to finish a reduce."""
    total = 0
    if stage.finish is not None and section.placements[0].memory:
        # The rows of all chunks go to rank 0.
        away = len(stage.grid) - len(section.partition.owned(0))
        total += stage.writes[0].nbytes // len(stage.grid) * away
    if stage.kind == "source":
        placement = section.placements[0]
        away = placement.boxes[[n for n in todo if placement.owners[n] != 0]]
        items = np.prod(away[..., 1] - away[..., 0], axis=1).sum()
        total += int(items) * np.dtype(placement.array.dtype).itemsize
    for shares in rounds(stage, section, placed, todo):
        for need in exchanged_needs(stage, placed):
            placement = placed[need.array.name]
            for rank, numbers in enumerate(shares):
                for box in gathered_boxes(stage, need, numbers):
                    which, common = intersections(placement.boxes, box)
                    foreign = common[placement.owners[which] != rank]
                    items = np.prod(foreign[..., 1] - foreign[..., 0], axis=1).sum()
                    total += int(items) * np.dtype(need.array.dtype).itemsize
    return total


def static_plan(recipe: Recipe, resources: Resources) -> list[tuple[Stage, Section]]:
    """Plan a whole recipe from its headers alone: upper bounds where the data will decide."""
    placed: dict[str, Placement] = {}
    plan = []
    stages = static_stages(recipe)
    for stage in stages:
        kept = still_read(stages, stage.name)
        placed = {name: placement for name, placement in placed.items() if name in kept}
        section = bind(stage, resources, placed, range(len(stage.grid)), working_reserve(stages))
        placed.update({placement.array.name: placement for placement in section.placements})
        plan.append((stage, section))
    return plan


def working_reserve(stages: Iterable[Stage]) -> int:
    """Return the most bytes that a rank works in, beside the arrays it holds, in any of `stages`."""
    return max((_working_bytes(stage) for stage in stages), default=0)


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


def describe(plan: list[tuple[Stage, Section]], resources: Resources) -> str:
    """Return the plan as a table."""
    width = 2 + max(len(stage.name) for stage, _ in plan)
    lines = [
        f"{resources.ranks} ranks, {_megabytes(resources.memory)} MB a rank; "
        "upper bounds where the data decide",
        f"{'stage':<{width}}{'kind':<9}{'chunks':>8}{'a rank':>8}{'batch':>7}"
        f"{'read MB':>10}{'staged MB':>11}{'peak MB':>9}",
    ]
    for stage, section in plan:
        most = max(np.diff(section.partition.cuts))
        lines.append(
            f"{stage.name:<{width}}{stage.kind:<9}{section.chunks:>8}{most:>8}{section.batch:>7}"
            f"{_megabytes(section.read):>10}{_megabytes(section.written):>11}{_megabytes(section.peak):>9}"
        )
    return "\n".join(lines)


def _gathered_bytes(stage: Stage, need: Need, numbers: Iterable[int]) -> int:
    items = sum(box_size(box) for box in gathered_boxes(stage, need, numbers))
    return items * np.dtype(need.array.dtype).itemsize


def _need_bytes(stage: Stage, need, number: int) -> int:
    items = sum(box_size(box) for box in need.boxes(stage.chunk(int(number))))
    return items * np.dtype(need.array.dtype).itemsize


def _chunk_bytes(stage: Stage) -> int:
    """Return the bytes that the largest chunk reads and writes."""
    middle = len(stage.grid) // 2
    samples = {0, middle, len(stage.grid) - 1} & set(range(len(stage.grid)))
    reads = max((sum(_need_bytes(stage, need, n) for need in stage.reads) for n in samples), default=0)
    writes = max(
        (
            sum(
                box_size(stage.output_box(a, stage.chunk(n))) * np.dtype(a.dtype).itemsize
                for a in stage.writes
            )
            for n in samples
        ),
        default=0,
    )
    return reads + writes + stage.output_bytes


def _working_bytes(stage: Stage) -> int:
    """Return what a rank needs beside the arrays it holds: what it sends, receives and works on."""
    return 2 * IN_FLIGHT + 4 * _chunk_bytes(stage)


def _megabytes(count: int) -> int:
    return -(-count // (1 << 20))
