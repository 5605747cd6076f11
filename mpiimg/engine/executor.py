"""The one executor: runs the stages of a recipe on all ranks, and marks what is done."""

from __future__ import annotations

import copy
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.engine.checkpoint import Checkpoint
from mpiimg.engine.containment import Containment
from mpiimg.engine.folders import Folders
from mpiimg.engine.forecast import StageSizes, stage_sizes
from mpiimg.engine.log.logbook import Logbook
from mpiimg.engine.log.show_plan import predicted
from mpiimg.engine.mpi.agreement import Agreement, on_root
from mpiimg.engine.mpi.memory import anonymous_peak, give_back, resident_peak, restart_peak
from mpiimg.engine.mpi.redistribute import Traffic, redistribute
from mpiimg.engine.mpi.runtime import over_ranks, say
from mpiimg.engine.mpi.stream import scatter_stream
from mpiimg.engine.needs import Chunk
from mpiimg.engine.placed import PlacedArrays
from mpiimg.engine.plan import Resources, StagePlan, plan_stage, still_read
from mpiimg.engine.provenance import RESULT_LIBRARIES, Lineage, Provenance, versions
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.record_index import RecordsOf
from mpiimg.engine.record_store import MadeRecord, RecordStore
from mpiimg.engine.recording import OutOfRoom, Recorder
from mpiimg.engine.rounds import Rounds
from mpiimg.engine.stage import Compute, Files, PlacedSink, Records, Reduce, Sink, Stage, Stages, Stream
from mpiimg.engine.stores import StagedStore
from mpiimg.engine.writing import ResultFiles
from mpiimg.errors import BadInput
from mpiimg.version import __version__

log = logging.getLogger("mpiimg")


