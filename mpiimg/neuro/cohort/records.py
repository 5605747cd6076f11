"""A cohort and its records: settings, and for each scan the leases of all jobs that had it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.lease import Kind, LeaseState, names_in, read_lease
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.records import DamagedRecord, read_record, write_record
from mpiimg.errors import BadInput
from mpiimg.neuro.bids import Scan
from mpiimg.version import __version__

#: Folder in OUT_DIR with a folder of records for each scan, and the settings of all.
LOGS = "logs"


@dataclass(frozen=True)
class Cohort:
    """The scans of a dataset, and what is to be done with each.

    Parameters
    ----------
    dataset, out : Path
        Folders of the raw dataset and of the derivative.
    scans : tuple of Scan
        The selected ones.
    parameters : mapping
        What results depend on.
    inspect : callable
        Called as inspect(scan) on one rank; returns what headers say, and raises BadInput if the scan cannot
        be used.
    recipe : callable
        Called as recipe(scan, headers) on every rank of a group, with what `inspect` returned.
    group_size : int, optional
        Ranks per group; without it the plan decides.
    without : tuple of str
        Selected subjects and sessions that have no scan.
    strict : bool
        A scan that fails ends the job.
    retry_suspects : bool
        Process a scan again although two processes died while they worked on it.
    reports : bool
        Write a page for each scan that is done.
    """

    dataset: Path
    out: Path
    scans: tuple[Scan, ...]
    parameters: Mapping[str, Any]
    inspect: Callable[[Scan], Any]
    recipe: Callable[[Scan, Any], Recipe]
    group_size: int | None = None
    without: tuple[str, ...] = ()
    strict: bool = False
    retry_suspects: bool = False
    reports: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on beside their scan, as it is kept on disk."""
        return json.loads(
            json.dumps({"version": __version__, "parameters": dict(self.parameters)}, default=str)
        )

    def records(self, scan: Scan) -> Path:
        """Return the folder of a scan's leases, log, work and run.json."""
        return self.out / LOGS / scan.name


def scan_states(out: Path) -> dict[str, LeaseState]:
    """Return the state of every scan that was ever selected for `out`, by name; empty for another folder.

    Raises
    ------
    BadInput
        The record of the settings is damaged.
    """
    settings = read_settings(out)
    return {records.name: scan_state(out, records, settings) for records in _folders(out / LOGS)}


def scan_state(out: Path, records: Path, settings: Mapping[str, Any]) -> LeaseState:
    """Return the state of a scan; to be done again if settings changed or results were removed."""
    state = read_lease(records)
    if state.kind is not Kind.DONE:
        return state
    with contextlib.suppress(KeyError, TypeError):
        present = set(names_in(out / state.end["folder"]))
        if state.end["settings"] == settings_digest(settings) and present.issuperset(state.end["files"]):
            return state
    return dataclasses.replace(state, kind=Kind.TO_DO)


def maybe_otherwise(out: Path, settings: Mapping[str, Any]) -> list[str]:
    """Return the scans that say that they were done with other settings, and those that are in work."""
    own = settings_digest(settings)
    states = {records.name: read_lease(records) for records in _folders(out / LOGS)}
    return [
        name
        for name, state in states.items()
        if state.kind is Kind.IN_WORK or (state.kind is Kind.DONE and state.end.get("settings") != own)
    ]


def read_settings(out: Path) -> dict[str, Any]:
    """Return the version and parameters that the scans in `out` are processed with; empty if none are.

    Raises
    ------
    BadInput
        Their record is damaged.
    """
    try:
        return read_record(_settings_path(out)) or {}
    except DamagedRecord as error:
        raise BadInput(
            f"{_settings_path(out)}: {error}; the command that made this cohort, given again, mends it"
        ) from None


def write_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a cohort."""
    write_record(_settings_path(out), settings)


def _settings_path(out: Path) -> Path:
    return out / LOGS / "cohort.json"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _folders(parent: Path) -> list[Path]:
    return [parent / name for name in names_in(parent) if (parent / name).is_dir()]
