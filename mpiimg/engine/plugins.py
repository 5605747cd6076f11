"""Domains, steps and formats by name: what is built in, and what installed packages bring."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from mpiimg.engine.step import Domain, Step
from mpiimg.errors import BadInput

#: Where built-in domains are; entry points are asked only for names that are not here.
DOMAINS: Mapping[str, str] = {
    "neuro": "mpiimg.neuro.pipelines:DOMAIN",
    "astro": "mpiimg.astro.pipelines:DOMAIN",
}


def loaded(place: str) -> Any:
    """Return what "module:attribute" names."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


@functools.cache
def installed(group: str) -> Mapping[str, str]:
    """Return what installed packages bring to a group of entry points: "module:attribute" by name."""
    return {entry.name: entry.value for entry in entry_points(group=group)}


def domain(name: str) -> Domain:
    """Return a domain, built in or installed.

    Raises
    ------
    BadInput : there is none of this name
    """
    place = DOMAINS.get(name) or installed("mpiimg.domains").get(name)
    if place is None:
        known = sorted({*DOMAINS, *installed("mpiimg.domains")})
        raise BadInput(f"{name}: there is no such domain; there are {', '.join(known)}")
    return loaded(place)


def step(of: Domain, name: str) -> Step:
    """Return a step of a domain: its own, or one that a package brings to it.

    Raises
    ------
    BadInput : there is none of this name
    """
    return loaded(step_place(of, name))


def step_place(of: Domain, name: str) -> str:
    """Return the "module:attribute" of a step, which tells every rank where it is.

    Raises
    ------
    BadInput : there is none of this name
    """
    place = of.steps.get(name)
    if place is None:
        place = installed("mpiimg.steps").get(name)
        if place is None or loaded(place).domain != of.name:
            raise BadInput(f"{name}: {of.name} has no such step; it has {', '.join(step_names(of))}")
    return place


def step_names(of: Domain) -> list[str]:
    """Return the names of all steps of a domain, those of installed packages last."""
    brought = [name for name, place in installed("mpiimg.steps").items() if loaded(place).domain == of.name]
    return [*of.steps, *(name for name in brought if name not in of.steps)]


def every_domain() -> list[Domain]:
    """Return all domains, built-in ones first."""
    return [domain(name) for name in dict.fromkeys((*DOMAINS, *installed("mpiimg.domains")))]


def every_step() -> list[Step]:
    """Return all steps of all domains."""
    return [step(of, name) for of in every_domain() for name in step_names(of)]


def _rates() -> dict[str, tuple[float, str]]:
    """Return the rates that all domains and steps declare."""
    tables = [of.rates for of in every_domain()] + [one.rates for one in every_step()]
    return {name: about for table in tables for name, about in table.items()}


def samples() -> dict[str, Callable]:
    """Return what measures the rates of all steps and domains, by the name of the rate."""
    return {name: loaded(sample) for name, (_, sample) in _rates().items()}


def default_rates() -> dict[str, float]:
    """Return the rates of all steps and domains as they were measured elsewhere."""
    return {name: seconds for name, (seconds, _) in _rates().items()}


def kernels() -> list[str]:
    """Return the functions that compile the kernels of all steps, each once."""
    return list(dict.fromkeys(kernel for one in every_step() for kernel in one.kernels))
