"""Boxes brought to the ranks that want them, against numpy's slices of the whole array."""

from __future__ import annotations

import numpy as np
import pytest
from support.ranks import COMM

from mpiimg.engine.box_table import BoxTable
from mpiimg.engine.boxes import (
    ChunkGrid,
    Partition,
    box_in_array,
    box_shape,
    box_size,
    box_slices,
    intersections,
)
from mpiimg.engine.mpi import redistribute as module
from mpiimg.engine.mpi.redistribute import Requests, Traffic, redistribute

pytestmark = pytest.mark.ranks

AXES = "vzyx"


def layout(seed):
    """A random array cut into chunks with random owners: shape, boxes, owners, the same on every rank."""
    rng = np.random.default_rng(seed)
    axes = AXES[: rng.integers(1, 5)]
    shape = tuple(rng.integers(1, 7, len(axes)).tolist())
    cut = axes[: rng.integers(1, len(axes) + 1)]
    grid = ChunkGrid(cut, shape[: len(cut)], tuple(rng.integers(1, 4, len(cut)).tolist()))
    boxes = [box_in_array(axes, shape, dict(zip(cut, grid.bounds(n), strict=True))) for n in range(len(grid))]
    if seed % 3 == 1:  # as no grid cuts it: one block in two along the last axis
        *rest, (start, stop) = boxes.pop()
        boxes += [(*rest, (start, start + 1)), (*rest, (start + 1, stop))]
    boxes = np.array(boxes)
    if seed % 2:
        boxes = rng.permutation(boxes)
    return shape, boxes, rng.integers(0, COMM.size, len(boxes))


def wishes(seed, shape):
    """What each rank wants: nothing, empty boxes, overlapping boxes, everything."""
    rng = np.random.default_rng(1000 + seed)
    wanted = []
    for _ in range(COMM.size):
        boxes = []
        for _ in range(rng.integers(0, 5)):
            ends = np.sort([rng.integers(0, n + 1, 2) for n in shape], axis=1)
            boxes.append(tuple((int(a), int(b)) for a, b in ends))
        if rng.random() < 0.3:
            boxes.append(tuple((0, n) for n in shape))
        wanted.append(boxes)
    return wanted


def blocks_of(whole, boxes, owners):
    return {int(n): whole[box_slices(boxes[n])].copy() for n in np.flatnonzero(owners == COMM.rank)}


@pytest.mark.parametrize("max_message", [1 << 30, 64])
def test_every_wanted_box_is_the_slice_of_the_whole(monkeypatch, max_message):
    """Random layouts and wishes; with messages of 64 bytes at most as many exchanges as it takes."""
    monkeypatch.setattr(module, "MAX_MESSAGE", max_message)
    for seed in range(30):
        shape, boxes, owners = layout(seed)
        dtype = ["int16", "float32", "float64", "uint8"][seed % 4]
        whole = np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)
        wanted = wishes(seed, shape)
        given = (BoxTable(boxes), Requests.of(wanted, len(shape))) if seed % 5 else (boxes, wanted)
        found = redistribute(blocks_of(whole, boxes, owners), given[0], owners, given[1], dtype, COMM)
        assert len(found) == len(wanted[COMM.rank])
        for box, block in zip(wanted[COMM.rank], found, strict=True):
            assert block.dtype == dtype
            assert block.flags.c_contiguous
            assert block.shape == box_shape(box)
            assert (block == whole[box_slices(box)]).all()


def test_an_item_larger_than_a_message_still_goes(monkeypatch):
    monkeypatch.setattr(module, "MAX_MESSAGE", 1)
    whole = np.arange(8.0)
    boxes = np.array([[[n, n + 1]] for n in range(8)])
    owners = np.arange(8) % COMM.size
    wanted = [[((0, 8),)]] * COMM.size
    (found,) = redistribute(blocks_of(whole, boxes, owners), boxes, owners, wanted, "float64", COMM)
    assert (found == whole).all()


def test_traffic_counts_what_others_are_sent():
    traffic, expected, messages = Traffic(), 0, 0
    for seed in range(20):
        shape, boxes, owners = layout(seed)
        whole = np.zeros(shape, "float32")
        wanted = wishes(seed, shape)
        redistribute(blocks_of(whole, boxes, owners), boxes, owners, wanted, "float32", COMM, traffic)
        mine = boxes[owners == COMM.rank]
        for rank, theirs in enumerate(wanted):
            sizes = [box_size(common) for box in theirs for common in intersections(mine, box)[1]]
            if rank != COMM.rank:
                expected += 4 * sum(sizes)
                messages += any(sizes)
    assert (traffic.bytes_sent, traffic.messages) == (expected, messages)
    assert traffic.exchanges == (20 if COMM.size > 1 else 0)


@pytest.mark.parametrize("halo", [0, 1, 5])
def test_halos_reach_over_thin_slabs_and_idle_ranks(halo):
    """A halo exchange is redistribution onto grown shares; two slices on up to four ranks among the cases."""
    for depth in (1, 2, 3, 9):
        whole = np.random.default_rng(depth).normal(size=(depth, 4))
        part = Partition.even(depth, COMM.size)
        boxes = np.array([[[z, z + 1], [0, 4]] for z in range(depth)])
        wanted = [[(bounds, (0, 4))] for bounds in part.grow(halo)]
        blocks = {z: whole[z : z + 1] for z in part.owned(COMM.rank)}
        (found,) = redistribute(blocks, boxes, part.owners(), wanted, "float64", COMM)
        start, stop = part.grow(halo)[COMM.rank]
        assert (found == whole[start:stop]).all()


def test_from_volumes_to_slabs_and_back():
    """The transposition: each rank has whole volumes, and wants its slab of all of them; then the reverse."""
    volumes, depth = 7, 5
    whole = np.random.default_rng(0).normal(size=(volumes, depth, 6)).astype("float32")
    by_volume, by_slab = Partition.even(volumes, COMM.size), Partition.even(depth, COMM.size)
    boxes = np.array([[[v, v + 1], [0, depth], [0, 6]] for v in range(volumes)])
    slabs = [((0, volumes), (by_slab.cuts[r], by_slab.cuts[r + 1]), (0, 6)) for r in range(COMM.size)]
    blocks = {v: whole[v : v + 1] for v in by_volume.owned(COMM.rank)}
    (slab,) = redistribute(blocks, boxes, by_volume.owners(), [[s] for s in slabs], "float32", COMM)
    assert (slab == whole[box_slices(slabs[COMM.rank])]).all()
    shares = [[tuple(map(tuple, boxes[v])) for v in by_volume.owned(r)] for r in range(COMM.size)]
    back = redistribute(
        {COMM.rank: slab}, np.array(slabs), np.arange(COMM.size), shares, np.dtype("float32"), COMM
    )
    for v, block in zip(by_volume.owned(COMM.rank), back, strict=True):
        assert (block == whole[v : v + 1]).all()
