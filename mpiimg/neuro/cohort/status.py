"""What has become of each scan of a cohort, from the files that its jobs leave."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiimg.engine.lease import Kind, LeaseState, owner_text, read_lease
from mpiimg.engine.log.events import runs_in
from mpiimg.engine.log.run_status import RunReader, RunStatus
from mpiimg.engine.log.status_text import painted
from mpiimg.engine.log.wording import about, span
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, Exit
from mpiimg.neuro.cohort.records import LOGS, read_settings, scan_states

#: How the times in leases are written.
_STAMP = "%Y-%m-%dT%H:%M:%S%z"

#: A scan in one of these states is over, as far as the jobs at work are concerned.
_OVER = (Kind.DONE, Kind.FAILED, Kind.BROKEN, Kind.SUSPECT)


@dataclass(frozen=True)
class ScanStatus:
    """A scan: its state, what there is to say of that, who has it in work, and how far that is.

    `percent` is 100 for a scan that is done, `idle` the seconds since a scan in work has made progress, and
    `seconds` what one took that is done.
    """

    name: str
    state: str
    why: str = ""
    owner: str = ""
    progress: str = ""
    percent: float = 0.0
    idle: float | None = None
    stalled: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class CohortStatus:
    """The scans of a cohort, and all of them together: how far that is, and what time is left."""

    scans: Sequence[ScanStatus]
    counts: Mapping[str, int]
    percent: float
    seconds_left: float | None
    stalled: bool


def is_cohort(out: Path) -> bool:
    """Say whether scans of a dataset are processed into this folder."""
    return bool(read_settings(out))


class CohortReader:
    """Reads the status of a cohort again and again; of runs in work only what has come since the last time.

    Parameters
    ----------
    out : Path
        The folder of the derivative.
    """

    def __init__(self, out: Path):
        self._out = out
        self._runs: dict[Path, RunReader] = {}

    def status(self) -> CohortStatus:
        """Return the status of every scan that a job was asked for, by name, and of all of them."""
        scans = [self._scan(name, state) for name, state in scan_states(self._out).items()]
        kinds = [scan.state for scan in scans]
        counted = [scan for scan in scans if scan.state != Kind.PASSED_OVER]
        shares = [1.0 if scan.state in _OVER else scan.percent / 100 for scan in counted]
        have = sum(shares)
        took = [scan.seconds for scan in scans if scan.seconds is not None]
        at_work = kinds.count(Kind.IN_WORK)
        left = None
        if took and at_work:
            left = round(sum(took) / len(took) * (len(counted) - have) / at_work, 1)
        percent = round(100 * have / len(counted), 1) if counted else 100.0
        return CohortStatus(
            scans,
            {str(kind): kinds.count(kind) for kind in Kind},
            percent,
            left,
            any(scan.stalled for scan in scans),
        )

    def _scan(self, name: str, state: LeaseState) -> ScanStatus:
        if state.kind is Kind.IN_WORK:
            run = self._run(self._out / LOGS / name)
            owner = owner_text(state.owner)
            if run is None:
                return ScanStatus(name, str(state.kind), owner=owner)
            return ScanStatus(
                name,
                str(state.kind),
                owner=owner,
                progress=_progress(run),
                percent=run.percent,
                idle=run.idle,
                stalled=run.stalled,
            )
        seconds = _took(state) if state.kind is Kind.DONE else None
        percent = 100.0 if state.kind is Kind.DONE else 0.0
        return ScanStatus(name, str(state.kind), why=why(state), percent=percent, seconds=seconds)

    def _run(self, records: Path) -> RunStatus | None:
        """Return the status of the run of a scan; None where it has not begun to say anything."""
        with contextlib.suppress(BadInput, IndexError):
            events = runs_in(records)[-1]
            return self._runs.setdefault(events, RunReader(events)).status()
        return None


def done_records(out: Path) -> list[Path]:
    """Return the records of the scans that were done, also of those whose results were removed since."""
    folders = [out / LOGS / name for name in scan_states(out)]
    return [one / "run.json" for one in folders if (one / "run.json").exists() or _was_done(one)]


def _was_done(records: Path) -> bool:
    return read_lease(records).kind is Kind.DONE


def _took(state: LeaseState) -> float | None:
    """Return the seconds that a scan was in work for; None where its lease does not say."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        began, ended = (
            time.mktime(time.strptime(stamp, _STAMP))
            for stamp in (state.owner["claimed"], state.end["ended"])
        )
        return max(0.0, ended - began)
    return None


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


def _progress(run: RunStatus) -> str:
    """Say which stage a scan is at, and how far that is."""
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


def status_text(
    cohort: CohortStatus, colour: bool = False, height: int | None = None, width: int | None = None
) -> str:
    """Return the status of a cohort in lines: how many are in which state, then each scan.

    Parameters
    ----------
    cohort : CohortStatus
    colour : bool
        What has failed or stalled is red.
    height, width : int, optional
        Lines and columns that there is room for: scans that stall come first, then those in work.
    """
    scans = list(cohort.scans)
    if height is not None:
        scans.sort(key=lambda scan: (not scan.stalled, scan.state != Kind.IN_WORK, not scan.why))
    room = len(scans) if height is None else max(3, height - 3)
    cut = width and width - 1
    lines = [_head(cohort)[:cut]]
    longest = max((len(scan.name) for scan in scans[:room]), default=0)
    for scan in scans[:room]:
        more = "; ".join(
            filter(None, [scan.why, scan.owner and f"by {scan.owner}", scan.progress, _stall(scan)])
        )
        line = shown(f"  {scan.name:<{longest}}  {scan.state:<11}{'  ' * bool(more)}{more}".rstrip())
        lines.append(painted(line[:cut], colour and (scan.stalled or scan.state in _BAD)))
    if room < len(scans):
        lines.append(f"  and {len(scans) - room} more")
    return "\n".join(lines)


def in_a_line(cohort: CohortStatus) -> str:
    """Return the status of a cohort in a line, for a log."""
    stalled = [scan.name for scan in cohort.scans if scan.stalled]
    more = f"; no progress on {', '.join(stalled[:3])}" if stalled else ""
    return shown(f"{_head(cohort)}{more}")


def _head(cohort: CohortStatus) -> str:
    text = counts({scan.name: scan.state for scan in cohort.scans})
    if cohort.counts[Kind.IN_WORK]:
        text += f"; {int(cohort.percent)} % in all"
        if cohort.seconds_left is not None:
            text += f", {about(cohort.seconds_left)} left"
    return text


def _stall(scan: ScanStatus) -> str:
    return f"no progress for {span(scan.idle)}" if scan.stalled and scan.idle is not None else ""


#: Scans in these states need somebody to look at them.
_BAD = (Kind.FAILED, Kind.BROKEN, Kind.SUSPECT, Kind.DIED)


def exit_status(cohort: CohortStatus) -> Exit:
    """Return 1 where a scan failed, is broken or was in work when a process died, 75 if stopped, else 0."""
    states = {scan.state for scan in cohort.scans}
    if states & set(_BAD):
        return Exit.FAILED
    return Exit.STOPPED if Kind.STOPPED in states else Exit.DONE
