"""mpiimg-run: from what a user asks for to a chain of steps, and its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mpiimg.engine import compose, plugins, presets
from mpiimg.engine.folders import known_facts
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.step import Domain, Step
from mpiimg.errors import BadInput
from mpiimg.functions.declare import OVER_SURVEYS
from mpiimg.functions.load import read_params
from mpiimg.functions.request import Entry, Request, bids_label, requested
from mpiimg.functions.wiring import IMAGE


@dataclass(frozen=True)
class Answer:
    """A text that is said in place of a run."""

    answer: str


@dataclass(frozen=True)
class RunInspected:
    """A request whose inputs were inspected, and whose functions were tried."""

    request: Request
    chain: compose.Inspected


def result_folder(values: Mapping[str, Any]) -> Path:
    """Return the folder that results go to."""
    return Path(values["out"]) if values["out"] else Path(values.get("target", values["files"][-1])).parent


def inspect(values: Mapping[str, Any]) -> RunInspected | Answer:
    """Load the user's functions, read headers, and try each function on a little of the data. On one rank.

    Raises
    ------
    BadInput
        Something cannot be used, or a function fails its trial.
    """
    request = requested(values)
    chain = chain_of(request, known_facts(result_folder(values), _record(request)[0]))
    _check_target(request)
    paths = _paths(request, chain, values)
    _check_mask(request, chain, paths)
    if values["check_halo"]:
        return Answer(_check_halos(request, chain, paths))
    return RunInspected(request, compose.inspect_chain(chain, paths))


def recipe(inspected: RunInspected, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a request that :func:`inspect` has inspected."""
    request = inspected.request
    chain = chain_of(request)
    parameters = {
        f"{link.label}.{name}": value for link in chain.links for name, value in _items(link.parameters)
    }
    parameters |= dict(_items(chain.parameters))
    record, stem = _record(request)
    return compose.make_recipe(
        chain, inspected.chain, compose.RunName("mpiimg-run", record, parameters, stem)
    )


def _record(request: Request) -> tuple[str, str]:
    """Return the name of the record of a run, and what the names of its files begin with where it says so."""
    if request.target is None:
        return "run.json", ""
    name = request.target.name
    stem = name.removesuffix(".gz").removesuffix(".nii").removesuffix(".json")
    return f"run-{name.split('.')[0]}.json", stem


def _items(parameters: Any) -> list[tuple[str, Any]]:
    return [(one.name, getattr(parameters, one.name)) for one in dataclasses.fields(parameters)]


def chain_of(request: Request, known: Mapping[str, Any] = MappingProxyType({})) -> compose.Chain:
    """Return the chain that a request asks for; every rank makes the same.

    Parameters
    ----------
    request : Request
    known : mapping
        What earlier trials told of functions, by their keys.

    Raises
    ------
    BadInput
        The order of the stages makes no sense.
    """
    links = [_link(entry, request, known) for entry in request.entries]
    domain = plugins.load_object(request.domain_place)
    return compose.make_chain(domain, links, request.settings, request.name, _said_recipe(request, domain))


def _said_recipe(request: Request, domain: Domain) -> str:
    """Return what is said of the recipe by name that gave parameters their values."""
    values = {name: value for entry in request.entries for name, value in entry.settings.items()}
    return presets.said(domain.presets, {**values, presets.NAME: request.recipe})


def _link(entry: Entry, request: Request, known: Mapping[str, Any]) -> compose.Link:
    if entry.function is not None:
        step = function_step(entry, known)
        settings = {"target": request.target.name if request.target else "", "label": bids_label(entry.label)}
    else:
        step, settings = plugins.load_object(entry.step), entry.settings
    return compose.Link(step, compose.filled(step.parameters, settings), _labelled(entry), entry.write)


def _labelled(entry: Entry) -> str:
    return entry.label if entry.function is None else f"udf-{entry.label}"


def function_step(entry: Entry, known: Mapping[str, Any]) -> Step:
    """Return the step that a user's function is."""
    if entry.function.declared.over in OVER_SURVEYS:
        from mpiimg.functions.surveys import survey_step

        return survey_step(entry.function, _labelled(entry), known)
    from mpiimg.functions.images import image_step

    return image_step(entry.function, _labelled(entry), known, entry.wiring)


def _paths(request: Request, chain: compose.Chain, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths that the source is given, by the names of its arguments."""
    paths = {argument.name: values.get(argument.name) for argument in chain.source.arguments}
    for text, path in read_params(values["input"] or ()).items():
        if text in paths:
            paths[text] = str(path)
        elif text not in request.named:
            readers = "no stage reads it, and " if request.domain == "neuro" else ""
            raise BadInput(f"--input {text}: {readers}{chain.source.name} takes no such file")
    (first,) = (argument for argument in chain.source.arguments if argument.positional)
    if first.many:
        paths[first.name] = [str(path) for path in request.inputs]
    elif len(request.inputs) == 1:
        paths[first.name] = str(request.inputs[0])
    else:
        raise BadInput(f"{request.name}: takes one {chain.source.name}, not {len(request.inputs)}")
    missing = [
        argument.name
        for argument, required in compose.arguments_of(chain.source, chain.taken, chain.welcome)
        if required and not argument.positional and argument.of == "" and paths[argument.name] is None
    ]
    if missing:
        raise BadInput(f"{request.name}: --input {missing[0]}=FILE is missing")
    return {**paths, "named": request.named, "out": result_folder(values)}


def _check_mask(request: Request, chain: compose.Chain, paths: Mapping[str, Any]) -> None:
    """Refuse a chain over an image that needs a mask, and has none."""
    if request.domain == "neuro" and "mask" in chain.taken and not paths["mask"]:
        first = next(link.step for link in chain.links if "mask" in link.step.takes)
        name = first.name.removeprefix("udf-")
        raise BadInput(f"{request.name}: {name} needs a mask: give --mask, or put a mask stage before it")


def _check_target(request: Request) -> None:
    """Refuse a file for the result that it cannot be written to."""
    target = request.target
    if target is None:
        return
    (entry,) = request.entries
    if request.domain == "astro":
        raise BadInput(f"{request.name}: a survey has many results: give --out DIR")
    ending = ".json" if entry.function.aggregate else ".nii.gz"
    if not target.name.endswith(ending) or target.name == ending:
        raise BadInput(f"{target}: the result of {request.name} is written as {ending}; name it so")
    if any(target.resolve() == path.resolve() for path in request.inputs):
        raise BadInput(f"{target}: is the input, which the result would replace; name another file")


def _check_halos(request: Request, chain: compose.Chain, paths: Mapping[str, Any]) -> str:
    """Say of each function over an image whether its halo is enough."""
    functions = [entry for entry in request.entries if entry.function is not None]
    if not functions:
        raise BadInput(f"{request.name}: --check-halo: there is no function to check")
    if request.domain != "neuro":
        raise BadInput(f"{request.name}: --check-halo: {functions[-1].label} has no halo")
    from mpiimg.functions.images import halo_report

    state = chain.source.inspect(paths, chain.parameters, chain.fields)
    return "\n".join(
        halo_report(state, entry.function)
        if entry.wiring.reads == (IMAGE,)
        else f"{entry.function.origin.where}: {entry.function.name}: reads more than the image: not checked"
        for entry in functions
    )
