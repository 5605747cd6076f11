"""Items: what chains of functions make of records is what a plain loop makes, on any ranks."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np
import pytest
from support.ranks import COMM, LAST

import mpiimg as mi
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.memory import anonymous_now
from mpiimg.errors import BadInput, DamagedData, RunFailed

pytestmark = pytest.mark.ranks


@pytest.fixture
def folder(tmp_path):
    """One folder for all ranks."""
    return pathlib.Path(COMM.bcast(str(tmp_path)))


@pytest.fixture(autouse=True)
def session(folder):
    """Keep what runs keep in the folder of the test; rehearse nothing, which takes a second each."""
    with mi.session(folder / "session", keep_work=True, rehearse=False) as opened:
        yield opened


class Piece(NamedTuple):
    start: int
    data: np.ndarray


def load(number):
    return {"data": np.full(3, number, "f4"), "facts": (number, "a", None)}


def pieces(record, strips):
    number = record["facts"][0]
    for strip in range(number % strips):
        yield strip, Piece(number, record["data"] * (strip + 1))


def combined(members, key):
    """Depends on the order of the members."""
    total = np.zeros(3, np.float32)
    for member in members:
        total = total * np.float32(0.7) + member.data
    return key, [member.start for member in members], total


def by_loop(count, strips):
    groups = {}
    for number in range(count):
        for key, piece in pieces(load(number), strips):
            groups.setdefault(key, []).append(piece)
    return [(key, combined(groups[key], key)) for key in sorted(groups)]


def same(one, other):
    return type(one) is type(other) and repr(one) == repr(other)


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
def test_a_chain_gives_what_a_loop_gives(in_memory, folder):
    with mi.session(folder / "other", in_memory=in_memory, keep_work=True, rehearse=not in_memory):
        groups = mi.items(range(9), load).flat_map(pieces, strips=4).group_by_key().map(combined)
        assert same(groups.keyed(), by_loop(9, 4))
        assert same(mi.compute(groups), [record for _, record in by_loop(9, 4)])


#: Steps of random chains: what Items does, and what a loop over (key, record) pairs does.
STEPS = {
    "map": (lambda x: x.map(mix), lambda pairs: [(key, mix(one, key)) for key, one in pairs]),
    "filter": (lambda x: x.filter(is_some), lambda pairs: [(key, one) for key, one in pairs if is_some(one)]),
    "flat": (
        lambda x: x.flat_map(split),
        lambda pairs: [pair for key, one in pairs for pair in split(one, key)],
    ),
    "group": (
        lambda x: x.group_by_key().map(join),
        lambda pairs: [(key, join(members, key)) for key, members in in_groups(pairs)],
    ),
    "reduce": (
        lambda x: x.group_by_key().reduce(start, one_more),
        lambda pairs: [(key, functools.reduce(one_more, members, 0.0)) for key, members in in_groups(pairs)],
    ),
}


def mix(one, key):
    return one * 0.7 + key


def is_some(one):
    return int(one * 10) % 3 != 0


def split(one, key):
    return [((key + n) % 5, one / (n + 1)) for n in range(int(one) % 4)]


def join(members, key):
    return functools.reduce(lambda a, b: a * 0.5 + b, members) + key


def start():
    return 0.0


def one_more(state, one):
    return state * 0.3 + one


def in_groups(pairs):
    return [(key, [one for own, one in pairs if own == key]) for key in sorted({key for key, _ in pairs})]


@pytest.mark.parametrize("seed", range(5))
def test_random_chains_give_what_loops_give(seed, folder):
    """Some of whose steps others are made of too; all of them are looked at, so some are shared."""
    rng = np.random.default_rng(seed)
    values = [float(one) for one in rng.integers(0, 30, rng.integers(0, 9))]
    made, expected = [mi.items(values)], [list(enumerate(values))]
    for name in rng.choice(list(STEPS), 5):
        parent = int(rng.integers(max(0, len(made) - 2), len(made)))
        ours, plain = STEPS[name]
        made.append(ours(made[parent]))
        expected.append(plain(expected[parent]))
    for one, pairs in list(zip(made, expected, strict=True))[-3:]:
        assert one.keyed() == pairs


def test_one_rank_gets_the_records_that_asks_for_them():
    got = mi.items(range(3), load).compute(root=LAST)
    assert (got is None) == (COMM.rank != LAST)
    assert got is None or [record["facts"][0] for record in got] == [0, 1, 2]


def test_types_come_back():
    records = [Piece(1, np.arange(3)), {"a": (1, [2.5, None])}, np.float32(2), "text", 1 + 2j, b"x"]
    got = mi.items(records).map(lambda record: record).compute()
    assert [type(one) for one in got] == [type(one) for one in records]
    assert type(got[0].data) is np.ndarray and got[1] == records[1]


def test_filters_and_keys():
    items = mi.items(range(8)).filter(lambda n, least: n >= least, least=5)
    assert items.compute() == [5, 6, 7] and items.keys() == [5, 6, 7]
    assert mi.items({"b": 1, "a": 2}).map(lambda n, key: (key, n)).keyed() == [
        ("b", ("b", 1)),
        ("a", ("a", 2)),
    ]
    named = mi.items(["x/b.fits", "x/a.fits"], key=lambda path: os.path.basename(path))
    assert named.keys() == ["b.fits", "a.fits"]
    assert mi.items([1, 2], key=[(1, "a"), (0, "b")]).group_by_key().map(
        lambda members: members[0]
    ).keys() == [
        (0, "b"),
        (1, "a"),
    ]


def test_groups_come_in_the_order_of_numbers_not_of_texts():
    keys = [10, 9, 2, 10, 1]
    groups = mi.items(range(5), key=keys).group_by_key().map(lambda members: members)
    assert groups.keyed() == [(1, [4]), (2, [2]), (9, [1]), (10, [0, 3])]


def test_mixed_keys_are_refused_with_both():
    groups = mi.items(range(3), key=[1, "a", 2]).group_by_key().map(len)
    with pytest.raises(BadInput, match=r"group_by_key: the keys 1 and 'a' are of different types"):
        groups.compute()


def test_a_group_is_reduced_one_member_at_a_time():
    def add(state, record, factor):
        state += factor * record["data"]
        return state

    groups = mi.items(range(6), load, key=lambda n: n % 2).group_by_key()
    got = groups.reduce(lambda: np.zeros(3), add, lambda state: state.sum(), factor=2).keyed()
    assert got == [(0, 2 * 3 * (0 + 2 + 4.0)), (1, 2 * 3 * (1 + 3 + 5.0))]
    told = groups.reduce(lambda key: [key], lambda state, record: [*state, record["facts"][0]])
    assert told.compute() == [[0, 0, 2, 4], [1, 1, 3, 5]]
    assert groups.reduce(0, lambda count, record: count + 1).compute() == [3, 3]


def test_all_records_are_reduced_in_their_order():
    items = mi.items(range(5), key="edcba")
    assert items.reduce("", lambda state, n: state + str(n)).keyed() == [(0, "01234")]
    assert mi.items([]).reduce(0, lambda state, n: state + n).compute() == []
    persisted = mi.persist(items)
    assert persisted.reduce(0, lambda state, n: state + n, float).compute() == [10.0]


def test_items_are_planned(capfd):
    mi.plan(mi.items(range(5), load).flat_map(pieces, strips=2).group_by_key().map(combined))
    said = capfd.readouterr().out
    planned = re.findall(r"^(\w+)-[0-9a-f]{12} ", said, re.M)
    assert planned == (["pieces", "combined"] if COMM.rank == 0 else [])


def test_a_state_that_is_not_returned_is_missed():
    groups = mi.items(range(2), key=[0, 0]).group_by_key()
    with pytest.raises(RunFailed, match=r"returns nothing for member 0: return the state"):
        groups.reduce(lambda: [], lambda state, record: state.append(record)).compute()


def test_arrays_given_by_keyword_arrive_whole():
    table = mi.from_array(np.arange(12.0).reshape(3, 4), "y x")
    level = table.mean()

    def look(number, table, level):
        assert isinstance(table, np.ndarray) and isinstance(level, np.float64)
        return float(table[number].sum() - level)

    expected = [6 - 5.5, 22 - 5.5, 38 - 5.5]
    assert mi.items(range(3)).map(look, table=table, level=level).compute() == expected


# --- Steps that are fused, shared, and changed ------------------------------------------------------------


def noting(path, record):
    """Note a call in a file of its own."""
    with open(path / f"{record}-{os.getpid()}-{len(os.listdir(path))}", "x"):
        return record


def calls_in(path):
    return sorted(int(one.name.partition("-")[0]) for one in path.iterdir())


def notes(folder, name):
    on_root(COMM, lambda: (folder / name).mkdir())
    return folder / name


def test_what_two_are_made_of_is_made_once(folder):
    with mi.session(folder / "quick", rehearse=False, keep_work=True):
        path = notes(folder, "calls")
        base = mi.items(range(4)).map(functools.partial(noting, path))
        left, right = base.map(lambda n: n + 1), base.map(lambda n: n * 2)
        joined = mi.write({"left/": left.files(save_one), "right/": right.files(save_one)}, folder / "out")
        assert calls_in(path) == [0, 1, 2, 3]
        assert joined.record["outputs"].keys() >= {"left/0.txt", "right/3.txt"}


def save_stem(folder, record, key):
    save_one(folder, record, pathlib.Path(key).stem)


def save_one(folder, record, key):
    (folder / f"{key}.txt").write_text(repr(record))


def test_maps_are_fused_into_one_stage(folder):
    chain = mi.items(range(3)).map(lambda n: n + 1).filter(lambda n: n > 1).map(lambda n: [n])
    report = mi.write({"out/": chain.files(save_one)}, folder / "out").record
    assert len(report["stages"]) == 2
    assert (folder / "out" / "out" / "2.txt").read_text() == "[3]"


def test_what_a_function_changes_is_nobody_elses():
    """The same array yielded twice, records given as they are, and what a group's function changes."""

    def twice(array):
        yield 0, array
        yield 1, array

    def change(array):
        array += 1
        return array.tolist()

    given = [np.zeros(2), np.ones(2)]
    chain = mi.items(given).flat_map(twice)
    assert chain.map(change).compute() == [[1, 1], [1, 1], [2, 2], [2, 2]]
    assert given[0].tolist() == [0, 0]
    assert mi.items(given).map(change).compute() == mi.items(given).map(change).compute()


