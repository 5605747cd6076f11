"""Boxes of all chunks by arithmetic, and their exchanges, against one chunk and one block after the other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mpiimg.engine import box_table
from mpiimg.engine.array import Array, Packing, Ragged
from mpiimg.engine.blocks import BlockTable, Placement
from mpiimg.engine.box_table import BoxTable, first_of_each
from mpiimg.engine.boxes import ChunkGrid, Partition, box_size, box_slices, intersection
from mpiimg.engine.exchanges import GatheredBoxes, _Exchange, forecast_exchange, gather_rounds
from mpiimg.engine.forecast import stage_sizes
from mpiimg.engine.needs import At, Chunk, ChunkBoxes, OwnRow, Part, Pieces, Rows
from mpiimg.engine.stage import Compute, Reduce

SEEDS = range(60)


def chunks_of(grid):
    return [Chunk.of(grid, number) for number in range(len(grid))]


def tuples(boxes):
    return [tuple(map(tuple, box)) for box in np.asarray(boxes).tolist()]


# Chunks, arrays and grids drawn at random.


def drawn_grid(rng, axes, shape):
    """A grid over some axes of an array in any order, and now and then one that the array does not have."""
    names = [axis for axis in axes if rng.random() < 0.7]
    rng.shuffle(names)
    lengths = dict(zip(axes, shape, strict=True))
    if rng.random() < 0.2:
        names.append("other")
        lengths["other"] = 2
    block = tuple(int(rng.integers(1, 5)) for _ in names)
    return ChunkGrid(tuple(names), tuple(lengths[name] for name in names), block)


def drawn_dense(rng, name="a"):
    axes = ("t", "row", "x", "c")[: rng.integers(1, 5)]
    return Array(name, axes, tuple(int(n) for n in rng.integers(1, 8, len(axes))), "int16")


def drawn_need(rng, array):
    """A need of any kind, and whether its boxes of all chunks are known at once."""
    halo = {axis: int(rng.integers(0, 4)) for axis in array.axes if rng.random() < 0.5}
    kind = rng.integers(0, 4)
    if kind == 0:
        rows = tuple(np.flatnonzero(rng.random(array.shape[0]) < 0.6).tolist()) or (0,)
        return Rows(array, rows, halo)
    if kind == 1:
        near = Part(array, halo)
        return At(array, lambda chunk: near.boxes(chunk)[0] if chunk.number % 3 else None)
    if kind == 2:
        some = [Part(array, halo), Part(array)]
        return Pieces(array, lambda chunk: [one.boxes(chunk)[0] for one in some[: chunk.number % 3]])
    return Part(array, halo)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_boxes_of_all_chunks_are_those_of_each(seed):
    rng = np.random.default_rng(seed)
    array = drawn_dense(rng)
    grid = drawn_grid(rng, array.axes, array.shape)
    assert tuples(grid.table()) == [grid.bounds(number) for number in range(len(grid))]
    for need in (Part(array), drawn_need(rng, array), OwnRow(array.like("rows"))):
        every = [need.boxes(chunk) for chunk in chunks_of(grid)]
        boxes, counts = ChunkBoxes(need, grid).all()
        assert tuples(boxes) == [box for own in every for box in own]
        assert counts.tolist() == list(map(len, every))
        some = rng.permutation(len(grid))[: len(grid) // 2]
        boxes, counts = ChunkBoxes(need, grid).of(some)
        assert tuples(boxes) == [box for number in some for box in every[number]]
        table = BlockTable(need, grid)
        assert [tuples(table.boxes[list(table.of_chunk(n))]) for n in range(len(grid))] == list(
            map(list, every)
        )
        assert table.chunk_items().tolist() == [sum(map(box_size, own)) for own in every]


@pytest.mark.parametrize("seed", range(20))
def test_the_boxes_of_voxels_that_follow_slices_are_those_of_each_chunk(seed):
    rng = np.random.default_rng(seed)
    offsets = tuple(np.cumsum([0, *rng.integers(0, 4, 9)]).tolist())
    array = Array("maps", "cn", (3, offsets[-1]), "float32", Packing("n", "z", offsets))
    grid = ChunkGrid("zc", (9, 3), (int(rng.integers(1, 5)), int(rng.integers(1, 4))))
    for need in (Part(array), Part(array, {"z": 2}), Part(array, {"n": 1, "z": 1, "c": 5})):
        assert tuples(need.table(grid)) == [need.boxes(chunk)[0] for chunk in chunks_of(grid)]


@pytest.mark.parametrize("seed", range(20))
def test_the_boxes_of_items_are_those_of_each_chunk(seed):
    """Items of no length, and chunks behind the end of an item, among them."""
    rng = np.random.default_rng(seed)
    shapes = tuple(tuple(rng.integers(0, 6, 2).tolist()) for _ in range(rng.integers(1, 6)))
    array = Ragged("items", "eyx", shapes, "uint8")
    cut = ["e", *(axis for axis in "yx" if rng.random() < 0.6)]
    rng.shuffle(cut)
    grid = ChunkGrid(tuple(cut), tuple({"e": len(shapes)}.get(axis, 7) for axis in cut), (1,) * len(cut))
    for halo in ({}, {"y": 2}, {"y": 1, "x": 3}):
        need = Part(array, halo)
        assert tuples(need.table(grid)) == [need.boxes(chunk)[0] for chunk in chunks_of(grid)]
    one = Ragged("one", "eyx", ((3, 4),), "uint8")
    assert tuples(Part(one).table(ChunkGrid("y", (3,), (2,)))) == [
        ((0, 1), (0, 2), (0, 4)),
        ((0, 1), (2, 3), (0, 4)),
    ]


def test_a_chunk_of_several_items_is_refused_of_all_chunks_too():
    array = Ragged("items", "ex", ((3,), (4,), (5,)), "uint8")
    with pytest.raises(ValueError, match="array items: a chunk has one item along 'e'"):
        Part(array).table(ChunkGrid("e", (3,), (2,)))


def test_a_table_of_another_shape_is_refused():
    class Short(Part):
        def table(self, grid):
            return super().table(grid)[1:]

    array = Array("a", "z", (4,), "uint8")
    with pytest.raises(
        ValueError, match=r"array a: the table of Short has shape \(3, 1, 2\), and not \(4, 1, 2\)"
    ):
        ChunkBoxes(Short(array), array.cut(z=1))


# Look-up of blocks.


def drawn_blocks(rng):
    """Disjoint blocks of an array: a lattice, in order or not, some missing, or of any shapes."""
    array = drawn_dense(rng)
    cuts = [np.unique([0, n, *rng.integers(0, n + 1, 3)]).tolist() for n in array.shape]
    if rng.random() < 0.3:  # with empty ones between them
        cuts = [sorted([*cut, cut[len(cut) // 2]]) for cut in cuts]
    boxes = list(itertools.product(*(list(itertools.pairwise(cut)) for cut in cuts)))
    order = rng.integers(0, 4)
    if order == 1:
        rng.shuffle(boxes)
        boxes = [tuple(map(tuple, np.array(box).tolist())) for box in boxes]
    elif order == 2:
        boxes = [box for box in boxes if rng.random() < 0.7] or boxes[:1]
    elif order == 3:  # numbered along another axis first
        boxes.sort(key=lambda box: box[::-1])
    return array, boxes


def drawn_box(rng, shape):
    ends = [sorted(rng.integers(-1, n + 2, 2).tolist()) for n in shape]
    return tuple((a, b) for a, b in ends)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_boxes_share_with_blocks_is_found_whichever_way_they_lie(seed, monkeypatch):
    monkeypatch.setattr(box_table, "PAIRS", 1 + seed % 7)
    monkeypatch.setattr(box_table, "FEW_BLOCKS", seed % 5)
    rng = np.random.default_rng(seed)
    array, blocks = drawn_blocks(rng)
    boxes = [drawn_box(rng, array.shape) for _ in range(rng.integers(0, 12))]
    table = BoxTable(np.array(blocks, np.int64))
    expected = [
        (which, number, common)
        for which, box in enumerate(boxes)
        for number, block in enumerate(blocks)
        if (common := intersection(box, block))
    ]
    which, numbers, common = table.look_up(np.array(boxes, np.int64).reshape(-1, len(array.shape), 2))
    assert list(zip(which.tolist(), numbers.tolist(), tuples(common), strict=True)) == expected
    for place, box in enumerate(boxes):
        numbers, common = table.parts(box)
        found = list(zip(numbers.tolist(), tuples(common), strict=True))
        assert found == [(number, part) for which, number, part in expected if which == place]


def test_a_lattice_is_known_as_one_and_nothing_else_is():
    array = Array("a", "zyx", (6, 5, 4), "uint8")
    whole = Part(array).table(array.cut(y=2, x=3, z=4))
    turned = Part(array).table(ChunkGrid("xz", (4, 6), (3, 4)))
    assert all(BoxTable(boxes)._lattice is not None for boxes in (whole, whole[::-1], turned))
    uneven = whole.copy()
    uneven[0, 0, 1] -= 1
    assert all(BoxTable(boxes)._lattice is None for boxes in (whole[1:], uneven, whole[[0, 0]], whole[:0]))


@pytest.mark.parametrize("seed", range(30))
def test_merged_blocks_belong_to_whom_they_did(seed):
    """Item by item, and by far fewer blocks where whole slices have one owner."""
    rng = np.random.default_rng(seed)
    array, blocks = drawn_blocks(rng)
    boxes = np.array(blocks, np.int64)
    owners = rng.integers(0, 2, 9)[boxes[:, rng.integers(0, boxes.shape[1]), 0]]
    table, theirs = BoxTable(boxes).merged(owners)

    def owned(boxes, owners):
        found = np.full(array.shape, -1)
        for box, owner in zip(tuples(boxes), owners.tolist(), strict=True):
            assert (found[box_slices(box)] == -1).all()
            found[box_slices(box)] = owner
        return found

    assert (owned(table.boxes, theirs) == owned(boxes, owners)).all()
    assert len(table.boxes) <= len(boxes)


def test_slabs_of_one_owner_are_merged():
    array = Array("a", "vz", (6, 40), "uint8")
    table = BoxTable(Part(array).table(array.cut(v=2, z=1)))
    merged, owners = table.merged(np.repeat([0, 1, 2], 40))
    assert (tuples(merged.boxes), owners.tolist()) == ([((v, v + 2), (0, 40)) for v in (0, 2, 4)], [0, 1, 2])


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_counted_once_in_a_group(seed):
    """Also where the corners of boxes lie too far apart for one number."""
    rng = np.random.default_rng(seed)
    far = 1 << int(rng.integers(0, 50))
    boxes = rng.integers(0, 3, (30, int(rng.integers(1, 4)), 2)) * far
    groups = np.sort(rng.integers(0, 3, 30))
    keys = [(int(group), box) for group, box in zip(groups, tuples(boxes), strict=True)]
    expected = [i for i, key in enumerate(keys) if key not in keys[:i]]
    assert first_of_each(groups, boxes).tolist() == expected


# Exchanges.


def plain_boxes(stage, need, numbers):
    return list(dict.fromkeys(box for n in numbers for box in need.boxes(stage.chunk(n))))


def plain_rounds(stage, partition, batch, limit, needs, todo):
    """As exchanges.gather_rounds, chunk by chunk."""
    shares = [[n for n in todo if partition.owner(n) == rank] for rank in range(partition.ranks)]

    def gathered(numbers):
        return sum(
            box_size(box) * np.dtype(need.array.dtype).itemsize
            for need in needs
            for box in plain_boxes(stage, need, numbers)
        )

    if all(gathered(numbers) <= limit for numbers in shares):
        return [shares]
    longest = max(map(len, shares))
    return [[numbers[first : first + batch] for numbers in shares] for first in range(0, longest, batch)]


def plain_exchange(stage, ranks, rounds, placed, needs, nodes):
    """Sent, received, messages, between nodes, at once, gathered: box by box and block by block."""
    node = np.arange(ranks) * nodes // ranks
    sent, received, messages, at_once, most = (np.zeros(ranks, np.int64) for _ in range(5))
    between = 0
    for shares in rounds:
        gathered = np.zeros(ranks, np.int64)
        for need in needs:
            placement = placed[need.array.name]
            moved = np.zeros((ranks, ranks), np.int64)
            for taker, numbers in enumerate(shares):
                for box in plain_boxes(stage, need, numbers):
                    for block, giver in zip(tuples(placement.boxes), placement.owners, strict=True):
                        common = intersection(box, block)
                        moved[giver, taker] += box_size(common) if common else 0
            moved *= np.dtype(need.array.dtype).itemsize
            gathered += moved.sum(axis=0)
            np.fill_diagonal(moved, 0)
            messages += (moved > 0).sum(axis=1)
            between += int(moved[node[:, None] != node].sum())
            at_once = np.maximum(at_once, gathered + moved.sum(axis=0) + moved.sum(axis=1))
            sent += moved.sum(axis=1)
            received += moved.sum(axis=0)
        most = np.maximum(most, gathered)
    return [*(one.tolist() for one in (sent, received, messages)), between, at_once.tolist(), most.tolist()]


@pytest.mark.parametrize("seed", range(40))
def test_rounds_and_exchanges_are_those_of_plain_loops(seed, monkeypatch):
    monkeypatch.setattr(box_table, "PAIRS", 1 + seed % 30)
    monkeypatch.setattr(_Exchange, "AT_A_TIME", 1 + seed % 50)
    rng = np.random.default_rng(1000 + seed)
    ranks = int(rng.integers(1, 6))
    placed, needs = {}, []
    for name in ("a", "b"):
        array, blocks = drawn_blocks(rng)
        array = Array(name, array.axes, array.shape, "float32")
        table = BlockTable(Pieces(array, lambda chunk, own=blocks: own), ChunkGrid("k", (1,), (1,)))
        owners = rng.integers(0, ranks, len(blocks))
        placed[name] = Placement(array, table, owners, True, False)
        needs.append(drawn_need(rng, array))
    axes = dict(zip(needs[1].array.axes, needs[1].array.shape, strict=True))
    axes |= dict(zip(needs[0].array.axes, needs[0].array.shape, strict=True))
    grid = drawn_grid(rng, tuple(axes), tuple(axes.values()))
    needs.append(Part(Array("from-file", "t", (9,), "int8")))
    stage = Compute("s", grid, reads=tuple(needs), writes=(), work=None)
    partition = Partition.balanced(rng.integers(0, 5, len(grid)).tolist(), ranks)
    todo = [n for n in range(len(grid)) if rng.random() < 0.8]
    for limit, batch in ((0, 1), (200, 2), (math.inf, 1)):
        rounds = gather_rounds(stage, partition, batch, limit, placed, todo)
        assert rounds == plain_rounds(stage, partition, batch, limit, needs[:2], todo)
        found = forecast_exchange(stage, partition, rounds, placed, np.array(todo, np.int64), nodes=2)
        assert [
            *(one.tolist() for one in (found.sent, found.received, found.messages)),
            found.between_nodes,
            *(one.tolist() for one in (found.at_once, found.gathered)),
        ] == plain_exchange(stage, ranks, rounds, placed, needs[:2], 2)
        for shares, need in itertools.product(rounds, needs[:2]):
            requests = GatheredBoxes(stage, need).requests(shares)
            own = [tuples(requests.of_rank(rank)) for rank in range(ranks)]
            assert own == [plain_boxes(stage, need, numbers) for numbers in shares]


def test_what_chunks_read_and_write_is_counted_chunk_by_chunk():
    rng = np.random.default_rng(0)
    for _ in range(20):
        array = drawn_dense(rng)
        grid = drawn_grid(rng, array.axes, array.shape)
        need = drawn_need(rng, array)
        stage = Reduce("r", grid, reads=(need, Part(array)), work=None, row=((2, 3), "int32"))
        sizes = stage_sizes(stage)
        for place, one in enumerate(stage.reads):
            expected = [2 * sum(map(box_size, one.boxes(chunk))) for chunk in chunks_of(grid)]
            assert sizes.reads[place].tolist() == expected
        assert sizes.writes.tolist() == [[24] * len(grid)]


def test_ten_thousand_chunks_are_planned_without_going_through_pairs_of_them(monkeypatch):
    """Of a stencil in two dimensions on 64 ranks; what is looked at is counted, since times are noise."""
    array = Array("image", "yx", (6400, 6400), "float32")
    grid, looked_at = array.cut(y=64, x=64), []
    monkeypatch.setattr(Part, "boxes", None)
    monkeypatch.setattr(box_table, "intersections", None)
    found = box_table._in_slabs
    monkeypatch.setattr(
        box_table,
        "_in_slabs",
        lambda boxes, count, look_up: looked_at.append(int(count.sum())) or found(boxes, count, look_up),
    )
    partition = Partition.balanced([1] * len(grid), 64)
    stage = Compute(
        "blur", grid, reads=(Part(array, {"y": 3, "x": 3}),), writes=(array.like("b"),), work=None
    )
    assert stage_sizes(stage).largest == 70 * 70 * 4 + 64 * 64 * 4
    placed = {"image": Placement(array, BlockTable(Part(array), grid), partition.owners(), True, False)}
    numbers = np.arange(len(grid))
    rounds = gather_rounds(stage, partition, 1, 1 << 40, placed, numbers.tolist())
    exchange = forecast_exchange(stage, partition, rounds, placed, numbers)
    assert looked_at[0] <= (3 * 100 - 2) ** 2
    assert len(looked_at) == 1
    # As many as a search through all pairs found.
    assert (exchange.moved, exchange.messages.sum()) == (10671696, 126)
