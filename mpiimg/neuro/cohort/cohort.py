"""A cohort: the scans of a BIDS dataset, each done by a group of ranks, in any number of jobs at a time."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import math
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiimg.engine import lease
from mpiimg.engine.atomic import write_file
from mpiimg.engine.boxes import Partition
from mpiimg.engine.lease import Kind, LeaseState
from mpiimg.engine.log.show_plan import as_json, table
from mpiimg.engine.mpi.agreement import Agreement, on_root, stop_on_signals
from mpiimg.engine.mpi.runtime import say
from mpiimg.engine.plan import Resources, plan_recipe
from mpiimg.engine.recipe import Options, Recipe, output_names
from mpiimg.engine.run import agreed_cpu_target, compile_kernels, run
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped
from mpiimg.neuro.bids import Scan, describe_derivative, sources
from mpiimg.neuro.cohort.groups import asked_sizes, finished_after, group_sizes, min_ranks, part_of
from mpiimg.neuro.cohort.records import (
    LOGS,
    read_settings,
    scan_state,
    scan_states,
    settings_digest,
    write_settings,
)
from mpiimg.neuro.cohort.status import counts, why
from mpiimg.neuro.nifti import open_image
from mpiimg.version import __version__

log = logging.getLogger("mpiimg")

#: Scans that are named in one message.
MAX_NAMED = 10


@dataclasses.dataclass(frozen=True)
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
        Called with a scan on one rank; returns what headers say, and raises BadInput if it cannot be used.
    recipe : callable
        Called with a scan and that, on every rank of a group.
    group_size : int, optional
        Ranks per group; without it the plan decides.
    strict : bool
        One scan that fails ends the job.
    retry_suspects : bool
        Take those scans too that were in work at two deaths of a process.
    """

    dataset: Path
    out: Path
    scans: tuple[Scan, ...]
    parameters: Mapping[str, Any]
    inspect: Callable[[Scan], Any]
    recipe: Callable[[Scan, Any], Recipe]
    group_size: int | None = None
    strict: bool = False
    retry_suspects: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on beside their scan, as it is kept on disk."""
        return json.loads(
            json.dumps({"version": __version__, "parameters": dict(self.parameters)}, default=str)
        )

    def records(self, scan: Scan) -> Path:
        """Return the folder of a scan's leases, log, work and run.json."""
        return self.out / LOGS / scan.name


def run_cohort(cohort: Cohort, comm, options: Options, resources: Resources, plan: str | None = None) -> Exit:
    """Do what is missing or failed of a cohort. Collective.

    With `plan`, "table" or "json", print what would be done with `resources`, and stop.

    Raises
    ------
    BadInput
        The cohort as a whole cannot be processed; with `strict`, a scan cannot.
    RunFailed
        With `strict`, the work on a scan failed.
    RunStopped
        A signal asked for it.
    """
    agreed_cpu_target(comm)
    states = on_root(comm, _check, cohort, options.force)
    todo = [scan for scan in cohort.scans if _to_do(cohort, states[scan.name], options.force)]
    _tell(comm, f"mpiimg: {_counts(states)} before this job, {len(states) - len(todo)} of them skipped")
    changed = on_root(comm, _changed, cohort, states)
    if changed:
        _tell(comm, f"mpiimg: warning: {_named(changed)}: image changed since; --force does such scans again")
    costs = _weigh(todo, comm)
    # What was in work when a process died comes last, so that it cannot end the work on the others again.
    todo.sort(key=lambda scan: (states[scan.name].deaths, -costs[scan.name], scan.name))
    chosen = on_root(comm, _choose, cohort, todo, costs, resources, plan)
    if plan:
        say(comm, chosen.plan, sys.stdout)
        return Exit.DONE
    on_root(comm, _make_folders, cohort)
    if todo:
        _tell(comm, chosen.text)
        compile_kernels(chosen.kernels, comm)  # here, where one rank a node does it for all groups
        _work(cohort, todo, states, chosen.sizes, comm, options)
    final = on_root(comm, _states, cohort)
    _tell(comm, _summary(final))
    left_out = [name for name, state in final.items() if state.kind in (Kind.FAILED, Kind.SUSPECT)]
    return Exit.PARTIAL if left_out else Exit.DONE


