"""Parameters of steps and sources, from which options of the command line and keys in TOML follow."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Limits of a parameter that must be above 0 and finite.
POSITIVE = (sys.float_info.min, sys.float_info.max)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a step or source; it makes an option of the command line and a key in TOML.

    Parameters
    ----------
    name : str
        As in Python; the option is --name with dashes.
    default : object
        Its value where none is given, or None.
    help : str
        A sentence; the unit is appended.
    type : callable
        Of the value; bool makes a switch.
    unit : str
        As a reader writes it, e.g. "s/mm^2".
    choices : tuple, optional
        Allowed values.
    limits : (float, float), optional
        Smallest and largest allowed value.
    metavar : str, optional
        Placeholder in the help.
    repeated : bool
        The option may be given more than once; the value is a list.
    bare : object
        The value that the option alone stands for; another one is given as --name=value.
    of : str
        The field of the state that it is about: offered only where a chain takes that field.
    """

    name: str
    default: Any
    help: str
    type: Callable = str
    unit: str = ""
    choices: tuple | None = None
    limits: tuple[float, float] | None = None
    metavar: str | None = None
    repeated: bool = False
    bare: Any = None
    of: str = ""


def parameter(default: Any, help: str, **about: Any) -> Any:
    """Declare a field of a dataclass of parameters.

    Parameters
    ----------
    default, help
        As :class:`Parameter` has them, and so is what `about` says: unit, choices, limits, metavar, of.
    """
    return dataclasses.field(default=default, metadata={"help": help, **about})


def parameters_of(kind: type) -> tuple[Parameter, ...]:
    """Return the parameters that a dataclass declares; fields without a help text are none."""
    hints = typing.get_type_hints(kind)
    return tuple(
        Parameter(field.name, field.default, **{"type": _plain(hints[field.name]), **field.metadata})
        for field in dataclasses.fields(kind)
        if "help" in field.metadata
    )


def _plain(hint: Any) -> Callable:
    """Return the type of a value that may also be None."""
    if isinstance(hint, types.UnionType):
        (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
    return hint


@dataclass(frozen=True)
class NoParameters:
    """For steps and sources that have none."""
