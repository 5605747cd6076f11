"""A cohort: the scans of a BIDS dataset, each done by a group of ranks, in any number of jobs at a time."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiimg.engine import lease
from mpiimg.engine.atomic import make_folder, write_file
from mpiimg.engine.containment import ends_run
from mpiimg.engine.lease import Kind, LeaseState
from mpiimg.engine.log.closing import warnings_again, where_results_are
from mpiimg.engine.log.ended import note_job
from mpiimg.engine.log.show_plan import as_json, table
from mpiimg.engine.log.verdict import of_scans, verdict
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.runtime import say
from mpiimg.engine.plan import Resources, plan_recipe
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.run import agreed_cpu_target, compile_kernels
from mpiimg.errors import BadInput, Exit, RunStopped
from mpiimg.neuro.bids import Scan
from mpiimg.neuro.cohort.groups import asked_sizes, finished_after, group_sizes, min_ranks, part_of
from mpiimg.neuro.cohort.records import (
    LOGS,
    Cohort,
    maybe_otherwise,
    read_settings,
    scan_state,
    scan_states,
    write_settings,
)
from mpiimg.neuro.cohort.review import (
    MAX_NAMED,
    Review,
    kinds_of,
    lines_of,
    look_through,
    named,
    record_reviews,
)
from mpiimg.neuro.cohort.review import as_json as review_json
from mpiimg.neuro.cohort.status import counts, why
from mpiimg.neuro.cohort.work import input_identity, process_scans, tell
from mpiimg.neuro.derivative import describe_derivative

log = logging.getLogger("mpiimg")

#: A scan with which nothing is left to do.
FINISHED = (Kind.DONE, Kind.PASSED_OVER)


def run_cohort(cohort: Cohort, comm, options: Options, resources: Resources, plan: str | None = None) -> Exit:
    """Do what is missing or failed of a cohort, and note how this job ended. Collective.

    With `plan`, "table", "full" or "json", print what would be done with `resources`, and stop.

    Raises
    ------
    BadInput
        The cohort as a whole cannot be processed; with `strict`, a scan cannot.
    RunFailed
        With `strict`, the work on a scan failed.
    RunStopped
        A signal asked for it.
    """
    try:
        status = _run_cohort(cohort, comm, options, resources, plan)
    except RunStopped:
        _note_end(cohort, comm, options, Exit.STOPPED)
        raise
    if not plan:
        _note_end(cohort, comm, options, status)
    return status


def _note_end(cohort: Cohort, comm, options: Options, status: Exit) -> None:
    on_root(comm, note_job, cohort.out / LOGS, options.run_id, status)


def _run_cohort(cohort: Cohort, comm, options: Options, resources: Resources, plan: str | None) -> Exit:
    agreed_cpu_target(comm)
    states = on_root(comm, _check, cohort, options.force)
    not_done = [scan for scan in cohort.scans if _to_do(cohort, states[scan.name], options.force)]
    reviews = look_through(cohort, not_done, comm)
    todo = [scan for scan in not_done if reviews[scan.name].kind is Kind.TO_DO]
    kinds = kinds_of(states, reviews)
    tell(comm, f"mpiimg: {counts(kinds)} before this job, {len(states) - len(todo)} of them skipped")
    lines = [] if plan else lines_of(reviews, cohort.without, states)
    if lines:
        tell(comm, "\n".join(lines))
    if cohort.strict:
        _refuse_broken(reviews)
    changed = on_root(comm, _changed, cohort, states)
    if changed:
        text = "image or gradients changed since; --force does such scans again"
        tell(comm, f"mpiimg: warning: {named(changed)}: {text}")
    costs = {name: review.voxels for name, review in reviews.items()}
    # What was in work when a process died comes last, so that it cannot end the work on the others again.
    todo.sort(key=lambda scan: (states[scan.name].deaths, -costs[scan.name], scan.name))
    chosen = on_root(comm, _choose, cohort, todo, costs, resources, plan)
    if plan:
        say(comm, _with_reviews(chosen, plan, kinds, reviews, cohort.without), sys.stdout)
        return Exit.DONE
    on_root(comm, _make_folders, cohort)
    on_root(comm, record_reviews, cohort, states, reviews, options.timeout)
    warnings: list[str] = []
    if todo:
        tell(comm, chosen.text)
        compile_kernels(chosen.kernels, comm)  # here, where one rank per node does it for all groups
        warnings = process_scans(cohort, todo, costs, states, chosen.sizes, comm, options)
    final = on_root(comm, _states, cohort)
    tell(comm, _summary(final))
    for line in (*warnings_again(warnings), *where_results_are(cohort.out, cohort.out / LOGS)):
        tell(comm, f"mpiimg: {line}")
    # What another job has in work is not done either: that job may yet die. Nor is another image's result.
    outdated = {*changed} - {scan.name for scan in todo}
    done = all(state.kind in FINISHED for state in final.values()) and not outdated
    return Exit.DONE if done else Exit.PARTIAL


def _check(cohort: Cohort, force: bool) -> dict[str, LeaseState]:
    """Check where results go, writing nothing; return the states of the selected scans."""
    out = cohort.out
    if out.resolve() == cohort.dataset.resolve() or out.resolve() in cohort.dataset.resolve().parents:
        raise BadInput(
            f"{out}: holds the dataset itself; choose another folder, such as "
            f"{cohort.dataset / 'derivatives' / 'mpiimg'}"
        )
    _check_owner(out)
    try:
        earlier = read_settings(out)
    except BadInput as error:
        if not force:
            _check_scans(cohort)
        log.warning("warning: %s", error)
        earlier = {}
    if earlier and earlier != cohort.settings and not force:
        kinds = {state.kind for state in scan_states(out).values()}
        if kinds & {Kind.DONE, Kind.IN_WORK}:
            raise BadInput(
                f"{out}: its scans were done with {_difference(earlier, cohort.settings)}; "
                "choose another folder, or do them all again by --force"
            )
    return _states(cohort)


def _check_scans(cohort: Cohort) -> None:
    """Refuse to replace what was done with other settings, where only the scans themselves still say so."""
    others = maybe_otherwise(cohort.out, cohort.settings)
    if others:
        raise BadInput(
            f"{cohort.out}: the record of its settings is damaged, and {named(others)} were done with other "
            "ones than now, or are in work; wait until no job is at work there, choose another folder, or do "
            "all scans again by --force"
        )


def _make_folders(cohort: Cohort) -> None:
    """Make what all jobs on a derivative share: folders of records, settings, its description."""
    try:
        for scan in cohort.scans:
            make_folder(cohort.records(scan))
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
    if earlier.get("version") != now["version"]:
        return f"mpiimg {earlier.get('version')}, and this is {now['version']}"
    before, after = earlier.get("parameters", {}), now["parameters"]
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


def _refuse_broken(reviews: Mapping[str, Review]) -> None:
    """Refuse to begin where a scan is broken, which would end the job in the middle.

    Raises
    ------
    BadInput
        One is.
    """
    for name, review in reviews.items():
        if review.kind is Kind.BROKEN:
            raise BadInput(f"{name}: {review.reason}")


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Ranks of each group, also in words; the plan of the largest scan, its kernels; the verdict."""

    sizes: tuple[int, ...]
    text: str
    plan: str = ""
    kernels: tuple[str, ...] = ()
    verdict: str = "fits: there is nothing to do"


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
    needed = 1
    for scan in sorted(todo, key=lambda scan: -costs[scan.name]):
        try:
            made = cohort.recipe(scan, cohort.inspect(scan))
            needed = min_ranks(made, resources)
        except Exception as error:  # likewise
            if ends_run(error):
                raise
            continue
        largest, recipe = scan, made
        break
    if cohort.group_size is None:
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
    head = shown = ""
    if plan:
        group = part_of(resources, smallest)
        head, shown = _plan(plan, text, largest.name, recipe, sizes, group, scan_durations)
    return _Choice(sizes, text, shown, tuple(recipe.kernels), head)


