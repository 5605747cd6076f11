"""Where items go: into files that functions write, or to the program itself."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from mpiimg.arrays.graph import digest
from mpiimg.arrays.items_graph import Function, ItemsNode
from mpiimg.arrays.items_stages import ITEM, given_places, index_of, unique_name
from mpiimg.arrays.items_work import called
from mpiimg.arrays.lower import Lowering, Reads
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.codec import decode
from mpiimg.engine.containment import Units
from mpiimg.engine.mpi import scripts
from mpiimg.engine.mpi.gather import allgather_bytes
from mpiimg.engine.needs import Chunk
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.stage import Files, Stages
from mpiimg.errors import BadInput

#: Bytes of records that one chunk brings to the program.
_TOGETHER = 8 << 20


# --- Files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FilesOf:
    """Files that a function writes for each record; what :func:`mpiimg.write` takes for a folder.

    Parameters
    ----------
    node : ItemsNode
        Stored.
    function : Function
    """

    node: ItemsNode
    function: Function

    def __repr__(self) -> str:
        return f"<mpiimg files: {self.function.name}>"

    def write(self, folder: Any, **options: Any) -> Any:
        """Run all that is needed, and write the files into a folder. Collective."""
        from mpiimg.arrays.session import write

        try:
            place = os.path.normpath(os.fspath(folder))
        except TypeError:
            raise BadInput(f"files.write: takes a folder, and not {type(folder).__name__}") from None
        parent, name = os.path.split(place)
        return write({f"{name}/": self}, parent or ".", **options)

    def _as_result(self, file: str) -> FilesResult:
        if not file.endswith("/"):
            raise BadInput(
                f"write: {file}: files go into a folder; write its name with a slash: {file + '/'!r}"
            )
        return FilesResult(self.node, self.function, file.rstrip("/"))


@dataclass(frozen=True, eq=False)
class FilesResult:
    """A folder of files that a function writes; a result of a run.

    Parameters
    ----------
    node : ItemsNode
    function : Function
    file : str
        The folder, below that of results.
    """

    node: ItemsNode
    function: Function
    file: str

    @property
    def targets(self) -> tuple:
        return (self.node, *self.function.given.values())

    @property
    def identity(self):
        return self.function.identity

    def check(self, lowering: Lowering) -> None:
        """Do nothing: what a function writes is known when it does."""

    def stages(self, lowering: Lowering) -> Stages[None]:
        """Yield the stage that writes the files."""
        index = index_of(lowering, self.node)
        grid = ChunkGrid((ITEM,), (len(index),), (1,))
        reads = Reads(lowering, grid)
        places = given_places(reads, [self.function])
        views = reads.needs()

        def work(chunk: Chunk, folder, data, *blocks):
            values = reads.values(chunk.number, blocks) if views else []
            given = {function: {} for function, _, _ in places}
            for function, name, place in places:
                given[function][name] = values[place]
            key = index.keys[chunk.number]
            called(self.function, (folder, decode(data[0])), key, given, self._name(index, chunk.number))

        leave_out = self.node.leave_out
        yield Files(
            f"{self.function.name.partition('(')[0]}-{digest(self.file, self.node.key)[:12]}",
            grid,
            reads=(RecordsOf(index.array, lambda chunk: (chunk.number,)), *views),
            work=work,
            within=self.file,
            weights=tuple((index.sizes + 1).tolist()) or None,
            units=Units(lambda n: self._name(index, n), max(1, len(index)), "item") if leave_out else None,
        )

    def _name(self, index: Index, number: int) -> str:
        return f"record {index.keys[number]!r} of {self.node.label}"


# --- To the program ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Collected:
    """Records that a run brings to the ranks of the program.

    Parameters
    ----------
    node : ItemsNode
    limit : int
        The most bytes that they may have; None for the index alone.
    """

    node: ItemsNode
    limit: int | None
    data: dict[int, bytes] = field(default_factory=dict)

    @property
    def targets(self) -> tuple:
        return (self.node,)

    def check(self, lowering: Lowering) -> None:
        """Do nothing: how many there are is known when they are made."""

    def stages(self, lowering: Lowering) -> Stages[None]:
        """Yield the stage that takes hold of the bytes of records, each on a rank."""
        index = index_of(lowering, self.node)
        if self.limit is None:
            return
        if index.nbytes > self.limit:
            raise BadInput(
                f"compute: the {len(index)} records have {index.nbytes >> 20} MB, and a rank has "
                f"{self.limit >> 20} MB left for them; write them by .files(...) or .table(...), make less "
                "of them by .map(...), or give memory="
            )
        self.data.clear()
        count = max(1, min(len(index), _TOGETHER // max(1, int(index.sizes.max(initial=0)))))
        grid = ChunkGrid((ITEM,), (len(index),), (count,))

        def numbers(chunk: Chunk) -> range:
            ((start, stop),) = chunk.box
            return range(start, stop)

        def work(chunk: Chunk, folder, blocks):
            for number, block in zip(numbers(chunk), blocks, strict=True):
                self.data[number] = bytes(block)

        name = f"compute-{unique_name(lowering, self.node)}"
        yield Files(name, grid, reads=(RecordsOf(index.array, numbers),), work=work, scratch=0)

    def gathered(self, comm, index: Index, root: int | None) -> list[tuple[Any, Any]] | None:
        """Return the records with their keys on every rank, or on `root` alone. Collective."""
        numbers = sorted(self.data)
        own = json.dumps([[number, len(self.data[number])] for number in numbers]).encode()
        own = len(own).to_bytes(8, "little") + own + b"".join(self.data[number] for number in numbers)
        self.data.clear()
        everything: dict[int, memoryview] = {}
        for data in allgather_bytes(comm, own):
            head = 8 + int.from_bytes(data[:8], "little")
            position, view = head, memoryview(bytearray(data))
            for number, size in json.loads(data[8:head]):
                everything[number] = view[position : position + size]
                position += size
        if root is not None and comm.rank != root:
            return None
        return [(index.keys[number], decode(everything[number])) for number in range(len(index))]


def computed(node: ItemsNode, root: int | None, memory: Any) -> list[tuple[Any, Any]] | None:
    """Run what is needed for some records, and return them with their keys. Collective."""
    from mpiimg.arrays import recipes
    from mpiimg.arrays.session import current

    with scripts.collective("compute", digest([node.key], root, str(memory))) as comm:
        _check_root(root, comm)
        budget = current().budget(comm, memory)
        result = Collected(node, max(budget - recipes.BASELINE, 0) // 3)
        index = _carried_out(result, comm, memory)
        return result.gathered(comm, index, root)


def _check_root(root: Any, comm: Any) -> None:
    if root is not None and (
        isinstance(root, bool) or not isinstance(root, int) or not 0 <= root < comm.size
    ):
        raise BadInput(f"compute: root = {root!r}: there are ranks 0 to {comm.size - 1}")


def keys(node: ItemsNode) -> list[Any]:
    """Run what is needed for some records, and return their keys. Collective."""
    with scripts.collective("keys", digest([node.key])) as comm:
        return list(_carried_out(Collected(node, None), comm, None).keys)


def _carried_out(result: Collected, comm: Any, memory: Any) -> Index:
    from mpiimg.arrays import keeping
    from mpiimg.arrays.session import current

    outcome = keeping.carried_out(current(), result, comm, memory)
    return index_of(outcome.state, result.node)
