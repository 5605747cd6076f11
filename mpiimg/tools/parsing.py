"""The command line of a tool, built from what its steps declare: its options, its help, what it refuses."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from mpiimg.engine import presets
from mpiimg.engine.names import asking, shown
from mpiimg.engine.parameters import TIMEOUT, Parameter, checked_path, from_word, number_in
from mpiimg.errors import BadInput, Exit
from mpiimg.tools import bids_app
from mpiimg.tools.config import OptionsFile, dumped, named_file
from mpiimg.tools.registry import tool
from mpiimg.tools.tool import Tool
from mpiimg.version import __version__

#: How a negative number begins, or an infinity or NaN with a sign.
_NEGATIVE = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)

#: Options that also have one letter, as most programs have them.
LETTERS = {"out": "-o", "force": "-f", "quiet": "-q", "verbose": "-v", "work_dir": "-w"}

COMMON = (
    Parameter(
        "plan",
        None,
        "Print what the run would do and need, and stop; --plan=full prints a line for each stage, and "
        "--plan=json is for programs.",
        choices=("table", "full", "json"),
        bare="table",
    ),
    Parameter("ranks", None, "With --plan: plan for this many ranks.", int, limits=(1, 1 << 20), metavar="N"),
    Parameter(
        "nodes",
        None,
        "With --plan: spread the ranks over this many nodes.",
        int,
        limits=(1, 1 << 20),
        metavar="N",
    ),
    Parameter(
        "ended",
        None,
        "Batch scripts ask whether the run that MPIIMG_RUN names ended with this status, and start none.",
        int,
        limits=(0, 255),
        metavar="STATUS",
    ),
    Parameter("force", False, "All results are made anew, and those that exist overwritten.", bool),
    Parameter("in_memory", False, "Stage nothing on disk; a run that dies starts over.", bool),
    Parameter(
        "work_dir",
        None,
        "Arrays are staged in this folder, which all nodes share (default: work, beside the results).",
        metavar="DIR",
    ),
    Parameter("keep_work", False, "Keep the staged arrays and the checkpoints of a finished run.", bool),
    Parameter(
        "memory",
        None,
        "A rank may use this much memory, in bytes or as 4G, 4GB or 4GiB, which are the same (default: its "
        "share of the node's).",
        metavar="SIZE",
    ),
    TIMEOUT,
    Parameter(
        "portable",
        False,
        "Compile for any x86-64-v3 CPU, so that mixed nodes agree to the last bit.",
        bool,
    ),
    Parameter("no_report", False, "Write no report.html.", bool),
    Parameter(
        "config",
        None,
        "Options are read from this file (TOML), as --dump-config prints one; those given here beat it.",
        metavar="FILE",
    ),
    Parameter("dump_config", False, "Print all options of the run as a file for --config, and stop.", bool),
)
QUIET = Parameter("quiet", False, "Say nothing but errors.", bool)
VERBOSE = Parameter("verbose", False, "Say what each stage took too.", bool)


def parser(name: str) -> argparse.ArgumentParser:
    """Build the command line of tool `name`."""
    return parser_of(tool(name))


def parser_of(tool: Tool) -> argparse.ArgumentParser:
    """Build the command line of a tool."""
    made = _Parser(
        prog=tool.name,
        usage=usage(tool),
        description=tool.summary,
        epilog=epilog(tool),
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
    )
    made.tool = tool
    made.declared = {
        one.name: one for one in (*COMMON, QUIET, VERBOSE, bids_app.GROUP_SIZE, *tool.parameters)
    }
    made.add_argument("-h", "--help", action="help", help="Show this help, and exit.")
    made.add_argument(
        "--version", action="version", version=f"mpiimg {__version__}", help="Show the version, and exit."
    )
    for argument, required in tool.arguments:
        name, text = argument.name, argument.help.replace("%", "%%")
        if tool.bids and argument.positional:
            bids_app.declare(made, text, _path_of, _add)
        elif argument.positional:
            made.add_argument(
                name,
                help=text,
                type=_path_of(name.upper()),
                metavar=name.upper(),
                nargs="+" if argument.many else None,
                choices=argument.choices,
            )
        else:
            flags = [*filter(None, [LETTERS.get(name)]), f"--{name}"]
            made.add_argument(
                *flags,
                help=text,
                type=_path_of(f"--{name}"),
                required=required and not tool.bids,
                metavar=tool.result if name == "out" else "FILE",
            )
    _add_parameters(made, tool)
    run = made.add_argument_group("run") if tool.recipe else made
    taken = {one.name for one in tool.parameters}
    for parameter in COMMON if tool.recipe else ():
        _add(run, parameter, taken=taken)
    loudness = run.add_mutually_exclusive_group()
    for parameter in (QUIET, VERBOSE):
        _add(loudness, parameter, taken=taken)
    return made


def usage(tool: Tool) -> str:
    """Return how a tool is called, in a line for each form."""
    if tool.bids:
        return bids_app.usage(tool.name)
    words = [tool.name]
    for argument, required in tool.arguments:
        if argument.positional:
            words.append(argument.name.upper() + " ..." * argument.many)
        elif required:
            words += [f"--{argument.name}", tool.result if argument.name == "out" else "FILE"]
    return " ".join([*words, "[options]"])


def epilog(tool: Tool) -> str:
    """Return what the help ends with: examples, what exit statuses mean, and what to cite."""
    examples = [line for text, command in tool.examples for line in (f"  {text}", f"    {command}")]
    statuses = [f"  {status:<3} {status.words}" for status in Exit]
    papers = [f"  {paper}" for paper in tool.papers]
    parts = {"examples": examples, "exit status": statuses, "papers": papers}
    return "\n\n".join("\n".join([f"{title}:", *lines]) for title, lines in parts.items() if lines)


def _add_parameters(made: argparse.ArgumentParser, tool: Tool) -> None:
    """Add the options of a tool, in the groups that it declares."""
    negatable = presets.switches(tool.presets)
    taken = {one.name for one in (*COMMON, QUIET, VERBOSE, *tool.parameters)}
    titled: dict[str, argparse._ArgumentGroup] = {}
    for group in tool.groups:
        names = [one.name for one in tool.parameters if one.name in group.names and one.name not in titled]
        if names:
            shown_as = made.add_argument_group(group.title, group.summary or None)
            titled |= dict.fromkeys(names, shown_as)
    for parameter in tool.parameters:
        options = titled.get(parameter.name, made)
        # What is not given is left out, and settled when the recipe is known.
        _add(options, parameter, parameter.name in negatable, taken).default = argparse.SUPPRESS


def _add(
    group,
    parameter: Parameter,
    negatable: bool = False,
    taken: Iterable[str] = (),
    also: tuple[str, ...] = (),
) -> argparse.Action:
    """Add an option.

    Parameters
    ----------
    group : argparse group
    parameter : Parameter
    negatable : bool
        The help says that a switch can be switched off too.
    taken : iterable of str
        Names of the tool's parameters, which the opposite of a switch must not have.
    also : tuple of str
        Further names.
    """
    flags = [*filter(None, [LETTERS.get(parameter.name)]), parameter.flag, *also]
    text = parameter.help.replace("%", "%%")
    if parameter.type is bool:
        return group.add_argument(
            *flags, action=_Switch, default=False, help=text, shows_off=negatable, taken=taken
        )
    if parameter.repeated:
        return group.add_argument(
            *flags, action="append", type=_checked(parameter), metavar=parameter.metavar, help=text
        )
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    optional = {"nargs": "?", "const": parameter.bare} if parameter.bare is not None else {}
    number = f"{parameter.default:g}" if parameter.type is float and parameter.default is not None else None
    default = f" (default {number or parameter.default})" if parameter.default is not None else ""
    return group.add_argument(
        *flags,
        type=_checked(parameter),
        default=parameter.default,
        choices=parameter.choices,
        metavar=parameter.metavar or (None if parameter.choices else parameter.type.__name__.upper()),
        help=text.rstrip(".") + f"{unit}{default}.".replace("%", "%%"),
        **optional,
    )


class _Switch(argparse.Action):
    """An option without a value. Its opposite, --no-..., takes back what a file has switched on."""

    def __init__(self, option_strings, dest, *, shows_off=False, taken=(), **about):
        self.off: list[str] = []
        for flag in option_strings:
            other = f"--{flag[5:]}" if flag.startswith("--no-") else f"--no-{flag[2:]}"
            if flag.startswith("--") and other[2:].replace("-", "_") not in taken:
                self.off.append(other)
        #: Option strings that the help does not name.
        self.hidden = () if shows_off else tuple(self.off)
        super().__init__([*option_strings, *self.off], dest, nargs=0, **about)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, option_string not in self.off)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help without what is only there to be understood: opposites of switches, underscores for dashes."""

    def _format_action_invocation(self, action):
        hidden = getattr(action, "hidden", ())
        flags = [flag for flag in action.option_strings if flag not in hidden and "_" not in flag]
        if not flags:
            return super()._format_action_invocation(action)
        value = "" if action.nargs == 0 else f" {self._format_args(action, action.dest.upper())}"
        return ", ".join(flags) + value