def _check(cohort: Cohort, force: bool) -> dict[str, LeaseState]:
    """Check where results go, writing nothing; return the states of the selected scans."""
    out = cohort.out
    if out.resolve() == cohort.dataset.resolve() or out.resolve() in cohort.dataset.resolve().parents:
        raise BadInput(
            f"{out}: holds the dataset itself; choose another folder, such as "
            f"{cohort.dataset / 'derivatives' / 'mpiimg'}"
        )
    _check_owner(out)
    earlier = read_settings(out)
    if earlier and earlier != cohort.settings and not force:
        kinds = {state.kind for state in scan_states(out).values()}
        if kinds & {Kind.DONE, Kind.IN_WORK}:
            raise BadInput(
                f"{out}: its scans were done with {_difference(earlier, cohort.settings)}; "
                "choose another folder, or do them all again by --force"
            )
    return _states(cohort)


def _make_folders(cohort: Cohort) -> None:
    """Make what all jobs on a derivative share: folders of records, settings, its description."""
    try:
        for scan in cohort.scans:
            cohort.records(scan).mkdir(parents=True, exist_ok=True)
        for name, data in describe_derivative(cohort.dataset, cohort.out).items():
            write_file(cohort.out / name, data)
        write_settings(cohort.out, cohort.settings)
    except OSError as error:
        raise BadInput(f"{cohort.out}: cannot write there: {error.strerror}; choose another folder") from None


