"""Lists of items: patterns of files, paths, and records that a program has at hand."""

from __future__ import annotations

import glob
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.items_graph import Item
from mpiimg.engine.codec import CannotKeep, encode
from mpiimg.engine.keys import Key, checked_key
from mpiimg.errors import BadInput


def is_pattern(given: Any) -> bool:
    """Say whether something is one text or path: a pattern, a folder or a file."""
    return isinstance(given, str | os.PathLike)


def listed(given: Any, pattern: bool) -> tuple[list[Any], str]:
    """Return the values of items, in their order, and what they are a list of.

    Parameters
    ----------
    given : object
        A pattern; else any values.
    pattern : bool
        Which of them.

    Raises
    ------
    BadInput
        No file is there of this pattern, or these are no values one can go through.
    """
    if pattern:
        return _files(os.fspath(given)), f"files {os.fspath(given)}"
    values = list(given)
    folders = sorted(
        {os.path.dirname(os.fspath(one)) for one in values if isinstance(one, str | os.PathLike)}
    )
    return values, f"folders {folders}"


def _files(pattern: str) -> list[Path]:
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise BadInput(
            f"items: {pattern}: there is no such file; a list of paths may be empty, a pattern not"
        )
    if found == [pattern] and os.path.isdir(pattern):
        raise BadInput(
            f"items: {pattern}: is a folder; say which files of it: {os.path.join(pattern, '*.fits')!r}"
        )
    return [Path(one) for one in found]


def checked_values(given: Any) -> Any:
    """Return what is to be gone through, once it is known that one can.

    Raises
    ------
    BadInput
        One cannot, or it has no order.
    """
    if isinstance(given, set | frozenset):
        raise BadInput("items: a set has no order that all ranks share; give sorted(...) of it")
    if isinstance(given, bytes) or not isinstance(given, Iterable) or hasattr(given, "_node"):
        what = type(given).__name__
        more = "; x.to_items(axis) gives the blocks of an array" if hasattr(given, "_node") else ""
        raise BadInput(f"items: takes a pattern, paths or records, and not {what}{more}")
    return given


def items_of(values: Sequence[Any], keys: Sequence[Key], is_path: bool) -> tuple[Item, ...]:
    """Return items, with what each is known by: the sizes and times of the files that it names.

    Parameters
    ----------
    values : sequence
    keys : sequence of key
    is_path : bool
        Text is the path of a file.

    Raises
    ------
    BadInput
        A value is of a kind that cannot be kept.
    """
    return tuple(
        _item(number, value, key, is_path)
        for number, (value, key) in enumerate(zip(values, keys, strict=True))
    )


def _item(number: int, value: Any, key: Key, is_path: bool) -> Item:
    try:
        data = encode(value, f"items: item {number}")
    except CannotKeep as error:
        raise BadInput(str(error)) from None
    paths = list(dict.fromkeys(_paths(value, is_path)))
    said = [_said_of_file(path) for path in paths]
    name = (
        str(value)
        if isinstance(value, os.PathLike) or (is_path and isinstance(value, str))
        else f"item {key!r}"
    )
    identity = [len(data), f"{zlib.crc32(data):08x}", said]
    there = tuple(path for path, one in zip(paths, said, strict=True) if one is not None)
    return Item(key, value, name, identity, there, sum(one[0] for one in said if one is not None))


def _paths(value: Any, is_path: bool) -> Iterable[Path]:
    """Yield the paths that a value has in it; text is one only where it is the value itself."""
    if isinstance(value, os.PathLike):
        yield Path(value)
    elif isinstance(value, str):
        if is_path:
            yield Path(value)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _paths(one, False)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _paths(one, False)


def _said_of_file(path: Path) -> list[int] | None:
    """Return size and time of a file; None where there is none, which the work on the item will say."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def keys_of(values: Sequence[Any], key: Callable | Sequence | None, is_path: bool) -> list[Key]:
    """Return the key of each value: if nothing else is asked for, its path, or its number.

    A path stays what it is when there is one file more.

    Parameters
    ----------
    values : sequence
    key : callable or sequence, optional
        Called as key(value); or the keys themselves.
    is_path : bool
        Text is the path of a file.

    Raises
    ------
    BadInput
        There are as many keys as values not, or one is none.
    """
    if key is None:
        paths = [isinstance(one, os.PathLike) or (is_path and isinstance(one, str)) for one in values]
        return [os.fspath(one) for one in values] if all(paths) else list(range(len(values)))
    keys = [key(value) for value in values] if callable(key) else list(key)
    if len(keys) != len(values):
        raise BadInput(f"items: key = ... has {len(keys)} keys for {len(values)} items")
    try:
        return [checked_key(one) for one in keys]
    except BadInput as error:
        raise BadInput(f"items: {error}") from None


def plain(values: Any) -> list[Any]:
    """Return the members of what a user goes through: of an array its slices along the first axis."""
    return list(values) if not isinstance(values, np.ndarray) else [np.array(one) for one in values]
