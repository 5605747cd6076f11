"""A run that was done before: whether its record says so, and whether that is what is asked for now."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.fingerprint import changes, fingerprint
from mpiimg.engine.lease import acquire_work, remove_work
from mpiimg.engine.log.events import events_folder
from mpiimg.engine.names import shown
from mpiimg.engine.recipe import Options, Recipe, records_folder, work_folder
from mpiimg.engine.records import DamagedRecord, read_record
from mpiimg.engine.results import out_of_place
from mpiimg.errors import BadInput
from mpiimg.version import __version__

#: In the work folder of a run that ended without some of its inputs.
LEFT_OUT = "left-out"

#: What a run is asked for. The other parts of a fingerprint may differ, and the result still is one.
_ASKED = ("tool", "parameters", "inputs")


@dataclass(frozen=True)
class Earlier:
    """What the record of an earlier run into the same folder comes to.

    Parameters
    ----------
    record : mapping
        Its content; empty where there is none that can be believed.
    why_not : str
        Why it is not what is asked for now, or "" where it is.
    note : str
        What was otherwise then, and changes nothing about its being done.
    left_out : tuple of str
        Units that it left out and that may be used now, for all that is known beforehand.
    """

    record: Mapping[str, Any]
    why_not: str = ""
    note: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def is_the_same(self) -> bool:
        """Whether the results that are there are those that are asked for."""
        return bool(self.record) and not self.why_not

    def line(self, out: Path) -> str:
        """Say in a line that results in folder `out` are done."""
        results, left_out = len(self.record["outputs"]), len(_mapping(self.record.get("left_out")))
        without = f", {left_out} left out" if left_out else ""
        otherwise = f"; otherwise than then: {self.note}" if self.note else ""
        count = f"{results} result{'s' * (results != 1)}"
        return f"already done: {count} in {shown(out)}{without}{otherwise}; --force makes them anew"


def finished(recipe: Recipe, options: Options, ranks: int, claimed: bool) -> Earlier | None:
    """Return what is known of an earlier run if it has done just this; remove what it left to be removed.

    Where it left out units, and its work folder is there, the work is taken up again.
    """
    from mpiimg.kernels.jit import cpu_target

    if options.force:
        return None
    earlier = earlier_run(recipe, options, fingerprint(recipe, cpu_target()), ranks)
    work = work_folder(recipe, options)
    if not earlier.is_the_same or (earlier.left_out and work.exists()):
        return None
    if options.replace and earlier.record.get("version") != __version__:
        return None  # the scans of a cohort are all of one version
    if not options.keep_work:
        # What it leaves in the way of nobody is no reason to fail, nor is another run that is at work there.
        with contextlib.suppress(OSError, BadInput):
            _tidy(recipe, options, work, claimed)
    return earlier


def _tidy(recipe: Recipe, options: Options, work: Path, claimed: bool) -> None:
    """Remove the work folder of a run that died when it had published all."""
    if not work.exists():
        remove_work(work)  # it died while it removed it
    elif not (work / LEFT_OUT).exists():
        events = events_folder(records_folder(options), recipe.record)
        if not claimed:
            acquire_work(work, events, options.out, options.timeout)
        remove_work(work)


def earlier_run(recipe: Recipe, options: Options, current: Mapping[str, Any], ranks: int) -> Earlier:
    """Look for the record of an earlier run, and compare what it was asked for with what is asked for now.

    Parameters
    ----------
    recipe : Recipe
    options : Options
    current : mapping
        As :func:`mpiimg.engine.fingerprint.fingerprint` gives it.
    ranks : int
        Of this run.
    """
    path = records_folder(options) / recipe.record
    try:
        record = read_record(path)
    except DamagedRecord as error:
        return Earlier({}, f"{path} {error}")
    except OSError as error:
        return Earlier({}, f"{path}: {error.strerror}")
    if record is None:
        return Earlier({})
    before = _fingerprint(record)
    paths = _Paths(recipe, current)
    asked = paths.plain({key: before.get(key) for key in _ASKED}, record.get("started_in"))
    now = {**current, **paths.plain({key: current[key] for key in _ASKED}, os.getcwd())}
    if _text(asked) != _text({key: now[key] for key in _ASKED}):
        return Earlier(record, f"it was made otherwise, now: {changes({**now, **asked}, now)}")
    if lost := next(out_of_place(path, record), None):
        return Earlier(record, lost)
    note = ", ".join(_otherwise(before, current, record.get("ranks"), ranks))
    left_out = {*_mapping(record.get("left_out"))} - {*recipe.left_out}
    return Earlier(record, note=note, left_out=tuple(sorted(left_out)))


class _Paths:
    """The files that a run is asked to read: the same ones by whatever path, and in whatever order.

    Parameters
    ----------
    recipe : Recipe
    current : mapping
        The fingerprint of this run.
    """

    def __init__(self, recipe: Recipe, current: Mapping[str, Any]):
        named = [text for part in ("parameters", "inputs") for text in _texts(current[part]) if _exists(text)]
        self._known = frozenset(os.path.abspath(path) for path in (*recipe.files, *named))

    def plain(self, value: Any, folder: Any) -> Any:
        """Return JSON with the paths of these files as they are from the root on.

        Parameters
        ----------
        value : JSON value
        folder : str
            Which relative paths are from, where that is known.
        """
        if isinstance(value, dict):
            return {self.plain(key, folder): self.plain(one, folder) for key, one in value.items()}
        if isinstance(value, list):
            plain = [self.plain(one, folder) for one in value]
            # What comes of files does not depend on their order; of numbers it may.
            return sorted(plain) if plain and all(map(self._is_known, plain)) else plain
        if isinstance(value, str) and isinstance(folder, str):
            path = os.path.normpath(os.path.join(folder, value))
            return path if self._is_known(path) else value
        return value

    def _is_known(self, value: Any) -> bool:
        return isinstance(value, str) and value in self._known


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (one for one in value if isinstance(one, str))
    elif isinstance(value, dict):
        yield from (one for part in value.values() for one in _texts(part))


def _exists(text: str) -> bool:
    try:
        return os.path.exists(text)
    except (OSError, ValueError):
        return False


def _otherwise(before: Mapping, current: Mapping, ranks_before: Any, ranks: int) -> Iterator[str]:
    same = {key: current[key] for key in _ASKED}
    # The record names more libraries than results depend on.
    same["libraries"] = {name: before["libraries"].get(name) for name in current["libraries"]}
    if text := changes({**before, **same}, current):
        yield text
    if ranks_before != ranks:
        yield f"ranks {ranks} (was {ranks_before})"


def _fingerprint(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of the run that a record is of."""
    return {
        "tool": record.get("tool"),
        "mpiimg": record.get("version"),
        "libraries": _mapping(record.get("libraries")),
        "CPU": record.get("cpu_target"),
        "parameters": _mapping(record.get("parameters")),
        "inputs": _mapping(record.get("inputs")),
    }


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _text(content: Any) -> str:
    """Return JSON, in which NaN equals itself."""
    return json.dumps(content, sort_keys=True)
