"""mpiimg-status: the state of the runs in a folder, or of a cohort."""

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
from mpiimg.errors import BadInput, Exit
from mpiimg.neuro.cohort import status as cohort_status


def program(values: Mapping[str, Any], comm) -> int:
    """Print the status of every run in a folder, the last one at the end, or of a cohort: mpiimg-status.

    Returns
    -------
    int
        0 where all are running or done, 1 where one has failed or is lost, 75 where one is stopped.
    """
    folder = Path(values["folder"])
    if cohort_status.is_cohort(folder):
        scans = cohort_status.cohort_status(folder)
        put(
            cohort_status.status_json(scans) if values["json"] else cohort_status.status_text(scans),
            sys.stdout,
        )
        return cohort_status.exit_status(scans)
    folders = [folder] if (folder / "0.jsonl").is_file() else runs_in(folder)
    try:
        if not folders:
            raise BadInput(f"{folder}: no events of a run; give the folder that a tool was given as --out")
        runs = [run_status(events) for events in folders]
    except BadInput as error:
        put(f"mpiimg: error: {shown(error)}", sys.stderr)
        return Exit.BAD_INPUT
    if values["json"]:
        text = json.dumps([asdict(run) for run in runs], indent=2)
    else:
        text = "\n\n".join(map(describe, runs))
    put(text, sys.stdout)
    states = {run.state for run in runs}
    if states & {"failed", "lost"}:
        return Exit.FAILED
    return Exit.STOPPED if "stopped" in states else Exit.DONE
