"""Lazy tables in runs: by any way of joining and grouping, on any ranks, and in other readers."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table as AstropyTable
from support import launch

import mpiimg as mi
from mpiimg.arrays import table_compute, table_joins, table_nodes
from mpiimg.errors import BadInput, RunFailed


def table(*values, columns="x n name", **more):
    return mi.items(list(values)).table(columns, **more)


def rows(seed=0, count=40):
    """Rows of several items, one of them without any."""
    random = np.random.default_rng(seed)
    sizes = [0, *random.integers(1, count // 4, 5)]
    return tuple(
        [
            (float(random.normal()), int(random.integers(0, 7)), f"{'abc'[random.integers(3)]}{size}")
            for _ in range(size)
        ]
        for size in sizes
    )


def frame(values):
    return pd.DataFrame([row for item in values for row in item], columns=["x", "n", "name"])


def equal(one, expected):
    assert one.colnames == list(expected.columns)
    for name in one.colnames:
        assert one[name].tolist() == expected[name].tolist(), name


# --- What is said before anything runs --------------------------------------------------------------------


def test_what_it_shows():
    made = table([], columns={"x": "f4", "n": None, "name": str}, units={"x": "mag"})
    assert repr(made) == "<mpiimg.Table: x float32 [mag], n, name text>"
    assert "<td>float32</td>" in made._repr_html_() and "<td>mag</td>" in made._repr_html_()
    assert made.columns == ("x", "n", "name")
    assert (
        repr(made.with_column("y", "x + 1", "ct").select("y x")) == "<mpiimg.Table: y [ct], x float32 [mag]>"
    )
    assert repr(made.group("n").agg("count", x="mean")) == "<mpiimg.Table: n, count int64, x float64 [mag]>"
    assert repr(table([], columns=None)) == "<mpiimg.Table: columns as the records have them>"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.select("y"), "select: has no column y; it has: x, n, name"),
        (lambda t: t.filter("flux > 5"), "filter: has no column flux"),
        (lambda t: t.select("x x"), "select: two columns are called x"),
        (lambda t: t.with_column(5, "x"), "5 is no name of a column"),
        (lambda t: t.filter("x >"), "is no expression"),
        (lambda t: t.filter("x.real > 0"), "an expression has columns, numbers"),
        (lambda t: t.filter("__import__('os')"), "an expression has columns, numbers"),
        (lambda t: t.filter(5), "takes an expression such as"),
        (lambda t: t.with_column("y", "x", unit=5), "column y: unit 5"),
        (lambda t: t.rename(x="n"), "two columns are called n"),
        (lambda t: t.group("y"), "group: has no column y"),
        (lambda t: t.group("n").agg(x="median"), "there are count, first, last, max, mean"),
        (lambda t: t.group("n").agg(name="mean"), "column name is text, and has no mean"),
        (lambda t: t.group("n").agg(n="mean"), "two columns are called n"),
        (lambda t: t.group("n").agg(), "names no column"),
        (lambda t: t.group("n").agg("x"), "write agg"),
        (lambda t: t.join(5, on="n"), "takes a table, not int"),
        (lambda t: t.join(t, on="y"), "the left table has no column y"),
        (lambda t: t.join(t, on="n", how="outer"), "there are 'inner' and 'left'"),
        (lambda t: t.join(t, on="n", suffix=""), "two columns would be called x"),
        (lambda t: t._as_result("x.xls"), "a table ends in .parquet"),
        (lambda t: t.partition_on("n")._as_result("x.parquet"), "name it x.parquet/"),
        (lambda t: t.partition_on("y"), "partition_on: has no column y"),
    ],
)
def test_what_makes_no_sense_is_said_at_once_with_the_column(call, words):
    made = table([], columns={"x": "f4", "n": int, "name": str})
    with pytest.raises(BadInput, match=words):
        call(made)


@pytest.mark.parametrize(
    ("columns", "more", "words"),
    [
        ("x x", {}, "two columns are called x"),
        ("", {}, "names no column"),
        ({"x": "no"}, {}, "column x: 'no' is no type of NumPy"),
        ({"x": "M8[s]"}, {}, "column x: of type datetime64"),
        ("x", {"units": {"y": "mag"}}, "has no column y"),
        ("x", {"partition_on": "y"}, "has no column y"),
    ],
)
def test_declarations_that_make_no_sense(columns, more, words):
    with pytest.raises(BadInput, match=words):
        table([], columns=columns, **more)


@pytest.mark.parametrize("use", [len, bool, iter, lambda t: t["x"]])
def test_lazy_tables_say_to_compute(use):
    with pytest.raises(TypeError, match="compute"):
        use(table([]))


def test_a_lazy_table_is_no_keyword():
    made = table([])
    with pytest.raises(BadInput, match=r"map\(<lambda>\): known = .* is lazy; give known.compute\(\)"):
        mi.items([1]).map(lambda record, known: record, known=made)


# --- In runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path):
    """A folder, with a session of its own."""
    with mi.session(tmp_path / "session", rehearse=False):
        yield tmp_path


@pytest.fixture(params=["whole", "in parts"])
def cut(request, monkeypatch):
    """Parts of a table as they are, or so small that each item is one, and joins and groups exchange rows."""
    if request.param == "in parts":
        monkeypatch.setattr(table_nodes, "PART_BYTES", 600)
        monkeypatch.setattr(table_joins, "BUCKET_BYTES", 600)
        monkeypatch.setattr(table_joins, "BROADCAST_BYTES", 0)


def test_rows_come_in_the_order_of_items(out, cut):
    values = rows()
    made = table(*values, units={"x": "mag"}).compute()
    equal(made, frame(values))
    assert str(made["x"].unit) == "mag"


def test_steps_on_rows(out, cut):
    values = rows(1)
    made = (
        table(*values)
        .filter("x > 0 and n in (1, 2, 3)")
        .with_column("y", lambda x, n: x * n, unit="ct")
        .with_column("one", "1")
        .filter(lambda t: t["y"] < 4)
        .rename(name="label")
        .select("label", "y", "one")
        .compute()
    )
    all_rows = frame(values)
    kept = all_rows[(all_rows.x > 0) & all_rows.n.isin([1, 2, 3])]
    kept = kept.assign(label=kept.name, y=kept.x * kept.n, one=1)
    equal(made, kept[kept.y < 4][["label", "y", "one"]])


def test_groups_in_the_order_of_keys(out, cut):
    values = rows(2, 80)
    made = table(*values).group("n", "name").agg("count", x="sum", last=("x", "last")).compute()
    groups = frame(values).groupby(["n", "name"])["x"]
    expected = groups.agg(["count", "sum", "last"]).reset_index()
    for name in ("n", "name", "count", "last"):
        assert made[name].tolist() == expected[name].tolist()
    sums = [sum(group.tolist()) for _, group in groups]
    assert made["x"].tolist() == sums, "one row after the other, in their order"


@pytest.mark.parametrize("how", ["inner", "left"])
def test_joins_in_the_order_of_the_left_rows_then_of_the_right(out, cut, how):
    one, two = rows(3), rows(4, 20)
    left, right = table(*one), table(*two).filter("n < 5")
    made = left.join(right, on="n", how=how, fill={"name": "none"}).compute()
    other = frame(two)
    expected = frame(one).merge(other[other.n < 5], on="n", how=how, suffixes=("", "_right"))
    expected = expected.fillna({"name_right": "none"})
    for name in made.colnames:
        assert made[name].tolist() == pytest.approx(expected[name].tolist(), nan_ok=True), name


def test_files_are_those_of_one_rank_and_of_other_readers(out, cut):
    values = rows(5)
    made = table(*values, units={"x": "mag"})
    names = ["t.fits", "t.parquet", "t.ecsv", "t.csv"]
    mi.write({name: made for name in names}, out / "results")
    for name in names:
        form = {"csv": "ascii.csv", "ecsv": "ascii.ecsv"}.get(name[2:])
        read = AstropyTable.read(out / "results" / name, format=form)
        equal(read, frame(values))
        assert name == "t.csv" or str(read["x"].unit) == "mag"


def test_a_folder_of_parquet(out, cut):
    values = rows(6)
    made = table(*values)
    mi.write({"parts/": made, "by.parquet/": made.partition_on("n")}, out / "results")
    pd.testing.assert_frame_equal(
        pd.read_parquet(out / "results" / "parts"), frame(values), check_dtype=False
    )
    by = pd.read_parquet(out / "results" / "by.parquet")
    expected = frame(values).sort_values("n", kind="stable")
    assert by["x"].tolist() == expected["x"].tolist()
    assert by["n"].astype(int).tolist() == expected["n"].tolist()
    back = mi.read_table(out / "results" / "parts").compute()
    equal(back, frame(values))


@pytest.mark.parametrize("name", ["t.fits", "t.parquet", "t.ecsv"])
def test_what_was_written_is_read_joined_and_grouped(out, cut, name):
    values = rows(7)
    table(*values, units={"x": "mag"}).write(out / name)
    back = mi.read_table(out / name)
    assert back.columns == ("x", "n", "name")
    equal(back.compute(), frame(values))
    means = back.group("n").agg(x="mean")
    joined = back.join(means, on="n").compute()
    assert str(joined["x_right"].unit) == "mag"
    expected = frame(values).merge(frame(values).groupby("n")["x"].mean(), on="n", suffixes=("", "_right"))
    assert joined["x_right"].tolist() == pytest.approx(expected["x_right"].tolist())


@pytest.mark.parametrize("values", [(), ([],), ([], [], [])])
def test_no_rows_at_all(out, values):
    made = table(*values, columns={"x": "f4", "n": None}, units={"x": "mag"})
    mi.write({"t.fits": made, "t.parquet": made, "t.ecsv": made, "t/": made}, out / "results")
    both = made.join(made.group("n").agg(x="mean"), on="n").compute()
    assert both.colnames == ["x", "n", "x_right"]
    assert len(both) == 0
    read = AstropyTable.read(out / "results" / "t.fits")
    assert (read.colnames, len(read), read["x"].dtype.itemsize) == (["x", "n"], 0, 4)


def test_types_of_items_are_promoted_over_parts_and_ranks(out, cut):
    made = table([(1, "a")], [(2.5, "bcd")], [], columns="x name").compute()
    assert made["x"].tolist() == [1.0, 2.5]
    assert made["name"].tolist() == ["a", "bcd"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (([(1.0, "a")], [("b", "c")]), "column x: x float64 in item 0, x text in item 1"),
        (([(1.0, "a")], [{"x": 1.0}]), "item 1: row 0 is"),
        (([(1.0, "a")], 5), "item 1: a int is no rows"),
    ],
)
def test_records_that_do_not_fit_are_named(out, values, words):
    with pytest.raises((BadInput, RunFailed), match=words):
        table(*values, columns="x name").compute()


def test_a_table_above_the_cap_is_refused_with_what_to_do():
    table_compute.check_room(20 << 20, 200 << 20)
    with pytest.raises(BadInput, match="the table has 70 MB, and a rank may use 200 MB in all; write it"):
        table_compute.check_room(70 << 20, 200 << 20)


def test_units_of_records_become_those_that_are_declared(out):
    from astropy import units

    def load(number):
        return AstropyTable({"r": [1.0, 2.0] * units.deg, "t": [1.0, 2.0]})

    made = mi.items([0], load).table("r t", units={"r": "arcsec", "t": "s"}).compute()
    assert made["r"].tolist() == [3600, 7200]
    assert (str(made["r"].unit), str(made["t"].unit)) == ("arcsec", "s")
    with pytest.raises((BadInput, RunFailed), match="column r: is in deg, which cannot become mag"):
        mi.items([0], load).table("r", units={"r": "mag"}).compute()


def test_columns_that_the_records_name(out):
    values = {"b": [1, 2], "a flux": np.array([1.5, 2.5])}
    made = table(values, columns=None, units={"a flux": "ct"})
    assert made.columns is None
    found = made.filter("b > 1").compute()
    assert (found.colnames, found["a flux"].tolist()) == (["b", "a flux"], [2.5])
    assert str(found["a flux"].unit) == "ct"
    assert made.select(["a flux"]).compute().colnames == ["a flux"]
    with pytest.raises((BadInput, RunFailed), match="has no column c; it has: b, a flux"):
        table(values, columns=None, units={"c": "ct"}).compute()


def test_a_plan_of_a_table(out, capsys):
    made = table(*rows())
    mi.plan({"t.fits": made.join(made.group("n").agg(x="mean"), on="n")})
    mi.plan(made)
    said = capsys.readouterr().out
    assert "write-t.fits" in said and "groups-" in said and "join-" in said


# --- On any ranks -----------------------------------------------------------------------------------------

SCRIPT = """
import sys
import mpiimg as mi
from mpiimg.arrays import table_compute, table_joins, table_nodes

