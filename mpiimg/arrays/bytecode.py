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

#: Methods by which the containers of Python are changed.
_CHANGES = {
    *("append", "add", "update", "setdefault", "pop", "popitem", "clear", "extend", "insert", "remove"),
    *("discard", "appendleft", "extendleft", "popleft", "sort", "reverse", "move_to_end"),
}

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
class Change:
    """What code changes that lives longer than a call: sets an item or an attribute, or adds to a container.

    Parameters
    ----------
    kind : {"global", "free", "first"}
        A global name, a name of the function around it, or its first argument, which is a method's instance.
    name : str
        The name; of the first argument the attribute that is set or changed.
    sets : bool
        Whether an attribute of it is set, rather than its content changed.
    """

    kind: str
    name: str
    sets: bool


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
    changes : frozenset of Change
    attributes : frozenset of str
        Names of all attributes that it reads.
    """

    constants: tuple[Any, ...]
    readings: tuple[Reading, ...]
    imports: tuple[Import, ...]
    written: tuple[str, ...]
    changes: frozenset[Change]
    attributes: frozenset[str]


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
        tuple(constants),
        tuple(dict.fromkeys(readings)),
        tuple(dict.fromkeys(imports)),
        tuple(written),
        frozenset(_changes(code)),
        frozenset(step.argval for step in steps if step.opname in _ATTRIBUTES),
    )


def _changes(code: types.CodeType) -> Iterator[Change]:
    """Yield what code changes, as a look at where the values on the stack come from tells.

    They are taken one after the other: what stands just before a change is right, wherever there are jumps.
    """
    first = code.co_varnames[0] if code.co_argcount else None
    # Of each value: kind and name, and the first attribute; None for what does not outlive the call.
    stack: list[tuple[str, str, str] | None] = [None] * 8
    for step in dis.get_instructions(code):
        name, root, changed, sets = step.opname, None, None, False
        if name in _READS:
            root = ("global", step.argval, "")
        elif name in ("LOAD_DEREF", "LOAD_CLASSDEREF") and step.argval in code.co_freevars:
            root = ("free", step.argval, "")
        elif name.startswith("LOAD_FAST") and step.argval == first:
            root = ("first", "", "")
        elif name in _ATTRIBUTES:
            if stack[-1] is not None:
                kind, base, attribute = stack[-1]
                root = (kind, base, attribute or step.argval)
                changed = stack[-1] if step.argval in _CHANGES else None
        elif name == "BINARY_SUBSCR":
            root = stack[-2]
        elif name in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            changed = stack[-2]
        elif name in ("STORE_ATTR", "DELETE_ATTR") and stack[-1] is not None:
            kind, base, attribute = stack[-1]
            changed, sets = (kind, base, attribute or step.argval), not attribute
        elif name == "STORE_SLICE":
            changed = stack[-3]
        if changed is not None and (changed[0] != "first" or changed[2]):
            yield Change(changed[0], changed[2] if changed[0] == "first" else changed[1], sets)
        _move(stack, step, root)


def _move(stack: list, step: dis.Instruction, root: tuple | None) -> None:
    """Change the stack as an instruction does, whose result is or belongs to `root`."""
    if step.opname == "COPY":
        stack.append(stack[-step.arg])
    elif step.opname == "SWAP":
        stack[-1], stack[-step.arg] = stack[-step.arg], stack[-1]
    else:
        effect = dis.stack_effect(step.opcode, step.arg, jump=False)
        if effect < 0:
            del stack[effect:]
        stack += [None] * effect
        # Where a name is called, nothing is pushed beside it: no matter for what is changed.
        if step.opname not in ("RESUME", "NOP", "CACHE", "EXTENDED_ARG") and (effect or root):
            stack[-1] = root
    if len(stack) < 8:
        stack[:0] = [None] * 8


def changed_around(code: types.CodeType) -> frozenset[Change]:
    """Return what `code`, or code within it, changes of the function around it."""
    found = {change for one in _with_inner(code) for change in instructions(one).changes}
    return frozenset(one for one in found if one.kind == "free" and one.name in code.co_freevars)


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
