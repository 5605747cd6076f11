"""The page of a survey says what its results hold, and shows what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from support import astro_data
from support.astro_data import exposure_table
from support.parsed_html import parsed

from mpiimg.astro.report import clipped, exposures, glance, methods, sky, sources
from mpiimg.astro.report.results import SurveyResults
from mpiimg.astro.report.tables import columns_of
from mpiimg.report.build import page_of
from mpiimg.report.page import render
from mpiimg.report.runs import runs_of

pytestmark = pytest.mark.tool


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of a crowded field."""
    return astro_data.crowded_results(tmp_path_factory)


@pytest.fixture(scope="module")
def results(folder):
    return SurveyResults(runs_of(folder))


@pytest.fixture(scope="module")
def html(folder):
    return parsed(render(page_of(runs_of(folder)), "1"))


def test_the_page_is_whole(html):
    assert html.foreign == [] and html.unclosed == []
    assert html.headings[1:] == [
        "At a glance",
        "Coadd",
        "Sources",
        "Exposures",
        "Agreement between exposures",
        "Left out of the coadd",
        "Methods",
        "Run: mpiimg-astro",
    ]
    assert all(len(alt) > 20 for _, alt in html.pictures)
    assert any("Coadd in r with" in alt for _, alt in html.pictures)


def test_its_size_is_that_of_a_mail(folder):
    assert len(render(page_of(runs_of(folder)), "1")) < 6 << 20


def test_its_top_counts_exposures(folder, html):
    assert f"{len(exposure_table(folder))} of {len(exposure_table(folder))}" in html.text


def test_tables_are_read_as_astropy_reads_them(folder):
    columns, expected = columns_of(folder / "exposures.ecsv"), exposure_table(folder)
    assert list(columns) == expected.colnames
    for name in expected.colnames:
        np.testing.assert_array_equal(columns[name], np.asarray(expected[name]))


def test_what_is_clipped_is_counted(tmp_path):
    rng, count = np.random.default_rng(2), 60
    table = Table({name: rng.uniform(0, 100, count) for name in ("ra", "dec", "x", "y", "flux")})
    table["exposure"] = rng.choice(["one", "two two", 'th"ree'], count)
    table["band"], table["shape"] = "r", rng.choice(clipped.SHAPES, count)
    table["pixels"] = rng.integers(1, 1000, count)
    table.write(tmp_path / "rejected.ecsv")
    rejected = clipped.read_rejected(tmp_path / "rejected.ecsv")
    assert rejected.counts.total() == len(rejected.ra) == count
    for name in set(table["exposure"]):
        own = table[table["exposure"] == name]
        assert sum(n for (of, _), n in rejected.counts.items() if of == name) == len(own)
        assert rejected.pixels[name] == own["pixels"].sum()
    sizes = [int(row["pixels"]) for row in rejected.largest]
    assert sizes == sorted(table["pixels"].tolist(), reverse=True)[: clipped.LARGEST]


def night(count: int = 12) -> dict[str, np.ndarray]:
    """Exposures alike but for a little noise."""
    rng = np.random.default_rng(1)
    columns = {one.column: 20 + 0.02 * rng.normal(size=count) for one in exposures.SHOWN}
    names = np.array([f"e{n}" for n in range(count)])
    return {"name": names, "band": np.full(count, "r"), "status": np.full(count, "used"), **columns}


def test_exposures_that_stand_out_are_named():
    table = night()
    assert exposures.outliers(table) == {}
    table["seeing"][3], table["zero_point"][[3, 5]] = 31, [18, 19]
    assert exposures.outliers(table) == {3: "seeing, zero point", 5: "zero point"}
    assert exposures.outliers({name: values[:7] for name, values in table.items()}) == {}, "too few to tell"


def test_very_many_exposures_make_no_large_page():
    picture = exposures.draw_exposures(night(100_000), ["r"], {})
    assert picture.data.startswith(b"\x89PNG") and len(picture.data) < 1 << 20
    table = exposures.capped(["n"], [[n] for n in range(100_000)], "All")
    assert len(table.rows) == exposures.MAX_ROWS and "99800 more are not shown" in table.caption


