"""Parameters of steps and sources, from which options of the command line and keys in TOML follow.

A parameter declares what it may be, and :func:`checked` holds every value to that, wherever it comes from:
the command line, a pipeline in TOML, or a call from Python.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpiimg.engine.names import asking, shown
from mpiimg.errors import BadInput

#: Limits of a parameter that must be above 0 and finite.
POSITIVE = (sys.float_info.min, sys.float_info.max)

#: Limits of a number that declares none: steps that others bring may leave them out, ours may not.
UNDECLARED = {float: (-sys.float_info.max, sys.float_info.max), int: (-(1 << 63), (1 << 63) - 1)}

#: Bytes of memory that a rank may be given: less holds no library, more has no machine.
MEMORY_LIMITS = (1 << 20, 1 << 50)

#: Characters of a text that is shown in a message.
MAX_SHOWN = 80

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE | re.ASCII)
_SIZE = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:e\+?\d+)?) ?(?:([kmgtp])(?:i?b|i)?|b)?", re.IGNORECASE | re.ASCII)
_SHIFTS = {"K": 10, "M": 20, "G": 30, "T": 40, "P": 50}


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
        Smallest and largest allowed value; NaN and infinities are none. Every number has them; a text has
        them where it may be a number, and then they hold for that.
    metavar : str, optional
        Placeholder in the help.
    repeated : bool
        The option may be given more than once; the value is a list.
    bare : object
        The value that the option alone stands for; another one is given as --name=value.
    of : str
        The field of the state that it is about: offered only where a chain takes that field.
    form : callable, optional
        What a text must look like: called as form(text), returns the text as it is kept, or raises a
        ValueError that says what it must be.
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
    form: Callable[[str], str] | None = None

    def __post_init__(self):
        if self.limits is None and self.choices is None and self.type in UNDECLARED:
            object.__setattr__(self, "limits", UNDECLARED[self.type])

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """What its limits allow, in words."""
        low, high = self.limits
        unit = f" {self.unit}" if self.unit else ""
        if self.limits == POSITIVE:
            return f"above 0 and finite{unit and f' ({self.unit})'}"
        return f"between {_text_of(low)} and {_text_of(high)}{unit}"


#: How long a rank may hang; a year is what no clock of an operating system overflows with.
TIMEOUT = Parameter(
    "timeout",
    3600.0,
    "End the job when a rank has hung for this long; 0 waits for ever.",
    float,
    "seconds",
    limits=(0, 31_536_000),
)


def parameter(default: Any, help: str, **about: Any) -> Any:
    """Declare a field of a dataclass of parameters.

    Parameters
    ----------
    default, help
        As :class:`Parameter` has them, and so is what `about` says: unit, choices, limits, metavar, of, form.
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


# --- Values -----------------------------------------------------------------------------------------------


def checked(parameter: Parameter, value: Any, place: str, word: str | None = None) -> Any:
    """Return a value of a parameter in the type that it declares, held to what it declares.

    Parameters
    ----------
    parameter : Parameter
    value : object
        As TOML or Python has it; a whole number may be a float without a fraction.
    place : str
        Where the value stands, with the name of the parameter, for messages: "--mesh", "stage 1: mesh =".
    word : str, optional
        How the value was written, for messages.

    Raises
    ------
    BadInput
        It is of the wrong kind, none of the choices, or out of range.
    """
    if parameter.repeated:
        one = dataclasses.replace(parameter, repeated=False)
        return [checked(one, item, place) for item in (value if isinstance(value, list | tuple) else [value])]
    said = f"{place} {_shown(value, place) if word is None else _shortened(word)}".strip()
    converted = _converted(parameter, value, said)
    if parameter.choices and converted not in parameter.choices:
        there = list(map(str, parameter.choices))
        raise BadInput(asking(f"{said}: must be one of {', '.join(there)}", str(value), there))
    tested = number_in(converted) if isinstance(converted, str) else converted
    if parameter.limits and tested is not None:
        low, high = parameter.limits
        if not low <= tested <= high:
            raise BadInput(f"{said}: is not {parameter.range}")
    if parameter.form is not None:
        try:
            return parameter.form(converted)
        except ValueError as error:
            raise BadInput(f"{said}: {error}") from None
    return converted


def from_word(parameter: Parameter, word: str, place: str = "") -> Any:
    """Return the value that a word of the command line means, as :func:`checked` does."""
    number = number_in(word) if parameter.type in (int, float) else None
    return checked(parameter, word if number is None else number, place, word)


