"""Plans: the same chunks for any ranks and memory, pure, balanced, and refused where nothing fits."""

from __future__ import annotations

import dataclasses
import os
import re

import nibabel
import numpy as np
import pytest

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.log import show_plan
from mpiimg.engine.plan import Recipe, Resources, bind, check, least_memory, static_plan, static_stages
from mpiimg.engine.stage import Need, Stage
from mpiimg.engine.stores import Array
from mpiimg.errors import BadInput
from mpiimg.neuro import subject as recipes
from mpiimg.simulate.neuro import Subject
from mpiimg.tools import cli

RANKS = (1, 2, 3, 4, 7, 16, 60, 128, 512)
MEMORY = (0.2, 0.75, 2, 64)
EVERY = [(ranks, memory) for ranks in RANKS for memory in MEMORY]
#: Plans at full size take a second each.
SOME = [(1, 64), (7, 0.2), (60, 0.75), (512, 2)]
SHAPES = {"hcp": ((145, 174, 145), 288), "small": ((20, 28, 24), 12)}
GB = 1 << 30


def subject(folder, shape, volumes):
    """An image of zeros that takes no place on disk, with gradients; returns its recipe's arguments."""
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
    return [
        str(path),
        "--bvals",
        str(folder / "dwi.bval"),
        "--bvecs",
        str(folder / "dwi.bvec"),
        "--out",
        "out",
    ]


def neuro(folder, shape, volumes, *extra):
    args = cli.parser("mpiimg-neuro").parse_args([*subject(folder, shape, volumes), *extra])
    found = recipes.inspect_subject(args.dwi, args.bvals, args.bvecs, fits=True)
    return recipes.neuro(found, vars(args))


@pytest.fixture(scope="module", params=SHAPES)
def recipe(request, tmp_path_factory):
    return neuro(
        tmp_path_factory.mktemp(request.param), *SHAPES[request.param], "--residual", "--fit-residual"
    )


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return neuro(tmp_path_factory.mktemp("big"), *SHAPES["hcp"])


def facts(section):
    """All of a section that can be compared."""
    placements = [
        (p.array, p.boxes.tolist(), p.owners.tolist(), p.memory, p.staged) for p in section.placements
    ]
    return (
        section.stage,
        section.partition,
        section.batch,
        section.peak,
        section.read,
        section.written,
        placements,
    )


def test_same_chunks_for_any_ranks_and_memory(recipe):
    """1 to 512 ranks, 0.2 to 64 GB: the chunks of a plan are those of every other plan."""
    grids = [(stage.name, stage.grid) for stage in static_stages(recipe)]
    assert len({name for name, _ in grids}) == len(grids)
    boxes = {a.name: stage.output_boxes(a) for stage in static_stages(recipe) for a in stage.writes}
    for ranks, memory in EVERY if recipe.inputs["dwi"].shape[0] < 100 else SOME:
        plan = static_plan(recipe, Resources(ranks, int(memory * GB)))
        assert [(stage.name, stage.grid) for stage, _ in plan] == grids
        for stage, section in plan:
            assert section.partition.ranks == ranks
            assert section.chunks == len(stage.grid)
            assert section.peak <= memory * GB
            for placement in section.placements:
                assert (placement.boxes == boxes[placement.array.name]).all()


def test_blocks_of_an_array_tile_it(recipe):
    """What the chunks of a stage write is the whole array, each item once."""
    for stage in static_stages(recipe):
        for array in stage.writes:
            boxes = stage.output_boxes(array)
            sizes = np.prod(boxes[..., 1] - boxes[..., 0], axis=1)
            assert sizes.sum() == np.prod(array.shape, dtype=np.int64)
            assert len(np.unique(boxes[sizes > 0, :, 0], axis=0)) == np.count_nonzero(sizes)


def test_plans_are_pure(big):
    for ranks, memory in ((3, 1), (128, 0.75)):
        one, other = (static_plan(big, Resources(ranks, int(memory * GB))) for _ in range(2))
        assert [facts(section) for _, section in one] == [facts(section) for _, section in other]


def test_less_memory_stages_what_more_memory_keeps(big):
    """Arrays that do not fit a rank's memory live in the staged file alone, and only those."""

    def kept(memory):
        plan = static_plan(big, Resources(2, int(memory * GB)))
        return {p.array.name: p.memory for _, section in plan for p in section.placements}

    assert all(kept(64).values())
    assert not kept(0.75)["denoised"]
    assert kept(0.75)["mask"]


def advice(message, pattern):
    """The number that a refusal advises."""
    found = re.search(pattern, message)
    assert found, message
    return int(found.group(1))


