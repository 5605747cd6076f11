"""How the ranks of a job are spread over scans: so many groups, which each take one scan at a time.

Pure functions of ranks, costs and plans: every rank finds the same.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence

from mpiimg.engine.boxes import Partition
from mpiimg.engine.plan import Resources, StagePlan, plan_recipe
from mpiimg.engine.recipe import Recipe
from mpiimg.errors import BadInput

#: Share of the work on a scan that more ranks do not make faster: a .nii.gz is inflated by one.
SERIAL = 0.03


def group_sizes(ranks: int, costs: Sequence[float], min_size: int = 1) -> tuple[int, ...]:
    """Return how many ranks each group has, so that all scans are done as soon as can be.

    Parameters
    ----------
    ranks : int
        Of the job.
    costs : sequence of float
        Of the scans, in any unit; at least one scan.
    min_size : int
        Ranks that a group must have.
    """
    min_size = min(min_size, ranks)
    counts = sorted({min(ranks // size, len(costs)) for size in range(min_size, ranks + 1)}, reverse=True)
    return min((_even(ranks, count) for count in counts), key=lambda sizes: finished_after(sizes, costs))


def asked_sizes(ranks: int, size: int) -> tuple[int, ...]:
    """Return groups of `size` ranks, some with more where that does not divide all.

    Raises
    ------
    BadInput
        There are fewer ranks than that.
    """
    if size > ranks:
        raise BadInput(f"--group-size {size}: this job has {ranks} ranks; give it more, or ask for less")
    return _even(ranks, ranks // size)


def finished_after(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return when all scans are done if a group that is free takes the costliest that is left."""
    free = [(0.0, group) for group in range(len(sizes))]
    last = 0.0
    for cost in sorted(costs, reverse=True):
        now, group = free[0]
        now += cost * (SERIAL + (1 - SERIAL) / sizes[group])
        last = max(last, now)
        heapq.heapreplace(free, (now, group))
    return last


def part_of(resources: Resources, ranks: int) -> Resources:
    """Return what a group of `ranks` has of the resources of a job."""
    nodes = -(-ranks * resources.nodes // resources.ranks)
    return dataclasses.replace(resources, ranks=ranks, nodes=nodes)


def min_ranks(recipe: Recipe, resources: Resources) -> int:
    """Return how many ranks of a job a scan needs to keep its arrays in memory; to run at all, if none do."""

    def plan_of(count: int):
        try:
            return plan_recipe(recipe, part_of(resources, count))
        except BadInput:
            return None

    def fits(count: int) -> bool:
        plan = plan_of(count)
        return plan is not None and not any(_in_files(planned) for _, planned in plan)

    for enough in (fits, lambda count: plan_of(count) is not None):
        if enough(resources.ranks):
            return _first(enough, resources.ranks)
    return resources.ranks


def _in_files(planned: StagePlan) -> bool:
    """Say whether an array is left in files, or leaves memory for them, that a rank could not hold."""
    return bool(planned.spilled) or not all(placement.memory for placement in planned.placements)


def _first(holds: Callable[[int], bool], last: int) -> int:
    """Return the first number for which `holds`, as it does for all from there to `last`."""
    low = 1
    while low < last:
        middle = (low + last) // 2
        low, last = (low, middle) if holds(middle) else (middle + 1, last)
    return last


def _even(ranks: int, count: int) -> tuple[int, ...]:
    part = Partition.even(ranks, count)
    return tuple(len(part.owned(group)) for group in range(count))
