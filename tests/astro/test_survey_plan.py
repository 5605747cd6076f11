"""Plans of surveys: memory that does not grow with visits, crowded patches that hold nobody up. No pixels."""

from __future__ import annotations

import dataclasses
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.sky.layout import BAND_ROWS, LEAST_BAND_ROWS, Footprint, Layout, Patch
from mpiimg.astro.steps import calibrate, coadd, detect, warp
from mpiimg.engine.boxes import Partition, box_shape
from mpiimg.engine.plan import Recipe, Resources, least_memory, static_plan

#: Pixels of a patch and of its border, and of a sensor on the tract.
INNER, BORDER, SENSOR = 2000, 100, 3200

#: Patches of the tract, rows and columns.
TRACT = (2, 4)


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
                common = tuple(
                    (max(a, c), min(b, d)) for (a, b), (c, d) in zip(patch.outer, box, strict=True)
                )
                if all(b > a for a, b in common):
                    footprints.append(Footprint(2 * visit + sensor, number, common))
    return Layout(((4000, 4072),) * (2 * visits), patches(), tuple(footprints))


def recipe(layout: Layout) -> Recipe:
    """The steps of mpiimg-astro that hold pixels, on exposures that are not there."""
    exposures = [SimpleNamespace(wcs="", identity={}, band="r", magzero=None) for _ in layout.shapes]
    tract = SimpleNamespace(to_toml=lambda: "")
    steps = [
        lambda values: calibrate.calibrate(layout, exposures, {}),
        lambda values: calibrate.solve(layout, exposures, None, 1.0, False),
        lambda values: warp.warp(layout, exposures, tract, (27.0,) * len(exposures)),
        lambda values: coadd.weigh(layout),
        lambda values: bands(layout),
        lambda values: coadd.few_inputs(layout, "clip", 3.0, 2),
        lambda values: detect.detect(layout, detection.Settings()),
    ]
    return Recipe("mpiimg-astro", "survey", {}, steps, {}, lambda values: {}, {}, {}, "run.json")


def bands(layout: Layout):
    return coadd.coadd(layout, (1.0,) * len(layout.footprints), "clip", 3.0, 2, False, False)


def test_memory_does_not_grow_with_visits():
    """A rank holds an exposure with its warps, or a band of a patch, and little else."""
    least, _ = least_memory(recipe(survey(8)))
    for visits in (24, 60):
        deep = recipe(survey(visits))
        assert least_memory(deep)[0] < 1.02 * least
        plan = static_plan(deep, Resources(2, least + (64 << 20)))
        assert max(section.peak for _, section in plan) <= least + (64 << 20)


def test_deep_patches_are_cut_into_thinner_bands():
    patch = patches()[0]
    rows = {depth: box_shape(patch.bands(depth)[0])[0] for depth in (0, 1, 32, 64, 256, 1000)}
    assert rows == {0: BAND_ROWS, 1: BAND_ROWS, 32: BAND_ROWS, 64: 128, 256: 32, 1000: LEAST_BAND_ROWS}
    for depth in rows:
        edges = [box[0] for box in patch.bands(depth)]
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
    stage = bands(layout)
    work = np.zeros(len(layout.bands))
    for band, (patch, box) in enumerate(layout.bands):
        work[band] = (120 if patch == crowded else 12) * np.prod(box_shape(box))
    partition = Partition.balanced(stage.weights, ranks)
    shares = [work[list(partition.owned(rank))].sum() for rank in range(ranks)]
    assert max(shares) < 1.1 * np.mean(shares)
    assert work[[patch == crowded for patch, _ in layout.bands]].sum() > 0.5 * work.sum()


def test_the_libraries_of_a_recipe_count():
    """Every section, and the least memory, hold what the ranks of that recipe load."""
    light = recipe(survey(2))
    heavy = dataclasses.replace(light, baseline=light.baseline + (20 << 20))
    assert least_memory(heavy)[0] == least_memory(light)[0] + (20 << 20)
    ample = Resources(2, 64 << 30)
    for (_, one), (_, other) in zip(static_plan(light, ample), static_plan(heavy, ample), strict=True):
        assert other.peak == one.peak + (20 << 20)


def test_what_every_rank_keeps_of_the_layout_counts():
    """Python takes no more for the tables of pieces than is said, within the size of a dictionary's steps."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        layout = survey(60)
        assert len(layout.table.of_key(0)) > 0
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.6 * layout.nbytes < taken < 1.1 * layout.nbytes
