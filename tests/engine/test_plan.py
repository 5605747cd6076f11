"""Plans: the same chunks for any ranks and memory, pure, balanced, and refused where nothing fits."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiimg.engine import compose, plugins
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.forecast import stage_sizes
from mpiimg.engine.log import show_plan, verdict, wording
from mpiimg.engine.needs import Part
from mpiimg.engine.plan import Resources, check, min_memory, plan_recipe, plan_stage
from mpiimg.engine.recipe import Recipe, output_names, staged_bytes
from mpiimg.engine.stage import Compute, Reduce, Stream
from mpiimg.errors import BadInput
from mpiimg.neuro.masks import Counts
from mpiimg.simulate.neuro import SimulatedSubject

RANKS = (1, 2, 3, 4, 7, 16, 60, 128, 512)
MEMORY = (0.3, 0.75, 2, 64)
EVERY = [(ranks, memory) for ranks in RANKS for memory in MEMORY]
#: Plans at full size take a second each.
SOME = [(1, 64), (7, 0.3), (60, 0.75), (512, 2)]
SHAPES = {"hcp": ((145, 174, 145), 288), "small": ((20, 28, 24), 12)}
GB = 1 << 30


def subject(folder, shape, volumes):
    """An image of zeros that takes no place on disk, with gradients; returns their paths."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*shape, volumes))
    header.set_sform(np.diag([1.25, 1.25, 1.25, 1.0]), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = folder / "dwi.nii"
    path.write_bytes(header.binaryblock + bytes(4))
    os.truncate(path, 352 + 2 * volumes * int(np.prod(shape)))
    directions = np.random.default_rng(0).normal(size=(3, volumes))
    np.savetxt(folder / "dwi.bvec", directions / np.linalg.norm(directions, axis=0))
    np.savetxt(folder / "dwi.bval", np.where(np.arange(volumes) % 16 == 0, 0, 1000)[None], "%d")
    return {"dwi": path, "bvals": folder / "dwi.bval", "bvecs": folder / "dwi.bvec", "mask": None}


def neuro(folder, shape, volumes, **settings):
    """The recipe of the pipeline mpiimg-neuro."""
    domain = plugins.domain("neuro")
    steps = [plugins.step(domain, name) for name in domain.pipelines["neuro"].steps]
    links = [compose.Link(step, compose.filled(step.parameters, settings), step.name) for step in steps]
    chain = compose.make_chain(domain, links, settings)
    inspected = compose.inspect_chain(chain, subject(folder, shape, volumes))
    return compose.make_recipe(chain, inspected, compose.RunName("mpiimg-neuro", "run.json"))


@pytest.fixture(scope="module", params=SHAPES)
def recipe(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return neuro(folder, *SHAPES[request.param], residual=True, fit_residual=True)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return neuro(tmp_path_factory.mktemp("big"), *SHAPES["hcp"])


def no_work(chunk, *blocks):
    """The work of stages that are only planned."""


def facts(planned):
    """All of the plan of a stage that can be compared."""
    placements = [
        (p.array, p.boxes.tolist(), p.owners.tolist(), p.memory, p.staged) for p in planned.placements
    ]
    return (
        planned.stage,
        planned.partition,
        planned.batch,
        planned.peak,
        planned.read,
        planned.written,
        placements,
    )


def written_boxes(stage):
    """The boxes that the chunks of a stage write, by the name of the array."""
    tables = zip(stage.arrays, stage_sizes(stage).tables, strict=True)
    return {array.name: (array, table.boxes) for array, table in tables}


def test_same_chunks_for_any_ranks_and_memory(recipe):
    """1 to 512 ranks, 0.3 to 64 GB: the chunks of a plan are those of every other plan."""
    grids = [(stage.name, stage.grid) for stage in recipe.expected]
    assert len({name for name, _ in grids}) == len(grids)
    boxes = {name: boxes for stage in recipe.expected for name, (_, boxes) in written_boxes(stage).items()}
    for ranks, memory in EVERY if recipe.inputs[0].array.shape[0] < 100 else SOME:
        plan = plan_recipe(recipe, Resources(ranks, int(memory * GB)))
        assert [(stage.name, stage.grid) for stage, _ in plan] == grids
        for stage, planned in plan:
            assert planned.partition.ranks == ranks
            assert planned.chunks == len(stage.grid)
            assert planned.peak <= memory * GB
            for placement in planned.placements:
                assert (placement.boxes == boxes[placement.array.name]).all()


def test_blocks_of_an_array_tile_it(recipe):
    """What the chunks of a stage write is the whole array, each item once."""
    for stage in recipe.expected:
        for array, boxes in written_boxes(stage).values():
            sizes = np.prod(boxes[..., 1] - boxes[..., 0], axis=1)
            assert sizes.sum() == np.prod(array.shape, dtype=np.int64)
            assert len(np.unique(boxes[sizes > 0, :, 0], axis=0)) == np.count_nonzero(sizes)


def test_plans_are_pure(big):
    for ranks, memory in ((3, 1), (128, 0.75)):
        one, other = (plan_recipe(big, Resources(ranks, int(memory * GB))) for _ in range(2))
        assert [facts(planned) for _, planned in one] == [facts(planned) for _, planned in other]


def test_less_memory_stages_what_more_memory_keeps(big):
    """Arrays that do not fit a rank's memory live in the staged file alone, and only those."""

    def kept(memory):
        plan = plan_recipe(big, Resources(2, int(memory * GB)))
        return {p.array.name: p.memory for _, planned in plan for p in planned.placements}

    assert all(kept(64).values())
    assert not kept(0.75)["denoise.denoised"]
    assert kept(0.75)["mask.thresholded"]


def advice(message, pattern):
    """The number that a refusal advises."""
    found = re.search(pattern, message)
    assert found, message
    return int(found.group(1))


@pytest.mark.parametrize("ranks", [1, 2, 60])
def test_what_a_refusal_advises_is_enough_and_no_less_is(big, ranks):
    """One chunk and the libraries: no number of ranks helps, and the advised memory is the least."""
    with pytest.raises(
        BadInput, match=r"^stage \S+ needs \d+ MB per rank and has 128: one chunk "
    ) as refused:
        check(big, Resources(ranks, 128 << 20))
    memory = advice(str(refused.value), r"--memory (\d+)M")
    check(big, Resources(ranks, memory << 20))
    with pytest.raises(BadInput):
        check(big, Resources(ranks, (memory << 20) - (1 << 20)))
    if ranks == 2:
        assert max(s.peak for _, s in plan_recipe(big, Resources(ranks, memory << 20))) <= memory << 20


def test_what_a_refusal_in_memory_advises_is_enough(tmp_path):
    """As many ranks, or as much memory, as it says: each of them was asked for alone."""
    small = neuro(tmp_path, (48, 56, 40), 300)
    tight = Resources(2, 170 << 20, in_memory=True)
    with pytest.raises(
        BadInput, match=r"needs \d+ MB per rank and has 170: leave out --in-memory, "
    ) as refused:
        plan_recipe(small, tight)
    message = str(refused.value)
    plan_recipe(small, dataclasses.replace(tight, memory=advice(message, r"--memory (\d+)M") << 20))
    plan_recipe(small, dataclasses.replace(tight, ranks=advice(message, r"use (\d+) ranks")))


def test_what_little_memory_can_do_more_can_too(tmp_path):
    """From the least memory on every plan fits, and is bound within it whatever the data turn out to be."""
    small = neuro(tmp_path, (48, 56, 40), 20)
    least, _ = min_memory(small)
    for memory in (least, least + (1 << 20), *range(least, least + (64 << 20), 9 << 20)):
        for ranks in (1, 2, 5):
            plan = plan_recipe(small, Resources(ranks, memory))
            assert max(planned.peak for _, planned in plan) <= memory


def test_a_plan_reads_as_a_table(recipe):
    resources = Resources(4, 8 * GB)
    plan = plan_recipe(recipe, resources)
    lines = show_plan.table(plan, resources, full=True).splitlines()
    assert lines[0].startswith("fits: a rank needs ") and lines[1].startswith("ranks worth having: ")
    assert lines[2].startswith("4 ranks on 1 node, 8192 MB per rank")
    names = ["mask.b0-mean", "mask.median-1", "mask.median-2"]
    assert [line.split()[0] for line in lines[4:7]] == names
    assert lines[4 + len(recipe.expected)].startswith("all stages")
    folded = show_plan.table(plan, resources).splitlines()
    end = next(number for number, line in enumerate(folded) if line.startswith("all stages"))
    assert [line.split()[0] for line in folded[4:end]] == ["mask", "volumes", "denoise", "fit", "qc"]
    # The last five columns are of all stages alike, whole or folded.
    assert folded[end].split()[-5:] == lines[4 + len(recipe.expected)].split()[-5:]


def test_a_plan_begins_with_what_it_comes_to(tmp_path):
    """Also where the disk is too small."""
    small = neuro(tmp_path, *SHAPES["small"])
    resources = Resources(4, 8 * GB)
    plan = plan_recipe(small, resources)
    needed = staged_bytes(small)
    tight = verdict.verdict(plan, resources, verdict.Disk(needed, needed - 1))
    assert not tight.fits
    (line, _) = verdict.in_words(tight, 4)
    assert (
        line.startswith("does not fit: ")
        and "free some, choose another --out or --work-dir, or use --in-memory" in line
    )
    assert verdict.verdict(plan, resources, verdict.Disk(needed, needed)).fits
    assert verdict.disk_of(small, dataclasses.replace(resources, in_memory=True), Path(".")) is None
    assert verdict.disk_of(small, resources, Path("no/such/folder")).needed == needed


@given(
    stages=st.lists(
        st.tuples(st.integers(1, 9000), st.floats(0.0, 1e5), st.booleans()), min_size=1, max_size=6
    )
)
def test_ranks_worth_having_are_those_that_work_for_half_of_the_time(stages):
    @dataclasses.dataclass
    class Planned:
        chunks: int
        cpu_seconds: float
        seconds: float

    class Serial(Stream):
        def __init__(self):
            pass

    plan = [(Serial() if alone else object(), Planned(n, t, t)) for n, t, alone in stages]

    def seconds(ranks):
        each = (t if alone else t * math.ceil(n / ranks) / n for n, t, alone in stages)
        return verdict.START + sum(each)

    worth, then = verdict.ranks_worth(plan)
    assert then == pytest.approx(seconds(worth))
    assert worth * then <= 2 * seconds(1) * (1 + 1e-9)
    most = max([1, *(n for n, _, alone in stages if not alone)])
    assert worth == most or most > 4096 or (worth + 1) * seconds(worth + 1) > 2 * seconds(1) * (1 - 1e-9)


WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=40)
ASCII = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


def rows_of(cells):
    return st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1))


