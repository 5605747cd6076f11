"""Arrays that are made once, and kept for all runs of a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpiimg.arrays.array_results import KeptInput, KeptResult
from mpiimg.arrays.catalogue import Kept, kept_arrays, kept_path
from mpiimg.arrays.graph import Node, digest
from mpiimg.arrays.lower import needed, stored_array
from mpiimg.arrays.recipes import carry_out, new_nonce, recipe_of
from mpiimg.arrays.rehearsing import rehearsed
from mpiimg.arrays.stored import Persisted
from mpiimg.engine.recipe import Options


def keep(session: Any, nodes: Sequence[Node], comm: Any, memory: Any = None) -> dict[str, KeptInput]:
    """Make stored nodes, in one run, and keep them in the folder of the session. Collective."""
    kept = kept_arrays(session, nodes, comm)
    missing = [node for node in {node.key: node for node in nodes}.values() if node.key not in kept]
    if not missing:
        return kept
    make_items(session, missing, comm, memory)
    rehearsed(session, missing, comm)
    kept = kept_arrays(session, missing, comm) | kept
    missing += [node for node in needed(missing, kept) if isinstance(node, Persisted) and node not in missing]
    types = {node.key: session.types.of(node) for node in missing}
    stem = missing[0].name if len(missing) == 1 else f"{missing[0].label}-{digest(sorted(types))[:12]}"
    nonce = new_nonce(comm)
    recipe = recipe_of(
        session, [KeptResult(node) for node in missing], stem=stem, record=f"run-{stem}.json", nonce=nonce,
        kept=kept, keep=missing, more={"kept": types},
    )  # fmt: skip
    options = Options(
        session.folder, session.budget(comm, memory), progress=session.progress, timeout=session.timeout,
        replace=True, force=not all(node.resumable for node in missing), quiet=True,
    )  # fmt: skip
    carry_out(recipe, comm, options, session)
    for node in missing:
        array = stored_array(node.name, node.axes, node.shape, types[node.key], node.order)
        kept[node.key] = KeptInput(kept_path(session, node), array, node.key)
        if session.catalogue is not None:
            session.catalogue[node.key] = Kept(types[node.key], False)
    return kept


def carried_out(session: Any, result: Any, comm: Any, memory: Any) -> Any:
    """Run what a result needs that the program itself takes, such as records. Collective."""
    if not getattr(result, "is_kept", False):
        make_items(session, result.targets, comm, memory)
    rehearsed(session, result.targets, comm)
    kept = kept_arrays(session, result.targets, comm)
    (name,) = (node.name for node in result.targets)
    recipe = recipe_of(
        session, [result], stem=f"compute-{name}", record=f"run-{name}.json", nonce=new_nonce(comm), kept=kept
    )
    options = Options(
        session.folder, session.budget(comm, memory), progress=session.progress, timeout=session.timeout,
        in_memory=session.in_memory, force=True, replace=True, quiet=True,
    )  # fmt: skip
    return carry_out(recipe, comm, options, session)


def make_items(session: Any, targets: Sequence[Node], comm: Any, memory: Any) -> None:
    """Make what an array needs of items that are kept. Collective."""
    from mpiimg.arrays import items_kept

    items_kept.make(session, targets, comm, memory)
