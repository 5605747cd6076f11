"""What there is to complete and to describe on the command line of each tool: for shells and man pages."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mpiimg.tools.parsing import parser_of
from mpiimg.tools.tool import Tool

#: Options and arguments whose value is a folder.
FOLDERS = ("DIR",)

#: Placeholders of values that are no file: nothing is completed there.
PLAIN = ("N", "INT", "FLOAT", "SIZE", "LIST", "LENGTH", "STATUS", "STR", "LABEL", "B", "SIGNAL")


@dataclass(frozen=True)
class Option:
    """An option or argument of a tool.

    Parameters
    ----------
    flags : tuple of str
        Those that the help names; empty where it stands without one.
    help : str
    metavar : str
        Placeholder of its value; empty where it takes none.
    choices : tuple of str
        What the value may be, where that is a list.
    group : str
        Heading of the help that it stands under.
    """

    flags: tuple[str, ...]
    help: str
    metavar: str
    choices: tuple[str, ...]
    group: str

    @property
    def sentence(self) -> str:
        """The first sentence of the help, without the full stop: a line of a menu."""
        return re.split(r"\. (?=[A-Z])", self.help)[0].rstrip(".")

    @property
    def kind(self) -> str:
        """What completes its value: "choices", "folder", "file" or "nothing"; "none" if it takes none."""
        if not self.metavar:
            return "none"
        if self.choices:
            return "choices"
        if self.metavar in FOLDERS:
            return "folder"
        return "nothing" if self.metavar in PLAIN else "file"


def options(tool: Tool) -> Iterator[Option]:
    """Yield the options and arguments of a tool in the order of its help."""
    for group in parser_of(tool)._action_groups:
        for action in group._group_actions:
            yield _option(action, group.title)


def _option(action: argparse.Action, group: str) -> Option:
    hidden = getattr(action, "hidden", ())
    flags = tuple(flag for flag in action.option_strings if flag not in hidden and "_" not in flag)
    choices = tuple(map(str, action.choices or ()))
    metavar = "" if action.nargs == 0 else action.metavar or "|".join(choices) or action.dest.upper()
    return Option(flags, (action.help or "").replace("%%", "%"), metavar, choices, group)
