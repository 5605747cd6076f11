"""Run a recipe: make room for it, execute it on all ranks, publish the results."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from mpiimg.comm.runtime import Agreement, node_count, on_root, once_a_node, say, stop_on_signals
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped
from mpiimg.io.disk import free_bytes
from mpiimg.io.events import events_folder
from mpiimg.io.journal import keep_marks
from mpiimg.io.store import describe_staged
from mpiimg.pipeline import rates
from mpiimg.pipeline.executor import Executor
from mpiimg.pipeline.plan import (
    Options,
    Recipe,
    Resources,
    Values,
    check,
    output_names,
    static_stages,
    work_bytes,
)
from mpiimg.pipeline.request import changes, check_unchanged, read_request, request, seen
from mpiimg.pipeline.show_plan import beside_actual
from mpiimg.stages.stage import Stage

#: In the work folder of a run that ended without some of its inputs.
LEFT_OUT = "left-out"

log = logging.getLogger("mpiimg")

#: Name of the file in the work folder that says what its run was asked for.
REQUEST = "request"


def run(recipe: Recipe, comm, options: Options, outer: Agreement | None = None) -> Values:
    """Run `recipe` and return the values that it found; the results are in `options.out`. Collective.

    `outer` is the agreement of the whole job, where `comm` is one group of its ranks.

    Raises
    ------
    BadInput : the input cannot be used; nothing is left behind
    RunFailed : a rank raised; the work folder is left, and the same command goes on
    RunStopped : a signal asked for it; likewise
    """
    records = records_folder(options)
    work = records / "work" / f"{recipe.stem}.{recipe.tool.removeprefix('mpiimg-')}"
    events = events_folder(records, recipe.record)
    target = agreed_cpu_target(comm)
    resources = Resources(
        comm.size, options.memory, options.in_memory, node_count(comm), on_root(comm, rates.load)
    ).of(recipe)
    check(recipe, resources)
    made = on_root(comm, _prepare, recipe, options, work, events, request(recipe, target))
    before = on_root(comm, seen, recipe)
    compile_kernels(recipe.kernels, comm)
    executor = Executor(recipe, comm, options, work, target, resources, events, outer)
    try:
        with stop_on_signals(executor.agreement):
            executor.execute()
            report = executor.report()
            executor.close()  # no rank may hold a staged result open while another describes it
            on_root(comm, check_unchanged, recipe, before)
            on_root(comm, _publish, recipe, options, work, executor, report)
    except BadInput as error:
        executor.close()
        executor.logbook.end(Exit.BAD_INPUT, str(error))
        comm.Barrier()  # no rank may still be writing in the folders that are removed
        on_root(comm, _remove, made, work, events)
        raise
    except RunStopped:
        executor.close()
        how = _how_to_go_on(options, work)
        executor.logbook.end(Exit.STOPPED, how)
        raise RunStopped(how) from None
    except RunFailed as error:
        executor.close()
        executor.logbook.end(Exit.FAILED, str(error))
        raise
    except Exception as error:
        executor.logbook.error(error)
        executor.abandon()
        executor.logbook.end(Exit.FAILED, f"aborted: {error}")
        raise
    executor.logbook.end(Exit.PARTIAL if executor.values.get("left_out") else Exit.DONE)
    on_root(comm, _clean, recipe, options, work, len(executor.values.get("left_out", ())))
    if log.isEnabledFor(logging.WARNING):
        for line in beside_actual(report["stages"], every=log.isEnabledFor(logging.INFO)):
            say(comm, f"mpiimg: {options.label}{line}")
    return executor.values


def records_folder(options: Options) -> Path:
    """Return the folder of run.json, events and work."""
    return options.records or options.out


def _how_to_go_on(options: Options, work: Path) -> str:
    again = f": {options.command}" if options.command else ""
    if options.in_memory:
        return f"the run was in memory: it starts over{again}"
    return f"everything done so far is marked in {work}; the same command goes on from there{again}"


def agreed_cpu_target(comm) -> str:
    """Return the CPU that all ranks compile for. Collective.

    Raises
    ------
    BadInput : they differ, and so would their results
    """
    from mpiimg.kernels.jit import cpu_target

    targets = sorted(set(comm.allgather(cpu_target())))
    if len(targets) > 1:
        raise BadInput(
            f"the nodes have different CPUs ({', '.join(targets)}), whose results differ in the last bit; "
            "add --portable, or ask for nodes of one kind"
        )
    return targets[0]


def compile_kernels(parts: Collection[str], comm) -> None:
    """See to it that `parts` of the kernels lie in the cache of numba on each node. Collective."""
    if not parts:
        return
    from mpiimg.kernels import warm

    if any(comm.allgather(len(warm.cold(parts)) > 0)):
        if log.isEnabledFor(logging.WARNING):
            say(comm, "mpiimg: compiling kernels on one rank of each node, once: up to a minute")
        once_a_node(comm, lambda: warm.compile_apart(warm.cold(parts)), "compiling kernels")


def _prepare(recipe: Recipe, options: Options, work: Path, events: Path, asked: dict) -> list[Path]:
    """Check that results can be written, and make the folders. Returns those that were made."""
    record = work / REQUEST
    earlier = read_request(record)
    names = output_names(recipe)
    if not options.force and earlier != asked and not _takes_up(work, earlier, asked):
        present = [name for name in names if (options.out / name).exists()]
        if present:
            if earlier is None:
                _remove_work(work)  # of a run that died when it had published all
            raise BadInput(f"{options.out / present[0]} exists; use --force to overwrite, or another --out")
    made = [folder for folder in (events, work, *work.parents) if not folder.exists()]
    try:
        for folder in ("journal", "outputs"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        events.mkdir(exist_ok=True)
        for log_of_rank in events.glob("*.jsonl"):
            log_of_rank.unlink()
        part = record.with_suffix(".part")
        part.write_text(json.dumps(asked))
        part.replace(record)
        (work / LEFT_OUT).unlink(missing_ok=True)
    except OSError as error:
        _remove(made, work, events)
        raise BadInput(f"{options.out}: cannot write there: {error.strerror}; choose another --out") from None
    needed = 0 if options.in_memory or earlier == asked else work_bytes(recipe)
    free = free_bytes(work)
    if needed > free:
        _remove(made, work, events)
        raise BadInput(
            f"{options.out}: {free >> 20} MB free, the work file may take {needed >> 20} MB; "
            "free some, choose another --out, or use --in-memory"
        )
    if earlier not in (None, asked):
        what = changes(earlier, asked)
        log.warning("%s: since the last run changed: %s; what depends on it is made again", work, what)
    return made


def _publish(recipe: Recipe, options: Options, work: Path, executor: Executor, report: dict) -> None:
    """Move the finished files to their places; run.json comes last.

    What was planned but not written, as of an exposure that was left out, is not left from an earlier run.
    """
    outputs = work / "outputs"
    documents = recipe.documents(executor.values)
    documents[recipe.record] = json.dumps(report, indent=2).encode() + b"\n"
    for name, data in documents.items():
        (outputs / name).write_bytes(data)
    for array, (name, attributes) in recipe.staged_outputs.items():
        describe_staged(work / f"{array}.h5", attributes)
        (work / f"{array}.h5").replace(outputs / name)
    staged = [name for name, _ in recipe.staged_outputs.values()]
    made = {*executor.written, *documents, *staged}
    for name in [*(name for name in output_names(recipe) if name != recipe.record), recipe.record]:
        folder = records_folder(options) if name == recipe.record else options.out
        if name not in made:
            (folder / name).unlink(missing_ok=True)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (outputs / name).replace(folder / name)


def _takes_up(work: Path, earlier: dict | None, asked: dict) -> bool:
    """Say whether a run takes up what the same command had to leave out: then its results are replaced."""
    same = earlier is not None and all(earlier.get(key) == asked[key] for key in ("tool", "parameters"))
    return same and (work / LEFT_OUT).exists()


def _clean(recipe: Recipe, options: Options, work: Path, left_out: int) -> None:
    """Remove the work folder; but keep what serves a run that takes up what this one left out."""
    kept = [stage for stage in static_stages(recipe) if stage.chunk_parameters is not None]
    if left_out and kept and not options.in_memory:
        (work / LEFT_OUT).touch()
        if not options.keep_work:
            size = _keep_only(kept, work)
            log.warning(
                "%s keeps what was made of the others (%d MB), so that the same command takes up only the %d "
                "left out; remove it when you need it no longer",
                work,
                size >> 20,
                left_out,
            )
    elif not options.keep_work:
        # First of all, so that what is left if this run dies now is known to be of no use.
        (work / REQUEST).unlink()
        _remove_work(work)


def _remove_work(work: Path) -> None:
    """Remove a work folder, and the folder of all of them where that was the last."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(work)
    with contextlib.suppress(OSError):
        work.parent.rmdir()


def _keep_only(stages: list[Stage], work: Path) -> int:
    """Remove all but the arrays of `stages` and their marks; return the bytes that stay."""
    arrays = [work / f"{array.name}.h5" for stage in stages for array in stage.writes]
    for path in work.glob("*.h5"):
        if path not in arrays:
            path.unlink()
    shutil.rmtree(work / "outputs")
    keep_marks(work / "journal", [stage.name for stage in stages])
    return sum(path.stat().st_size for path in arrays)


def _remove(made: list[Path], *whole: Path) -> None:
    """Take back the folders that :func:`_prepare` made, those in `whole` with all that is in them."""
    for folder in made:
        if folder in whole:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                folder.rmdir()
