"""Tables: what functions return as rows, many parts as one schema, and files that other readers read."""

from collections import namedtuple

import numpy as np
import pytest
from astropy import units
from astropy.table import QTable, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiimg.errors import BadInput
from mpiimg.formats.tables import files, parquet
from mpiimg.formats.tables.columns import Column, Rows, Schema, cast, joined, unified
from mpiimg.formats.tables.rows import as_rows

NAMES = ("x", "n")
Star = namedtuple("Star", NAMES)


@pytest.mark.parametrize(
    "value",
    [
        np.array([(1.5, 2), (3.5, 4)], [("x", "f8"), ("n", "i8"), ("extra", "f4")][:2]),
        {"x": [1.5, 3.5], "n": np.array([2, 4]), "extra": ["a", "b"]},
        Table({"x": [1.5, 3.5], "n": [2, 4]}),
        [(1.5, 2), (3.5, 4)],
        [{"x": 1.5, "n": 2}, {"x": 3.5, "n": 4}],
        [Star(1.5, 2), Star(3.5, 4)],
        (np.array([1.5, 3.5]), np.array([2, 4])),
        Star(np.array([1.5, 3.5]), np.array([2, 4])),
        ((1.5, 2), (3.5, 4)),
        ([1.5, 3.5], [2, 4]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_functions_return_as_rows(value):
    rows = as_rows(value, NAMES)
    assert rows.names == NAMES
    assert rows["x"].tolist() == [1.5, 3.5]
    assert rows["n"].tolist() == [2, 4]
    assert (rows["x"].dtype, rows["n"].dtype) == ("f8", "i8")


def test_two_dimensional_arrays_are_columns_in_their_order():
    rows = as_rows(np.array([[1, 2], [3, 4]], ">i2"), NAMES)
    assert rows["n"].tolist() == [2, 4]
    assert rows["n"].dtype == np.dtype("i2")
    assert len(as_rows(np.zeros((0, 2)), NAMES)) == 0
    assert as_rows(np.array([5.0, 6.0]), ("x",))["x"].tolist() == [5, 6]
    assert as_rows(np.array([5.0, 6.0]), NAMES)["n"].tolist() == [6]


def test_a_number_among_columns_stands_in_every_row():
    rows = as_rows({"x": [1.5, 2.5], "n": 7, "t": "ab"})
    assert (rows["n"].tolist(), rows["t"].tolist()) == ([7, 7], ["ab", "ab"])
    assert len(as_rows({"x": np.zeros(0), "n": 7})) == 0


@pytest.mark.parametrize("value", [None, [], {"x": [], "n": []}, np.zeros((0, 2))])
def test_no_rows(value):
    assert len(as_rows(value, NAMES)) == 0


@pytest.mark.parametrize("value", [{"x": 1.5, "n": 2}, (1.5, 2), Star(1.5, 2), np.array([1.5, 2])])
def test_one_row(value):
    rows = as_rows(value, NAMES)
    assert (len(rows), rows["x"].tolist(), rows["n"].tolist()) == (1, [1.5], [2])


def test_text_bools_vectors_and_units():
    rows = as_rows(
        {
            "t": ["a", "bcd"],
            "s": np.array([b"a", b"b"]),
            "o": np.array(["a", "bcd"], object),
            "b": [True, False],
            "v": np.ones((2, 3), "f4"),
            "q": [1.0, 2.0] * units.mag,
        }
    )
    assert [rows[name].dtype.str[1:] for name in rows.names] == ["U3", "U1", "U3", "b1", "f4", "f8"]
    assert rows["v"].shape == (2, 3)
    assert rows.units == {"q": "mag"}
    assert as_rows(QTable({"q": [1.0] * units.Unit("ct / s")})).units == {"q": "ct / s"}


def test_values_that_are_missing():
    table = Table({"x": np.ma.array([1.0, 2.0], mask=[0, 1]), "t": np.ma.array(["a", "b"], mask=[1, 0])})
    rows = as_rows(table)
    assert np.isnan(rows["x"][1])
    assert rows["t"].tolist() == ["", "b"]
    with pytest.raises(BadInput, match="column n: values are missing"):
        as_rows(Table({"n": np.ma.array([1, 2], mask=[0, 1])}))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"x": [1.0]}, "a.fits: has no column n; it has: x"),
        ({"x": [1.0, 2.0], "n": [1]}, "different lengths: x 2, n 1"),
        (np.zeros((2, 3)), r"shape \(2, 3\) for 2 columns \(x, n\)"),
        ([(1, 2, 3)], r"row 0 is \(1, 2, 3\), where 2 columns are due"),
        ({"x": [1.0, "a"], "n": [1, 2]}, "column x: row 0 is 1.0; a column is text, or numbers, in all rows"),
        ({"x": [None, 1.0], "n": [1, 2]}, "column x: row 0 is None"),
        ({"x": [[1], [1, 2]], "n": [1, 2]}, "column x"),
        ({"x": np.array(["2020-01-01"], "M8[D]"), "n": [1]}, r"column x: is of type datetime64\[D\]"),
        (object(), "a object is no rows of a table"),
        ("text", "a str is no rows"),
    ],
)
def test_what_is_no_rows_is_said_with_the_column(value, words):
    with pytest.raises(BadInput, match=words):
        as_rows(value, NAMES, "a.fits")


