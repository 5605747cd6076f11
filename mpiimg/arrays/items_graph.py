"""The graph of items: where records come from, and what users' functions make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mpiimg.arrays.graph import Node, digest
from mpiimg.arrays.identity import Identity
from mpiimg.engine.keys import Key
from mpiimg.engine.stage import Stages

#: What a step does with a record.
MAP, FILTER, FLAT_MAP, REDUCE = "map", "filter", "flat_map", "reduce"


@dataclass(frozen=True, eq=False, kw_only=True)
class ItemsNode:
    """Records in the graph: lazy, keyed, of any number. A :class:`Node` to all that only walks a graph.

    Parameters
    ----------
    label : str
        What stages are called by.
    leave_out : bool
        A record that raises is left out; else it ends the run.
    """

    label: str
    leave_out: bool

    axes = ()
    shape = ()
    dtype = None
    order = "C"
    space = None

    #: Whether it is made of the first item before a run.
    is_tried = True

    #: Whether its records are of the run of their own, rather than part of the stages that read them.
    is_stored = False

    @property
    def parents(self) -> tuple[Any, ...]:
        """The nodes that it is made of."""
        return ()

    @property
    def content(self) -> tuple:
        """What it is, beside its parents, as JSON knows it."""
        raise NotImplementedError

    @property
    def family_content(self) -> tuple:
        """The same without what tells one list of items from another."""
        return self.content

    @cached_property
    def key(self) -> str:
        """A digest of all that it is made of."""
        return digest(type(self).__name__, self.content, [parent.key for parent in self.parents])

    @cached_property
    def family(self) -> str:
        """A digest of what is done, whatever items there are: with one more, what there was stays."""
        below = [getattr(parent, "family", None) or parent.key for parent in self.parents]
        return digest(type(self).__name__, self.family_content, below)

    @property
    def name(self) -> str:
        """What its stage is called."""
        return f"{self.label}-{self.family[:12]}"

    @property
    def known(self) -> bool:
        """Whether all that this node itself is made of is known."""
        return True

    @property
    def files(self) -> tuple[Path, ...]:
        """Files whose sizes and times must not change while a run reads them."""
        return ()

    @property
    def resumable(self) -> bool:
        """Whether all that it is made of is known."""
        from mpiimg.arrays.graph import walk

        return all(node.known for node in walk([self]))

    def stages(self, lowering: Any) -> Stages[None]:
        """Yield the stage that makes its records, whose parents are made."""
        from mpiimg.arrays import items_stages

        yield from items_stages.stages(lowering, self)

    def rehearse(self, rehearsal: Any) -> None:
        """Make its records of the first item."""
        from mpiimg.arrays import items_rehearsal

        items_rehearsal.rehearse(rehearsal, self)


@dataclass(frozen=True)
class Item:
    """One of the items that a list has.

    Parameters
    ----------
    key : int, str or tuple
    value : object
        What the first function is given.
    name : str
        What messages call it.
    identity : object
        What it is known by, as JSON knows it.
    files : tuple of Path
        Those that it names.
    nbytes : int
        Of these files; 0 where it names none.
    """

    key: Key
    value: Any
    name: str
    identity: Any
    files: tuple[Path, ...] = ()
    nbytes: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Listed(ItemsNode):
    """Items that are known when the graph is built.

    Parameters
    ----------
    items : tuple of Item
    origin : str
        What the list is of, whatever is in it: a pattern, or folders.
    """

    items: tuple[Item, ...]
    origin: str

    @property
    def content(self):
        return ([(one.key, one.identity) for one in self.items],)

    @property
    def family_content(self):
        return (self.origin,)

    @property
    def files(self):
        return tuple(dict.fromkeys(path for one in self.items for path in one.files))


@dataclass(frozen=True, eq=False, kw_only=True)
class Slices(ItemsNode):
    """The blocks of an array at each index along some axes; their keys are the indices.

    Parameters
    ----------
    array : Node
    along : tuple of str
        Several give tuples for keys.
    """

    array: Node
    along: tuple[str, ...]

    @property
    def parents(self):
        return (self.array,)

    @property
    def content(self):
        return (self.along, self.array.order)


@dataclass(frozen=True, eq=False)
class Function:
    """A user's function with what it is called with beside records.

    Parameters
    ----------
    call : callable
    identity : Identity
        Of it with its plain keywords.
    name : str
        In messages: "map(coadd)".
    plain : mapping
        Keywords as they are.
    given : mapping of str to Node
        Arrays that arrive whole.
    takes_key : bool
        It is told the key of the record.
    """

    call: Callable
    identity: Identity
    name: str
    plain: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Node] = field(default_factory=dict)
    takes_key: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Step(ItemsNode):
    """What a function makes of each record.

    Parameters
    ----------
    parent : ItemsNode
    kind : str
        MAP, FILTER, FLAT_MAP or REDUCE.
    uses : tuple of Function
        One; of REDUCE `init`, `step` and `finish`.
    """

    parent: ItemsNode
    kind: str
    uses: tuple[Function, ...]
    #: The keys of what is made of it: where there is more than one its records are kept, not made for each.
    children: set[str] = field(default_factory=set)

    @property
    def is_stored(self) -> bool:
        return len(self.children) > 1

    @property
    def parents(self):
        return (self.parent, *(node for function in self.uses for node in function.given.values()))

    @property
    def content(self):
        functions = [
            (one.identity.digest, sorted(one.plain), sorted(one.given), one.takes_key) for one in self.uses
        ]
        return (self.kind, functions)

    @property
    def known(self) -> bool:
        return all(one.identity.known for one in self.uses)

    @property
    def call_name(self) -> str:
        """The name of the call, for messages."""
        return self.uses[-1].name


@dataclass(frozen=True, eq=False, kw_only=True)
class Kept(ItemsNode):
    """Records that are of the run of their own, for what is made of all of them.

    Parameters
    ----------
    parent : ItemsNode
    persisted : bool
        They are made once, and kept for all runs of the program.
    """

    parent: ItemsNode
    persisted: bool = False
    is_stored = True

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return ()

    @cached_property
    def key(self) -> str:
        return self.parent.key

    @cached_property
    def family(self) -> str:
        return self.parent.family

    @property
    def known(self) -> bool:
        return self.identity.known

    @property
    def identity(self) -> Identity:
        """Of the functions that make its records, as far as they are not of another stage."""
        return identity_of(chain(self)[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class Grouped(ItemsNode):
    """The records of each key together, in the order of the items; groups in the order of keys.

    Parameters
    ----------
    parent : Kept
    """

    parent: Kept

    @property
    def parents(self):
        return (self.parent,)

    @property
    def content(self):
        return ()


def kept(node: ItemsNode, persisted: bool = False) -> Kept:
    """Return a node whose records are of the run of their own, or of all runs of the program."""
    if isinstance(node, Kept) and node.persisted >= persisted:
        return node
    made = Kept(label=node.label, leave_out=node.leave_out, parent=node, persisted=persisted)
    noted(node, made)
    return made


def noted(parent: ItemsNode, child: ItemsNode) -> None:
    """Note that something is made of a node. All ranks do the same, so all know of the same ones."""
    if isinstance(parent, Step):
        parent.children.add(child.key)


def chain(node: ItemsNode) -> tuple[ItemsNode, list[Step]]:
    """Return what the records of a stored node are made from, and the steps from there to it."""
    one = node.parent if isinstance(node, Kept) else node
    steps: list[Step] = []
    while isinstance(one, Step) and not (steps and one.is_stored):
        steps.insert(0, one)
        one = one.parent
    return one, steps


def identity_of(steps: Sequence[Step]) -> Identity:
    """Return what the functions of steps are known by together."""
    parts = [one.identity for step in steps for one in step.uses]
    unknown = next((one for one in parts if not one.known), None)
    why = unknown.why if unknown is not None else ""
    return Identity(digest([one.digest for one in parts]), unknown is None, why)
