"""Rules that leave volumes out of a series: --exclude empty,dropout:3,ndc<0.4."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mpiimg.engine.parameters import number_in
from mpiimg.errors import BadInput

#: What a rule may name, and what counts against its number where it may have one.
NAMES = {"empty": "", "dropout": "dropped slices", "spike": "slices with spikes", "step": ""}

#: How a user writes rules.
FORM = "empty, dropout, dropout:SLICES, spike, spike:SLICES, step and ndc<NUMBER, with commas between them"

_RULE = re.compile(r"(?P<name>[a-z]+)(?::(?P<count>\d{1,6}))?", re.ASCII)


@dataclass(frozen=True)
class Rule:
    """A rule that leaves volumes out.

    Parameters
    ----------
    name : str
        One of `NAMES`, or "ndc".
    limit : float
        As many slices or more of what is named; for ndc, a correlation below this one.
    """

    name: str
    limit: float = 1

    def __str__(self) -> str:
        if self.name == "ndc":
            return f"ndc<{self.limit:g}"
        return self.name if self.limit == 1 else f"{self.name}:{self.limit:g}"


def parse_rules(text: str | None) -> tuple[Rule, ...]:
    """Read rules as a user writes them.

    Raises
    ------
    BadInput
        One of them is none, or stands there twice.
    """
    if text is None:
        return ()
    rules = tuple(_rule(word.strip().lower(), text) for word in text.split(","))
    names = [rule.name for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"--exclude {text}: {twice} stands there twice; give one rule of each kind")
    return rules


def _rule(word: str, text: str) -> Rule:
    if word.startswith("ndc"):
        limit = number_in(word[4:].strip()) if word[3:4] == "<" else None
        if limit is not None and -1 <= limit <= 1:
            return Rule("ndc", float(limit))
        raise BadInput(f"--exclude {text}: write ndc<0.4, with a correlation between -1 and 1")
    matched = _RULE.fullmatch(word)
    name = matched["name"] if matched else ""
    if name not in NAMES:
        raise BadInput(f"--exclude {text}: {word or 'nothing'} is no rule; give {FORM}")
    if matched["count"] is None:
        return Rule(name)
    if not NAMES[name]:
        raise BadInput(f"--exclude {text}: {name} has no number")
    if not int(matched["count"]):
        raise BadInput(f"--exclude {text}: {name} needs a number of at least 1")
    return Rule(name, int(matched["count"]))
