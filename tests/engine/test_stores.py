"""One suite for all stores: in memory, staged by pwrite, by parallel HDF5; and the staged file itself."""

from __future__ import annotations

import errno
import os
import pathlib
import zlib

import h5py
import numpy as np
import pytest
from support.ranks import COMM

from mpiimg.engine import raw
from mpiimg.engine import stores as module
from mpiimg.engine.array import Array, Ragged
from mpiimg.engine.boxes import ChunkGrid, Partition, box_in_array, box_shape, box_slices
from mpiimg.engine.mpi.redistribute import redistribute
from mpiimg.engine.pages import DamagedPage
from mpiimg.engine.staged_file import dataset_offset
from mpiimg.engine.stores import MemoryStore, StagedStore
from mpiimg.errors import BadInput

pytestmark = pytest.mark.ranks

PARALLEL = h5py.get_config().mpi
KINDS = ["memory", "staged", *["staged-mpio"] * PARALLEL]
DTYPES = ["int16", "uint16", "float32", "float64", "uint8"]


@pytest.fixture
def folder(tmp_path):
    """One folder for all ranks."""
    return pathlib.Path(COMM.bcast(str(tmp_path)))


@pytest.fixture(params=KINDS)
def store(request, folder):
    if request.param == "memory":
        made = MemoryStore(COMM.rank, lambda *args: redistribute(*args, COMM))
        made.barrier = lambda: None
        yield made
    else:
        made = StagedStore(folder, COMM, parallel=request.param == "staged-mpio")
        made.barrier = lambda: shared(made)
        yield made
        made.close()


def cut(axes, shape, grid):
    """The boxes of an array by the chunks of a grid."""
    chunks = [dict(zip(grid.axes, grid.bounds(n), strict=True)) for n in range(len(grid))]
    return np.array([box_in_array(axes, shape, chunk) for chunk in chunks], dtype=np.int64)


def fill(store, name, whole, boxes, owners):
    """Write an array, each rank the blocks it owns."""
    store.create(Array(name, "vzyx"[-whole.ndim :], whole.shape, whole.dtype.name), boxes, owners)
    for number in np.flatnonzero(owners == COMM.rank):
        store.write(name, int(number), whole[box_slices(boxes[number])].copy())
    store.barrier()


def check(store, name, whole, wanted):
    found = store.collect(name, wanted)
    assert len(found) == len(wanted[COMM.rank])
    for box, block in zip(wanted[COMM.rank], found, strict=True):
        assert block.dtype == whole.dtype
        assert block.shape == box_shape(box)
        assert block.flags.c_contiguous
        assert (block == whole[box_slices(box)]).all()


