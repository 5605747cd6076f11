"""Catalogues in every format: what is read back, the same bytes again, and what a user is told."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mpiimg.astro import catalogue
from mpiimg.astro.reference import read_references
from mpiimg.errors import BadInput

pytest.importorskip("astropy", reason="catalogues stand on astropy")

TABLES = ["out.fits", "out.ecsv", "out.parquet"]
META = {"MAGZERO": 27.0, "FILTER": "r", "NOISCORR": 1.23, "PIXSCALE": 0.333, "NROWS": 5}


def sources(rows=5):
    """A table with all kinds of values: extremes, NaN, text."""
    rng = np.random.default_rng(1)
    table = catalogue.new(rows)
    for name in catalogue.ROW_TYPE.names:
        kind = catalogue.ROW_TYPE[name].kind
        if kind == "f":
            table[name] = rng.normal(size=rows) * 10.0 ** rng.integers(-5, 6, rows)
        elif kind == "i":
            table[name] = rng.integers(0, 1000, rows)
    table["id"] = (123456 << 32) + np.arange(1, rows + 1)
    table["ra"], table["dec"] = rng.uniform(0, 360, rows), rng.uniform(-90, 90, rows)
    table["patch"], table["band"] = "12-3", "i"
    if rows:
        table["mag_auto"][0] = np.nan
        table["is_primary"][1] = False
        table["mask_flags"][2] = np.iinfo("i4").max
    return table


def read(path):
    """Read a catalogue as others would: a Table, with descriptions where FITS keeps them in cards."""
    from astropy.io import fits
    from astropy.table import Table

    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".ecsv":
        return Table.read(path, format="ascii.ecsv")
    table = Table.read(path, format="fits", hdu=1)
    header = fits.getheader(path, 1)
    for number, name in enumerate(table.colnames, 1):
        table[name].description = header[f"TCOMM{number}"]
    return table


def read_parquet(path):
    """Parquet by pyarrow, with the YAML that astropy's own reader (which wants pandas) takes units from."""
    from astropy.table import Table, meta
    from pyarrow import parquet

    stored = parquet.read_table(path)
    about = meta.get_header_from_yaml(stored.schema.metadata[b"table_meta_yaml"].decode().splitlines())
    table = Table({name: stored[name].to_numpy() for name in stored.column_names}, meta=about["meta"])
    for column in about["datatype"]:
        table[column["name"]].unit = column.get("unit")
        table[column["name"]].description = column["description"]
    return table


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("rows", [5, 0])
def test_round_trip_with_units(tmp_path, name, rows):
    from astropy.units import Unit

    table = sources(rows)
    catalogue.save_catalogue(tmp_path / name, table, META)
    back = read(tmp_path / name)
    assert back.colnames == list(catalogue.ROW_TYPE.names)
    for column in catalogue.COLUMNS:
        values, given = back[column.name], table[column.name]
        assert values.unit == (Unit(column.unit) if column.unit else None)
        assert values.description == column.description
        if given.dtype.kind == "S":
            assert values.tolist() == given.astype("U").tolist()
            continue
        assert np.array_equal(np.asarray(values), given, equal_nan=given.dtype.kind == "f"), column.name
        assert values.dtype.newbyteorder("=") == given.dtype, column.name
    for key, value in META.items():
        assert back.meta[key] == value


@pytest.mark.parametrize("name", [*TABLES, "out.reg"])
def test_same_bytes_for_the_same_content(tmp_path, name):
    table = sources()
    one = catalogue.encode(tmp_path / name, table, META)
    other = catalogue.encode(tmp_path / name, table.copy(), dict(reversed(META.items())))
    assert one == other
    table["ra"][0] += 1e-6
    assert catalogue.encode(tmp_path / name, table, META) != one


def test_fits_is_valid_and_carries_no_date(tmp_path):
    from astropy.io import fits

    catalogue.save_catalogue(tmp_path / "out.fits", sources(), META)
    raw = (tmp_path / "out.fits").read_bytes()
    assert not re.search(rb"20\d\d-\d\d", raw) and b"DATE" not in raw
    with fits.open(tmp_path / "out.fits", checksum=True) as hdus:
        hdus.verify("exception")
        assert hdus[1].verify_checksum() == 1 and hdus[1].verify_datasum() == 1
        assert hdus[1].header["TUNIT6"] == "deg" and hdus[1].header["TTYPE6"] == "ra"
        assert hdus[1].header["FILTER"] == "r"


def test_parquet_names_units_to_those_without_astropy(tmp_path):
    from pyarrow import parquet

    catalogue.save_catalogue(tmp_path / "out.parquet", sources(), META)
    schema = parquet.read_schema(tmp_path / "out.parquet")
    assert schema.field("ra").metadata[b"unit"] == b"deg"
    assert b"ICRS" in schema.field("dec").metadata[b"description"]
    assert b'"NOISCORR": 1.23' in schema.metadata[b"mpiimg"]


def test_some_of_the_columns(tmp_path):
    some = sources()[["id", "ra", "dec"]]
    catalogue.save_catalogue(tmp_path / "out.ecsv", some, {})
    assert read(tmp_path / "out.ecsv").colnames == ["id", "ra", "dec"]


