"""Fingerprint of a run: everything that its results depend on, to notice what changed since an earlier run.

Also whether the inputs have changed while the run read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mpiimg.engine.provenance import RESULT_LIBRARIES, versions
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.records import DamagedRecord, read_record
from mpiimg.errors import BadInput
from mpiimg.version import __version__

#: Changes that a message names; more are counted.
MAX_CHANGES = 3


def fingerprint(recipe: Recipe, cpu_target: str) -> dict:
    """Return everything that the results of a run depend on, as JSON knows it."""
    content = {
        "tool": recipe.tool,
        "mpiimg": __version__,
        "libraries": {**versions(RESULT_LIBRARIES), **recipe.packages},
        "CPU": cpu_target,
        "parameters": dict(recipe.parameters),
        "inputs": dict(recipe.sources),
    }
    return json.loads(json.dumps(content, default=str))


def read_fingerprint(path: Path) -> dict | None:
    """Return the fingerprint of an earlier run; None where there was none, empty where it cannot be read."""
    try:
        return read_record(path)
    except DamagedRecord:
        return {}


def changes(earlier: Mapping, now: Mapping) -> str:
    """Say in one line what differs between two fingerprints."""
    phrases = list(_changes(earlier, now))
    more = [f"{len(phrases) - MAX_CHANGES} more"] if len(phrases) > MAX_CHANGES else []
    return ", ".join(phrases[:MAX_CHANGES] + more)


def _changes(earlier: Mapping, now: Mapping) -> Iterator[str]:
    for key in ("tool", "mpiimg", "CPU"):
        if earlier.get(key) != now[key]:
            yield f"{key} {now[key]} (was {earlier.get(key)})"
    for group, form in (("libraries", "{}"), ("parameters", "--{}")):
        before, after = earlier.get(group, {}), now[group]
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                shown = form.format(name.replace("_", "-"))
                if isinstance(after.get(name), list):
                    yield f"{shown}, of which there are {len(after[name])}"
                else:
                    yield f"{shown} {after.get(name)} (was {before.get(name)})"
    before, after = earlier.get("inputs", {}), now["inputs"]
    for name in sorted({*before, *after}):
        if name not in after or name not in before:
            yield f"input {name} {'is new' if name in after else 'is gone'}"
        elif before[name] != after[name]:
            yield f"input {name} was changed"


def seen(recipe: Recipe) -> dict[Path, tuple[int, int] | None]:
    """Return size and mtime_ns of every input; None for one that is gone."""
    return {path: _size_and_time(path) for path in recipe.files}


def check_unchanged(recipe: Recipe, before: Mapping[Path, tuple[int, int] | None]) -> None:
    """Refuse inputs that are not as they were `before`: results of them would fit no file that is there.

    Raises
    ------
    BadInput
        An input has another size or time, or is gone.
    """
    for path, now in seen(recipe).items():
        if now != before[path]:
            how = "gone" if now is None else "changed"
            raise BadInput(
                f"{path}: {how} while the run read it, nothing is published; "
                "leave it in place and give the same command again"
            )


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