class Executor:
    """Runs the stages of a recipe one after the other, on all ranks.

    Parameters
    ----------
    recipe : Recipe
    comm : communicator
        Of the ranks.
    options : Options
    folders : Folders
        Of the run.
    cpu_target : str
        The CPU that kernels are compiled for.
    resources : Resources
    outer : Agreement, optional
        Of the whole job, where `comm` is one group of its ranks.
    """

    def __init__(
        self,
        recipe: Recipe,
        comm,
        options: Options,
        folders: Folders,
        cpu_target: str,
        resources: Resources,
        outer: Agreement | None = None,
    ):
        self.recipe, self.comm, self.options = recipe, comm, options
        self.work = folders.work
        self.state: Any = None
        self.left_out = dict(recipe.left_out)
        self.traffic = Traffic()
        self.agreement = Agreement(comm, outer)
        self.containment = Containment(comm, recipe.faults)
        self.logbook = Logbook(comm, options, folders.events)
        self.resources = resources
        staged = None if options.in_memory else StagedStore(folders.staging, comm)
        records = None if options.in_memory else RecordStore(folders.staging, comm.rank)
        self.arrays = PlacedArrays(comm, recipe.inputs, staged, records, self._exchange)
        self.lineage = Lineage(recipe.inputs, cpu_target, recipe.packages)
        self.checkpoint = Checkpoint(comm, self.work / "journal", staged, records, options.sync_every)
        self.recorder = Recorder(comm, records, self.arrays, self.checkpoint, resources.memory)
        self._rounds = Rounds(comm, self.arrays, self.agreement, self.logbook, resources.memory)
        self.files = ResultFiles(comm, self.work, self._rounds, self.containment)
        self.timings: list[dict] = []
        self.warnings = list(recipe.warnings)
        self.notes: list[str] = []
        self._stages = recipe.expected
        self._cpu_target = cpu_target

    def execute(self) -> None:
        """Run every stage of the recipe. Collective."""
        warnings, self.warnings = self.warnings, []
        self._note(self.recipe.notes)
        self._warn(warnings)
        if not self.options.in_memory:
            self.checkpoint.load()
            self._rounds.guarded(self.checkpoint.open, "journal")
            self._rounds.agree()
        stages, value = self.recipe.stages(), None
        try:
            while True:
                value = self._run(self._next(stages, value))
        except StopIteration as end:
            self.state = end.value

    def collect(self, function: Callable[[PlacedArrays], object]) -> None:
        """Call a function with the arrays as they are when all stages have run. Collective.

        What it raises ends the work of all ranks, as an error in a chunk does. It may call what is collective
        of the arrays, on every rank alike.
        """
        self._rounds.guarded(lambda: function(self.arrays), "collecting results")
        self._rounds.agree()

    def _next(self, stages: Stages, value: Any) -> Stage:
        """Return the next stage; what a step raises between stages it raises on all ranks alike."""
        try:
            return stages.send(value)
        except (BadInput, StopIteration):
            raise
        except Exception as error:
            self.agreement.record(error, "between stages")
            self._rounds.agree()
            raise

    def report(self) -> dict:
        """Return what run.json says of the run so far. Collective."""
        return {
            "tool": self.recipe.tool,
            "run": self.options.run_id,
            "version": __version__,
            "started_in": os.getcwd(),
            "command": self.options.command,
            **({"script": dict(self.options.script)} if self.options.script else {}),
            "parameters": dict(self.recipe.parameters),
            "inputs": dict(self.recipe.sources),
            "warnings": self.warnings,
            "notes": self.notes,
            "left_out": self.left_out,
            "faults": [fault.as_record() for fault in self.containment.faults],
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
            **self.recipe.said,
            "stages": self.timings,
        }

    def close(self) -> None:
        """Release everything; what is done is marked. All ranks have agreed to end. Collective."""
        self.checkpoint.close()
        self.arrays.close()
        self.agreement.close()
        self.abandon()
        # A group of ranks goes on with the next scan.
        give_back()

    def abandon(self) -> None:
        """Release what this rank can release alone, after an error inside an exchange."""
        self.checkpoint.close()
        self.arrays.abandon()

    def _run(self, stage: Stage) -> Any:
        """Run a stage; return the value of a reduction, else which chunks failed, if any. Collective."""
        started, before = time.monotonic(), copy.copy(self.traffic)
        cpu = time.process_time()
        names = still_read(self._stages, stage.name, self.recipe.kept)
        self.arrays.drop_others(names | set(self.recipe.staged_outputs))
        restart_peak()
        sizes = stage_sizes(stage)
        if isinstance(stage, Sink | PlacedSink | Files):
            done, value = set(), None
            planned = self._turn_to(stage, sizes, range(len(stage.grid)))
            self.files.write(stage, planned)
            lost = self._leave_out(stage)
            value = lost or None
            on_root(self.comm, self.files.check, stage, lost, where=f"stage {stage.name}")
        else:
            provenance = self.lineage.provenance(stage)
            done = self._done_before(stage, sizes, provenance)
            todo = [n for n in range(len(stage.grid)) if n not in done]
            planned = self._turn_to(stage, sizes, todo)
            self._rounds.guarded(
                lambda: self.arrays.create(planned.placements), f"stage {stage.name}, staged file"
            )
            self._rounds.agree()
            self._rounds.guarded(lambda: self._restore(planned, done), f"stage {stage.name}, marked chunks")
            self._rounds.agree()
            if isinstance(stage, Stream):
                self._run_stream(stage, planned, todo, provenance)
            else:
                if isinstance(stage, Records):
                    self.recorder.begin(stage, planned)
                self._run_chunks(stage, planned, todo, provenance)
            self._rounds.guarded(self.checkpoint.sync, f"stage {stage.name}, marks")
            # The other ranks' blocks are in the staged files only once all have agreed.
            self._rounds.agree()
            names, tables = [array.name for array in stage.arrays], sizes.tables
            unusable = self.checkpoint.end_stage(stage)
            value = self._leave_out(stage) or None
            if isinstance(stage, Reduce):
                value = self._finish(stage)
            elif isinstance(stage, Records):
                value = self.recorder.end(stage, planned, value or {})
                names, tables = [stage.records], [self.arrays.placements[stage.records].table]
            self.lineage.add(names, provenance, tables, unusable)
        self.logbook.stage_done(stage)
        self._time(stage, planned, started, cpu, before, len(done))
        return value

    def _turn_to(self, stage: Stage, sizes: StageSizes, todo: Sequence[int]) -> StagePlan:
        """Plan a stage from what is in memory now, and make the room that it needs."""
        planned = plan_stage(stage, sizes, self.resources, self.arrays.placements, todo)
        self.arrays.spill(planned.spilled)
        if planned.peak > self.resources.memory and any(isinstance(one, RecordsOf) for one in stage.reads):
            # Of records nobody knew how large they would be: what can be done is done.
            allowed, needed = self.resources.memory >> 20, planned.peak >> 20
            self._warn(
                [
                    f"stage {stage.name}: the records that a chunk reads may take {needed} MB with all else, "
                    f"and a rank may use {allowed}; members of groups are read one by one by .reduce"
                ]
            )
        self.logbook.stage(stage, planned, todo)
        return planned

    def _finish(self, stage: Reduce) -> Any:
        """Let a reduction draw a value from the rows of all chunks. Collective."""
        rows = self.arrays.rows_on_root(stage)
        self.logbook.wait("the end")
        # One rank decides for all: a library may round differently on another node.
        end = on_root(self.comm, lambda: stage.finish(rows()), where=f"stage {stage.name}, end")
        self._note(end.notes)
        self._warn(end.warnings)
        self.left_out |= end.left_out
        return end.value

    def _run_chunks(
        self,
        stage: Compute | Reduce | Records,
        planned: StagePlan,
        todo: Sequence[int],
        provenance: Provenance,
    ) -> None:
        reduces = isinstance(stage, Reduce)
        for number, blocks in self._rounds.chunks(stage, planned, todo):
            chunk = stage.chunk(number)
            try:
                results, usable = self._results(stage, chunk, blocks)
                if reduces:
                    results = (_row(stage, results),)
                self._keep(stage, planned, number, results, provenance, usable)
            except Exception as error:
                self.agreement.record(error, f"stage {stage.name}, chunk {number} {chunk.bounds}")
            # What a chunk reads is let go before the next one reads.
            del blocks
        self._rounds.agree()

    def _results(
        self, stage: Compute | Reduce | Records, chunk: Chunk, blocks: Sequence[Any]
    ) -> tuple[Any, bool]:
        """Return what the work on a chunk returns, and True; what stands for a unit that fails, and False."""
        try:
            if isinstance(stage, Records):
                return self.logbook.at_work(self._take, stage, chunk, blocks), True
            return self.logbook.at_work(stage.work, chunk, *blocks), True
        except OutOfRoom as error:
            raise BadInput(str(error)) from None
        except Exception as error:
            if not self.containment.contain(stage, chunk.number, error):
                raise
        if isinstance(stage, Records):
            return [], False
        return stage.without if isinstance(stage, Reduce) else stage.without(chunk), False

    def _take(self, stage: Records, chunk: Chunk, blocks: Sequence[Any]) -> list[MadeRecord]:
        return self.recorder.take(stage, chunk.number, stage.work(chunk, *blocks))

    def _leave_out(self, stage: Stage) -> Mapping[int, str]:
        """Leave out the units that failed in a stage; return its chunks that did, and why. Collective."""
        before = len(self.containment.faults)
        lost = self.containment.end_stage(stage)
        new = self.containment.faults[before:]
        self._warn(f"left out: {fault.reason}" for fault in new)
        self.left_out |= {fault.unit: fault.reason for fault in new if fault.unit not in self.left_out}
        return lost

    def _run_stream(
        self, stage: Stream, planned: StagePlan, todo: Sequence[int], provenance: Provenance
    ) -> None:
        """Read a stream on one rank and hand each block to its owner."""
        boxes = planned.placements[0].boxes
        shapes = boxes[..., 1] - boxes[..., 0]

        def blocks():
            stream = stage.blocks()
            for number in range(len(stage.grid)):
                self.logbook.turn_to(stage, number)
                block = next(stream, None)
                if block is None:
                    return
                self.checkpoint.check_input(stage, number, provenance, block)
                yield block
                self.logbook.streamed(number + 1)

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
        self._rounds.agree()

    def _keep(
        self,
        stage: Stage,
        planned: StagePlan,
        number: int,
        results: Sequence[np.ndarray | list[np.ndarray] | MadeRecord],
        provenance: Provenance,
        usable: bool = True,
    ) -> None:
        """Put the blocks of a finished chunk where the plan wants them, and mark it if it is `usable`."""
        if isinstance(stage, Records):
            nbytes = self.recorder.keep(stage, number, results, provenance, usable)
            return self.logbook.done(stage, number, nbytes)
        blocks, sums = self.arrays.put(stage, planned.placements, number, results)
        tables = [placement.table for placement in planned.placements]
        self.checkpoint.add(stage, number, provenance, tables, blocks, sums, usable)
        self.logbook.done(stage, number, sum(block.nbytes for block in blocks))

    def _done_before(self, stage: Stage, sizes: StageSizes, provenance: Provenance) -> set[int]:
        """Return the chunks that an earlier run marked, and whose bytes are what it wrote. Collective."""

        def between(number):
            self.logbook.turn_to(stage, number)

        if isinstance(stage, Records):
            done, altered = self.recorder.done_before(stage, provenance, between)
        else:
            done = self.checkpoint.done_before(stage, provenance, sizes.tables, between)
            altered = len(self.checkpoint.marked(stage, provenance)) - len(done)
        if altered:
            self._warn([f"stage {stage.name}: {altered} chunks were altered since they were marked; redone"])
        return done

    def _restore(self, planned: StagePlan, done: set[int]) -> None:
        """Bring the blocks of chunks that are done from the staged file to their owners' memory."""
        own = [number for number in planned.partition.owned(self.comm.rank) if number in done]
        self.arrays.restore(planned.placements, own)

    def _exchange(self, blocks, boxes, owners, requests, dtype):
        self.logbook.wait("an exchange")
        return redistribute(blocks, boxes, owners, requests, dtype, self.comm, self.traffic)

    def _warn(self, warnings: Iterable[str]) -> None:
        warnings = list(warnings)
        self._say(f"warning: {warning}" for warning in warnings)
        self.warnings += warnings

    def _note(self, notes: Iterable[str]) -> None:
        self._say(notes)
        self.notes += notes

    def _say(self, lines: Iterable[str]) -> None:
        if log.isEnabledFor(logging.WARNING):
            for line in lines:
                say(self.comm, f"mpiimg: {self.options.label}{line}")

    def _time(self, stage: Stage, planned: StagePlan, started, cpu, before, done: int) -> None:
        """Note what a stage took, over all ranks. Collective."""
        sent, messages = self.traffic.bytes_sent - before.bytes_sent, self.traffic.messages - before.messages
        sums = {"cpu_seconds": time.process_time() - cpu, "bytes_moved": sent, "messages": messages}
        maxima = {
            "seconds": time.monotonic() - started,
            "bytes_per_rank": sent,
            "messages_per_rank": messages,
            "exchanges": self.traffic.exchanges - before.exchanges,
            "peak_per_rank": anonymous_peak(),
            "peak_rss_per_rank": resident_peak(),
        }
        numbers = over_ranks(self.comm, sums, maxima)
        entry = {"stage": stage.name, "chunks": len(stage.grid), "resumed_chunks": done}
        entry |= {
            name: round(number, 4) if name.endswith("seconds") else int(number)
            for name, number in numbers.items()
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
