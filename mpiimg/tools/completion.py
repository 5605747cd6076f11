"""mpiimg completion: what lets a shell complete tools, options and their values, from their declarations.

A library for this (shtab, argcomplete) knows one program at a time, or no fish; here one text serves all
programs, with the tool as the first word too, and nothing of ours runs when a key is pressed.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mpiimg.engine.mpi.runtime import put
from mpiimg.errors import Exit
from mpiimg.tools.surface import Option, options
from mpiimg.tools.tool import PREFIX, Tool
from mpiimg.tools.umbrella import NAME, subjects


def program(values: Mapping[str, Any], comm) -> int:
    """Print the completion for a shell: mpiimg completion. Returns the exit status."""
    put(SHELLS[values["shell"]](_tools()), sys.stdout)
    return Exit.DONE


def _tools() -> dict[str, tuple[Tool, list[Option]]]:
    """Return all tools with their options, by the word that names each."""
    every = [tool for tools in subjects().values() for tool in tools]
    return {_word(tool): (tool, list(options(tool))) for tool in every}


def _word(tool: Tool) -> str:
    return tool.name.removeprefix(PREFIX).removeprefix(f"{NAME} ")


Tools = Mapping[str, tuple[Tool, list[Option]]]


def _of_its_own(tool: Tool) -> bool:
    """Say whether a tool is a program of its own, too."""
    return tool.name.startswith(PREFIX)


# --- bash -------------------------------------------------------------------------------------------------

_BASH = """\
# Completion of mpiimg for bash: eval "$(mpiimg completion bash)" in ~/.bashrc
_mpiimg() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="" tool="${{COMP_WORDS[0]##*/}}" values="" flags=""
    [ "$COMP_CWORD" -gt 0 ] && before="${{COMP_WORDS[COMP_CWORD-1]}}"
    # --option=value is three words for bash.
    if [ "$word" = "=" ]; then
        word=""
    elif [ "$before" = "=" ]; then
        before="${{COMP_WORDS[COMP_CWORD-2]}}"
    fi
    COMPREPLY=()
    if [ "$tool" = mpiimg ]; then
        if [ "$COMP_CWORD" -eq 1 ]; then
            COMPREPLY=($(compgen -W "{words} --help --version" -- "$word"))
            return
        fi
        tool="mpiimg-${{COMP_WORDS[1]}}"
    fi
    case "$tool $before" in
{values}
    esac
    if [ -n "$values" ]; then
        COMPREPLY=($(compgen -W "$values" -- "$word"))
        return
    fi
    [[ "$word" == -* ]] || return
    case "$tool" in
{flags}
    esac
    COMPREPLY=($(compgen -W "$flags" -- "$word"))
}}
complete -o bashdefault -o default -F _mpiimg {programs}"""


def bash(tools: Tools) -> str:
    """Return the completion for bash."""
    values, flags = [], []
    for word, (_, its) in tools.items():
        for one in its:
            patterns = "|".join(f'"{PREFIX}{word} {flag}"' for flag in one.flags)
            if patterns and one.kind == "choices":
                values.append(f"        {patterns}) values={shlex.quote(' '.join(one.choices))} ;;")
            elif patterns and one.kind == "folder":
                values.append(f'        {patterns}) COMPREPLY=($(compgen -d -- "$word")); return ;;')
            elif patterns and one.kind == "nothing":
                values.append(f"        {patterns}) return ;;")
        every = " ".join(flag for one in its for flag in one.flags)
        flags.append(f"        {PREFIX}{word}) flags={shlex.quote(every)} ;;")
    return _BASH.format(
        words=" ".join(tools),
        values="\n".join(values),
        flags="\n".join(flags),
        programs=" ".join([NAME, *(tool.name for tool, _ in tools.values() if _of_its_own(tool))]),
    )


# --- zsh --------------------------------------------------------------------------------------------------

_ZSH = """\
#compdef {programs}
# Completion of mpiimg for zsh: mpiimg completion zsh > DIR/_mpiimg, where DIR is in $fpath before compinit
_mpiimg_tool() {{
    case "$1" in
{tools}
    esac
}}
_mpiimg() {{
    local -a tools
    tools=(
{words}
    )
    if [[ "$service" != mpiimg ]]; then
        _mpiimg_tool "${{service#mpiimg-}}"
    elif (( CURRENT == 2 )); then
        _describe tool tools
    else
        local tool="$words[2]"
        shift words
        (( CURRENT-- ))
        _mpiimg_tool "$tool"
    fi
}}
if [[ "$funcstack[1]" == _mpiimg ]]; then _mpiimg "$@"; else compdef _mpiimg {programs}; fi"""


def zsh(tools: Tools) -> str:
    """Return the completion for zsh."""
    cases = []
    for word, (_, its) in tools.items():
        specs = [spec for one in its for spec in _zsh_specs(one)]
        body = " \\\n                ".join(["_arguments -s", *dict.fromkeys(specs)])
        cases.append(f"        {word})\n            {body} ;;")
    words = [f"        {shlex.quote(f'{word}:{tool.summary}')}" for word, (tool, _) in tools.items()]
    programs = " ".join([NAME, *(tool.name for tool, _ in tools.values() if _of_its_own(tool))])
    return _ZSH.format(programs=programs, tools="\n".join(cases), words="\n".join(words))


def _zsh_specs(one: Option) -> Iterator[str]:
    actions = {"folder": "_files -/", "file": "_files", "nothing": " "}
    action = f"({' '.join(one.choices)})" if one.choices else actions.get(one.kind, "")
    if not one.flags:
        yield "'*:file:_files'"
        return
    text = one.sentence.translate({ord(sign): f"\\{sign}" for sign in "\\[]:"})
    value = f":{one.metavar.replace(':', ' ')}:{action}" if one.metavar else ""
    for flag in one.flags:
        equals = "=" if value and flag.startswith("--") else ""
        yield shlex.quote(f"{flag}{equals}[{text}]{value}")


# --- fish -------------------------------------------------------------------------------------------------


def fish(tools: Tools) -> str:
    """Return the completion for fish."""
    lines = [
        "# Completion of mpiimg for fish: mpiimg completion fish > ~/.config/fish/completions/mpiimg.fish"
    ]
    words = " ".join(tools)
    for word, (tool, its) in tools.items():
        about = f"-n 'not __fish_seen_subcommand_from {words}'"
        lines.append(f"complete -c {NAME} {about} -f -a {word} -d {_fish_quoted(tool.summary)}")
        callers = [f"complete -c {NAME} -n '__fish_seen_subcommand_from {word}'"]
        callers += [f"complete -c {tool.name}"] if _of_its_own(tool) else []
        for one in its:
            if one.flags:
                lines += [f"{caller} {_fish_option(one)}" for caller in callers]
    return "\n".join(lines)


def _fish_option(one: Option) -> str:
    names = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in one.flags]
    values = {
        "choices": f"-x -a {_fish_quoted(' '.join(one.choices))}",
        "folder": "-x -a '(__fish_complete_directories)'",
        "file": "-r",
        "nothing": "-x",
    }
    return " ".join(filter(None, [*names, values.get(one.kind, ""), f"-d {_fish_quoted(one.sentence)}"]))


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Mapping[str, Callable[[Tools], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
