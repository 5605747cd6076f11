"""The page of a cohort: every figure of every scan, those that fall out, and what became of each scan.

It is made of the records and of one small file of figures for each scan; no image is read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpiimg.engine.lease import Kind
from mpiimg.neuro.cohort.records import LOGS, scan_states
from mpiimg.neuro.cohort.status import counts, is_cohort, why
from mpiimg.neuro.report.strips import MAX_DOTS, draw_strip
from mpiimg.neuro.steps.qc import definition
from mpiimg.neuro.volume_figures import MAD_TO_SIGMA
from mpiimg.report import NAME
from mpiimg.report.page import Item, Link, Page, Section, Table, Text, words

#: A figure falls out where it is so many robust standard deviations off the median of all scans (Iglewicz and
#: Hoaglin 1993, How to Detect and Handle Outliers), of which there must be so many.
OUTLYING, MIN_SCANS = 3.5, 5

#: Rows of tables at most, of what is wrong.
MAX_ROWS = 1000

#: How the name of the file with the figures of a scan ends.
ENDING = "_desc-qc_dwimap.json"

#: Figures that the list of scans shows.
LISTED = ("ndc", "snr_b0", "num_bad_slices", "mask_ml", "sigma", "fa_mean")


@dataclass
class ScanFigures:
    """A scan of a cohort.

    Parameters
    ----------
    name : str
    state, why : str
        What became of it.
    link : str
        Of its own page, from that of the cohort; empty where there is none.
    figures : mapping of str to float
    outlying : list of str
        Figures that fall out.
    """

    name: str
    state: str
    why: str = ""
    link: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    outlying: list[str] = field(default_factory=list)

    @property
    def shown(self) -> Link | str:
        """Its name, with a link where it has a page."""
        return Link(self.name, self.link) if self.link else self.name


def cohort_page(folder: Path) -> Page | None:
    """Return the page of the cohort in a folder; None where there is none."""
    folder = Path(folder)
    return page_of(read_scans(folder), folder) if is_cohort(folder) else None


def read_scans(folder: Path) -> list[ScanFigures]:
    """Return all scans of a cohort, from their records and figures."""
    return [_read(folder, name, state) for name, state in scan_states(folder).items()]


def _read(folder: Path, name: str, state) -> ScanFigures:
    page = Path(LOGS) / name / NAME
    link = page.as_posix() if (folder / page).exists() else ""
    figures: dict[str, float] = {}
    if state.kind is Kind.DONE:
        with contextlib.suppress(OSError, ValueError, KeyError, StopIteration):
            file = next(one for one in state.end["files"] if one.endswith(ENDING))
            said = json.loads((folder / state.end["folder"] / file).read_text())
            figures = {key: float(one) for key, one in said.items() if type(one) in (int, float)}
    return ScanFigures(name, str(state.kind), why(state), link, figures)


def page_of(scans: Sequence[ScanFigures], folder: Path) -> Page:
    """Return the page of scans."""
    names = list(dict.fromkeys(name for scan in scans for name in scan.figures))
    table = {name: np.array([scan.figures.get(name, np.nan) for scan in scans]) for name in names}
    fallen = {name: outliers(values) for name, values in table.items()}
    for name, indices in fallen.items():
        for index in indices:
            scans[index].outlying.append(name)
    states = {scan.name: scan.state for scan in scans}
    known = [Kind(one) for one in dict.fromkeys(states.values()) if one in set(map(str, Kind))]
    facts = {str(kind): sum(one == str(kind) for one in states.values()) for kind in known}
    sections = [
        Section("What became of the scans", _fates(scans, states)),
        Section("Figures that fall out", _fallen(scans, table)),
        Section("Figures", _strips(scans, table, fallen)),
        Section("Scans", [_list(scans)]),
    ]
    return Page(
        f"Cohort {folder.resolve().name}", str(folder.resolve()), sections, {"scans": len(scans), **facts}
    )


def outliers(values: np.ndarray) -> np.ndarray:
    """Return the places of values that fall out of the others, by the median absolute deviation."""
    known = values[np.isfinite(values)]
    if len(known) < MIN_SCANS:
        return np.empty(0, int)
    middle = np.median(known)
    deviation = MAD_TO_SIGMA * np.median(np.abs(known - middle))
    if not deviation > 0:
        return np.empty(0, int)
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(np.abs(values - middle) > OUTLYING * deviation)


def _fates(scans: Sequence[ScanFigures], states: Mapping[str, str]) -> list[Item]:
    items: list[Item] = [Text(f"{counts(states)}.")]
    wrong = [scan for scan in scans if scan.state != str(Kind.DONE) and scan.why]
    if wrong:
        more = f", the first {MAX_ROWS} of {len(wrong)}" if len(wrong) > MAX_ROWS else ""
        rows = [[scan.shown, scan.state, scan.why] for scan in wrong[:MAX_ROWS]]
        items.append(Table(["scan", "state", "why"], rows, f"Scans that were not done{more}"))
    elif scans:
        items.append(Text("No scan failed or was passed over.", "good"))
    return items


def _fallen(scans: Sequence[ScanFigures], table: Mapping[str, np.ndarray]) -> list[Item]:
    chosen = sorted((scan for scan in scans if scan.outlying), key=lambda scan: -len(scan.outlying))
    if not chosen:
        return [Text("No figure of any scan falls out of those of the others.", "good" if table else "note")]
    medians = {name: float(np.nanmedian(values)) for name, values in table.items()}
    rows = [
        [
            scan.shown,
            len(scan.outlying),
            "; ".join(
                f"{name} {words(scan.figures[name])} (median {words(medians[name])})"
                for name in scan.outlying
            ),
        ]
        for scan in chosen[:MAX_ROWS]
    ]
    more = f", the first {MAX_ROWS} of {len(chosen)}" if len(chosen) > MAX_ROWS else ""
    caption = f"Scans with figures more than {OUTLYING:g} robust standard deviations off the median{more}"
    return [Table(["scan", "figures", "which"], rows, caption)]


def _strips(scans: Sequence[ScanFigures], table, fallen) -> list[Item]:
    items: list[Item] = [
        Text(
            "Each dot is a scan. The line is the median; orange are those that fall out. In cohorts of up to "
            f"{MAX_DOTS} scans a dot leads to the page of the scan."
        )
    ]
    for name, values in table.items():
        known = values[np.isfinite(values)]
        if len(known) == 0 or known.min() == known.max():
            continue
        unit, text = definition(name)
        title = f"{name}{f' [{unit}]' if unit not in ('', '1') else ''}: {text}"
        labels = [f"{scan.name}: {words(float(value))}" for scan, value in zip(scans, values, strict=True)]
        links = [scan.link for scan in scans]
        items.append(draw_strip(values, fallen[name], labels, links, title))
    constant = [
        f"{name} {words(float(values[np.isfinite(values)][0]))}"
        for name, values in table.items()
        if np.isfinite(values).any() and np.nanmin(values) == np.nanmax(values)
    ]
    if constant:
        items.append(Text(f"The same in all scans: {', '.join(constant)}.", "note"))
    return items if table else [Text("No scan has figures yet.", "note")]


def _list(scans: Sequence[ScanFigures]) -> Table:
    rows = [
        [scan.shown, scan.state, len(scan.outlying), *(scan.figures.get(name) for name in LISTED)]
        for scan in scans
    ]
    return Table(
        ["scan", "state", "fall out", *LISTED], rows, f"All {len(scans)} scans", folded=len(scans) > 20
    )
