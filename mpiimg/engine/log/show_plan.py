"""Plans as people and programs read them, and beside what the run really took."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.engine.log.verdict import Disk, in_words, verdict
from mpiimg.engine.log.wording import columns, many, megabytes, step_of
from mpiimg.engine.plan import Resources, StagePlan
from mpiimg.engine.stage import Stage

Plan = Sequence[tuple[Stage, StagePlan]]


def totals(plan: Plan) -> dict:
    """Return the totals of a plan: the highest peak, and sums of everything else."""
    plans = [planned for _, planned in plan]
    return {
        "peak_per_rank": max((planned.peak for planned in plans), default=0),
        "bytes_moved": sum(planned.moved for planned in plans),
        "bytes_moved_between_nodes": sum(planned.between_nodes for planned in plans),
        "messages": sum(planned.messages for planned in plans),
        "bytes_per_rank": sum(planned.moved_per_rank for planned in plans),
        "messages_per_rank": sum(planned.messages_per_rank for planned in plans),
        "read": sum(planned.read for planned in plans),
        "staged": sum(planned.written for planned in plans),
        "cpu_seconds": sum(planned.cpu_seconds for planned in plans),
        "seconds": sum(planned.seconds for planned in plans),
        "longest_stage_seconds": max((planned.seconds for planned in plans), default=0.0),
    }


def as_json(plan: Plan, resources: Resources, recipe: str = "", disk: Disk | None = None) -> str:
    """Return a plan for programs: verdict, resources, stages and totals, in bytes and seconds as in run.json.

    `recipe` is that by name which gave parameters their values, if one did.
    """
    stages = [
        {
            "stage": planned.stage,
            "kind": planned.kind,
            "chunks": planned.chunks,
            "chunks_per_rank": int(max(np.diff(planned.partition.cuts))),
            "batch": planned.batch,
            "in_memory": [p.array.name for p in planned.placements if p.memory],
            "in_files": [p.array.name for p in planned.placements if not p.memory],
            "spilled": list(planned.spilled),
            **predicted(planned),
        }
        for _, planned in plan
    ]
    document = {
        "verdict": verdict(plan, resources, disk).as_record(),
        "ranks": resources.ranks,
        "nodes": resources.nodes,
        "memory_per_rank": resources.memory,
        "in_memory": resources.in_memory,
        "upper_bound": True,
        **({"recipe": recipe} if recipe else {}),
        "totals": _rounded(totals(plan)),
        "stages": stages,
    }
    return json.dumps(document, indent=1)


def predicted(planned: StagePlan) -> dict:
    """Return what the plan of a stage predicts, as run.json has it."""
    return _rounded(
        {
            "peak_per_rank": planned.peak,
            "bytes_moved": planned.moved,
            "messages": planned.messages,
            "bytes_per_rank": planned.moved_per_rank,
            "messages_per_rank": planned.messages_per_rank,
            "read": planned.read,
            "staged": planned.written,
            "cpu_seconds": planned.cpu_seconds,
            "seconds": planned.seconds,
        }
    )


def _rounded(numbers: Mapping) -> dict:
    return {key: float(f"{n:.4g}") if isinstance(n, float) else n for key, n in numbers.items()}


#: Columns of a whole plan, and of one whose stages are folded into steps.
EVERY_STAGE = (
    *("stage", "kind", "chunks", "per rank", "batch"),
    *("read MB", "moved MB", "staged MB", "peak MB", "seconds"),
)
BY_STEP = ("step", "stages", "chunks", "read MB", "moved MB", "staged MB", "peak MB", "seconds")


def table(
    plan: Plan, resources: Resources, recipe: str = "", full: bool = False, disk: Disk | None = None
) -> str:
    """Return a plan for people: what it comes to, a table, and notes.

    Parameters
    ----------
    plan : sequence of (Stage, StagePlan)
    resources : Resources
    recipe : str
        The name of that which gave parameters their values, if one did.
    full : bool
        Give each stage a line; else the stages of a step are folded into one.
    disk : Disk, optional
        What the run writes, and what is free.
    """
    r = resources
    rows = _every_stage(plan) if full else _by_step(plan)
    blank = len(rows[0]) - 6
    whole = ["all stages", *[""] * blank, *_sums([planned for _, planned in plan])]
    head = (
        f"{many(r.ranks, 'rank')} on {many(r.nodes, 'node')}, {r.memory >> 20} MB per rank; "
        f"upper bounds where the data decide{f'; recipe {recipe}' if recipe else ''}"
    )
    lines = [*in_words(verdict(plan, r, disk), r.ranks), head]
    lines += columns([*rows, whole], left=(0, 1) if full else (0,))
    return "\n".join([*lines, *_notes(plan, resources, totals(plan))])


def _every_stage(plan: Plan) -> list[Sequence[object]]:
    """Return the head of a table and a row for each stage."""
    rows: list[Sequence[object]] = [EVERY_STAGE]
    for stage, planned in plan:
        largest_share = max(np.diff(planned.partition.cuts))
        about = (stage.name, planned.kind, planned.chunks, largest_share, planned.batch)
        rows.append((*about, *_sums([planned])))
    return rows


def _by_step(plan: Plan) -> list[Sequence[object]]:
    """Return the head of a table and a row for each run of stages whose names begin with the same step."""
    rows: list[Sequence[object]] = [BY_STEP]
    for step, stages in itertools.groupby(plan, key=lambda one: step_of(one[0].name)):
        plans = [planned for _, planned in stages]
        rows.append((step, len(plans), max(planned.chunks for planned in plans), *_sums(plans)))
    return rows


def _sums(plans: Sequence[StagePlan]) -> tuple[object, ...]:
    """Return the last five columns for stages together."""
    return (
        megabytes(sum(planned.read for planned in plans)),
        megabytes(sum(planned.moved for planned in plans)),
        megabytes(sum(planned.written for planned in plans)),
        megabytes(max((planned.peak for planned in plans), default=0)),
        f"{sum(planned.seconds for planned in plans):.1f}",
    )


def _notes(plan: Plan, resources: Resources, t: Mapping) -> list[str]:
    """Say what the table has no column for: files in place of memory, what a node needs, CPU time."""
    in_files = dict.fromkeys(
        name
        for _, planned in plan
        for name in (*planned.spilled, *(p.array.name for p in planned.placements if not p.memory))
    )
    notes = []
    if in_files:
        notes.append(f"read back from files, since a rank's memory does not hold them: {', '.join(in_files)}")
    ranks_per_node = -(-resources.ranks // resources.nodes)
    if ranks_per_node > 1:
        notes.append(
            f"a node needs {megabytes(ranks_per_node * t['peak_per_rank'])} MB for its {ranks_per_node} ranks"
        )
    if resources.nodes > 1:
        notes.append(f"{megabytes(t['bytes_moved_between_nodes'])} MB move between nodes")
    return [*notes, f"{t['cpu_seconds']:.0f} CPU-seconds in all, at the rates of this machine's CPU"]


def beside_actual(entries: Sequence[Mapping], every: bool) -> list[str]:
    """Return the last lines of a log: what was predicted and what was measured.

    Parameters
    ----------
    entries : sequence of mapping
        Of the stages, as in run.json.
    every : bool
        Return a table of all stages; else one line.
    """
    if not entries:
        return []
    rows = [(entry["stage"], entry["planned"], entry) for entry in entries]
    whole = ("all stages", _together([e["planned"] for e in entries]), _together(entries))
    if not every:
        _, planned, actual = whole
        return [
            f"peak {megabytes(actual['peak_per_rank'])} MB per rank "
            f"(planned {megabytes(planned['peak_per_rank'])}), "
            f"{megabytes(actual['bytes_moved'])} MB moved (planned {megabytes(planned['bytes_moved'])}), "
            f"{actual['seconds']:.1f} s (predicted {planned['seconds']:.1f})"
        ]
    head = ("planned and actual", "peak MB per rank", "actual", "moved MB", "actual", "seconds", "actual")
    cells = [
        (
            name,
            *(megabytes(one[key]) for key in ("peak_per_rank", "bytes_moved") for one in (planned, actual)),
            *(f"{one['seconds']:.1f}" for one in (planned, actual)),
        )
        for name, planned, actual in (*rows, whole)
    ]
    return columns([head, *cells])


def _together(entries: Sequence[Mapping]) -> dict:
    return {
        "peak_per_rank": max(entry["peak_per_rank"] for entry in entries),
        "bytes_moved": sum(entry["bytes_moved"] for entry in entries),
        "seconds": sum(entry["seconds"] for entry in entries),
    }
