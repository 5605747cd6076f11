"""The part of a page that is about a survey: whether its exposures, coadds and sources are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.astro.report.agreement import agreement_section
from mpiimg.astro.report.clipped import clipped_section
from mpiimg.astro.report.exposures import exposure_section
from mpiimg.astro.report.glance import glance_section
from mpiimg.astro.report.methods import methods_section
from mpiimg.astro.report.results import SurveyResults
from mpiimg.astro.report.sky import coadd_section
from mpiimg.astro.report.sources import source_section
from mpiimg.astro.report.tables import columns_of
from mpiimg.astro.wide import blue_to_red
from mpiimg.report.page import Page
from mpiimg.report.runs import Run

#: Bands whose figures stand at the top.
MAX_BANDS = 6

#: What makes sections, in their order; each returns None where there is nothing to show.
SECTIONS = (
    glance_section,
    coadd_section,
    source_section,
    exposure_section,
    agreement_section,
    clipped_section,
    methods_section,
)


def survey_page(runs: Sequence[Run]) -> Page:
    """Return what is to be said of the surveys of a folder; nothing where there are none."""
    results = SurveyResults(runs)
    if not results.steps:
        return Page("", "", [])
    made = (make(results) for make in SECTIONS)
    return Page("", "", [section for section in made if section], survey_facts(results))


def survey_facts(results: SurveyResults) -> dict[str, object]:
    """Return the few figures at the top of the page."""
    facts: dict[str, object] = {}
    exposures = results.exposures
    if exposures:
        used = int(np.count_nonzero(exposures["status"] == "used"))
        facts["exposures used"] = f"{used} of {len(exposures['status'])}"
    shown = (
        ("calibration.tsv", "seeing", "median seeing", " [arcsec]", ".2f"),
        ("depth.tsv", "depth", "5 sigma depth", " [mag]", ".2f"),
        ("depth.tsv", "area", "area", " [arcmin\u00b2]", ".4g"),
        ("counts.tsv", "sources", "sources", "", ".0f"),
    )
    for file, column, name, unit, form in shown:
        path = results.path(file)
        table = {} if path is None else columns_of(path, "\t")
        bands = blue_to_red([band for band in table.get("band", np.array([], str)).tolist() if band])
        values = [_of_band(table, band, column) for band in bands[:MAX_BANDS]]
        if any(np.isfinite(values)):
            words = [format(value, form) if np.isfinite(value) else "n/a" for value in values]
            facts[f"{name} in {', '.join(bands[:MAX_BANDS])}{unit}"] = ", ".join(words)
    return facts


def _of_band(table: Mapping[str, np.ndarray], band: str, column: str) -> float:
    """Return a figure of a band: that of its first row, or of exposures their median."""
    own = np.asarray(table[column][table["band"] == band], float)
    if column == "seeing":
        own = own[np.isfinite(own)]
        return float(np.median(own)) if len(own) else float("nan")
    return float(own[0])
