"""What a tool is: a program with its summary, arguments, options and examples, and what it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpiimg.engine.parameters import Parameter
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.step import Argument, Preset

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
