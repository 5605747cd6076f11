"""How ranks agree: one decides for all, failures and signals end the work of all together."""

from __future__ import annotations

import contextlib
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from mpiimg.engine.containment import ends_run, place_of
from mpiimg.engine.mpi.waiting import soft_barrier, wait_until
from mpiimg.engine.system_errors import answer
from mpiimg.errors import BadInput, DamagedData, RunFailed, RunStopped

#: Tag of the message by which a rank warns the others that it cannot go on.
WARNING_TAG = 75


def on_root(comm, function: Callable, *arguments, where: str | None = None) -> Any:
    """Call `function` on rank 0 and return its result on every rank. Collective.

    Raises
    ------
    BadInput, DamagedData
        The function raised it.
    RunFailed
        The function raised it, or anything else.
    """
    outcome = None
    if comm.rank == 0:
        try:
            outcome = function(*arguments), None
        except (BadInput, DamagedData, RunFailed) as error:
            outcome = None, error
        except Exception as error:
            outcome = (
                None,
                failure(comm, where or getattr(function, "__name__", "start"), error),
            )
    soft_barrier(comm)
    result, error = comm.bcast(outcome)
    if error is not None:
        raise error
    return result


def failure(comm, where: str, error: Exception) -> RunFailed:
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

    A rank that fails, or is asked by a signal to stop, warns the others with
    an empty message each; all look for one at every chunk boundary, where
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
        self._warned = False
        self._error: Exception | None = None
        self.stop_requested = False

    def record(self, error: Exception, where: str) -> None:
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
        """Say whether this rank should leave its chunks and agree."""
        if self._outer is not None and self._outer.interrupted():
            self.stop_requested = True
        if self.stop_requested:
            self._warn()
        return self._error is not None or self.stop_requested or self._comm.Iprobe(tag=WARNING_TAG)

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
        if self._outer is not None and self._outer.interrupted():
            self.stop_requested = True
        state = self.GO
        if self._error is not None:
            state = self.FAIL
            if isinstance(self._error, BadInput | DamagedData):
                state = self.BAD if isinstance(self._error, BadInput) else self.DAMAGED
        elif self.stop_requested:
            state = self.STOP
        states = np.empty(self._comm.size, dtype=np.uint8)
        mine = np.array([2 * state + self._warned], dtype=np.uint8)
        wait_until(self._comm.Iallgather(mine, states).Test)
        for _ in range(int((states & 1).sum()) - self._warned):
            self._comm.recv(tag=WARNING_TAG)
        self._warned = False
        worst = int(states.max()) >> 1
        if worst == self.GO:
            return
        if worst == self.STOP:
            raise RunStopped
        speaker = int(np.argmax(states >> 1 == worst))
        raise self._comm.bcast(self._error, speaker)

    def wait(self) -> None:
        """Wait until all ranks are here, telling them meanwhile of a request to stop. Collective."""
        arrived = self._comm.Ibarrier()

        def ready() -> bool:
            self.interrupted()
            return arrived.Test()

        wait_until(ready)

    def close(self) -> None:
        """Release the communicator, once all ranks have agreed. Collective."""
        if self._comm is not None:
            self._comm.Free()
            self._comm = None

    def _warn(self) -> None:
        # A rank that was warned need not warn: whoever warned it has told all.
        if not self._warned and not self._comm.Iprobe(tag=WARNING_TAG):
            self._warned = True
            for other in range(self._comm.size):
                if other != self._comm.rank:
                    self._comm.isend(None, other, WARNING_TAG)


@contextlib.contextmanager
def stop_on_signals(agreement: Agreement):
    """Turn SIGTERM, SIGUSR1 and the first SIGINT into a request to stop at the next chunk boundary.

    After any of them SIGINT ends the process at once, wherever it is: in a
    kernel or a collective no handler of Python's would run.
    """

    def request(number, frame):
        agreement.request_stop()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
