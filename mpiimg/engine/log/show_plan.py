"""A plan for people and for programs, and beside what really happened."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.engine.plan import Resources, Section
from mpiimg.engine.stage import Stage

Plan = Sequence[tuple[Stage, Section]]


def totals(plan: Plan) -> dict:
    """Return what a whole plan comes to: the highest peak, and sums of the rest."""
    sections = [section for _, section in plan]
    return {
        "peak_a_rank": max((section.peak for section in sections), default=0),
        "bytes_moved": sum(section.moved for section in sections),
        "bytes_moved_between_nodes": sum(section.between_nodes for section in sections),
        "messages": sum(section.messages for section in sections),
        "bytes_a_rank": sum(section.moved_a_rank for section in sections),
        "messages_a_rank": sum(section.messages_a_rank for section in sections),
        "read": sum(section.read for section in sections),
        "staged": sum(section.written for section in sections),
        "cpu_seconds": sum(section.cpu_seconds for section in sections),
        "seconds": sum(section.seconds for section in sections),
        "longest_stage_seconds": max((section.seconds for section in sections), default=0.0),
    }


def as_json(plan: Plan, resources: Resources) -> str:
    """Return the plan for programs: resources, stages, totals. Bytes and seconds, as in run.json."""
    stages = [
        {
            "stage": section.stage,
            "kind": section.kind,
            "chunks": section.chunks,
            "chunks_a_rank": int(max(np.diff(section.partition.cuts))),
            "batch": section.batch,
            "in_memory": [p.array.name for p in section.placements if p.memory],
            "in_files": [p.array.name for p in section.placements if not p.memory],
            "spilled": list(section.spilled),
            **predicted(section),
        }
        for _, section in plan
    ]
    found = {
        "ranks": resources.ranks,
        "nodes": resources.nodes,
        "memory_a_rank": resources.memory,
        "in_memory": resources.in_memory,
        "upper_bound": True,
        "totals": _rounded(totals(plan)),
        "stages": stages,
    }
    return json.dumps(found, indent=1)


def predicted(section: Section) -> dict:
    """Return what a section predicts, as run.json holds it."""
    return _rounded(
        {
            "peak_a_rank": section.peak,
            "bytes_moved": section.moved,
            "messages": section.messages,
            "bytes_a_rank": section.moved_a_rank,
            "messages_a_rank": section.messages_a_rank,
            "read": section.read,
            "staged": section.written,
            "cpu_seconds": section.cpu_seconds,
            "seconds": section.seconds,
        }
    )


def _rounded(numbers: Mapping) -> dict:
    return {key: float(f"{n:.4g}") if isinstance(n, float) else n for key, n in numbers.items()}


def table(plan: Plan, resources: Resources) -> str:
    """Return the plan for people."""
    width = 2 + max([len("all stages"), *(len(stage.name) for stage, _ in plan)])
    r = resources
    lines = [
        f"{_many(r.ranks, 'rank')} on {_many(r.nodes, 'node')}, {r.memory >> 20} MB a rank; "
        "upper bounds where the data decide",
        f"{'stage':<{width}}{'kind':<9}{'chunks':>8}{'a rank':>8}{'batch':>7}"
        f"{'read MB':>10}{'moved MB':>10}{'staged MB':>11}{'peak MB':>9}{'seconds':>10}",
    ]
    for stage, section in plan:
        most = max(np.diff(section.partition.cuts))
        lines.append(
            f"{stage.name:<{width}}{section.kind:<9}{section.chunks:>8}{most:>8}{section.batch:>7}"
            f"{megabytes(section.read):>10}{megabytes(section.moved):>10}{megabytes(section.written):>11}"
            f"{megabytes(section.peak):>9}{section.seconds:>10.1f}"
        )
    t = totals(plan)
    lines.append(
        f"{'all stages':<{width}}{'':<32}{megabytes(t['read']):>10}{megabytes(t['bytes_moved']):>10}"
        f"{megabytes(t['staged']):>11}{megabytes(t['peak_a_rank']):>9}{t['seconds']:>10.1f}"
    )
    lines += _notes(plan, resources, t)
    return "\n".join(lines)


def _notes(plan: Plan, resources: Resources, t: Mapping) -> list[str]:
    """Say what the table has no column for: files in place of memory, what a node needs, CPU time."""
    in_files = dict.fromkeys(
        name
        for _, section in plan
        for name in (*section.spilled, *(p.array.name for p in section.placements if not p.memory))
    )
    notes = []
    if in_files:
        notes.append(f"read back from files, since a rank's memory does not hold them: {', '.join(in_files)}")
    a_node = -(-resources.ranks // resources.nodes)
    if a_node > 1:
        notes.append(f"a node needs {megabytes(a_node * t['peak_a_rank'])} MB for its {a_node} ranks")
    if resources.nodes > 1:
        notes.append(f"{megabytes(t['bytes_moved_between_nodes'])} MB move between nodes")
    return [*notes, f"{t['cpu_seconds']:.0f} CPU-seconds in all, at the rates of this machine's CPU"]


def beside_actual(entries: Sequence[Mapping], every: bool) -> list[str]:
    """Return the last lines of a log: what was predicted and what was measured.

    Parameters
    ----------
    entries : of the stages, as in run.json
    every : a table of all stages; else one line
    """
    if not entries:
        return []
    rows = [(entry["stage"], entry["planned"], entry) for entry in entries]
    whole = ("all stages", _together([e["planned"] for e in entries]), _together(entries))
    if not every:
        _, planned, actual = whole
        return [
            f"peak {megabytes(actual['peak_a_rank'])} MB a rank "
            f"(planned {megabytes(planned['peak_a_rank'])}), "
            f"{megabytes(actual['bytes_moved'])} MB moved (planned {megabytes(planned['bytes_moved'])}), "
            f"{actual['seconds']:.1f} s (predicted {planned['seconds']:.1f})"
        ]
    width = 2 + max(len(name) for name, _, _ in (*rows, whole))
    lines = [
        f"{'planned and actual':<{width}}{'peak MB a rank':>18}{'MB moved':>18}{'seconds':>20}",
    ]
    for name, planned, actual in (*rows, whole):
        lines.append(
            f"{name:<{width}}{megabytes(planned['peak_a_rank']):>9}{megabytes(actual['peak_a_rank']):>9}"
            f"{megabytes(planned['bytes_moved']):>9}{megabytes(actual['bytes_moved']):>9}"
            f"{planned['seconds']:>10.1f}{actual['seconds']:>10.1f}"
        )
    return lines


def _together(entries: Sequence[Mapping]) -> dict:
    return {
        "peak_a_rank": max(entry["peak_a_rank"] for entry in entries),
        "bytes_moved": sum(entry["bytes_moved"] for entry in entries),
        "seconds": sum(entry["seconds"] for entry in entries),
    }


def megabytes(count: int) -> int:
    """Return MiB, rounded up."""
    return -(-int(count) // (1 << 20))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
