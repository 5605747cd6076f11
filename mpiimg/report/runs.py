"""The runs that have left results in a folder: their records, their events, and where their results lie."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mpiimg.engine.log.events import events_folder, rank_files, read_events
from mpiimg.engine.records import DamagedRecord, read_record
from mpiimg.engine.results import records_in

#: Ranks whose events are read: of more, these many, evenly spread.
MAX_RANKS = 64


@dataclass(frozen=True)
class Run:
    """A run that has ended, by its record.

    Parameters
    ----------
    path : Path
        Of the record.
    record : mapping
        What it says; of another version, or damaged by hand, anything.
    """

    path: Path
    record: Mapping[str, Any]

    @property
    def tool(self) -> str:
        """The name of the tool."""
        return str(self.record.get("tool", "a run"))

    @cached_property
    def out(self) -> Path:
        """The folder of its results."""
        return self.path.parent / str(self.record.get("folder", "."))

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The names of its results that are there, below `out`."""
        outputs = self.record.get("outputs")
        names = outputs if isinstance(outputs, Mapping) else ()
        return tuple(name for name in names if (self.out / str(name)).exists())

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        """What each stage took, and what was planned."""
        stages = self.record.get("stages")
        return [one for one in stages if isinstance(one, Mapping)] if isinstance(stages, list) else []

    def texts(self, name: str) -> list[str]:
        """Return a list of sentences, such as warnings."""
        value = self.record.get(name)
        return list(map(str, value)) if isinstance(value, list) else []

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The options that results depend on."""
        value = self.record.get("parameters")
        return value if isinstance(value, Mapping) else {}

    @cached_property
    def events(self) -> dict[int, list[dict]]:
        """The events of ranks, of `MAX_RANKS` at most."""
        files = rank_files(events_folder(self.path.parent, self.path.name))
        step = -(-len(files) // MAX_RANKS) if files else 1
        found = {}
        for file in files[::step]:
            with contextlib.suppress(OSError):
                found[int(file.stem)] = list(read_events(file))
        return found

    @cached_property
    def start(self) -> Mapping[str, Any]:
        """The event with which it began; empty where none tells."""
        of_first = self.events.get(0, [])
        return next((one for one in of_first if one.get("event") == "start"), {})

    def output(self, ending: str, start: str = "") -> Path | None:
        """Return the result whose name begins and ends so; None where there is none."""
        for name in self.outputs:
            if Path(name).name.endswith(ending) and Path(name).name.startswith(start):
                return self.out / name
        return None


def runs_of(folder: Path) -> list[Run]:
    """Return the runs whose records lie in a folder, the one that began last at the end.

    Records that cannot be read are left out.
    """
    runs = []
    for path in records_in(folder):
        with contextlib.suppress(DamagedRecord, OSError):
            record = read_record(path)
            if isinstance(record, Mapping):
                runs.append(Run(path, record))
    return runs


def last_output(runs: Sequence[Run], ending: str, start: str = "") -> Path | None:
    """Return the result whose name begins and ends so, of the last run that has one."""
    found = (run.output(ending, start) for run in reversed(runs))
    return next((one for one in found if one is not None), None)
