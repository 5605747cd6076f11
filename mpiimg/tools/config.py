"""Options in a file: --config reads one, --dump-config prints one with all options and what they mean.

The keys are the names of the options, with dashes or underscores; the values are those of TOML. What the
command line says too beats the file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import textwrap
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.names import asking
from mpiimg.engine.parameters import Parameter, checked, checked_path
from mpiimg.engine.small_files import read_text
from mpiimg.errors import BadInput
from mpiimg.version import __version__

#: Options that are of one call, and that no file has.
OF_ONE_CALL = ("help", "version", "config", "dump_config", "plan", "ranks", "nodes", "ended")

#: Options of which a command line takes one.
EITHER = ("quiet", "verbose")

#: Characters of a line of what --dump-config prints.
WIDTH = 100

Parameters = Mapping[str, Parameter]


def named_file(words: list[str]) -> str | None:
    """Return the file that --config names on a command line, if one does.

    Raises
    ------
    BadInput
        There are two.
    """
    before = words[: words.index("--")] if "--" in words else words
    files = [word.partition("=")[2] for word in before if word.startswith("--config=")]
    files += [after for word, after in itertools.pairwise(before) if word == "--config"]
    if files[1:]:
        raise BadInput(f"--config {files[1]}: options are read from one file, and {files[0]} is given too")
    return files[0] if files else None


class OptionsFile:
    """A file of options.

    Parameters
    ----------
    path : str
    actions : mapping of str to argparse.Action
        The options of the tool, by name.
    parameters : mapping of str to Parameter
        What those declare that are parameters, by name.

    Raises
    ------
    BadInput
        The file cannot be read, or has a key that is no option of the tool.
    """

    def __init__(self, path: str, actions: Mapping[str, argparse.Action], parameters: Parameters):
        self.path, self.actions, self.parameters = path, actions, parameters
        try:
            content = tomllib.loads(read_text(Path(checked_path(path, "--config")), "this file of options"))
        except (ValueError, RecursionError) as error:  # of numbers of thousands of digits, and deep nesting
            raise BadInput(f"{path}: not TOML: {error}") from None
        self.values: dict[str, Any] = {}
        for key, value in content.items():
            name = self._name(key)
            if name in self.values:
                raise BadInput(f"{path}: {key}: is there twice, with a dash and with an underscore")
            self.values[name] = value

    def _name(self, key: str) -> str:
        name = key.replace("-", "_")
        if name in OF_ONE_CALL:
            raise BadInput(f"{self.path}: {key}: is for the command line, and not for a file")
        if name not in self.actions:
            known = [one.replace("_", "-") for one in self.actions]
            from mpiimg.tools.other_programs import tools_with

            said = f"{self.path}: {key}: there is no such option"
            if having := ", ".join(tools_with(name)):
                raise BadInput(f"{said}; it is one of {having}")
            raise BadInput(asking(said, name.replace("_", "-"), known))
        return name

    def words(self, given: Collection[str]) -> tuple[list[str], list[str]]:
        """Return the options as words of a command line: those for its beginning, and those for its end.

        Parameters
        ----------
        given : collection of str
            Names of options that the command line has itself.

        Raises
        ------
        BadInput
            A value makes no sense.
        """
        first, last = [], []
        for name, value in self.values.items():
            words = self._words(name, value)
            if name in given or (name in EITHER and {*given} & {*EITHER}):
                continue
            # What takes several words would take those of the command line too.
            (last if self.actions[name].nargs == "+" else first).extend(words)
        return first, last

    def _words(self, name: str, value: Any) -> list[str]:
        action, place = self.actions[name], f"{self.path}: {name.replace('_', '-')} ="
        flag = next(one for one in action.option_strings if one.startswith("--"))
        parameter = self.parameters.get(name)
        if action.nargs == 0:
            value = checked(Parameter(name, False, "", bool), value, place)
            return [flag] if value else [] if name in EITHER else getattr(action, "off", [])[:1]
        if isinstance(value, dict):
            raise BadInput(f"{place} is a table; write each option at the top, as name = value")
        if action.nargs == "+":
            return [flag, *(checked_path(str(one), place) for one in _listed(value))]
        if parameter is None:
            return [f"{flag}={checked_path(value, place)}"]
        if isinstance(value, list) and parameter.type is str and not parameter.repeated:
            value = ",".join(map(str, value))
        return [f"{flag}={one}" for one in _listed(checked(parameter, value, place))]


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def dumped(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> str:
    """Return all options of a tool as a file for --config, with what each means.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Of the tool.
    values : mapping
        Of the options.
    """
    lines = [
        f"# Options of {parser.prog}, of mpiimg {__version__}: for {parser.prog} --config FILE.",
        "# What the command line says too beats this file. An option that has no value stands as a comment.",
    ]
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if _is_kept(one)]
        if actions:
            lines += ["", "", f"# --- {group.title} ---"]
        for action in actions:
            lines += ["", *_commented(action), _line(action, values)]
    return "\n".join(lines)


def _is_kept(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.dest not in (*OF_ONE_CALL, "ignored")


def _commented(action: argparse.Action) -> list[str]:
    text = action.help.replace("%%", "%")
    if action.choices:
        text = f"{text} One of {', '.join(map(str, action.choices))}."
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _line(action: argparse.Action, values: Mapping[str, Any]) -> str:
    key, value = action.dest.replace("_", "-"), values.get(action.dest)
    if value is None:
        return f"# {key} ="
    return f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    """Return a value as TOML has it; its text is that of JSON."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value if isinstance(value, bool | int | str) else str(value), ensure_ascii=False)
