"""The tools by name: those of steps and pipelines, of installed packages too, and the others.

Nothing heavy is imported before it is needed: --help and a wrong flag answer without MPI, numba or dipy.
"""

from __future__ import annotations

import dataclasses

from mpiimg.engine import plugins
from mpiimg.engine.step import Domain
from mpiimg.errors import BadInput
from mpiimg.tools.other_tools import OTHERS
from mpiimg.tools.steps_tool import of_step, of_steps
from mpiimg.tools.tool import PREFIX, Tool

#: Tools that take a BIDS dataset in place of one image.
OF_DATASETS = ("mpiimg-neuro",)


def tool(name: str) -> Tool:
    """Return a tool: one of ours, or of a domain or step that an installed package brings.

    Raises
    ------
    BadInput
        There is none of this name.
    """
    if name in OTHERS:
        return OTHERS[name]()
    word = name.removeprefix(PREFIX)
    for domain in map(plugins.domain, plugins.DOMAINS):
        if made := of_steps(word, domain, name):
            return dataclasses.replace(made.tool(), bids=name in OF_DATASETS)
    for domain in plugins.every_domain():
        if word in domain.pipelines or word in plugins.step_names(domain):
            return (of_steps(word, domain, name) or of_step(word, domain, name)).tool()
    raise BadInput(f"{name}: there is no such tool")


def tool_names() -> list[str]:
    """Return the names of our own tools."""
    words = [word for name in plugins.DOMAINS for word in _words(plugins.domain(name))]
    return [*(PREFIX + word for word in words), *OTHERS]


def _words(domain: Domain) -> list[str]:
    return [*domain.pipelines, *domain.steps]
