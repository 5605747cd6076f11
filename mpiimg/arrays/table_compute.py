"""Tables on every rank: made by a run of their own, and kept in the folder of the session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpiimg.arrays import catalogue, keeping, recipes, rehearsing, session
from mpiimg.arrays.graph import digest, walk
from mpiimg.arrays.stored import Persisted
from mpiimg.arrays.table_nodes import TableNode
from mpiimg.arrays.table_results import KEPT, TableResult, load
from mpiimg.engine.mpi import scripts
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.recipe import Options
from mpiimg.errors import BadInput
from mpiimg.formats.tables.columns import Rows, Schema


def computed(node: TableNode, root: int | None, memory: Any) -> tuple[Schema, Rows] | None:
    """Return a table as every rank, or `root`, has it. Collective.

    Raises
    ------
    BadInput
        It has no place in the memory of a rank.
    """
    with scripts.collective("compute", digest([node.key], root, str(memory))) as comm:
        if root is not None and (type(root) is not int or not 0 <= root < comm.size):
            raise BadInput(f"compute: root = {root!r}: there are ranks 0 to {comm.size - 1}")
        now = session.current()
        path = now.folder / f"{node.name}{KEPT}"
        if not on_root(comm, lambda: node.resumable and is_kept(path, node)):
            _keep(now, TableResult(node, path.name), comm, memory)
        check_room(on_root(comm, lambda: path.stat().st_size), now.budget(comm, memory))
        mine = None if root is not None and comm.rank != root else load(path)
        comm.Barrier()  # until all have read it: what comes next may write it anew
    return mine


def check_room(size: int, memory: int) -> None:
    """Refuse a table of so many bytes in its file that a rank has no room for it, and the rows made of it.

    Raises
    ------
    BadInput
    """
    if 2 * size > max(memory - recipes.BASELINE, 0):
        raise BadInput(
            f"compute: the table has {size >> 20} MB, and a rank may use {memory >> 20} MB in all; "
            "write it to a file by t.write(path), take some rows of it, or give memory="
        )


def _keep(now: Any, result: TableResult, comm: Any, memory: Any) -> None:
    """Make a table in the folder of the session. Collective."""
    node = result.node
    rehearsing.rehearsed(now, [node], comm)
    below = [one for one in walk([node]) if isinstance(one, Persisted)]
    kept = keeping.keep(now, below, comm, memory) if below else {}
    kept |= catalogue.kept_arrays(now, [node], comm)
    recipe = recipes.recipe_of(
        now, [result], stem=node.name, record=_record(node), nonce=recipes.new_nonce(comm), kept=kept
    )
    options = Options(
        now.folder,
        now.budget(comm, memory),
        progress=now.progress,
        timeout=now.timeout,
        replace=True,
        force=not node.resumable,
        quiet=True,
    )
    recipes.carry_out(recipe, comm, options, now)


def _record(node: TableNode) -> str:
    return f"run-{node.name}.json"


def is_kept(path: Path, node: TableNode) -> bool:
    """Say whether an earlier run has left a table there, whole."""
    from mpiimg.engine.records import DamagedRecord
    from mpiimg.engine.results import read_record

    try:
        record = read_record(path.parent / _record(node))
    except (DamagedRecord, OSError, BadInput):
        return False
    return record is not None and path.exists()
