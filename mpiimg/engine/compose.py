"""The one composer: from a chain of steps to the recipe of a run, for tools, TOML pipelines and Python."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mpiimg.engine import plugins
from mpiimg.engine.inputs import parallel, said_of, said_of_named
from mpiimg.engine.labels import labelled
from mpiimg.engine.parameters import Parameter, checked_settings, parameters_of
from mpiimg.engine.recipe import Recipe, output_names
from mpiimg.engine.stage import Records, Reduce, Stages, expected_stages
from mpiimg.engine.step import Argument, Domain, Inspection, Output, Source, Step, line_of
from mpiimg.errors import BadInput


@dataclass(frozen=True)
class Link:
    """A step in a chain.

    Parameters
    ----------
    step : Step
    parameters : object
        Of the dataclass that the step declares.
    label : str
        Tells it from other links; stages and arrays are named with it.
    write : bool
        Whether its results are written, if nothing else says so.
    """

    step: Step
    parameters: Any
    label: str
    write: bool = True


@dataclass(frozen=True)
class Chain:
    """Steps one after the other, and the source that they start from.

    Parameters
    ----------
    domain : Domain
    source : Source
    parameters : object
        Of the source.
    links : tuple of Link
    taken : frozenset of str
        Fields of the state that the source must give.
    welcome : frozenset of str
        Fields that the source may give, and that steps then use.
    recipe : str
        The recipe by name that gave parameters their values, if one did.
    """

    domain: Domain
    source: Source
    parameters: Any
    links: tuple[Link, ...]
    taken: frozenset[str]
    welcome: frozenset[str] = frozenset()
    recipe: str = ""

    @property
    def fields(self) -> frozenset[str]:
        """The fields that the source is asked for."""
        return self.taken | self.welcome


@dataclass(frozen=True)
class Inspected:
    """What one rank finds out before the plan.

    Parameters
    ----------
    state : object
        The first state, from headers.
    links : tuple of Inspection
        What each step has looked at.
    packages : mapping of str to str
        Versions of the installed packages that the steps come from.
    named : mapping
        What run.json says of files that were named and are no inputs, such as tables, by argument.
    """

    state: Any
    links: tuple[Inspection, ...]
    packages: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunName:
    """What a run is called.

    Parameters
    ----------
    tool : str
        Name of the program.
    record : str
        Name of the file that says how the run went.
    parameters : mapping
        What run.json says of them, and tells one run from another.
    stem : str
        That the work folder begins with; by default the state's.
    """

    tool: str
    record: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stem: str = ""


# --- Order ------------------------------------------------------------------------------------------------


def open_with(domain: Domain, steps: Sequence[Step], where: str) -> tuple[Source, frozenset, frozenset]:
    """Return the source that a chain of steps starts from, and what it must and may give.

    Parameters
    ----------
    domain : Domain
    steps : sequence of Step
    where : str
        Names the chain in messages.

    Raises
    ------
    BadInput
        A step takes what neither a step before it nor any source gives.
    """
    available: set[str] = set()
    taken: set[str] = set()
    welcome: set[str] = set()
    sources = list(domain.sources)
    for number, step in enumerate(steps):
        taken |= set(step.takes) - available
        fitting = [source for source in sources if taken <= set(source.gives)]
        if not fitting:
            missing = sorted(
                set(step.takes) - available - {one for source in sources for one in source.gives}
            )
            before = f"after {steps[number - 1].name}" if number else "first"
            raise BadInput(
                f"{where}: {step.name} cannot stand {before}: "
                f"it takes {' and '.join(missing) or 'other data'}, which {_makers(domain, missing)} gives"
            )
        sources = fitting
        welcome |= set(step.may_take) - available
        available |= set(step.gives)
    source = sources[0]
    # What a step gives and a later one takes may be brought along instead.
    brought = {
        argument.of
        for argument in source.arguments
        if argument.of in available and _taken_by(steps, argument.of)
    }
    return source, frozenset(taken), frozenset((welcome & set(source.gives)) | brought) - taken


def _taken_by(steps: Sequence[Step], field: str) -> bool:
    return any(field in (*step.takes, *step.may_take) for step in steps)


def _makers(domain: Domain, fields: Sequence[str]) -> str:
    steps = [plugins.step(domain, name) for name in plugins.step_names(domain)]
    makers = [step.name for step in steps if set(step.gives) & set(fields)]
    return " or ".join(makers) or "no step before it"


def arguments_of(source: Source, taken: frozenset, welcome: frozenset) -> list[tuple[Argument, bool]]:
    """Return the paths that a chain can be given, and whether each must be."""
    return [
        (argument, not argument.optional and (not argument.of or argument.of in taken))
        for argument in source.arguments
        if not argument.of or argument.of in taken | welcome
    ]


def parameters_for(kind: type, taken: frozenset) -> tuple[Parameter, ...]:
    """Return the parameters of a source that are about what a chain takes."""
    return tuple(one for one in parameters_of(kind) if not one.of or one.of in taken)


def make_chain(
    domain: Domain,
    links: Sequence[Link],
    settings: Mapping[str, Any],
    where: str = "this pipeline",
    recipe: str = "",
) -> Chain:
    """Put a chain together.

    Parameters
    ----------
    domain : Domain
    links : sequence of Link
    settings : mapping
        Values of the source's parameters by name; others are left alone.
    where : str
        Names the chain in messages.
    recipe : str
        The recipe by name that gave parameters their values, if one did.

    Raises
    ------
    BadInput
        The order makes no sense, or two links have one label.
    """
    labels = [link.label for link in links]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise BadInput(f"{where}: two stages are called {twice}; give one of them another name")
    source, taken, welcome = open_with(domain, [link.step for link in links], where)
    parameters = filled(source.parameters, settings)
    return Chain(domain, source, parameters, tuple(links), taken, welcome, recipe)


def module_of(function: Callable) -> str:
    """Return the module that a function is declared in, also of a partial one."""
    return getattr(getattr(function, "func", function), "__module__", "")


def filled(kind: type, settings: Mapping[str, Any]) -> Any:
    """Return a dataclass of parameters with those of `settings` that it has.

    Every chain is filled here, so that limits hold whoever asks for it.

    Raises
    ------
    BadInput
        A value is not what its parameter declares.
    """
    return kind(**checked_settings(kind, settings))


# --- Recipe -----------------------------------------------------------------------------------------------


def inspect_chain(chain: Chain, paths: Mapping[str, Any]) -> Inspected:
    """Read the headers of all inputs, and let each step look at what it will get. On one rank.

    Raises
    ------
    BadInput
        Something cannot be used.
    """
    state = chain.source.inspect(paths, chain.parameters, chain.fields)
    first, looked, before = state, [], _Before()
    _, state = expected_stages(_opening(chain, state, before))
    for link in chain.links:
        looked.append(link.step.inspect(state, link.parameters))
        _, state = expected_stages(_of_link(link, looked[-1], state, before))
    modules = {module_of(chain.source.inspect), *(module_of(link.step.stages) for link in chain.links)}
    packages = {name: one for module in modules for name, one in plugins.packages(module).items()}
    named = {one.name: paths.get(one.name) for one in chain.source.arguments}
    return Inspected(first, tuple(looked), packages, said_of_named(named, files_of(first)))


def files_of(state: Any) -> tuple[Path, ...]:
    """Return the files whose sizes and times must not change while a run reads them."""
    return tuple(dict.fromkeys((*state.files, *(file for one in state.inputs for file in one.files))))


def make_recipe(chain: Chain, inspected: Inspected, name: RunName) -> Recipe:
    """Return the recipe of a chain; every rank makes the same.

    Raises
    ------
    BadInput
        Two of its results would have one name.
    """
    state, domain = inspected.state, chain.domain
    functions = {link.label: link.step.source for link in chain.links if link.step.source}
    rates = [domain.rates, *(link.step.rates for link in chain.links)]
    sources = state.sources or {one.array.name: said_of(one) for one in state.inputs}
    recipe = Recipe(
        tool=name.tool,
        stem=name.stem or state.stem,
        inputs=parallel(state.inputs),
        stages=lambda: _stages(chain, inspected),
        documents=lambda states: _documents(chain, states),
        parameters=name.parameters,
        sources={**inspected.named, **sources, **({"functions": functions} if functions else {})},
        record=name.record,
        warnings=(*state.warnings, *(text for one in inspected.links for text in one.warnings)),
        notes=state.notes,
        left_out=state.left_out,
        faults=state.faults,
        kernels=tuple(dict.fromkeys(kernel for link in chain.links for kernel in link.step.kernels)),
        rates={rate: seconds for table in rates for rate, (seconds, _) in table.items()},
        files=files_of(state),
        baseline=domain.baseline + state.nbytes + sum(one.baseline for one in inspected.links),
        packages=inspected.packages,
        facts={key: fact for one in inspected.links for key, fact in one.facts.items()},
        said={"recipe": chain.recipe} if chain.recipe else {},
    )
    names = output_names(recipe)
    twice = next((one for one, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise BadInput(
            f"{name.tool}: two results would be called {twice}; say write = false of one of the stages, "
            "or make one of the results in another run"
        )
    return recipe


def _stages(chain: Chain, inspected: Inspected) -> Stages[tuple]:
    """Yield the stages of the source, then those of each step and of its results; return all states."""
    before = _Before()
    state = yield from _opening(chain, inspected.state, before)
    states = []
    for number, (link, looked) in enumerate(zip(chain.links, inspected.links, strict=True)):
        state = yield from _of_link(link, looked, state, before)
        for output, folder in _written(chain, number):
            stage = output.stage(state, link.parameters, Path(folder))
            if stage is not None:
                lost = yield dataclasses.replace(stage, name=f"{link.label}.{stage.name}")
                state = output.without(state, lost) if lost else state
        states.append(state)
    return tuple(states)


@dataclass
class _Before:
    """What a stage may depend on that does not say itself what it depends on.

    Parameters
    ----------
    parameters : dict
        Those of all steps so far, by label.
    reductions : list of str
        Arrays of rows of all reductions so far, and of records.
    reserved : set of str
        Arrays of the source, which keep their names.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    reductions: list[str] = field(default_factory=list)
    reserved: set[str] = field(default_factory=set)

    def follow(self, stages: Stages[Any], label: str, parameters: Any) -> Stages[Any]:
        """Yield the stages of a step; those that say nothing depend on all that came before them."""
        self.parameters[label] = {
            one.name: getattr(parameters, one.name) for one in dataclasses.fields(parameters)
        }
        value = None
        try:
            while True:
                stage = stages.send(value)
                if stage.parameters is None and getattr(stage, "depends", None) is None:
                    stage = dataclasses.replace(
                        stage, parameters=dict(self.parameters), follows=tuple(self.reductions)
                    )
                value = yield stage
                if isinstance(stage, Reduce | Records):
                    self.reductions.append(stage.rows.name if isinstance(stage, Reduce) else stage.records)
        except StopIteration as end:
            return end.value


