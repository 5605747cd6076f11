"""mpiimg-status: the state of the runs in a folder, or of a cohort; and whether results are as written."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpiimg.engine.log.events import runs_in
from mpiimg.engine.log.run_status import describe, run_status
from mpiimg.engine.mpi.runtime import put
from mpiimg.engine.names import shown
from mpiimg.engine.results import records_in, verify
from mpiimg.errors import BadInput, Exit
from mpiimg.neuro.cohort import status as cohort_status


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
        if cohort_status.is_cohort(folder):
            return _of_cohort(folder, values["json"])
        return _of_runs(folder, values["json"])
    except BadInput as error:
        put(f"mpiimg: error: {shown(error)}", sys.stderr)
        return Exit.BAD_INPUT
    except OSError as error:
        print(f"mpiimg: error: {shown(error.filename or folder)}: {error.strerror}", file=sys.stderr)
        return Exit.BAD_INPUT


def _of_cohort(folder: Path, as_json: bool) -> int:
    scans = cohort_status.cohort_status(folder)
    put(cohort_status.status_json(scans) if as_json else cohort_status.status_text(scans), sys.stdout)
    return cohort_status.exit_status(scans)


def _of_runs(folder: Path, as_json: bool) -> int:
    folders = [folder] if (folder / "0.jsonl").is_file() else runs_in(folder)
    if not folders:
        raise BadInput(f"{shown(folder)}: no events of a run; give the folder that a tool was given as --out")
    runs = [run_status(events) for events in folders]
    if as_json:
        text = json.dumps([asdict(run) for run in runs], indent=2)
    else:
        text = "\n\n".join(map(describe, runs))
    put(text, sys.stdout)
    states = {run.state for run in runs}
    if states & {"failed", "lost"}:
        return Exit.FAILED
    return Exit.STOPPED if "stopped" in states else Exit.DONE


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
