"""mpiimg: all tools under one name. mpiimg neuro ... is mpiimg-neuro ..."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from mpiimg.engine import plugins
from mpiimg.engine.mpi.job import launched_rank
from mpiimg.engine.mpi.runtime import check_printed, put
from mpiimg.engine.names import did_you_mean, shown
from mpiimg.engine.step import Argument
from mpiimg.errors import BadInput, Exit
from mpiimg.tools.other_tools import OTHERS
from mpiimg.tools.registry import tool, tool_names
from mpiimg.tools.tool import PREFIX, Tool
from mpiimg.version import __version__

NAME = "mpiimg"

#: What tools are for, by their domain; further domains come under their own names.
SUBJECTS = {"neuro": "Diffusion MRI", "astro": "Sky surveys"}


def _complete(values: Mapping[str, Any], comm) -> int:
    from mpiimg.tools.completion import program

    return program(values, comm)


def _write_pages(values: Mapping[str, Any], comm) -> int:
    from mpiimg.tools.man import program

    return program(values, comm)


#: What it does itself, without a program of its own.
COMMANDS: Mapping[str, Tool] = {
    "completion": Tool(
        f"{NAME} completion",
        "Print what lets a shell complete tools, options and their values.",
        [(Argument("shell", "The shell.", positional=True, choices=("bash", "zsh", "fish")), True)],
        (),
        program=_complete,
        mpi=False,
        examples=(
            ("For bash, in ~/.bashrc.", 'eval "$(mpiimg completion bash)"'),
            ("For fish.", "mpiimg completion fish > ~/.config/fish/completions/mpiimg.fish"),
        ),
    ),
    "man": Tool(
        f"{NAME} man",
        "Write a manual page of each tool into a folder.",
        [(Argument("folder", "The pages go to man1 in this folder.", positional=True), True)],
        (),
        program=_write_pages,
        mpi=False,
        examples=(("Pages of all tools, and one of them shown.", "mpiimg man man; man -M man mpiimg-fit"),),
    ),
}

USAGE = """\
usage: mpiimg TOOL [arguments and options of the tool]
       mpiimg TOOL --help
       mpiexec -n 4 mpiimg TOOL ...

Scientific image pipelines as MPI programs. mpiimg TOOL is the same as the program mpiimg-TOOL."""


def chosen(words: list[str]) -> str:
    """Return the name of the tool that a command line is for, and leave it the rest of the words.

    Parameters
    ----------
    words : list of str
        Those behind mpiimg; the first, which names the tool, is taken off.

    Raises
    ------
    SystemExit
        It was for no tool: it was answered here.
    """
    if words[:1] == ["help"]:
        words[:] = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        answer(overview(), Exit.DONE if words else Exit.BAD_INPUT)
    if words[0] == "--version":
        answer(f"{NAME} {__version__}", Exit.DONE)
    word = words[0].removeprefix(PREFIX)
    if word.startswith("-"):
        refuse(f"{words[0]}: name a tool before its options, as in {NAME} neuro {words[0]}")
    if word in COMMANDS:
        raise SystemExit(run(COMMANDS[word], words[1:]))
    try:
        name = tool(PREFIX + word).name
    except BadInput:
        refuse(f"{words[0]}: there is no such tool{_hint(word)}")
    del words[0]
    return name


def _hint(word: str) -> str:
    """Return what a word may be that is no tool."""
    if word.endswith((".py", ".toml")):
        return f"; write {NAME} run {shown(word)}"
    question = did_you_mean(word, [*(name.removeprefix(PREFIX) for name in tool_names()), *COMMANDS])
    return f"; {question}" if question else ""


def run(command: Tool, words: list[str]) -> int:
    """Do what mpiimg does itself, on one rank; return the exit status."""
    from mpiimg.tools.cli import parsed

    values = vars(parsed(command, words))
    return check_printed(command.program(values, None)) if launched_rank() == 0 else Exit.DONE


def refuse(problem: str) -> None:
    """Say why there is nothing to run, and end."""
    if launched_rank() == 0:
        put(f"{NAME}: error: {shown(problem)}; see {NAME} --help", sys.stderr)
    raise SystemExit(Exit.BAD_INPUT)


def answer(text: str, status: Exit) -> None:
    """Print a text, on stderr where nobody has asked for it, and end."""
    if launched_rank() == 0:
        put(text, sys.stderr if status else sys.stdout)
    raise SystemExit(status)


def overview() -> str:
    """Return what `mpiimg --help` prints: each tool in a line or two, by subject."""
    width = max(60, min(shutil.get_terminal_size().columns, 110) - 2)
    lines = [USAGE]
    for subject, tools in subjects().items():
        lines += ["", f"{subject}:"]
        for one in tools:
            first = f"  {one.name.removeprefix(PREFIX).removeprefix(f'{NAME} '):<12} "
            lines += textwrap.wrap(
                one.summary, width, initial_indent=first, subsequent_indent=" " * len(first)
            )
    return "\n".join(lines)


def subjects() -> dict[str, list[Tool]]:
    """Return all tools by subject, those of installed packages among them."""
    found: dict[str, list[Tool]] = {}
    for name in dict.fromkeys((*tool_names(), *_brought())):
        one = tool(name)
        found.setdefault(SUBJECTS.get(one.domain) or one.subject or one.domain, []).append(one)
    for one in COMMANDS.values():
        found.setdefault(one.subject, []).append(one)
    return found


def _brought() -> Iterator[str]:
    """Yield the names of tools that installed packages bring."""
    for domain in plugins.every_domain():
        for word in (*domain.pipelines, *plugins.step_names(domain)):
            if PREFIX + word not in OTHERS:
                yield PREFIX + word