def toy(seed=0, dtype="int16", shape=(3, 10, 4, 5)):
    """Values, boxes cut along v and z (the last block of z is thinner) and random owners."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 250, shape).astype(dtype)
    boxes = cut("vzyx", shape, ChunkGrid("vz", shape[:2], (2, 4)))
    return whole, boxes, rng.integers(0, COMM.size, len(boxes))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_written_is_collected(store, dtype):
    """Every rank the whole array, then random overlapping boxes, none and empty ones among them."""
    whole, boxes, owners = toy(dtype=dtype)
    fill(store, "a", whole, boxes, owners)
    check(store, "a", whole, [[tuple((0, n) for n in whole.shape)]] * COMM.size)
    rng = np.random.default_rng(7)
    wanted = []
    for _ in range(COMM.size):
        ends = np.sort([[rng.integers(0, n + 1, 2) for n in whole.shape] for _ in range(rng.integers(0, 6))])
        wanted.append([tuple((int(a), int(b)) for a, b in box) for box in ends])
    check(store, "a", whole, wanted)
    check(store, "a", whole, [[]] * COMM.size)


def test_halos_are_collected(store):
    whole, boxes, owners = toy()
    fill(store, "a", whole, boxes, owners)
    share = Partition.even(10, COMM.size).grow(3)
    check(store, "a", whole, [[((0, 3), bounds, (0, 4), (0, 5))] for bounds in share])


def test_more_ranks_than_blocks(store):
    """One block, owned by the last rank; all others own nothing."""
    whole = np.arange(12, dtype="float64").reshape(3, 4)
    fill(store, "a", whole, np.array([[[0, 3], [0, 4]]]), np.array([COMM.size - 1]))
    check(store, "a", whole, [[((r % 3, 3), (0, 4))] for r in range(COMM.size)])


def test_ragged_blocks_and_empty_ones(store):
    """As pieces of a regroup and masked voxels are: lengths of all kinds, zero among them."""
    cuts = np.array([0, 0, 5, 6, 6, 13, 20])
    whole = np.random.default_rng(1).normal(size=20).astype("float32")
    boxes = np.stack([cuts[:-1], cuts[1:]], axis=1)[:, None]
    fill(store, "a", whole, boxes, np.arange(6) % COMM.size)
    check(store, "a", whole, [[((int(a), int(b)),) for (a, b) in boxes[r::2, 0]] for r in range(COMM.size)])


#: Items of different shapes, without rows and without pixels among them.
ITEMS = ((3, 4), (0, 2), (1, 1), (5, 2), (2, 0), (1, 5), (4, 3))


def ragged(height=2):
    """Items of values, boxes of `height` rows within each, and random owners."""
    rng = np.random.default_rng(3)
    array = Ragged("r", "eyx", ITEMS, "float32")
    items = [rng.normal(size=shape).astype("float32") for shape in ITEMS]
    boxes = [
        ((number, number + 1), (start, min(start + height, rows)), (0, width))
        for number, (rows, width) in enumerate(ITEMS)
        for start in range(0, rows, height)
    ]
    return array, items, boxes, rng.integers(0, COMM.size, len(boxes))


def fill_ragged(store, height=2):
    array, items, boxes, owners = ragged(height)
    store.create(array, np.array(boxes), owners)
    for number in np.flatnonzero(owners == COMM.rank):
        (item, _), *rest = boxes[number]
        store.write("r", int(number), items[item][box_slices(rest)][None].copy())
    store.barrier()
    return array, items, boxes


@pytest.mark.parametrize("height", [1, 2, 9])
def test_items_of_different_shapes_are_collected(store, height):
    """Every rank all items, then random boxes within some of them, which keep their axes."""
    array, items, _ = fill_ragged(store, height)
    everything = [array.item(number) for number in range(len(ITEMS))]
    found = store.collect("r", [everything] * COMM.size)
    for item, block in zip(items, found, strict=True):
        assert block.shape == (1, *item.shape)
        assert (block[0] == item).all()
    rng = np.random.default_rng(7)
    wanted = []
    for _ in range(COMM.size):
        chosen = rng.integers(0, len(ITEMS), rng.integers(0, 9)).tolist()
        ends = [[sorted(rng.integers(0, n + 1, 2).tolist()) for n in ITEMS[number]] for number in chosen]
        wanted.append([((n, n + 1), *map(tuple, box)) for n, box in zip(chosen, ends, strict=True)])
    found = store.collect("r", wanted)
    for box, block in zip(wanted[COMM.rank], found, strict=True):
        assert block.shape == box_shape(box)
        assert block.flags.c_contiguous
        assert (block[0] == items[box[0][0]][box_slices(box[1:])]).all()
    assert store.collect("r", [[]] * COMM.size) == []


def test_parts_of_rows_can_be_written_too(store):
    """Blocks that are several runs each."""
    array = Ragged("r", "eyx", ((2, 3), (4, 5)), "int16")
    whole = np.arange(20, dtype="int16").reshape(4, 5)
    boxes = [((1, 2), (0, 4), (0, 2)), ((1, 2), (0, 4), (2, 5))]
    owners = np.arange(2) % COMM.size
    store.create(array, np.array(boxes), owners)
    for number in np.flatnonzero(owners == COMM.rank):
        store.write("r", int(number), whole[box_slices(boxes[number][1:])][None])
    store.barrier()
    (found,) = store.collect("r", [[array.item(1)]] * COMM.size)
    assert (found[0] == whole).all()


def test_an_item_of_another_shape_is_refused(store):
    array, _, boxes, _ = ragged()
    store.create(array, np.array(boxes), np.full(len(boxes), COMM.rank))
    for shape in ((2, 4), (1, 3, 4), (1, 2, 3), (1, 8)):
        with pytest.raises(ValueError, match="block 0 of r has shape"):
            store.write("r", 0, np.zeros(shape, "float32"))


def test_an_array_without_items(store):
    """As the masked voxels of a chunk without brain."""
    whole = np.empty((3, 0), "float32")
    boxes = np.array([[[v, v + 1], [0, 0]] for v in range(3)])
    fill(store, "a", whole, boxes, np.zeros(3, int))
    check(store, "a", whole, [[((0, 3), (0, 0))]] * COMM.size)


def test_values_are_converted_to_the_arrays_type(store):
    boxes = np.array([[[n, n + 1], [0, 2]] for n in range(COMM.size)])
    store.create(Array("a", "zx", (COMM.size, 2), "uint8"), boxes, np.arange(COMM.size))
    store.write("a", COMM.rank, np.array([[True, False]]))
    store.barrier()
    check(
        store,
        "a",
        np.tile(np.array([1, 0], "uint8"), (COMM.size, 1)),
        [[((0, COMM.size), (0, 2))]] * COMM.size,
    )


def test_a_block_of_another_rank_is_refused(store):
    whole, boxes, _ = toy()
    owners = np.full(len(boxes), COMM.size - 1)
    store.create(Array("a", "vzyx", whole.shape, "int16"), boxes, owners)
    if COMM.rank != COMM.size - 1:
        with pytest.raises(
            ValueError, match=f"block 1 of a belongs to rank {COMM.size - 1}, not to {COMM.rank}"
        ):
            store.write("a", 1, whole[box_slices(boxes[1])])


def test_a_block_of_another_shape_is_refused(store):
    whole, boxes, _ = toy()
    store.create(Array("a", "vzyx", whole.shape, "int16"), boxes, np.full(len(boxes), COMM.rank))
    for block in (np.zeros((2, 4, 4, 4), "int16"), np.zeros((2, 4, 4), "int16"), np.zeros(160, "int16")):
        with pytest.raises(ValueError, match="block 0 of a has shape"):
            store.write("a", 0, block)


def test_arrays_come_and_go(store):
    one, boxes, owners = toy(0)
    other = toy(1, "float64")[0]
    fill(store, "a", one, boxes, owners)
    fill(store, "b", other, boxes, owners)
    assert "a" in store
    store.drop("a")
    assert "a" not in store
    assert "b" in store
    check(store, "b", other, [[tuple((0, n) for n in other.shape)]] * COMM.size)
    fill(store, "a", other, boxes, owners)
    check(store, "a", other, [[tuple((0, n) for n in other.shape)]] * COMM.size)
    store.drop("never there")


def test_memory_knows_what_it_holds():
    memory = MemoryStore(COMM.rank, lambda *args: redistribute(*args, COMM))
    memory.barrier = lambda: None
    whole, boxes, owners = toy()
    fill(memory, "a", whole, boxes, owners)
    assert COMM.allreduce(memory.nbytes()) == whole.nbytes
    memory.drop("a")
    assert memory.nbytes() == 0


# The staged file.


def checked(block):
    """CRC32 and bytes of a block, as marks have them."""
    return zlib.crc32(block.tobytes()), block.nbytes


def shared(store):
    """What others wrote can be read once all have shared it."""
    store.share()
    COMM.Barrier()


def staged(folder, parallel=False):
    made = StagedStore(folder, COMM, parallel=parallel)
    made.barrier = lambda: shared(made)
    return made


@pytest.mark.parametrize("parallel", [False, *[True] * PARALLEL])
def test_the_staged_file_is_plain_hdf5(folder, parallel):
    """One contiguous dataset without filters, and its bytes are those of the array."""
    whole, boxes, owners = toy()
    store = staged(folder, parallel)
    fill(store, "a", whole, boxes, owners)
    store.sync()
    store.close()
    # All have closed the file before anyone opens it in another way.
    COMM.Barrier()
    with h5py.File(folder / "a.h5", "r", locking=False) as file:
        dataset = file["data"]
        assert list(file) == ["data"]
        assert (dataset[...] == whole).all()
        assert dataset.dtype == whole.dtype
        assert (dataset.chunks, dataset.compression, dataset.attrs["axes"]) == (None, None, "vzyx")
    with open(folder / "a.h5", "rb") as file:
        file.seek(dataset_offset(folder / "a.h5"))
        assert file.read(whole.nbytes) == whole.tobytes()


@pytest.mark.skipif(not PARALLEL, reason="serial h5py")
@pytest.mark.parametrize("disk_is_full", [False, True])
def test_what_parallel_hdf5_fails_to_write_is_written_or_says_why(folder, monkeypatch, disk_is_full):
    """MPI-IO gives no number for what went wrong."""

    def fail(*arguments):
        raise OSError("Can't write data (file write failed)")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole, boxes, owners = toy()
    store = staged(folder, True)
    monkeypatch.setattr(StagedStore, "_write_by_mpio", fail)
    if disk_is_full:
        monkeypatch.setattr(raw, "write_fully", full)
        store.create(Array("a", "vzyx", whole.shape, whole.dtype.name), boxes, owners)
        for number in np.flatnonzero(owners == COMM.rank)[:1]:
            with pytest.raises(OSError, match="No space left on device") as error:
                store.write("a", int(number), whole[box_slices(boxes[number])])
            assert error.value.filename == str(folder / "a.h5")
    else:
        fill(store, "a", whole, boxes, owners)
        with open(folder / "a.h5", "rb") as file:
            file.seek(dataset_offset(folder / "a.h5"))
            assert file.read(whole.nbytes) == whole.tobytes()
    store.close()


@pytest.mark.parametrize("parallel", [False, *[True] * PARALLEL])
def test_items_lie_end_to_end_in_the_staged_file(folder, parallel):
    """Whichever way they are written, cut into strips: a whole item is read as one piece."""
    store = staged(folder, parallel)
    _, items, boxes = fill_ragged(store)
    for number, ((item, _), *rest) in enumerate(boxes):
        assert (store.read("r", number)[0] == items[item][box_slices(rest)]).all()
    store.close()
    # All have closed the file before anyone opens it in another way.
    COMM.Barrier()
    with h5py.File(folder / "r.h5", "r", locking=False) as file:
        assert (file["data"][...] == np.concatenate([item.ravel() for item in items])).all()
        assert file["data"].attrs["axes"] == "eyx"


@pytest.mark.skipif(not PARALLEL, reason="serial h5py")
@pytest.mark.parametrize("first", [False, True])
def test_either_way_of_writing_reads_what_the_other_wrote(folder, first):
    """Half of the blocks by pwrite and half by driver mpio, in either order, with other owners."""
    whole, boxes, owners = toy()
    array = Array("a", "vzyx", whole.shape, "int16")
    for half, parallel in ((0, first), (1, not first)):
        store = staged(folder, parallel)
        store.create(array, boxes, (owners + half) % COMM.size)
        for number in range(half, len(boxes), 2):
            if (owners[number] + half) % COMM.size == COMM.rank:
                store.write("a", number, whole[box_slices(boxes[number])])
        store.close()
        # Nobody opens the file before all have closed it.
        COMM.Barrier()
    for parallel in (first, not first):
        store = staged(folder, parallel)
        store.create(array, boxes, owners)
        for number, box in enumerate(boxes):
            assert store.sum_again("a", number) == checked(whole[box_slices(box)])
        store.close()


def test_blocks_can_be_given_to_other_ranks(folder):
    """On resume the marks are checked first, and only then it is known who owns what is left."""
    whole, boxes, _ = toy()
    store = staged(folder)
    store.create(Array("a", "vzyx", whole.shape, "int16"), boxes, np.zeros(len(boxes), int))
    owners = np.arange(len(boxes)) % COMM.size
    store.assign("a", owners)
    for number in np.flatnonzero(owners == COMM.rank):
        store.write("a", int(number), whole[box_slices(boxes[number])])
    store.barrier()
    check(store, "a", whole, [[tuple((0, n) for n in whole.shape)]] * COMM.size)
    store.close()


def left_behind(folder, spoil):
    """Stage an array, let `spoil(path)` change the file, open it again; say whether the data survived."""
    whole, boxes, owners = toy()
    store = staged(folder)
    fill(store, "a", whole, boxes, owners)
    store.close()
    if COMM.rank == 0:
        spoil(folder / "a.h5")
    # The file is changed before anyone looks at it.
    COMM.Barrier()
    store = staged(folder)
    store.create(Array("a", "vzyx", whole.shape, "int16"), boxes, owners)
    found = [store.sum_again("a", number) for number in range(len(boxes))]
    expected = [checked(whole[box_slices(box)]) for box in boxes]
    # All have read before the next test, or anyone, writes.
    COMM.Barrier()
    fill(store, "a", whole, boxes, owners)
    check(store, "a", whole, [[tuple((0, n) for n in whole.shape)]] * COMM.size)
    store.close()
    COMM.Barrier()  # all have read before anyone opens it anew
    return found == expected


@pytest.mark.parametrize("parallel", [False, True] if PARALLEL else [False])
def test_what_was_cut_off_is_not_read_as_zeros(folder, parallel):
    """Driver mpio would: what it reads behind the end of a file is zeros."""
    whole, boxes, owners = toy()
    store = staged(folder, parallel)
    fill(store, "a", whole, boxes, owners)
    COMM.Barrier()  # all have written before the file is cut
    if COMM.rank == 0:
        os.truncate(folder / "a.h5", dataset_offset(folder / "a.h5") + whole.nbytes // 2)
    COMM.Barrier()  # the file is cut before anyone reads it
    with pytest.raises(DamagedPage):
        store.read("a", len(boxes) - 1)
    with pytest.raises(OSError, match=r"a\.h5 ends at byte"):
        store.sum_again("a", len(boxes) - 1)
    COMM.Barrier()  # all have read before anyone closes
    store.close()


def test_what_was_set_aside_is_read_by_runs_of_items(folder):
    """Any runs, also none: as of a block without items."""
    whole, boxes, owners = toy()
    store = staged(folder)
    fill(store, "a", whole, boxes, owners)
    store.close()
    array = Array("a", "vzyx", whole.shape, "int16")
    COMM.Barrier()  # all have closed before the file is moved
    if COMM.rank == 0:
        store.set_aside([array], True)
    COMM.Barrier()  # it is there before anyone reads it
    flat = whole.ravel()
    for runs in ([(5, 3), (100, 20)], [(0, flat.size)], [(7, 0)], []):
        expected = [flat[first : first + count] for first, count in runs]
        found = store.read_aside(array, runs)
        assert found.dtype == whole.dtype
        assert (found == np.concatenate([flat[:0], *expected])).all()
    COMM.Barrier()  # all have read it before it goes
    if COMM.rank == 0:
        store.forget_aside(["a"])
        with pytest.raises(OSError):
            store.read_aside(array, [(0, 1)])


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def other_type(path):
    path.unlink()
    module.create_staged(path, Array("a", "vzyx", (3, 10, 4, 5), "float32"))


def other_dataset(path):
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros((3, 10, 4, 5), "int16")


def compressed(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.zeros((3, 10, 4, 5), "int16"), compression="gzip")


def group(path):
    with h5py.File(path, "w") as file:
        file.create_group("data")


def test_a_staged_file_is_gone_on_with(folder):
    assert left_behind(folder, lambda path: None)


def test_a_torn_creation_is_in_nobodys_way(folder):
    """A run that died while it made the file leaves a .part, which the next one replaces."""
    assert left_behind(folder, lambda path: path.with_name("a.h5.part").write_bytes(b"torn"))
    assert left_behind(folder, lambda path: path.rename(path.with_name("a.h5.part"))) is False


@pytest.mark.parametrize(
    "spoil",
    [truncate, other_type, other_dataset, compressed, group, lambda path: path.write_bytes(b"x" * 500)],
)
def test_a_file_that_does_not_fit_is_made_anew(folder, spoil):
    assert not left_behind(folder, spoil)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BadInput("no")])
def test_a_failure_to_create_is_everybodys(folder, monkeypatch, error):
    """The file is made on one rank; the others do not wait for it."""

    def fail(path, array):
        raise error

    monkeypatch.setattr(module, "create_staged", fail)
    whole, boxes, owners = toy()
    with pytest.raises(type(error), match=str(error.args[-1])):
        staged(folder).create(Array("a", "vzyx", whole.shape, "int16"), boxes, owners)


def test_nothing_is_written_but_the_array(folder):
    """No part file is left, and the file has the array's length and a little metadata."""
    whole, boxes, owners = toy()
    store = staged(folder)
    fill(store, "a", whole, boxes, owners)
    store.close()
    COMM.Barrier()  # all have closed before the folder is looked at
    assert sorted(path.name for path in folder.glob("*.h5*")) == ["a.h5"]
    assert 0 <= (folder / "a.h5").stat().st_size - whole.nbytes - dataset_offset(folder / "a.h5") < 1 << 14
