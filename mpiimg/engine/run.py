"""Run a recipe: make its folders, execute it on all ranks, publish the results."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mpiimg.engine import rates
from mpiimg.engine.atomic import make_folder
from mpiimg.engine.checkpoint import keep_marks
from mpiimg.engine.executor import Executor
from mpiimg.engine.fingerprint import changes, check_unchanged, fingerprint, read_fingerprint, seen
from mpiimg.engine.finished import LEFT_OUT, Earlier, earlier_run, finished
from mpiimg.engine.lease import CLAIMS, Kind, WorkLease, acquire_work, holding, remove_work
from mpiimg.engine.log.activity import activity_files, last_activity
from mpiimg.engine.log.ended import note_already_done
from mpiimg.engine.log.events import events_folder
from mpiimg.engine.log.show_plan import beside_actual
from mpiimg.engine.mpi.agreement import Agreement, on_root, safe_point
from mpiimg.engine.mpi.lifetime import lifetime, living
from mpiimg.engine.mpi.nodes import node_count, once_per_node
from mpiimg.engine.mpi.runtime import say
from mpiimg.engine.plan import Resources, check
from mpiimg.engine.proof import prove
from mpiimg.engine.raw import free_bytes
from mpiimg.engine.recipe import (
    Options,
    Recipe,
    output_names,
    records_folder,
    staged_bytes,
    work_folder,
)
from mpiimg.engine.records import DamagedRecord, read_record, write_record
from mpiimg.engine.results import OUTPUTS, prepare_outputs, publish
from mpiimg.engine.stage import Compute
from mpiimg.engine.staged_file import remove_staged
from mpiimg.engine.system_errors import ADVICE, OF_PLACE
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

log = logging.getLogger("mpiimg")

_S = TypeVar("_S")

#: Name of the file in the work folder that says what its run was asked for.
REQUEST = "request"


@dataclass(frozen=True)
class _Folders:
    """The folders of a run.

    Parameters
    ----------
    work : Path
        Where staged arrays, marks and unfinished results lie.
    events : Path
    new : tuple of Path
        The folders that did not exist before, inner ones first.
    lease : WorkLease
        Of the work folder.
    earlier : str
        The run that the record that was there before is of; empty where there was none.
    """

    work: Path
    events: Path
    new: tuple[Path, ...]
    lease: WorkLease
    earlier: str = ""

    def remove_new(self) -> None:
        """Remove the new folders, for a run of which nothing is to stay."""
        for folder in self.new:
            if folder == self.events:
                shutil.rmtree(folder, ignore_errors=True)
            # Of two runs that begin at once both may have made it; then the marks of the other one stay.
            elif folder == self.work and self.lease.is_first:
                remove_work(folder)
        _remove_empty(self.new)
        self.lease.release(Kind.FAILED)


@dataclass(frozen=True)
class Outcome(Generic[_S]):
    """What a run came to.

    Parameters
    ----------
    state : object
        What the generator of the stages returned; None where there was nothing left to do.
    left_out : mapping of str to str
        Units that could not be used, and why.
    report : mapping
        What run.json says.
    """

    state: _S | None
    left_out: Mapping[str, str]
    report: Mapping[str, Any]

    @property
    def status(self) -> Exit:
        """The exit status of a tool that did just this."""
        return Exit.PARTIAL if self.left_out else Exit.DONE


def run(recipe: Recipe[_S], comm, options: Options, outer: Agreement | None = None) -> Outcome[_S]:
    """Run a recipe; the results are in `options.out`. Collective.

    Where these very results are there already nothing is done, and that is said.

    Parameters
    ----------
    recipe : Recipe
    comm : communicator
        Of the ranks.
    options : Options
    outer : Agreement, optional
        Of the whole job, where `comm` is one group of its ranks, which has a lease of its scan.

    Raises
    ------
    BadInput
        The input cannot be used, or another run is at work there; nothing stays behind.
    RunFailed
        A rank raised; the work folder stays, and the same command goes on from there.
    RunStopped
        A signal asked for it; likewise.
    """
    with living(options.timeout):
        return _run(recipe, comm, options, outer)


def _run(recipe: Recipe[_S], comm, options: Options, outer: Agreement | None) -> Outcome[_S]:
    if outer is None:
        safe_point(comm)
    if options.in_memory and recipe.staged_outputs:
        raise BadInput(f"--in-memory: the result of {recipe.tool} is a staged file; leave the option out")
    earlier = on_root(comm, finished, recipe, options, comm.size, outer is not None)
    if earlier is not None:
        return _already_done(earlier, recipe, comm, options)
    run_id = on_root(comm, lambda: options.run_id or uuid.uuid4().hex)
    options = dataclasses.replace(options, run_id=run_id)
    target = agreed_cpu_target(comm)
    resources = Resources(
        comm.size, options.memory, options.in_memory, node_count(comm), on_root(comm, rates.load_rates)
    ).of(recipe)
    on_root(comm, check, recipe, resources)  # an error in the plan is one of this run
    on_root(comm, prove, recipe, options)
    folders = on_root(comm, _prepare, recipe, options, fingerprint(recipe, target), outer is not None)
    with holding(folders.lease, comm):
        before = on_root(comm, seen, recipe)
        executor = Executor(recipe, comm, options, folders.work, target, resources, folders.events, outer)
        report = _carry_out(recipe, comm, options, folders, executor, before)
    outcome = Outcome(executor.state, executor.left_out, report)
    executor.logbook.end(outcome.status)
    on_root(comm, _clean, recipe, options, folders, len(outcome.left_out))
    if log.isEnabledFor(logging.WARNING):
        for line in beside_actual(report["stages"], every=log.isEnabledFor(logging.INFO)):
            say(comm, f"mpiimg: {options.label}{line}")
    return outcome


def _already_done(earlier: Earlier, recipe: Recipe, comm, options: Options) -> Outcome:
    """Say that there was nothing left to do."""
    record, left_out = earlier.record, earlier.record.get("left_out") or {}
    outcome = Outcome(None, left_out, record)
    events = events_folder(records_folder(options), recipe.record)
    on_root(comm, note_already_done, events, options.run_id, outcome.status)
    if log.isEnabledFor(logging.WARNING):
        say(comm, f"mpiimg: {options.label}{earlier.line(options.out)}")
    return outcome


def _carry_out(recipe: Recipe, comm, options: Options, folders: _Folders, executor: Executor, before) -> dict:
    """Execute a recipe and publish its results, if inputs are as they were `before`; return the report.

    Collective. Raises what :func:`run` does, with the end of the run noted.
    """
    try:
        executor.logbook.start(recipe, recipe.expected)
        compile_kernels(recipe.kernels, comm, executor.agreement)
        lifetime().stop.look_at_chunks()
        executor.execute()
        report = executor.report()
        executor.close()  # no rank may hold a staged result open while another describes it
        on_root(comm, check_unchanged, recipe, before)
        on_root(comm, _check_record, recipe, options, folders.earlier)
        return publish(
            recipe,
            comm,
            options,
            folders.work,
            executor.state,
            executor.written,
            executor.arrays.placements,
            report,
        )
    except BadInput as error:
        executor.close()
        executor.logbook.end(Exit.BAD_INPUT, str(error))
        comm.Barrier()  # no rank may still be writing in the folders that are removed
        on_root(comm, folders.remove_new)
        raise
    except RunStopped as error:
        executor.close()
        how = "; ".join(filter(None, [str(error), _how_to_go_on(options, folders.work)]))
        executor.logbook.end(Exit.STOPPED, how)
        raise type(error)(how) from None
    except RunFailed as error:
        executor.close()
        executor.logbook.end(Exit.FAILED, str(error), error.details)
        raise
    except Exception as error:
        executor.logbook.error(error)
        executor.abandon()
        executor.logbook.end(Exit.FAILED, f"aborted: {error}")
        raise


def _recorded_run(recipe: Recipe, options: Options) -> str:
    """Return the run that the record in the folder of records is of; empty where there is none."""
    try:
        record = read_record(records_folder(options) / recipe.record)
    except (DamagedRecord, OSError):
        return "damaged"
    return str(record.get("run", "unknown")) if record else ""


def _check_record(recipe: Recipe, options: Options, earlier: str) -> None:
    """Refuse to take away the record of a run that has come to its end since this one began."""
    if not options.force and _recorded_run(recipe, options) != earlier:
        raise RunFailed(
            f"{options.out}: another run has put its results and its record there meanwhile; to replace "
            "them, give the same command with --force, which goes on from here"
        )


def _how_to_go_on(options: Options, work: Path) -> str:
    again = f": {options.command}" if options.command else ""
    if options.in_memory:
        return f"the run was in memory: it starts over{again}"
    return f"everything done so far is marked in {work}; the same command goes on from there{again}"


def agreed_cpu_target(comm) -> str:
    """Return the CPU that all ranks compile for. Collective.

    Raises
    ------
    BadInput
        They differ, and so would their results.
    """
    from mpiimg.kernels.jit import cpu_target

    targets = sorted(set(comm.allgather(cpu_target())))
    if len(targets) > 1:
        raise BadInput(
            f"the nodes have different CPUs ({', '.join(targets)}), whose results differ in the last bit; "
            "add --portable, or ask for nodes of one kind"
        )
    return targets[0]


def compile_kernels(kernels: Collection[str], comm, agreement: Agreement | None = None) -> None:
    """See to it that `kernels` lie in the cache of numba on each node, unless asked to stop. Collective.

    Parameters
    ----------
    kernels : collection of str
        "module:function" of functions that compile them.
    comm : communicator
    agreement : Agreement, optional
        Of these ranks.

    Raises
    ------
    RunStopped
        A signal came before the first stage.
    """
    if agreement is None:
        agreement = Agreement(comm)
        try:
            compile_kernels(kernels, comm, agreement)
        finally:
            agreement.close()
        return
    from mpiimg.engine import precompile

    if log.isEnabledFor(logging.WARNING):
        for problem in precompile.untrusted() if kernels else ():
            say(comm, f"mpiimg: warning: compiled kernels are not taken from there: {problem}")
    if kernels and any(comm.allgather(len(precompile.missing(kernels)) > 0)):
        if log.isEnabledFor(logging.WARNING):
            say(comm, "mpiimg: compiling kernels on one rank of each node, once: up to a minute")
        once_per_node(
            comm,
            lambda: precompile.compile_apart(precompile.missing(kernels), agreement.interrupted),
            "compiling kernels",
            agreement.interrupted,
        )
    try:
        agreement.agree()
    except RunStopped:
        raise RunStopped(lifetime().how_to_begin_anew) from None


def _prepare(recipe: Recipe, options: Options, current: dict, claimed: bool) -> _Folders:
    """Make the folders of a run and check what goes into them; its job may have `claimed` the whole scan."""
    records = records_folder(options)
    work = work_folder(recipe, options)
    events = events_folder(records, recipe.record)
    places = (events, work, *work.parents, options.out, *options.out.parents)
    new = tuple(folder for folder in dict.fromkeys(places) if not folder.exists())
    try:
        make_folder(options.out)
        make_folder(work)
        lease = WorkLease(work) if claimed else acquire_work(work, events, options.out, options.timeout)
    except OSError as error:
        _remove_empty((work / CLAIMS, *new))
        _refuse_place(options, error)
        raise
    folders = _Folders(work, events, new, lease, _recorded_run(recipe, options))
    try:
        _furnish(recipe, options, folders, current)
    except BadInput:
        folders.remove_new()
        raise
    except OSError as error:
        folders.remove_new()
        _refuse_place(options, error)
        raise
    return folders


def _refuse_place(options: Options, error: OSError) -> None:
    """Refuse a folder of results that cannot be one; a disk that is full now may not be so later."""
    if error.errno not in ADVICE.keys() - OF_PLACE:
        raise BadInput(f"{options.out}: cannot write there: {error.strerror}; choose another --out") from None


def _remove_empty(folders: Collection[Path]) -> None:
    """Remove folders that are empty; others may have put something into them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _furnish(recipe: Recipe, options: Options, folders: _Folders, current: dict) -> None:
    """Check that results can be written, and prepare the folders, once the lease is there."""
    work, events = folders.work, folders.events
    record = work / REQUEST
    earlier = read_fingerprint(record)
    names = output_names(recipe)
    _refuse_overwrite(recipe, options, names)
    may_replace = options.force or options.replace or earlier == current
    if not may_replace and not _takes_up(work, earlier, current):
        _refuse_present(recipe, options, names, current)
    (work / "journal").mkdir(exist_ok=True)
    prepare_outputs(work, names)
    events.mkdir(exist_ok=True)
    if died_at := last_activity(events):
        log.warning("%sthe last run here died: %s", options.label, died_at)
    for of_rank in [*events.glob("*.jsonl"), *activity_files(events)]:
        of_rank.unlink()
    write_record(record, current)
    (work / LEFT_OUT).unlink(missing_ok=True)
    needed = 0 if options.in_memory or earlier == current else staged_bytes(recipe)
    free = free_bytes(work)
    if needed > free:
        raise BadInput(
            f"{options.out}: {free >> 20} MB free, the work file may take {needed >> 20} MB; "
            "free some, choose another --out, or use --in-memory"
        )
    if earlier not in (None, current):
        what = changes(earlier, current)
        log.warning("%s: since the last run changed: %s; what depends on it is made again", work, what)


