"""The recipe of a run of a graph: its stages, and what its record says."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiimg.arrays import told
from mpiimg.arrays.array_results import KeptInput
from mpiimg.arrays.graph import FromInput, Node, walk
from mpiimg.arrays.lower import Lowering, StoredInput, needed, stored_input
from mpiimg.arrays.wording import as_calls
from mpiimg.engine.inputs import said_of
from mpiimg.engine.mpi import rendezvous, scripts
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.names import file_name
from mpiimg.engine.recipe import Options, Recipe

#: Bytes of a rank with Python, MPI, NumPy and what graphs take; and of libraries that runs load themselves.
BASELINE, LATER = 80 << 20, 32 << 20


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


def new_nonce(comm: Any) -> str:
    return on_root(comm, lambda: uuid.uuid4().hex)


def carry_out(recipe: Recipe, comm: Any, options: Options, session: Any) -> Any:
    from mpiimg.engine.run import run

    given = scripts.settings()
    about = {"command": given.command, "run_id": given.run_id, "script": given.script, "worded": as_calls}
    if given.work_dir is not None and not (recipe.staged_outputs or options.in_memory):
        about["work_dir"] = Path(given.work_dir)
    session.only_planned = False
    outcome = run(recipe, comm, dataclasses.replace(options, **about))
    scripts.note(outcome.status)
    session.status = int(outcome.status) or session.status
    return outcome
