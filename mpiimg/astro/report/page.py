"""The part of a page that is about a survey: whether its exposures, coadds and sources are right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpiimg.astro.report.clipped import clipped_section
from mpiimg.astro.report.exposures import exposure_section
from mpiimg.astro.report.methods import methods_section
from mpiimg.astro.report.results import SurveyResults
from mpiimg.report.page import Page
from mpiimg.report.runs import Run


def survey_page(runs: Sequence[Run]) -> Page:
    """Return what is to be said of the surveys of a folder; nothing where there are none."""
    results = SurveyResults(runs)
    if not results.steps:
        return Page("", "", [])
    made = (make(results) for make in (exposure_section, clipped_section, methods_section))
    return Page("", "", [section for section in made if section], survey_facts(results))


def survey_facts(results: SurveyResults) -> dict[str, object]:
    """Return the few figures at the top of the page."""
    facts: dict[str, object] = {}
    exposures = results.exposures
    if exposures:
        used = int(np.count_nonzero(exposures["status"] == "used"))
        facts["exposures used"] = f"{used} of {len(exposures['status'])}"
        facts["bands"] = ", ".join(results.bands)
        for band in results.bands:
            own = exposures["fwhm"][(exposures["band"] == band) & np.isfinite(exposures["fwhm"])]
            if len(own):
                facts[f"seeing {band} [pixels]"] = round(float(np.median(own)), 2)
    return facts