def test_arrays_come_in_the_same_order_of_memory_whether_kept_or_not():
    """A sum depends on it: what is not contiguous is made so also where steps are fused."""

    def turned(n):
        return np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]

    def flags(array):
        return array.flags.c_contiguous

    base = mi.items(range(2)).map(turned)
    assert base.map(flags).compute() == [True, True]
    shared = base.map(lambda array: array.sum())
    assert base.map(flags).compute() == [True, True] and len(shared.compute()) == 2


# --- Files, patterns --------------------------------------------------------------------------------------


@pytest.fixture
def night(folder):
    """Some files."""

    def make():
        (folder / "night").mkdir()
        for name in ("b", "a", "c"):
            np.save(folder / "night" / f"{name}.npy", np.full(4, ord(name), "f4"))

    on_root(COMM, make)
    return folder / "night"


def test_a_pattern_is_listed_in_the_order_of_names(night):
    items = mi.items(str(night / "*.npy"), np.load)
    assert len(items) == 3 and items.keys() == [str(night / name) for name in ("a.npy", "b.npy", "c.npy")]
    assert [array[0] for array in items.compute()] == [97, 98, 99]
    assert [path.name for path in mi.items(night / "*.npy").compute()] == ["a.npy", "b.npy", "c.npy"]
    with pytest.raises(BadInput, match=r"there is no such file"):
        mi.items(str(night / "*.fits"))
    with pytest.raises(BadInput, match=r"is a folder; say which files of it"):
        mi.items(night)


