"""The work on a cohort: each group of ranks takes scan after scan, beside any number of other jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiimg.engine import lease
from mpiimg.engine.containment import MAX_TRACEBACK, Fault, refuse_systematic
from mpiimg.engine.lease import Kind, LeaseState
from mpiimg.engine.log.overall import Portion
from mpiimg.engine.mpi.agreement import Agreement, failure, on_root
from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.runtime import say
from mpiimg.engine.names import shown
from mpiimg.engine.recipe import Options, Recipe, output_names
from mpiimg.engine.run import run
from mpiimg.errors import BadInput, DamagedData, RunFailed, RunStopped
from mpiimg.neuro.bids import Scan
from mpiimg.neuro.cohort.records import Cohort, scan_state, settings_digest
from mpiimg.neuro.derivative import as_derivative, sources
from mpiimg.report.child import report_on

log = logging.getLogger("mpiimg")

#: Seconds that a group without work waits at least for scans that others have in work: some answers of SLURM.
PATIENCE = 30.0

#: After how many seconds it looks again, first and last, and by which share of the time waited.
SOONEST, LATEST, LATENESS = 0.2, 5.0, 0.05


def process_scans(
    cohort: Cohort, todo: Sequence[Scan], costs, states, sizes: Sequence[int], comm, options: Options
) -> list[str]:
    """Let groups of ranks take scan after scan until none is left; return warnings on rank 0. Collective.

    Parameters
    ----------
    cohort : Cohort
    todo : sequence of Scan
        The scans that are not done yet, in the order to take them.
    costs : mapping of str to int
        What each of them costs, by name, in any unit.
    states : mapping of str to LeaseState
        What was known of each scan when the job began, by name.
    sizes : sequence of int
        Ranks of each group.
    comm : communicator
        Of all ranks of the job.
    options : Options

    Raises
    ------
    BadInput, RunFailed, RunStopped
        On all ranks alike.
    """
    identity = on_root(comm, lambda: uuid.uuid4().hex)
    number = next(i for i in range(len(sizes)) if comm.rank < sum(sizes[: i + 1]))
    group = comm.Split(number, comm.rank)
    outer = Agreement(comm)
    # The first group tells for all: it comes by the scans that others have done.
    options = dataclasses.replace(options, progress=options.progress and number == 0)
    # Groups begin at different scans, so that they do not reach for the same ones.
    start = number % len(todo)
    queue = _Queue([*todo[start:], *todo[:start]], costs, len(sizes) == 1)
    warnings: list[str] = []
    life = lifetime()
    life.stop.look_at_chunks()
    try:
        warnings = _serve(cohort, queue, states, group, outer, options, identity)
    except (BadInput, RunFailed) as error:
        outer.record(error, f"group {number}")
    life.watchdog.rest()  # other groups may be at their scans for hours, and each is watched by itself
    outer.wait()
    group.Free()
    try:
        outer.agree()
    except RunStopped:
        raise RunStopped(
            "scans that are done stay done, those in work are marked; the same command goes on from there"
            + (f": {options.command}" if options.command else "")
        ) from None
    finally:
        outer.close()
    return [one for part in comm.gather(warnings) or () for one in part]


class _Queue(deque):
    """The scans that a group has not come by yet.

    Parameters
    ----------
    scans : sequence of Scan
    costs : mapping of str to int
    alone : bool
        Whether there is one group.
    """

    def __init__(self, scans: Sequence[Scan], costs: Mapping[str, int], alone: bool):
        super().__init__(scans)
        self._costs = {scan.name: max(1, costs.get(scan.name, 1)) for scan in scans}
        self._whole = self._left = sum(self._costs.values())
        self._alone, self._began = alone, time.monotonic()

    def popleft(self) -> Scan:
        """Take the first scan."""
        scan = super().popleft()
        self._left -= self._costs[scan.name]
        return scan

    def portion(self, scan: Scan) -> Portion:
        """Return what part of the job a scan is that was taken from it."""
        cost, whole, count = self._costs[scan.name], self._whole, len(self._costs)
        left = cost + self._left
        what = f"scan {count - len(self)} of {count}"
        return Portion(1 - left / whole, cost / whole, what, self._began, self._alone)


def _serve(
    cohort: Cohort, queue: _Queue, states, group, outer: Agreement, options: Options, identity
) -> list[str]:
    """Process one scan after the other with a group of ranks; return warnings. Collective in the group."""
    owner = {**lease.sign(identity, options.timeout), "ranks": group.size}
    longest, idle_since = 0.0, None
    warnings: list[str] = []

    def take_next() -> tuple[Scan, int] | float | None:
        """Return a scan and its lease, or the seconds after which to look again; None where that is all."""
        passed = 0
        while passed < len(queue) and not outer.interrupted():
            scan = queue[0]
            number = acquire_scan(cohort, scan, states[scan.name], owner)
            if number is None:
                # In work elsewhere: looked at again when all others have been.
                queue.rotate(-1)
                passed += 1
                continue
            queue.popleft()
            if number:
                return scan, number
        # Others have the rest in work, and leave it over if their job dies. As long as ours took.
        waited = time.monotonic() - idle_since
        if not queue or outer.interrupted() or waited > max(PATIENCE, 2 * longest):
            return None
        return min(max(SOONEST, waited * LATENESS), LATEST)

    while True:
        idle_since = time.monotonic() if idle_since is None else idle_since
        taken = on_root(group, take_next)
        if taken is None:
            return warnings
        if isinstance(taken, float):
            _pause(taken, outer)
            continue
        scan, number = taken
        started = time.monotonic()
        here = dataclasses.replace(options, portion=queue.portion(scan))
        kind, details, error, told = _process(cohort, scan, group, outer, here)
        on_root(group, warnings.extend, [f"{scan.name}: {one}" for one in told])
        gc.collect()  # the arrays of this scan hang in cycles, and the next one needs their room
        on_root(group, _end, cohort, scan, number, kind, details)
        tell(
            group, f"mpiimg: {scan.name}: {kind} after {time.monotonic() - started:.1f} s" + _reason(details)
        )
        if kind is Kind.STOPPED:
            # The other groups, too, where only this one has been told.
            outer.request_stop()
            outer.interrupted()
            return warnings
        if error is not None and (cohort.strict or getattr(error, "of_system", False)):
            raise error
        if details.get("place"):
            on_root(group, _refuse_systematic, cohort, states, scan, details)
        longest, idle_since = max(longest, time.monotonic() - started), None


def _refuse_systematic(cohort: Cohort, before: Mapping[str, LeaseState], scan: Scan, details: dict) -> None:
    """End the job where too many scans failed alike since it began, whichever group or job had them.

    Raises
    ------
    RunFailed
        They did.
    """
    faults = [Fault(scan.name, "run", details["reason"], details["place"], details["report"])]
    for one in cohort.scans:
        state = lease.read_lease(cohort.records(one))
        new = state.kind is Kind.FAILED and state.number != before[one.name].number
        if new and one.name != scan.name and state.end.get("place"):
            faults.append(
                Fault(
                    one.name, "run", str(state.end.get("reason")), str(state.end["place"]), details["report"]
                )
            )
    refuse_systematic(faults, len(cohort.scans), "scan")


def _pause(seconds: float, outer: Agreement) -> None:
    """Sleep, unless a signal or another group ends the job meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not outer.interrupted():
        time.sleep(SOONEST / 4)