def _check_owner(out: Path) -> None:
    """Refuse to write among the results of another program."""
    described = out / "dataset_description.json"
    if not described.exists():
        return
    try:
        makers = [maker["Name"] for maker in json.loads(described.read_text())["GeneratedBy"]]
    except (OSError, ValueError, KeyError, TypeError):
        makers = []
    if not any(str(maker).startswith("mpiimg") for maker in makers):
        raise BadInput(f"{out}: a dataset that mpiimg did not make; choose another folder for the results")


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in which setting two differ."""
    if earlier["version"] != now["version"]:
        return f"mpiimg {earlier['version']}, and this is {now['version']}"
    before, after = earlier["parameters"], now["parameters"]
    nothing = "nothing known"
    name = next(
        name for name in sorted({*before, *after}) if before.get(name, nothing) != after.get(name, nothing)
    )
    return f"{name} {before.get(name, nothing)}, not {after.get(name, nothing)}"


def _states(cohort: Cohort) -> dict[str, LeaseState]:
    settings = cohort.settings
    return {scan.name: scan_state(cohort.out, cohort.records(scan), settings) for scan in cohort.scans}


def _to_do(cohort: Cohort, state: LeaseState, force: bool) -> bool:
    if state.kind is Kind.SUSPECT:
        return cohort.retry_suspects
    # A claim of a job that is at work now may be free by the time that this job comes to it.
    return force or state.kind is not Kind.DONE


def _weigh(todo: Sequence[Scan], comm) -> dict[str, int]:
    """Return the voxels of each scan, 0 where its header cannot be read. Ranks share the work. Collective."""
    mine = {}
    for number in Partition.even(len(todo), comm.size).owned(comm.rank):
        scan = todo[number]
        try:
            mine[scan.name] = math.prod(open_image(scan.dwi, 4).shape)
        except BadInput:
            mine[scan.name] = 0
    return {name: cost for part in comm.allgather(mine) for name, cost in part.items()}


@dataclasses.dataclass(frozen=True)
class _Choice:
    """How many ranks each group has, the same in words, the plan of the largest scan, and its kernels."""

    sizes: tuple[int, ...]
    text: str
    plan: str = ""
    kernels: tuple[str, ...] = ()


def _choose(cohort: Cohort, todo: Sequence[Scan], costs, resources: Resources, plan: str | None) -> _Choice:
    """Choose the groups by the costliest scan that can be used.

    Raises
    ------
    BadInput
        More ranks per group were asked for than there are.
    """
    if cohort.group_size is not None:
        sizes = asked_sizes(resources.ranks, cohort.group_size)
    largest = recipe = None
    for scan in sorted(todo, key=lambda scan: -costs[scan.name]):
        try:
            headers = cohort.inspect(scan)
        except BadInput:
            continue
        largest, recipe = scan, cohort.recipe(scan, headers)
        break
    if cohort.group_size is None:
        needed = min_ranks(recipe, resources) if recipe else 1
        sizes = group_sizes(resources.ranks, [max(1, costs[scan.name]) for scan in todo] or [1], needed)
    smallest, largest_group = min(sizes), max(sizes)
    each = _count(largest_group, "rank")
    if smallest < largest_group:
        each = f"{smallest} or {each}"
    text = f"mpiimg: {_count(len(todo), 'scan')} to do by {_count(len(sizes), 'group')} of {each}"
    if recipe is None:
        nothing = {"groups": list(sizes), "totals": {"peak_per_rank": 0, "seconds": 0.0}}
        return _Choice(sizes, text, json.dumps(nothing, indent=2) if plan == "json" else text)
    scan_durations = finished_after(sizes, [costs[scan.name] for scan in todo])
    scan_durations /= finished_after([smallest], [costs[largest.name]]) or 1.0
    shown = (
        _plan(plan, text, largest.name, recipe, sizes, part_of(resources, smallest), scan_durations)
        if plan
        else ""
    )
    return _Choice(sizes, text, shown, tuple(recipe.kernels))


def _plan(
    form: str,
    text: str,
    name: str,
    recipe: Recipe,
    sizes: Sequence[int],
    group: Resources,
    scan_durations: float,
) -> str:
    """Return the plan of a cohort: its groups, and what the smallest of them does with the largest scan.

    All scans together take `scan_durations` times as long as that. Programs read the memory and the time of the
    job in the totals.
    """
    plan = plan_recipe(recipe, group)
    if form == "json":
        one = json.loads(as_json(plan, group))
        job = {
            "peak_per_rank": one["totals"]["peak_per_rank"],
            "seconds": float(f"{scan_durations * one['totals']['seconds']:.4g}"),
        }
        return json.dumps({"groups": list(sizes), "largest": name, "totals": job, "plan": one}, indent=2)
    return f"{text}\nthe largest, {name}: {table(plan, group)}"


def _work(cohort: Cohort, todo: Sequence[Scan], states, sizes: Sequence[int], comm, options: Options) -> None:
    """Let each group take scans until none is left. Collective.

    Raises
    ------
    BadInput, RunFailed, RunStopped
        On all ranks alike.
    """
    identity = on_root(comm, lambda: uuid.uuid4().hex)
    number = next(i for i in range(len(sizes)) if comm.rank < sum(sizes[: i + 1]))
    group = comm.Split(number, comm.rank)
    outer = Agreement(comm)
    if len(sizes) > 1:
        options = dataclasses.replace(options, progress=False)
    # Groups begin at different scans, so as not to run after the same ones.
    start = number % len(todo)
    queue = deque([*todo[start:], *todo[:start]])
    with stop_on_signals(outer):
        try:
            _serve(cohort, queue, states, group, outer, options, identity)
        except (BadInput, RunFailed) as error:
            outer.record(error, f"group {number}")
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


def _serve(cohort: Cohort, queue: deque, states, group, outer: Agreement, options: Options, identity) -> None:
    """Take and do one scan after the other with one group of ranks. Collective in the group."""
    owner = {**lease.sign(identity, options.timeout), "ranks": group.size}

    def take_next() -> tuple[Scan, int] | None:
        passed = 0
        while passed < len(queue) and not outer.interrupted():
            scan = queue[0]
            number = _take(cohort, scan, states[scan.name], owner)
            if number is None:
                # In work elsewhere: looked at again when all others have been.
                queue.rotate(-1)
                passed += 1
                continue
            queue.popleft()
            if number:
                return scan, number
        return None

    while (taken := on_root(group, take_next)) is not None:
        scan, number = taken
        started = time.monotonic()
        kind, said, error = _do(cohort, scan, group, outer, options)
        gc.collect()  # the arrays of this scan hang in cycles, and the next one needs their room
        on_root(group, _end, cohort, scan, number, kind, said)
        _tell(group, f"mpiimg: {scan.name}: {kind} after {time.monotonic() - started:.1f} s" + _reason(said))
        if kind is Kind.STOPPED:
            # The other groups, too, where only this one has been told.
            outer.request_stop()
            outer.interrupted()
            return
        if error is not None and cohort.strict:
            raise error


def _take(cohort: Cohort, scan: Scan, before: LeaseState, owner: dict) -> int | None:
    """Claim a scan: return the number of the claim, 0 if nothing is to be done, None if it is in work."""
    records = cohort.records(scan)
    state = scan_state(cohort.out, records, cohort.settings)
    if state.kind is Kind.IN_WORK:
        return None
    # What was in work when this job began was seen to begin, not how it ended.
    seen = state.number == before.number and before.kind is not Kind.IN_WORK
    if state.kind is Kind.SUSPECT and not (seen and cohort.retry_suspects):
        return 0
    if state.kind in (Kind.DONE, Kind.FAILED) and not seen:
        return 0  # another group or job has had it since this job began
    return lease.acquire(records, state, owner)


def _end(cohort: Cohort, scan: Scan, number: int, kind: Kind, said: dict) -> None:
    """Note how a claim ended, and what was written."""
    if kind is Kind.DONE:
        there = [name for name in said["files"] if (cohort.out / scan.folder / name).exists()]
        said |= {"folder": scan.folder, "files": there, "settings": settings_digest(cohort.settings)}
    lease.release(cohort.records(scan), number, kind, **said)


def _do(cohort: Cohort, scan: Scan, group, outer: Agreement, options: Options):
    """Do one scan; return how that ended, what there is to note of it, and the error if there was one."""
    mine = dataclasses.replace(
        options,
        out=cohort.out / scan.folder,
        records=cohort.records(scan),
        force=True,
        label=f"{scan.name}: ",
    )
    try:
        if scan.problem:
            raise BadInput(scan.problem)
        headers = on_root(group, cohort.inspect, scan)
        recipe = _with_sources(cohort.recipe(scan, headers), sources(cohort.dataset, scan))
        image = _identity(scan)
        run(recipe, group, mine, outer)
    except BadInput as error:
        return Kind.FAILED, {"reason": str(error)}, BadInput(f"{scan.name}: {error}")
    except RunFailed as error:
        lines = str(error).splitlines()
        reason = f"{lines[0].removesuffix(':')}: {lines[-1]}"
        return Kind.FAILED, {"reason": reason, "report": str(error)}, RunFailed(f"{scan.name}: {error}")
    except RunStopped:
        return Kind.STOPPED, {}, None
    names = [name for name in output_names(recipe) if name != recipe.record]
    return Kind.DONE, {"files": names, "image": image}, None


def _with_sources(recipe: Recipe, uris: list[str]) -> Recipe:
    """Let the sidecars name what their images were made of."""

    def documents(values) -> dict[str, bytes]:
        files = recipe.documents(values)
        for name in [name for name in files if name.endswith(".json")]:
            fields = {**json.loads(files[name]), "Sources": uris}
            files[name] = json.dumps(fields, indent=2).encode() + b"\n"
        return files

    return dataclasses.replace(recipe, documents=documents)


def _changed(cohort: Cohort, states: Mapping[str, LeaseState]) -> list[str]:
    """Return the scans that were done from an image that is another one now."""
    done = [scan for scan in cohort.scans if states[scan.name].kind is Kind.DONE]
    return [scan.name for scan in done if states[scan.name].end["image"] != _identity(scan)]


def _identity(scan: Scan) -> list[int]:
    try:
        status = scan.dwi.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _counts(states: Mapping[str, LeaseState]) -> str:
    return counts({name: state.kind for name, state in states.items()})


def _summary(states: Mapping[str, LeaseState]) -> str:
    """Say how many scans are in which state, and why some are not done."""
    notes = []
    for name, state in states.items():
        if state.kind is Kind.IN_WORK:
            notes.append(f"mpiimg: {name}: in work by {lease.owner_text(state.owner)}")
        elif why(state):
            notes.append(f"mpiimg: {name}: {state.kind}: {why(state)}")
    if len(notes) > MAX_NAMED:
        notes[MAX_NAMED:] = [f"mpiimg: and {len(notes) - MAX_NAMED} more, which mpiimg-status lists"]
    return "\n".join([f"mpiimg: {_counts(states)}", *notes])


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _reason(said: Mapping[str, Any]) -> str:
    return f": {said['reason']}" if "reason" in said else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _tell(comm, text: str) -> None:
    """Say something, unless only errors are wanted."""
    if log.isEnabledFor(logging.WARNING):
        say(comm, text)