def test_a_record_that_raises_ends_the_run_by_name(night):
    def pick(array):
        return 1 / (array[0] - 98 if array[0] == 98 else 1) if array[0] != 98 else [][0]

    items = mi.items(str(night / "*.npy"), np.load).map(pick)
    with pytest.raises((RunFailed, BadInput)) as caught:
        items.compute()
    assert "IndexError" in str(caught.value) and "map(pick)" in str(caught.value)
    assert "b.npy" in str(caught.value)


def test_or_is_left_out_and_listed(night, folder):
    def pick(array):
        if array[0] == 98:
            raise ValueError("clouds")
        return float(array[0])

    items = mi.items(str(night / "*.npy"), np.load, on_error="leave out", key=lambda path: path.stem).map(
        pick
    )
    result = mi.write({"out/": items.files(save_one)}, folder / "out")
    assert list(result.left_out) == [str(night / "b.npy")]
    assert "clouds" in result.left_out[str(night / "b.npy")]
    assert result.record["left_out"] == dict(result.left_out)
    assert sorted(path.name for path in (folder / "out" / "out").iterdir()) == ["a.txt", "c.txt"]
    assert mi.items(str(night / "*.npy"), np.load, on_error="leave out").map(pick).compute() == [97, 99]


def test_one_more_file_costs_one_more_load(night, folder):
    """What was made of the others stays, where the work of the run before is kept."""
    path = notes(folder, "calls")

    def load_noting(file):
        array = np.load(file)
        noting(path, int(array[0]))
        return float(array.sum())

    def total():
        items = mi.items(str(night / "*.npy"), load_noting).map(lambda value: value + 1)
        return mi.write({"out/": items.files(save_stem)}, folder / "out", keep_work=True, force=True)

    with mi.session(folder / "quick", rehearse=False, keep_work=True):
        total()
        assert calls_in(path) == [97, 98, 99]
        COMM.Barrier()
        on_root(COMM, lambda: np.save(night / "aa.npy", np.full(4, 50, "f4")))
        total()
    assert calls_in(path) == [50, 97, 98, 99]
    assert (folder / "out" / "out" / "aa.txt").read_text() == "201.0"


