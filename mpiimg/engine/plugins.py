"""Domains, steps and formats by name: what is built in, and what installed packages bring.

Packages bring domains by their names, steps as "DOMAIN.STEP", and formats by the endings of files.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Any

from mpiimg.engine.names import asking
from mpiimg.engine.step import Domain, Step
from mpiimg.errors import BadInput

#: Where built-in domains are; entry points are asked only for names that are not here.
DOMAINS: Mapping[str, str] = {
    "neuro": "mpiimg.neuro.pipelines:DOMAIN",
    "astro": "mpiimg.astro.pipelines:DOMAIN",
}

#: Groups of entry points.
GROUPS = OF_DOMAINS, OF_STEPS, OF_FORMATS = "mpiimg.domains", "mpiimg.steps", "mpiimg.formats"


def load_object(place: str) -> Any:
    """Return what "module:attribute" names.

    Raises
    ------
    BadInput
        It belongs to an installed package, and cannot be imported.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        if _top(module) == _top(__name__):
            raise
        raise BadInput(f"{place}: this plugin cannot be loaded: {type(error).__name__}: {error}") from error


@functools.cache
def installed(group: str) -> Mapping[str, str]:
    """Return what installed packages bring to a group of entry points: "module:attribute" by name.

    Raises
    ------
    BadInput
        Two of them bring different things by one name.
    """
    places: dict[str, str] = {}
    for entry in _entries(group):
        if places.setdefault(entry.name, entry.value) != entry.value:
            raise BadInput(
                f"{entry.name}: two installed packages bring this to {group}, {places[entry.name]} and "
                f"{entry.value}; remove one of them"
            )
    return places


@functools.cache
def _entries(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


@functools.cache
def packages(module: str) -> Mapping[str, str]:
    """Return the version by name of the installed package that a plugin's module is of.

    With it come those that it requires: what they compute is in the results too. There are none for our own
    modules, nor for those that no package brings.
    """
    if _top(module) == _top(__name__):
        return {}
    entries = [entry for group in GROUPS for entry in _entries(group) if _top(entry.value) == _top(module)]
    return {name: one for entry in entries if entry.dist for name, one in _versions(entry.dist).items()}


def _versions(package: Distribution) -> dict[str, str]:
    """Return the version of a package, and of those that it requires whatever its extras."""
    versions = {package.name: package.version}
    for text in package.requires or ():
        name = re.match(r"[\w.-]+", text)[0]
        if "extra ==" not in text and name != _top(__name__):
            try:
                versions[name] = distribution(name).version
            except PackageNotFoundError:
                continue  # that of another Python or system
    return versions


def _top(module: str) -> str:
    return re.split("[.:]", module)[0]


def domain(name: str) -> Domain:
    """Return a domain, built in or installed.

    Raises
    ------
    BadInput
        There is none of this name.
    """
    return load_object(domain_place(name))


def domain_place(name: str) -> str:
    """Return the "module:attribute" of a domain, which tells every rank where it is.

    Raises
    ------
    BadInput
        There is none of this name.
    """
    place = DOMAINS.get(name) or installed(OF_DOMAINS).get(name)
    if place is None:
        names = sorted({*DOMAINS, *installed(OF_DOMAINS)})
        raise BadInput(f"{name}: there is no such domain; there are {', '.join(names)}")
    return place


def step(of: Domain, name: str) -> Step:
    """Return a step of a domain: its own, or one that a package brings to it.

    Raises
    ------
    BadInput
        There is none of this name.
    """
    return load_object(step_place(of, name))


def step_place(of: Domain, name: str) -> str:
    """Return the "module:attribute" of a step, which tells every rank where it is.

    Raises
    ------
    BadInput
        There is none of this name.
    """
    place = of.steps.get(name) or installed(OF_STEPS).get(f"{of.name}.{name}")
    if place is None:
        names = step_names(of)
        raise BadInput(asking(f"{name}: {of.name} has no such step; it has {', '.join(names)}", name, names))
    return place


def step_names(of: Domain) -> list[str]:
    """Return the names of all steps of a domain, those of installed packages last."""
    prefix = f"{of.name}."
    brought = [name.removeprefix(prefix) for name in installed(OF_STEPS) if name.startswith(prefix)]
    return [*of.steps, *(name for name in brought if name not in of.steps)]


def every_domain() -> list[Domain]:
    """Return all domains, built-in ones first."""
    return [domain(name) for name in dict.fromkeys((*DOMAINS, *installed(OF_DOMAINS)))]


def every_step() -> list[Step]:
    """Return all steps of all domains."""
    return [step(of, name) for of in every_domain() for name in step_names(of)]


def _rates() -> dict[str, tuple[float, str]]:
    """Return the rates that all domains and steps declare."""
    tables = [of.rates for of in every_domain()] + [one.rates for one in every_step()]
    return {name: about for table in tables for name, about in table.items()}


def samples() -> dict[str, Callable]:
    """Return what measures the rates of all steps and domains, by the name of the rate."""
    return {name: load_object(sample) for name, (_, sample) in _rates().items()}


def default_rates() -> dict[str, float]:
    """Return the rates of all steps and domains as they were measured elsewhere."""
    return {name: seconds for name, (seconds, _) in _rates().items()}


def kernels() -> list[str]:
    """Return the functions that compile the kernels of all steps, each once."""
    return list(dict.fromkeys(kernel for one in every_step() for kernel in one.kernels))
