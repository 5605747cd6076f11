"""Text that comes from headers, labels and names of files: made a name of a file, or fit to be shown.

Such text is data. It may hold a slash, a line end or the commands of a terminal, and means none of them.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable

#: The most characters of a name; file systems allow 255 bytes, and endings are added.
MAX_LENGTH = 160

_OTHERS = re.compile(r"[^A-Za-z0-9._+-]+")


def file_name(text: str) -> str:
    """Return the name of a file or folder for `text`, which may be any.

    Letters, digits, ``.``, ``_``, ``+`` and ``-`` stay as they are. Where anything has to change, a digest of
    `text` follows, so that two texts never share a name. The name never begins with a dot or a dash.

    Parameters
    ----------
    text : str
        From a header, a label, or a name of a file.

    Returns
    -------
    str
        One component of a path: neither empty, nor ``.`` or ``..``.
    """
    name = _OTHERS.sub("-", text).strip("-.")[:MAX_LENGTH]
    if name == text and name:
        return name
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{name}-{digest}" if name else digest


def shown(text: object, lines: bool = False) -> str:
    """Return `text` as a terminal may show it: what does not print is written as Python escapes it.

    Parameters
    ----------
    text : object
        Of which ``str`` is shown.
    lines : bool
        Line ends and tabs stay, as in a traceback.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        one if one.isprintable() or one in kept else one.encode("unicode_escape", "surrogatepass").decode()
        for one in str(text)
    )


def asking(said: str, word: str, known: Iterable[str]) -> str:
    """Return what is said of a word, and the question whether one like it was meant."""
    return "; ".join(filter(None, [said, did_you_mean(word, known)]))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names what a mistyped word may be: those that it begins, else those like it.

    Parameters
    ----------
    word : str
    known : iterable of str
        What there is.

    Returns
    -------
    str
        Such as "did you mean --mask?"; empty where nothing is like the word.
    """
    names = list(dict.fromkeys(known))
    begun = sorted(name for name in names if len(word.strip("-")) > 1 and name.startswith(word))
    close = (begun or difflib.get_close_matches(word, names, 3, 0.7))[:3]
    return f"did you mean {' or '.join(close)}?" if close else ""