@pytest.mark.parametrize("ranks", [1, 2, 60])
def test_what_a_refusal_advises_is_enough_and_no_less_is(big, ranks):
    """One chunk and the libraries: no number of ranks helps, and the advised memory is the least."""
    with pytest.raises(BadInput, match=r"^stage \S+ needs \d+ MB a rank and has 128: one chunk ") as refused:
        check(big, Resources(ranks, 128 << 20))
    memory = advice(str(refused.value), r"--memory (\d+)M")
    check(big, Resources(ranks, memory << 20))
    with pytest.raises(BadInput):
        check(big, Resources(ranks, (memory << 20) - (1 << 20)))
    if ranks == 2:
        assert max(s.peak for _, s in static_plan(big, Resources(ranks, memory << 20))) <= memory << 20


def test_what_a_refusal_in_memory_advises_is_enough(tmp_path):
    """As many ranks, or as much memory, as it says: each of them was asked for alone."""
    small = neuro(tmp_path, (48, 56, 40), 300)
    tight = Resources(2, 170 << 20, in_memory=True)
    with pytest.raises(
        BadInput, match=r"needs \d+ MB a rank and has 170: leave out --in-memory, "
    ) as refused:
        static_plan(small, tight)
    message = str(refused.value)
    static_plan(small, dataclasses.replace(tight, memory=advice(message, r"--memory (\d+)M") << 20))
    static_plan(small, dataclasses.replace(tight, ranks=advice(message, r"use (\d+) ranks")))


def test_what_little_memory_can_do_more_can_too(tmp_path):
    """From the least memory on every plan fits, and is bound within it whatever the data turn out to be."""
    small = neuro(tmp_path, (48, 56, 40), 20)
    least, _ = least_memory(small)
    for memory in (least, least + (1 << 20), *range(least, least + (64 << 20), 9 << 20)):
        for ranks in (1, 2, 5):
            plan = static_plan(small, Resources(ranks, memory))
            assert max(section.peak for _, section in plan) <= memory


def test_a_plan_reads_as_a_table(recipe):
    resources = Resources(4, 8 * GB)
    lines = show_plan.table(static_plan(recipe, resources), resources).splitlines()
    assert lines[0].startswith("4 ranks on 1 node, 8192 MB a rank")
    assert [line.split()[0][:18] for line in lines[2:]][:3] == ["b0-mean", "median-1", "median-2"]
    assert lines[2 + len(static_stages(recipe))].startswith("all stages")


def test_denoising_and_fit_are_balanced_by_mask_voxels(big):
    """At 8 ranks the heaviest is at most a tenth above the mean, on a simulated brain of full size."""
    shape, volumes = SHAPES["hcp"]
    brain = Subject(shape, volumes, 40.0, 7)
    counts = [int(np.count_nonzero(brain.truth(z, z + 1)["mask"])) for z in range(shape[2])]
    values = {**big.values, "offsets": tuple(np.cumsum([0, *counts]).tolist())}
    checked = []
    for step in big.steps:
        stage = step(values)
        if stage is not None and stage.name in ("denoise", "fit"):
            checked.append(stage.name)
            section = bind(stage, Resources(8, 4 * GB), {}, range(len(stage.grid)))
            voxels = np.array([np.prod(b[:, 1] - b[:, 0]) for b in stage.output_boxes(stage.writes[0])])
            load = [voxels[list(section.partition.owned(rank))].sum() for rank in range(8)]
            assert sum(load) == voxels.sum()
            assert max(load) <= 1.1 * np.mean(load)
    assert checked == ["denoise", "fit"]


def test_only_chunks_still_to_do_weigh():
    """A resumed stage shares what is left, not what is done."""
    grid = ChunkGrid("z", (100,), (1,))
    stage = Stage("toy", "map", grid, (), (Array("a", "z", (100,), "uint8"),))
    todo = range(60, 100)
    section = bind(stage, Resources(4, GB), {}, todo)
    assert [len(set(section.partition.owned(rank)) & set(todo)) for rank in range(4)] == [10] * 4


def test_moved_bytes_counts_what_lies_elsewhere():
    """Two ranks with 4 of 8 rows each, halo 3: chunks next to the other rank want 3, 2 and 1 of its rows."""
    source = Array("a", "zx", (8, 5), "float32")
    grid = ChunkGrid("z", (8,), (1,))
    make = Stage("make", "map", grid, (), (source,))
    blur = Stage("blur", "stencil", grid, (Need(source, {"z": 3}),), (Array("b", "zx", (8, 5), "float32"),))
    for ranks, rows in ((1, 0), (2, 12)):
        resources = Resources(ranks, GB)
        placed = {p.array.name: p for p in bind(make, resources, {}, range(8)).placements}
        section = bind(blur, resources, placed, range(8))
        assert section.moved == rows * 5 * 4


def test_a_recipe_of_nothing_is_planned():
    empty = Recipe("toy", "toy", {}, [lambda values: None], {}, lambda values: {}, {}, {}, "run.json")
    assert static_plan(empty, Resources(4, GB)) == []
