"""Groups of ranks that each agree among themselves, and end together: a stop or an error reaches all."""

from __future__ import annotations

import time

import pytest
from support.ranks import COMM

from mpiimg.engine.mpi import agreement
from mpiimg.engine.mpi.agreement import Agreement
from mpiimg.errors import BadInput, RunFailed, RunStopped

pytestmark = pytest.mark.ranks


@pytest.fixture
def groups():
    """The agreement of all ranks, and that of one of two groups (one where there is but one rank)."""
    group = COMM.Split(COMM.rank * 2 // COMM.size, COMM.rank)
    outer = Agreement(COMM)
    inner = Agreement(group, outer)
    yield outer, inner
    inner.close()
    outer.close()
    group.Free()


def stopped(group, seconds=30):
    """Go from chunk to chunk until the ranks of this group stop."""
    deadline = time.monotonic() + seconds
    while not group.interrupted():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with pytest.raises(RunStopped):
        group.agree()


def test_a_signal_on_one_rank_stops_all_groups(groups):
    outer, inner = groups
    if COMM.rank == COMM.size - 1:
        inner.request_stop()
    stopped(inner)
    with pytest.raises(RunStopped):
        outer.agree()


@pytest.mark.parametrize("error", [BadInput("sub-01: no"), RunFailed("rank 0 on here, stage denoise: why")])
def test_an_error_that_ends_the_job_is_said_by_all_ranks_alike(groups, error):
    """The group that fails leaves its chunks by itself; the others are stopped."""
    outer, inner = groups
    if COMM.rank == 0:
        outer.record(error, "cohort")
    stopped(inner)
    with pytest.raises(type(error)) as caught:
        outer.agree()
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 66, 67, 4096, 5000])
def test_a_warning_reaches_all_over_few_ranks_and_in_few_messages(size):
    """Counted for all ranks that warn at once, as when SLURM signals each: a rank has sent one to each."""
    beside = [agreement.neighbours(rank, size) for rank in range(size)]
    assert sum(map(len, beside)) == 2 * (size - 1)
    assert max(map(len, beside)) <= agreement.FAN_OUT + 1
    assert all(rank in beside[other] for rank in range(size) for other in beside[rank])
    for first in {0, size // 2, size - 1}:
        reached, newly, hops = {first}, {first}, 0
        while len(reached) < size:
            newly = {other for rank in newly for other in beside[rank]} - reached
            assert newly
            reached |= newly
            hops += 1
        assert hops <= (4 if size <= 4161 else 6)


@pytest.mark.parametrize("fan_out", [1, 64])
@pytest.mark.parametrize("who", ["all", "first", "last"])
def test_a_signal_costs_two_messages_per_rank_and_none_is_left(monkeypatch, fan_out, who):
    """Passed on along a chain, where each rank but the ends stands between two, and to all from one."""
    monkeypatch.setattr(agreement, "FAN_OUT", fan_out)
    asked = {"all": range(COMM.size), "first": [0], "last": [COMM.size - 1]}[who]
    one = agreement.Agreement(COMM)
    for _ in range(3):
        before = one.warnings
        COMM.Barrier()  # lest a warning of this turn come before another rank has counted
        if COMM.rank in asked:
            one.request_stop()
        stopped(one)
        assert COMM.allreduce(one.warnings - before) <= 2 * (COMM.size - 1)
        one.stop_requested = False
        assert not COMM.allreduce(one._comm.Iprobe())
    one.agree()
    one.close()


def test_groups_that_nothing_stops_go_on(groups):
    outer, inner = groups
    assert not inner.interrupted()
    inner.agree()
    outer.agree()
