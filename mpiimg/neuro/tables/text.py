"""The numbers of a table in a file of text, however a program or a person has written them."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.engine.names import shown
from mpiimg.engine.parameters import number_in
from mpiimg.engine.small_files import read_small
from mpiimg.errors import BadInput

#: Bytes of a table: hundreds for each of the volumes that a header can count.
MAX_TABLE_BYTES = 16 << 20

#: Byte-order marks, the longer ones first, since one begins with another.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: What begins a comment: of shells and Python, of MATLAB, of C.
_COMMENT = re.compile(r"#|%|//")

#: Brackets as Python and MATLAB print them say nothing that line ends do not.
_BRACKETS = str.maketrans(dict.fromkeys("[]{}()", " ") | {"\u2212": "-", "\ufeff": " "})

#: Fortran's exponents: 1.0D+03.
_FORTRAN = re.compile(r"(?<=[\d.])[dD](?=[+-]?\d)", re.ASCII)

#: A number with a decimal comma, and one whose comma may as well part thousands.
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+", re.ASCII)

#: All that a table of numbers has which any reader of FSL's format takes.
_PLAIN = re.compile(rb"[0-9eE+\-. \t\r\n]*")


@dataclass(frozen=True)
class Table:
    """The numbers of a table.

    Parameters
    ----------
    path : Path
    rows : tuple of (n,) float64 arrays
        By line of the text, without empty ones.
    is_plain : bool
        The text has nothing that only some readers take.
    warnings : tuple of str
    """

    path: Path
    rows: tuple[np.ndarray, ...]
    is_plain: bool
    warnings: tuple[str, ...] = ()

    @property
    def values(self) -> np.ndarray:
        """All numbers, in the order of the text."""
        return np.concatenate(self.rows)

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows and columns; None where rows differ in length."""
        lengths = {len(row) for row in self.rows}
        return (len(self.rows), lengths.pop()) if len(lengths) == 1 else None

    def in_rows(self, count: int, length: int) -> np.ndarray | None:
        """Return (count, length) numbers where each row may be broken over several lines; None if not so."""
        ends = np.cumsum([len(row) for row in self.rows])
        if ends[-1] != count * length or not np.isin(np.arange(1, count + 1) * length, ends).all():
            return None
        return self.values.reshape(count, length)


def read_table(path: Path, what: str, due: int) -> Table:
    """Read a table.

    Spaces, tabs, commas and semicolons part numbers. Commas are those of decimals where the table has `due`
    numbers only so.

    Parameters
    ----------
    path : Path
    what : str
        Names it in messages: "b-values".
    due : int
        How many numbers it is expected to have.

    Raises
    ------
    BadInput
        It cannot be read, is no text, or holds what is no number; or its commas may mean either.
    """
    raw = read_small(path, what, MAX_TABLE_BYTES)
    text = _FORTRAN.sub("e", decoded(raw)).translate(_BRACKETS)
    lines = [line for line in (_COMMENT.split(line)[0] for line in text.splitlines()) if line.strip()]
    words = [re.split(r"[\s;]+", line.strip(" \t;")) for line in lines]
    warnings: tuple[str, ...] = ()
    if _has_decimal_commas(words, due):
        ambiguous = next((word for row in words for word in row if _THOUSANDS.fullmatch(word)), None)
        if ambiguous is not None and what == "b-values":
            raise BadInput(
                f"{path}: {what} have commas that may part decimals or thousands ({ambiguous}); "
                "write them with decimal points"
            )
        words = [[word.replace(",", ".") for word in row] for row in words]
        warnings = (f"{path}: commas are taken for those of decimals",)
    else:
        words = [[part for word in row for part in word.split(",") if part] for row in words]
    words = [row for row in words if row]
    wrong = next((word for row in words for word in row if number_in(word) is None), None)
    if wrong is not None:
        raise BadInput(f"{path}: {what} must be plain numbers: not {shown(repr(wrong[:40]))}")
    if not words:
        raise BadInput(f"{path}: holds no {what}; name another file")
    rows = tuple(np.array([number_in(word) for word in row], np.float64) for row in words)
    return Table(path, rows, _PLAIN.fullmatch(raw) is not None, warnings)


def decoded(raw: bytes) -> str:
    """Return the text of a table: by its byte-order mark, as UTF-16 without one, as UTF-8 or as Latin-1.

    Where numbers are all that counts, Latin-1 is as good as any other encoding that has ASCII in it.
    """
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    if encoding is None and b"\0" in raw:
        encoding = "utf-16-le" if raw[1:2] == b"\0" else "utf-16-be"
    for one in (encoding, "utf-8", "latin-1"):
        try:
            if one is not None:
                return raw.decode(one)
        except UnicodeDecodeError:
            pass
    raise AssertionError("Latin-1 has a letter for every byte")


def _has_decimal_commas(words: list[list[str]], due: int) -> bool:
    """Say whether commas belong to numbers: there are as many as are due only if they do."""
    flat = [word for row in words for word in row]
    with_comma = [word for word in flat if "," in word]
    if not with_comma or not all(_COMMA_NUMBER.fullmatch(word) for word in with_comma):
        return False
    return len(flat) == due != sum(len(word.split(",")) for word in flat)
