"""Names of a link: its stages and arrays begin with its label, so that a step may stand twice in a chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from mpiimg.engine.array import AnyArray, Array, Ragged
from mpiimg.engine.stage import Compute, Records, Reduce, Stage, Stages, Stream


def labelled(stages: Stages[Any], step_name: str, label: str, reserved: Collection[str] = ()) -> Stages[Any]:
    """Drive the stages of a step; the names of stages and arrays begin with the label of its link.

    Parameters
    ----------
    stages : generator
        As the step's `stages` returns it.
    step_name : str
        A stage of this name is called by the label alone.
    label : str
        Of the link.
    reserved : collection of str
        Names of arrays of the source, which keep their names.

    Returns
    -------
    State
        What the generator returns, with its arrays renamed.

    Raises
    ------
    ValueError
        The step writes an array that is named like one of the source's: nobody could tell which is read.
    """
    names: dict[str, str] = {}

    def renamed(array: AnyArray) -> AnyArray:
        return dataclasses.replace(array, name=names[array.name]) if array.name in names else array

    value = None
    try:
        while True:
            stage = stages.send(value)
            taken = sorted({array.name for array in stage.arrays} & set(reserved))
            if taken:
                raise ValueError(f"stage {stage.name} of {step_name}: the source has an array {taken[0]} too")
            name = label if stage.name == step_name else f"{label}.{stage.name}"
            names |= {array.name: f"{label}.{array.name}" for array in stage.arrays}
            if isinstance(stage, Reduce):
                names[stage.rows.name] = dataclasses.replace(stage, name=name).rows.name
            if isinstance(stage, Records):
                names[stage.records] = dataclasses.replace(stage, name=name).records
            follows = tuple(names.get(array, array) for array in stage.follows)
            value = yield _rename(dataclasses.replace(stage, name=name, follows=follows), renamed)
    except StopIteration as end:
        return _in_state(end.value, renamed)


def _rename(stage: Stage, renamed: Callable[[AnyArray], AnyArray]) -> Stage:
    """Return a stage with its arrays renamed."""
    changed: dict[str, Any] = {"reads": tuple(_in_need(need, renamed) for need in stage.reads)}
    if isinstance(stage, Compute):
        changed["writes"] = tuple(
            renamed(one) if isinstance(one, Array | Ragged) else _in_need(one, renamed)
            for one in stage.writes
        )
    elif isinstance(stage, Stream):
        changed["array"] = renamed(stage.array)
    return dataclasses.replace(stage, **changed)


def _in_need(need: Any, renamed: Callable[[AnyArray], AnyArray]) -> Any:
    return dataclasses.replace(need, array=renamed(need.array))


def _holds_arrays(value: tuple) -> bool:
    """Say whether a tuple is one of arrays, some of which may be left out."""
    held = [one for one in value if one is not None]
    return bool(held) and all(isinstance(one, Array | Ragged) for one in held)


def _in_state(value: Any, renamed: Callable[[AnyArray], AnyArray]) -> Any:
    """Return a state with its arrays renamed: in fields, in dataclasses within it, in tuples of arrays."""
    if isinstance(value, Array | Ragged):
        return renamed(value)
    if isinstance(value, tuple) and _holds_arrays(value):
        changed = tuple(None if one is None else renamed(one) for one in value)
        return type(value)(*changed) if hasattr(value, "_fields") else changed
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        before = {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.init}
        after = {name: _in_state(item, renamed) for name, item in before.items()}
        changed = {name: item for name, item in after.items() if item is not before[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value
