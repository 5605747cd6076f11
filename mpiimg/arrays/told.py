"""What rehearsals have told, kept for later programs: a plan, a run and its rerun rehearse a function once.

It lies in the folder of the session, and in the record of each run that has come to its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpiimg.arrays.graph import Node, walk
from mpiimg.arrays.lower import Costs
from mpiimg.arrays.types_of import Types
from mpiimg.engine.atomic import make_folder
from mpiimg.engine.records import DamagedRecord, read_record, write_record

#: Name of the file in the folder of a session.
FILE = "rehearsed.json"


def facts(targets: Sequence[Node], types: Types, costs: Mapping[str, Costs]) -> dict[str, Any]:
    """Return what is known of a graph, as JSON has it; nothing where not all that it is made of is known."""
    nodes = list(walk(list(targets)))
    if not all(node.known for node in nodes):
        return {}
    return {"types": types.as_json(), "costs": {key: asdict(one) for key, one in costs.items()}}


def save(folder: Path, told: Mapping[str, Any]) -> None:
    """Keep what is known in the folder of a session. On one rank."""
    if told:
        make_folder(folder)
        write_record(folder / FILE, {"rehearsal": {"told": told}})


def load(path: Path) -> dict[str, Any]:
    """Return what an earlier program has kept in a session, or in the record of a run. On one rank."""
    try:
        told = ((read_record(path) or {}).get("rehearsal") or {}).get("told") or {}
        types = {str(key): str(dtype) for key, dtype in told.get("types", {}).items()}
        costs = {str(key): asdict(Costs(**one)) for key, one in told.get("costs", {}).items()}
    except (DamagedRecord, OSError, AttributeError, TypeError):
        return {}
    return {"types": types, "costs": costs}


def learn(told: Mapping[str, Any], types: Types, costs: dict[str, Costs]) -> None:
    """Take what an earlier program has kept."""
    for key, dtype in told.get("types", {}).items():
        if types.known(key) is None:
            types.learn(key, dtype)
    for key, one in told.get("costs", {}).items():
        costs.setdefault(key, Costs(**one))
