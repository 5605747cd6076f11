"""Ranks compare their calls before each: whatever differs is an error of all, and names both places."""

from __future__ import annotations

import os
import threading
import time

import pytest
from support.ranks import COMM

from mpiimg.engine.mpi import rendezvous as meeting
from mpiimg.engine.mpi.rendezvous import END, Call, difference, rendezvous
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

# What is said of calls that differ.


def calls(*words, **others) -> list[Call]:
    """Calls by rank, each "kind digest site"."""
    return [Call(*one.split(), rank=rank, **others) for rank, one in enumerate(words)]


def ended(rank, why="left the script after mi.read at a.py:1", status=0) -> Call:
    return Call(END, "", "", 0, why, status, rank)


def test_the_few_are_told_from_the_many():
    said = difference(calls("write g a.py:1", "compute g a.py:2", "write g a.py:1"))
    assert type(said) is BadInput
    assert str(said) == (
        "rank 1 called mi.compute at a.py:2 where the others called mi.write at a.py:1: "
        "every rank must make the same calls in the same order"
    )


def test_of_two_ranks_each_is_named():
    said = str(difference(calls("write g a.py:1", "write g a.py:2")))
    assert said.startswith("rank 1 called mi.write at a.py:2 where rank 0 called mi.write at a.py:1: ")


def test_another_graph_is_told_from_another_call():
    said = str(difference(calls("write g a.py:1", "write g a.py:1", "write h a.py:1")))
    assert said == (
        "rank 2 called mi.write at a.py:1 with another graph than the others: "
        "every rank must read the same files and pass the same values"
    )


def test_many_ranks_are_counted():
    odd = ["compute g a.py:2"] * 9
    said = str(difference(calls(*odd, *["write g a.py:1"] * 10)))
    assert said.startswith(
        "ranks 0, 1, 2, 3 and 5 others called mi.compute at a.py:2 where the others called"
    )


def test_who_has_left_comes_first_and_its_failure_is_that_of_all():
    went_on = calls("write g a.py:1", "write g a.py:1", "write g a.py:1")
    said = difference([*went_on, ended(3)])
    assert type(said) is BadInput
    assert str(said).startswith(
        "rank 3 left the script after mi.read at a.py:1 where the others called mi.write at a.py:1: every"
    )
    why = "ended with ValueError: no at a.py:3"
    said = difference([*went_on, ended(3, why, Exit.FAILED)])
    assert type(said) is RunFailed
    assert str(said) == f"rank 3 {why} where the others called mi.write at a.py:1"
    assert type(difference([*went_on, ended(3, why, Exit.BAD_INPUT)])) is BadInput
    assert type(difference([*went_on, ended(3, why, Exit.STOPPED)])) is RunStopped


def test_an_error_that_is_known_is_not_told_of_as_another():
    again = Call(END, "", "", 0, "ended with BadInput: that", Exit.BAD_INPUT, 1, said="that")
    said = difference([*calls("write g a.py:1"), again])
    assert type(said) is BadInput and str(said) == "that"


def test_ranks_may_end_at_different_lines():
    assert (ended(0).message == ended(1, "called sys.exit() at a.py:9").message).all()


def test_a_place_has_the_same_name_on_all_nodes(monkeypatch):
    monkeypatch.setattr(meeting, "program", lambda: "/home/me/work/script.py")
    assert meeting.site_of("/home/me/work/script.py", 3) == "script.py:3"
    assert meeting.site_of("/home/me/work/steps/fit.py", 3) == "steps/fit.py:3"
    assert meeting.site_of("/opt/lib/python/tools/fit.py", 3) == "tools/fit.py:3"
    assert meeting.site_of("<stdin>", 3) == "<stdin>:3"


# Who may call.


def test_a_thread_is_refused():
    refused = []

    def call():
        try:
            rendezvous(None, "write", "g")
        except BadInput as error:
            refused.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert len(refused) == 1 and "called in a thread" in refused[0] and "test_rendezvous.py" in refused[0]


def test_a_process_that_was_forked_is_refused(monkeypatch):
    monkeypatch.setattr(meeting, "_process", os.getpid() + 1)
    with pytest.raises(BadInput, match="in a process that a rank has started"):
        rendezvous(None, "write", "g")


def test_one_rank_pays_some_microseconds():
    from mpi4py import MPI

    started = time.perf_counter()
    for _ in range(1000):
        rendezvous(MPI.COMM_SELF, "write", "g")
    assert time.perf_counter() - started < 0.5
    assert meeting.last_call().startswith("mi.write at engine/test_rendezvous.py:")


# Over ranks.


@pytest.fixture
def comm():
    """A communicator of all ranks, whose errors are gone with it."""
    made = COMM.Dup()
    yield made
    made.Free()


@pytest.mark.ranks
def test_equal_calls_go_on_in_turn_over_communicators_within_each_other(comm):
    group = comm.Split(comm.rank % 2)
    before = len(meeting._channels)
    for turn in range(3 + comm.rank % 2):
        rendezvous(group, "compute", str(turn))
    rendezvous(comm, "write", "g")
    rendezvous(group, "compute", "last")
    group.Free()
    # What goes with its communicator is not waited for at the end.
    assert len(meeting._channels) == before + (comm.size > 1)


@pytest.mark.ranks
def test_calls_that_differ_are_one_error_of_all_ranks_and_stay_so(comm):
    if comm.size == 1:
        rendezvous(comm, "write", "g")
        return
    rendezvous(comm, "read", "g")
    last = comm.rank == comm.size - 1
    with pytest.raises(BadInput) as caught:
        rendezvous(comm, "compute" if last else "write", "g")
    assert len(set(comm.allgather(str(caught.value)))) == 1
    assert f"rank {comm.size - 1} called mi.compute" in str(caught.value)
    if last:  # the others are not there
        with pytest.raises(BadInput, match=r"mi\.compute"):
            rendezvous(comm, "write", "g")


@pytest.mark.ranks
def test_whoever_is_late_is_waited_for(comm):
    if comm.rank == comm.size - 1:
        time.sleep(0.3)
    cpu = time.process_time()
    rendezvous(comm, "write", "g")
    assert time.process_time() - cpu < 0.15
