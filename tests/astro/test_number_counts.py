"""Number counts, errors and flags by magnitude are those of the catalogue; both forms of a table agree."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.table import Table
from support import astro_data

from mpiimg.astro import catalogue, number_counts
from mpiimg.astro.catalogue import Column
from mpiimg.astro.figure_files import figure_files


@pytest.fixture
def sources():
    rng = np.random.default_rng(6)
    table = catalogue.new(500)
    table["mag_auto"] = rng.uniform(17, 23, 500)
    table["flux_auto"] = 10 ** (0.4 * (27 - table["mag_auto"]))
    table["mag_auto_err"] = rng.uniform(0.01, 0.15, 500)
    table["flux_auto_err"] = table["flux_auto"] * rng.uniform(0.05, 0.3, 500)
    table["flags"] = rng.integers(0, 2, 500)
    table["star_galaxy"] = np.where(rng.random(500) < 0.2, np.nan, rng.normal(2, 2, 500))
    return table


def test_counts_are_those_of_numpy(sources):
    whole, *bins = number_counts.counts_of("r", sources, 2.5, {"fwhm": 0.9})
    counted = sources[sources["flux_auto"] / sources["flux_auto_err"] >= 5]
    assert 100 < whole["sources"] == len(counted) == sum(row["sources"] for row in bins)
    assert whole["density"] == len(counted) / 2.5 and whole["fwhm"] == 0.9 and "mag" not in whole
    edges = np.arange(17, 23.5, 0.5)
    expected, _ = np.histogram(counted["mag_auto"], edges)
    assert [row["sources"] for row in bins] == expected.tolist()
    for row in bins:
        own = counted[np.abs(counted["mag_auto"] - row["mag"]) <= 0.25]
        known = own["star_galaxy"][np.isfinite(own["star_galaxy"])]
        assert row["density"] == len(own) / 2.5 / 0.5
        assert row["mag_err"] == np.median(own["mag_auto_err"])
        assert row["flagged"] == (own["flags"] != 0).mean()
        assert row["galaxies"] == (known >= 2.5).mean()


def test_a_band_without_sources_has_a_row():
    (row,) = number_counts.counts_of("r", catalogue.new(0), 0.0, {})
    assert row["sources"] == 0 and np.isnan(row["density"])
    unknown = np.full((2, 5), np.nan)
    assert number_counts.medians(unknown, 0.3) == {}


@pytest.mark.tool
def test_a_run_counts_the_sources_of_its_catalogue(tmp_path_factory):
    out = astro_data.crowded_results(tmp_path_factory)
    table, sources = Table.read(out / "counts.tsv", format="ascii.tab"), astro_data.catalogue(out)
    whole = table[[value == "n/a" for value in table["mag"]]]
    own = sources[sources["is_primary"] & np.isfinite(sources["mag_auto"])]
    own = own[own["flux_auto"] >= 5 * own["flux_auto_err"]]
    depth = Table.read(out / "depth.tsv", format="ascii.tab")
    assert int(whole["sources"][0]) == len(own) > 50
    assert float(whole["density"][0]) == pytest.approx(len(own) / depth["area"][0], rel=1e-4)
    rows = json.loads((out / "counts.json").read_text())["rows"]
    assert sum(row["sources"] for row in rows[1:]) == len(own)


def test_both_files_have_the_same_digits():
    columns = (
        Column("name", "str", "", "a name"),
        Column("n", "i8", "", "a number"),
        Column("mag", "f8", "mag", "a magnitude"),
        Column("x", "f8", "", "any"),
    )
    rows = [
        {"name": "a\tb\u00e9", "n": 3, "mag": 20.123456, "x": 1.23456789e-7},
        {"name": "c", "n": 0, "mag": np.nan, "x": -0.0},
        {},
    ]
    files = figure_files("figures", columns, rows)
    assert list(files) == ["figures.tsv", "figures.json"]
    lines = files["figures.tsv"].decode().splitlines()
    assert lines[0] == "name\tn\tmag\tx" and lines[2] == "c\t0\tn/a\t0.0" and lines[3] == "n/a\tn/a\tn/a\tn/a"
    assert (
        len(lines[1].split("\t")) == 4 and lines[1].isascii() and lines[1].endswith("3\t20.1235\t1.23457e-07")
    )
    document = json.loads(files["figures.json"])
    assert document["columns"]["mag"] == {"description": "a magnitude", "unit": "mag"}
    assert document["rows"][1] == {"name": "c", "n": 0, "mag": None, "x": 0.0}
    assert document["rows"][0]["mag"] == 20.1235
