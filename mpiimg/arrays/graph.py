"""The graph that a user's calls build: nodes, each known by a digest of all that it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mpiimg.arrays.axes import common_sizes, union
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


# --- Users' functions, and reductions ---------------------------------------------------------------------


@dataclass(frozen=True)
class OutputOf:
    """One of the arrays that a user's function returns blocks of.

    Parameters
    ----------
    block_axes : tuple of str
        Of the block that the function returns.
    axes : tuple of str
        Of the array: with the axes that are looped over put back.
    shape : tuple of int
        Of the array.
    dtype : str, optional
    """

    block_axes: tuple[str, ...]
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str | None


@dataclass(frozen=True, eq=False)
class Call:
    """A user's function that is called on blocks of arrays, once for each chunk.

    Parameters
    ----------
    function : callable
    identity : object
        As arrays/identity.py makes it.
    name : str
        Of the call, in messages: "map_blocks(denoise)".
    inputs : tuple of Node
    each, whole : tuple of str
        Axes that are looped over, and axes that are not cut.
    depth : mapping of str to int
    boundary : str
    cval : scalar
    outputs : tuple of OutputOf
    keywords : mapping
        Values as they are, and nodes that arrive whole.
    chunks : mapping of str to int
        Items of a chunk along some axes, where the user says so.
    weight : Node, optional
        Its sum over a chunk is the work in it.
    block_info : bool
        Whether the function is told where its block lies.
    order : {"C", "F"}
    """

    function: Callable
    identity: Any
    name: str
    inputs: tuple[Node, ...]
    each: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    depth: Mapping[str, int] = field(default_factory=dict)
    boundary: str = "none"
    cval: Any = 0
    outputs: tuple[OutputOf, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    chunks: Mapping[str, int] = field(default_factory=dict)
    weight: Node | None = None
    block_info: bool = False
    order: str = C
    label: str = "function"

    @property
    def given(self) -> dict[str, Node]:
        """The arrays that arrive whole, by keyword."""
        return {name: value for name, value in self.keywords.items() if isinstance(value, Node)}

    @property
    def plain(self) -> dict[str, Any]:
        """The other keywords."""
        return {name: value for name, value in self.keywords.items() if not isinstance(value, Node)}

    @property
    def parents(self) -> tuple[Node, ...]:
        weight = () if self.weight is None else (self.weight,)
        return (*self.inputs, *self.given.values(), *weight)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The length along each axis of the inputs."""
        return common_sizes([(one.axes, one.shape) for one in self.inputs], self.name)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes of the inputs, in their order."""
        return union(one.axes for one in self.inputs)

    @cached_property
    def content(self) -> tuple:
        outputs = [(one.block_axes, one.axes, one.shape, one.dtype) for one in self.outputs]
        asked = [self.each, self.whole, dict(self.depth), self.boundary, repr(self.cval), dict(self.chunks)]
        return (self.identity.digest, len(self.inputs), sorted(self.given), asked, outputs, self.order)

    @cached_property
    def key(self) -> str:
        return digest("Call", self.content, [parent.key for parent in (*self.inputs, *self.given.values())])


@dataclass(frozen=True, eq=False, kw_only=True)
class Output(Node):
    """One of the arrays that a user's function makes.

    Parameters
    ----------
    call : Call
    number : int
        Which of its outputs.
    """

    call: Call
    number: int
    is_stored = True

    @property
    def parents(self):
        return self.call.parents

    @cached_property
    def key(self) -> str:
        return f"{self.call.key}-{self.number}"

    @property
    def known(self) -> bool:
        return self.call.identity.known

    @property
    def call_name(self) -> str:
        """What the call is called in messages."""
        return self.call.name


@dataclass(frozen=True, eq=False, kw_only=True)
class Reduced(Node):
    """A reduction along axes, or over all.

    Parameters
    ----------
    parent : Node
    over : tuple of str
        The axes that go.
    operation : str
    options : mapping
    functions : object, optional
        Those of a user's own reduction: arrays/own_reductions.py.
    """

    parent: Node
    over: tuple[str, ...]
    operation: str
    options: Mapping[str, Any]
    functions: Any = None
    is_stored = True

    @property
    def parents(self):
        return (self.parent,) if self.functions is None else self.functions.call.parents

    @property
    def content(self):
        own = None if self.functions is None else self.functions.digest
        return (self.over, self.operation, dict(self.options), own)

    @property
    def known(self) -> bool:
        return self.functions is None or self.functions.identity.known

    @property
    def call_name(self) -> str:
        """What the call is called in messages, where functions of the user are."""
        return "" if self.functions is None else self.functions.name


@dataclass(frozen=True, eq=False, kw_only=True)
class Persisted(Node):
    """An array that is made once in a program and kept for all its runs.

    Parameters
    ----------
    parent : Node
    """

    parent: Node
    is_stored = True

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return ("persist",)


@dataclass(frozen=True, eq=False, kw_only=True)
class Materialised(Node):
    """An array of an expression that is too long to be worked on in one go.

    Parameters
    ----------
    parent : Node
    """

    parent: Node
    is_stored = True

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return ("expression",)


#: Expressions that are worked on in one go, one within the other, at most.
MAX_DEPTH = 64


def bounded(node: Node) -> Node:
    """Return a node of an expression; if it is a long one, what stores its array."""
    _ = (
        node.key
    )  # while those of its parents are known: else a long chain would be longer than Python's stack
    if node.depth < MAX_DEPTH:
        return node
    return Materialised(
        axes=node.axes, shape=node.shape, dtype=node.dtype, order=node.order, space=node.space,
        attrs=node.attrs, label=node.label, parent=node,
    )  # fmt: skip
