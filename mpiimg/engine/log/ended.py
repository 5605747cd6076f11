"""How a run ended, as it says itself: for scripts, which must not believe an exit status alone.

Code of a user, or of a library, may end a process with any status. A run that comes to its end says so in its
events, and a job on a cohort in a record of its own, with the word that tells it from all others.
"""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from mpiimg.engine.log.events import read_events
from mpiimg.engine.names import file_name
from mpiimg.engine.records import DamagedRecord, line_of, read_record, write_record
from mpiimg.errors import Exit


def note_already_done(events: Path, run: str, status: Exit) -> None:
    """Add to the events of a run that is over that run `run` found it done; never raises.

    Nothing for a run without a word.
    """
    if not run:
        return
    who = {"time": round(time.time(), 3), "rank": 0, "host": socket.gethostname()}
    line = line_of({**who, "event": "end", "run": run, "status": int(status), "why": "already done"})
    with contextlib.suppress(OSError):
        events.mkdir(exist_ok=True)
        # The last line may be torn.
        with open(events / "0.jsonl", "ab") as file:
            file.write(b"\n" + line)


def note_job(logs: Path, run: str, status: Exit) -> None:
    """Write how a job on a cohort ended, whose records lie in `logs`; nothing for a job without a word."""
    if run:
        write_record(_job(logs, run), {"run": run, "status": int(status)})


def says_so(folder: Path, run: str, status: int) -> bool:
    """Say whether run or job `run`, whose results go to `folder`, says itself that it ended with `status`."""
    for events in sorted(Path(folder).glob("events*")):
        with contextlib.suppress(OSError):
            for event in read_events(events / "0.jsonl"):
                if (event["event"], event.get("run"), event.get("status")) == ("end", run, status):
                    return True
    with contextlib.suppress(OSError, DamagedRecord):
        said = read_record(_job(Path(folder) / "logs", run))
        return said is not None and (said.get("run"), said.get("status")) == (run, status)
    return False


def _job(logs: Path, run: str) -> Path:
    return logs / f"job-{file_name(run)}.json"