def test_regions_are_circles_of_primary_sources(tmp_path):
    table = sources()
    table["fwhm"], table["flags"] = [4.0, 4.0, np.nan, 10.0, 6.0], [0, 0, 0, 2, 0]
    catalogue.save_catalogue(tmp_path / "out.reg", table, META)
    text = (tmp_path / "out.reg").read_text().splitlines()
    assert "icrs" in text
    circles = [line for line in text if line.startswith("circle")]
    assert len(circles) == 4, "the second is no primary"
    numbers = [float(word.strip('"')) for word in re.findall(r"\((.*?)\)", circles[0])[0].split(",")]
    assert numbers == pytest.approx([table["ra"][0], table["dec"][0], 4 * 0.333], abs=1e-3)
    assert '0.999"' in circles[1], "a width that is unknown is drawn as the smallest"
    assert circles[2].endswith("color=red") and "color" not in circles[3]


def test_what_is_told_about_a_wrong_name(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"\.parquet, \.fits, \.ecsv"):
        catalogue.check_ending(tmp_path / "out.csv")
    import builtins

    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match=r"pip install 'mpiimg\[parquet\]'"):
        catalogue.check_ending(tmp_path / "out.parquet")


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(BadInput, match="cannot write the catalogue"):
        catalogue.save_catalogue(tmp_path / "nowhere" / "out.fits", sources(), META)
    (tmp_path / "out.ecsv").mkdir()
    with pytest.raises(BadInput, match="cannot write the catalogue"):
        catalogue.save_catalogue(tmp_path / "out.ecsv", sources(), META)
    assert [path.name for path in tmp_path.iterdir()] == ["out.ecsv"], "nothing is left behind"


def reference(path, columns=None):
    """Return place and magnitude of the reference stars of a file, of one band."""
    return read_references(path, ["r"], columns)["r"][:3]


def reference_table(unit="deg"):
    from astropy.table import Table

    table = Table(
        {
            "RA": [10.0, 350.0, 20.0],
            "Dec": [-5.0, 45.0, 0.0],
            "mag": [18.5, 20.25, np.nan],
            "z": ["a", "b", "c"],
        }
    )
    if unit == "rad":
        table["RA"], table["Dec"] = np.radians(table["RA"]), np.radians(table["Dec"])
    table["RA"].unit = table["Dec"].unit = unit
    return table


@pytest.mark.parametrize(
    ("name", "kind", "unit"),
    [
        ("stars.fits", "fits", "deg"),
        ("stars.fits", "fits", "rad"),
        ("stars.ecsv", "ascii.ecsv", "rad"),
        ("stars.csv", "ascii.csv", "deg"),
        ("stars.parquet", "parquet", "deg"),
    ],
)
def test_reference_catalogues(tmp_path, name, kind, unit):
    reference_table(unit).write(tmp_path / name, format=kind)
    ra, dec, mag = reference(tmp_path / name)
    assert ra == pytest.approx([10, 350]) and dec == pytest.approx([-5, 45]) and mag.tolist() == [18.5, 20.25]
    assert ra.dtype == dec.dtype == mag.dtype == np.float64


@pytest.mark.parametrize("name", TABLES)
def test_our_own_catalogue_as_a_reference(tmp_path, name):
    table = sources()
    catalogue.save_catalogue(tmp_path / name, table, META)
    ra, dec, mag = reference(tmp_path / name, "mag_auto")
    assert ra == pytest.approx(table["ra"][1:]) and dec == pytest.approx(table["dec"][1:])
    assert mag == pytest.approx(table["mag_auto"][1:])


def test_masked_numbers_are_left_out(tmp_path):
    (tmp_path / "stars.csv").write_text("ra,dec,mag\n10,-5,18\n11,,19\n12,-6,\n")
    ra, _, mag = reference(tmp_path / "stars.csv")
    assert ra.tolist() == [10] and mag.tolist() == [18]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ra,dec,g\n1,2,3\n", r"magnitude in r\?.*there are dec, g, ra; give --reference-mag r=COLUMN"),
        ("a,b\n1,2\n", "needs columns ra and dec; there are a, b"),
        ("ra,dec,mag\n", "no row"),
        ("ra,dec,mag\n1,2,\n", "no row"),
        ("ra,dec,mag\n1,bright,3\n", "column dec of the reference catalogue holds no numbers"),
        ("ra,dec,mag\n1,95,3\n", "must be degrees"),
        ("ra,dec,mag\n1,2,3\n1,2,3,4\n", "cannot read"),
        ("", "there are none"),
    ],
)
def test_what_is_told_about_a_broken_reference(tmp_path, text, told):
    (tmp_path / "stars.csv").write_text(text)
    with pytest.raises(BadInput, match=told) as said:
        reference(tmp_path / "stars.csv")
    assert "stars.csv" in str(said.value) and "\n" not in str(said.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "stars.fits").write_bytes(b"no FITS file")
    (tmp_path / "stars.txt").write_text("ra dec mag\n")
    (tmp_path / "units.ecsv").write_text("")
    for name in ("stars.fits", "stars.txt", "units.ecsv", "missing.csv", "missing.fits"):
        with pytest.raises(BadInput) as said:
            reference(tmp_path / name)
        assert name in str(said.value) and "\n" not in str(said.value)
    table = reference_table()
    table["RA"].unit = "Jy"
    table.write(tmp_path / "jansky.ecsv", format="ascii.ecsv")
    with pytest.raises(BadInput, match="holds no angles"):
        reference(tmp_path / "jansky.ecsv")


def test_negative_right_ascensions_of_a_reference_are_those_from_0_to_360(tmp_path):
    (tmp_path / "stars.csv").write_text("ra,dec,mag\n-10,-5,18\n360,1,19\n")
    assert reference(tmp_path / "stars.csv")[0].tolist() == [350, 0]