def _checked(parameter: Parameter) -> Callable:
    """Return what turns a word into a value of `parameter`; argparse itself looks at choices."""
    one = dataclasses.replace(parameter, choices=None, repeated=False)
    return lambda word: from_word(one, word, one.flag)


def _path_of(name: str) -> Callable:
    """Return what takes a word for the path that is called `name`."""
    return lambda word: checked_path(word, name)


class _Parser(argparse.ArgumentParser):
    #: The tool whose command line it is, and what its options declare, by name.
    tool: Tool
    declared: dict[str, Parameter]

    def parse_args(self, args=None, namespace=None):
        """Read a command line of either form: for one image, or for a BIDS dataset."""
        words = self._prepared(sys.argv[1:] if args is None else args)
        if dumps := "--dump-config" in words:
            self._require_nothing()
        try:
            words = self._with_file(words)
            if self.tool.bids:
                parsed, left = self.parse_known_intermixed_args(words, namespace)
            else:
                parsed, left = self.parse_known_args(words, namespace)
        except BadInput as error:
            self.exit(Exit.BAD_INPUT, f"mpiimg: error: {error}\n")
        if left:
            hint = "; results go where --out says" if hasattr(parsed, "out") else ""
            self.error(f"unrecognized arguments: {' '.join(left)}{hint}")
        given = vars(parsed)
        given |= presets.settled(self.tool.parameters, self.tool.presets, given)
        if dumps:
            print(dumped(self, given))
            self.exit(Exit.DONE)
        if self.tool.bids:
            bids_app.tell_apart(self, parsed)
        return parsed

    def _require_nothing(self) -> None:
        """Take a command line without what a run must be given."""
        for action in self._actions:
            if not action.option_strings:
                action.nargs = "*" if action.nargs == "+" else "?"
            action.required = False

    def _with_file(self, words: list[str]) -> list[str]:
        """Return a command line with the options of the file that it names.

        Raises
        ------
        BadInput
            The file cannot be read, or has what is no option or no value of one.
        """
        if (path := named_file(words)) is None:
            return words
        actions = self._option_string_actions
        by_name = {one.dest: one for one in self._actions if one.option_strings and one.dest != "ignored"}
        flags = [word.partition("=")[0] for word in words if word.startswith("-")]
        letters = [f"-{letter}" for flag in flags if self._is_bundle(flag) for letter in flag[1:]]
        given = {actions[flag].dest for flag in (*flags, *letters) if flag in actions}
        first, last = OptionsFile(path, by_name, self.declared).words(given)
        return [*first, *words, *last]

    def error(self, message: str):
        """Say what is wrong in one line."""
        for action in self._actions:
            for flag in getattr(action, "hidden", ()):
                message = message.replace(f"/{flag}", "")
        text = shown(message).replace("expected one argument", "needs a value")
        self.exit(Exit.BAD_INPUT, f"{self.prog}: error: {text}; see {self.prog} --help\n")

    def _prepared(self, words: list[str]) -> list[str]:
        """Return words as argparse takes them, or refuse those that are no option of this tool.

        A negative number is joined to the option before it: argparse knows -1, but neither -inf nor -1e5. An
        option that may go without its value is one that does, whatever word comes after it.
        """
        actions = self._option_string_actions
        prepared: list[str] = []
        before = None
        for place, word in enumerate(words):
            if word == "--":
                return [*prepared, *words[place:]]
            if before is not None and before.nargs is None and _NEGATIVE.match(word):
                prepared[-1] += f"={word}"
                before = None
                continue
            if before is not None and before.nargs == 0 and self._is_stray_number(word):
                self.error(self._unknown(words[place - 1], f"{words[place - 1]} takes no value"))
            before = None
            if word.startswith("-") and word != "-" and not _NEGATIVE.match(word):
                flag, equals, _ = word.partition("=")
                if self.tool.bids and flag not in actions and flag.replace("_", "-") in actions:
                    # BIDS Apps take either.
                    flag, word = flag.replace("_", "-"), word.replace(flag, flag.replace("_", "-"), 1)
                if flag not in actions and not self._is_bundle(word):
                    self.error(self._unknown(flag, f"{flag}: there is no such option"))
                before = None if equals else actions.get(flag)
                if before is not None and before.nargs == "?":
                    word = f"{word}={before.const}"
            prepared.append(word)
        return prepared

    def _is_bundle(self, word: str) -> bool:
        """Say whether a word is one dash and letters that are switches each, as -fv."""
        if not re.fullmatch(r"-[A-Za-z]{2,}", word):
            return False
        switches = [self._option_string_actions.get(f"-{letter}") for letter in word[1:]]
        return all(one is not None and one.nargs == 0 for one in switches)

    def _is_stray_number(self, word: str) -> bool:
        """Say whether a word behind a switch can only be meant for its value."""
        return number_in(word) is not None and not Path(word).exists()

    def _unknown(self, flag: str, said: str) -> str:
        """Say what a word that is no option here may be: that of another program or tool, or mistyped."""
        from mpiimg.tools.other_programs import answers, tools_with

        here = {action.dest for action in self._actions}
        if others := answers(flag, self.tool.domain, here):
            return f"{said}; {others}"
        if flag in self._option_string_actions:
            return said
        known = [
            name
            for name, action in self._option_string_actions.items()
            if "_" not in name and name not in getattr(action, "hidden", ())
        ]
        plain = f"--{flag.lstrip('-').replace('_', '-')}"
        if plain in known and plain != flag:
            return f"{said}; did you mean {plain}?"
        having = tools_with(plain[2:].replace("-", "_"), self.tool.domain)
        if having and self.tool.name not in having:
            return f"{said}; {plain} is an option of {', '.join(having)}"
        return asking(said, plain, known)

    def _check_value(self, action, value):
        """Refuse what is none of the choices, and ask whether one like it was meant."""
        if action.choices is not None and value not in action.choices:
            there = ", ".join(map(str, action.choices))
            text = f"invalid choice: {value!r} (choose from {there})"
            raise argparse.ArgumentError(action, asking(text, str(value), map(str, action.choices)))
