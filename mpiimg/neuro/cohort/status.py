"""What has become of each scan of a cohort, from the files that its jobs leave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mpiimg.engine.lease import Kind, LeaseState, owner_text, read_lease
from mpiimg.engine.log.events import runs_in
from mpiimg.engine.log.run_status import run_status
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, Exit
from mpiimg.neuro.cohort.records import LOGS, read_settings, scan_states


@dataclass(frozen=True)
class ScanStatus:
    """A scan: its state, what there is to say of that, who has it in work, and how far that is."""

    name: str
    state: str
    why: str = ""
    owner: str = ""
    progress: str = ""


def is_cohort(out: Path) -> bool:
    """Say whether scans of a dataset are processed into this folder."""
    return bool(read_settings(out))


def cohort_status(out: Path) -> list[ScanStatus]:
    """Return the status of every scan that a job was asked for, by name."""
    return [_status(out, name, state) for name, state in scan_states(out).items()]


def done_records(out: Path) -> list[Path]:
    """Return the records of the scans that were done, also of those whose results were removed since."""
    folders = [out / LOGS / name for name in scan_states(out)]
    return [one / "run.json" for one in folders if (one / "run.json").exists() or _was_done(one)]


def _was_done(records: Path) -> bool:
    return read_lease(records).kind is Kind.DONE


def _status(out: Path, name: str, state: LeaseState) -> ScanStatus:
    if state.kind is Kind.IN_WORK:
        return ScanStatus(
            name, state.kind, owner=owner_text(state.owner), progress=_progress(out / LOGS / name)
        )
    return ScanStatus(name, state.kind, why=why(state))


def why(state: LeaseState) -> str:
    """Say why a scan is in a state that it should not stay in, and what to do; "" for the others."""
    if state.kind in (Kind.FAILED, Kind.BROKEN, Kind.PASSED_OVER):
        return str(state.end.get("reason", "it does not say why"))
    if state.kind is Kind.SUSPECT:
        return f"{state.deaths} times a process died with it in work; --retry-suspects takes it again"
    if state.kind is Kind.DIED:
        return "a process died with it in work; the same command goes on"
    if state.kind is Kind.STOPPED:
        return "the same command goes on"
    return ""


def _progress(records: Path) -> str:
    """Say which stage a scan is at, and how far that is."""
    events = runs_in(records)
    try:
        run = run_status(events[-1])
    except (BadInput, IndexError):
        return ""
    number = sum(stage.ended is not None for stage in run.stages) + 1
    stage = run.current
    if stage is None:
        return f"stage {min(number, len(run.stages))} of {len(run.stages)}"
    have = stage.resumed + stage.done
    return f"stage {number} of {len(run.stages)}, {stage.name}: {have} of {stage.chunks} chunks"


def counts(states: Mapping[str, str]) -> str:
    """Say how many scans are in which state."""
    kinds = list(states.values())
    listed = ", ".join(f"{kinds.count(kind)} {kind}" for kind in Kind if kind in kinds)
    return f"{len(kinds)} scan{'s' * (len(kinds) != 1)}: {listed}"


def status_text(scans: list[ScanStatus]) -> str:
    """Return the status of a cohort in lines: how many are in which state, then each scan."""
    width = max((len(scan.name) for scan in scans), default=0)
    lines = [counts({scan.name: scan.state for scan in scans})]
    for scan in scans:
        more = "; ".join(filter(None, [scan.why, scan.owner and f"by {scan.owner}", scan.progress]))
        lines.append(f"  {scan.name:<{width}}  {scan.state:<11}{'  ' * bool(more)}{more}".rstrip())
    return "\n".join(map(shown, lines))


def status_json(scans: list[ScanStatus]) -> str:
    """Return the status of a cohort for programs."""
    return json.dumps([asdict(scan) for scan in scans], indent=2)


def exit_status(scans: list[ScanStatus]) -> Exit:
    """Return 1 where a scan failed, is broken or was in work when a process died, 75 if stopped, else 0."""
    states = {scan.state for scan in scans}
    if states & {Kind.FAILED, Kind.BROKEN, Kind.SUSPECT, Kind.DIED}:
        return Exit.FAILED
    return Exit.STOPPED if Kind.STOPPED in states else Exit.DONE
