"""Axes by name: how they are given, and how they are said in a file or a message."""

from __future__ import annotations

from collections.abc import Iterable


def named_axes(axes: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of axes, however they are given.

    Parameters
    ----------
    axes : str or iterable of str
        The names themselves, which may be any words; or all of them in one text, separated by blanks
        ("time y x"); a text without blanks is one letter per axis ("tyx").

    Raises
    ------
    ValueError
        A name comes twice, is empty, or has blanks in it.
    """
    if isinstance(axes, str):
        words = axes.split()
        names = tuple(axes) if words == [axes] else tuple(words)
    else:
        names = tuple(axes)
    for name in names:
        if not isinstance(name, str) or name.split() != [name]:
            raise ValueError(f"axes {names!r}: {name!r} is no name of an axis; give a word without blanks")
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"axes {axes_text(names)!r}: {twice!r} comes twice; each axis has a name of its own")
    return names


def axes_text(axes: Iterable[str]) -> str:
    """Return axes in one text, from which :func:`named_axes` makes the same names: "tyx", "time y x"."""
    names = tuple(axes)
    if all(len(name) == 1 for name in names):
        return "".join(names)
    # The blank behind a single name says that it is a word, and no row of letters.
    return " ".join(names) if len(names) > 1 else f"{names[0]} "
