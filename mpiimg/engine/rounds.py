"""What the chunks of a stage read, round by round, and how ranks that work on them agree meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mpiimg.engine.log.logbook import Logbook
from mpiimg.engine.mpi.agreement import Agreement
from mpiimg.engine.mpi.memory import give_back
from mpiimg.engine.placed import PlacedArrays
from mpiimg.engine.plan import StagePlan
from mpiimg.engine.stage import Stage


class Rounds:
    """The rounds of the stages of a run: what all ranks exchange at once, and work on before they meet again.

    Parameters
    ----------
    comm : communicator
        Of the ranks.
    arrays : PlacedArrays
        That chunks read.
    agreement : Agreement
    logbook : Logbook
    memory : int
        Bytes that this rank may use.
    """

    def __init__(self, comm, arrays: PlacedArrays, agreement: Agreement, logbook: Logbook, memory: int):
        self.agreement, self.logbook = agreement, logbook
        self._rank, self._arrays, self._memory = comm.rank, arrays, memory

    def guarded(self, function: Callable[[], object], where: str) -> None:
        """Call a function; what it raises is recorded, for the ranks to agree on."""
        try:
            function()
        except Exception as error:
            self.agreement.record(error, where)

    def agree(self) -> None:
        """Go on if every rank can; else raise the same exception on all. Collective."""
        self.logbook.wait("waits for the other ranks")
        self.agreement.agree()

    def planned(self, stage: Stage, planned: StagePlan, todo: Sequence[int]) -> Iterator[list[list[int]]]:
        """Yield the chunks of each rank, round by round."""
        return planned.rounds(stage, self._arrays.placements, todo)

    def chunks(self, stage: Stage, planned: StagePlan, todo: Sequence[int]) -> Iterator[tuple[int, list]]:
        """Yield this rank's chunks with what their work reads; stop early where the ranks must agree."""
        # Taking pages anew costs time: only where the gaps that a chunk leaves in the heap might not fit in.
        tight = 2 * planned.peak > self._memory
        for numbers in self.planned(stage, planned, todo):
            yield from self.one(stage, numbers, tight)

    def one(
        self, stage: Stage, numbers: Sequence[Sequence[int]], tight: bool = False
    ) -> Iterator[tuple[int, list]]:
        """Yield this rank's chunks of one round with what their work reads; as :meth:`chunks`. Collective.

        Parameters
        ----------
        stage : Stage
        numbers : sequence of sequence of int
            The chunks of each rank.
        tight : bool
            Give memory back to the system after each chunk.
        """
        if self._arrays.is_exchanged(stage):
            self.agree()
        # It holds what was exchanged, and is let go with this generator, before the next round comes.
        read = self._arrays.gather(stage, numbers)
        for number in numbers[self._rank]:
            if self.agreement.interrupted():
                return
            self.logbook.turn_to(stage, number)
            try:
                inputs = read(number)
            except Exception as error:
                self.agreement.record(error, f"stage {stage.name}, input of chunk {number}")
                return
            yield number, inputs
            del inputs
            if tight:
                give_back()