def _refuse_present(recipe: Recipe, options: Options, names: Collection[str], current: dict) -> None:
    """Refuse to overwrite results that are there, and say what they are of."""
    record = records_folder(options) / recipe.record
    places = [*(options.out / name for name in names if name != recipe.record), record]
    present = next((path for path in places if path.exists()), None)
    if present is not None:
        why = earlier_run(recipe, options, current, 0).why_not
        raise BadInput(
            f"{present} exists; use --force to overwrite, or another --out" + (f" ({why})" if why else "")
        )


def _refuse_overwrite(recipe: Recipe, options: Options, names: Collection[str]) -> None:
    """Refuse to replace an input by a result, with --force too."""
    inputs = {path.resolve() for path in recipe.files}
    for name in names:
        if (options.out / name).resolve() in inputs:
            raise BadInput(
                f"{options.out / name}: is an input, which the result would replace; choose another --out"
            )


def _takes_up(work: Path, earlier: dict | None, current: dict) -> bool:
    """Say whether a run takes up what the same command had to leave out: then its results are replaced."""
    same = earlier is not None and all(earlier.get(key) == current[key] for key in ("tool", "parameters"))
    return same and (work / LEFT_OUT).exists()


def _clean(recipe: Recipe, options: Options, folders: _Folders, left_out: int) -> None:
    """Remove the work folder; but keep what serves a run that takes up what this one left out."""
    rerun_stages = [stage for stage in recipe.expected if stage.retried]
    if left_out and rerun_stages and not options.in_memory:
        (folders.work / LEFT_OUT).touch()
        if not options.keep_work:
            kept = [stage for stage in rerun_stages if isinstance(stage, Compute) and _is_kept(stage)]
            size = _keep_only(kept, folders.work)
            log.warning(
                "%s keeps what was made of the others (%d MB), so that the same command takes up only the %d "
                "left out; remove it when you need it no longer",
                folders.work,
                size >> 20,
                left_out,
            )
    elif not options.keep_work:
        remove_work(folders.work)
    folders.lease.release(Kind.DONE)


def _is_kept(stage: Compute) -> bool:
    """Say whether the arrays of a stage serve a run that takes up what was left out."""
    return stage.unusable is not None or stage.units.kept


def _keep_only(stages: list[Compute], work: Path) -> int:
    """Remove all but the arrays of `stages` and their marks; return the bytes that stay."""
    arrays = [work / f"{array.name}.h5" for stage in stages for array in stage.arrays]
    for path in work.glob("*.h5"):
        if path not in arrays:
            remove_staged(path)
    for path in work.glob("*.sums"):
        path.unlink()  # a rerun sums anew what it finds sound
    shutil.rmtree(work / OUTPUTS, ignore_errors=True)
    keep_marks(work / "journal", [stage.name for stage in stages])
    return sum(path.stat().st_size for path in arrays)
