"""Whether a survey is right, in a few sentences: what stands at the top of its page."""

from __future__ import annotations

import numpy as np

from mpiimg.astro.report.clipped import read_rejected
from mpiimg.astro.report.exposures import outliers
from mpiimg.astro.report.results import SurveyResults
from mpiimg.astro.report.tables import columns_of, where
from mpiimg.astro.wide import blue_to_red
from mpiimg.report.page import Item, Section, Text

#: Names that a sentence has.
NAMED = 4

#: Magnitudes and arcseconds by which a whole band may be off, and stars that are enough to say so.
MAX_MAG, MAX_ARCSEC, MIN_STARS = 0.02, 0.1, 10

#: An exposure of which so many times more is left out than of the median one, and at least so many pixels.
MANY_TIMES, MANY_PIXELS = 10.0, 1000


def glance_section(results: SurveyResults) -> Section | None:
    """Return the section of what is right and what is not; None where nothing can be said."""
    said = [
        *_of_exposures(results),
        *_of_zero_points(results),
        *_of_agreement(results),
        *_of_clipping(results),
        *_of_runs(results),
    ]
    return Section("At a glance", said) if said else None


def _named(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _of_exposures(results: SurveyResults) -> list[Item]:
    exposures = results.exposures
    if not exposures:
        return []
    names = exposures["name"].tolist()
    lost = [name for name, status in zip(names, exposures["status"], strict=True) if status != "used"]
    said: list[Item] = []
    if lost:
        said.append(Text(f"{len(lost)} of {len(names)} exposures were left out: {_named(lost)}.", "warning"))
    else:
        said.append(Text(f"All {len(names)} exposures were used.", "good"))
    strange = outliers(exposures)
    if strange:
        which = _named([f"{names[n]} ({why})" for n, why in sorted(strange.items())])
        text = f"Unlike the others of their band: {which}."
        said.append(Text(text, "warning"))
    return said


def _of_zero_points(results: SurveyResults) -> list[Item]:
    kinds = results.exposures.get("zero_point_type", np.array([], str))
    if (kinds == "RELATIVE").any():
        return [Text("Zero points are relative: magnitudes have no absolute scale.", "warning")]
    return []


def _of_agreement(results: SurveyResults) -> list[Item]:
    path = results.path("residuals.tsv")
    table = {} if path is None else columns_of(path, "\t")
    if not table or not len(table["by"]):
        return []
    whole = where(table, table["by"] == "all")
    said: list[Item] = []
    for band in blue_to_red(whole["band"].tolist()):
        (n,) = np.flatnonzero(whole["band"] == band)
        if not whole["stars"][n] >= MIN_STARS:
            continue
        apart = float(np.hypot(whole["dra"][n], whole["ddec"][n]))
        right = abs(whole["dmag"][n]) <= MAX_MAG and apart <= MAX_ARCSEC
        other = "the reference" if whole["against"][n] == "reference" else "each other"
        scatter = float(np.hypot(whole["dra_scatter"][n], whole["ddec_scatter"][n]))
        text = (
            f"{band}: {int(whole['stars'][n])} measurements of stars agree with {other} within "
            f"{abs(whole['dmag'][n]):.3f} mag and {apart:.3f} arcsec in the median; a single one scatters by "
            f"{whole['dmag_scatter'][n]:.3f} mag and {scatter:.3f} arcsec."
        )
        said.append(Text(text, "good" if right else "warning"))
    return said


def _of_clipping(results: SurveyResults) -> list[Item]:
    path = results.path("rejected.ecsv")
    pixels = {} if path is None else read_rejected(path).pixels
    if len(pixels) < 3:
        return []
    usual = float(np.median(list(pixels.values())))
    many = sorted(name for name, own in pixels.items() if own > max(MANY_TIMES * usual, MANY_PIXELS))
    if not many:
        return []
    text = f"Of {_named(many)} much more is left out of the coadd than of other exposures."
    return [Text(text, "warning")]


def _of_runs(results: SurveyResults) -> list[Item]:
    count = sum(len(run.texts("warnings")) for run in results.runs)
    patches = [name for name in results.left_out if "patch-" in name]
    said: list[Item] = []
    if patches:
        said.append(Text(f"Patches that failed are in no result: {_named(patches)}.", "warning"))
    if count:
        many = "was 1 warning; it stands" if count == 1 else f"were {count} warnings; they stand"
        said.append(Text(f"There {many} under Run, at the end.", "note"))
    return said
