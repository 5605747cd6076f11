"""The arrays of a run: in which stores each lies, and how what a chunk reads is brought together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.engine.array import Ragged
from mpiimg.engine.blocks import Placement
from mpiimg.engine.boxes import Box, box_slices, runs_of_items
from mpiimg.engine.exchanges import GatheredBoxes, exchanged_needs
from mpiimg.engine.inputs import Input
from mpiimg.engine.mpi.memory import give_back
from mpiimg.engine.needs import Chunk, Need, Part, Pieces
from mpiimg.engine.open_inputs import OpenInputs
from mpiimg.engine.pages import DamagedPage
from mpiimg.engine.raw import FileEnds
from mpiimg.engine.record_index import OneByOne, RecordsOf
from mpiimg.engine.record_store import Places, RecordStore
from mpiimg.engine.stage import Reduce, Stage
from mpiimg.engine.stores import MemoryStore, StagedStore
from mpiimg.errors import BadInput, DamagedData

#: Bytes of a whole array that come from the memory of other ranks at a time.
PIECE = 64 << 20


class PlacedArrays:
    """The arrays of a run, wherever they lie.

    Parameters
    ----------
    comm : communicator
        Of the ranks.
    inputs : sequence of Input
        Arrays that lie in files of any format, which every rank reads for itself.
    staged : StagedStore, optional
        None where nothing is staged.
    records : RecordStore, optional
        Likewise.
    exchange : callable
        As :class:`mpiimg.engine.stores.MemoryStore` takes it.
    """

    def __init__(
        self,
        comm,
        inputs: Sequence[Input],
        staged: StagedStore | None,
        records: RecordStore | None,
        exchange: Callable,
    ):
        self.placements: dict[str, Placement] = {}
        self._comm, self._staged, self._records = comm, staged, records
        self._memory = MemoryStore(comm.rank, exchange)
        self._gathering: tuple[Stage, dict[int, GatheredBoxes]] | None = None
        self._inputs = OpenInputs(inputs)

    def create(self, placements: Iterable[Placement]) -> None:
        """Make the arrays that a stage writes. Collective."""
        for placement in placements:
            array = placement.array
            if placement.memory:
                self._memory.create(array, placement.table, placement.owners)
            if placement.staged and array.name not in self._staged:
                self._staged.create(array, placement.boxes, placement.owners)
            elif placement.staged:
                self._staged.assign(array.name, placement.owners)
            self.placements[array.name] = placement

    def add_records(
        self, placement: Placement, places: Places | None, kept: Mapping[int, np.ndarray]
    ) -> None:
        """Let the records of a stage be read; those of this rank that it has `kept` by their numbers."""
        name = placement.array.name
        if placement.staged:
            self._records.locate(name, places)
        if placement.memory:
            self._memory.create(placement.array, placement.boxes, placement.owners)
            for number, data in kept.items():
                self._memory.write(name, number, data[None])
        self.placements[name] = placement

    def spill(self, names: Iterable[str]) -> None:
        """Take arrays out of memory that lie in their files as well."""
        for name in names:
            self._memory.drop(name)
            self.placements[name] = dataclasses.replace(self.placements[name], memory=False)

    def drop_others(self, names: Collection[str]) -> None:
        """Let go of all arrays but those of `names`. Collective."""
        self._gathering = None
        for name in [name for name in self.placements if name not in names]:
            self._memory.drop(name)
            if self._staged is not None:
                self._staged.drop(name)
                self._records.drop(name)
            del self.placements[name]

    def is_exchanged(self, stage: Stage) -> bool:
        """Say whether the chunks of a stage read from the memory of other ranks."""
        return bool(exchanged_needs(stage, self.placements))

    def gather(self, stage: Stage, shares: Sequence[Sequence[int]]) -> Callable[[int], list]:
        """Exchange what chunks of a stage read from memory. Collective.

        Parameters
        ----------
        stage : Stage
        shares : sequence of sequence of int
            The chunks of each rank.

        Returns
        -------
        callable
            Called with the number of a chunk of this rank, returns what its work reads, one per need.
        """
        gathered: dict[tuple[str, Box], np.ndarray] = {}
        for need in exchanged_needs(stage, self.placements):
            requests = self._boxes_of(stage, need).requests(shares)
            blocks = self._memory.collect(need.array.name, requests)
            boxes = requests.of_rank(self._comm.rank).tolist()
            gathered.update(
                ((need.array.name, tuple(map(tuple, box))), block)
                for box, block in zip(boxes, blocks, strict=True)
            )
            del blocks
            # What was packed and received is free; the work may not fit into the gaps.
            give_back()

        def read(number: int) -> list:
            return [self._of_need(gathered, need, stage.chunk(number)) for need in stage.reads]

        return read

    def _boxes_of(self, stage: Stage, need: Need) -> GatheredBoxes:
        """Return the boxes that chunks of a stage gather, which are made once for all its rounds."""
        if self._gathering is None or self._gathering[0] is not stage:
            self._gathering = stage, {}
        of_needs = self._gathering[1]
        if id(need) not in of_needs:
            of_needs[id(need)] = GatheredBoxes(stage, need)
        return of_needs[id(need)]

    def _of_need(
        self, gathered: dict[tuple[str, Box], np.ndarray], need: Need | RecordsOf, chunk: Chunk
    ) -> Any:
        boxes = need.boxes(chunk)
        if isinstance(need, RecordsOf) and need.one_by_one:
            return OneByOne(lambda box: self._read(gathered, need, box), boxes)
        return need.join([self._read(gathered, need, box) for box in boxes])

    def _read(
        self, gathered: dict[tuple[str, Box], np.ndarray], need: Need | RecordsOf, box: Box
    ) -> np.ndarray:
        name = need.array.name
        if (name, box) in gathered:
            return gathered[name, box]
        if name in self._inputs:
            try:
                return self._inputs.read(name, box)
            except FileEnds as error:
                raise BadInput(f"{error}: it was cut while the run read it; copy it again") from None
        return self._read_staged(name, box)

    def _read_staged(self, name: str, box: Box) -> np.ndarray:
        if self._records is not None and name in self._records:
            return self._records.read_box(name, box)
        try:
            return self._staged.read_box(name, box)
        except DamagedPage as page:
            raise DamagedData(
                f"{self._staged.path(name)}: what is there of chunk "
                f"{self.placements[name].table.chunk_of(page.block)} of array {name} is not what was written"
            ) from None

    def put(
        self, stage: Stage, placements: Sequence[Placement], number: int, results: Sequence[Any]
    ) -> tuple[list[np.ndarray], list[int]]:
        """Put what the work on chunk `number` returned where the plan wants it.

        Returns
        -------
        blocks : list of ndarray
            All blocks of the chunk.
        sums : list of int
            CRC32 of each; none where nothing is staged.
        """
        blocks, sums = [], []
        for target, placement, result in zip(stage.targets, placements, results, strict=True):
            name, pieces = placement.array.name, result if isinstance(target, Pieces) else (result,)
            for block_number, piece in zip(placement.table.of_chunk(number), pieces, strict=True):
                block = np.asarray(piece, dtype=placement.array.dtype, order="C")
                if placement.staged:
                    sums.append(self._staged.write(name, block_number, block))
                if placement.memory:
                    self._memory.write(name, block_number, block)
                blocks.append(block)
        return blocks, sums

    def restore(self, placements: Iterable[Placement], numbers: Collection[int]) -> None:
        """Bring the blocks of chunks of this rank from the staged files to its memory."""
        for placement in placements:
            name = placement.array.name
            for number in numbers if placement.memory else ():
                for block in placement.table.of_chunk(number):
                    box = tuple(map(tuple, placement.boxes[block].tolist()))
                    self._memory.write(name, block, self._read_staged(name, box))

    def rows_on_root(self, stage: Reduce) -> Callable[[], np.ndarray]:
        """Return what returns all rows of a reduction on rank 0, to be called there alone. Collective."""
        rows = stage.rows
        box = tuple((0, n) for n in rows.shape)
        if rows.name not in self._memory:
            return lambda: self._read_staged(rows.name, box)
        (block,) = self._memory.collect(rows.name, [[box]] + [[]] * (self._comm.size - 1)) or (None,)
        return lambda: block

    def whole(self, name: str, takers: Sequence[int]) -> np.ndarray | None:
        """Return a whole array on the ranks `takers`, from wherever it lies, and None on others. Collective.

        From memory it comes to the first of them in pieces, and from there to the others. Beside the array
        a rank has a few pieces in hand.

        Parameters
        ----------
        name : str
            Of a dense array.
        takers : sequence of int
            At least one rank; every rank says the same.

        Raises
        ------
        ValueError
            It has items of different shapes.
        MemoryError
            A taker has not enough for it; raised on all ranks.
        DamagedData
            What is in its file is not what was written; raised where that was read.
        """
        mine = self._comm.rank in takers
        if name in self._inputs:
            array = self._inputs.array(name)
        else:
            array = self.placements[name].array
        if isinstance(array, Ragged):
            raise ValueError(f"array {name} has items of different shapes: read them one by one")
        if name not in self._memory:
            return self._read({}, Part(array), array.part({})) if mine else None
        result, lacks = None, False
        try:
            result = np.empty(array.shape, array.dtype) if mine else None
        except MemoryError:
            lacks = True
        if self._comm.allreduce(lacks):
            raise MemoryError(f"a rank has no room for array {name} of {array.nbytes} bytes")
        group = self._comm.Split(0 if mine else 1, takers.index(self._comm.rank) if mine else 0)
        try:
            for box in runs_of_items(array.shape, PIECE // np.dtype(array.dtype).itemsize):
                wanted = [[box] if rank == takers[0] else [] for rank in range(self._comm.size)]
                blocks = self._memory.collect(name, wanted)
                if mine:
                    piece = result[*box_slices(box), ...]
                    if blocks:
                        piece[...] = blocks[0]
                    group.Bcast(piece.reshape(-1).view(np.uint8))
        finally:
            group.Free()
        return result

    def close(self) -> None:
        """Close the staged arrays. Collective."""
        if self._staged is not None:
            self._staged.close()
            self._records.close()

    def abandon(self) -> None:
        """Close what this rank can close alone."""
        if self._staged is not None:
            self._staged.abandon()
            self._records.close()
        self._inputs.close()
