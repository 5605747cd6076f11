"""What the engine says to users of tools, as it is said to those who write scripts."""

from __future__ import annotations

import re

#: What is a flag of a tool and a keyword of a call; the longer ones first.
_SAID = (
    (
        "use --force to overwrite, or another --out",
        "write with force=True, or under another name",
    ),
    ("choose another --out", "choose another folder"),
    ("another --out", "another folder"),
    ("--force makes", "force=True makes"),
    ("use --in-memory", "write with in_memory=True"),
    ("--in-memory", "in_memory=True"),
    ("--memory", "memory="),
    ("--timeout", "timeout="),
)

#: Results and functions are digests there, which tell a reader nothing.
_DIGESTS = re.compile(r", now: --(results|functions) .*(?=\))", re.DOTALL)


def as_calls(text: str) -> str:
    """Return a message that names keywords of calls in place of flags.

    Parameters
    ----------
    text : str
        As tools say it.

    Returns
    -------
    str
    """
    text = _DIGESTS.sub("", text)
    for flag, keyword in _SAID:
        text = text.replace(flag, keyword)
    return text