def test_files_of_one_name_are_refused(folder):
    def save(folder, record):
        (folder / "same.txt").write_text(str(record))

    with pytest.raises(BadInput, match=r"both write out/same\.txt"):
        mi.write({"out/": mi.items(range(3)).files(save)}, folder / "out")


def test_files_in_a_folder_are_replaced_by_force_and_those_of_the_user_stay(folder):
    def write(count, **more):
        return mi.write({"out/": mi.items(range(count)).files(save_one)}, folder / "to", **more)

    write(3)
    with pytest.raises(BadInput, match=r"exists; use --force|exists"):
        write(2)
    on_root(COMM, lambda: (folder / "to" / "out" / "mine.txt").write_text("mine"))
    write(2, force=True)
    assert sorted(path.name for path in (folder / "to" / "out").iterdir()) == ["0.txt", "1.txt", "mine.txt"]
    record = json.loads((folder / "to" / "run-out.json").read_text())
    assert list(record["outputs"]) == ["out/0.txt", "out/1.txt"]


# --- What cannot be ---------------------------------------------------------------------------------------


class Secret:
    """What no record can hold."""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: mi.items(3), "takes a pattern, paths or records, and not int"),
        (lambda: mi.items({1, 2}), "a set has no order"),
        (lambda: mi.items([Secret()]), "an object of type"),
        (lambda: mi.items([1], on_error="skip"), "on_error = 'skip'"),
        (lambda: mi.items([1], 5), "load = 5: cannot be called"),
        (lambda: mi.items([1, 2], key=[1]), "1 keys for 2 items"),
        (lambda: mi.items([1], key=[1.5]), "of type float: keys are int, str"),
        (lambda: mi.items([1]).map(3), "takes a function, and not int"),
        (lambda: mi.items([1]).map(lambda: 1), r"map\(<lambda>\): is called with \(record\), and takes \(\)"),
        (lambda: mi.items([1]).map(lambda n: 1, level=2), "level"),
        (lambda: mi.items([1]).write("x.fits"), r"records have no format of their own; use \.table"),
        (lambda: mi.write({"x.fits": mi.items([1])}, "."), "no format of their own"),
        (lambda: mi.write({"x": mi.items([1]).files(save_one)}, "."), "write its name with a slash"),
        (lambda: mi.items([1]).group_by_key().group_by_key(), "are groups already"),
        (lambda: mi.items([1]).group_by_key().reduce([], max), "give a function that makes the first state"),
    ],
)
def test_wrong_calls_are_refused_at_once(wrong, message):
    with pytest.raises(BadInput, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (lambda items: items.map(lambda n: Secret()), "an object of type .*Secret cannot be kept"),
        (lambda items: items.map(lambda n: {"a": [n, {n}]}), r"record\['a'\]\[1\]: an object of type set"),
        (lambda items: items.flat_map(lambda n: 3), r"flat_map\(<lambda>\): returns int, and must yield"),
        (
            lambda items: items.flat_map(lambda n: [(1, 2, 3)]),
            r"yields a tuple of 3, and must yield \(key, record\)",
        ),
        (lambda items: items.flat_map(lambda n: [(0.5, n)]), "of type float: keys are int"),
        (lambda items: items.filter(lambda n: np.ones(2)), "returns ndarray, and must return True or False"),
    ],
)
def test_wrong_results_are_named(chain, message):
    with pytest.raises((BadInput, RunFailed), match=message):
        chain(mi.items(range(2))).compute()


def test_lazy_records_say_so():
    items = mi.items(range(4), load)
    assert len(items) == 4 and repr(items) == "<mpiimg.Items of 4 records: 4 items | load(load)>"
    groups = items.flat_map(pieces, strips=2).group_by_key()
    assert "any number of records: 4 items | load(load) | flat_map(pieces) | group_by_key" in repr(groups)
    assert "<table>" in groups._repr_html_() and "flat_map(pieces)" in groups._repr_html_()
    for use in (len, list, bool, lambda one: one[0]):
        with pytest.raises(TypeError, match=r"compute|keys"):
            use(groups)


# --- Arrays and tables ------------------------------------------------------------------------------------


