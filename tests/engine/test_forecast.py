"""Forecasts of memory and exchanges against counting item by item: toys on any ranks, nodes and memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support import toy
from support.reference import StageForecast, nbytes, stored_items

from mpiimg.engine import plan
from mpiimg.engine.array import Array
from mpiimg.engine.blocks import BlockTable
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.forecast import stage_sizes
from mpiimg.engine.needs import Part, Pieces, Rows
from mpiimg.engine.plan import Resources, min_memory, plan_recipe, plan_stage
from mpiimg.engine.stage import Compute, Found, Records, Reduce, Sink, Stream


def no_work(*arguments):
    """The work of stages that are only planned."""


def mixed():
    """Arrays of very different sizes, rows joined in a copy, a sink whose bytes count, a costly end."""
    volumes = Array("volumes", "vzx", (5, 9, 40), "float64")
    small, mean = Array("small", "zx", (9, 3), "uint8"), Array("mean", "zx", (9, 40), "float32")
    slabs = ChunkGrid("z", (9,), (2,))

    def stages():
        grid = ChunkGrid("vz", (5, 9), (1, 4))
        yield Stream("read", grid, array=volumes, blocks=no_work)
        yield Compute("small", slabs, writes=(small,), work=no_work, scratch=100)
        yield Compute(
            "mean",
            slabs,
            reads=(Rows(volumes, (0, 1, 4), {"z": 1}), Part(small)),
            writes=(mean,),
            work=no_work,
            scratch=999,
        )
        yield Reduce(
            "sum",
            slabs,
            reads=(Rows(volumes, (1, 2)), Part(mean), Part(small)),
            work=no_work,
            row=((7,), "float64"),
            finish=Found,
            expected=1,
            finish_bytes=12345,
        )
        reads = (Part(mean), Part(volumes))
        one = ChunkGrid("z", (9,), (1,))
        yield Sink("write", one, reads=reads, work=no_work, file="x", chunk_bytes=4321, scratch=10)
        yield Sink("write-small", one, reads=(Part(small),), work=no_work, file="y", chunk_bytes=77)
        return np.float32(0)

    return toy.recipe("mixed", stages)


RECIPES = {name: lambda make=make: make().recipe for name, make in toy.TOYS.items()} | {
    "mixed": mixed,
    "thick": lambda: toy.smooth(depth=17, passes=2).recipe,
}
RANKS = (1, 2, 3, 5)


@pytest.fixture(params=RECIPES)
def recipe(request):
    return RECIPES[request.param]()


def memories(recipe):
    """The least that will do, a little more, most of what is asked for, and plenty."""
    least, _ = min_memory(recipe)
    most = max(planned.peak for _, planned in plan_recipe(recipe, Resources(1, toy.PLENTY)))
    return [least, *(least + (most - least) * share // 8 for share in (1, 3, 5, 7)), most, toy.PLENTY]


def written_by(stage, partition):
    """Where the blocks lie that a stage writes, and who owns them, by array."""
    chunks = [stage.chunk(number) for number in range(len(stage.grid))]
    if isinstance(stage, Records):
        index = stage.expected_index
        boxes = [index.array.item(number) for number in range(len(index))]
        return {index.name: (index.array, boxes, [partition.owner(int(chunk)) for chunk in index.chunks])}
    return {
        output.array.name: (
            output.array,
            [box for chunk in chunks for box in output.boxes(chunk)],
            [partition.owner(chunk.number) for chunk in chunks for _ in output.boxes(chunk)],
        )
        for output in stage.targets
    }


def counted(stage, planned, placed, resources):
    """Count what a stage needs; while that is too much, the largest array gives way."""
    written = written_by(stage, planned.partition)
    held = {**placed, **written}
    while True:
        forecast = StageForecast(
            stage,
            planned.partition,
            planned.in_flight,
            held,
            written,
            range(len(stage.grid)),
            resources.nodes,
            resources.in_memory,
        )
        shares = {name: max(forecast.share(name)) for name in held}
        largest = max(shares, key=shares.get, default=None)
        fits = forecast.peak(plan.BASELINE) <= resources.memory or resources.in_memory
        if fits or largest is None or shares[largest] == 0:
            return forecast, held
        held = {name: one for name, one in held.items() if name != largest}


def check_plan(recipe, resources):
    """Every number of a plan is what counting gives; return how often arrays gave way."""
    stages = plan_recipe(recipe, resources)
    placed, spilled = {}, 0
    for number, (stage, planned) in enumerate(stages):
        later = {need.array.name for other, _ in stages[number:] for need in other.reads}
        placed = {name: one for name, one in placed.items() if name in later}
        forecast, held = counted(stage, planned, placed, resources)
        where = f"{stage.name} with {resources}"
        gone = [name for name in placed if name not in held]
        assert [name for name in planned.spilled if sum(forecast_bytes(placed[name]))] == gone, where
        made = (*planned.placements, *planned.expected)
        kept = {p.array.name: p.memory for p in made if p.array.nbytes}
        assert kept == {name: name in held for name in kept}, where
        assert planned.peak == forecast.peak(plan.BASELINE), where
        assert planned.batch == forecast.batch, where
        assert (planned.moved, planned.moved_per_rank) == (sum(forecast.sent), max(forecast.sent)), where
        assert planned.messages == sum(forecast.messages), where
        assert planned.messages_per_rank == max(forecast.messages), where
        assert planned.between_nodes == forecast.between_nodes, where
        placed = held
        spilled += len(gone) + sum(not memory for memory in kept.values())
    return spilled


def forecast_bytes(placed):
    array, boxes, _ = placed
    return [nbytes(array, stored_items(array, box)) for box in boxes]


@pytest.mark.parametrize("in_flight", [40, 900, plan.IN_FLIGHT])
def test_a_plan_is_what_counting_gives(recipe, in_flight, monkeypatch):
    """In rounds of any size, and with any memory: peaks, what gives way, bytes and messages."""
    monkeypatch.setattr(plan, "IN_FLIGHT", in_flight)
    spilled = {}
    for ranks, memory in itertools.product(RANKS, memories(recipe)):
        spilled[memory] = check_plan(recipe, Resources(ranks, memory, nodes=min(ranks, 2)))
    assert max(spilled.values()) > 0
    assert spilled[toy.PLENTY] == 0


@pytest.mark.parametrize("nodes", [1, 2, 3, 6])
def test_bytes_between_nodes_are_those_that_leave_one(recipe, nodes):
    resources = Resources(6, toy.PLENTY, nodes=nodes)
    check_plan(recipe, resources)
    planned = [planned for _, planned in plan_recipe(recipe, resources)]
    assert all(0 <= one.between_nodes <= one.moved for one in planned)
    if nodes == 1:
        assert sum(one.between_nodes for one in planned) == 0
    if nodes == 6:
        assert [one.between_nodes for one in planned] == [one.moved for one in planned]


def test_in_memory_nothing_gives_way(recipe):
    assert check_plan(recipe, Resources(3, toy.PLENTY, in_memory=True)) == 0


def planned_of(stage, memory=toy.PLENTY, ranks=1, placed=None):
    resources = Resources(ranks, memory)
    return plan_stage(stage, stage_sizes(stage), resources, placed or {}, range(len(stage.grid)))


def test_the_end_of_a_reduction_is_planned():
    """On the rank that decides for all: all rows, and what the end says it takes."""
    grid = ChunkGrid("z", (10,), (1,))
    row = ((1000,), "float64")
    for finish_bytes in (0, 1 << 20, 30 << 20):
        stage = Reduce("sum", grid, work=no_work, row=row, finish=Found, finish_bytes=finish_bytes)
        rows = 10 * 8000
        # The rows are held too.
        assert planned_of(stage).peak == plan.BASELINE + rows + max(rows + finish_bytes, 3 * 8000)
        made = toy.recipe("ends", lambda stage=stage: one_stage(stage))
        assert min_memory(made)[0] == plan.BASELINE + max(rows + finish_bytes, 4 * 8000)


def one_stage(stage):
    yield stage


def test_work_that_says_what_it_takes_is_believed():
    array = Array("a", "z", (10,), "float64")
    stage = Compute("make", ChunkGrid("z", (10,), (2,)), writes=(array,), work=no_work, scratch=1 << 20)
    assert planned_of(stage).peak == plan.BASELINE + 80 + (1 << 20)


def test_pieces_of_a_chunk_are_counted_together():
    array = Array("a", "z", (10,), "uint8")
    pieces = Pieces(array, lambda chunk: (((0, 3),), ((5, 10),)))
    stage = Compute("use", ChunkGrid("k", (2,), (1,)), reads=(pieces,), writes=(), work=no_work)
    assert stage_sizes(stage).reads.tolist() == [[8, 8]]
    assert stage_sizes(stage).largest == 8


def seconds_at(rate, ranks=1, nodes=1, in_memory=False):
    """What a toy takes, stage by stage, if only one rate is not 0: a second per unit."""
    rates = dict.fromkeys(("second", "pass", "move", "stage", "network", "slow"), 0.0) | {rate: 1.0}
    resources = Resources(ranks, toy.PLENTY, in_memory, nodes, rates)
    return [planned for _, planned in plan_recipe(toy.recipe("timed", timed), resources)]


def timed():
    """Ten rows of 80 bytes made one at a time, the last at most cost, and turned, with their neighbours."""
    rows, turned = (Array(name, "zx", (10, 10), "float64") for name in ("rows", "turned"))
    grid = ChunkGrid("z", (10,), (1,))
    weights = (1, 1, 1, 1, 1, 1, 1, 1, 1, 3)
    yield Compute("make", grid, writes=(rows,), work=no_work, cost=("slow", 24.0), weights=weights)
    yield Compute("turn", grid, reads=(Part(rows, {"z": 1}),), writes=(turned,), work=no_work)


def test_time_is_that_of_bytes_moved_and_work_at_their_rates():
    make, turn = seconds_at("slow", ranks=2)
    assert (make.cpu_seconds, make.seconds, turn.cpu_seconds) == (24, 12, 0), "six rows and four"
    make, turn = seconds_at("stage", ranks=2)
    assert (make.cpu_seconds, make.seconds) == (800, 480)
    assert (turn.cpu_seconds, turn.seconds) == (800, 400)
    assert [one.cpu_seconds for one in seconds_at("stage", in_memory=True)] == [0, 0]
    make, turn = seconds_at("pass")
    assert (make.cpu_seconds, turn.cpu_seconds) == (800, 800 + 28 * 80)
    make, turn = seconds_at("move", ranks=2)
    # The second rank's first chunk takes two rows that the first rank made, and its second chunk one.
    assert (make.cpu_seconds, turn.cpu_seconds, turn.seconds) == (0, 480, 240)
    make, turn = seconds_at("network", ranks=2, nodes=2)
    assert (make.seconds, turn.seconds) == (0, 240 / 2)


# Blocks of a stage.


def test_parts_of_a_box_are_found_whichever_way_blocks_lie():
    """In order along the first axis, where few are looked at; and in any other order."""
    rng = np.random.default_rng(0)
    array = Array("a", "zx", (12, 6), "uint8")
    grids = [ChunkGrid("z", (12,), (2,)), ChunkGrid("x", (6,), (2,)), ChunkGrid("zx", (12, 6), (5, 4))]
    shuffled = [((z, z + 1), (0, 6)) for z in rng.permutation(12).tolist()]
    tables = [table_of(Part(array), grid) for grid in grids]
    tables.append(table_of(Pieces(array, lambda chunk: shuffled), ChunkGrid("k", (1,), (1,))))
    assert [table.ordered for table in tables] == [True, True, True, False]
    for table in tables:
        for _ in range(60):
            box = tuple(tuple(sorted(rng.integers(0, n + 1, 2).tolist())) for n in array.shape)
            blocks, common = table.parts(box)
            expected = []
            for number, block in enumerate(table.boxes.tolist()):
                if shared := stored_items(array, box) & stored_items(array, block):
                    expected.append((number, shared))
            found = [(n, stored_items(array, c)) for n, c in zip(blocks, common.tolist(), strict=True)]
            assert found == expected


def table_of(output, grid):
    return BlockTable(output, grid)


def test_a_table_knows_the_blocks_of_a_chunk():
    """Chunks without a block, and with several, among them."""
    array = Array("a", "z", (10,), "uint8")
    of_chunks = {0: (), 1: (((0, 4),), ((4, 5),)), 2: (), 3: (((5, 10),),)}
    table = table_of(Pieces(array, lambda chunk: of_chunks[chunk.number]), ChunkGrid("k", (4,), (1,)))
    assert [list(table.of_chunk(number)) for number in range(4)] == [[], [0, 1], [], [2]]
    assert table.items().tolist() == [4, 1, 5]
    assert table.chunk_items().tolist() == [0, 5, 0, 5]
    assert table.owners(np.array([7, 8, 9, 6])).tolist() == [8, 8, 6]
