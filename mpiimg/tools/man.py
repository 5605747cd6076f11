"""mpiimg man: a manual page of each tool, from what it declares."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.mpi.runtime import put, refused
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, Exit
from mpiimg.tools.parsing import usage
from mpiimg.tools.surface import Option, options
from mpiimg.tools.tool import Tool
from mpiimg.tools.umbrella import NAME, subjects
from mpiimg.version import __version__

SECTION = "1"


def program(values: Mapping[str, Any], comm) -> int:
    """Write the pages into a folder: mpiimg man. Returns the exit status."""
    folder = Path(values["folder"]) / f"man{SECTION}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pages = dict(every_page())
        for name, text in pages.items():
            (folder / f"{name}.{SECTION}").write_text(text)
    except OSError as error:
        return refused(BadInput(f"{shown(error.filename or folder)}: {error.strerror}"))
    put(f"{len(pages)} pages in {folder}: man -M {values['folder']} {NAME}", sys.stdout)
    return Exit.DONE


def every_page() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page, that of mpiimg first."""
    by_subject = subjects()
    yield NAME, _overview(by_subject)
    for tools in by_subject.values():
        yield from ((one.name.replace(" ", "-"), page(one)) for one in tools)


def page(tool: Tool) -> str:
    """Return the manual page of a tool, in the macros of man(7)."""
    lines = [_head(tool.name.replace(" ", "-"), tool.summary), ".SH SYNOPSIS"]
    for number, form in enumerate(usage(tool).splitlines()):
        lines += [".br"] * (number > 0) + [_text(form.strip())]
    lines += [".SH DESCRIPTION", _text(tool.summary)]
    if tool.recipe is not None:
        lines += [
            ".PP",
            _text("It runs alone, or on any number of ranks under mpiexec or srun, with the same results."),
        ]
    group = ""
    for one in options(tool):
        if one.group != group:
            group = one.group
            lines.append(f".SH {_text(group.upper())}")
        lines += [".TP", _named(one), _text(one.help)]
    if tool.examples:
        lines.append(".SH EXAMPLES")
        for text, command in tool.examples:
            lines += [".PP", _text(text), ".PP", ".RS 4", ".nf", _text(command), ".fi", ".RE"]
    lines.append(".SH EXIT STATUS")
    for status in Exit:
        lines += [".TP", str(int(status)), _text(f"{status.words}.")]
    if tool.papers:
        lines.append(".SH PAPERS")
        for paper in tool.papers:
            lines += [".PP", _text(f"{paper}.")]
    return "\n".join([*lines, ".SH SEE ALSO", f".BR {NAME} ({SECTION})", ""])


def _overview(by_subject: Mapping[str, list[Tool]]) -> str:
    summary = "Scientific image pipelines as MPI programs."
    lines = [_head(NAME, summary), ".SH SYNOPSIS", _text(f"{NAME} TOOL [arguments and options of the tool]")]
    lines += [".SH DESCRIPTION", _text(f"{summary} {NAME} TOOL is the same as the program {NAME}-TOOL.")]
    for subject, tools in by_subject.items():
        lines.append(f".SH {_text(subject.upper())}")
        for one in tools:
            lines += [".TP", f".BR {_text(one.name.replace(' ', '-'))} ({SECTION})", _text(one.summary)]
    return "\n".join([*lines, ""])


def _head(name: str, summary: str) -> str:
    title = f'.TH {name.upper()} {SECTION} "" "mpiimg {__version__}" "mpiimg"'
    return f"{title}\n.SH NAME\n{_text(name)} \\- {_text(summary.rstrip('.'))}"


def _named(one: Option) -> str:
    value = f" \\fI{_text(one.metavar)}\\fR" if one.metavar else ""
    if not one.flags:
        return f"\\fI{_text(one.metavar)}\\fR"
    return ", ".join(f"\\fB{_text(flag)}\\fR" for flag in one.flags) + value


def _text(text: str) -> str:
    """Return text as roff shows it as it is: no dash becomes a hyphen, no line a request."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", plain)
