"""Exposures on the page: seeing, sky, zero point and cosmic rays, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mpiimg.astro.photometry.spread import deviation
from mpiimg.astro.report.results import SurveyResults
from mpiimg.report.drawing import FAINT, SERIES, WRONG, as_png, as_svg, new_figure, style
from mpiimg.report.page import Item, Picture, Section, Table, Text

#: Rows of a table on the page; files have all.
MAX_ROWS = 200

#: Exposures from which on points are drawn as an image.
MANY = 1500

#: Exposures whose names are written below them, and letters of a name that is.
MAX_NAMES, MAX_LETTERS = 40, 16

#: So many deviations from the median of its band make an exposure an outlier, where there are so many.
DEVIATIONS, MIN_EXPOSURES = 5.0, 8

#: Deviations are at least this share of the median of a figure, or so many magnitudes.
FLOOR, FLOOR_MAG = 0.02, 0.01


class Shown(NamedTuple):
    """A figure that each exposure has."""

    column: str
    label: str
    unit: str


SHOWN = (
    Shown("seeing", "seeing", "arcsec"),
    Shown("brightness", "sky", "mag arcsec\u207b\u00b2"),
    Shown("zero_point", "zero point", "mag"),
    Shown("cosmic_ray_pixels", "cosmic rays", "pixels"),
)


def exposure_section(results: SurveyResults) -> Section | None:
    """Return the section about exposures; None where none were calibrated."""
    exposures = results.exposures
    if not exposures:
        return None
    names, used = exposures["name"], exposures["status"] == "used"
    strange = outliers(exposures)
    items: list[Item] = []
    if not used.all():
        rows = list(zip(names[~used].tolist(), exposures["status"][~used].tolist(), strict=True))
        items.append(Text(f"{len(rows)} of {len(names)} exposures were left out.", "warning"))
        items.append(capped(["exposure", "reason"], rows, "Exposures that were left out, and why"))
    items.append(draw_exposures(exposures, results.bands, strange))
    heads = ["number", "exposure", "band", *(f"{one.label} [{one.unit}]" for one in SHOWN)]
    rows = [[*_row(exposures, n), why] for n, why in sorted(strange.items())]
    if rows:
        items.append(capped([*heads, "stands out by"], rows, "Exposures unlike the others of their band"))
    rows = [_row(exposures, n) for n in range(len(names))]
    items.append(capped(heads, rows, "All exposures, as in exposures.ecsv and calibration.tsv", folded=True))
    return Section("Exposures", items)


def _row(exposures: Mapping[str, np.ndarray], n: int) -> list:
    return [n, exposures["name"][n], exposures["band"][n], *(float(exposures[s.column][n]) for s in SHOWN)]


def capped(columns: Sequence[str], rows: Sequence[Sequence], caption: str, folded: bool = False) -> Table:
    """Return a table of the first rows; its caption says how many are not shown."""
    more = len(rows) - MAX_ROWS
    caption += f"; {more} more are not shown" if more > 0 else ""
    return Table(columns, rows[:MAX_ROWS], caption, folded)


def outliers(exposures: Mapping[str, np.ndarray]) -> dict[int, str]:
    """Return the exposures that are unlike the others of their band, and by which figures.

    Those are DEVIATIONS robust standard deviations from the median of the exposures in use, where a band has
    MIN_EXPOSURES of them.
    """
    found: dict[int, list[str]] = {}
    used = exposures["status"] == "used"
    for band in dict.fromkeys(exposures["band"].tolist()):
        for one in SHOWN:
            values = np.asarray(exposures[one.column], float)
            members = np.flatnonzero((exposures["band"] == band) & used & np.isfinite(values))
            if len(members) < MIN_EXPOSURES:
                continue
            middle = np.median(values[members])
            floor = FLOOR_MAG if one.unit.startswith("mag") else FLOOR * abs(middle)
            usual = max(deviation(values[members]), floor)
            for n in members[np.abs(values[members] - middle) > DEVIATIONS * usual]:
                found.setdefault(int(n), []).append(one.label)
    return {number: ", ".join(labels) for number, labels in found.items()}


def label_exposures(axes, names: Sequence[str]) -> None:
    """Write below an axis which exposure is where: names where there is room, and else numbers."""
    if len(names) <= MAX_NAMES and max(map(len, names)) <= MAX_LETTERS:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8, color=FAINT)
    else:
        axes.set(xlabel="number of the exposure in exposures.ecsv, from 0")


def draw_exposures(
    exposures: Mapping[str, np.ndarray], bands: Sequence[str], strange: Mapping[int, str]
) -> Picture:
    """Draw what each exposure has, one panel below the other."""
    names, used = exposures["name"], exposures["status"] == "used"
    number = np.arange(len(names))
    with style():
        figure = new_figure(7.2)
        panels = figure.subplots(len(SHOWN), 1, sharex=True)
        for axes, one in zip(panels, SHOWN, strict=True):
            values = np.asarray(exposures[one.column], float)
            for k, band in enumerate(bands):
                own = (exposures["band"] == band) & used
                axes.plot(
                    number[own], values[own], "o", ms=5 if len(names) < 200 else 2, mew=0,
                    color=SERIES[k % len(SERIES)], label=band,
                )  # fmt: skip
            marked = [n for n, why in strange.items() if one.label in why]
            axes.plot(marked, values[marked], "o", ms=11, mfc="none", mec=WRONG, mew=1.5)
            for n in number[~used]:
                axes.axvline(n, color=WRONG, lw=0.8, ls=":")
            axes.set(ylabel=f"{one.label}\n[{one.unit}]", xlim=(-0.6, len(names) - 0.4))
            if not np.isfinite(values[used]).any():
                axes.set(yticks=[])
                axes.text(0.5, 0.5, "not known of any exposure", transform=axes.transAxes, ha="center")
            axes.grid(axis="y", color="#e4e4e4", lw=0.6)
            axes.ticklabel_format(axis="y", useOffset=False)
        if len(bands) > 1:
            panels[0].legend(
                loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(bands), 10), frameon=False
            )
        label_exposures(panels[-1], names.tolist())
        figure.align_ylabels(panels)
        saved = as_svg if len(names) <= MANY else as_png
        return saved(
            figure,
            f"Seeing, sky, zero point and cosmic rays of {len(names)} exposures; {len(strange)} stand out",
            "Good: points of one band lie in a flat band, and visits differ by their weather alone. Bad: a "
            "point on its own (circled where it is more than "
            f"{DEVIATIONS:g} deviations from its band), seeing that drifts through the night, a zero point "
            "that falls as clouds come in, cosmic rays in one exposure many times those of others. Dotted: "
            "left out.",
        )
