"""A file that selects images by the parts of their names, as fMRIPrep and QSIPrep are given it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.names import shown
from mpiimg.engine.small_files import read_text
from mpiimg.errors import BadInput

#: Names of pybids for the parts of a name.
KEYS = {
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "part": "part",
    "chunk": "chunk",
}

#: What every image that is looked for is, which a filter may say as well.
FIXED = {"datatype": {"dwi"}, "suffix": {"dwi"}, "extension": {".nii", ".nii.gz", "nii", "nii.gz"}}

#: Images of other kinds, which callers select in the same file for other programs.
OTHER_QUERIES = frozenset(
    {"anat", "asl", "bold", "flair", "fmap", "m0scan", "pet", "roi", "sbref", "t1w", "t2w", "func"}
)

#: Words for a part that a name does not have, and for one that it has whatever it is, beside JSON's null.
NONE, ANY = frozenset({"Query.NONE"}), frozenset({"*", "Query.ANY"})


@dataclass(frozen=True)
class Filter:
    """Which images are asked for.

    Parameters
    ----------
    allowed : mapping of str to tuple
        By the key of a part of a name, e.g. ses: the labels that it may have, None for none at all.
    """

    allowed: Mapping[str, tuple[str | None, ...]]

    def __call__(self, entities: Mapping[str, str]) -> bool:
        """Say whether an image with these parts of its name is asked for."""
        return all(
            any(_is(entities.get(key), label) for label in labels) for key, labels in self.allowed.items()
        )


def read_filter(path: Path) -> tuple[Filter, list[str]]:
    """Read a filter file: {"dwi": {"session": ["01", "02"], "acquisition": null}}.

    Returns
    -------
    filter : Filter
    notes : list of str
        What it says of other images, and is ignored.

    Raises
    ------
    BadInput
        It cannot be read, or has keys or values that are not known.
    """
    queries = _object(path)
    known = sorted({*queries} & OTHER_QUERIES)
    unknown = sorted({*queries} - OTHER_QUERIES - {"dwi"})
    if unknown:
        raise BadInput(
            f"{path}: unknown key {shown(repr(unknown[0]))}; dwi is the one that selects images here"
        )
    query = queries.get("dwi", {})
    if not isinstance(query, dict):
        raise BadInput(f'{path}: dwi must be an object such as {{"session": "01"}}')
    allowed = {}
    for key, value in query.items():
        labels = tuple(_label(path, key, one) for one in (value if isinstance(value, list) else [value]))
        if key in KEYS:
            prefix = f"{KEYS[key]}-"
            allowed[KEYS[key]] = tuple(one and one.removeprefix(prefix) for one in labels)
        elif key not in FIXED:
            names = ", ".join([*KEYS, *FIXED])
            raise BadInput(f"{path}: unknown key {shown(repr(key))} of dwi; there are {names}")
        elif not {*labels} & {*FIXED[key], *ANY}:
            raise BadInput(f"{path}: no diffusion image has the {key} {shown(str(value))}")
    return Filter(allowed), [f"{path}: {name} selects no diffusion image, and is ignored" for name in known]


def _object(path: Path) -> dict[str, Any]:
    try:
        queries = json.loads(read_text(path, "this filter"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({shown(str(error)[:100])})") from None
    if not isinstance(queries, dict):
        raise BadInput(f'{path}: not a JSON object such as {{"dwi": {{"session": "01"}}}}')
    return queries


def _label(path: Path, key: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value in NONE):
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise BadInput(
        f"{path}: {shown(key)} must be a label, null or a list of these, not {shown(json.dumps(value))}"
    )


def _is(label: str | None, allowed: str | None) -> bool:
    """Say whether a part of a name is as allowed; numbers may have zeros in front, as run-01 has."""
    if label is None or allowed is None:
        return label is allowed
    if allowed in ANY or label == allowed:
        return True
    return label.isdecimal() and allowed.isdecimal() and int(label) == int(allowed)
