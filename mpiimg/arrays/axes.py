"""Names of axes, as users write them: one string split at blanks, or a tuple."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mpiimg.errors import BadInput

#: One axis or several: "x", "x y z", ("x", "y", "z").
AxesLike = str | Iterable[str]


def axes_tuple(axes: AxesLike | None, call: str) -> tuple[str, ...]:
    """Return names of axes as a tuple.

    Parameters
    ----------
    axes : str or iterable of str
        Split at blanks where it is one string; None and "" are no axes.
    call : str
        Names the call in messages, e.g. "map_blocks: whole".

    Raises
    ------
    BadInput
        They are no names, or one stands twice.
    """
    if axes is None:
        return ()
    names = tuple(axes.split()) if isinstance(axes, str) else _listed(axes, call)
    for name in names:
        if not isinstance(name, str) or not name or name != "".join(name.split()) or "," in name:
            raise BadInput(f"{call}: {name!r} is no name of an axis; write e.g. 'x y z' or ('x', 'y', 'z')")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"{call}: axis {twice[0]} stands twice in {' '.join(names)}")
    return names


def _listed(axes: Any, call: str) -> tuple:
    try:
        return tuple(axes)
    except TypeError:
        raise BadInput(f"{call}: {axes!r} names no axes; write e.g. 'x y z' or ('x', 'y', 'z')") from None


def check_known(names: Collection[str], axes: Sequence[str], call: str) -> None:
    """Refuse names that are not among `axes`, with a hint at what may have been meant.

    Raises
    ------
    BadInput
        One is not.
    """
    for name in names:
        if name in axes:
            continue
        hint = ""
        if len(name) > 1 and all(letter in axes for letter in name):
            hint = f"; did you mean {' '.join(name)!r}?"
        elif close := difflib.get_close_matches(name, axes, 1):
            hint = f"; did you mean {close[0]!r}?"
        raise BadInput(f"{call}: there is no axis {name!r}; the axes are {said(axes)}{hint}")


def said(axes: Sequence[str]) -> str:
    """Return axes as a message has them."""
    return " ".join(axes) or "none"


def checked_axes(axes: AxesLike | None, known: Sequence[str], call: str) -> tuple[str, ...]:
    """Return names of axes as a tuple, all of them among `known`.

    Raises
    ------
    BadInput
        They are no names, or not among them.
    """
    names = axes_tuple(axes, call)
    check_known(names, known, call)
    return names


def union(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the axes of several arrays, each once, such that the order of every array is kept.

    Where the orders of two arrays disagree, that of the first is taken.
    """
    merged: list[str] = []
    for axes in groups:
        place = 0
        for axis in axes:
            if axis in merged:
                place = max(place, merged.index(axis) + 1)
            else:
                merged.insert(place, axis)
                place += 1
    return tuple(merged)


def common_sizes(arrays: Iterable[tuple[Sequence[str], Sequence[int]]], call: str) -> dict[str, int]:
    """Return the length along each axis of arrays that are aligned by name, where a length of 1 fits any.

    Raises
    ------
    BadInput
        Two lengths along one axis differ.
    """
    sizes: dict[str, int] = {}
    for axes, shape in arrays:
        for axis, length in zip(axes, shape, strict=True):
            other = sizes.get(axis, length)
            if 1 not in (length, other) and length != other:
                raise BadInput(f"{call}: axis {axis} has {other} items in one array and {length} in another")
            sizes[axis] = length if other == 1 else other
    return sizes


def checked_mapping(value: Any, known: Sequence[str], call: str, example: str) -> dict[str, Any]:
    """Return a mapping whose keys are axes.

    Raises
    ------
    BadInput
        It is none, or a key is no axis.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"{call}: {value!r} is not by axis; write e.g. {example}")
    check_known([str(key) for key in value], known, call)
    return dict(value)