def acquire_scan(cohort: Cohort, scan: Scan, before: LeaseState, owner: dict) -> int | None:
    """Acquire a scan for a group of ranks, unless another job has it.

    Parameters
    ----------
    cohort : Cohort
    scan : Scan
    before : LeaseState
        What was known of it when the job began.
    owner : dict
        As :func:`mpiimg.engine.lease.sign` gives it.

    Returns
    -------
    int or None
        The number of the lease; 0 if nothing is to be done, None if the scan is in work elsewhere.
    """
    records = cohort.records(scan)
    state = scan_state(cohort.out, records, cohort.settings)
    if state.kind is Kind.IN_WORK:
        return None
    # Of a scan that was in work when this job began, nobody here knows how it ended.
    seen = state.number == before.number and before.kind is not Kind.IN_WORK
    if state.kind is Kind.SUSPECT and not (seen and cohort.retry_suspects):
        return 0
    if state.kind in (Kind.DONE, Kind.FAILED, Kind.BROKEN, Kind.PASSED_OVER) and not seen:
        return 0  # another group or job has had it since this job began
    return lease.acquire(records, state, owner)


def _end(cohort: Cohort, scan: Scan, number: int, kind: Kind, details: dict) -> None:
    """Release a scan: note how the work on it ended, and what was written."""
    if kind is Kind.DONE:
        present = [name for name in details["files"] if (cohort.out / scan.folder / name).exists()]
        details |= {"folder": scan.folder, "files": present, "settings": settings_digest(cohort.settings)}
    lease.release(cohort.records(scan), number, kind, **details)