# --- Many parts -------------------------------------------------------------------------------------------


def schema(**columns):
    return Schema(
        tuple(Column(name, *([kind] if isinstance(kind, str) else kind)) for name, kind in columns.items())
    )


def test_types_of_parts_are_promoted_and_empty_parts_say_nothing():
    made = unified(
        [
            ("a", 0, schema(n="f8", t="f8", x="f8")),
            ("b", 2, schema(n="i2", t="U3", x="f4")),
            ("c", 1, schema(n="i4", t="U9", x="i4")),
        ]
    )
    assert made == schema(n="i4", t="U9", x="f8")
    assert unified([("a", 0, schema(n="f8"))]) == schema(n="f8")


def test_what_is_declared_holds():
    declared = Schema((Column("x", "f4", "ct"), Column("t", "U"), Column("n", "", "")))
    made = unified([("a", 1, schema(x="f8", t="U3", n="i8"))], declared)
    assert made == schema(x=("f4", "ct"), t="U3", n="i8")
    assert unified([], declared).names == ("x", "t", "n")


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("f8", "U3", r"column c: c float64 in a, c text in b"),
        (("f8", "ct"), ("f8", "mag"), "column c: unit ct in a, mag in b; give units="),
        (("f8", "", (3,)), ("f8", "", (2,)), r"c float64\(3\) in a, c float64\(2\) in b"),
        ("i8", "u8", "no integer holds both: give a dtype"),
    ],
)
def test_parts_that_do_not_agree_are_named(one, other, words):
    with pytest.raises(BadInput, match=words):
        unified([("a", 1, schema(c=one)), ("b", 1, schema(c=other))])


def test_parts_with_other_columns_are_named():
    with pytest.raises(BadInput, match="columns of b and a differ: d"):
        unified([("a", 1, schema(c="f8")), ("b", 1, schema(c="f8", d="f8"))])


def test_no_value_is_lost_in_a_cast():
    rows = Rows({"c": np.array([1.5, 300.0])}, {})
    for dtype, words in (("u1", "300.0 does not fit|1.5 does not fit"), ("i4", "1.5 does not fit")):
        with pytest.raises(BadInput, match=words):
            cast(rows, schema(c=dtype))
    assert cast(rows, schema(c="f4"))["c"].dtype == np.float32


# --- Files ------------------------------------------------------------------------------------------------

SIZES = st.integers(0, 5)
KINDS = {
    "b": st.booleans(),
    "i1": st.integers(-128, 127),
    "u1": st.integers(0, 255),
    "i2": st.integers(-(2**15), 2**15 - 1),
    "u2": st.integers(0, 2**16 - 1),
    "i4": st.integers(-(2**31), 2**31 - 1),
    "u4": st.integers(0, 2**32 - 1),
    "i8": st.integers(-(2**63), 2**63 - 1),
    "u8": st.integers(0, 2**64 - 1),
    "f4": st.floats(width=32),
    "f8": st.floats(),
}
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=6).map(str.strip)


@st.composite
def tables(draw):
    """Two or three parts of a table with a column of each type, a vector, and text."""
    parts = []
    for size in draw(st.lists(SIZES, min_size=1, max_size=3)):
        columns = {
            f"c_{kind}": np.array(draw(st.lists(some, min_size=size, max_size=size)), kind.replace("b", "?"))
            for kind, some in KINDS.items()
        }
        columns["vector"] = np.arange(3.0 * size).reshape(size, 3)
        columns["text"] = np.array(draw(st.lists(TEXT, min_size=size, max_size=size)), "U")
        parts.append(Rows(columns, {"c_f4": "ct / s"}))
    return parts


def written(path, parts, whole):
    """The file that the parts become, as a run writes it."""
    total = sum(map(len, parts))
    how = files.in_order(path.name)
    parts = [cast(part, whole) for part in parts]
    if how is None:
        with open(path, "wb") as file:
            parquet.write(file, whole, parts)
        return
    how.check(whole)
    middle = b"".join(how.encode(whole, part) for part in parts)
    path.write_bytes(how.head(whole, total) + middle + how.tail(whole, total))


def equal(one, other):
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f") and one.shape == other.shape


