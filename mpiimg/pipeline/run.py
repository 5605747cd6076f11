"""Run a recipe: make room for it, execute it on all ranks, publish the results."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

import mpiimg
from mpiimg.comm.runtime import Agreement, on_root, once_a_node, say, stop_on_signals
from mpiimg.errors import BadInput, RunFailed, RunStopped
from mpiimg.io.disk import free_bytes
from mpiimg.io.store import describe_staged
from mpiimg.pipeline.executor import Executor, digest
from mpiimg.pipeline.plan import Options, Recipe, Values, output_names, work_bytes

log = logging.getLogger("mpiimg")


def run(recipe: Recipe, comm, options: Options, outer: Agreement | None = None) -> Values:
    """Run `recipe` and return the values that it found; the results are in `options.out`. Collective.

    `outer` is the agreement of the whole job, where `comm` is one group of its ranks.

    Raises
    ------
    BadInput : the input cannot be used; nothing is left behind
    RunFailed : a rank raised; the work folder is left, and the same command goes on
    RunStopped : a signal asked for it; likewise
    """
    work = records_folder(options) / "work" / f"{recipe.stem}.{recipe.tool.removeprefix('mpiimg-')}"
    target = agreed_cpu_target(comm)
    made = on_root(comm, _prepare, recipe, options, work)
    compile_kernels(recipe.kernels, comm)
    executor = Executor(recipe, comm, options, work, target, outer)
    try:
        with stop_on_signals(executor.agreement):
            executor.execute()
            report = executor.report()
            executor.close()  # no rank may hold a staged result open while another describes it
            on_root(comm, _publish, recipe, options, work, executor, report)
    except BadInput:
        executor.close()
        comm.Barrier()  # no rank may still be writing in the folder that is removed
        on_root(comm, _remove, work, made)
        raise
    except RunStopped:
        executor.close()
        raise RunStopped(
            f"everything done so far is marked in {work}; the same command goes on from there"
            if not options.in_memory
            else "the run was in memory: it starts over"
        ) from None
    except RunFailed:
        executor.close()
        raise
    except Exception:
        executor.abandon()
        raise
    on_root(comm, _clean, options, work)
    return executor.values


def records_folder(options: Options) -> Path:
    """Return the folder of run.json, events and work."""
    return options.records or options.out


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
    """Let one rank a node compile `parts` of the kernels, unless they lie in numba's cache. Collective."""
    if not parts:
        return
    from mpiimg.kernels import warm

    if any(comm.allgather(len(warm.cold(parts)) > 0)):
        if log.isEnabledFor(logging.WARNING):
            say(comm, "mpiimg: compiling kernels on one rank of each node, once: up to a minute")
        once_a_node(comm, lambda: warm.compile_parts(warm.cold(parts)), "compiling kernels")


def _request(recipe: Recipe) -> str:
    """Return a hash of what is asked for: the same command on the same input gives the same."""
    return digest(recipe.tool, mpiimg.__version__, dict(recipe.parameters), dict(recipe.sources))


def _prepare(recipe: Recipe, options: Options, work: Path) -> list[Path]:
    """Check that results can be written, and make the work folder. Returns the folders that were made."""
    request = _request(recipe)
    record = work / "request"
    earlier = record.read_text() if record.exists() else None
    names = output_names(recipe)
    if not options.force and earlier != request:
        present = [name for name in names if (options.out / name).exists()]
        if present:
            raise BadInput(f"{options.out / present[0]} exists; use --force to overwrite, or another --out")
    made = [folder for folder in (work, *work.parents) if not folder.exists()]
    try:
        for folder in ("journal", "outputs"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        record.write_text(request)
    except OSError as error:
        _remove(work, made)
        raise BadInput(f"{options.out}: cannot write there: {error.strerror}; choose another --out") from None
    needed = 0 if options.in_memory or earlier == request else work_bytes(recipe)
    free = free_bytes(work)
    if needed > free:
        _remove(work, made)
        raise BadInput(
            f"{options.out}: {free >> 20} MB free, the work file may take {needed >> 20} MB; "
            "free some, choose another --out, or use --in-memory"
        )
    if earlier not in (None, request):
        log.warning("%s: input, parameters or version changed since the last run: its marks are void", work)
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


def _clean(options: Options, work: Path) -> None:
    if not options.keep_work:
        shutil.rmtree(work)
        with contextlib.suppress(OSError):
            work.parent.rmdir()


def _remove(work: Path, made: list[Path]) -> None:
    """Take back what :func:`_prepare` made."""
    if work in made:
        shutil.rmtree(work, ignore_errors=True)
    for folder in made[1:]:
        with contextlib.suppress(OSError):
            folder.rmdir()
