"""The tools: summaries, arguments, options, and what each runs.

A tool that runs steps follows from their declarations; the others stand here. Nothing heavy is imported
before it is needed: --help and a wrong flag answer without MPI, numba or dipy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpiimg.engine import compose, plugins, presets
from mpiimg.engine.parameters import Parameter, parameters_of
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.step import Argument, Domain, Preset, Source, Step
from mpiimg.errors import BadInput

PREFIX = "mpiimg-"

OUT = Argument("out", "The folder that the results go to; it is made if it is missing.")

#: What tools are for that are of no domain.
DATA, RUNS = "Data and functions of your own", "Runs and installs"

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Options that stand together in the help, as those of a step do.

    Parameters
    ----------
    title : str
    summary : str
        A sentence, or nothing.
    names : tuple of str
        Of parameters.
    """

    title: str
    summary: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """A program: what it says of itself, its arguments, and how its recipe is made.

    A tool that runs no pipeline has a `program` in place of `inspect` and `recipe`.

    Parameters
    ----------
    name : str
    summary : str
        A sentence.
    arguments : sequence of (Argument, bool)
        Paths, and whether each must be given.
    parameters : tuple of Parameter
        Options.
    inspect : callable
        Called with the values of arguments and parameters by name on one rank; returns what headers say.
    recipe : callable
        Called with that and the values on every rank; returns a Recipe.
    folder : callable
        Called with the values; returns the folder that results go to.
    check : callable
        Called with the values before any input is looked at; raises BadInput where parameters do not fit
        together.
    papers : tuple of str
        What to cite.
    result : str
        Placeholder of --out in the help.
    program : callable
        Called as program(values, comm) on every rank; returns the exit status.
    mpi : bool
        Whether the program needs MPI; without it, it gets None for comm.
    bids : bool
        Whether it takes a BIDS dataset in place of one image (bids_app.py).
    presets : mapping of str to Preset
        Recipes by name, that its parameters may have their values from.
    domain : str
        Whose steps it runs; empty where it is of none.
    groups : tuple of Group
        Of its options in the help.
    reports : bool
        Whether a page about its results is written beside them.
    subject : str
        What it is for, where it is of no domain.
    examples : tuple of (str, str)
        What is done, as a sentence, and the command that does it.
    """

    name: str
    summary: str
    arguments: Sequence[tuple[Argument, bool]]
    parameters: tuple[Parameter, ...]
    inspect: Callable[[Values], Any] | None = None
    recipe: Callable[[Any, Values], Recipe] | None = None
    folder: Callable[[Values], Path] = lambda values: Path(values["out"])
    check: Callable[[Values], Any] = lambda values: None
    papers: tuple[str, ...] = ()
    result: str = "DIR"
    program: Callable | None = None
    mpi: bool = True
    bids: bool = False
    presets: Mapping[str, Preset] = field(default_factory=dict)
    domain: str = ""
    groups: tuple[Group, ...] = ()
    reports: bool = False
    subject: str = RUNS
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The names of all options that are its own: arguments with a flag, and parameters."""
        paths = {argument.name for argument, _ in self.arguments if not argument.positional}
        return frozenset(paths | {parameter.name for parameter in self.parameters})


# --- Tools of steps ---------------------------------------------------------------------------------------


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
    return _of_step(word, domain, name) if word in domain.steps else None


def _of_step(word: str, domain: Domain, name: str) -> StepsTool:
    step = plugins.step(domain, word)
    return StepsTool(name, domain, (step,), step.summary, f"run-{word}.json", step.examples)


# --- The other tools --------------------------------------------------------------------------------------


def _from(module: str, name: str) -> Callable:
    """Return a function of mpiimg.`module` that is imported when it is called."""

    def call(*arguments):
        return plugins.load_object(f"mpiimg.{module}:{name}").__call__(*arguments)

    return call


def _stage() -> Tool:
    return Tool(
        "mpiimg-stage",
        "Copy a NIfTI image into a staged HDF5 file, in parallel, for tools to read in any order.",
        [
            (Argument("dwi", "The diffusion MRI, as NIfTI (.nii, .nii.gz) or .mif.", positional=True), True),
            (Argument("staged", "The staged file to write (.h5).", positional=True), True),
        ],
        (),
        lambda values: _from("neuro.staging", "inspect")(values["dwi"]),
        lambda image, values: _from("neuro.staging", "stage_recipe")(image, values["staged"], values),
        folder=lambda values: Path(values["staged"]).parent,
        examples=(
            (
                "A staged file, which any number of ranks read in any order.",
                "mpiexec -n 4 mpiimg-stage dwi.nii.gz dwi.h5",
            ),
        ),
        subject=DATA,
    )


def _run() -> Tool:
    from mpiimg.functions.options import RUN_ARGUMENTS, RUN_PARAMETERS

    return Tool(
        "mpiimg-run",
        "Run your own function over images or exposures, or a pipeline of steps, ours and yours.",
        RUN_ARGUMENTS,
        RUN_PARAMETERS,
        _from("functions.run", "inspect"),
        _from("functions.run", "recipe"),
        folder=_from("functions.run", "result_folder"),
        examples=(
            (
                "Your own function over an image, a parameter of it, and two slices of halo.",
                "mpiimg-run --udf mine.py:sharpen --halo 2 --param strength=0.5 in.nii.gz out.nii.gz",
            ),
            (
                "A pipeline of steps, ours and yours.",
                "mpiexec -n 2 mpiimg-run pipeline.toml dwi.nii.gz --out results",
            ),
            ("A script of your own.", "mpiexec -n 8 mpiimg-run mine.py"),
        ),
        subject=DATA,
    )


def _simulate() -> Tool:
    from mpiimg.simulate.recipes import PARAMETERS

    return Tool(
        "mpiimg-simulate",
        "Simulate data of any size with known truth, rank by rank.",
        [
            (Argument("kind", "The kind of data to simulate: neuro or astro.", positional=True), True),
            (OUT, True),
        ],
        PARAMETERS,
        _from("simulate.recipes", "inspect"),
        _from("simulate.recipes", "recipe"),
        examples=(
            (
                "A head of 72 x 72 x 60 voxels with 30 volumes, and its truth.",
                "mpiexec -n 4 mpiimg-simulate neuro --out head",
            ),
            (
                "Two visits of a camera of four small sensors.",
                "mpiimg-simulate astro --visits 2 --sensors 4 --shape 500x500 --out sky",
            ),
        ),
        subject=DATA,
    )


def _status() -> Tool:
    return Tool(
        "mpiimg-status",
        "Say what the run or cohort in a folder is doing or has done: progress, time left, stalls, failures.",
        [(Argument("folder", "The folder that a tool was given as --out.", positional=True), True)],
        (
            Parameter(
                "verify",
                False,
                "Compare the results with the sizes and checksums that the runs have recorded; say what "
                "differs.",
                bool,
            ),
            Parameter(
                "watch", False, "Show it again every two seconds until it is over, or until Ctrl-C.", bool
            ),
            Parameter("json", False, "Print JSON, for programs; with --watch a line at each look.", bool),
        ),
        program=_from("tools.status", "program"),
        examples=(
            ("How far the run in a folder is, or what became of a cohort.", "mpiimg-status maps"),
            ("Whether its results are as they were written.", "mpiimg-status maps --verify"),
        ),
        mpi=False,
    )


def _report() -> Tool:
    return Tool(
        "mpiimg-report",
        "Write the page about the results in a folder again: report.html, one file that needs no network.",
        [(Argument("folder", "The folder that a tool was given as --out.", positional=True), True)],
        (),
        program=_from("tools.report", "program"),
        examples=(("The page about the results in a folder, made again.", "mpiimg-report maps"),),
        mpi=False,
    )


def _doctor() -> Tool:
    return Tool(
        "mpiimg-doctor",
        "Look at the install, the machine and the file system; say what is wrong and what to do.",
        (),
        (
            Parameter(
                "dir",
                ".",
                "Results will go to this folder, whose file system is looked at.",
                str,
                metavar="DIR",
            ),
            Parameter("rates", False, "Time the kernels too, for the seconds that --plan predicts.", bool),
        ),
        program=_from("tools.doctor.doctor", "doctor"),
        examples=(
            (
                "Whether an install works here, on two ranks, with results on a scratch disk.",
                "mpiexec -n 2 mpiimg-doctor --dir /scratch",
            ),
        ),
    )


def _shipped(word: str, summary: str, copied: str) -> Callable[[], Tool]:
    """Return a tool that gives files which were installed beside the package."""
    copy = Parameter("copy", None, copied, str, metavar="DIR")
    examples = (("A copy in the current folder.", f"{PREFIX}{word} --copy ."),)
    program = _from("tools.shipped", word)
    return lambda: Tool(PREFIX + word, summary, (), (copy,), program=program, mpi=False, examples=examples)


OTHERS: Mapping[str, Callable[[], Tool]] = {
    "mpiimg-stage": _stage,
    "mpiimg-run": _run,
    "mpiimg-simulate": _simulate,
    "mpiimg-status": _status,
    "mpiimg-report": _report,
    "mpiimg-doctor": _doctor,
    "mpiimg-slurm": _shipped(
        "slurm",
        "Say where the batch scripts for SLURM are, or copy them to a folder where you can edit them.",
        "The batch scripts are copied to the new folder DIR/slurm, with the place of this install in env.sh.",
    ),
    "mpiimg-docs": _shipped(
        "docs",
        "Say where the documents and their examples are, or copy them to a folder of yours.",
        "The documents and examples are copied to the new folder DIR/docs.",
    ),
}

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
            return (of_steps(word, domain, name) or _of_step(word, domain, name)).tool()
    raise BadInput(f"{name}: there is no such tool")


def tool_names() -> list[str]:
    """Return the names of our own tools."""
    words = [word for name in plugins.DOMAINS for word in _words(plugins.domain(name))]
    return [*(PREFIX + word for word in words), *OTHERS]


def _words(domain: Domain) -> list[str]:
    return [*domain.pipelines, *domain.steps]