def _converted(parameter: Parameter, value: Any, said: str) -> Any:
    """Return a value in the type of a parameter."""
    kind = parameter.type
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # the latter is NumPy's
    if kind is bool:
        if not is_bool:
            raise BadInput(f"{said}: must be true or false")
        return bool(value)
    if kind is str:
        if is_bool or not isinstance(value, str | numbers.Real):
            raise BadInput(f"{said}: must be text")
        return _checked_text(str(value), said)
    must = f"must be of type {kind.__name__}" + (f", {parameter.range}" if parameter.limits else "")
    if kind in (int, float) and (is_bool or not isinstance(value, numbers.Real)):
        raise BadInput(f"{said}: {must}")
    try:
        converted = kind(value)
    except (OverflowError, TypeError, ValueError):  # of an infinity, NaN or 10**400 too
        raise BadInput(f"{said}: {must}") from None
    if kind is int and converted != value:
        raise BadInput(f"{said}: {must}")
    return converted


def _checked_text(text: str, said: str) -> str:
    if not text.strip():
        raise BadInput(f"{said}: is empty; leave it out, or say what it is to be")
    if holds_controls(text):
        raise BadInput(f"{said}: holds control characters; write it without them")
    return text


def holds_controls(text: str) -> bool:
    """Say whether a text holds NUL, a line end, ESC or another control character."""
    return any(character < " " or "\x7f" <= character < "\xa0" for character in text)


def number_in(text: str) -> float | int | None:
    """Return the number that a text is in plain digits, or None; without what Python has more, as 1_000."""
    if not _NUMBER.fullmatch(text):
        return None
    if re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        return int(text)
    return float(text)


def _text_of(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _shown(value: Any, place: str) -> str:
    """Return a value as a message shows it: a word of the command line as it is, else as in Python."""
    plain = isinstance(value, str) and not place.endswith("=")
    return _shortened(value if plain else repr(value))


def _shortened(text: str) -> str:
    text = shown(text) or "''"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def checked_settings(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `settings` that a dataclass of parameters declares, each :func:`checked`.

    None stands for a value that was not given, where that is the default.

    Raises
    ------
    BadInput
        A value makes no sense.
    """
    declared = {one.name: one for one in parameters_of(kind)}
    values = {}
    for field in dataclasses.fields(kind):
        if field.name not in settings:
            continue
        value, own = settings[field.name], declared.get(field.name)
        if own is not None and not (value is None and own.default is None):
            value = checked(own, value, own.flag)
        values[field.name] = value
    return values


# --- Sizes and paths --------------------------------------------------------------------------------------


def size(value: Any, place: str) -> int:
    """Return the bytes that a size means, as people and SLURM write them: 4G, 4GB, 4GiB, 1.5g, 4096M, bytes.

    K, M, G, T and P are powers of 1024, as SLURM has them; a number alone is bytes.

    Raises
    ------
    BadInput
        It is no size.
    """
    plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
    matched = _SIZE.fullmatch(str(value).strip()) if plain or isinstance(value, str) else None
    nbytes = math.inf
    if matched is not None:
        nbytes = float(matched[1]) * (1 << _SHIFTS.get((matched[2] or "").upper(), 0))
    if not math.isfinite(nbytes):
        raise BadInput(
            f"{place} {_shown(value, place)}: give bytes, or a number with K, M, G or T, as 4G, 4GB or 4096M"
        )
    return int(nbytes)


def checked_memory(value: Any, place: str) -> int:
    """Return the bytes that a rank may use.

    Raises
    ------
    BadInput
        It is no size, or none that a rank can have.
    """
    low, high = MEMORY_LIMITS
    nbytes = size(value, place)
    if nbytes < low:
        hint = f"; a number alone is bytes: {nbytes} MB is written {nbytes}M" if str(value).isdigit() else ""
        raise BadInput(f"{place} {_shown(value, place)}: is less than 1M{hint}")
    if nbytes > high:
        raise BadInput(f"{place} {_shown(value, place)}: is not between 1M and {high >> 40}T")
    return nbytes


def checked_path(value: Any, place: str) -> str:
    """Return a path that the user has given as text.

    Raises
    ------
    BadInput
        It names no file or folder: it is empty, a dash, begins with ~, which nobody has expanded, or holds
        control characters.
    """
    text = value if isinstance(value, str) else None
    if text is None:
        raise BadInput(f"{place} {_shown(value, place)}: must be a path")
    if not text.strip():
        raise BadInput(f"{place} {_shown(text, place)}: is no path; name a file or folder")
    if text == "-":
        raise BadInput(f"{place} -: streams are neither read nor written; name a file or folder")
    if text == "~" or text.startswith("~/"):
        raise BadInput(f"{place} {_shown(text, place)}: the shell has not expanded ~; write the path in full")
    if holds_controls(text):
        raise BadInput(f"{place} {_shown(text, place)}: holds control characters; rename it")
    return text
