"""Runs of a graph: rehearsed, planned, lowered to a recipe, and carried out by the engine."""

from __future__ import annotations

import dataclasses
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays import rehearsal, told
from mpiimg.arrays.expressions import node_of
from mpiimg.arrays.graph import FromInput, Node, Persisted, digest, walk
from mpiimg.arrays.lower import (
    Lowering,
    Reads,
    StoredInput,
    check_axes,
    needed,
    plain_cuts,
    stored_array,
    stored_input,
)
from mpiimg.engine.array import Array as EngineArray
from mpiimg.engine.inputs import said_of
from mpiimg.engine.mpi import rendezvous, scripts
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.runtime import say
from mpiimg.engine.names import file_name
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.stage import Stages
from mpiimg.errors import BadInput

#: Bytes of a rank with Python, MPI, NumPy and what graphs take; and of libraries that runs load themselves.
BASELINE, LATER = 80 << 20, 32 << 20


# --- What a run makes -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ArrayResult:
    """An array that becomes a file.

    Parameters
    ----------
    node : Node
    file : str
    """

    node: Node
    file: str

    @property
    def targets(self) -> tuple[Node, ...]:
        """The nodes that it is made of."""
        return (self.node,)

    def stages(self, lowering: Lowering) -> Stages[None]:
        """Yield the stage that writes it, once what it is made of is made."""
        from mpiimg.formats import registry

        made = self._writer(lowering)
        reads = Reads(lowering, made.grid)
        reads.add(self.node, plain_cuts(self.node, made.grid))
        needs = reads.needs()

        def work(chunk, *blocks):
            (block,) = reads.values(chunk.number, blocks)
            return np.asarray(block, dtype=self._described(lowering).dtype)

        yield registry.stage_of(self.file, made, self._described(lowering), needs, work)

    def check(self, lowering: Lowering) -> None:
        """Refuse what the format of the file has no place for."""
        self._writer(lowering)

    def _writer(self, lowering: Lowering):
        from mpiimg.formats import registry

        return registry.writer(self.file)(self._described(lowering))

    def _described(self, lowering: Lowering):
        from mpiimg.formats.interface import ResultArray

        node = self.node
        return ResultArray(
            self.file, node.axes, node.shape, np.dtype(lowering.dtype_of(node)).name, node.space, node.attrs,
            node.order,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class KeptResult:
    """A stored array that is kept between runs, as a staged file in the folder of the session."""

    node: Node

    @property
    def targets(self) -> tuple[Node, ...]:
        return (self.node,)

    def stages(self, lowering: Lowering) -> Stages[None]:
        return
        yield

    def check(self, lowering: Lowering) -> None:
        """Do nothing."""


@dataclass(frozen=True, eq=False)
class KeptInput:
    """An array that an earlier run of a session has kept; an :class:`mpiimg.engine.inputs.Input`."""

    path: Path
    array: EngineArray
    key: str
    parallel = True

    @property
    def identity(self) -> dict[str, str]:
        return {"kept": self.key}

    @property
    def sample(self) -> None:
        return None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def open(self):
        """Open it, to read what its checksums verify."""
        from mpiimg.engine.staged_file import open_checked

        return open_checked(self.path, self.array)


def result_of(value: Any, file: str) -> Any:
    """Return the result that a value becomes in a file.

    Raises
    ------
    BadInput
        It is nothing that can be written.
    """
    if hasattr(value, "_node"):
        if file.endswith("/"):
            raise BadInput(
                f"write: {file}: an array becomes a file; name it with its format, e.g. x.nii.gz or x.npy"
            )
        return ArrayResult(value._node, file)
    if hasattr(value, "_as_result"):
        return value._as_result(file)
    what = type(value).__name__
    if isinstance(value, np.ndarray | np.generic | int | float):
        raise BadInput(
            f"write: {file}: takes lazy arrays, and not {what}; wrap it: mi.from_array(x, 'x y z')"
        )
    if isinstance(value, tuple | list):
        raise BadInput(
            f"write: {file}: is a {what} of {len(value)}; write each of them under a name of its own"
        )
    raise BadInput(f"write: {file}: takes an array, items or a table, and not {what}")


#: What is said of a function that does not give the same twice.
UNSTEADY = (
    "gives another result when it is called again with the same block, and so other bytes in each run; "
    "seed random numbers from block_info or the key, and read nothing that changes"
)


@dataclass(frozen=True)
class Rehearsed:
    """What the rehearsals of a session have taken so far.

    Parameters
    ----------
    seconds, cpu_seconds : float
    libraries : int
        Bytes of libraries that functions load.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    libraries: int = 0


# --- Before a run -----------------------------------------------------------------------------------------


def rehearsed(session: Any, targets: Sequence[Node], comm: Any, record: Path | None = None) -> None:
    """See to it that the types of all nodes are known, and what functions cost. Collective.

    Parameters
    ----------
    session : Session
    targets : sequence of Node
    comm : communicator
    record : Path, optional
        Of the run that this may have been done by before.

    Raises
    ------
    BadInput
        A function fails on a little of the data.
    """
    targets = [node for node in targets if node is not None]
    for node in walk(targets):
        _ = node.key  # from the front, since a chain of expressions may be longer than Python's stack
    check_axes(walk(targets))
    budget = session.budget(comm)
    there = _kept(session, targets, comm)
    places = [] if session.has_looked else [session.folder / told.FILE]
    session.has_looked = True
    for path in (*places, *([record] if record is not None else [])):
        told.learn(on_root(comm, told.load, path), session.types, session.costs)
    missing = rehearsal.calls_to_rehearse(targets, there, session.types, session.costs)
    if not session.rehearse:
        # Without types nothing can be planned; records need none.
        missing = [node for node in missing if isinstance(node, Node) and session.types.of(node) is None]
    if missing:
        _rehearse(session, targets, budget, there, comm)
    unchecked = [node for node in targets if node.key not in session.checked] if session.check_halo else []
    if unchecked:  # also of functions that were rehearsed in an earlier run
        for report in on_root(comm, lambda: _check_halos(session, unchecked, budget)):
            say(comm, f"mpiimg: {report.line}")
        session.checked.update(node.key for node in unchecked)


def _rehearse(
    session: Any, targets: Sequence[Node], budget: int, there: Mapping[str, KeptInput], comm: Any
) -> None:
    """Call the functions of a graph on a little of the data, and keep what that tells. Collective."""
    facts = on_root(comm, lambda: _apart(session, targets, budget, rehearsal.rehearse, there))
    for key, dtype in facts.types.items():
        session.types.learn(key, dtype)
    session.costs.update(facts.costs)
    for name in facts.unsteady:
        say(comm, f"mpiimg: warning: {name}: {UNSTEADY}", sys.stderr)
    on_root(comm, lambda: told.save(session.folder, told.facts(targets, session.types, session.costs)))
    session.rehearsal = Rehearsed(
        session.rehearsal.seconds + facts.seconds,
        session.rehearsal.cpu_seconds + facts.cpu_seconds,
        max(session.rehearsal.libraries, facts.libraries),
    )


def _apart(session: Any, targets: Sequence[Node], budget: int, task: Callable, *more: Any) -> Any:
    """Call a task on a graph in a fresh interpreter, within what this rank may use. On one rank."""
    from mpiimg.arrays.rehearse import in_fresh_interpreter, seconds_for
    from mpiimg.engine.mpi.memory import anonymous_now

    calls = dict.fromkeys(getattr(node, "call_name", "") for node in walk(targets))
    return in_fresh_interpreter(
        _of_graph,
        # In this order, so that pickle, which looks into each, never has to go deep.
        tuple(walk(targets)),
        task,
        tuple(targets),
        *more,
        timeout=seconds_for(session.timeout),
        memory=max(budget - anonymous_now(), budget // 4),
        name=", ".join(name for name in calls if name) or "the rehearsal",
    )


def _of_graph(nodes: Sequence[Node], task: Callable, *arguments: Any) -> Any:
    """Call a task on a graph, in the fresh interpreter."""
    return task(*arguments)


def _check_halos(session: Any, targets: Sequence[Node], budget: int) -> list:
    """Refuse a graph one of whose functions sees more than its depth. On one rank."""
    from mpiimg.arrays import halo_check

    reports = _apart(session, targets, budget, halo_check.check)
    wrong = next((report for report in reports if not report.enough), None)
    if wrong is not None:
        raise BadInput(wrong.line)
    return reports


def halos_checked(session: Any, values: Sequence[Any], comm: Any) -> list[str]:
    """Return what is found of the depth of every function in a graph, a line each. Collective."""
    from mpiimg.arrays import halo_check

    targets = [value._node for value in values]
    budget = session.budget(comm)
    return [
        report.line for report in on_root(comm, lambda: _apart(session, targets, budget, halo_check.check))
    ]


# --- Recipes ----------------------------------------------------------------------------------------------


def recipe_of(
    session: Any, results: Sequence[Any], *, stem: str, record: str, nonce: str, kept: Mapping[str,
    KeptInput], keep: Sequence[Node] = (), more: Mapping[str, Any] | None = None,
) -> Recipe:  # fmt: skip
    """Return the recipe of a run that makes results.

    Parameters
    ----------
    session : Session
    results : sequence of result
        As :func:`result_of` returns them.
    stem, record : str
        As :class:`mpiimg.engine.recipe.Recipe` has them.
    nonce : str
        Of this run.
    kept : mapping of str to KeptInput
        Nodes that are there, by key.
    keep : sequence of Node
        Stored nodes whose staged files stay in the folder of results.
    more : mapping
        What run.json says among the parameters besides.
    """
    targets = [node for result in results for node in result.targets]
    nodes = list(needed(targets, kept))
    sources = [stored_input(node) for node in nodes if isinstance(node, FromInput)]
    inputs = [source for source in sources if source.parallel]
    used = [kept[key] for key in dict.fromkeys(node.key for node in walk(targets)) if key in kept]
    inputs += [StoredInput(one, one.array) for one in used]

    def lowering() -> Lowering:
        ready = {key: one.array for key, one in kept.items() if not hasattr(one, "index")}
        made = {key: one.index for key, one in kept.items() if hasattr(one, "index")}
        return Lowering(session.types, session.costs, ready, nonce, made=made)

    def stages():
        lowered = lowering()
        yield from lowered.stored(targets)
        for result in results:
            yield from result.stages(lowered)
        return lowered

    unknown = [node for node in nodes if not node.known]
    listed = [node for node in walk(targets) if hasattr(node, "files")]
    return Recipe(
        tool=program_name(),
        stem=stem,
        inputs=tuple(inputs),
        stages=stages,
        documents=lambda state: {},
        parameters={**_parameters(results, nodes, nonce if unknown else ""), **(more or {})},
        sources={source.array.name: said_of(source) for source in sources},
        record=record,
        warnings=tuple(_not_resumable(node) for node in unknown),
        staged_outputs={node.name: (f"{node.name}.h5", {}) for node in keep},
        files=tuple(dict.fromkeys(path for one in (*sources, *used, *listed) for path in one.files)),
        baseline=max(BASELINE, session.held + LATER) + session.rehearsal.libraries,
        said={
            "rehearsal": {
                "seconds": round(session.rehearsal.seconds, 3),
                "cpu_seconds": round(session.rehearsal.cpu_seconds, 3),
                "told": told.facts(targets, session.types, session.costs),
            }
        },
    )


def _not_resumable(node: Node) -> str:
    found = getattr(node, "call", None) or getattr(node, "functions", None) or node
    why = getattr(getattr(found, "identity", None), "why", "") or "its reader has no identity"
    name = getattr(found, "name", node.label)
    return f"{name}: is made anew in every run, since what it depends on cannot be known: {why}"


def _parameters(results: Sequence[Any], nodes: Sequence[Node], nonce: str) -> dict[str, Any]:
    """Return what a run is asked for, as run.json says it: by the keys of what it writes, and by function."""
    wanted = {getattr(result, "file", node.name): node.key for result in results for node in result.targets}
    functions = {}
    for node in nodes:
        call = getattr(node, "call", None) or getattr(node, "functions", None)
        if call is not None:
            functions[f"{call.name} {node.key[:12]}"] = call.identity.digest
    return {"results": wanted, "functions": functions, **({"run": nonce} if nonce else {})}


def program_name() -> str:
    """Return the name of the program of the user."""
    name = Path(rendezvous.program() or "session").stem
    return file_name(name)[:40] or "session"


def _nonce(comm: Any) -> str:
    return on_root(comm, lambda: uuid.uuid4().hex)


# --- What is kept between runs ----------------------------------------------------------------------------


def _kept(session: Any, targets: Sequence[Node], comm: Any) -> dict[str, KeptInput]:
    """Return what earlier runs of the session have kept of a graph, by key. Collective."""
    candidates = [node for node in walk(list(targets)) if node.is_stored and not isinstance(node, FromInput)]
    if not candidates:
        return {}
    from mpiimg.arrays import items_kept

    there = on_root(comm, lambda: [_dtype_kept(session, node) for node in candidates])
    found = {}
    for node, dtype in zip(candidates, there, strict=True):
        if dtype is not None:
            session.types.learn(node.key, dtype)
            array = stored_array(node.name, node.axes, node.shape, dtype, node.order)
            found[node.key] = KeptInput(_kept_path(session, node), array, node.key)
    return found | items_kept.found(session, targets, comm)


def _kept_path(session: Any, node: Node) -> Path:
    return session.folder / f"{node.name}.h5"


def _dtype_kept(session: Any, node: Node) -> str | None:
    """Return the type of a node that a run of the session has kept, None where none has. On one rank."""
    from mpiimg.engine.staged_file import check_record

    if session.catalogue is None:
        session.catalogue = _catalogue(session.folder)
    entry = session.catalogue.get(node.key)
    if entry is None or (entry.earlier and not node.resumable):
        return None
    try:
        return entry.dtype if check_record(_kept_path(session, node)) else None
    except (OSError, BadInput):
        return None  # it is gone, or damaged: it is made anew


@dataclass(frozen=True)
class Kept:
    """What is known of an array that a run has kept.

    Parameters
    ----------
    dtype : str
    earlier : bool
        Whether another process has made it.
    """

    dtype: str
    earlier: bool


def _catalogue(folder: Path) -> dict[str, Kept]:
    """Return what earlier programs have kept in the folder of a session, by key."""
    from mpiimg.engine.records import DamagedRecord, read_record

    found = {}
    for path in sorted(folder.glob("run-*.json")):
        try:
            types = (read_record(path) or {})["parameters"]["kept"]
            found.update({key: Kept(dtype, True) for key, dtype in types.items()})
        except (DamagedRecord, OSError, KeyError, TypeError, AttributeError):
            continue
    return found


def keep(session: Any, nodes: Sequence[Node], comm: Any, memory: Any = None) -> dict[str, KeptInput]:
    """Make stored nodes, in one run, and keep them in the folder of the session. Collective."""
    kept = _kept(session, nodes, comm)
    missing = [node for node in {node.key: node for node in nodes}.values() if node.key not in kept]
    if not missing:
        return kept
    _make_items(session, missing, comm, memory)
    rehearsed(session, missing, comm)
    kept = _kept(session, missing, comm) | kept
    missing += [node for node in needed(missing, kept) if isinstance(node, Persisted) and node not in missing]
    types = {node.key: session.types.of(node) for node in missing}
    stem = missing[0].name if len(missing) == 1 else f"{missing[0].label}-{digest(sorted(types))[:12]}"
    nonce = _nonce(comm)
    recipe = recipe_of(
        session, [KeptResult(node) for node in missing], stem=stem, record=f"run-{stem}.json", nonce=nonce,
        kept=kept, keep=missing, more={"kept": types},
    )  # fmt: skip
    options = Options(
        session.folder, session.budget(comm, memory), progress=session.progress, timeout=session.timeout,
        replace=True, force=not all(node.resumable for node in missing), quiet=True,
    )  # fmt: skip
    _carry_out(recipe, comm, options, session)
    for node in missing:
        array = stored_array(node.name, node.axes, node.shape, types[node.key], node.order)
        kept[node.key] = KeptInput(_kept_path(session, node), array, node.key)
        if session.catalogue is not None:
            session.catalogue[node.key] = Kept(types[node.key], False)
    return kept


def _carry_out(recipe: Recipe, comm: Any, options: Options, session: Any) -> Any:
    from mpiimg.engine.run import run

    given = scripts.settings()
    about = {"command": given.command, "run_id": given.run_id, "script": given.script}
    session.only_planned = False
    outcome = run(recipe, comm, dataclasses.replace(options, **about))
    scripts.note(outcome.status)
    session.status = int(outcome.status) or session.status
    return outcome


# --- Calls ------------------------------------------------------------------------------------------------


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
    wanted = [node if node.is_stored and not isinstance(node, FromInput) else stored(node) for node in nodes]
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


def carried_out(session: Any, result: Any, comm: Any, memory: Any) -> Any:
    """Run what a result needs that the program itself takes, such as records. Collective."""
    if not getattr(result, "is_kept", False):
        _make_items(session, result.targets, comm, memory)
    rehearsed(session, result.targets, comm)
    kept = _kept(session, result.targets, comm)
    (name,) = (node.name for node in result.targets)
    recipe = recipe_of(
        session, [result], stem=f"compute-{name}", record=f"run-{name}.json", nonce=_nonce(comm), kept=kept
    )
    options = Options(
        session.folder, session.budget(comm, memory), progress=session.progress, timeout=session.timeout,
        in_memory=session.in_memory, force=True, replace=True, quiet=True,
    )  # fmt: skip
    return _carry_out(recipe, comm, options, session)


def _make_items(session: Any, targets: Sequence[Node], comm: Any, memory: Any) -> None:
    from mpiimg.arrays import items_kept

    items_kept.make(session, targets, comm, memory)


def _presented(block: np.ndarray, node: Node, array: EngineArray) -> np.ndarray:
    if not node.axes:
        return block.reshape(())[()]
    return np.array(block.transpose([array.axes.index(axis) for axis in node.axes]), copy=True, order="K")


def stored(node: Node) -> Node:
    """Return a stored node of an expression."""
    from mpiimg.arrays.expressions import persisted

    return persisted(node)


def written(session: Any, results: Mapping[str, Any], folder: Path, options: Mapping[str, Any]) -> Any:
    """Write results into a folder. Collective."""
    made = [result_of(value, file) for file, value in results.items()]
    targets = [node for result in made for node in result.targets]
    parts = [[getattr(result, "file", ""), *(node.key for node in result.targets)] for result in made]
    with scripts.collective("write", digest(parts, str(folder), str(options))) as comm:
        stem, record = _names(session, list(results), folder)
        rehearsed(session, targets, comm, folder / record)
        persisted_below = [one for one in walk(targets) if isinstance(one, Persisted)]
        _make_items(session, targets, comm, options["memory"])
        kept = keep(session, persisted_below, comm, options["memory"]) if persisted_below else {}
        kept |= _kept(session, targets, comm)
        recipe = recipe_of(session, made, stem=stem, record=record, nonce=_nonce(comm), kept=kept)
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
        outcome = _carry_out(recipe, comm, run_options, session)
        files = {name: folder / name for name in results}
    return Result(files, outcome.report, outcome.left_out)


def _names(session: Any, files: Sequence[str], folder: Path) -> tuple[str, str]:
    """Return what a run is called by: its work folder, and its record, of which each run has its own."""
    first = file_name(Path(files[0].rstrip("/")).name.split(".")[0])[:40] or "results"
    if len(files) == 1:
        return first, f"run-{first}.json"
    place = str(folder.resolve())
    number = session.records[place] = session.records.get(place, 0) + 1
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
        kept = _kept(session, targets, comm)
        recipe = recipe_of(session, made, stem="plan", record="run.json", nonce="", kept=kept)
        _print_plan(recipe, comm, session.budget(comm, memory), ranks or comm.size, nodes, session.plan_only)


def _plain_results(value: Any) -> list:
    if hasattr(value, "_node"):
        node = value._node
        return [KeptResult(node if node.is_stored else stored(node))]
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
        return show_plan.as_json(plan, resources) if form == "json" else show_plan.table(plan, resources)

    said = on_root(comm, text)
    say(comm, said, sys.stdout)
