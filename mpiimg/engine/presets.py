"""Recipes that a domain offers by name: values that its parameters have where nobody says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpiimg.engine.parameters import Parameter
from mpiimg.engine.step import Domain, Preset
from mpiimg.errors import BadInput

#: The option, the key in TOML and the keyword in Python.
NAME = "recipe"


def option(presets: Mapping[str, Preset], parameters: Sequence[Parameter]) -> Parameter | None:
    """Return the parameter that names a recipe, where one has values for any of `parameters`."""
    names = {one.name for one in parameters}
    helps = [f"{name} ({one.summary})" for name, one in presets.items() if names & set(one.values)]
    if not helps:
        return None
    text = f"Parameters that are not given have the values of this recipe: {'; '.join(helps)}."
    return Parameter(NAME, None, text, choices=tuple(presets))


def switches(presets: Mapping[str, Preset]) -> set[str]:
    """Return the names of parameters that a recipe switches on, so that a user may switch them off."""
    return {name for one in presets.values() for name, value in one.values.items() if value is True}


def settled(
    parameters: Iterable[Parameter], presets: Mapping[str, Preset], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values of all parameters: those given, then those of the recipe, then defaults.

    A tool without recipes of its own looks for the one that it is given when it knows the domain.
    """
    preset = presets.get(given.get(NAME) or "")
    chosen = preset.values if preset else {}
    return {one.name: given.get(one.name, chosen.get(one.name, one.default)) for one in parameters}


def said(presets: Mapping[str, Preset], values: Mapping[str, Any]) -> str:
    """Return what is said of the recipe that `values` name: its name, and which of them differ from it."""
    name = values.get(NAME)
    if not name:
        return ""
    own = presets[name].values
    other = [f"{key} {values[key]}" for key in own if key in values and values[key] != own[key]]
    return f"{name}, with {', '.join(other)}" if other else name


def preset_of(domain: Domain, name: str, place: str) -> Preset:
    """Return a recipe of a domain.

    Raises
    ------
    BadInput
        There is none of this name.
    """
    if name not in domain.presets:
        there = f"there are {', '.join(domain.presets)}" if domain.presets else "it has none"
        raise BadInput(f"{place} {name}: no such recipe of {domain.name}; {there}")
    return domain.presets[name]
