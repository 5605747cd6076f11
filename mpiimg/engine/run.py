"""Run a recipe: make its folders, execute it on all ranks, publish the results."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mpiimg.engine import rates
from mpiimg.engine.executor import Executor
from mpiimg.engine.fingerprint import check_unchanged, fingerprint, seen
from mpiimg.engine.finished import Earlier, finished
from mpiimg.engine.folders import Folders, clean, make_folders, recorded_run
from mpiimg.engine.lease import holding
from mpiimg.engine.log.closing import closing_lines
from mpiimg.engine.log.ended import note_already_done
from mpiimg.engine.log.events import events_folder
from mpiimg.engine.log.show_plan import beside_actual
from mpiimg.engine.mpi.agreement import Agreement, on_root, safe_point
from mpiimg.engine.mpi.lifetime import lifetime, living
from mpiimg.engine.mpi.nodes import node_count, once_per_node
from mpiimg.engine.mpi.runtime import say
from mpiimg.engine.placed import PlacedArrays
from mpiimg.engine.plan import Resources, check
from mpiimg.engine.proof import prove
from mpiimg.engine.recipe import (
    Options,
    Recipe,
    records_folder,
)
from mpiimg.engine.results import publish
from mpiimg.engine.staging_place import check_shared
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

log = logging.getLogger("mpiimg")

_S = TypeVar("_S")


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


def run(
    recipe: Recipe[_S],
    comm,
    options: Options,
    outer: Agreement | None = None,
    collect: Callable[[PlacedArrays], object] | None = None,
) -> Outcome[_S]:
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
    collect : callable, optional
        Called on every rank as collect(arrays) when all stages have run, before the arrays are closed; of
        them are left what the last stage reads and writes, and those that the recipe keeps. It is not called
        where there was nothing left to do.

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
        try:
            return _run(recipe, comm, options, outer, collect)
        except BadInput as error:
            error.args = (options.worded(str(error)),)
            raise


def _run(
    recipe: Recipe[_S],
    comm,
    options: Options,
    outer: Agreement | None,
    collect: Callable[[PlacedArrays], object] | None,
) -> Outcome[_S]:
    if outer is None:
        safe_point(comm)
    if options.in_memory and recipe.staged_outputs:
        raise BadInput(f"--in-memory: the result of {recipe.tool} is a staged file; leave the option out")
    _check_work_dir(recipe, options)
    earlier = on_root(comm, finished, recipe, options, comm.size, outer is not None)
    if earlier is not None:
        return _already_done(earlier, recipe, comm, options)
    run_id = on_root(comm, lambda: options.run_id or uuid.uuid4().hex)
    options = dataclasses.replace(options, run_id=run_id)
    target = agreed_cpu_target(comm)
    resources = Resources(
        comm.size, options.memory, options.in_memory, node_count(comm), on_root(comm, rates.load_rates)
    ).of(recipe)
    seconds = on_root(comm, check, recipe, resources)  # an error in the plan is one of this run
    on_root(comm, prove, recipe, options)
    folders = on_root(comm, make_folders, recipe, options, fingerprint(recipe, target), outer is not None)
    with holding(folders.lease, comm):
        if options.work_dir is not None:
            _check_shared(folders, options, comm)
        before = on_root(comm, seen, recipe)
        executor = Executor(recipe, comm, options, folders, target, resources, outer)
        executor.logbook.start(recipe, recipe.expected, seconds)
        report = _carry_out(recipe, comm, options, folders, executor, before, collect)
    outcome = Outcome(executor.state, executor.left_out, report)
    executor.logbook.end(outcome.status)
    on_root(comm, clean, recipe, options, folders, len(outcome.left_out))
    if log.isEnabledFor(logging.WARNING) and not options.quiet:
        for line in _closing(recipe, options, report):
            say(comm, f"mpiimg: {options.label}{line}")
    return outcome


def _closing(recipe: Recipe, options: Options, report: Mapping[str, Any]) -> list[str]:
    """Return the last lines of a run; a scan of a cohort says where its results are with all others."""
    every = log.isEnabledFor(logging.INFO)
    if options.portion.what:
        return beside_actual(report["stages"], every)
    return closing_lines(report, options.out, records_folder(options) / recipe.record, every)


def _check_work_dir(recipe: Recipe, options: Options) -> None:
    """Refuse a folder for staged arrays where none are staged, or where they are the result."""
    if options.work_dir is not None and options.in_memory:
        raise BadInput("--work-dir: with --in-memory nothing is staged on disk; give one of them")
    if options.work_dir is not None and recipe.staged_outputs:
        raise BadInput(
            f"--work-dir: the result of {recipe.tool} is a staged file, which lies where it is to be; "
            "leave the option out"
        )


def _check_shared(folders: Folders, options: Options, comm) -> None:
    """Leave nothing behind where not all ranks see the folder for staged arrays. Collective."""
    try:
        check_shared(folders.staging, options.work_dir, comm)
    except BadInput:
        comm.Barrier()  # no rank may still look at the folder that is removed
        on_root(comm, folders.remove_new)
        raise


def _already_done(earlier: Earlier, recipe: Recipe, comm, options: Options) -> Outcome:
    """Say that there was nothing left to do."""
    record, left_out = earlier.record, earlier.record.get("left_out") or {}
    outcome = Outcome(None, left_out, record)
    events = events_folder(records_folder(options), recipe.record)
    on_root(comm, note_already_done, events, options.run_id, outcome.status)
    if log.isEnabledFor(logging.WARNING) and not options.quiet:
        say(comm, f"mpiimg: {options.label}{options.worded(earlier.line(options.out))}")
    return outcome


def _carry_out(
    recipe: Recipe, comm, options: Options, folders: Folders, executor: Executor, before, collect
) -> dict:
    """Execute a recipe and publish its results, if inputs are as they were `before`; return the report.

    Collective. Raises what :func:`run` does, with the end of the run noted.
    """
    try:
        compile_kernels(recipe.kernels, comm, executor.agreement)
        lifetime().stop.look_at_chunks()
        executor.execute()
        if collect is not None:
            executor.collect(collect)
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
            executor.files.written,
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


def _check_record(recipe: Recipe, options: Options, earlier: str) -> None:
    """Refuse to take away the record of a run that has come to its end since this one began."""
    if not options.force and recorded_run(recipe, options) != earlier:
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
