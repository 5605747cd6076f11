"""Runs that take up what an earlier one left out: what others gave serves again, wherever it is to lie."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from engine.test_executor import Calls, first_ranks, options
from support import toy
from support.ranks import COMM

from mpiimg.engine import provenance
from mpiimg.engine.array import Array, Ragged
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import At, Part, Pieces
from mpiimg.engine.run import run
from mpiimg.engine.stage import Compute, Files, Found, Reduce
from mpiimg.errors import BadInput

pytestmark = pytest.mark.ranks

#: Items of a list by name, and how long each is.
LENGTHS = {"a": 5, "b": 3, "c": 0, "d": 7, "e": 3, "f": 1}


@pytest.fixture
def out(tmp_path):
    return pathlib.Path(COMM.bcast(str(tmp_path))) / "out"


def listed(names, bad="", version="", hook=toy.nothing, command="list"):
    """A pipeline over a list of items: each is made on its own, but for those that are bad."""
    lengths = [LENGTHS[name] for name in names]
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    grid = ChunkGrid("e", (len(names),), (1,))
    data = Array("data", "n", (starts[-1],), "float64")
    state = Array("state", "ek", (len(names), 1), "int64")

    def box(chunk):
        return ((starts[chunk.number], starts[chunk.number + 1]),)

    def work(chunk):
        name = names[chunk.number]
        hook("make", name)
        if name in bad:
            return np.full(lengths[chunk.number], np.nan), np.ones((1, 1))
        return values(name), np.zeros((1, 1))

    def partial(chunk, block, flags):
        hook("sum", names[chunk.number])
        return block.sum(), flags[0, 0]

    def finish(rows):
        bad_ones = {names[i]: "is bad" for i in np.flatnonzero(rows[:, 1])}
        return Found(rows[rows[:, 1] == 0, 0].tolist(), left_out=bad_ones)

    def save(chunk, folder, block):
        (folder / "data.raw").write_bytes(block.tobytes())

    def stages():
        yield Compute(
            "make",
            grid,
            writes=(At(data, box), state),
            work=work,
            depends=lambda number: {"name": names[number], "version": version},
            unusable=lambda block, flag: bool(flag.any()),
        )
        total = yield Reduce(
            "sum",
            grid,
            reads=(At(data, box), Part(state)),
            work=partial,
            row=((2,), "float64"),
            finish=finish,
            expected=[],
        )
        yield Files("save", ChunkGrid("k", (1,), (1,)), reads=(Part(data),), work=save, names=("data.raw",))
        return total

    sources = {name: f"{version}{'-bad' * (name in bad)}" for name in names}
    return dataclasses.replace(toy.recipe("list", stages, command=command), sources=sources)


def values(name):
    return np.random.default_rng(ord(name)).normal(size=LENGTHS[name])


def go(out, names, bad="", comm=COMM, **how):
    """Run; return what was made, what was summed, and what the record says of the first stage."""
    calls = Calls()
    fields = {key: how.pop(key) for key in ("force", "keep_work", "in_memory") if key in how}
    run(listed(names, bad, hook=calls, **how), comm, options(out, **fields))
    expected = [values(n) if n not in bad else np.full(LENGTHS[n], np.nan) for n in names]
    assert (out / "data.raw").read_bytes() == np.concatenate(expected).tobytes()
    seen = calls.all()
    assert len(seen) == len(set(seen))
    (entry,) = [e for e in json.loads((out / "run-toy.json").read_text())["stages"] if e["stage"] == "make"]
    made = "".join(name for stage, name in seen if stage == "make")
    assert entry["resumed_chunks"] == len(names) - len(made)
    return made, "".join(name for stage, name in seen if stage == "sum")


def kept(out):
    """Return the files of the work folder."""
    COMM.Barrier()  # all look at the folder before the next run changes it
    work = out / "work" / "list.toy"
    found = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
    COMM.Barrier()
    return found


def test_what_was_left_out_is_taken_up_and_nothing_else(out):
    """Without --force: the same command goes on. What depends on the whole list is made again."""
    assert go(out, "abcdef", bad="d") == ("abcdef", "abcdef")
    lease = ["claims/1/end.json", "claims/1/owner-again.json", "claims/1/owner.json"]
    arrays = ["data.h5", "data.json", "state.h5", "state.json"]
    assert kept(out) == sorted([*lease, *arrays, "journal/0-kept.jsonl", "left-out", "request"])
    assert go(out, "abcdef") == ("d", "abcdef")
    assert not (out / "work").exists()


def test_what_stays_bad_is_tried_again_and_alone(out):
    go(out, "abcdef", bad="bd")
    assert go(out, "abcdef", bad="bd") == ("bd", "abcdef")
    assert go(out, "abcdef", bad="d") == ("bd", "abcdef")
    assert go(out, "abcdef") == ("d", "abcdef")


@pytest.mark.parametrize("names", ["abcdefx", "abcdex", "xabdef", "axbf", "fedcba", "abxe"])
def test_other_lists_use_what_is_there_wherever_it_is_to_lie(out, names, monkeypatch):
    monkeypatch.setitem(LENGTHS, "x", 7)
    go(out, "abcdef", bad="d", keep_work=True)
    made, _ = go(out, names, force=True, keep_work=True)
    assert set(made) == {name for name in names if name in "dx"}
    # Back again: what the second list had is there, wherever it lay.
    made, _ = go(out, "abcdef", force=True)
    assert not set(made) & set(names)


def test_on_fewer_ranks_and_with_another_version(out):
    go(out, "abcdef", bad="d")
    with first_ranks(max(1, COMM.size - 1)) as comm:
        if comm is not None:
            calls = []
            recipe = listed("abef", hook=lambda stage, name: calls.append((stage, name)))
            run(recipe, comm, options(out, force=True, keep_work=True))
            made = comm.allgather([name for stage, name in calls if stage == "make"])
            assert not any(made)
    assert set(go(out, "abef", version="2", force=True)[0]) == set("abef")


def test_another_command_needs_force(out):
    go(out, "abcdef", bad="d")
    with pytest.raises(BadInput, match="exists; use --force"):
        run(listed("abcdef", command="other"), COMM, options(out))
    go(out, "abcdef")
    with pytest.raises(BadInput, match="exists; use --force"):
        run(listed("abcde"), COMM, options(out))


def test_damaged_blocks_are_made_again(out):
    go(out, "abcdef", bad="d")
    if COMM.rank == 0:
        path = out / "work/list.toy/data.h5"
        data = bytearray(path.read_bytes())
        place = data.find(values("b").tobytes())
        data[place] ^= 1
        path.write_bytes(data)
    COMM.Barrier()
    assert set(go(out, "abcdef")[0]) == {"b", "d"}


def test_in_memory_nothing_is_kept(out):
    go(out, "abcdef", bad="d", in_memory=True)
    assert not (out / "work").exists()


def test_a_list_that_has_grown_is_the_same_command(out):
    go(out, "abcde", bad="d")
    assert go(out, "abcdef") == ("df", "abcdef")


# Stages that read: what is made of chunks depends on these chunks, wherever they lie.

#: Rows and pixels of items by name; without rows, and without pixels in a row, among them.
SIZES = {"a": (5, 3), "b": (2, 4), "c": (0, 3), "d": (4, 4), "e": (2, 0), "f": (1, 7), "x": (4, 2)}

TILE = 2


def image(name, version=""):
    seed = sum(map(ord, name + version))
    return np.random.default_rng(seed).normal(size=SIZES[name]).astype("float32")


def doubled(name, version="", bad=()):
    """What becomes of an item: of one that is bad, of what stands for it."""
    if name in bad:
        return np.full(SIZES[name], 2 * bad[name], "float32")
    return 2 * image(name, version)


def in_tiles(whole):
    return [whole[a : a + TILE] for a in range(0, len(whole), TILE)]


def chained(names, versions, bad, hook):
    """Items of different shapes are made, doubled, cut into tiles, and added up in pairs.

    `versions` and `bad` say by name which version an item has, and what stands for one that is bad.
    """
    shapes = tuple(SIZES[name] for name in names)
    made, double = (Ragged(array, "eyx", shapes, "float32") for array in ("made", "double"))
    flags = Array("flags", "e", (len(names),), "uint8")
    owners = [number for number, name in enumerate(names) for _ in in_tiles(image(name))]
    cut = tuple(tile.shape for name in names for tile in in_tiles(image(name)))
    tiles = Ragged("tiles", "tyx", cut, "float32")
    sums = Array("sums", "e", (len(names),), "float64")
    grid = ChunkGrid("e", (len(names),), (1,))

    def make(chunk):
        name = names[chunk.number]
        hook("make", name)
        if name in bad:
            return np.full((1, *SIZES[name]), bad[name], "float32"), np.ones(1)
        return image(name, versions.get(name, ""))[None], np.zeros(1)

    def times_two(chunk, block):
        hook("double", names[chunk.number])
        return (2 * block,)

    def split(chunk, block):
        hook("tiles", names[chunk.number])
        return ([tile[None] for tile in in_tiles(block[0])],)

    def of_item(number):
        return [tiles.item(i) for i, owner in enumerate(owners) if owner == number]

    def add(chunk, blocks):
        hook("pairs", names[chunk.number])
        return (np.array([total(blocks)]),)

    def save(chunk, folder, *blocks):
        (folder / "data.raw").write_bytes(b"".join(block.tobytes() for block in blocks))

    def stages():
        yield Compute(
            "make",
            grid,
            writes=(made, flags),
            work=make,
            depends=lambda number: {"name": names[number], "version": versions.get(names[number], "")},
            unusable=lambda block, flag: bool(flag.any()),
        )
        nothing = {"depends": lambda number: {}}
        yield Compute("double", grid, reads=(Part(made),), writes=(double,), work=times_two, **nothing)
        yield Compute(
            "tiles",
            grid,
            reads=(Part(double),),
            writes=(Pieces(tiles, lambda chunk: of_item(chunk.number)),),
            work=split,
            **nothing,
        )

        def with_next(chunk):
            return [*of_item(chunk.number), *of_item((chunk.number + 1) % len(names))]

        yield Compute("pairs", grid, reads=(Pieces(tiles, with_next),), writes=(sums,), work=add, **nothing)
        whole = ChunkGrid("k", (1,), (1,))
        everything = [tiles.item(number) for number in range(len(owners))]
        reads = (Part(sums), *(At(tiles, lambda chunk, box=box: box) for box in everything))
        yield Files("save", whole, reads=reads, work=save, names=("data.raw",))
        lost = {name: "is bad" for name in names if name in bad}
        yield Reduce(
            "flags",
            grid,
            reads=(Part(flags),),
            work=lambda chunk, block: block[0],
            row=((), "uint8"),
            finish=lambda rows: Found(int(rows.sum()), left_out=lost),
            expected=0,
        )
        return np.float32(0)

    sources = {name: f"{versions.get(name, '')}{bad.get(name, '')}" for name in names}
    return dataclasses.replace(toy.recipe("chained", stages), sources=sources)


def total(blocks):
    """Add up blocks in their order, which the sum depends on."""
    value = 0.0
    for block in blocks:
        value = 0.7 * value + float(block.sum(dtype="float64"))
    return value


def go_chained(out, names, versions=None, bad=None, **fields):
    """Run; check what was made; return by stage the items whose chunks were made."""
    versions, bad, calls = versions or {}, bad or {}, Calls()
    run(chained(names, versions, bad, calls), COMM, options(out, force=True, keep_work=True, **fields))
    tiles = [in_tiles(doubled(name, versions.get(name, ""), bad)) for name in names]
    pairs = [total([*one, *after]) for one, after in zip(tiles, [*tiles[1:], tiles[0]], strict=True)]
    expected = np.array(pairs).tobytes() + b"".join(tile.tobytes() for one in tiles for tile in one)
    assert (out / "data.raw").read_bytes() == expected
    seen = calls.all()
    assert len(seen) == len(set(seen))
    COMM.Barrier()  # all have looked at the result before the next run replaces it
    return {
        stage: "".join(sorted(name for at, name in seen if at == stage))
        for stage in ("make", "double", "tiles", "pairs")
    }


def of(items, pairs):
    """The same items in each stage but the last."""
    return {"make": items, "double": items, "tiles": items, "pairs": pairs}


def test_only_what_is_made_of_a_changed_chunk_is_made_again(out):
    """Through stages that only read: the item that changed, and the pairs that it is in."""
    assert go_chained(out, "abcdef") == of("abcdef", "abcdef")
    assert go_chained(out, "abcdef") == of("", "")
    assert go_chained(out, "abcdef", versions={"d": "2"}) == of("d", "cd")
    # The marks of the first run are there still, and what they speak of is not.
    assert go_chained(out, "abcdef") == of("d", "cd")


def test_an_unusable_chunk_is_tried_again_and_so_is_what_was_made_of_it(out):
    assert go_chained(out, "abcdef", bad={"d": np.nan, "f": 1}) == of("abcdef", "abcdef")
    # What stands for it is the same as before, and so is what was made of that.
    assert go_chained(out, "abcdef", bad={"d": np.nan, "f": 1}) == {**of("", ""), "make": "df"}
    assert go_chained(out, "abcdef", bad={"d": np.nan}) == {**of("f", "ef"), "make": "df"}
    assert go_chained(out, "abcdef", bad={"d": 7}) == of("d", "cd")
    assert go_chained(out, "abcdef") == of("d", "cd")
    assert go_chained(out, "abcdef") == of("", "")


def test_an_item_that_becomes_unusable_takes_with_it_what_was_made_of_it(out):
    """Its mark says that it was usable, which is believed until something that it depends on changes."""
    go_chained(out, "abcdef")
    assert go_chained(out, "abcdef", versions={"b": "2"}, bad={"b": 5}) == of("b", "ab")
    assert go_chained(out, "abcdef", versions={"b": "2"}) == of("b", "ab")


@pytest.mark.parametrize("names", ["abcdefx", "xabcdef", "fedcba", "bxd", "dax", "abdef", "e"])
def test_ragged_chunks_and_pieces_serve_wherever_they_come_to_lie(out, names):
    """Of another list, all items that were there; and the pairs of which the same tiles are read."""
    go_chained(out, "abcdef")
    # Item c has none, so that its pairs are made of the other one.
    before = {"ab", "b", "d", "de", "ef", "fa"}
    pairs = [one + after for one, after in zip(names, names[1:] + names[0], strict=True)]
    new = "".join(sorted(pair[0] for pair in pairs if pair.replace("c", "") not in before))
    seen = go_chained(out, names)
    assert seen == of("x" * ("x" in names), new)


def test_what_reads_the_whole_list_is_made_again_when_an_item_can_be_used(out):
    """What is known of the item beforehand is the same; and what was made of its stand-in is there still."""
    assert go(out, "abcdef", bad="d", keep_work=True) == ("abcdef", "abcdef")
    assert go(out, "abcdef", keep_work=True) == ("d", "abcdef")
    assert go(out, "abcdef", force=True) == ("", "")


def twice(out, stages):
    """Run stages with a list for their calls, twice; return what the second run called, on all ranks."""
    for _ in range(2):
        seen = []
        run(
            toy.recipe("twice", lambda seen=seen: stages(seen)),
            COMM,
            options(out, force=True, keep_work=True),
        )
        made = sorted(one for calls in COMM.allgather(seen) for one in calls)
    return made


def ended(array):
    """A sink, so that arrays are kept as long as they are looked at; and the result."""
    yield toy.sink(array, array.shape[0], toy.nothing)
    return np.float32(0)


def result_of(values):
    return toy.file_of([values.tobytes()])


def test_chunks_that_read_nothing_differ_by_the_shape_of_it(out):
    """Items without pixels: of each its rows are counted."""
    items = Ragged("items", "eyx", ((2, 0), (3, 0), (0, 0), (5, 0)), "uint8")
    rows = Array("rows", "e", (4,), "int64")

    def stages(seen):
        grid = ChunkGrid("e", (4,), (1,))
        work = [np.zeros((1, *shape), "uint8") for shape in items.shapes]
        said = {"depends": lambda number: {"number": number}}
        yield Compute("make", grid, writes=(items,), work=lambda chunk: (work[chunk.number],), **said)

        def count(chunk, block):
            seen.append(chunk.number)
            return (np.array([block.shape[1]]),)

        yield Compute(
            "count", grid, reads=(Part(items),), writes=(rows,), work=count, depends=lambda number: {}
        )
        yield from ended(rows)

    assert twice(out, stages) == []
    assert (out / toy.OUTPUT).read_bytes() == result_of(np.array([2, 3, 0, 5]))


def test_chunks_that_read_the_same_differ_by_what_they_write(out):
    """As many copies of one number as a chunk has items; the last chunk has fewer."""
    one, copies = Array("one", "k", (1,), "float64"), Array("copies", "z", (7,), "float64")

    def stages(seen):
        said = {"depends": lambda number: {}}
        yield Compute("make", one.cut(k=1), writes=(one,), work=lambda chunk: (np.full(1, 2.5),), **said)

        def copy(chunk, block):
            seen.append(chunk.number)
            start, stop = chunk.bounds["z"]
            return (np.repeat(block, stop - start),)

        yield Compute("copy", copies.cut(z=3), reads=(Part(one),), writes=(copies,), work=copy, **said)
        yield from ended(copies)

    assert twice(out, stages) == []
    assert (out / toy.OUTPUT).read_bytes() == result_of(np.full(7, 2.5))


def test_chunks_that_read_different_blocks_of_a_chunk_differ(out):
    """Two tiles of one shape come of an item, and each goes its own way."""
    tiles, sums = Ragged("tiles", "tx", ((3,),) * 4, "float64"), Array("sums", "t", (4,), "float64")
    values = np.arange(12.0).reshape(4, 3) ** 2

    def stages(seen):
        def of_item(chunk):
            return [tiles.item(2 * chunk.number), tiles.item(2 * chunk.number + 1)]

        yield Compute(
            "make",
            ChunkGrid("e", (2,), (1,)),
            writes=(Pieces(tiles, of_item),),
            work=lambda chunk: ([values[2 * chunk.number + k][None] for k in range(2)],),
            depends=lambda number: {"number": number},
        )

        def add(chunk, block):
            seen.append(chunk.number)
            return (block.sum(axis=1),)

        yield Compute(
            "sums", sums.cut(t=1), reads=(Part(tiles),), writes=(sums,), work=add, depends=lambda number: {}
        )
        yield from ended(sums)

    assert twice(out, stages) == []
    assert (out / toy.OUTPUT).read_bytes() == result_of(values.sum(axis=1))


def test_another_version_of_the_stage_voids_chunks_that_only_read(out, monkeypatch):
    """What a chunk depends on beside what it reads is all that its stage has."""
    monkeypatch.setattr(provenance, "__version__", "1")
    go_chained(out, "abcdef")
    monkeypatch.setattr(provenance, "__version__", "2")
    assert go_chained(out, "abcdef") == of("abcdef", "abcdef")


def test_another_part_of_the_same_chunks_is_another_thing(out):
    """A halo says which part of them a chunk reads, and nothing else does."""
    array, result = Array("made", "z", (9,), "float64"), Array("sums", "z", (9,), "float64")

    def sums(halo, seen):
        def stages():
            yield Compute(
                "make",
                ChunkGrid("z", (9,), (3,)),
                writes=(array,),
                work=lambda chunk: (np.arange(*chunk.bounds["z"]) ** 2.0,),
                depends=lambda number: {"number": number},
            )

            def add(chunk, block):
                seen.append(chunk.number)
                return (block.sum(keepdims=True),)

            yield Compute(
                "sums",
                ChunkGrid("z", (9,), (1,)),
                reads=(Part(array, {"z": halo}),),
                writes=(result,),
                work=add,
                depends=lambda number: {},
            )
            yield toy.sink(result, 9, toy.nothing)
            return np.float32(0)

        return toy.recipe("halos", stages, halo=halo)

    for halo in (1, 2, 2):
        seen = []
        run(sums(halo, seen), COMM, options(out, force=True, keep_work=True))
        expected = [sum(i**2.0 for i in range(max(z - halo, 0), min(z + halo + 1, 9))) for z in range(9)]
        assert (out / toy.OUTPUT).read_bytes() == toy.file_of([np.array(expected).tobytes()])
        made = sorted(number for numbers in COMM.allgather(seen) for number in numbers)
        COMM.Barrier()  # all have looked at the result before the next run replaces it
    assert made == []
