"""Tools that run steps: one step of a domain, or a pipeline, from what these declare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiimg.engine import compose, plugins, presets
from mpiimg.engine.parameters import Parameter, parameters_of
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.step import Domain, Source, Step
from mpiimg.errors import BadInput
from mpiimg.tools.tool import OUT, Group, Tool, Values


@dataclass(frozen=True)
class StepsTool:
    """One step of a domain, or a pipeline of steps, as a program.

    Parameters
    ----------
    name : str
        Of the program, or what stands for it in messages.
    domain : Domain
    steps : tuple of Step
    summary : str
    record : str
        Name of the file that says how the run went.
    examples : tuple of (str, str)
        What is done, and by which command.
    """

    name: str
    domain: Domain
    steps: tuple[Step, ...]
    summary: str
    record: str
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def to_file(self) -> Callable | None:
        """How the result gets the name of a file, for a tool of one step that writes one."""
        return self.steps[0].to_file if len(self.steps) == 1 else None

    def tool(self) -> Tool:
        """Return the program."""
        source, taken, welcome = compose.open_with(self.domain, self.steps, self.name)
        parameters = [*compose.parameters_for(source.parameters, taken | welcome)]
        parameters += [one for step in self.steps for one in parameters_of(step.parameters)]
        useless = self._told_by_out() | compose.idle_flags(self.steps)
        parameters = [one for one in parameters if one.name not in useless]
        by_name = presets.option(self.domain.presets, parameters)
        parameters = [by_name, *parameters] if by_name else parameters
        out = OUT
        if self.to_file is not None:
            out = dataclasses.replace(OUT, help="The file to write; what belongs to it goes beside it.")
        return Tool(
            self.name,
            self.summary,
            [*compose.arguments_of(source, taken, welcome), (out, True)],
            _each_once(self.name, parameters),
            self.inspect,
            self.recipe,
            self.folder,
            self.chain,
            tuple(dict.fromkeys(paper for step in self.steps for paper in step.papers)),
            "DIR" if self.to_file is None else "FILE",
            presets=self.domain.presets if by_name else {},
            domain=self.domain.name,
            groups=self._groups(source),
            examples=self.examples,
            reports=self.to_file is None,
        )

    def _groups(self, source: Source) -> tuple[Group, ...]:
        """Return the options by the step that they belong to, after those of the input."""
        of_input = Group("input", "", _names(source.parameters))
        return (of_input, *(Group(step.name, step.summary, _names(step.parameters)) for step in self.steps))

    def _told_by_out(self) -> set[str]:
        """Return the names of parameters that --out says, where it is a file."""
        if self.to_file is None:
            return set()
        usual = self.steps[0].parameters()
        named = self.to_file(usual, "name.ending")
        names = (field.name for field in dataclasses.fields(usual))
        return {name for name in names if getattr(usual, name) != getattr(named, name)}

    def chain(self, values: Values) -> compose.Chain:
        """Return the chain with the parameters that `values` say."""
        links = []
        for step in self._chosen(values):
            parameters = compose.filled(step.parameters, values)
            if self.to_file is not None:
                parameters = self.to_file(parameters, Path(values["out"]).name)
            links.append(compose.Link(step, parameters, step.name))
        recipe = presets.said(self.domain.presets, values)
        return compose.make_chain(self.domain, links, values, self.name, recipe)

    def _chosen(self, values: Values) -> tuple[Step, ...]:
        """Return the steps without those of a pipeline that the recipe leaves out.

        Raises
        ------
        BadInput
            An option that was given is for one of these.
        """
        preset = self.domain.presets.get(values.get(presets.NAME) or "")
        if preset is None or len(self.steps) == 1:
            return self.steps
        chosen = tuple(step for step in self.steps if step.name not in preset.without)
        used = {one.name for step in chosen for one in parameters_of(step.parameters)}
        for step in self.steps:
            for one in parameters_of(step.parameters):
                if step not in chosen and one.name not in used and values.get(one.name) != one.default:
                    recipe = values[presets.NAME]
                    raise BadInput(
                        f"{one.flag} is of the step {step.name}, which the recipe {recipe} leaves out"
                    )
        return chosen

    def inspect(self, values: Values) -> compose.Inspected:
        """Read headers, on one rank."""
        chain = self.chain(values)
        paths = {argument.name: values.get(argument.name) for argument in chain.source.arguments}
        return compose.inspect_chain(chain, {**paths, "out": self.folder(values)})

    def recipe(self, inspected: compose.Inspected, values: Values) -> Recipe:
        """Return the recipe of a run."""
        recorded = {name: value for name, value in values.items() if name != "out"}
        name = compose.RunName(self.name, self.record, recorded)
        return compose.make_recipe(self.chain(values), inspected, name)

    def folder(self, values: Values) -> Path:
        """Return the folder of the results."""
        return Path(values["out"]) if self.to_file is None else Path(values["out"]).parent


def _names(kind: type) -> tuple[str, ...]:
    return tuple(one.name for one in parameters_of(kind))


def _each_once(name: str, parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """Return parameters without those that two steps share; other ones of the same name are an error."""
    by_name: dict[str, Parameter] = {}
    for one in parameters:
        if by_name.setdefault(one.name, one) != one:
            raise ValueError(f"{name}: two of its steps have different parameters called {one.name}")
    return tuple(by_name.values())


def of_steps(word: str, domain: Domain, name: str) -> StepsTool | None:
    """Return what `word` names in a domain, a pipeline or a step, as a program called `name`."""
    if word in domain.pipelines:
        pipeline = domain.pipelines[word]
        steps = tuple(plugins.step(domain, step) for step in pipeline.steps)
        return StepsTool(name, domain, steps, pipeline.summary, "run.json", pipeline.examples)
    return of_step(word, domain, name) if word in domain.steps else None


def of_step(word: str, domain: Domain, name: str) -> StepsTool:
    step = plugins.step(domain, word)
    return StepsTool(name, domain, (step,), step.summary, f"run-{word}.json", step.examples)
