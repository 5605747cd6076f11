"""The page of a folder of results: what each domain has to say of them, then how the runs went."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mpiimg.engine import plugins
from mpiimg.engine.atomic import write_file
from mpiimg.errors import BadInput
from mpiimg.report import NAME
from mpiimg.report.page import Page, Section, Text, render
from mpiimg.report.run_section import run_sections
from mpiimg.report.runs import Run, runs_of
from mpiimg.version import __version__

log = logging.getLogger("mpiimg")


def write_page(folder: Path) -> Path:
    """Write the page of all runs whose records lie in a folder; it replaces one that is there.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    BadInput
        There is nothing to report on, or the page cannot be written.
    """
    folder = Path(folder)
    page = cohort_page(folder)
    if page is None:
        runs = runs_of(folder)
        if not runs:
            raise BadInput(f"{folder}: no record of a run; give the folder that a tool was given as --out")
        page = page_of(runs)
    path = folder / NAME
    try:
        write_file(path, render(page, __version__).encode())
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
    return path


def cohort_page(folder: Path) -> Page | None:
    """Return the page of a cohort; None where no domain finds one in the folder."""
    for name in plugins.DOMAINS:
        place = plugins.domain(name).cohort_report
        page = plugins.load_object(place)(folder) if place else None
        if page is not None:
            return page
    return None


def page_of(runs: Sequence[Run]) -> Page:
    """Return the page of runs whose records lie in one folder."""
    facts, sections, titles = {}, [], []
    for domain in plugins.every_domain():
        if domain.report:
            told = _told(plugins.load_object(domain.report), runs, domain.name)
            facts |= told.facts
            sections += told.sections
            titles += [told.title] if told.title else []
    newest = runs[-1]
    title = ", ".join(titles) or newest.tool
    subtitle = f"{os.path.abspath(newest.out)}, {len(runs)} run{'s' * (len(runs) != 1)}"
    return Page(title, subtitle, [*sections, *run_sections(runs)], facts)


def _told(tell: Callable[[Sequence[Run]], Page], runs: Sequence[Run], domain: str) -> Page:
    """Return what a domain tells of runs; of results that it cannot read, that it cannot."""
    try:
        return tell(runs)
    except Exception as error:
        hint = "mpiimg-status --verify says which results are not as they were written"
        log.warning("warning: the part of %s on the page could not be made: %s; %s", domain, error, hint)
        text = f"This part could not be made: {type(error).__name__}: {error}"
        return Page("", "", [Section(f"Results of {domain}", [Text(text, "warning")])])
