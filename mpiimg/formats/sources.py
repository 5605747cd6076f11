"""Inputs that formats make of files, and what a format says of one beside its array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.axes import named_axes
from mpiimg.engine.boxes import Box
from mpiimg.engine.inputs import Input, Reader
from mpiimg.engine.plugins import packages
from mpiimg.engine.raw import sample_file
from mpiimg.errors import BadInput
from mpiimg.formats.interface import SimpleReader, split
from mpiimg.formats.space import Space


@dataclass(frozen=True)
class FileInput:
    """An array in one file that every rank reads for itself; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    path : Path
    array : Array
        What it is in the run.
    opener : callable
        Called as opener(path) on each rank, returns a :class:`mpiimg.engine.inputs.Reader`.
    axes : tuple of str, optional
        As users have them; by default those of the array.
    space : Affine or Wcs, optional
        Where it lies.
    attrs : mapping
        What else the file says, as JSON knows it.
    """

    path: Path
    array: Array
    opener: Callable[[Path], Reader]
    axes: tuple[str, ...] = ()
    space: Space | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    parallel = True

    def __post_init__(self):
        object.__setattr__(self, "axes", named_axes(self.axes or self.array.axes))

    @cached_property
    def sample(self) -> tuple[int, int, int]:
        """Size, time and a checksum of samples of the file; once known, it is sent with the input."""
        return sample_file(split(self.path)[0])

    @cached_property
    def identity(self) -> dict[str, str]:
        """Type of the values, and versions of the packages that read them; likewise."""
        module = getattr(self.opener, "reader", self.opener).__module__
        return {"dtype": self.array.dtype, **packages(module)}

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (split(self.path)[0],)

    def open(self) -> Reader:
        """Open it for reading in any order."""
        return self.opener(self.path)


@dataclass(frozen=True)
class Opener:
    """Opens a file of a user's own format: a class that is called with the path."""

    reader: Callable[[Path], SimpleReader]

    def __call__(self, path: Path) -> Reader:
        return _Simple(self.reader(path))


@dataclass(frozen=True)
class _Simple:
    """An open file of a user's own format, whose class may have no `close`, and may read as it likes."""

    reader: SimpleReader

    def read(self, box: Box) -> np.ndarray:
        block = np.ascontiguousarray(
            self.reader.read(box), dtype=np.dtype(self.reader.dtype).newbyteorder("=")
        )
        shape = tuple(stop - start for start, stop in box)
        if block.shape != shape:
            raise ValueError(f"read({box}) returned the shape {block.shape}, and not {shape}")
        return block

    def close(self) -> None:
        getattr(self.reader, "close", lambda: None)()


def simple_input(reader: Callable[[Path], SimpleReader], path: Path, name: str) -> FileInput:
    """Return the input that a class of a user's own makes of a file: see :class:`Format`."""
    opened = reader(path)
    try:
        shape = tuple(map(int, opened.shape))
        array = Array(name, named_axes(opened.axes), shape, np.dtype(opened.dtype).name)
        about = {"space": getattr(opened, "space", None), "attrs": dict(getattr(opened, "attrs", None) or {})}
        source = FileInput(path, array, Opener(reader), **about)
        if hasattr(opened, "identity"):
            identity = {**source.identity, "said": opened.identity}
            source.__dict__["identity"] = identity
        return source
    finally:
        getattr(opened, "close", lambda: None)()


@dataclass(frozen=True)
class Named:
    """An input whose axes have other names; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    source : Input
    mapping : mapping of str to str
        New names by old ones.
    """

    source: Input
    mapping: Mapping[str, str]

    @cached_property
    def array(self) -> Array:
        """As that of the source, with the new names."""
        array = self.source.array
        return replace(array, axes=tuple(self.mapping.get(axis, axis) for axis in named_axes(array.axes)))

    @property
    def axes(self) -> tuple[str, ...]:
        """As users have them."""
        return tuple(self.mapping.get(axis, axis) for axis in axes_of(self.source))

    @property
    def space(self) -> Space | None:
        """Where it lies."""
        space = space_of(self.source)
        return None if space is None else space.renamed(self.mapping)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """What else the file says."""
        return attrs_of(self.source)

    @property
    def identity(self) -> Any:
        """That of the source."""
        return self.source.identity

    @property
    def sample(self) -> Any:
        """That of the source."""
        return self.source.sample

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the source."""
        return self.source.files

    @property
    def parallel(self) -> bool:
        """Whether every rank may read any part of it."""
        return self.source.parallel

    def open(self) -> Reader:
        """Open it for reading in any order."""
        return self.source.open()

    def blocks(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        """Yield blocks that follow each other in the file."""
        return self.source.blocks(boxes)


def named(source: Input, axes: str | tuple[str, ...], what: str | Path) -> Input:
    """Return an input with other names of its axes, in the order in which users have them.

    Raises
    ------
    BadInput
        There are more or fewer of them than axes.
    """
    names = named_axes(axes) if not isinstance(axes, str) else tuple(axes.split())
    old = axes_of(source)
    if len(names) != len(old) or len(set(names)) < len(names):
        shape = dict(zip(named_axes(source.array.axes), source.array.shape, strict=True))
        lengths = " ".join(f"{axis}={shape[axis]}" for axis in old)
        hint = f"; did you mean {' '.join(names[0])!r}?" if [len(old)] == [*map(len, names)] else ""
        raise BadInput(
            f"{what}: axes {' '.join(names)!r} do not name its {len(old)} axes, which are {lengths}{hint}"
        )
    mapping = {was: now for was, now in zip(old, names, strict=True) if was != now}
    return Named(source, mapping) if mapping else source


def axes_of(source: Input) -> tuple[str, ...]:
    """Return the axes of an input as users have them; by default those of its array."""
    return named_axes(getattr(source, "axes", None) or source.array.axes)


def space_of(source: Input) -> Space | None:
    """Return where an input lies, if its format says so."""
    return getattr(source, "space", None)


def attrs_of(source: Input) -> Mapping[str, Any]:
    """Return what else the format of an input says of it."""
    return getattr(source, "attrs", None) or {}