def _process(cohort: Cohort, scan: Scan, group, outer: Agreement, options: Options):
    """Process one scan; return how that ended, details to note, the error if there was one, and warnings."""
    scan_options = dataclasses.replace(
        options,
        out=cohort.out / scan.folder,
        records=cohort.records(scan),
        replace=True,
        label=f"{scan.name}: ",
    )
    try:
        headers = on_root(group, cohort.inspect, scan)
        recipe = _together(group, lambda: _of_dataset(cohort.recipe(scan, headers), cohort.dataset, scan))
        identity = input_identity(scan)
        outcome = run(recipe, group, scan_options, outer)
        if cohort.reports:
            is_new, label = outcome.state is not None, scan_options.label
            report_on(group, cohort.records(scan), label, always=is_new, speaks=False)
    except BadInput as error:
        return Kind.FAILED, {"reason": shown(error)}, BadInput(f"{scan.name}: {error}"), []
    except RunFailed as error:
        lines = str(error).splitlines() or [""]
        reason = shown(f"{lines[0].removesuffix(':')}: {lines[-1]}" if lines[1:] else lines[0])
        report = f"{error}\n{error.details}".strip()[-MAX_TRACEBACK:]
        failed = RunFailed(f"{scan.name}: {error}", error.place, error.of_system, error.details)
        return Kind.FAILED, {"reason": reason, "report": report, "place": error.place}, failed, []
    except DamagedData as error:
        return Kind.STOPPED, {"reason": shown(error)}, None, []
    except RunStopped:
        return Kind.STOPPED, {}, None, []
    names = [name for name in output_names(recipe) if name != recipe.record]
    return Kind.DONE, {"files": names, "inputs": identity}, None, outcome.report.get("warnings") or []


def _together(group, function: Callable[[], Any]) -> Any:
    """Return what a function returns that every rank calls alike; raise the same where it raises. Collective.

    Raises
    ------
    BadInput, RunFailed
        On all ranks alike, for whatever was raised on one.
    """
    result, error = None, None
    try:
        result = function()
    except BadInput as one:
        error = one
    except Exception as one:
        error = failure(group, "the plan", one)
    first = next((one for one in group.allgather(error) if one is not None), None)
    if first is not None:
        raise first
    return result


def _of_dataset(recipe: Recipe, dataset: Path, scan: Scan) -> Recipe:
    """Return the recipe with its small files as a derivative of the dataset has them."""
    uris = sources(dataset, scan)
    return dataclasses.replace(recipe, documents=lambda values: as_derivative(recipe.documents(values), uris))


def input_identity(scan: Scan) -> list[int]:
    """Return size and mtime_ns of a scan's image and gradients; they tell whether one changed, or is gone."""
    identity = []
    for path in filter(None, (scan.dwi, scan.bval, scan.bvec)):
        with contextlib.suppress(OSError):
            status = path.stat()
            identity += [status.st_size, status.st_mtime_ns]
    return identity


def _reason(details: Mapping[str, Any]) -> str:
    return f": {details['reason']}" if "reason" in details else ""


def tell(comm, text: str) -> None:
    """Say something, unless only errors are wanted."""
    if log.isEnabledFor(logging.WARNING):
        say(comm, text)
