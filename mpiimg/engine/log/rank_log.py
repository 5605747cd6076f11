"""The events of a rank as who looks on reads them: of their types, as they come, and no longer than need be.

Whatever events hold, of another version or damaged, is read as far as it makes sense.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.log.events import MAX_TIME, is_event
from mpiimg.engine.records import DamagedRecord, parsed

#: Fields of events that hold text, numbers that count, times in seconds since the epoch, and durations.
_TEXTS = ("tool", "command", "host", "event", "why", "what", "stage", "report", "job")
_COUNTS = ("ranks", "pid", "chunks", "done", "mine", "chunk", "memory", "status")
_TIMES = ("time", "since")
_SECONDS = ("planned",)

#: No count is larger, and nothing takes longer.
_MAX_COUNT = 1 << 53
_MAX_SECONDS = 1e12


class RankLog:
    """The events of a rank, of which each look reads what has come since the last.

    Chunks of a stage that follow each other are one event, with their number and the last one's time: what
    is held does not grow with the length of a run.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path):
        self._path, self._file, self._offset = path, 0, 0
        #: All fields that any event has are in each.
        self.events: list[dict[str, Any]] = []

    def look(self) -> None:
        """Read what has come; a file that cannot be read holds nothing new."""
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._offset:
                self._file, self._offset, self.events = status.st_ino, 0, []
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the rest of it may yet come
                self._offset += len(line)
                with contextlib.suppress(DamagedRecord):
                    event = parsed(line)
                    if is_event(event):
                        self._add(_of_types(event))

    def _add(self, event: dict[str, Any]) -> None:
        events = self.events
        if event["event"] == "chunks":
            while events and events[-1]["event"] == "doing":
                events.pop()
            if events and (events[-1]["event"], events[-1]["stage"]) == ("chunks", event["stage"]):
                event["chunks"] += events.pop()["chunks"]
        events.append(event)


def _of_types(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event with fields of their types, "" or 0 for those that are missing or of another."""
    fields: dict[str, Any] = {}
    for name in _TEXTS:
        value = event.get(name)
        fields[name] = value if isinstance(value, str) else ""
    for name in _COUNTS:
        fields[name] = _within(event.get(name), _MAX_COUNT, int)
    for name in _TIMES:
        fields[name] = _within(event.get(name), MAX_TIME, int | float)
    for name in _SECONDS:
        fields[name] = _within(event.get(name), _MAX_SECONDS, int | float)
    fields["since"] = fields["since"] or fields["time"]
    stages, seconds = event.get("stages"), event.get("seconds")
    fields["stages"] = [_planned(one) for one in stages] if isinstance(stages, list) else []
    predicted = seconds if isinstance(seconds, list) else []
    fields["seconds"] = [_within(one, _MAX_SECONDS, int | float) for one in predicted]
    culprits = event.get("culprits")
    fields["culprits"] = (
        [one for one in culprits if isinstance(one, str)] if isinstance(culprits, list) else []
    )
    return fields


def _within(value: Any, limit: float, kind: Any) -> Any:
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    return value if is_number and 0 <= value <= limit else 0


def _planned(stage: Any) -> tuple[str, int]:
    """Return name and chunks of a stage as the start of a run says it."""
    if isinstance(stage, list) and len(stage) == 3 and isinstance(stage[0], str):
        return stage[0], _within(stage[2], _MAX_COUNT, int)
    return "", 0
