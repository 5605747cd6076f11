"""Who owns what: chunk grids, partitions and boxes against plain counting, in all small cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mpiimg.engine.boxes import (
    ChunkGrid,
    Partition,
    blocks_along,
    box_in_array,
    box_shape,
    box_size,
    box_slices,
    intersection,
    intersections,
    runs,
    runs_of_items,
)


def lightest_bottleneck(weights, ranks, sizes=None, max_bytes=None):
    """The least heaviest part of any cut of `weights` into `ranks` runs; None if none keeps within memory."""
    items = len(weights)
    found = []
    for inner in itertools.combinations_with_replacement(range(items + 1), ranks - 1):
        cuts = (0, *inner, items)
        parts = list(itertools.pairwise(cuts))
        if sizes is None or all(sum(sizes[a:b]) <= max_bytes for a, b in parts):
            found.append(max(sum(weights[a:b]) for a, b in parts))
    return min(found, default=None)


def bottleneck(partition, weights):
    return max(sum(weights[i] for i in partition.owned(rank)) for rank in range(partition.ranks))


# Chunk grids.


@pytest.mark.parametrize("axes", ["z", "vz", "vyz"])
def test_chunks_tile_the_data(axes):
    """Every item lies in one chunk, chunks are in C order, and only the last of an axis is thinner."""
    lengths = range(1, 8) if len(axes) < 3 else (1, 2, 5)
    for shape in itertools.product(lengths, repeat=len(axes)):
        for block in itertools.product((1, 2, 3, 9), repeat=len(axes)):
            grid = ChunkGrid(axes, shape, block)
            seen = np.zeros(shape, int)
            boxes = [grid.bounds(number) for number in range(len(grid))]
            for box in boxes:
                seen[box_slices(box)] += 1
                assert all(b - a == size or b == n for (a, b), size, n in zip(box, block, shape, strict=True))
            assert (seen == 1).all()
            assert boxes == sorted(boxes)


def test_a_grid_that_does_not_fit_is_refused():
    for axes, shape, block in (("vz", (3,), (1,)), ("z", (3,), (0,)), ("z", (3,), (1, 1))):
        with pytest.raises(ValueError, match="do not fit"):
            ChunkGrid(axes, shape, block)


def test_blocks_are_few_enough_and_thick_enough():
    for length, at_most, thinnest in itertools.product(range(1, 40), range(1, 20), range(1, 6)):
        block = blocks_along(length, at_most, thinnest)
        assert 1 <= block <= length
        assert -(-length // block) <= at_most
        assert block >= min(thinnest, length)
        # As thin as these two allow: one less would make too many blocks, or one that is too thin.
        assert block == 1 or -(-length // (block - 1)) > at_most or block - 1 < thinnest


# Partitions.


def test_even_shares_differ_by_one_at_most():
    for items, ranks in itertools.product(range(30), range(1, 12)):
        sizes = np.diff(Partition.even(items, ranks).cuts)
        assert len(sizes) == ranks
        assert sizes.sum() == items
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_balanced_is_as_light_as_any_cut(seed):
    """The heaviest rank is as light as in the best of all cuts, also with zero weights and idle ranks."""
    rng = np.random.default_rng(seed)
    for items, ranks in itertools.product(range(1, 8), range(1, 6)):
        weights = (rng.integers(0, 10, items) * (rng.random(items) < 0.7)).tolist()
        partition = Partition.balanced(weights, ranks)
        assert partition.cuts[0] == 0
        assert partition.cuts[-1] == items
        assert list(partition.cuts) == sorted(partition.cuts)
        assert partition.ranks == ranks
        assert bottleneck(partition, weights) == lightest_bottleneck(weights, ranks)


@pytest.mark.parametrize("seed", range(8))
def test_balanced_keeps_within_memory_or_says_that_it_cannot(seed):
    rng = np.random.default_rng(100 + seed)
    refused = 0
    for items, ranks in itertools.product(range(1, 8), range(1, 5)):
        weights, sizes = rng.integers(0, 9, (2, items)).tolist()
        max_bytes = int(rng.integers(1, 3 * sum(sizes) // ranks + 2))
        best = lightest_bottleneck(weights, ranks, sizes, max_bytes)
        if best is None:
            refused += 1
            with pytest.raises(ValueError, match=f"{ranks} ranks of {max_bytes} bytes cannot hold"):
                Partition.balanced(weights, ranks, sizes, max_bytes)
        else:
            partition = Partition.balanced(weights, ranks, sizes, max_bytes)
            assert bottleneck(partition, sizes) <= max_bytes
            if any(weights):
                assert bottleneck(partition, weights) == best
    assert refused


def test_items_without_weight_are_shared_evenly():
    partition = Partition.balanced([0] * 10, 4)
    assert max(np.diff(partition.cuts)) == 3
    assert partition.cuts[-1] == 10


def test_no_items_at_all():
    for partition in (Partition.even(0, 3), Partition.balanced([], 3)):
        assert [list(partition.owned(rank)) for rank in range(3)] == [[], [], []]
        assert partition.owners().tolist() == []
        assert partition.grow(2) == ((0, 0), (0, 0), (0, 0))


def test_owner_owners_and_owned_agree():
    for cuts in itertools.combinations_with_replacement(range(6), 4):
        partition = Partition((0, *cuts, 5))
        owned = {item: rank for rank in range(partition.ranks) for item in partition.owned(rank)}
        assert sorted(owned) == list(range(5))
        assert [partition.owner(item) for item in range(5)] == [owned[item] for item in range(5)]
        assert partition.owners().tolist() == [owned[item] for item in range(5)]


def test_grown_shares_reach_over_thin_neighbours_and_stop_at_the_ends():
    """Slabs thinner than the halo and empty ranks: what grow() gives is what counting neighbours gives."""
    for cuts in itertools.combinations_with_replacement(range(7), 3):
        partition = Partition((0, *cuts, 6))
        for halo in range(9):
            for rank, (start, stop) in enumerate(partition.grow(halo)):
                near = {i for item in partition.owned(rank) for i in range(item - halo, item + halo + 1)}
                assert set(range(start, stop)) == near & set(range(6))


# Boxes.


def test_box_arithmetic():
    box = ((2, 5), (0, 1), (3, 3))
    assert box_shape(box) == (3, 1, 0)
    assert box_size(box) == 0
    assert box_size(box[:2]) == 3
    whole = np.arange(60).reshape(6, 10)
    part = whole[box_slices(((1, 5), (2, 9)))]
    inner = ((2, 4), (3, 7))
    assert (part[box_slices(inner, ((1, 5), (2, 9)))] == whole[2:4, 3:7]).all()


def test_a_chunks_box_is_whole_along_the_axes_it_does_not_cut():
    assert box_in_array("vzyx", (4, 9, 3, 2), {"z": (3, 6)}) == ((0, 4), (3, 6), (0, 3), (0, 2))
    assert box_in_array("zyx", (9, 3, 2), {"v": (1, 2), "z": (3, 6)}) == ((3, 6), (0, 3), (0, 2))


def test_a_halo_is_clipped_at_the_ends():
    def z(bounds, halo):
        return box_in_array("vz", (2, 9), {"z": bounds}, {"z": halo})[1]

    for start, stop in itertools.combinations(range(10), 2):
        for halo in range(12):
            near = {i for item in range(start, stop) for i in range(item - halo, item + halo + 1)}
            first, last = z((start, stop), halo)
            assert set(range(first, last)) == near & set(range(9))


def test_intersections_are_those_of_sets_of_points():
    rng = np.random.default_rng(0)
    for axes in (1, 2, 3):
        starts = rng.integers(0, 5, (40, axes))
        boxes = np.stack([starts, starts + rng.integers(0, 4, starts.shape)], axis=-1)
        for box in boxes[:12]:
            which, common = intersections(boxes, tuple(map(tuple, box.tolist())))
            marked = np.zeros((9,) * axes, bool)
            marked[box_slices(box)] = True
            expected = [i for i, other in enumerate(boxes) if marked[box_slices(other)].any()]
            assert which.tolist() == expected
            for i, part in zip(which, common, strict=True):
                both = np.zeros_like(marked)
                both[box_slices(boxes[i])] = True
                alone = np.zeros_like(marked)
                alone[box_slices(part)] = True
                assert (alone == (both & marked)).all()


def test_an_intersection_is_that_of_sets_of_points():
    bounds = [(a, b) for a in range(5) for b in range(a, 5)]
    for one, other in itertools.product(bounds, repeat=2):
        both = set(range(*one)) & set(range(*other))
        expected = ((min(both), max(both) + 1), (2, 3)) if both else None
        assert intersection((one, (0, 3)), (other, (2, 9))) == expected


def test_runs_of_indices():
    assert runs([]) == ()
    assert runs([0, 1, 2, 7]) == ((0, 3), (7, 8))
    for size in range(1, 7):
        for chosen in itertools.combinations(range(7), size):
            found = runs(chosen)
            assert [i for a, b in found for i in range(a, b)] == list(chosen)
            assert all(b < c for (_, b), (c, _) in itertools.pairwise(found))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (10,), (3, 4, 5), (7, 1, 2), (1, 1, 9)])
@pytest.mark.parametrize("most", [0, 1, 3, 5, 9, 20, 1000])
def test_runs_of_items_are_those_in_storage(shape, most):
    boxes, array = runs_of_items(shape, most), np.arange(np.prod(shape, dtype=int)).reshape(shape)
    assert all(1 <= box_size(box) <= max(most, 1) for box in boxes)
    pieces = [array[*box_slices(box), ...].ravel() for box in boxes]
    assert (np.concatenate([[], *pieces]) == array.ravel()).all()
