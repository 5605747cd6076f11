"""Ranks that wait for long leave the core to others, and are not late for it."""

import itertools
import time

import pytest
from support.ranks import COMM, LAST

from mpiimg.engine.mpi import waiting


class Clock:
    """A clock on which every look takes a microsecond, and sleeping what it is told."""

    def __init__(self):
        self.now = self.slept = 0.0

    def monotonic(self):
        self.now += 1e-6
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds


@pytest.mark.parametrize("length", [0.01, 1.0, 100.0])
def test_a_long_wait_is_slept_and_ends_soon_after(monkeypatch, length):
    clock, looks = Clock(), itertools.count()
    monkeypatch.setattr(waiting, "time", clock)

    def ready():
        next(looks)
        return clock.now >= length

    waiting.wait_until(ready)
    assert clock.slept > 0.9 * length
    assert clock.now - length < waiting.LATENESS * length + 1e-3
    assert clock.now - length < waiting.LONGEST + 1e-3
    # Beside the looks of the first moment, one a sleep.
    assert next(looks) < 500 + length / waiting.LONGEST + 200


def test_a_short_wait_is_not_slept(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    waiting.wait_until(lambda: clock.now >= waiting.SPIN / 2)
    assert clock.slept == 0


@pytest.mark.ranks
def test_nobody_leaves_a_soft_barrier_before_the_last_has_come_nor_spins_there():
    # A barrier of MPI, so that all begin together.
    COMM.Barrier()
    if COMM.rank == LAST:
        time.sleep(0.4)
    came, cpu = time.monotonic(), time.process_time()
    waiting.soft_barrier(COMM)
    left, spent = time.monotonic(), time.process_time() - cpu
    assert left >= max(COMM.allgather(came)), "monotonic time is one for all processes of a machine"
    assert spent < 0.2
