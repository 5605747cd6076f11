"""The tables of a cohort: a row for each scan, from its records and sidecars alone."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiimg.engine.atomic import write_file
from mpiimg.engine.lease import Kind, LeaseState
from mpiimg.errors import BadInput
from mpiimg.neuro.bids import entities_of
from mpiimg.neuro.cohort.records import LOGS, read_settings, scan_states
from mpiimg.neuro.cohort.status import counts, why

#: Names of the table and of what describes its columns, in the folder of records.
TABLE, COLUMNS = "group_dwi.tsv", "group_dwi.json"

#: What stands in a table where there is nothing, as BIDS has it.
NOTHING = "n/a"

#: Columns that every table has, and what they are.
FIRST = {
    "participant_id": "The subject.",
    "session_id": "The session, where the subject has sessions.",
    "scan": "The beginning of the names of the results.",
    "status": "What became of the scan: done, passed over, broken, failed, or not done yet.",
    "reason": "Why the scan is in a state other than done.",
}

#: Words in the names of images for what made them, in the names of columns.
MAKERS = {"brain": "mask", "noise": "noise", "denoised": "denoise"}

#: Fields whose words differ from scan to scan; others say the same of all.
WORDS = re.compile(r"(?!GeneratedBy)\w*(Method|Source|By)")

#: Settings that are figures too, since they may be found out for each scan.
KEPT = ("sigma", "method")

#: Lists that are short, and figures all the same.
LISTS = frozenset({"Shells", "MedianRadius", "MedianRadiusVoxels"})

#: Of an image that inherits the fields of the raw sidecars, those that the step has added.
OF_SERIES = re.compile(r"Method|PatchRadius|BlockRadius|Volumes\w*")

#: Units of figures by the end of their column.
UNITS = {"_ml": "ml", "_shells": "s/mm^2", "_sigma": "arbitrary", "_noise_level": "arbitrary"}


def write_tables(out: Path, participants: Sequence[str] = (), sessions: Sequence[str] = ()) -> str:
    """Write the tables of a cohort; return where they are, in words.

    Parameters
    ----------
    out : Path
        Folder of the derivative.
    participants, sessions : sequence of str
        Labels, with or without sub- and ses-; all where none are given.

    Raises
    ------
    BadInput
        No scan was processed there, or nothing can be written.
    """
    states = {
        name: state
        for name, state in scan_states(out).items()
        if _is_among(name, "sub", participants) and _is_among(name, "ses", sessions)
    }
    if not states:
        raise BadInput(f"{out}: no scan was processed there; run the level participant first")
    parameters = read_settings(out).get("parameters", {})
    settings = {name: _number(value) for name, value in parameters.items() if name not in KEPT}
    rows = [_row(out, name, state, settings) for name, state in states.items()]
    try:
        for file, data in ((TABLE, _tsv(rows)), (COLUMNS, _described(rows))):
            write_file(out / LOGS / file, data)
    except OSError as error:
        raise BadInput(f"{out}: cannot write there: {error.strerror}") from None
    return f"{out / LOGS / TABLE}: {counts({name: state.kind for name, state in states.items()})}"


def _is_among(name: str, key: str, labels: Sequence[str]) -> bool:
    return not labels or (entities_of(name) or {}).get(key) in {one.removeprefix(f"{key}-") for one in labels}


def _row(out: Path, name: str, state: LeaseState, settings: Mapping[str, str]) -> dict[str, str]:
    """Return what there is to say of a scan, by column, but for settings, which all scans share."""
    parts = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
    row = {
        "participant_id": f"sub-{parts.get('sub', '')}",
        "session_id": f"ses-{parts['ses']}" if "ses" in parts else NOTHING,
        "scan": name,
        "status": str(state.kind),
        "reason": _text(why(state)) or NOTHING,
    }
    if state.kind is Kind.DONE:
        files = sorted(one for one in state.end["files"] if one.endswith(".json"))
        figures = _figures({one: _fields(out / state.end["folder"] / one) for one in files})
        row |= {
            column: value
            for column, value in figures.items()
            if settings.get(column.partition("_")[2]) != value
        }
    return row


def _fields(sidecar: Path) -> dict[str, Any]:
    """Return what a sidecar says; nothing where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        fields = json.loads(sidecar.read_text())
        return fields if isinstance(fields, dict) else {}
    return {}


def _figures(sidecars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the figures in the sidecars of a scan, by column.

    What the sidecars of all maps of a fit say alike is said once, as of the fit.
    """
    by_image: dict[str, dict[str, str]] = {}
    maps = []
    for file, fields in sidecars.items():
        label = re.search(r"_(desc|param)-([0-9A-Za-z]+)_", file)
        if label is None:
            continue
        word = MAKERS.get(label[2], label[2])
        is_series = file.endswith("_dwi.json")
        by_image[word] = {
            column: value
            for column, value in _flat(fields)
            if not is_series or OF_SERIES.fullmatch(column.partition(".")[0])
        }
        if label[1] == "param":
            maps.append(word)
    alike = set.intersection(*({*by_image[one].items()} for one in maps)) if maps[1:] else set()
    figures = {_column("fit", field): value for field, value in sorted(alike)}
    for word, fields in by_image.items():
        own = [one for one in fields.items() if word not in maps or one not in alike]
        figures |= {_column(word, field): value for field, value in own}
    return figures


def _column(word: str, field: str) -> str:
    """Return the name of a column: noise_method, of NoiseMethod in the sidecar of noise."""
    return f"{word}_{snake(field).removeprefix(f'{word}_')}"


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the figures among fields, with those of one level below: names of columns, and values."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", _number(one)) for key, one in value.items() if _is_number(one))
        elif _is_number(value):
            yield name, _number(value)
        elif isinstance(value, str) and WORDS.fullmatch(name):
            yield name, _text(value) or NOTHING
        elif isinstance(value, list) and name in LISTS:
            yield name, ",".join(map(_number, value))
        elif name == "Sigma" and isinstance(value, list) and value:
            # By volume or slice: one number says what there is to compare.
            yield name, _number(sum(value) / len(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    return json.dumps(float(f"{value:.6g}")) if isinstance(value, float) else json.dumps(value)


def _text(value: str) -> str:
    return " ".join(value.split())


def snake(name: str) -> str:
    """Return the name of a field as that of a column: NumBadSlices as num_bad_slices."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"\W+", "_", spaced).lower()


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the columns of a table: those that all have, then figures in the order of the alphabet."""
    return [*FIRST, *sorted({column for row in rows for column in row} - {*FIRST})]


def _tsv(rows: Sequence[Mapping[str, str]]) -> bytes:
    columns = _columns(rows)
    lines = [columns, *([row.get(column, NOTHING) for column in columns] for row in rows)]
    return "".join("\t".join(line) + "\n" for line in lines).encode()


def _described(rows: Sequence[Mapping[str, str]]) -> bytes:
    """Return what the columns are, as BIDS describes those of a table."""
    described = {}
    for column in _columns(rows):
        image, _, field = column.partition("_")
        text = FIRST.get(column, f"{field.replace('_', ' ')}, as the sidecar of the {image} says it.")
        described[column] = {"Description": text[0].upper() + text[1:]}
        unit = next((unit for ending, unit in UNITS.items() if column.endswith(ending)), None)
        if unit:
            described[column]["Units"] = unit
    return json.dumps(described, indent=2).encode() + b"\n"
