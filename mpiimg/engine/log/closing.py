"""The last lines of a run: what it took, its warnings once more, and where its results are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiimg.engine.log.show_plan import beside_actual
from mpiimg.engine.log.wording import many

#: Warnings that are said once more.
MOST = 20


def closing_lines(report: Mapping[str, Any], out: Path, record: Path, every: bool) -> list[str]:
    """Return what is said when a run is done.

    Parameters
    ----------
    report : mapping
        What the record of the run says.
    out, record : Path
        Folder of the results; the record.
    every : bool
        Set what was planned beside what was measured for each stage.
    """
    lines = beside_actual(report["stages"], every)
    return [*lines, *warnings_again(report["warnings"], record), *where_results_are(out, record)]


def warnings_again(warnings: Sequence[str], record: Path | None = None) -> list[str]:
    """Return warnings in one block, for who has not seen them go by; those of a run are in its record too."""
    distinct = list(dict.fromkeys(warnings))
    if not distinct:
        return []
    more = len(distinct) - MOST
    rest = [f"  and {more} more" + (f", in {record}" if record else "")] if more > 0 else []
    return [f"{many(len(distinct), 'warning')} in all:", *(f"  {one}" for one in distinct[:MOST]), *rest]


def where_results_are(out: Path, record: Path) -> list[str]:
    """Return the lines that say where to look; that of the report follows them, where there is one."""
    return [f"results in {out}, and how they were made in {record}"]
