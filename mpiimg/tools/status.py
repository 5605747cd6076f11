"""mpiimg-status: the state of the runs in a folder, or of a cohort; and whether results are as written."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpiimg.engine.log import status_text
from mpiimg.engine.log.events import runs_in
from mpiimg.engine.log.run_status import RunReader
from mpiimg.engine.mpi.runtime import put
from mpiimg.engine.names import shown
from mpiimg.engine.results import records_in, verify
from mpiimg.errors import BadInput, Exit
from mpiimg.neuro.cohort import status as cohort_status

#: Version of the form of what --json prints; keys may be added to it, and none changed or removed.
SCHEMA = 1

#: Seconds between two looks on a terminal and for programs, and between two lines of a log.
EVERY, EVERY_LINE = 2.0, 10.0

#: A look takes at most such a share of the time, however many files it reads.
SHARE = 0.1

#: Clears a terminal, and the cursor goes to its beginning.
_CLEAR = "\x1b[H\x1b[2J"


def program(values: Mapping[str, Any], comm) -> int:
    """Print the status of every run in a folder, the last one at the end, or of a cohort: mpiimg-status.

    Returns
    -------
    int
        0 where all are running or done, 1 where one has failed or is lost, 75 where one is stopped; with
        `verify` 0 where all results are as they were written, and 1 where one is not.
    """
    folder = Path(values["folder"])
    try:
        if values["verify"]:
            return _verified(folder, values["json"])
        seen = _Cohort(folder) if cohort_status.is_cohort(folder) else _Runs(folder)
        if values["watch"]:
            return _watched(seen, values["json"])
        seen.look()
        if values["json"]:
            put(json.dumps(_document(seen, folder), indent=2), sys.stdout)
        else:
            put(seen.text(_has_colours()), sys.stdout, made_fit=True)
        return seen.status
    except BadInput as error:
        put(f"mpiimg: error: {shown(error)}", sys.stderr)
        return Exit.BAD_INPUT
    except OSError as error:
        print(f"mpiimg: error: {shown(error.filename or folder)}: {error.strerror}", file=sys.stderr)
        return Exit.BAD_INPUT


class _Runs:
    """The runs in a folder, as they were at the last look."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._readers: dict[Path, RunReader] = {}

    def look(self) -> None:
        """Look at all of them."""
        folders = [self.folder] if (self.folder / "0.jsonl").is_file() else runs_in(self.folder)
        if not folders:
            raise BadInput(
                f"{shown(self.folder)}: no events of a run; give the folder that a tool was given as --out"
            )
        self.runs = [self._readers.setdefault(events, RunReader(events)).status() for events in folders]

    @property
    def goes_on(self) -> bool:
        return any(run.state == "running" for run in self.runs)

    @property
    def status(self) -> Exit:
        states = {run.state for run in self.runs}
        if states & {"failed", "lost"}:
            return Exit.FAILED
        return Exit.STOPPED if "stopped" in states else Exit.DONE

    def document(self) -> dict[str, Any]:
        return {"kind": "runs", "runs": [asdict(run) for run in self.runs]}

    def text(self, colour: bool) -> str:
        return "\n\n".join(status_text.describe(run, colour) for run in self.runs)

    def screen(self, height: int, width: int, colour: bool) -> str:
        *earlier, last = self.runs
        lines = [status_text.in_a_line(run)[: width - 1] for run in earlier]
        return "\n".join([*lines, status_text.screenful(last, height - len(lines), width, colour)])

    def line(self) -> str:
        return status_text.in_a_line(self.runs[-1])


class _Cohort:
    """The scans of a cohort, as they were at the last look."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._reader = cohort_status.CohortReader(folder)

    def look(self) -> None:
        """Look at all of them."""
        self.cohort = self._reader.status()

    @property
    def goes_on(self) -> bool:
        return self.cohort.counts["in work"] > 0

    @property
    def status(self) -> Exit:
        return cohort_status.exit_status(self.cohort)

    def document(self) -> dict[str, Any]:
        return {"kind": "cohort", **asdict(self.cohort)}

    def text(self, colour: bool) -> str:
        return cohort_status.status_text(self.cohort, colour)

    def screen(self, height: int, width: int, colour: bool) -> str:
        return cohort_status.status_text(self.cohort, colour, height, width)

    def line(self) -> str:
        return cohort_status.in_a_line(self.cohort)


def _document(seen: _Runs | _Cohort, folder: Path) -> dict[str, Any]:
    """Return what --json prints."""
    return {"schema": SCHEMA, "time": round(time.time(), 3), "folder": str(folder), **seen.document()}


def _has_colours() -> bool:
    """Say whether what is printed comes to a terminal that may have colours (no-color.org)."""
    plain = os.environ.get("NO_COLOR", "") != "" or os.environ.get("TERM", "dumb") == "dumb"
    return sys.stdout.isatty() and not plain


def _watched(seen: _Runs | _Cohort, as_json: bool) -> Exit:
    """Show how it is again and again until it is over, or whoever looks on has seen enough."""
    is_screen = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not as_json
    every = EVERY if is_screen or as_json else EVERY_LINE
    try:
        while True:
            began = time.monotonic()
            seen.look()
            took = time.monotonic() - began
            if as_json:
                is_read = put(json.dumps(_document(seen, seen.folder)), sys.stdout)
            elif is_screen:
                size = shutil.get_terminal_size()
                text = seen.screen(size.lines, size.columns, _has_colours())
                is_read = put(_CLEAR + text, sys.stdout, made_fit=True)
            elif seen.goes_on:
                is_read = put(f"{time.strftime('%H:%M:%S')} {seen.line()}", sys.stdout)
            else:
                is_read = put(seen.text(_has_colours()), sys.stdout, made_fit=True)
            if not (seen.goes_on and is_read):
                return seen.status
            time.sleep(max(every, took / SHARE))
    except KeyboardInterrupt:
        return seen.status


def _verified(folder: Path, as_json: bool) -> int:
    """Print in a line each what differs from the records of the runs in a folder, or of all scans."""
    records = cohort_status.done_records(folder) if cohort_status.is_cohort(folder) else records_in(folder)
    if not records:
        raise BadInput(f"{shown(folder)}: no record of a run; give the folder that a tool was given as --out")
    lines = [line for record in records for line in verify(record)]
    if as_json:
        text = json.dumps({"records": list(map(str, records)), "differences": lines}, indent=2)
    elif lines:
        text = "\n".join(map(shown, lines))
    else:
        text = f"all results of {len(records)} run{'s' * (len(records) != 1)} are as they were written"
    put(text, sys.stdout)
    return Exit.FAILED if lines else Exit.DONE
