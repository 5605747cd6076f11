"""How ranks agree: one decides for all, failures and signals end the work of all together."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from mpiimg.engine.containment import ends_run, place_of
from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.waiting import soft_barrier, wait_until
from mpiimg.engine.system_errors import answer
from mpiimg.errors import WORK_ERRORS, BadInput, DamagedData, RunFailed, RunStopped

#: Tag of the message by which a rank warns the others that it cannot go on.
WARNING_TAG = 75

#: Ranks that one rank warns at most, beside the one that stands above it.
FAN_OUT = 64


def neighbours(rank: int, size: int) -> list[int]:
    """Return the ranks that a rank warns: those beside it in a tree of all, in which warnings are passed on.

    Where all ranks warn at once, as after a signal to each, 2 (size - 1) messages are sent. A warning of one
    rank gets to all others over four ranks at most, up to 4,161 of them.
    """
    above = [(rank - 1) // FAN_OUT] if rank else []
    first = rank * FAN_OUT + 1
    return [*above, *range(first, min(first + FAN_OUT, size))]


def on_root(comm, function: Callable, *arguments, where: str | None = None) -> Any:
    """Call `function` on rank 0 and return its result on every rank. Collective.

    Raises
    ------
    BadInput, RunStopped
        The function raised it.
    RunFailed
        The function raised it, or anything else.
    """
    outcome = None
    where = where or getattr(function, "__name__", "start")
    activity = where.strip("_<>").replace("_", " ")
    watchdog = lifetime().watchdog
    if comm.rank == 0:
        watchdog(activity)
        try:
            outcome = function(*arguments), None
        except (BadInput, RunStopped, RunFailed) as error:
            outcome = None, error
        except WORK_ERRORS as error:
            outcome = None, failure(comm, where, error)
    watchdog(f"{activity}, on rank 0", waits=True)
    soft_barrier(comm)
    result, error = comm.bcast(outcome)
    watchdog(f"what comes after {activity}")
    if error is not None:
        raise error
    return result


def safe_point(comm) -> None:
    """Stop here where a signal has asked any rank for it, before anything has begun. Collective.

    Raises
    ------
    RunStopped
        It has.
    """
    life = lifetime()
    life.watchdog("whether a signal has come", waits=True)
    soft_barrier(comm)
    if any(comm.allgather(life.stop.requested)):
        life.stop.look_at_chunks()  # and ends here
        raise RunStopped(life.how_to_begin_anew)


def failure(comm, where: str, error: BaseException) -> RunFailed:
    """Return what all ranks raise where one has raised `error`: with rank, host, place and traceback.

    What the system refused, as on a full disk, is said in one line; the traceback is among the details.
    """
    if isinstance(error, RunFailed):
        return error
    text = "".join(traceback.format_exception(error)).rstrip()
    at, line = f"rank {comm.rank} on {socket.gethostname()}, {where}:", answer(error)
    report = f"{at} {line}" if line else f"{at}\n{text}"
    return RunFailed(report, place_of(error), ends_run(error), text if line else "")


class Agreement:
    """What ranks must know of each other before they exchange data or go on.

    A rank that fails, or is asked by a signal to stop, warns its :func:`neighbours` with
    an empty message each, and they theirs; all look for one at every chunk boundary, where
    that costs nothing, and meet in :meth:`agree` before the next exchange.
    Nobody is left waiting in a collective, and all unwind together.

    Parameters
    ----------
    comm : communicator
        Of the ranks that agree.
    outer : Agreement, optional
        Of the whole job, where they are one group of it: what ends another group stops this one.
    """

    GO, STOP, DAMAGED, BAD, FAIL = range(5)

    def __init__(self, comm, outer: Agreement | None = None):
        self._comm = comm.Dup()
        self._outer = outer
        self._neighbours = neighbours(comm.rank, comm.size)
        self._sent: list = []
        self._error: Exception | None = None
        self.stop_requested = False
        #: Messages that this rank has sent to warn others.
        self.warnings = 0

    def record(self, error: BaseException, where: str) -> None:
        """Remember that this rank failed, and warn the others."""
        if self._error is None:
            # What a group has agreed on is a report already.
            self._error = (
                type(error)(str(error))
                if isinstance(error, BadInput | DamagedData)
                else failure(self._comm, where, error)
            )
        self._warn()

    def request_stop(self) -> None:
        """Ask all ranks to stop, those of other groups too; what a signal does."""
        self.stop_requested = True
        if self._outer is not None:
            self._outer.request_stop()

    def interrupted(self) -> bool:
        """Say whether this rank should leave its chunks and agree; warn the others if so."""
        if lifetime().stop.requested or (self._outer is not None and self._outer.interrupted()):
            self.stop_requested = True
        leaves = self._error is not None or self.stop_requested or self._comm.Iprobe(tag=WARNING_TAG)
        if leaves:
            self._warn()
        return leaves

    def agree(self) -> None:
        """Go on if every rank can; else raise the same exception on all. Collective.

        Raises
        ------
        BadInput
            A rank met input that cannot be used.
        DamagedData
            A rank read staged bytes that are not what was written.
        RunFailed
            A rank raised anything else.
        RunStopped
            A signal asked for it.
        """
        self.wait()
        # All are here, and nobody warns from now on: so all know which messages there are to receive.
        state = self.GO
        if self._error is not None:
            state = self.FAIL
            if isinstance(self._error, BadInput | DamagedData):
                state = self.BAD if isinstance(self._error, BadInput) else self.DAMAGED
        elif self.stop_requested:
            state = self.STOP
        states = np.empty(self._comm.size, dtype=np.uint8)
        mine = np.array([2 * state + bool(self._sent)], dtype=np.uint8)
        wait_until(self._comm.Iallgather(mine, states).Test)
        for other in self._neighbours:
            if states[other] & 1:
                self._comm.Recv(bytearray(), other, WARNING_TAG)
        for request in self._sent:
            request.Wait()
        self._sent.clear()
        worst = int(states.max()) >> 1
        if worst == self.GO:
            return
        if worst == self.STOP:
            lifetime().stop.look_at_chunks()  # and this was one
            raise RunStopped
        speaker = int(np.argmax(states >> 1 == worst))
        raise self._comm.bcast(self._error, speaker)

    def wait(self) -> None:
        """Wait until all ranks are here, telling them meanwhile of a request to stop. Collective."""
        self.interrupted()
        soft_barrier(self._comm, self.interrupted)

    def close(self) -> None:
        """Release the communicator, once all ranks have agreed. Collective."""
        if self._comm is not None:
            self._comm.Free()
            self._comm = None

    def _warn(self) -> None:
        if not self._sent:
            self._sent = [self._comm.Isend(b"", other, WARNING_TAG) for other in self._neighbours]
            self.warnings += len(self._sent)
