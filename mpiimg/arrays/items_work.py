"""The work of steps on records: users' functions, one record at a time, and what they may return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.arrays.items_graph import FILTER, FLAT_MAP, MAP, Function, Step
from mpiimg.arrays.process import put_back
from mpiimg.engine.keys import Key, checked_key
from mpiimg.errors import BadInput

#: Arrays that arrive whole, by function, then by keyword.
Given = Mapping[Function, Mapping[str, Any]]


class WrongRecord(TypeError):
    """A user's function returned something else than its step takes."""


def records(
    steps: Sequence[Step], key: Key, value: Any, given: Given, name: str
) -> Iterator[tuple[Key, Any]]:
    """Yield what steps make of one record, with their keys.

    What one function gives to the next is what it would be if it had been kept in between: arrays are
    contiguous, and are those of nobody else.

    Parameters
    ----------
    steps : sequence of Step
    key : int, str or tuple
        Of the record.
    value : object
        The record; of the first step's own, to change as it likes.
    given : mapping
        The arrays that arrive whole.
    name : str
        What errors call the record.
    """
    if not steps:
        yield key, value
        return
    step, *rest = steps
    for number, (next_key, made) in enumerate(_applied(step, key, value, given, name)):
        # What a generator yields several times must not be changed in between.
        owned = settled(made, copy=step.kind == FLAT_MAP and bool(rest))
        yield from records(rest, next_key, owned, given, f"{name}, record {number}" if number else name)


def _applied(step: Step, key: Key, value: Any, given: Given, name: str) -> Iterator[tuple[Key, Any]]:
    call = _Call(key, given, name)
    if step.kind == MAP:
        yield key, call(step.uses[0], value)
    elif step.kind == FILTER:
        if _truth(call(step.uses[0], value), step.uses[0].name):
            yield key, value
    elif step.kind == FLAT_MAP:
        yield from call.each(step.uses[0], value)
    else:
        yield key, _reduced(step, call, value)


def _reduced(step: Step, call: _Call, members: Iterable) -> Any:
    """Return what a reduction of a group comes to, with one member in hand at a time."""
    init, one_more, *finish = step.uses
    state = call(init)
    for number, member in enumerate(members):
        state = call(one_more, state, member)
        del member
        if state is None:
            raise WrongRecord(
                f"{one_more.name}: returns nothing for member {number}: return the state, changed or new"
            )
    return call(finish[0], state) if finish else state


def called(function: Function, arguments: Sequence[Any], key: Key, given: Given, name: str) -> Any:
    """Return what a user's function returns; what it raises says of which record, by its `name`."""
    return _Call(key, given, name)(function, *arguments)


class _Call:
    """Calls users' functions for one record, in a process that they leave as it was.

    Parameters
    ----------
    key : int, str or tuple
    given : mapping
    name : str
        Of the record, for errors.
    """

    def __init__(self, key: Key, given: Given, name: str):
        self._key, self._given, self._name = key, given, name

    def __call__(self, function: Function, *arguments: Any) -> Any:
        try:
            with put_back(), np.errstate():
                return function.call(*arguments, **self._keywords(function))
        except Exception as error:
            self._note(error, function)
            raise

    def each(self, function: Function, value: Any) -> Iterator[tuple[Key, Any]]:
        """Yield what a generator of the user's yields, checked."""
        made = self(function, value)
        try:
            turns = iter(made)
        except TypeError:
            raise WrongRecord(
                f"{function.name}: returns {type(made).__name__}, and must yield (key, record) pairs"
            ) from None
        while True:
            try:
                with put_back(), np.errstate():
                    one = next(turns, turns)
            except Exception as error:
                self._note(error, function)
                raise
            if one is turns:
                return
            yield self._pair(one, function)

    def _pair(self, one: Any, function: Function) -> tuple[Key, Any]:
        if not isinstance(one, tuple | list) or len(one) != 2:
            what = (
                f"{type(one).__name__} of {len(one)}" if isinstance(one, tuple | list) else type(one).__name__
            )
            raise WrongRecord(f"{function.name}: yields a {what}, and must yield (key, record)")
        try:
            return checked_key(one[0]), one[1]
        except BadInput as error:
            raise WrongRecord(f"{function.name}: {error}") from None

    def _keywords(self, function: Function) -> dict[str, Any]:
        arrays = {name: _own(array) for name, array in self._given.get(function, {}).items()}
        told = {"key": self._key} if function.takes_key else {}
        return {**function.plain, **arrays, **told}

    def _note(self, error: Exception, function: Function) -> None:
        error.add_note(f"in {function.name} of {self._name}")


def _own(array: Any) -> Any:
    return array[()] if array.ndim == 0 else np.array(array, order="K", copy=True)


def _truth(value: Any, name: str) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise WrongRecord(f"{name}: returns {type(value).__name__}, and must return True or False")


def settled(value: Any, copy: bool = False) -> Any:
    """Return a value whose arrays are contiguous, as they are once they have been kept.

    Parameters
    ----------
    value : object
    copy : bool
        All arrays are copied.
    """
    if isinstance(value, np.ndarray):
        contiguous = value.flags.c_contiguous or value.flags.f_contiguous
        return value if contiguous and not copy else value.copy("A" if contiguous else "C")
    kind = type(value)
    if kind in (list, tuple):
        return kind(settled(one, copy) for one in value)
    if kind is dict:
        return {key: settled(one, copy) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return tuple.__new__(kind, [settled(one, copy) for one in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        made = object.__new__(kind)
        for name, one in fields.items():
            object.__setattr__(made, name, settled(one, copy))
        return made
    return value
