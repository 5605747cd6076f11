"""Joins and groups against pandas, and against what is obvious."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiimg.arrays.table_ops import Aggregation, Join, bucket_of
from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows

KEYS = st.one_of(
    st.lists(st.integers(-3, 3), max_size=20).map(lambda v: np.array(v, "i4")),
    st.lists(st.sampled_from(["", "a", "b", "ab"]), max_size=20).map(lambda v: np.array(v, "U3")),
    st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0]), max_size=20).map(lambda v: np.array(v, "f8")),
)


def rows(units=(), **columns):
    return Rows({name: np.asarray(values) for name, values in columns.items()}, dict(units))


def frame(some):
    return pd.DataFrame({name: values.astype(object) for name, values in some.columns.items()})


def same(some, expected):
    assert list(some.columns) == list(expected.columns)
    for name, values in some.columns.items():
        assert values.tolist() == expected[name].tolist(), name


@settings(deadline=None, max_examples=50)
@given(st.data(), st.sampled_from(["inner", "left"]))
def test_a_join_is_that_of_pandas(data, how):
    key = data.draw(KEYS)
    other = data.draw(KEYS.filter(lambda k: k.dtype.kind == key.dtype.kind))
    left = rows(key=key, second=np.arange(len(key)) % 2, a=np.arange(len(key)))
    right = rows(second=np.arange(len(other)) % 2, key=other, a=np.arange(len(other)) * 10)
    for on in (("key",), ("key", "second")):
        join = Join(on, how, fill={"a": -1, "second": -1})
        made, places = join(left, right)
        expected = frame(left).merge(frame(right), how=how, on=list(on), suffixes=("", "_right"))
        same(made, expected.fillna(-1))
        assert np.array_equal(made["a"], left["a"][places])


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_join_by_buckets_is_that_of_the_whole(data):
    """Equal keys share a bucket, also where one side is text of another width, or of another integer type."""
    key = data.draw(KEYS)
    other = data.draw(KEYS.filter(lambda k: k.dtype.kind == key.dtype.kind))
    wider = other.astype({"i": "i8", "U": "U9", "f": "f8"}[key.dtype.kind])
    left, right = rows(key=key, a=np.arange(len(key))), rows(key=wider, b=np.arange(len(wider)))
    whole, _ = Join(("key",))(left, right)
    one, two = bucket_of(left, ["key"], 3), bucket_of(right, ["key"], 3)
    parts = [Join(("key",))(left.taken(one == n), right.taken(two == n))[0] for n in range(3)]
    pairs = [(int(a), int(b)) for part in parts for a, b in zip(part["a"], part["b"], strict=True)]
    assert sorted(pairs) == list(zip(whole["a"].tolist(), whole["b"].tolist(), strict=True))


def test_nan_is_no_key_of_a_join():
    left, right = rows(key=[np.nan, 1.0], a=[1, 2]), rows(key=[np.nan, 1.0], b=[1.0, 2.0])
    made, _ = Join(("key",), "left")(left, right)
    assert made["a"].tolist() == [1, 2]
    assert np.isnan(made["b"][0]) and made["b"][1] == 2


def test_large_unsigned_keys_are_not_rounded():
    big = 2**63
    left, right = rows(key=np.array([big, big + 1], "u8")), rows(key=np.array([-1, 5], "i8"), b=[1, 2])
    assert len(Join(("key",))(left, right)[0]) == 0


def test_units_go_through_a_join():
    left, right = rows({"a": "ct"}, key=[1], a=[1.0]), rows({"a": "mag"}, key=[1], a=[2.0])
    assert Join(("key",))(left, right)[0].units == {"a": "ct", "a_right": "mag"}


@pytest.mark.parametrize(
    ("join", "words"),
    [
        (Join(("nokey",)), "the left table has no column nokey; it has: key, a"),
        (Join(("key",), suffix=""), "two columns would be called a"),
        (Join(("key",), "left"), r"column a \(int64\) has no value that says so; give fill={'a'"),
        (Join(("a",)), "column a is int64 and float64"),
    ],
)
def test_joins_that_cannot_be_say_why(join, words):
    with pytest.raises(BadInput, match=words):
        right = rows(key=[2], a=[1.5]) if join.on == ("a",) else rows(key=[2], a=[7])
        join(rows(key=[1], a=[1]), right)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_groups_are_those_of_pandas(data):
    key = data.draw(KEYS)
    values = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=len(key), max_size=len(key))), "f8")
    names = ("sum", "mean", "min", "max", "count", "std", "first", "last")
    some = rows({"v": "ct"}, key=key + key.dtype.type(0) if key.dtype.kind == "f" else key, v=values)
    made = Aggregation(("key",), tuple((name, "v", name) for name in names))(some)
    if not len(key):
        assert len(made) == 0
        return
    groups = pd.DataFrame(dict(some.columns)).groupby("key")["v"]
    expected = groups.agg([*names[:5], lambda v: v.std(ddof=0), "first", "last"])
    assert made["key"].tolist() == expected.index.tolist()
    for number, name in enumerate(names):
        assert np.allclose(made[name], expected.iloc[:, number].to_numpy(), rtol=1e-12, atol=1e-12), name
    assert made.units == {name: "ct" for name in names if name != "count"}


def test_sums_are_of_rows_in_their_order():
    values = np.random.default_rng(3).normal(size=1000)
    key = np.arange(1000) % 3
    made = Aggregation(("key",), (("s", "v", "sum"),))(rows(key=key, v=values))
    for group in range(3):
        total = 0.0
        for one in values[key == group]:
            total += one
        assert made["s"][group] == total


def test_groups_of_several_keys_text_vectors_and_types():
    some = rows(
        a=np.array([2, 1, 2, 1], "i2"),
        b=np.array(["y", "x", "x", "x"]),
        v=np.arange(8.0).reshape(4, 2),
        n=np.array([250, 7, 9, 250], "u1"),
        t=np.array(["p", "q", "r", "s"]),
    )
    columns = (
        ("v", "v", "sum"),
        ("n", "n", "sum"),
        ("t", "t", "max"),
        ("f", "t", "first"),
        ("c", "a", "count"),
    )
    made = Aggregation(("a", "b"), columns)(some)
    assert made["a"].tolist() == [1, 2, 2]
    assert made["b"].tolist() == ["x", "x", "y"]
    assert made["v"].tolist() == [[8, 10], [4, 5], [0, 1]]
    assert made["n"].tolist() == [257, 9, 250]
    assert made["n"].dtype == np.uint64
    assert made["t"].tolist() == ["s", "r", "p"]
    assert made["f"].tolist() == ["q", "r", "p"]
    assert made["c"].tolist() == [2, 1, 1]


def test_nan_stays_nan_in_groups():
    made = Aggregation(("k",), (("m", "v", "max"), ("s", "v", "sum")))(rows(k=[1, 1, 2], v=[np.nan, 1, 2]))
    assert np.isnan(made["m"][0]) and np.isnan(made["s"][0])
    assert made["s"][1] == 2


def test_aggregations_that_cannot_be_say_why():
    with pytest.raises(BadInput, match="column t is text, and has no mean"):
        Aggregation(("k",), (("m", "t", "mean"),))(rows(k=[1], t=["a"]))
    with pytest.raises(BadInput, match="column v holds vectors, and is no key"):
        Aggregation(("v",), ())(rows(v=[[1, 2]]))
