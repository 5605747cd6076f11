"""Nodes that are arrays of a run: what users' functions make, reductions, and what is stored by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mpiimg.arrays.axes import common_sizes, union
from mpiimg.arrays.graph import C, Node, digest


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


def output_key(call: Call, number: int) -> str:
    """Return the key of the node of an output, before there is one."""
    return f"{call.key}-{number}"


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
        return output_key(self.call, self.number)

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
class StoredParent(Node):
    """An array of the run, of what another node is: of the same axes, shape and type.

    Parameters
    ----------
    parent : Node
    """

    parent: Node
    is_stored = True

    @classmethod
    def of(cls, node: Node) -> StoredParent:
        """Return what stores the array of a node."""
        return cls(
            axes=node.axes, shape=node.shape, dtype=node.dtype, order=node.order, space=node.space,
            attrs=node.attrs, label=node.label, parent=node,
        )  # fmt: skip

    @property
    def parents(self):
        return (self.parent,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Persisted(StoredParent):
    """An array that is made once in a program and kept for all its runs."""

    @property
    def content(self):
        return ("persist",)


@dataclass(frozen=True, eq=False, kw_only=True)
class Materialised(StoredParent):
    """An array of an expression that is too long to be worked on in one go."""

    @property
    def content(self):
        return ("expression",)


#: Expressions that are worked on in one go, one within the other, at most.
MAX_DEPTH = 64


def bounded(node: Node) -> Node:
    """Return a node of an expression; if it is a long one, what stores its array."""
    # Its key now, while those of its parents are known: a long chain is longer than Python's stack.
    _ = node.key
    return node if node.depth < MAX_DEPTH else Materialised.of(node)
