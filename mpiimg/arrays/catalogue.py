"""What earlier runs of a session have kept: stored arrays, each in a staged file, by what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.arrays.array_results import KeptInput
from mpiimg.arrays.graph import FromInput, Node, walk
from mpiimg.arrays.lower import stored_array
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.errors import BadInput


def kept_arrays(session: Any, targets: Sequence[Node], comm: Any) -> dict[str, KeptInput]:
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
            found[node.key] = KeptInput(kept_path(session, node), array, node.key)
    return found | items_kept.found(session, targets, comm)


def kept_path(session: Any, node: Node) -> Path:
    return session.folder / f"{node.name}.h5"


def _dtype_kept(session: Any, node: Node) -> str | None:
    """Return the type of a node that a run of the session has kept, None where none has. On one rank."""
    from mpiimg.engine.staged_file import check_record

    if session.catalogue is None:
        session.catalogue = catalogue_of(session.folder)
    entry = session.catalogue.get(node.key)
    if entry is None or (entry.earlier and not node.resumable):
        return None
    try:
        return entry.dtype if check_record(kept_path(session, node)) else None
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


def catalogue_of(folder: Path) -> dict[str, Kept]:
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
