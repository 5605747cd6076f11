"""Sessions, and the calls that run something: compute, write, persist, plan."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.array import Array
from mpiimg.arrays.expressions import node_of, persisted
from mpiimg.arrays.graph import Node, digest
from mpiimg.arrays.lower import Costs, needed
from mpiimg.arrays.stored import Persisted
from mpiimg.arrays.types_of import Types
from mpiimg.engine.mpi import rendezvous, scripts
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.names import file_name
from mpiimg.errors import BadInput

#: Folder of what a program keeps between its calls, unless a session names another.
FOLDER = ".mpiimg"


@dataclass
class Session:
    """What all runs of a program share: a folder, a cap, and what was made and found out so far.

    Parameters
    ----------
    folder : Path
        Of what is kept between runs.
    memory : int or str, optional
        Bytes that each rank may use; by default its share of the node's.
    keep_work : bool
        Leave the folder when the program ends.
    timeout : float
        Seconds that a chunk or an exchange may take.
    in_memory : bool
        Runs that write stage nothing on disk.
    progress : bool
        Show on stderr how far a run is: a bar on a terminal, else a line now and then.
    rehearse : bool
        Call users' functions on a little of the data before a run.
    check_halo : bool
        Look whether what lies outside the declared depth changes what lies within.
    plan_only : bool
        Print the plan of each run in place of running it.
    """

    folder: Path
    memory: int | str | None = None
    keep_work: bool = False
    timeout: float = 3600.0
    in_memory: bool = False
    progress: bool = False
    rehearse: bool = True
    check_halo: bool = False
    force: bool = False
    plan_only: str = ""
    types: Types = field(default_factory=Types)
    costs: dict[str, Costs] = field(default_factory=dict)
    records: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)
    catalogue: dict[str, Any] | None = None
    kept_items: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    rehearsal: Any = None
    held: int = 0
    has_looked: bool = False
    only_planned: bool = False

    def __post_init__(self):
        from mpiimg.arrays.rehearsing import Rehearsed

        self.rehearsal = Rehearsed()

    def budget(self, comm: Any, memory: Any = None) -> int:
        """Return the bytes that each rank may use, and look at what the program itself holds. Collective."""
        from mpiimg.engine.mpi.memory import anonymous_now
        from mpiimg.engine.mpi.nodes import memory_per_rank
        from mpiimg.engine.mpi.runtime import over_ranks
        from mpiimg.engine.parameters import checked_memory

        # The program's own arrays are in the memory of every rank too.
        self.held = int(over_ranks(comm, {}, {"held": anonymous_now()})["held"])
        given = self.memory if memory is None else memory
        return memory_per_rank(comm) if given is None else checked_memory(given, "memory =")


#: The sessions that are open, the default one first.
_open: list[Session] = []


def current() -> Session:
    """Return the innermost open session; the default one is opened at need."""
    if not _open:
        name = file_name(Path(rendezvous.program() or "session").stem) or "session"
        given = scripts.settings()
        made = Session(
            Path(given.folder or ".", FOLDER, name), given.memory, given.keep_work, given.timeout,
            given.in_memory, given.progress, check_halo=given.check_halo, force=given.force,
            plan_only=given.plan or "",
        )  # fmt: skip
        _open.append(made)
        process = os.getpid()
        scripts.when_ended(lambda: _close_default(made, process))
    return _open[-1]


def _close_default(session: Session, process: int) -> None:
    """Remove what the default session has kept, if the program came to its end."""
    failed = getattr(sys, "last_value", None) is not None or session.status not in (0, 3)
    # What the rehearsal of a plan has told serves the run that follows.
    kept = session.keep_work or session.plan_only or session.only_planned
    if os.getpid() == process and not failed and not kept and scripts.is_first_rank():
        remove(session)


def remove(session: Session) -> None:
    """Remove the folder of a session, on one rank."""
    shutil.rmtree(session.folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        session.folder.parent.rmdir()


@contextlib.contextmanager
def session(
    folder: Any = None,
    *,
    memory: int | str | None = None,
    keep_work: bool = False,
    timeout: float = 3600.0,
    in_memory: bool = False,
    progress: bool = False,
    rehearse: bool = True,
    check_halo: bool = False,
) -> Iterator[Session]:
    """Open a session: all runs within share a folder, a cap of memory, and what `persist` keeps. Collective.

    Parameters
    ----------
    folder : path, optional
        Of what is kept between runs, on a file system that all ranks share; by default .mpiimg/NAME of the
        program, which is removed when the program has come to its end.
    memory : int or str, optional
        Bytes that each rank may use, also as "4G"; by default its share of the node's.
    keep_work : bool
        Leave the folder: a later program that opens it finds what was persisted and computed.
    timeout : float
        Seconds that a block or an exchange may take before a rank that hangs ends the job.
    in_memory : bool
        Stage nothing on disk in runs that write; one that dies starts over.
    progress : bool
        Show on stderr how far a run is: a bar on a terminal, else a line now and then.
    rehearse : bool
        Call functions on a little of the data before a run.
    check_halo : bool
        Look whether what lies outside the declared depth of functions changes what lies within.

    Raises
    ------
    mpiimg.errors.BadInput
        A value makes no sense.
    """
    from mpiimg.engine.parameters import TIMEOUT, checked, checked_memory

    place = Path(os.fspath(folder)) if folder is not None else current().folder
    made = Session(
        place, None if memory is None else checked_memory(memory, "memory ="), keep_work,
        checked(TIMEOUT, timeout, "timeout ="), in_memory, progress, rehearse, check_halo,
        plan_only=scripts.settings().plan or "", types=Types(), costs={},
    )  # fmt: skip
    with scripts.collective("session", digest(str(place), memory, keep_work)):
        pass
    _open.append(made)
    try:
        yield made
    finally:
        _open.remove(made)
    if folder is not None and not keep_work:
        with scripts.collective("session end", digest(str(place))) as comm:
            on_root(comm, remove, made)


# --- Types ------------------------------------------------------------------------------------------------


def known_types(nodes: Sequence[Node]) -> Types:
    """Return the types of arrays; functions are rehearsed where these are not known. Collective then."""
    known = current().types
    if all(known.of(node) is not None for node in nodes):
        return known
    with scripts.collective("rehearsal", digest([node.key for node in nodes])) as comm:
        from mpiimg.arrays.rehearsing import rehearsed

        rehearsed(current(), list(nodes), comm)
    return current().types


# --- Calls ------------------------------------------------------------------------------------------------


def compute(*arrays: Any, root: int | None = None, memory: Any = None) -> Any:
    """Run all that is needed, and return arrays as NumPy arrays: the same ones on every rank. Collective.

    Parameters
    ----------
    *arrays : Array
        Or items and tables.
    root : int, optional
        The only rank that gets them; the others get None.
    memory : int or str, optional
        Bytes that each rank may use, for this run.

    Returns
    -------
    ndarray or tuple of ndarray
        One for each array; a NumPy scalar for one that has no axes.

    Raises
    ------
    mpiimg.errors.BadInput
        It cannot be done: the message says why. What is returned has no place in the memory of a rank.
    mpiimg.errors.RunFailed
        A rank raised; the same call goes on where it ended.
    """
    from mpiimg.arrays import runs

    if not arrays:
        raise BadInput("compute: there is nothing to compute")
    if current().plan_only:
        runs.planned(current(), arrays, scripts.settings().ranks, scripts.settings().nodes, memory)
        scripts.end_planned()
    if all(map(_is_computed, arrays)):
        return arrays[0] if len(arrays) == 1 else arrays
    if any(hasattr(one, "_computed") or _is_computed(one) for one in arrays):
        # What needs no work is given back as it is, as by dask.
        results = [
            one
            if _is_computed(one)
            else one._computed(root, memory)
            if hasattr(one, "_computed")
            else compute(one, root=root, memory=memory)
            for one in arrays
        ]
        return results[0] if len(arrays) == 1 else tuple(results)
    nodes = [node_of(one, "compute") for one in arrays]
    with scripts.collective("compute", digest([node.key for node in nodes], root, str(memory))) as comm:
        if root is not None and (
            isinstance(root, bool) or not isinstance(root, int) or not 0 <= root < comm.size
        ):
            raise BadInput(f"compute: root = {root!r}: there are ranks 0 to {comm.size - 1}")
        values = runs.computed(current(), nodes, comm, root, memory)
    if values is None:
        return None if len(arrays) == 1 else (None,) * len(arrays)
    return values[0] if len(arrays) == 1 else tuple(values)


def _is_computed(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | int | float | complex)


def persist(*arrays: Any) -> Any:
    """Return arrays, or items, as ones that are made once, and kept for all runs of this program."""
    made = tuple(
        one.persist() if hasattr(one, "_items") else Array(persisted(node_of(one, "persist")))
        for one in arrays
    )
    return made[0] if len(made) == 1 else made


def write(
    results: Mapping[str, Any],
    folder: Any = ".",
    *,
    memory: Any = None,
    force: bool = False,
    in_memory: bool | None = None,
    keep_work: bool = False,
    progress: bool | None = None,
    timeout: float | None = None,
) -> Any:
    """Run all that is needed, and write results into a folder: one plan, one run. Collective.

    Parameters
    ----------
    results : mapping of str to Array, or to items, tables
        By the names of their files, whose endings name the formats: {"fa.nii.gz": fa}.
    folder : path
        Of the results, beside which run.json says how they came about.
    memory : int or str, optional
        Bytes that each rank may use, also as "4G"; by default that of the session.
    force : bool
        Make all anew, and overwrite what is there.
    in_memory : bool
        Stage nothing on disk; a run that dies starts over.
    keep_work : bool
        Keep the staged arrays and the marks of a finished run.
    progress : bool
        Show on stderr how far a run is: a bar on a terminal, else a line now and then.
    timeout : float
        Seconds that a block or an exchange may take.

    Returns
    -------
    Result
        The files, the content of run.json, and what was left out.

    Raises
    ------
    mpiimg.errors.BadInput
        It cannot be done: the message says why, and nothing is written.
    mpiimg.errors.RunFailed
        A rank raised; the same call goes on where it ended.
    """
    from mpiimg.arrays import runs

    if not isinstance(results, Mapping):
        raise BadInput(
            "write: takes results by the names of their files, as in mi.write({'fa.nii.gz': fa}); "
            "one array is written by x.write('fa.nii.gz')"
        )
    if not results:
        raise BadInput("write: there is nothing to write")
    try:
        place = Path(os.fspath(folder))
    except TypeError:
        raise BadInput(f"write: folder = {folder!r}: must be a path") from None
    checked = {}
    for name, value in results.items():
        if not isinstance(name, str | os.PathLike):
            raise BadInput(f"write: {name!r} is no name of a file")
        checked[_file_name(os.fspath(name))] = value
    if len(checked) < len(results):
        raise BadInput("write: two results have the same file")
    session_now = current()
    given = {"memory": memory, "force": force, "keep_work": keep_work}
    options = {
        **given,
        "in_memory": session_now.in_memory if in_memory is None else in_memory,
        "progress": session_now.progress if progress is None else progress,
        "timeout": session_now.timeout if timeout is None else timeout,
    }
    return runs.written(session_now, checked, place, options)


def _file_name(name: str) -> str:
    """Return a name of a result, which lies in the folder of results."""
    plain = os.path.normpath(name)
    trailing = "/" if name.endswith("/") else ""
    if os.path.isabs(plain) or plain.startswith("..") or plain in (".", ""):
        raise BadInput(
            f"write: {name!r}: must be the name of a file within the folder; give folder= for another"
        )
    return plain + trailing


def write_one(array: Any, path: Any, **options: Any) -> Any:
    """Write one array, or items, or a table, to a path."""
    try:
        place = Path(os.fspath(path))
    except TypeError:
        raise BadInput(f"x.write: takes the path of a file, and not {type(path).__name__}") from None
    from mpiimg.formats.interface import split

    # Of x.h5:/a/b and x.zarr/a the file or the store is what lies in a folder.
    folder = split(place)[0].parent
    return write({os.path.relpath(place, folder): array}, folder, **options)


def plan(*results: Any, ranks: int | None = None, nodes: int | None = None, memory: Any = None) -> None:
    """Print what a run would need: stages, chunks, bytes in memory, files and messages, seconds.

    Parameters
    ----------
    *results : Array, or a mapping as `write` takes it
    ranks : int, optional
        By default those that run this.
    nodes : int, optional
        That they are spread over.
    memory : int or str, optional
        Bytes that each rank may use.
    """
    from mpiimg.arrays import runs

    if not results:
        raise BadInput("plan: there is nothing to plan")
    runs.planned(current(), results, ranks, nodes, memory)


def check_halo(*arrays: Any) -> str:
    """Look whether what lies outside the declared depth of functions changes what lies within. Collective.

    Functions are called on blocks as they will see them, and on the same blocks with other data around them.

    Parameters
    ----------
    *arrays : Array

    Returns
    -------
    str
        A line for each function that the arrays are made by.
    """
    from mpiimg.arrays import rehearsing

    nodes = [node_of(one, "check_halo") for one in arrays]
    with scripts.collective("check_halo", digest([node.key for node in nodes])) as comm:
        return "\n".join(rehearsing.halos_checked(current(), arrays, comm))


def iterate(body: Any, state: Any, until: Any = None, *, at_most: int) -> Any:
    """Return what comes of calling `body` on a state again and again. Collective.

    Each pass is kept: a program that was killed goes on with the pass that it was in.

    Parameters
    ----------
    body : callable
        Called as body(state); returns the next state: an array, or a tuple of arrays.
    state : Array or tuple of Array
        The first.
    until : callable, optional
        Called as until(state), or as until(state, before) if it takes two; returns an array of one truth
        value: whether it is the last state.
    at_most : int
        Passes.

    Returns
    -------
    Array or tuple of Array
    """
    import inspect

    if isinstance(at_most, bool) or not isinstance(at_most, int) or at_most < 0:
        raise BadInput(f"iterate: at_most = {at_most!r}: must be a whole number from 0 on")
    for one in state if isinstance(state, tuple | list) else [state]:
        if isinstance(one, np.ndarray | int | float):
            node_of(one, "iterate")
    both = until is not None and len(inspect.signature(until).parameters) > 1
    for _ in range(at_most):
        before, made = state, body(state)
        if made is None:
            raise BadInput("iterate: body returns nothing; return the next state")
        single = not isinstance(made, tuple | list)
        state = persist(made) if single else tuple(persist(one) for one in made)
        if until is None:
            continue
        last = until(state, before) if both else until(state)
        value = compute(last) if hasattr(last, "_node") else last
        if np.size(value) != 1:
            shape = (
                f"of the axes {' '.join(last.axes)}"
                if hasattr(last, "_node")
                else f"of {np.size(value)} values"
            )
            raise BadInput(
                f"iterate: until returns an array {shape}; one truth value is due, e.g. (...).all()"
            )
        if bool(value):
            break
    return state


def kept_nodes(targets: Sequence[Node], there: Mapping[str, Any]) -> list[Node]:
    """Return the persisted nodes that targets are made of, and that are not there."""
    return [node for node in needed(list(targets), there) if isinstance(node, Persisted)]
