"""Groups of ranks that each agree among themselves, and end together: a stop or an error reaches all."""

from __future__ import annotations

import time

import pytest
from support.ranks import COMM

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


def stopped(agreement, seconds=30):
    """Go from chunk to chunk until the ranks of this group stop."""
    deadline = time.monotonic() + seconds
    while not agreement.interrupted():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with pytest.raises(RunStopped):
        agreement.agree()


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


def test_groups_that_nothing_stops_go_on(groups):
    outer, inner = groups
    assert not inner.interrupted()
    inner.agree()
    outer.agree()