def _opening(chain: Chain, state: Any, before: _Before) -> Stages[Any]:
    before.reserved |= {source.array.name for source in state.inputs}
    stages = before.follow(chain.source.stages(state, chain.parameters, chain.fields), "", chain.parameters)
    value = None
    try:
        while True:
            stage = stages.send(value)
            before.reserved |= {array.name for array in stage.arrays}
            value = yield stage
    except StopIteration as end:
        state = end.value
    if chain.recipe:
        state = dataclasses.replace(state, history=(*state.history, f"recipe: {chain.recipe}"))
    return state


def _of_link(link: Link, looked: Inspection, state: Any, before: _Before) -> Stages[Any]:
    """Yield the stages of a step under its label; return the next state, with what was done noted in it."""
    stages = link.step.stages(state, link.parameters, looked.data)
    stages = labelled(stages, link.step.name, link.label, before.reserved)
    state = yield from before.follow(stages, link.label, link.parameters)
    step, parameters = link.step, link.parameters
    lines = step.history(parameters) if step.history else (line_of(step.name, parameters),)
    return dataclasses.replace(state, history=(*state.history, *lines)) if lines else state


def _written(chain: Chain, number: int) -> Iterator[tuple[Output, str]]:
    """Yield the results of a link that are written, and the folder of each."""
    link, steps = chain.links[number], [link.step for link in chain.links]
    for output in link.step.outputs:
        used = _used_later(output, steps[number + 1 :])
        flagged = bool(output.flag) and getattr(link.parameters, output.flag)
        if flagged or (link.write and (output.when == "always" or not used)):
            yield output, output.folder if used else "."