@given(rows=rows_of(WORDS | st.integers()))
def test_columns_never_touch(rows):
    """Whatever is in the cells, each is found again, since none of them holds a space."""
    lines = wording.columns(rows)
    assert [line.split() for line in lines] == [[str(cell) for cell in row if cell != ""] for row in rows]


@given(rows=rows_of(ASCII | st.integers()))
def test_columns_end_where_they_end_in_every_row(rows):
    ends = [[word.end() for word in re.finditer(r"\S+", line)] for line in wording.columns(rows)]
    assert len({tuple(one[1:]) for one in ends}) == 1
    assert {word.start() for line in wording.columns(rows) for word in [re.search(r"\S", line)]} == {0}


def test_denoising_and_fit_are_balanced_by_mask_voxels(tmp_path):
    """At 8 ranks the heaviest is at most a tenth above the mean, on a simulated brain of full size."""
    shape, volumes = SHAPES["hcp"]
    brain = SimulatedSubject(shape, volumes, 40.0, 7)
    counts = [int(np.count_nonzero(brain.truth(z, z + 1)["mask"])) for z in range(shape[2])]
    offsets = tuple(np.cumsum([0, *counts]).tolist())
    recipe, checked = neuro(tmp_path, shape, volumes, inside_mask=True), []
    for stage in as_run(recipe, {"mask.mask-voxels": Counts(offsets, None, (0,) * 6)}):
        if stage.name in ("denoise", "fit"):
            checked.append(stage.name)
            sizes = stage_sizes(stage)
            planned = plan_stage(stage, sizes, Resources(8, 4 * GB).of(recipe), {}, range(len(stage.grid)))
            voxels = sizes.tables[0].boxes[:, 1, 1] - sizes.tables[0].boxes[:, 1, 0]
            if stage.name == "denoise":
                assert voxels.sum() == volumes * offsets[-1]
            load = [voxels[list(planned.partition.owned(rank))].sum() for rank in range(8)]
            assert sum(load) == voxels.sum()
            assert max(load) <= 1.1 * np.mean(load)
    assert checked == ["denoise", "fit"]


