"""Plans as people and programs read them, and beside what the run really took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

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


def as_json(plan: Plan, resources: Resources, recipe: str = "") -> str:
    """Return a plan for programs: resources, stages and totals, in bytes and seconds as in run.json.

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


def table(plan: Plan, resources: Resources, recipe: str = "") -> str:
    """Return a plan for people: a table of its stages, and notes."""
    width = 2 + max([len("all stages"), *(len(stage.name) for stage, _ in plan)])
    r = resources
    lines = [
        f"{_many(r.ranks, 'rank')} on {_many(r.nodes, 'node')}, {r.memory >> 20} MB per rank; "
        f"upper bounds where the data decide{f'; recipe {recipe}' if recipe else ''}",
        f"{'stage':<{width}}{'kind':<9}{'chunks':>8}{'per rank':>10}{'batch':>7}"
        f"{'read MB':>10}{'moved MB':>10}{'staged MB':>11}{'peak MB':>9}{'seconds':>10}",
    ]
    for stage, planned in plan:
        largest_share = max(np.diff(planned.partition.cuts))
        lines.append(
            f"{stage.name:<{width}}{planned.kind:<9}{planned.chunks:>8}{largest_share:>10}{planned.batch:>7}"
            f"{megabytes(planned.read):>10}{megabytes(planned.moved):>10}{megabytes(planned.written):>11}"
            f"{megabytes(planned.peak):>9}{planned.seconds:>10.1f}"
        )
    t = totals(plan)
    lines.append(
        f"{'all stages':<{width}}{'':<34}{megabytes(t['read']):>10}{megabytes(t['bytes_moved']):>10}"
        f"{megabytes(t['staged']):>11}{megabytes(t['peak_per_rank']):>9}{t['seconds']:>10.1f}"
    )
    lines += _notes(plan, resources, t)
    return "\n".join(lines)


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
    width = 2 + max(len(name) for name, _, _ in (*rows, whole))
    lines = [
        f"{'planned and actual':<{width}}{'peak MB per rank':>18}{'MB moved':>18}{'seconds':>20}",
    ]
    for name, planned, actual in (*rows, whole):
        lines.append(
            f"{name:<{width}}{megabytes(planned['peak_per_rank']):>9}{megabytes(actual['peak_per_rank']):>9}"
            f"{megabytes(planned['bytes_moved']):>9}{megabytes(actual['bytes_moved']):>9}"
            f"{planned['seconds']:>10.1f}{actual['seconds']:>10.1f}"
        )
    return lines


def _together(entries: Sequence[Mapping]) -> dict:
    return {
        "peak_per_rank": max(entry["peak_per_rank"] for entry in entries),
        "bytes_moved": sum(entry["bytes_moved"] for entry in entries),
        "seconds": sum(entry["seconds"] for entry in entries),
    }


def megabytes(count: int) -> int:
    """Return MiB, rounded up."""
    return -(-int(count) // (1 << 20))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
