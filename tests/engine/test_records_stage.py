"""Stages of records: sizes that nobody knew, units that fail, damaged files and marks, and what plans say."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from support import toy
from support.ranks import COMM, LAST

from mpiimg.engine import executor
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.checkpoint import read_marks
from mpiimg.engine.codec import decode, encode, parts
from mpiimg.engine.containment import Units
from mpiimg.engine.keys import check_comparable, checked_key
from mpiimg.engine.log.run_status import run_status
from mpiimg.engine.mpi.gather import allgather_bytes
from mpiimg.engine.plan import Resources, plan_recipe
from mpiimg.engine.recipe import Options
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.record_store import records_in
from mpiimg.engine.run import run
from mpiimg.engine.stage import Files, Records
from mpiimg.errors import BadInput, DamagedData, Exit, RunFailed

pytestmark = pytest.mark.ranks


@pytest.fixture
def out(tmp_path):
    """One folder for all ranks, to be made by the run."""
    return pathlib.Path(COMM.bcast(str(tmp_path))) / "out"


def go(recipe, out, **fields):
    return run(recipe, COMM, Options(**{"out": out, "memory": toy.PLENTY, "timeout": 60.0, **fields}))


def work_of(recipe, out):
    return out / "work" / f"{recipe.stem}.toy"


class Calls:
    """The work that was done, on all ranks together."""

    def __init__(self):
        self.seen = []

    def __call__(self, stage, chunk):
        self.seen.append((stage, chunk))

    def of(self, stage):
        return sorted(number for seen in COMM.allgather(self.seen) for name, number in seen if name == stage)


def chain(calls=lambda stage, chunk: None, count=5, fail=(), size=3, units=None, **more):
    """Numbers in records, doubled in further ones, and written with their keys."""

    def one(chunk):
        calls("one", chunk.number)
        if chunk.number in fail:
            yield ("before", chunk.number), parts(0)
            raise ValueError("on purpose")
        yield ("number", chunk.number), parts(np.full(size, chunk.number))

    def save(chunk, folder, blocks):
        (folder / "all.json").write_text(json.dumps([decode(block).tolist() for block in blocks]))

    def stages():
        index = yield Records("one", ChunkGrid("e", (count,), (1,)), work=one, units=units, **more)

        def double(chunk, blocks):
            calls("double", chunk.number)
            yield index.keys[chunk.number], parts(2 * decode(blocks[0]))

        each = RecordsOf(index.array, lambda chunk: [chunk.number])
        grid = ChunkGrid("e", (len(index),), (1,))
        doubled = yield Records("double", grid, reads=(each,), work=double)
        every = RecordsOf(doubled.array, lambda chunk: range(len(doubled)))
        yield Files(
            "save", ChunkGrid("k", (1,), (1,)), reads=(every,), work=save, names=("all.json",), scratch=0
        )
        return list(doubled.keys), dict(index.lost)

    return toy.recipe("chain", stages)


def saved(out):
    return json.loads((out / "all.json").read_text())


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
def test_records_come_in_the_order_of_chunks_and_the_generator_is_sent_their_index(in_memory, out):
    outcome = go(chain(), out, in_memory=in_memory)
    assert saved(out) == [[2 * n] * 3 for n in range(5)]
    assert outcome.state == ([("number", n) for n in range(5)], {})


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
def test_no_records_at_all(in_memory, out):
    go(chain(count=0), out, in_memory=in_memory)
    assert saved(out) == []


UNITS = Units(lambda number: f"item {number}", 5, "item")


def test_a_unit_that_fails_is_left_out_with_what_it_has_made(out):
    outcome = go(chain(fail={2}, units=UNITS), out)
    assert saved(out) == [[2 * n] * 3 for n in (0, 1, 3, 4)]
    assert outcome.status == Exit.PARTIAL and list(outcome.left_out) == ["item 2"]
    assert list(outcome.state[1]) == [2] and "on purpose" in outcome.state[1][2]


def test_without_units_it_ends_the_run(out):
    with pytest.raises(RunFailed, match="stage one, chunk 2"):
        go(chain(fail={2}), out)


def test_what_was_left_out_is_taken_up_and_the_rest_is_kept(out):
    units = Units(UNITS.name_of, 5, "item", kept=True)
    go(chain(fail={2}, units=units), out)
    calls = Calls()
    go(chain(calls, units=units), out)
    assert saved(out) == [[2 * n] * 3 for n in range(5)]
    assert calls.of("one") == [2]
    assert not work_of(chain(), out).exists()


def test_a_chunk_that_says_what_it_depends_on_serves_a_run_of_more_chunks(out):
    """An item is added in front: what was made of the others is found, though they have other numbers."""

    def names(some):
        return {"depends": lambda number: {"name": some[number]}}

    recipe = chain(count=3, **names("bcd"))
    go(recipe, out, keep_work=True)
    calls = Calls()
    go(chain(calls, count=4, **names("abcd")), out, force=True)
    assert calls.of("one") == [0]


def interrupted(recipe, out):
    """Run until the second stage, in which a chunk raises."""
    with pytest.raises(RunFailed):
        go(recipe, out)


def failing_later(calls):
    def hook(stage, chunk):
        calls(stage, chunk)
        if stage == "double":
            raise RuntimeError("later")

    return hook


def files_of(recipe, out, stage):
    return sorted((records_in(work_of(recipe, out)) / stage).iterdir())


def test_a_flipped_bit_in_a_file_of_records_costs_a_chunk(out):
    recipe = chain(failing_later(Calls()))
    interrupted(recipe, out)
    if COMM.rank == LAST:
        path = files_of(recipe, out, "one")[0]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    COMM.Barrier()
    calls = Calls()
    outcome = go(chain(calls), out)
    assert len(calls.of("one")) == 1 and saved(out) == [[2 * n] * 3 for n in range(5)]
    assert any("1 chunks were altered" in line for line in outcome.report["warnings"])


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_files_that_are_cut_or_gone_cost_their_chunks(how, out):
    recipe = chain(failing_later(Calls()))
    interrupted(recipe, out)
    if COMM.rank == LAST:
        path = files_of(recipe, out, "one")[0]
        path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[:100])
    COMM.Barrier()
    calls = Calls()
    go(chain(calls), out)
    assert calls.of("one") and saved(out) == [[2 * n] * 3 for n in range(5)]


def test_a_damaged_mark_costs_its_chunk(out):
    recipe = chain(failing_later(Calls()))
    interrupted(recipe, out)
    journal = work_of(recipe, out) / "journal"
    marked = len({mark.chunk for mark in read_marks(journal) if mark.stage == "one"})
    assert marked == 5
    COMM.Barrier()
    if COMM.rank == LAST:
        path = next(path for path in sorted(journal.iterdir()) if b'"one"' in path.read_bytes())
        path.write_bytes(
            path.read_bytes().replace(b'"offset', b'"offxet', 1).replace(b'"file"', b'"fole"', 1)
        )
    COMM.Barrier()
    calls = Calls()
    go(chain(calls), out)
    assert len(calls.of("one")) == 1 and saved(out) == [[2 * n] * 3 for n in range(5)]


def test_what_is_damaged_while_the_run_is_on_ends_it_and_is_mended(out, monkeypatch):
    """By units too: a flipped bit is no fault of the unit that met it."""
    recipe = chain(units=UNITS)

    def spoil(self, stage, *rest):
        if stage.name == "double":
            self.arrays.spill(["one-records"])
            COMM.Barrier()
            if COMM.rank == LAST:
                for path in files_of(recipe, out, "one"):
                    data = bytearray(path.read_bytes())
                    data[-70] ^= 1
                    path.write_bytes(data)
            COMM.Barrier()
        return original(self, stage, *rest)

    original = executor.Executor._turn_to
    with monkeypatch.context() as patch:
        patch.setattr(executor.Executor, "_turn_to", spoil)
        with pytest.raises(DamagedData, match=r"of one-records is not what was written.*goes on"):
            go(recipe, out)
    go(chain(units=UNITS), out)
    assert saved(out) == [[2 * n] * 3 for n in range(5)]


SIZE = 1 << 18  # of float64


def test_more_than_was_expected_stays_in_files(out, monkeypatch):
    """A rank that has no room for its records in memory has them read from files, and none is refused."""
    seen = []
    recipe = chain(size=SIZE, scratch=0)
    memory = recipe.baseline + (3 << 20)
    add = executor.PlacedArrays.add_records
    monkeypatch.setattr(
        executor.PlacedArrays,
        "add_records",
        lambda self, placement, *rest: (seen.append(placement.memory), add(self, placement, *rest))[1],
    )
    go(recipe, out, memory=memory)
    assert saved(out)[3][:2] == [6, 6]
    # 2 MB each, of which a rank holds one.
    assert seen[0] == (COMM.size >= 5)


def test_a_group_above_the_cap_is_worked_on_and_said(out):
    """Nobody knew: it is no reason to give up what all else has come to."""

    def stages():
        index = yield Records("one", ChunkGrid("e", (6,), (1,)), work=one, scratch=0)
        every = RecordsOf(index.array, lambda chunk: range(len(index)))
        grid = ChunkGrid("k", (1,), (1,))
        yield Files("save", grid, reads=(every,), work=save, names=("all.json",), scratch=0)

    def one(chunk):
        yield 0, parts(np.full(SIZE, chunk.number))

    def save(chunk, folder, blocks):
        (folder / "all.json").write_text(json.dumps(sum(int(decode(block)[0]) for block in blocks)))

    recipe = toy.recipe("large", stages)
    outcome = go(recipe, out, memory=recipe.baseline + (5 << 20))
    assert saved(out) == 15
    assert any("records that one chunk reads may take" in line for line in outcome.report["warnings"])


def test_in_memory_they_are_refused_with_what_to_do(out):
    recipe = chain(size=SIZE, scratch=0)
    with pytest.raises(BadInput, match=r"stage one: its records take more than .* leave out --in-memory"):
        go(recipe, out, memory=recipe.baseline + (1 << 20), in_memory=True)


def test_the_plan_reckons_with_what_is_expected(out):
    expected = Index.of("", [(n, ("number", n), 1000 * n, None) for n in range(5)], {})
    recipe = chain(expected=expected)
    plan = plan_recipe(recipe, Resources(3, toy.PLENTY))
    by_name = {stage.name: (stage, planned) for stage, planned in plan}
    assert by_name["one"][1].written == 10_000
    assert by_name["double"][1].chunks == 5
    assert by_name["one"][1].kind == "records"
    assert by_name["double"][1].read + by_name["double"][1].moved <= 10_000


def test_status_shows_the_stages(out):
    go(chain(), out)
    COMM.Barrier()
    status = run_status(out / "events-toy")
    assert [(stage.name, stage.done) for stage in status.stages][:2] == [("one", 5), ("double", 5)]


def test_keys():
    assert checked_key((np.int64(3), "a", (np.str_("b"),))) == (3, "a", ("b",))
    assert type(checked_key(np.uint8(3))) is int
    for key in (1.5, True, None, b"a", [1], (1, 2.0)):
        with pytest.raises(BadInput, match="int, str, or tuples"):
            checked_key(key)
    check_comparable([(1, "a"), (2, "b")], "group_by_key")
    with pytest.raises(BadInput, match=r"group_by_key: the keys 'a' and 3 are of different types"):
        check_comparable(["a", "b", 3], "group_by_key")
    with pytest.raises(BadInput, match=r"\(1, 2\) and \(1, 'b'\)"):
        check_comparable([(1, 2), (1, "b")], "x")


def test_bytes_of_all_ranks_in_small_pieces():
    own = bytes(range(7 * COMM.rank % 50))
    for at_once in (1, 10, 1 << 20):
        assert allgather_bytes(COMM, own, at_once) == [bytes(range(7 * r % 50)) for r in range(COMM.size)]


def test_a_key_that_is_none_is_refused(out):
    def stages():
        yield Records("one", ChunkGrid("e", (1,), (1,)), work=lambda chunk: iter([(1.5, [encode(1)])]))

    with pytest.raises(BadInput, match=r"the key 1\.5 of a record is of type float"):
        go(toy.recipe("keys", stages), out)
