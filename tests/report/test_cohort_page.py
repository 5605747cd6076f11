"""The page of a cohort: outliers by the median absolute deviation, in a file that stays small."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import median_abs_deviation
from support.parsed_html import parsed

from mpiimg.neuro.report.cohort import OUTLYING, ScanFigures, outliers, page_of
from mpiimg.neuro.report.strips import MAX_DOTS
from mpiimg.report.page import render


def scans(count: int) -> list[ScanFigures]:
    """Scans with three figures, one of which is alike in all, the second far off in one scan."""
    rng = np.random.default_rng(3)
    made = []
    for number in range(count):
        figures = {"ndc": float(rng.normal(0.8, 0.01)), "snr_b0": float(rng.normal(20, 1)), "max_b": 1000.0}
        name = f"sub-{number:05d}"
        made.append(ScanFigures(name, "done", "", f"logs/{name}/report.html", figures))
    made[1].figures["snr_b0"] = 90.0
    made[2] = ScanFigures("sub-00002", "failed", "the image is cut off")
    return made


def test_outliers_by_the_median_absolute_deviation():
    values = np.random.default_rng(1).normal(size=500)
    values[[3, 77]] = 12, -9
    off = np.abs(values - np.median(values)) / median_abs_deviation(values, scale="normal")
    assert outliers(values).tolist() == np.flatnonzero(off > OUTLYING).tolist()
    assert {3, 77} <= set(outliers(values))


def test_few_or_equal_values_have_no_outliers():
    assert not outliers(np.array([1.0, 1.0, 50.0])).size
    assert not outliers(np.array([1.0] * 20 + [50.0])).size


@pytest.mark.parametrize("count", [20, MAX_DOTS + 50])
def test_what_stands_on_a_page(count):
    html = parsed(render(page_of(scans(count), Path("/data/study")), "1"))
    assert html.unclosed == [] and html.foreign == []
    assert "the image is cut off" in html.text and f"{count} scans: {count - 1} done, 1 failed" in html.text
    assert "snr_b0 90 (median" in html.text
    assert "The same in all scans: max_b 1000" in html.text
    assert "Cohort study" in html.headings
    assert ("a", "logs/sub-00001/report.html") in html.addresses


def test_a_large_cohort_is_a_small_page():
    """40,000 scans with 35 figures take 12 MB: strips are pictures, and a row of the list takes 270 bytes."""
    few, many = (len(render(page_of(scans(n), Path("study")), "1")) for n in (1000, 5000))
    assert (many - few) / 4000 < 400


def test_an_empty_cohort_has_a_page():
    html = parsed(render(page_of([], Path("study")), "1"))
    assert "No scan has figures yet" in html.text