def _used_later(output: Output, later: Sequence[Step]) -> bool:
    """Return whether later steps take what an output is of, or make another of it."""
    return any(output.of in (*step.takes, *step.may_take, *step.gives) for step in later)


def idle_flags(steps: Sequence[Step]) -> set[str]:
    """Return the parameters that do nothing in a chain: flags of results that are written without them."""
    return {
        output.flag
        for number, step in enumerate(steps)
        for output in step.outputs
        if output.flag and (output.when == "always" or not _used_later(output, steps[number + 1 :]))
    }


def _documents(chain: Chain, states: Sequence[Any]) -> dict[str, bytes]:
    documents: dict[str, bytes] = {}
    # Also of what a later step had to leave out.
    left_out = states[-1].left_out if states else {}
    states = [dataclasses.replace(state, left_out=left_out) for state in states]
    for number, (link, state) in enumerate(zip(chain.links, states, strict=True)):
        for output, folder in _written(chain, number):
            for name, data in output.documents(state, link.parameters).items():
                if chain.recipe and name.endswith(".json"):
                    data = _with_recipe(data, chain.recipe)
                documents[str(PurePosixPath(folder) / name)] = data
    return documents


def _with_recipe(document: bytes, recipe: str) -> bytes:
    """Return a sidecar that names the recipe too."""
    return json.dumps({**json.loads(document), "Recipe": recipe}, indent=2).encode() + b"\n"


# --- Labels -----------------------------------------------------------------------------------------------
