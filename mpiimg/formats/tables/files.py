"""Tables in files, by the ending of their names: what writes part after part, and what reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpiimg.engine.raw import sample_file
from mpiimg.errors import BadInput
from mpiimg.formats.tables import fits, parquet, text
from mpiimg.formats.tables.columns import Rows, Schema

ENDINGS = (".parquet", ".fits", ".fit", ".ecsv", ".csv")

_SAID = ", ".join(ENDINGS)

#: Rows of a FITS table that one rank reads at a time.
PIECE_BYTES = 32 << 20


def ending_of(path: str | Path) -> str:
    """Return the ending of a table's name; "" where it is the name of an array's file.

    A folder of Parquet files has a name that ends with a slash, or with ".parquet/".
    """
    name = str(path).lower()
    if name.endswith("/"):
        return "/"
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


@dataclass(frozen=True)
class InOrder:
    """How a table becomes one file that holds the bytes of part after part.

    Parameters
    ----------
    check : callable
        Called as check(schema), refuses columns that the format does not have.
    head, tail : callable
        Called as head(schema, rows) with the number of all rows, return bytes.
    encode : callable
        Called as encode(schema, rows), returns the bytes of some.
    """

    check: Callable[[Schema], None]
    head: Callable[[Schema, int], bytes]
    encode: Callable[[Schema, Rows], bytes]
    tail: Callable[[Schema, int], bytes]


def _text(ecsv: bool) -> InOrder:
    return InOrder(
        lambda schema: text.check(schema, ecsv),
        lambda schema, rows: text.head(schema, ecsv),
        lambda schema, rows: text.encode(schema, rows, ecsv),
        lambda schema, rows: b"",
    )


_FITS = InOrder(lambda schema: None, fits.head, fits.encode, fits.tail)
_IN_ORDER = {".fits": _FITS, ".fit": _FITS, ".ecsv": _text(True), ".csv": _text(False)}


def in_order(name: str) -> InOrder | None:
    """Return what writes a table of this name as one file, part after part; None for Parquet.

    Raises
    ------
    BadInput
        No format of tables has such names.
    """
    ending = ending_of(name)
    if ending == "":
        raise BadInput(f"{name}: a table ends in {_SAID}, or in / for a folder of Parquet files")
    if ending in ("/", ".parquet"):
        parquet.libraries(name)
    return _IN_ORDER.get(ending)


# --- Reading ----------------------------------------------------------------------------------------------


def pieces(path: str | Path) -> list[dict[str, Any]]:
    """Return the parts in which a table is read, as JSON: row groups, runs of rows, or the whole file.

    Raises
    ------
    BadInput
        It is not there, broken, or of another kind.
    """
    path = Path(path)
    ending = ending_of(f"{path}/" if path.is_dir() else path)
    if not path.exists():
        raise BadInput(f"{path}: is not there")
    if ending == "":
        raise BadInput(
            f"{path}: a table ends in {', '.join(dict.fromkeys(ENDINGS))}, or is a folder of Parquet"
        )
    try:
        if ending in ("/", ".parquet"):
            found = [{"file": file, "group": group} for file, group, _ in parquet.groups(path)]
        elif ending in (".fits", ".fit"):
            length, width = fits.length(path), max(1, fits.read(path, 0, 1).nbytes)
            step = max(1, PIECE_BYTES // width)
            found = [{"start": n, "stop": min(n + step, length)} for n in range(0, length, step)]
        else:
            found = [{}]
    except BadInput:
        raise
    except Exception as error:
        raise _broken(path, error) from error
    # An empty table has columns too.
    found = found or [{"start": 0, "stop": 0} if ending.startswith(".fit") else {}]
    files = {one.get("file", str(path)) for one in found}
    samples = {file: list(sample_file(Path(file))) for file in files if Path(file).is_file()}
    of_piece = [samples.get(one.get("file", str(path)), [0]) for one in found]
    stamp = hashlib.sha256(repr(sorted(samples.items())).encode()).hexdigest()[:16]
    return [
        {"path": str(path), **one, "sample": sample, "bytes": sample[0] // len(found), "stamp": stamp}
        for one, sample in zip(found, of_piece, strict=True)
    ]


def schema_of(path: str | Path) -> Schema:
    """Return the columns of a table in files; text of any width."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".parquet":
        found = parquet.schema_of(path)
    elif path.suffix.lower() in (".fits", ".fit"):
        found = fits.read(path, 0, 0).schema
    else:
        found = text.read(path, path.suffix.lower() == ".ecsv").schema
    return Schema(tuple(replace(one, dtype="U") if one.is_text else one for one in found.columns))


def read_piece(piece: dict[str, Any]) -> Rows:
    """Return the rows of a part.

    Raises
    ------
    BadInput
        The file is broken.
    """
    path = Path(piece["path"])
    try:
        if path.is_dir() or path.suffix.lower() == ".parquet":
            return parquet.read(path, piece.get("file"), piece.get("group"), piece["stamp"])
        if path.suffix.lower() in (".fits", ".fit"):
            return fits.read(path, piece.get("start"), piece.get("stop"))
        return text.read(path, path.suffix.lower() == ".ecsv")
    except (BadInput, MemoryError):
        raise
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> BadInput:
    said = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return BadInput(f"{path}: cannot be read as a table: {said.splitlines()[0]}")
