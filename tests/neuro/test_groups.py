"""How many ranks work on a scan, for 1 to 512 ranks, without any."""

from __future__ import annotations

import pytest
from engine.test_plan import GB, neuro

from mpiimg.engine.plan import Resources, plan_recipe
from mpiimg.errors import BadInput
from mpiimg.neuro.cohort.groups import SERIAL, asked_sizes, finished_after, group_sizes, min_ranks

COSTS = {
    "one": [5.0],
    "alike": [1.0] * 65,
    "a few": [3.0, 1.0, 1.0],
    "mixed": [1.0 + (7 * i) % 11 for i in range(40)],
    "one large": [100.0] + [1.0] * 30,
}


def reference(sizes, costs):
    """Serve the costliest scan first, by the group that is free first."""
    free = [0.0] * len(sizes)
    ends = []
    for cost in sorted(costs, reverse=True):
        group = free.index(min(free))
        free[group] += cost * (SERIAL + (1 - SERIAL) / sizes[group])
        ends.append(free[group])
    return max(ends)


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
def test_all_ranks_are_used_and_no_split_is_better(costs):
    for ranks in range(1, 513, 1 if len(costs) < 10 else 7):
        for least in (1, 3, 1000):
            sizes = group_sizes(ranks, costs, least)
            assert sum(sizes) == ranks
            assert len(sizes) <= len(costs)
            assert min(sizes) >= min(least, ranks)
            assert max(sizes) - min(sizes) <= 1
        assert len(group_sizes(ranks, costs, 1000)) == max(1, min(ranks // 1000, len(costs)))
        if ranks % 37 < 3:
            best = reference(group_sizes(ranks, costs), costs)
            for count in range(1, min(ranks, len(costs)) + 1):
                if ranks % count == 0:
                    assert best <= reference([ranks // count] * count, costs) * (1 + 1e-9)


@pytest.mark.parametrize("sizes", [(1,), (2, 1, 1), (4, 4, 3)])
def test_the_end_of_a_job_is_predicted(sizes):
    for costs in COSTS.values():
        assert finished_after(sizes, costs) == pytest.approx(reference(sizes, costs))


def test_many_small_scans_go_to_single_ranks_and_one_scan_to_all():
    assert group_sizes(64, [1.0] * 640) == (1,) * 64
    assert group_sizes(64, [1.0]) == (64,)


@pytest.mark.parametrize(("ranks", "size", "sizes"), [(7, 3, (4, 3)), (4, 1, (1, 1, 1, 1)), (5, 5, (5,))])
def test_a_size_that_is_asked_for(ranks, size, sizes):
    assert asked_sizes(ranks, size) == sizes


def test_more_ranks_a_group_than_there_are():
    with pytest.raises(BadInput, match="--group-size 8: this job has 4 ranks"):
        asked_sizes(4, 8)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return neuro(tmp_path_factory.mktemp("subject"), (100, 100, 40), 60)


def holds(recipe, resources) -> bool:
    """Say whether ranks with so much memory leave no array in files alone."""
    try:
        plan = plan_recipe(recipe, resources)
    except BadInput:
        return False
    return all(p.memory for _, planned in plan for p in planned.placements) and not any(
        planned.spilled for _, planned in plan
    )


def most_held(recipe, ranks) -> int:
    """Return the bytes that a rank needs where memory is plenty."""
    return max(planned.peak for _, planned in plan_recipe(recipe, Resources(ranks, 64 * GB)))


@pytest.mark.parametrize("in_memory", [False, True])
def test_least_ranks_are_the_first_that_hold_a_scan(recipe, in_memory):
    enough = most_held(recipe, 3)
    least = min_ranks(recipe, Resources(4, enough, in_memory))
    found = [holds(recipe, Resources(ranks, enough, in_memory)) for ranks in range(1, 5)]
    assert found == [ranks >= least for ranks in range(1, 5)]
    assert 1 < least <= 3


def test_a_scan_that_no_ranks_can_hold_runs_by_the_disk(recipe):
    short = recipe.baseline + (most_held(recipe, 4) - recipe.baseline) // 4
    assert not holds(recipe, Resources(4, short))
    assert min_ranks(recipe, Resources(4, short)) == 1
    # And where it cannot run at all, the run itself says so.
    assert min_ranks(recipe, Resources(4, 1 << 20)) == 4
