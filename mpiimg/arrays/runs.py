"""Runs of a graph: what compute, write and plan do on all ranks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.array_results import KeptResult, result_of
from mpiimg.arrays.catalogue import kept_arrays
from mpiimg.arrays.expressions import node_of, persisted
from mpiimg.arrays.graph import FromInput, Node, digest, walk
from mpiimg.arrays.keeping import keep, make_items
from mpiimg.arrays.lower import Lowering
from mpiimg.arrays.recipes import BASELINE, carry_out, new_nonce, recipe_of
from mpiimg.arrays.rehearsing import rehearsed
from mpiimg.arrays.stored import Persisted
from mpiimg.engine.array import Array as EngineArray
from mpiimg.engine.mpi import scripts
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.runtime import say
from mpiimg.engine.names import file_name
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.errors import BadInput


def computed(session: Any, nodes: Sequence[Node], comm: Any, root: int | None, memory: Any) -> list | None:
    """Return arrays as every rank, or `root`, has them. Collective."""
    rehearsed(session, nodes, comm)
    budget = session.budget(comm, memory)
    size = sum(
        int(np.prod(node.shape, dtype=np.int64)) * np.dtype(session.types.of(node)).itemsize for node in nodes
    )
    if size > max(budget - BASELINE, 0):
        raise BadInput(
            f"compute: the result has {size >> 20} MB, and a rank has "
            f"{max(budget - BASELINE, 0) >> 20} MB left for it; "
            "write it to a file by x.write(path), take a part of it, or give memory="
        )
    wanted = [
        node if node.is_stored and not isinstance(node, FromInput) else persisted(node) for node in nodes
    ]
    kept = keep(session, wanted, comm, memory)
    if root is not None and comm.rank != root:
        comm.Barrier()
        return None
    values = []
    for node in wanted:
        one = kept[node.key]
        reader = one.open()
        try:
            block = reader.read(tuple((0, n) for n in one.array.shape))
        finally:
            reader.close()
        values.append(_presented(block, node, one.array))
    if root is not None:
        comm.Barrier()
    return values


def _presented(block: np.ndarray, node: Node, array: EngineArray) -> np.ndarray:
    if not node.axes:
        return block.reshape(())[()]
    return np.array(block.transpose([array.axes.index(axis) for axis in node.axes]), copy=True, order="K")


def written(session: Any, results: Mapping[str, Any], folder: Path, options: Mapping[str, Any]) -> Any:
    """Write results into a folder. Collective."""
    made = [result_of(value, file) for file, value in results.items()]
    targets = [node for result in made for node in result.targets]
    parts = [[getattr(result, "file", ""), *(node.key for node in result.targets)] for result in made]
    with scripts.collective("write", digest(parts, str(folder), str(options))) as comm:
        stem, record = _names(session, list(results), folder)
        rehearsed(session, targets, comm, folder / record)
        persisted_below = [one for one in walk(targets) if isinstance(one, Persisted)]
        make_items(session, targets, comm, options["memory"])
        kept = keep(session, persisted_below, comm, options["memory"]) if persisted_below else {}
        kept |= kept_arrays(session, targets, comm)
        recipe = recipe_of(session, made, stem=stem, record=record, nonce=new_nonce(comm), kept=kept)
        lowering = Lowering(session.types)
        for result in made:
            result.check(lowering)
        run_options = Options(
            folder, session.budget(comm, options["memory"]), force=options["force"] or session.force,
            in_memory=options["in_memory"], keep_work=options["keep_work"], progress=options["progress"],
            timeout=options["timeout"],
        )  # fmt: skip
        if session.plan_only:
            given = scripts.settings()
            ranks, form = given.ranks or comm.size, session.plan_only
            _print_plan(recipe, comm, run_options.memory, ranks, given.nodes, form)
            return None
        outcome = carry_out(recipe, comm, run_options, session)
        files = {name: folder / name for name in results}
    return Result(files, outcome.report, outcome.left_out)


def _names(session: Any, files: Sequence[str], folder: Path) -> tuple[str, str]:
    """Return what a run is called by: its work folder, and its record, of which each run has its own."""
    if len(files) == 1:
        # By the whole name: fa.npy and fa.nii.gz, or the same file of two subjects, are two runs.
        name = file_name(files[0].rstrip("/"))[:100] or "result"
        return name, f"run-{name}.json"
    first = file_name(Path(files[0].rstrip("/")).name.split(".")[0])[:40] or "results"
    earlier = session.records.setdefault(str(folder.resolve()), [])
    if tuple(files) not in earlier:
        earlier.append(tuple(files))
    number = earlier.index(tuple(files)) + 1
    return (first, "run.json") if number == 1 else (f"{first}-{number}", f"run-{number}.json")


@dataclass(frozen=True)
class Result:
    """What a run has written.

    Parameters
    ----------
    files : mapping of str to Path
        By the names that were given.
    record : mapping
        The content of run.json.
    left_out : mapping of str to str
        Items that could not be used, and why.
    """

    files: Mapping[str, Path]
    record: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        left_out = f"; {len(self.left_out)} left out" if self.left_out else ""
        return f"<mpiimg results: {', '.join(map(str, self.files.values()))}{left_out}>"


def planned(session: Any, results: Sequence[Any], ranks: int | None, nodes: int | None, memory: Any) -> None:
    """Print the plan of a run. Collective."""
    for name, count in (("ranks", ranks), ("nodes", nodes)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise BadInput(f"plan: {name} = {count!r}: must be a whole number from 1 on")
    made = []
    for value in results:
        if isinstance(value, Mapping):
            made += [result_of(one, str(file)) for file, one in value.items()]
        else:
            made += _plain_results(value)
    targets = [node for result in made for node in result.targets]
    with scripts.collective(
        "plan", digest([node.key for node in targets], ranks, nodes, str(memory))
    ) as comm:
        session.only_planned = True
        rehearsed(session, targets, comm)
        kept = kept_arrays(session, targets, comm)
        recipe = recipe_of(session, made, stem="plan", record="run.json", nonce="", kept=kept)
        _print_plan(recipe, comm, session.budget(comm, memory), ranks or comm.size, nodes, session.plan_only)


def _plain_results(value: Any) -> list:
    if hasattr(value, "_node"):
        node = value._node
        return [KeptResult(node if node.is_stored else persisted(node))]
    if hasattr(value, "_planned"):
        return [value._planned()]
    if not hasattr(value, "_as_result"):
        node_of(value, "plan")
    return [result_of(value, "plan")]


def _print_plan(recipe: Recipe, comm: Any, memory: int, ranks: int, nodes: int | None, form: str) -> None:
    from mpiimg.engine import rates
    from mpiimg.engine.log import show_plan
    from mpiimg.engine.plan import Resources, plan_recipe

    def text() -> str:
        resources = Resources(ranks, memory, nodes=nodes or 1, rates=rates.load_rates()).of(recipe)
        if not recipe.expected:
            return "nothing is left to do: this session has made it already"
        plan = plan_recipe(recipe, resources)
        if form == "json":
            return show_plan.as_json(plan, resources)
        return show_plan.table(plan, resources, full=form == "full")

    said = on_root(comm, text)
    say(comm, said, sys.stdout)
