"""The one executor: runs the stages of a recipe on all ranks, and marks what is done."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.blocks import Placement
from mpiimg.engine.boxes import Box
from mpiimg.engine.checkpoint import Checkpoint
from mpiimg.engine.exchanges import exchanged_needs, gathered_boxes
from mpiimg.engine.forecast import StageSizes, stage_sizes
from mpiimg.engine.log.logbook import Logbook
from mpiimg.engine.log.show_plan import predicted
from mpiimg.engine.mpi.agreement import Agreement, on_root
from mpiimg.engine.mpi.memory import anonymous_peak, give_back, resident_peak, restart_peak
from mpiimg.engine.mpi.redistribute import Traffic, redistribute
from mpiimg.engine.mpi.runtime import over_ranks, progress, say
from mpiimg.engine.mpi.stream import scatter_stream
from mpiimg.engine.mpi.waiting import soft_barrier
from mpiimg.engine.needs import Need, Pieces
from mpiimg.engine.plan import Resources, StagePlan, plan_stage, still_read
from mpiimg.engine.provenance import RESULT_LIBRARIES, Lineage, Provenance, versions
from mpiimg.engine.raw import FileEnds, write_fully
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.stage import Compute, Files, Reduce, Sink, Stage, Stream
from mpiimg.engine.stores import MemoryStore, StagedStore
from mpiimg.errors import BadInput
from mpiimg.version import __version__

log = logging.getLogger("mpiimg")


class Executor:
    """Runs stages one after the other; holds the stores, the marks, and what was left out so far."""

    def __init__(
        self,
        recipe: Recipe,
        comm,
        options: Options,
        work: Path,
        cpu_target: str,
        resources: Resources,
        events: Path | None = None,
        outer: Agreement | None = None,
    ):
        self.recipe, self.comm, self.options, self.work = recipe, comm, options, work
        self.state: Any = None
        self.left_out = dict(recipe.left_out)
        self.traffic = Traffic()
        self.agreement = Agreement(comm, outer)
        self.logbook = Logbook(comm, options, events)
        self.resources = resources
        self.memory = MemoryStore(comm.rank, self._exchange)
        self.staged = None if options.in_memory else StagedStore(work, comm)
        self.lineage = Lineage(recipe.inputs, cpu_target, recipe.packages)
        self.checkpoint = Checkpoint(comm, work / "journal", self.staged, options.sync_every)
        self.placed: dict[str, Placement] = {}
        self.files = {source.array.name: source.open() for source in recipe.inputs}
        self.timings: list[dict] = []
        self.written: list[str] = []
        self.warnings = list(recipe.warnings)
        self._stages = recipe.expected
        self._cpu_target = cpu_target

    def execute(self) -> None:
        """Run every stage of the recipe. Collective."""
        warnings, self.warnings = self.warnings, []
        self._warn(warnings)
        self.logbook.start(self.recipe, self._stages)
        if self.staged is not None:
            self.checkpoint.load()
            self._guarded(self.checkpoint.open, "journal")
            self._agree()
        stages, found = self.recipe.stages(), None
        try:
            while True:
                found = self._run(stages.send(found))
        except StopIteration as end:
            self.state = end.value
        self.logbook.rest()

    def report(self) -> dict:
        """Return what run.json says of the run so far. Collective."""
        return {
            "tool": self.recipe.tool,
            "version": __version__,
            "parameters": dict(self.recipe.parameters),
            "inputs": dict(self.recipe.sources),
            "warnings": self.warnings,
            "left_out": self.left_out,
            "ranks": self.comm.size,
            "hosts": sorted(set(self.comm.allgather(socket.gethostname()))),
            "cpu_target": self._cpu_target,
            "in_memory": self.options.in_memory,
            "libraries": {
                **versions((*RESULT_LIBRARIES, "h5py", "mpi4py", "isal", "deflate")),
                **self.recipe.packages,
            },
            # Checksums, syncs and marks, of the rank that spent most on them.
            "marking_seconds": round(over_ranks(self.comm, {}, {"": self.checkpoint.seconds})[""], 4),
            "stages": self.timings,
        }

    def close(self) -> None:
        """Release everything; what is done is marked. All ranks have agreed to end. Collective."""
        self.checkpoint.close()
        if self.staged is not None:
            self.staged.close()
        self.agreement.close()
        self.abandon()
        # A group of ranks goes on with the next scan.
        give_back()

    def abandon(self) -> None:
        """Release what this rank can release alone, after an error inside an exchange."""
        self.logbook.rest()
        self.checkpoint.close()
        if self.staged is not None:
            self.staged.abandon()
        for file in self.files.values():
            file.close()

    def _run(self, stage: Stage) -> Any:
        """Run a stage; return what a reduction found. Collective."""
        started, before = time.monotonic(), copy.copy(self.traffic)
        cpu = time.process_time()
        kept = still_read(self._stages, stage.name) | set(self.recipe.staged_outputs)
        for name in [name for name in self.placed if name not in kept]:
            self._drop(name)
        restart_peak()
        sizes = stage_sizes(stage)
        if isinstance(stage, Sink | Files):
            done, found = set(), None
            planned = self._turn_to(stage, sizes, range(len(stage.grid)))
            run = self._run_sink if isinstance(stage, Sink) else self._run_files
            run(stage, planned)
            self.written += stage.files
        else:
            provenance = self.lineage.provenance(stage)
            done = self._done_before(stage, sizes, provenance)
            todo = [n for n in range(len(stage.grid)) if n not in done]
            planned = self._turn_to(stage, sizes, todo)
            self._guarded(lambda: self._create(planned), f"stage {stage.name}, staged file")
            self._agree()
            self._guarded(lambda: self._restore(planned, done), f"stage {stage.name}, marked chunks")
            self._agree()
            if isinstance(stage, Stream):
                self._run_stream(stage, planned, todo, provenance)
            else:
                self._run_chunks(stage, planned, todo, provenance)
            self._guarded(self.checkpoint.sync, f"stage {stage.name}, marks")
            # The other ranks' blocks are in the staged files only once all have agreed.
            self._agree()
            self.lineage.add(stage, provenance, sizes.tables, self.checkpoint.end_stage(stage))
            found = self._finish(stage) if isinstance(stage, Reduce) else None
        self.logbook.stage_done(stage)
        self._time(stage, planned, started, cpu, before, len(done))
        return found

    def _turn_to(self, stage: Stage, sizes: StageSizes, todo: Sequence[int]) -> StagePlan:
        """Plan a stage from what is in memory now, and make the room that it needs."""
        planned = plan_stage(stage, sizes, self.resources, self.placed, todo)
        for name in planned.spilled:
            # Memory is needed for other things; it lies in its file as well.
            self.memory.drop(name)
            self.placed[name] = dataclasses.replace(self.placed[name], memory=False)
        self.logbook.stage(stage, planned, todo)
        return planned

    def _finish(self, stage: Reduce) -> Any:
        """Let a reduction draw a value from the rows of all chunks. Collective."""
        rows = self._rows_on_root(stage)
        self.logbook.wait("the end")
        # One rank decides for all: a library may round differently on another node.
        found = on_root(self.comm, stage.finish, rows, where=f"stage {stage.name}, end")
        self._warn(found.warnings)
        for note in found.notes:
            if log.isEnabledFor(logging.INFO):
                say(self.comm, f"mpiimg: {note}")
        self.left_out |= found.left_out
        return found.value

    def _run_chunks(
        self, stage: Compute | Reduce, planned: StagePlan, todo: Sequence[int], provenance: Provenance
    ) -> None:
        reduces = isinstance(stage, Reduce)
        share = np.count_nonzero(planned.partition.owners()[list(todo)] == self.comm.rank)
        with progress(self.comm, stage.name, share, self.options.progress) as tick:
            for number, blocks in self._inputs(stage, planned, todo):
                chunk = stage.chunk(number)
                try:
                    made = stage.work(chunk, *blocks)
                    self._keep(stage, planned, number, (_row(stage, made),) if reduces else made, provenance)
                except Exception as error:
                    self.agreement.record(error, f"stage {stage.name}, chunk {number} {chunk.bounds}")
                # What a chunk reads is let go before the next one reads.
                del blocks
                tick(1)
        self._agree()

    def _run_stream(
        self, stage: Stream, planned: StagePlan, todo: Sequence[int], provenance: Provenance
    ) -> None:
        """Read a stream on one rank and hand each block to its owner."""
        boxes = planned.placements[0].boxes
        shapes = boxes[..., 1] - boxes[..., 0]

        def blocks():
            stream = stage.blocks()
            with progress(self.comm, stage.name, len(stage.grid), self.options.progress) as tick:
                for number in range(len(stage.grid)):
                    self.logbook.turn_to(stage, number)
                    block = next(stream, None)
                    if block is None:
                        return
                    self.checkpoint.check_input(stage, number, provenance, block)
                    yield block
                    tick(1)

        def empty(number):
            self.logbook.turn_to(stage, number)
            return np.empty(shapes[number], stage.array.dtype)

        def keep(number, block):
            self._keep(stage, planned, number, (block,), provenance)
            self.logbook.wait("waits for blocks")

        self.logbook.wait("waits for blocks")
        owners = planned.partition.owners()
        where = f"stage {stage.name}"
        scatter_stream(blocks, owners, todo, empty, keep, self.comm, self.agreement, where, self.traffic)
        self._agree()

    def _run_sink(self, stage: Sink, planned: StagePlan) -> None:
        """Write the bytes of all chunks in order: ranks take consecutive runs, round by round."""
        path = self.work / "outputs" / stage.file
        position = on_root(self.comm, lambda: path.write_bytes(stage.head()))
        chunks = range(len(stage.grid))
        opened: list[int] = []
        self._guarded(lambda: opened.append(os.open(path, os.O_WRONLY)), f"stage {stage.name}")
        self._agree()
        descriptor = opened[0]
        try:
            with progress(self.comm, stage.name, len(chunks), self.options.progress) as tick:
                for numbers in planned.rounds(stage, self.placed, chunks):
                    position = self._write_round(stage, numbers, descriptor, position)
                    tick(sum(map(len, numbers)))
            self._guarded(lambda: os.fdatasync(descriptor), f"stage {stage.name}")
        finally:
            os.close(descriptor)
        self._agree()

    def _run_files(self, stage: Files, planned: StagePlan) -> None:
        """Let the work on each chunk write whole files."""
        folder = self.work / "outputs"
        for number, blocks in self._inputs(stage, planned, range(len(stage.grid))):
            self._guarded(
                lambda number=number, blocks=blocks: stage.work(stage.chunk(number), folder, *blocks),
                f"stage {stage.name}, chunk {number}",
            )
            self.logbook.done(stage, number, 0)
            del blocks
        self._agree()

    def _write_round(self, stage: Sink, numbers: list[list[int]], descriptor: int, position: int) -> int:
        """Make and write the bytes of one round of chunks; return where the next round begins."""
        members = []
        blocks = self._gather(stage, numbers)
        for number in numbers[self.comm.rank]:
            if self.agreement.interrupted():
                break
            self.logbook.turn_to(stage, number)
            try:
                members.append(stage.work(stage.chunk(number), *blocks(number)))
                self.logbook.done(stage, number, len(members[-1]))
            except Exception as error:
                self.agreement.record(error, f"stage {stage.name}, chunk {number}")
        self.logbook.wait("sizes of all ranks")
        soft_barrier(self.comm)
        size = sum(map(len, members))
        start = position + (self.comm.exscan(size) or 0)
        self._guarded(lambda: _write_members(descriptor, members, start), f"stage {stage.name}")
        return position + self.comm.allreduce(size)

    def _inputs(self, stage: Stage, planned: StagePlan, todo: Sequence[int]) -> Iterator[tuple[int, list]]:
        """Yield this rank's chunks with what their work reads; stop early where the ranks must agree."""
        # Taking pages anew costs time: only where the gaps that a chunk leaves in the heap might not fit in.
        tight = 2 * planned.peak > self.resources.memory
        for numbers in planned.rounds(stage, self.placed, todo):
            blocks = self._gather(stage, numbers)
            for number in numbers[self.comm.rank]:
                if self.agreement.interrupted():
                    break
                self.logbook.turn_to(stage, number)
                try:
                    found = blocks(number)
                except Exception as error:
                    self.agreement.record(error, f"stage {stage.name}, input of chunk {number}")
                    break
                yield number, found
                del found
                if tight:
                    give_back()
            # One round is let go before the next one comes.
            del blocks

    def _gather(self, stage: Stage, numbers: list[list[int]]):
        """Exchange what chunks `numbers` of each rank read from memory; return a reader of one chunk."""
        held: dict[tuple[str, Box], np.ndarray] = {}
        exchanged = exchanged_needs(stage, self.placed)
        if exchanged:
            self._agree()
        for need in exchanged:
            wanted = [gathered_boxes(stage, need, theirs) for theirs in numbers]
            found = self.memory.collect(need.array.name, wanted)
            held.update(
                ((need.array.name, box), block)
                for box, block in zip(wanted[self.comm.rank], found, strict=True)
            )
            del found
            # What was packed and received is free; the work may not fit into the gaps.
            give_back()

        def read(number: int) -> list:
            return [
                need.join([self._read(held, need, box) for box in need.boxes(stage.chunk(number))])
                for need in stage.reads
            ]

        return read

    def _read(self, held: dict, need: Need, box: Box) -> np.ndarray:
        name = need.array.name
        if (name, box) in held:
            return held[name, box]
        if name in self.files:
            try:
                return self.files[name].read(box)
            except FileEnds as error:
                raise BadInput(f"{error}: it was cut while the run read it; copy it again") from None
        wanted = [[]] * self.comm.size
        wanted[self.comm.rank] = [box]
        return self.staged.collect(name, wanted)[0]

    def _keep(
        self,
        stage: Stage,
        planned: StagePlan,
        number: int,
        made: Sequence[np.ndarray | list[np.ndarray]],
        provenance: Provenance,
    ) -> None:
        """Put the blocks of a finished chunk where the plan wants them, and mark it."""
        blocks = []
        for output, placement, result in zip(stage.targets, planned.placements, made, strict=True):
            pieces = result if isinstance(output, Pieces) else (result,)
            for block_number, piece in zip(placement.table.of_chunk(number), pieces, strict=True):
                block = np.ascontiguousarray(piece, dtype=placement.array.dtype)
                if placement.staged:
                    self.staged.write(placement.array.name, block_number, block)
                if placement.memory:
                    self.memory.write(placement.array.name, block_number, block)
                blocks.append(block)
        tables = [placement.table for placement in planned.placements]
        self.checkpoint.add(stage, number, provenance, tables, blocks)
        self.logbook.done(stage, number, sum(block.nbytes for block in blocks))

    def _create(self, planned: StagePlan) -> None:
        for placement in planned.placements:
            array = placement.array
            if placement.memory:
                self.memory.create(array, placement.boxes, placement.owners)
            if placement.staged and array.name not in self.staged:
                self.staged.create(array, placement.boxes, placement.owners)
            elif placement.staged:
                self.staged.assign(array.name, placement.owners)
            self.placed[array.name] = placement

    def _done_before(self, stage: Stage, sizes: StageSizes, provenance: Provenance) -> set[int]:
        """Return the chunks that an earlier run marked, and whose bytes are what it wrote. Collective."""
        done = self.checkpoint.done_before(
            stage, provenance, sizes.tables, lambda number: self.logbook.turn_to(stage, number)
        )
        altered = len(self.checkpoint.marked(stage, provenance)) - len(done)
        if altered:
            self._warn([f"stage {stage.name}: {altered} chunks were altered since they were marked; redone"])
        return done

    def _restore(self, planned: StagePlan, done: set[int]) -> None:
        """Bring the blocks of chunks that are done from the staged file to their owners' memory."""
        for placement in planned.placements:
            if placement.memory and done:
                for number in planned.partition.owned(self.comm.rank):
                    for block in placement.table.of_chunk(number) if number in done else ():
                        name = placement.array.name
                        self.memory.write(name, block, self.staged.read(name, block))

    def _rows_on_root(self, stage: Reduce) -> np.ndarray | None:
        """Return the whole of the array that `stage` wrote on rank 0, None on the others. Collective."""
        array = stage.rows
        wanted = [[tuple((0, n) for n in array.shape)]] + [[]] * (self.comm.size - 1)
        store = self.memory if array.name in self.memory else self.staged
        return next(iter(store.collect(array.name, wanted)), None)

    def _drop(self, name: str) -> None:
        self.memory.drop(name)
        if self.staged is not None:
            self.staged.drop(name)
        del self.placed[name]

    def _exchange(self, blocks, boxes, owners, wanted, dtype):
        self.logbook.wait("an exchange")
        return redistribute(blocks, boxes, owners, wanted, dtype, self.comm, self.traffic)

    def _warn(self, warnings: Iterable[str]) -> None:
        if log.isEnabledFor(logging.WARNING):
            for warning in warnings:
                say(self.comm, f"mpiimg: {self.options.label}warning: {warning}")
        self.warnings += warnings

    def _guarded(self, function, where: str) -> None:
        try:
            function()
        except Exception as error:
            self.agreement.record(error, where)

    def _agree(self) -> None:
        self.logbook.wait("waits for the other ranks")
        self.agreement.agree()

    def _time(self, stage: Stage, planned: StagePlan, started, cpu, before, done: int) -> None:
        """Note what a stage took, over all ranks. Collective."""
        sent, messages = self.traffic.bytes_sent - before.bytes_sent, self.traffic.messages - before.messages
        sums = {"cpu_seconds": time.process_time() - cpu, "bytes_moved": sent, "messages": messages}
        most = {
            "seconds": time.monotonic() - started,
            "bytes_per_rank": sent,
            "messages_per_rank": messages,
            "exchanges": self.traffic.exchanges - before.exchanges,
            "peak_per_rank": anonymous_peak(),
            "peak_rss_per_rank": resident_peak(),
        }
        found = over_ranks(self.comm, sums, most)
        entry = {"stage": stage.name, "chunks": len(stage.grid), "resumed_chunks": done}
        entry |= {
            name: round(number, 4) if name.endswith("seconds") else int(number)
            for name, number in found.items()
        }
        entry["planned"] = predicted(planned)
        self.timings.append(entry)
        if log.isEnabledFor(logging.INFO):
            say(
                self.comm,
                f"mpiimg: {self.options.label}{stage.name:<18} {entry['chunks']:6d} chunks "
                f"{entry['seconds']:8.2f} s "
                f"{entry['cpu_seconds']:8.2f} CPU-s {entry['bytes_moved'] / 1e6:9.1f} MB moved",
            )


def _row(stage: Reduce, values: Any) -> np.ndarray:
    """Return what the work on a chunk returned as a row of the array of rows, (1, *shape)."""
    shape, dtype = stage.row
    return np.asarray(values, dtype=dtype).reshape(1, *shape)


def _write_members(descriptor: int, members: Sequence[bytes], position: int) -> None:
    for member in members:
        write_fully(descriptor, member, position)
        position += len(member)