@pytest.mark.parametrize("ending", [".fits", ".parquet", ".ecsv", ".csv"])
@given(parts=tables())
@settings(max_examples=25, deadline=None)
def test_a_table_in_parts_is_read_as_one(tmp_path_factory, ending, parts):
    if ending == ".csv":
        # What CSV says of types is what it looks like: text may look like a number.
        kept = [name for name in KINDS if name != "u8"]
        parts = [part.selected([f"c_{name}" for name in kept]) for part in parts]
    if ending == ".ecsv" and not any(map(len, parts)):
        # astropy cannot read back its own vectors of no rows.
        parts = [part.selected([name for name in part.names if name != "vector"]) for part in parts]
    whole = unified([(n, len(part), part.schema) for n, part in enumerate(parts)])
    path = tmp_path_factory.mktemp("table") / f"t{ending}"
    written(path, parts, whole)
    expected = joined(parts, whole)
    back = joined([files.read_piece(piece) for piece in files.pieces(path)], whole)
    if len(expected) or ending in (".fits", ".parquet"):
        for name in whole.names:
            assert equal(back[name], expected[name]), name
    formats = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".fits": "fits", ".parquet": "parquet"}
    table = Table.read(path, format=formats[ending])
    assert table.colnames == list(whole.names)
    assert len(table) == len(expected)
    if ending != ".csv":
        assert str(table["c_f4"].unit) == "ct / s"
    if ending == ".fits" and len(expected):
        for name in whole.names:
            assert equal(np.asarray(table[name]).astype(expected[name].dtype), expected[name]), name


@given(parts=tables())
@settings(max_examples=10, deadline=None)
def test_fits_is_what_astropy_would_write_and_verifies(tmp_path_factory, parts):
    from astropy.io import fits

    whole = unified([(n, len(part), part.schema) for n, part in enumerate(parts)])
    path = tmp_path_factory.mktemp("table") / "t.fits"
    written(path, parts, whole)
    assert path.stat().st_size % 2880 == 0
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert hdus[1].header["NAXIS2"] == sum(map(len, parts))


def test_the_same_table_is_the_same_bytes_whatever_its_parts(tmp_path):
    rows = Rows({"x": np.arange(10.0), "t": np.array(list("abcdefghij"))}, {"x": "deg"})
    for ending in (".fits", ".ecsv", ".csv"):
        for name, cuts in (("one", []), ("many", [2, 2, 7])):
            parts = [rows.taken(slice(a, b)) for a, b in zip([0, *cuts], [*cuts, 10], strict=True)]
            written(tmp_path / f"{name}{ending}", parts, rows.schema)
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"many{ending}").read_bytes()


def test_a_folder_of_parquet_is_one_dataset(tmp_path):
    import pandas
    import pyarrow.dataset

    rows = Rows({"x": np.arange(4.0), "n": np.arange(4)}, {"x": "mag"})
    for band in ("r", "a b/c"):
        folder = tmp_path / "t.parquet" / parquet.folder_of("band", band)
        folder.mkdir(parents=True)
        for number in range(2):
            part = rows.taken(slice(2 * number, 2 * number + 2))
            (folder / f"part-{number:05}.parquet").write_bytes(parquet.encode(rows.schema, part))
    dataset = pyarrow.dataset.dataset(tmp_path / "t.parquet", partitioning="hive")
    assert dataset.count_rows() == 8
    assert dataset.schema.field("x").metadata[b"unit"] == b"mag"
    frame = pandas.read_parquet(tmp_path / "t.parquet")
    assert sorted(set(frame["band"])) == ["a b/c", "r"]
    back = [files.read_piece(piece) for piece in files.pieces(tmp_path / "t.parquet")]
    assert [len(part) for part in back] == [2, 2, 2, 2]
    assert sorted({str(part["band"][0]) for part in back}) == ["a b/c", "r"]
    assert back[0].units == {"x": "mag"}


def test_long_fits_tables_are_read_in_runs_of_rows(tmp_path, monkeypatch):
    rows = Rows({"x": np.arange(10.0)}, {})
    written(tmp_path / "t.fits", [rows], rows.schema)
    monkeypatch.setattr(files, "PIECE_BYTES", 32)
    pieces = files.pieces(tmp_path / "t.fits")
    assert [(one["start"], one["stop"]) for one in pieces] == [(0, 4), (4, 8), (8, 10)]
    assert [files.read_piece(one)["x"].tolist() for one in pieces][2] == [8, 9]


def test_what_cannot_be_written_or_read_is_said(tmp_path, monkeypatch):
    complex_rows = Rows({"z": np.zeros(1, "c8")}, {})
    with pytest.raises(BadInput, match="column z: Parquet has no complex"):
        parquet.check(complex_rows.schema)
    with pytest.raises(BadInput, match="column v: CSV holds no vectors"):
        files.in_order("t.csv").check(schema(v=("f8", "", (3,))))
    with pytest.raises(BadInput, match="column t: FITS holds ASCII text, not 'ä'"):
        files.in_order("t.fits").encode(schema(t="U1"), Rows({"t": np.array(["ä"])}, {}))
    with pytest.raises(BadInput, match=r"t.xls: a table ends in .parquet"):
        files.in_order("t.xls")
    with pytest.raises(BadInput, match="is not there"):
        files.pieces(tmp_path / "no.fits")
    for name in ("t.fits", "t.parquet", "t.ecsv"):
        (tmp_path / name).write_bytes(b"\x00nothing")
        with pytest.raises(BadInput, match=f"{name}: cannot be read as a table"):
            [files.read_piece(piece) for piece in files.pieces(tmp_path / name)]


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        BadInput, match=r"t.parquet: needs the package pyarrow: pip install 'mpiimg\[parquet\]'"
    ):
        files.in_order("t.parquet")
