"""The graph that a user's calls build: nodes, each known by a digest of all that it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mpiimg.engine.inputs import Input
from mpiimg.engine.view import Pick

#: Memory order of blocks: that of NumPy's flags. Blocks of a NIfTI have x fastest, "F".
C, F = "C", "F"


def digest(*parts: Any) -> str:
    """Return a hash of what JSON makes of `parts`."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """A lazy array in the graph.

    Parameters
    ----------
    axes : tuple of str
    shape : tuple of int
    dtype : str, optional
        None where only a user's function can say: the rehearsal finds out.
    order : {"C", "F"}
        Memory order of its blocks.
    space : object, optional
        Affine or WCS, by axis (formats/space.py).
    attrs : mapping
        What the file says beside its values.
    label : str
        What stages and arrays are called by.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str | None
    order: str = C
    space: Any = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    label: str = "array"

    #: Whether it is an array of the run of its own, rather than part of the stages that read it.
    is_stored = False

    #: Whether a rehearsal has something to find out of it, where it is of a kind of its own.
    is_tried = True

    @property
    def parents(self) -> tuple[Node, ...]:
        """The nodes that it is made of."""
        return ()

    @property
    def content(self) -> tuple:
        """What it is, beside its parents, as JSON knows it."""
        raise NotImplementedError

    @cached_property
    def key(self) -> str:
        """A digest of all that it is made of."""
        parents = [parent.key for parent in self.parents]
        return digest(type(self).__name__, self.content, parents, self.axes, self.shape, self.dtype)

    @cached_property
    def depth(self) -> int:
        """How many expressions lie between it and what is stored, at most."""
        return 0 if self.is_stored else 1 + max((parent.depth for parent in self.parents), default=0)

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(self.axes, self.shape, strict=True))

    @property
    def name(self) -> str:
        """The name of its array in a run: the same wherever it stands in a graph."""
        return f"{self.label}-{self.key[:12]}"

    @property
    def resumable(self) -> bool:
        """Whether all that it is made of is known, so that what an earlier run made of it can be believed."""
        return all(node.known for node in walk([self]))

    @property
    def known(self) -> bool:
        """Whether all that this node itself is made of is known."""
        return True


def walk(nodes: Sequence[Node]) -> Iterator[Node]:
    """Yield every node of a graph once, those that others are made of first."""
    seen: set[int] = set()
    pending = [(node, False) for node in reversed(nodes)]
    while pending:
        node, complete = pending.pop()
        if complete:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            pending.append((node, True))
            pending += [(parent, False) for parent in reversed(node.parents)]


def stored_below(nodes: Sequence[Node]) -> int:
    """Return how many stored nodes expressions are made of."""
    seen: set[int] = set()
    pending, count = list(nodes), 0
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.is_stored:
            count += 1
        else:
            pending += node.parents
    return count


# --- Sources ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class FromInput(Node):
    """An array in files, or in memory of every rank.

    Parameters
    ----------
    input : Input
        Its array has the axes in the order of storage; :attr:`axes` may be in another one.
    known_as : bool
        Whether its identity is known.
    """

    input: Input
    identified: bool = True
    is_stored = True

    @property
    def content(self):
        return (self.input.identity, self.input.sample, self.order)

    @property
    def known(self) -> bool:
        return self.identified


@dataclass(frozen=True, eq=False, kw_only=True)
class OfRun(Node):
    """An array that other stages of the same run make.

    Parameters
    ----------
    array : Array
        Of the engine, with the axes of the graph in the order of storage.
    """

    array: Any
    is_stored = True

    @property
    def content(self):
        return (self.array.name,)


# --- Views ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Take(Node):
    """Items of some axes by position.

    Parameters
    ----------
    parent : Node
    picks : mapping of str to Pick
        By axis; other axes are whole.
    at : mapping of str to int
        Axes of which one item is taken, so that the axis goes.
    """

    parent: Node
    picks: Mapping[str, Pick]
    at: Mapping[str, int]

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        picks = {axis: _said(pick) for axis, pick in self.picks.items()}
        return (picks, dict(self.at))


def _said(pick: Pick) -> list:
    return ["range", pick.start, pick.stop, pick.step] if isinstance(pick, range) else list(pick)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reorder(Node):
    """The same axes under other names, in another order, or with axes of one item more.

    Parameters
    ----------
    parent : Node
    came_from : mapping of str to str
        The parent's axis that each axis is; new ones, of one item, are not in it.
    """

    parent: Node
    came_from: Mapping[str, str]

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return (dict(self.came_from),)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(Node):
    """Items more on both sides of some axes.

    Parameters
    ----------
    parent : Node
    widths : mapping of str to (int, int)
    mode : str
        As scipy.ndimage has them: reflect, mirror, nearest, wrap, constant.
    cval : scalar
        What is there, for "constant".
    """

    parent: Node
    widths: Mapping[str, tuple[int, int]]
    mode: str
    cval: Any = 0

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return (dict(self.widths), self.mode, repr(self.cval))


@dataclass(frozen=True, eq=False, kw_only=True)
class Join(Node):
    """Arrays end to end along an axis that all of them have.

    Parameters
    ----------
    members : tuple of Node
    axis : str
    """

    members: tuple[Node, ...]
    axis: str

    @property
    def parents(self):
        return self.members

    @property
    def content(self):
        return (self.axis,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Coarsen(Node):
    """Blocks of so many items along some axes, each brought to one value.

    Parameters
    ----------
    parent : Node
        Its lengths are multiples of the factors.
    factors : mapping of str to int
    operation : str
        As reductions have them: "mean", "sum", ...
    options : mapping
    """

    parent: Node
    factors: Mapping[str, int]
    operation: str
    options: Mapping[str, Any]

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return (dict(self.factors), self.operation, dict(self.options))


# --- Elementwise ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scalar:
    """A number among the operands of an elementwise operation.

    A Python number takes the type of the arrays that it meets; a NumPy one has its own.
    """

    value: Any

    @property
    def said(self) -> list:
        return [type(self.value).__name__, repr(self.value)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Elementwise(Node):
    """A function of the items of arrays at the same place.

    Parameters
    ----------
    function : callable
        NumPy's: a ufunc, or another that broadcasts.
    operation : str
        Its name.
    operands : tuple of Node or Scalar
    options : mapping
        Keywords of the function, as JSON knows them.
    """

    function: Callable
    operation: str
    operands: tuple[Node | Scalar, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parents(self):
        return tuple(one for one in self.operands if isinstance(one, Node))

    @property
    def content(self):
        operands = [one.said if isinstance(one, Scalar) else "array" for one in self.operands]
        return (self.operation, operands, dict(self.options))
