"""Plans of surveys: memory that does not grow with visits, crowded patches that hold nobody up. No pixels."""

from __future__ import annotations

import dataclasses
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from mpiimg.astro.sky.layout import MAX_STRIP_ROWS, MIN_STRIP_ROWS, Footprint, Layout, Patch
from mpiimg.astro.steps import calibrate, coadd, detect, warp
from mpiimg.astro.survey import Survey
from mpiimg.engine.boxes import Partition, box_shape, intersection
from mpiimg.engine.plan import Resources, min_memory, plan_recipe
from mpiimg.engine.recipe import Recipe

#: Pixels of a patch and of its border, and of a sensor on the tract.
INNER, BORDER, SENSOR = 2000, 100, 3200

#: Patches of the tract, rows and columns.
TRACT = (2, 4)

STEPS = (calibrate.STEP, warp.STEP, coadd.STEP, detect.STEP)


def patches() -> tuple[Patch, ...]:
    ends = [INNER * n for n in TRACT]
    found = []
    for row in range(TRACT[0]):
        for column in range(TRACT[1]):
            inner = tuple((INNER * k, INNER * (k + 1)) for k in (row, column))
            outer = tuple(
                (max(a - BORDER, 0), min(b + BORDER, end)) for (a, b), end in zip(inner, ends, strict=True)
            )
            found.append(Patch("r", (column, row), outer, inner))
    return tuple(found)


def survey(visits: int) -> Layout:
    """A layout of visits of two sensors side by side, dithered."""
    rng = np.random.default_rng(3)
    footprints = []
    for visit in range(visits):
        top, left = rng.integers(0, 800), rng.integers(0, 1500)
        for sensor in range(2):
            box = ((top, top + SENSOR), (left + sensor * SENSOR, left + (sensor + 1) * SENSOR))
            for number, patch in enumerate(patches()):
                common = intersection(patch.outer, box)
                if common is not None:
                    footprints.append(Footprint(2 * visit + sensor, number, common))
    return Layout(((4000, 4072),) * (2 * visits), patches(), tuple(footprints))


def recipe(layout: Layout) -> Recipe:
    """The steps of mpiimg-astro, without what they write, on exposures that are not there."""
    about = {"wcs": "", "identity": {}, "band": "r", "magzero": 25.0}
    exposures = [SimpleNamespace(name=f"exposure-{n}", **about) for n in range(len(layout.shapes))]
    tract = SimpleNamespace(to_toml=lambda: "", pixel_scale=0.333)
    first = Survey(exposures=tuple(exposures), frames=tuple(exposures), tract=tract, layout=layout)

    def stages():
        state = first
        for step in STEPS:
            state = yield from step.stages(state, step.parameters(), None)
        return state

    rates = {rate: seconds for step in STEPS for rate, (seconds, _) in step.rates.items()}
    return Recipe("mpiimg-astro", "survey", (), stages, lambda state: {}, {}, {}, "run.json", rates=rates)


def strips(layout: Layout):
    """The coadd of a layout, strip by strip."""
    state = Survey(
        layout=layout,
        warps=layout.warp_planes(),
        patches=layout.patch_planes(),
        weights=(1.0,) * len(layout.footprints),
    )
    return coadd.coadd(state, coadd.STEP.parameters())


def test_memory_does_not_grow_with_visits():
    """A rank holds an exposure with its warps, or a strip of a patch, and little else."""
    least, _ = min_memory(recipe(survey(8)))
    for visits in (24, 60):
        deep = recipe(survey(visits))
        assert min_memory(deep)[0] < 1.02 * least
        plan = plan_recipe(deep, Resources(2, least + (64 << 20)))
        assert max(section.peak for _, section in plan) <= least + (64 << 20)


def test_deep_patches_are_cut_into_thinner_strips():
    patch = patches()[0]
    rows = {depth: box_shape(patch.strips(depth)[0])[0] for depth in (0, 1, 32, 64, 256, 1000)}
    assert rows == {
        **dict.fromkeys((0, 1, 32), MAX_STRIP_ROWS),
        **{64: 128, 256: 32, 1000: MIN_STRIP_ROWS},
    }
    for depth in rows:
        edges = [box[0] for box in patch.strips(depth)]
        assert [edges[0][0], *(b for _, b in edges)] == [*(a for a, _ in edges), patch.outer[0][1]]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_a_crowded_patch_holds_nobody_up(ranks):
    """One patch of ten times the exposures of others: the slowest rank has at most a tenth above the mean."""
    crowded = 5
    footprints = [
        Footprint(exposure, number, patch.outer)
        for exposure in range(120)
        for number, patch in enumerate(patches())
        if exposure < 12 or number == crowded
    ]
    layout = Layout(((4000, 4072),) * 120, patches(), tuple(footprints))
    stage = strips(layout)
    work = np.zeros(len(layout.strips))
    for number, strip in enumerate(layout.strips):
        work[number] = (120 if strip.patch == crowded else 12) * np.prod(box_shape(strip.box))
    partition = Partition.balanced(stage.weights, ranks)
    shares = [work[list(partition.owned(rank))].sum() for rank in range(ranks)]
    assert max(shares) < 1.1 * np.mean(shares)
    assert work[[strip.patch == crowded for strip in layout.strips]].sum() > 0.5 * work.sum()


def test_the_libraries_of_a_recipe_count():
    """Every section, and the least memory, hold what the ranks of that recipe load."""
    light = recipe(survey(2))
    heavy = dataclasses.replace(light, baseline=light.baseline + (20 << 20))
    assert min_memory(heavy)[0] == min_memory(light)[0] + (20 << 20)
    ample = Resources(2, 64 << 30)
    for (_, one), (_, other) in zip(plan_recipe(light, ample), plan_recipe(heavy, ample), strict=True):
        assert other.peak == one.peak + (20 << 20)


def test_what_every_rank_keeps_of_the_layout_counts():
    """Python takes no more for the tables of pieces than is said, within the size of a dictionary's steps."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        layout = survey(60)
        warps = layout.warp_planes()
        assert len(layout.strips[0].footprints) > 0 and len(layout.members) == len(layout.shapes)
        assert all(array.nbytes == 4 * layout.warped_pixels for array in warps.arrays)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.6 * layout.nbytes < taken < 1.1 * layout.nbytes