def test_mosaics_are_cut_to_where_there_are_data(folder, results):
    (whole,) = sky.read_mosaics(results.runs)
    with fits.open(folder / "mosaic.fits") as hdus:
        inputs, wcs = hdus["NIMAGE"].data, WCS(hdus["IMAGE"].header)
    assert (whole.inputs > 0).sum() == (inputs > 0).sum() and whole.inputs.size <= inputs.size
    row, column = np.argwhere(whole.inputs == whole.inputs.max())[7]
    ra, dec = whole.wcs.all_pix2world(column, row, 0)
    column, row = np.rint(wcs.all_world2pix(ra, dec, 0)).astype(int)
    assert inputs[row, column] == inputs.max()
    depth = Table.read(folder / "depth.tsv", format="ascii.tab")["depth"][0]
    assert np.nanmedian(whole.depth) == pytest.approx(depth, abs=2e-3)


def test_sources_are_read_from_catalogues_of_either_form(folder, results):
    found, table = sources.read_sources(results), astro_data.catalogue(folder)
    table = table[table["is_primary"]]
    np.testing.assert_array_equal(found.ra, table["ra"])
    np.testing.assert_array_equal(found.flags, table["flags"] > 0)
    assert len(found.of_band("r").ra) == len(table) and len(found.of_band("g").ra) == 0
    flux = np.asarray(table["flux_auto"])
    assert min(found.brightest(3).flux) == np.sort(flux[np.isfinite(flux)])[-3]
    wide = {name: np.asarray(table[name]) for name in ("id", "is_primary", "ra", "dec", "x", "y")}
    for band, factor in (("g", 1), ("r", 2)):
        wide |= {f"{band}_{name}": factor * np.asarray(table[name]) for name in ("fwhm", "flux_auto")}
        wide |= {f"{band}_flags": np.asarray(table["flags"]) * (band == "g")}
        wide |= {f"{band}_mask_flags": np.ones(len(table), int)}
    together = sources.sources_of(wide)
    np.testing.assert_array_equal(together.fwhm, 2 * np.asarray(table["fwhm"], float))
    np.testing.assert_array_equal(together.flags, found.flags)
    assert len(together.of_band("g").ra) == len(table)


def test_a_glance_says_what_is_wrong(results):
    """Exposures left out or unlike the others, and magnitudes without a scale."""
    table = night()
    table["status"][2], table["seeing"][4] = "no stars", 99
    table["zero_point_type"] = np.full(12, "RELATIVE")
    other = SurveyResults(results.runs)
    other.__dict__["exposures"] = table
    said = {item.text: item.tone for item in glance.glance_section(other).items}
    for words in ("1 of 12 exposures were left out: e2.", "Unlike the others of their band: e4 (seeing)."):
        assert said[words] == "warning"
    assert any("no absolute scale" in text for text, tone in said.items() if tone == "warning")
    assert next(item.tone for item in glance.glance_section(results).items) == "good"


def test_three_bands_are_one_picture_in_colour():
    """What is bright in the reddest band alone is red; what no band has is empty."""
    noise = np.random.default_rng(3).normal(0, 1, (3, 40, 50)).astype(np.float32)
    noise[2, 20:24, 30:34] += 300
    noise[:, :5] = np.nan
    about = (noise[0], noise[0], None, 1, 0.3)
    picture = sky.in_colour([sky.Mosaic(band, noise[k], *about) for k, band in enumerate("gri")])
    red, green, blue = picture[21, 31].astype(int)
    assert red > 150 and red > green + 50 and red > blue + 50
    assert (picture[:5] == picture[0, 0]).all() and picture[0, 0].min() > 200


def test_the_methods_are_those_of_the_run(results):
    _, text, papers = methods.methods_section(results).items
    for words in ("10 exposures in r", "meshes of 17 arcsec", "pixels of 0.333 arcsec", "3.75 standard"):
        assert words in text.text
    assert "van Dokkum 2001, PASP" in papers.text and "Padmanabhan" not in papers.text
    assert "None" not in text.text


def test_methods_follow_the_options(results):
    changed = {"cosmic_rays": "never", "statistic": "clip", "sigma": 3.0, "passes": 2}
    other = SurveyResults(results.runs)
    other.__dict__["parameters"] = {**results.parameters, **changed}
    text = methods.methods_section(other).items[1].text
    assert "not looked for" in text and "clipped at 3 standard deviations in 2 passes" in text
    assert "van Dokkum" not in text and "Nir" not in text