def as_run(recipe, values):
    """The stages of a recipe as a run meets them that finds `values`, by stage, and else what is expected."""
    stages, value = recipe.stages(), None
    with contextlib.suppress(StopIteration):
        while True:
            stage = stages.send(value)
            yield stage
            value = values.get(stage.name, stage.expected) if isinstance(stage, Reduce) else None


def test_only_chunks_still_to_do_weigh():
    """A resumed stage shares what is left, not what is done."""
    grid = ChunkGrid("z", (100,), (1,))
    stage = Compute("toy", grid, writes=(Array("a", "z", (100,), "uint8"),), work=no_work)
    todo = range(60, 100)
    planned = plan_stage(stage, stage_sizes(stage), Resources(4, GB), {}, todo)
    assert [len(set(planned.partition.owned(rank)) & set(todo)) for rank in range(4)] == [10] * 4


def test_moved_bytes_counts_what_lies_elsewhere():
    """Two ranks with 4 of 8 rows each, halo 3: chunks next to the other rank want 3, 2 and 1 of its rows."""
    source = Array("a", "zx", (8, 5), "float32")
    grid = ChunkGrid("z", (8,), (1,))
    make = Compute("make", grid, writes=(source,), work=no_work)
    result = Array("b", "zx", (8, 5), "float32")
    blur = Compute("blur", grid, reads=(Part(source, {"z": 3}),), writes=(result,), work=no_work)
    for ranks, rows in ((1, 0), (2, 12)):
        resources = Resources(ranks, GB)
        planned = plan_stage(make, stage_sizes(make), resources, {}, range(8))
        placed = {p.array.name: p for p in planned.placements}
        assert plan_stage(blur, stage_sizes(blur), resources, placed, range(8)).moved == rows * 5 * 4


def test_a_recipe_of_nothing_is_planned():
    def stages():
        return "the end"
        yield

    empty = Recipe("toy", "toy", (), stages, lambda state: {state: b""}, {}, {}, "run.json")
    assert output_names(empty) == ["the end", "run.json"]
    assert plan_recipe(empty, Resources(4, GB)) == []
