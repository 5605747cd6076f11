"""What the code of a function reads and writes beside its arguments, as its instructions say."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Instructions that read a name of the module, or of the class or module body that they are in.
_READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}

#: Instructions that read an attribute of what the one before them has read.
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}

#: Instructions that say nothing of what is read.
_FILLERS = {"CACHE", "EXTENDED_ARG", "NOP", "RESUME", "PUSH_NULL", "PRECALL"}

#: Names that class bodies hold a line number or a place under.
_PLACES = {"__firstlineno__", "__qualname__", "__module__"}


@dataclass(frozen=True)
class Import:
    """An import statement.

    Parameters
    ----------
    name : str
        The module, as it is written.
    level : int
        The number of dots before it.
    names : tuple of str
        What is imported from it.
    """

    name: str
    level: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A global name that is read, and the attributes that are read of it.

    Parameters
    ----------
    name : str
    attributes : tuple of str
        Of `name`, each of the one before.
    argument : object
        The constant that is loaded next, which is the first argument where the name is called.
    """

    name: str
    attributes: tuple[str, ...] = ()
    argument: Any = None


@dataclass(frozen=True)
class Instructions:
    """What a code object does, without lines and places.

    Parameters
    ----------
    constants : tuple
        Those that it loads, in order: a docstring is none of them.
    readings : tuple of Reading
    imports : tuple of Import
    written : tuple of str
        Names of the module that it sets.
    """

    constants: tuple[Any, ...]
    readings: tuple[Reading, ...]
    imports: tuple[Import, ...]
    written: tuple[str, ...]


@functools.lru_cache(maxsize=4096)
def instructions(code: types.CodeType) -> Instructions:
    """Return what a code object does, not those within it, which are among its constants."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in _FILLERS]
    constants, readings, imports, written = [], [], [], []
    for at, step in enumerate(steps):
        if step.opcode in dis.hasconst:
            following = steps[at + 1] if at + 1 < len(steps) else step
            if not (following.opname == "STORE_NAME" and following.argval in _PLACES):
                constants.append(step.argval)
        elif step.opname in _READS and step.argval not in _PLACES | {"__name__"}:
            readings.append(_reading(steps, at))
        elif step.opname == "IMPORT_NAME":
            names, level = steps[at - 1].argval, steps[at - 2].argval
            imports.append(Import(step.argval, level, tuple(names or ())))
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.append(step.argval)
    return Instructions(
        tuple(constants), tuple(dict.fromkeys(readings)), tuple(dict.fromkeys(imports)), tuple(written)
    )


def set_around(code: types.CodeType) -> list[str]:
    """Return the names of the function around `code` that it, or code within it, sets."""
    names = set()
    for one in _with_inner(code):
        names |= {step.argval for step in dis.get_instructions(one) if step.opname == "STORE_DEREF"}
    return sorted(names & set(code.co_freevars))


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_inner(constant)


def _reading(steps: list[dis.Instruction], at: int) -> Reading:
    attributes, after = [], at + 1
    while after < len(steps) and steps[after].opname in _ATTRIBUTES:
        attributes.append(steps[after].argval)
        after += 1
    following = steps[after] if after < len(steps) else None
    text = following is not None and following.opname == "LOAD_CONST" and isinstance(following.argval, str)
    return Reading(steps[at].argval, tuple(attributes), following.argval if text else None)