def _plan(
    form: str,
    text: str,
    name: str,
    recipe: Recipe,
    sizes: Sequence[int],
    group: Resources,
    scan_durations: float,
) -> tuple[str, str]:
    """Return what a cohort comes to; and its groups, with what the smallest does with the largest scan.

    All scans together take `scan_durations` times as long as that. Programs read the memory and the time of
    the job in the totals.
    """
    plan = plan_recipe(recipe, group)
    if form == "json":
        one = json.loads(as_json(plan, group))
        job = {
            "peak_per_rank": one["totals"]["peak_per_rank"],
            "seconds": float(f"{scan_durations * one['totals']['seconds']:.4g}"),
        }
        made = {"groups": list(sizes), "largest": name, "totals": job, "plan": one}
        return "", json.dumps(made, indent=2)
    duration = scan_durations * sum(planned.seconds for _, planned in plan)
    head = of_scans(verdict(plan, group), duration, sum(sizes))
    return head, f"{text}\nthe largest, {name}:\n{table(plan, group, full=form == 'full')}"


def _with_reviews(
    chosen: _Choice, form: str, kinds: Mapping[str, Kind], reviews, without: Sequence[str]
) -> str:
    """Return a plan with what became of each scan when the study was looked through."""
    if form == "json":
        return json.dumps({**json.loads(chosen.plan), **review_json(kinds, reviews, without)}, indent=2)
    return "\n".join([chosen.verdict, f"mpiimg: {counts(kinds)}", *lines_of(reviews, without), chosen.plan])


def _changed(cohort: Cohort, states: Mapping[str, LeaseState]) -> list[str]:
    """Return the scans that were done from an image or gradients that are others now."""
    done = [scan for scan in cohort.scans if states[scan.name].kind is Kind.DONE]
    return [scan.name for scan in done if states[scan.name].end.get("inputs") != input_identity(scan)]


def _summary(states: Mapping[str, LeaseState]) -> str:
    """Say how many scans are in which state, and why some are not done."""
    notes = []
    for name, state in states.items():
        if state.kind is Kind.IN_WORK:
            notes.append(
                f"mpiimg: {name}: in work by {lease.owner_text(state.owner)}, and not done yet; "
                "the same command does it if that job does not"
            )
        elif state.kind is not Kind.PASSED_OVER and why(state):
            notes.append(f"mpiimg: {name}: {state.kind}: {why(state)}")
    if len(notes) > MAX_NAMED:
        notes[MAX_NAMED:] = [f"mpiimg: and {len(notes) - MAX_NAMED} more, which mpiimg-status lists"]
    return "\n".join([f"mpiimg: {counts({name: state.kind for name, state in states.items()})}", *notes])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