def test_arrays_become_items_and_items_arrays():
    values = np.arange(24.0).reshape(4, 2, 3)
    array = mi.from_array(values, "t y x")
    sums = array.to_items("t").map(lambda block: block * 2)
    back = sums.stack("t", shape=(2, 3), dtype="f8")
    assert back.axes == ("t", "y", "x") and (back.compute() == 2 * values).all()
    assert array.to_items("t y").keys() == [(t, y) for t in range(4) for y in range(2)]
    assert (back.mean("t").compute() == 2 * values.mean(0)).all()
    with pytest.raises(BadInput, match="how many records there are is known when they are made"):
        sums.filter(lambda block: True).stack("t")


def test_records_that_are_not_alike_are_not_stacked():
    with mi.session(rehearse=True):
        uneven = mi.items(range(3)).map(lambda n: np.zeros(n + 1)).stack("n")
    assert uneven.axes == ("n", "x") and uneven.shape == (3, 1) and uneven.dtype == "f8"
    with pytest.raises((BadInput, RunFailed), match=r"record 1 has shape \(2,\)"):
        uneven.compute()


def test_rows_of_records_are_a_table(folder):
    def rows(n):
        return {"n": np.full(n, n), "x": np.arange(n) / 2}

    table = mi.items(range(4)).map(rows).table("n x", units={"x": "arcsec"})
    got = mi.compute(table)
    assert list(got["n"]) == [1, 2, 2, 3, 3, 3] and list(got["x"]) == [0, 0, 0.5, 0, 0.5, 1]


# --- Memory -----------------------------------------------------------------------------------------------


def test_a_deep_stack_is_reduced_under_a_cap(folder):
    """A group of 240 MB by ranks that have less left beside what the tests take."""
    megabytes, count = 4, 60

    def make(n):
        return np.full(megabytes << 17, n, "f8")

    def add(state, record):
        state += record
        return state

    memory = max(COMM.allgather(anonymous_now())) + (150 << 20)
    groups = mi.items(range(count)).map(make).flat_map(lambda one: [(0, one)]).group_by_key()
    total = groups.reduce(lambda: np.zeros(megabytes << 17), add, lambda state: float(state[0]))
    result = mi.write({"out/": total.files(save_one)}, folder / "out", memory=memory)
    assert (folder / "out" / "out" / "0.txt").read_text() == repr(float(sum(range(count))))
    assert max(stage["peak_per_rank"] for stage in result.record["stages"]) < memory


def test_what_is_persisted_is_made_once_for_all_runs(folder):
    path = notes(folder, "calls")
    with mi.session(folder / "loop", rehearse=False, keep_work=True):
        state = mi.items(range(4)).map(functools.partial(noting, path)).persist()
        assert state.compute() == [0, 1, 2, 3]
        doubled = state.map(lambda n, key: (n * 2, key)).persist()
        assert doubled.compute() == [(0, 0), (2, 1), (4, 2), (6, 3)]
        assert doubled.map(lambda pair: pair[0]).stack("n", shape=(), dtype="i8").sum().compute() == 12
        assert mi.compute(doubled.table("x n"))["x"].tolist() == [0, 2, 4, 6]
        mi.write({"out/": doubled.files(save_one)}, folder / "out")
    assert calls_in(path) == [0, 1, 2, 3]
    with mi.session(folder / "loop", rehearse=False, keep_work=True):
        again = mi.items(range(4)).map(functools.partial(noting, path)).persist()
        assert again.compute() == [0, 1, 2, 3]
    assert calls_in(path) == [0, 1, 2, 3]


@pytest.mark.parametrize("how", ["head", "record", "cut"])
def test_what_is_damaged_of_it_is_never_believed(how, folder):
    with mi.session(folder / "kept", rehearse=False, keep_work=True):
        assert mi.items(range(4)).map(load).persist().keys() == [0, 1, 2, 3]
    COMM.Barrier()
    if COMM.rank == LAST:
        (path,) = (folder / "kept").glob("*.records")
        data = bytearray(path.read_bytes())
        data[{"head": 40, "record": -70, "cut": 0}[how]] ^= 4 * (how != "cut")
        path.write_bytes(data[: len(data) - 9 * (how == "cut")])
    COMM.Barrier()
    with mi.session(folder / "kept", rehearse=False, keep_work=True):
        items = mi.items(range(4)).map(load).persist()
        if how == "record":
            with pytest.raises(DamagedData, match="record 3 is not what was written; remove the file"):
                items.compute()
        else:
            assert [record["facts"][0] for record in items.compute()] == [0, 1, 2, 3]
