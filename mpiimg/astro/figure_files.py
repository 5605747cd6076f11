"""Figures of a run as small tables: each as a TSV and as JSON, whose bytes follow from the figures alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mpiimg.astro.catalogue import Column, text

#: Digits of a number, by its unit; of all others six that count.
_FORMS = {"deg": ".6f", "mag": ".4f", "arcsec": ".4f"}


def figure_files(stem: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return a table of figures as files by name: `stem`.tsv, and `stem`.json with what each column is.

    Parameters
    ----------
    stem : str
    columns : sequence of Column
        Their types are "str" for text, "i8" for whole numbers, and those of floats.
    rows : sequence of mapping
        Values by column; what is missing or no finite number is "n/a", and null in JSON.
    """
    values = [[_value(one, row.get(one.name)) for one in columns] for row in rows]
    lines = [[one.name for one in columns], *([_word(value) for value in row] for row in values)]
    about = {
        one.name: {"description": one.description, **({"unit": one.unit} if one.unit else {})}
        for one in columns
    }
    names = [one.name for one in columns]
    # A row a line, as in the table.
    lines_of_json = ",\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in values)
    document = f'{{\n"columns": {json.dumps(about, indent=1)},\n"rows": [\n{lines_of_json}\n]\n}}\n'
    table = "".join("\t".join(line) + "\n" for line in lines)
    return {
        f"{stem}.tsv": table.encode(),
        f"{stem}.json": document.encode(),
    }


def _value(column: Column, value: Any) -> Any:
    """Return a value with the digits that both files have."""
    if value is None:
        return None
    if column.dtype == "str":
        return " ".join(text(str(value)).split())
    if column.dtype == "i8":
        return int(value)
    if not math.isfinite(value):
        return None
    # No zero has a sign.
    return float(format(value, _FORMS.get(column.unit, ".6g"))) + 0.0


def _word(value: Any) -> str:
    return "n/a" if value is None else str(value)
