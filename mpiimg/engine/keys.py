"""Keys of records: int, str, or tuples of these. They have an order among themselves, and a form in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mpiimg.errors import BadInput

Key = int | str | tuple


def checked_key(key: Any) -> Key:
    """Return a key as it is kept: an int of NumPy is an int.

    Raises
    ------
    BadInput
        It is no int, str or tuple of these.
    """
    if type(key) in (int, str):
        return key
    if isinstance(key, tuple):
        return tuple(checked_key(one) for one in key)
    if isinstance(key, np.integer):
        return int(key)
    if isinstance(key, str) and type(key).__module__ == "numpy":
        return str(key)
    raise BadInput(
        f"the key {key!r} of a record is of type {type(key).__name__}: keys are int, str, or tuples of these"
    )


def key_node(key: Key) -> Any:
    """Return a key as JSON: a tuple is a list."""
    return [key_node(one) for one in key] if isinstance(key, tuple) else key


def key_of(node: Any) -> Key:
    """Return the key that JSON is of.

    Raises
    ------
    TypeError
        It is of none.
    """
    if type(node) in (int, str):
        return node
    if isinstance(node, list):
        return tuple(key_of(one) for one in node)
    raise TypeError(f"{node!r} is no key")


def check_comparable(keys: Iterable[Key], what: str) -> None:
    """Refuse keys that have no order among themselves.

    Parameters
    ----------
    keys : iterable of int, str or tuple
    what : str
        Names them in the message.

    Raises
    ------
    BadInput
        One is an int where another is a str or a tuple; both are named.
    """
    first: dict[Any, Key] = {}
    for key in keys:
        form = _form(key)
        first.setdefault(form, key)
        if len(first) > 1:
            one, other = first.values()
            raise BadInput(
                f"{what}: the keys {one!r} and {other!r} are of different types, and have no order; give all "
                "records keys of one type"
            )


def _form(key: Key) -> Any:
    return tuple(map(_form, key)) if isinstance(key, tuple) else type(key)