table_nodes.PART_BYTES = table_joins.BUCKET_BYTES = 600
table_joins.BROADCAST_BYTES = 0

def load(number):
    return [((17 * k % 23) / 7, k % 5, "abc"[k % 3] * (number + 1)) for k in range(number * 10, number * 11)]

session = mi.session("session", rehearse=False, keep_work=False)
session.__enter__()
stars = mi.items(list(range(8)), load).table("x n name", units={"x": "mag"})
means = stars.filter("x > 0.5").group("n").agg("count", x="sum", spread=("x", "std"))
both = stars.join(means, on="n", how="left", fill={"count": 0}).join(stars.select("n name"), on="name")
found = mi.compute(both, root=0)
results = {"both.fits": both, "both.ecsv": both, "stars.parquet": stars, "parts/": both}
mi.write({**results, "by/": both.partition_on("name")}, sys.argv[1])
"""


def test_the_same_bytes_on_any_ranks(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    files = {}
    for ranks in (1, 3):
        out = tmp_path / f"on-{ranks}"
        launcher = launch.mpiexec(ranks) if ranks > 1 else []
        launch.run([*launcher, sys.executable, tmp_path / "script.py", out], timeout=120, cwd=tmp_path)
        paths = [path for path in sorted(out.rglob("*")) if path.is_file() and "events" not in str(path)]
        files[ranks] = {
            str(path.relative_to(out)): path.read_bytes() for path in paths if path.name != "run.json"
        }
    assert len(files[1]) > 10
    assert files[1].keys() == files[3].keys()
    assert [name for name in files[1] if files[1][name] != files[3][name]] == []
