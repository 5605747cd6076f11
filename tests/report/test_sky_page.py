"""The page of a survey says what its results hold, and shows what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table
from support import astro_data
from support.astro_data import exposure_table
from support.parsed_html import parsed

from mpiimg.astro.report import clipped, exposures, methods
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
    for heading in ("Exposures", "Left out of the coadd", "Methods", "Run: mpiimg-astro"):
        assert heading in html.headings
    assert all(len(alt) > 20 for _, alt in html.pictures)


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
    assert rejected.counts.total() == len(rejected.x) == count
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
    table["fwhm"][3], table["zero_point"][[3, 5]] = 31, [18, 19]
    assert exposures.outliers(table) == {3: "seeing (FWHM), zero point", 5: "zero point"}
    assert exposures.outliers({name: values[:7] for name, values in table.items()}) == {}, "too few to tell"


def test_very_many_exposures_make_no_large_page():
    picture = exposures.draw_exposures(night(100_000), ["r"], {})
    assert picture.data.startswith(b"\x89PNG") and len(picture.data) < 1 << 20
    table = exposures.capped(["n"], [[n] for n in range(100_000)], "All")
    assert len(table.rows) == exposures.MAX_ROWS and "99800 more are not shown" in table.caption


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
