"""What a step is: one declaration, from which tool, help, order, results, precompiling and rates follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from mpiimg.engine.containment import Fault
from mpiimg.engine.inputs import Input
from mpiimg.engine.parameters import NoParameters, parameters_of
from mpiimg.engine.stage import Stage, Stages

S = TypeVar("S", bound="State")
P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class State:
    """What a chain of steps knows at each point; a domain adds fields of its own, or has all of these itself.

    Arrays of the run stand in its fields, in those of dataclasses within it, or in tuples of arrays; the
    composer renames them there. What a step takes and gives are names of its fields.

    Parameters
    ----------
    stem : str
        That the names of results and the work folder begin with.
    inputs : tuple of Input
        What lies in files.
    sources : mapping
        What run.json says of the inputs, and tells one run from another; by default names, sizes and times of
        the files of `inputs`.
    files : tuple of Path
        Whose sizes and times must not change while the run reads them, beside the files of `inputs`.
    warnings : tuple of str
        To be said at the start.
    notes : tuple of str
        Likewise, where nothing is wrong: how inputs were understood.
    left_out : mapping of str to str
        Units that cannot be used, and why.
    faults : tuple of Fault
        The same, as far as they were met when headers were read, in full.
    history : tuple of str
        What has been done so far, a line each; the composer adds those of every step.
    nbytes : int
        Bytes that the state itself takes on every rank, where that is worth counting.
    """

    stem: str
    inputs: tuple[Input, ...] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    history: tuple[str, ...] = ()
    nbytes: int = 0


# --- Parameters -------------------------------------------------------------------------------------------


# --- Declarations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inspection:
    """What a step has looked at before the plan, on one rank; sent to all.

    Parameters
    ----------
    data : object
        Plain data, the third argument of the step's `stages`.
    warnings : tuple of str
        To be said at the start.
    baseline : int
        Bytes that a rank takes once and for all for this step, such as libraries of a user's function.
    facts : mapping
        What is not to be found out again by the next run, as JSON knows it; see :class:`Recipe`.
    """

    data: Any = None
    warnings: tuple[str, ...] = ()
    baseline: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


def nothing_to_inspect(state: Any, parameters: Any) -> Inspection:
    """Look at nothing; for steps that need no look at headers of their own."""
    return Inspection()


def nothing_to_write(state: Any, parameters: Any, folder: Path) -> Stage | None:
    """Write nothing; for results that are small files alone."""
    return None


def no_documents(state: Any, parameters: Any) -> Mapping[str, bytes]:
    """Write no small files."""
    return {}


def line_of(name: str, parameters: Any) -> str:
    """Return a line that says what a step did: its name, and its parameters with their units."""
    words = [
        f"{one.name} {getattr(parameters, one.name)}{f' {one.unit}' if one.unit else ''}"
        for one in parameters_of(type(parameters))
    ]
    return f"{name}: {', '.join(words)}" if words else name


def no_stages(state: Any, parameters: Any, taken: frozenset[str]) -> Stages[Any]:
    """Yield no stage; for sources that every rank reads where it lies."""
    return state
    yield


@dataclass(frozen=True)
class Output(Generic[S, P]):
    """A result of a step.

    Parameters
    ----------
    of : str
        The field of the state that is written.
    stage : callable, optional
        Called as stage(state, parameters, folder) after the step; returns a Sink, Files, or None where there
        is nothing to write. Names of files begin with `folder`, a relative Path.
    when : {"always", "end"}
        "end" writes it only if no later step takes or gives `of`, or the parameter `flag` is set.
    flag : str
        Name of a bool parameter of the step.
    folder : str
        Below the results, where it goes if later steps take or give `of`.
    documents : callable
        Called as documents(state, parameters); returns small files beside it by name.
    without : callable, optional
        Called as without(state, lost) where units failed when they were written, with the numbers of their
        chunks and the reasons; returns the state without them, for what comes after.
    """

    of: str
    stage: Callable[[S, P, Path], Stage | None] = nothing_to_write
    when: Literal["always", "end"] = "always"
    flag: str = ""
    folder: str = "."
    documents: Callable[[S, P], Mapping[str, bytes]] = no_documents
    without: Callable[[S, Mapping[int, str]], S] | None = None


@dataclass(frozen=True)
class Step(Generic[S, P]):
    """One step of a domain's pipelines.

    Parameters
    ----------
    name : str
        In TOML, of the tool (mpiimg-<name>), and of its stages.
    summary : str
        A sentence; by default the first of the docstring of `stages`.
    papers : tuple of str
        What to cite.
    takes, gives : tuple of str
        Fields of the domain's state.
    parameters : type
        A frozen dataclass with fields by :func:`parameter`.
    stages : callable
        Called as stages(state, parameters, data); a generator of stages without side effects that returns the
        next state. `data` is that of the inspection.
    inspect : callable
        Called as inspect(state, parameters) on one rank before the plan, with the state that is expected at
        this point; looks at headers only. Raises BadInput, or returns an :class:`Inspection`.
    outputs : tuple of Output
    history : callable, optional
        Called as history(parameters); returns lines for the headers of results. By default one line, with all
        parameters.
    kernels : tuple of str
        "module:function" of functions that compile its kernels by calling them on tiny inputs.
    rates : mapping of str to (float, str)
        CPU-seconds per unit of what its stages cost, and the "module:function" of a sample that measures it.
    may_take : tuple of str
        Fields that it uses where they are there.
    to_file : callable, optional
        For a tool whose result is a file: called as to_file(parameters, name), returns parameters with which
        the result has this name. Without it a tool's --out is a folder.
    source : mapping
        What the step itself is made from, such as a user's function; tells one run from another.
    examples : tuple of (str, str)
        For the help of its tool: what is done, as a sentence, and the command that does it.
    """

    name: str
    summary: str = ""
    takes: tuple[str, ...] = field(kw_only=True)
    gives: tuple[str, ...] = field(kw_only=True)
    stages: Callable[[S, P, Any], Stages[S]] = field(kw_only=True)
    parameters: type[P] = NoParameters
    papers: tuple[str, ...] = ()
    inspect: Callable[[S, P], Inspection] = nothing_to_inspect
    outputs: tuple[Output[S, P], ...] = ()
    history: Callable[[P], tuple[str, ...]] | None = None
    kernels: tuple[str, ...] = ()
    rates: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    may_take: tuple[str, ...] = ()
    to_file: Callable[[P, str], P] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    examples: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        if not self.summary:
            paragraph = (self.stages.__doc__ or "").strip().split("\n\n")[0]
            object.__setattr__(self, "summary", " ".join(paragraph.split()))


def declare_step(**about: Any) -> Callable[[Callable], Step]:
    """Declare the step that a generator of stages is: a decorator that makes a :class:`Step` of it.

    Parameters
    ----------
    about
        As a :class:`Step` has it, apart from `stages`; its name is by default that of the function.
    """

    def declared(stages: Callable) -> Step:
        return Step(**{"name": stages.__name__.replace("_", "-"), **about, "stages": stages})

    return declared


@dataclass(frozen=True)
class Argument:
    """A path that a source is given.

    Parameters
    ----------
    name : str
        As in Python; that of the option where it is one.
    help : str
        A sentence.
    positional : bool
        It stands without a flag.
    many : bool
        One or more of it.
    of : str
        The field of the state that it brings: offered only where a chain takes it, and required where no
        step of the chain gives it before. Without it the argument is always required.
    optional : bool
        It is never required: without it the source finds its own, such as a tract around all exposures.
    choices : tuple of str, optional
        Allowed words, of what is no path.
    """

    name: str
    help: str
    positional: bool = False
    many: bool = False
    of: str = ""
    optional: bool = False
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source(Generic[S, P]):
    """How a chain opens; the composer takes the first that gives what the chain takes.

    Parameters
    ----------
    name : str
        What it reads, in words.
    gives : tuple of str
        Fields of the domain's state.
    arguments : tuple of Argument
    inspect : callable
        Called as inspect(paths, parameters, taken) on one rank with paths by argument's name (None where one
        is not given) and the fields that the chain takes of it; reads headers, and returns the first state.
    stages : callable
        Called as stages(state, parameters, taken); how the inputs come into arrays.
    parameters : type
        A frozen dataclass.
    """

    name: str
    gives: tuple[str, ...]
    arguments: tuple[Argument, ...]
    inspect: Callable[[Mapping[str, Any], P, frozenset[str]], S]
    stages: Callable[[S, P, frozenset[str]], Stages[S]] = no_stages
    parameters: type[P] = NoParameters


@dataclass(frozen=True)
class Pipeline:
    """A chain of steps with a name of its own.

    Parameters
    ----------
    summary : str
        A sentence.
    steps : tuple of str
    examples : tuple of (str, str)
        For the help: what is done, as a sentence, and the command that does it.
    """

    summary: str
    steps: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Preset:
    """A recipe with a name: what parameters are where a user leaves them out (presets.py).

    Parameters
    ----------
    summary : str
        What it stands for, in some words.
    values : mapping
        By the names of parameters, of whichever steps have them.
    without : tuple of str
        Steps that pipelines by name leave out.
    """

    summary: str
    values: Mapping[str, Any]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Domain:
    """Sources, steps and pipelines that share one kind of state.

    Parameters
    ----------
    name : str
    state : type
        The dataclass, a :class:`State`.
    sources : tuple of Source
    steps : mapping of str to str
        "module:attribute" of each step, by name; loaded when asked for.
    pipelines : mapping of str to Pipeline
    presets : mapping of str to Preset
        Recipes by name.
    baseline : int
        Bytes of a rank with the libraries and kernels of the steps loaded, before it holds any data.
    rates : mapping of str to (float, str)
        As a step has them, for what sources and outputs share.
    report : str
        "module:function" that is called with the runs of a folder, a sequence of
        :class:`mpiimg.report.runs.Run`, and returns a :class:`mpiimg.report.page.Page` of what the domain has
        to say of their results, if anything. It is called in a process of its own.
    cohort_report : str
        "module:function" that is called with a folder, and returns the page of a cohort; None for any other.
    """

    name: str
    state: type
    sources: tuple[Source, ...]
    steps: Mapping[str, str]
    pipelines: Mapping[str, Pipeline] = field(default_factory=dict)
    presets: Mapping[str, Preset] = field(default_factory=dict)
    baseline: int = 110 << 20
    rates: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    report: str = ""
    cohort_report: str = ""


def steps_in(package: str) -> dict[str, str]:
    """Return the steps of a package that has one in each module, named STEP: a table for a Domain."""
    import importlib
    import pkgutil

    folder = importlib.import_module(package).__path__
    return {module.name: f"{package}.{module.name}:STEP" for module in pkgutil.iter_modules(folder)}
