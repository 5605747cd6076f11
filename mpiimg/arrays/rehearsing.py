"""Before a run: the types of all nodes are found out, in a rehearsal where functions are the user's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.arrays import rehearsal, told
from mpiimg.arrays.array_results import KeptInput
from mpiimg.arrays.catalogue import kept_arrays
from mpiimg.arrays.graph import Node, walk
from mpiimg.arrays.lower import check_axes
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.runtime import say
from mpiimg.errors import BadInput


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
    there = kept_arrays(session, targets, comm)
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
        reports = _halo_reports(session, unchecked, budget, comm)
        wrong = next((report for report in reports if not report.enough), None)
        if wrong is not None:
            raise BadInput(wrong.line)
        for report in reports:
            say(comm, f"mpiimg: {report.line}")
        session.checked.update(node.key for node in unchecked)


def _rehearse(
    session: Any, targets: Sequence[Node], budget: int, there: Mapping[str, KeptInput], comm: Any
) -> None:
    """Call the functions of a graph on a little of the data, and keep what that tells. Collective."""
    facts = on_root(comm, lambda: called_apart(session, targets, budget, rehearsal.rehearse, there))
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


#: What is said of a function that does not give the same twice.
UNSTEADY = (
    "gives another result when it is called again with the same block, and so other bytes in each run; "
    "seed random numbers from block_info or the key, and read nothing that changes"
)


def called_apart(session: Any, targets: Sequence[Node], budget: int, task: Callable, *more: Any) -> Any:
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


def _halo_reports(session: Any, targets: Sequence[Node], budget: int, comm: Any) -> list:
    """Return what is found of the depth of every function in a graph. Collective."""
    from mpiimg.arrays import halo_check

    return on_root(comm, lambda: called_apart(session, targets, budget, halo_check.check))


def halos_checked(session: Any, values: Sequence[Any], comm: Any) -> list[str]:
    """Return what is found of the depth of every function in a graph, a line each. Collective."""
    targets = [value._node for value in values]
    return [report.line for report in _halo_reports(session, targets, session.budget(comm), comm)]
