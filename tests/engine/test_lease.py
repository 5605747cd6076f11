"""Claims on scans: one owner at a time, none that dead processes keep, suspects after two deaths."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import subprocess
import sys
import time

import pytest

from mpiimg.engine import lease
from mpiimg.engine.lease import Kind, LeaseState
from mpiimg.engine.mpi import job
from mpiimg.engine.records import document_of, read_record, write_record


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "out" / "logs" / "sub-01"
    folder.mkdir(parents=True)
    return folder


def claimed(records, **owner) -> int:
    """Claim a scan as somebody else or, without `owner`, as this process."""
    return lease.acquire(
        records, lease.read_lease(records), {**lease.sign("run", 100.0), "lease": 100.0, **owner}
    )


#: What differs for a process that is on another machine.
ELSEWHERE = {"boot": "another", "host": "elsewhere", "machine": "another"}


def gone() -> dict:
    """Return the owner that a process was which has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = {"pid": process.pid, "started": lease._started(process.pid)}
    process.communicate(b"\n")
    return owner


def kind(records) -> Kind:
    return lease.read_lease(records).kind


def test_from_claim_to_end(records):
    assert lease.read_lease(records) == LeaseState(Kind.TO_DO)
    assert claimed(records) == 1
    state = lease.read_lease(records)
    assert (state.kind, state.number, state.deaths) == (Kind.IN_WORK, 1, 0)
    assert lease.owner_text(state.owner) == f"{os.uname().nodename}, process {os.getpid()}"
    lease.release(records, 1, Kind.FAILED, reason="why")
    state = lease.read_lease(records)
    assert (state.kind, state.end["reason"]) == (Kind.FAILED, "why")
    assert claimed(records) == 2
    lease.release(records, 2, Kind.STOPPED)
    assert kind(records) is Kind.STOPPED
    assert claimed(records) == 3
    lease.release(records, 3, Kind.DONE)
    assert kind(records) is Kind.DONE


def race(records, barrier, winners):
    state = lease.read_lease(records)
    barrier.wait()
    if lease.acquire(records, state, lease.sign("run", 0)):
        winners.put(os.getpid())
    barrier.wait()


def winner(race, folder) -> int:
    """Let eight processes race, and return the number of the one that won."""
    context = multiprocessing.get_context("fork")
    barrier, winners = context.Barrier(8), context.SimpleQueue()
    processes = [context.Process(target=race, args=(folder, barrier, winners)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first = winners.get()
    assert winners.empty()
    return first


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_reach_for_a_scan_one_gets_it(records, dead):
    """A new one as one that a dead process has left."""
    if dead:
        claimed(records, **gone())
    first = winner(race, records)
    assert lease.read_owner(records, 1 + dead)["pid"] == first


@pytest.mark.parametrize("done", [True, False])
def test_a_claim_that_the_file_system_says_has_failed(records, monkeypatch, done):
    """It may be there all the same, where a network file system has lost its answer."""
    replace = pathlib.Path.replace

    def failing(path, target):
        if target.name == "1" and not done:
            raise OSError("stale file handle")
        replace(path, target)
        if target.name == "1":
            raise OSError("no such file")

    monkeypatch.setattr(pathlib.Path, "replace", failing)
    if done:
        assert claimed(records) == 1
        assert kind(records) is Kind.IN_WORK
    else:
        with pytest.raises(OSError):
            claimed(records)
        assert list((records / "claims").iterdir()) == []


def test_two_deaths_make_a_suspect(records):
    claimed(records, **gone())
    assert lease.read_lease(records).deaths == 1
    assert kind(records) is Kind.DIED
    claimed(records)
    lease.release(records, 2, Kind.STOPPED)
    state = lease.read_lease(records)
    assert (state.kind, state.deaths) == (Kind.STOPPED, 1)
    claimed(records, **gone())
    state = lease.read_lease(records)
    assert (state.kind, state.deaths) == (Kind.SUSPECT, 2)
    assert claimed(records) == 4
    lease.release(records, 4, Kind.DONE)
    assert kind(records) is Kind.DONE


def test_a_process_that_nobody_waited_for_is_dead(records):
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    started = lease._started(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    claimed(records, pid=process.pid, started=started)
    assert kind(records) is Kind.DIED
    process.communicate()


def test_another_process_with_the_same_number_is_not_the_owner(records):
    claimed(records, started=1)
    assert kind(records) is Kind.DIED


def test_this_machine_was_started_anew(records):
    claimed(records, boot="another")
    assert kind(records) is Kind.DIED


SQUEUE = """#!/bin/sh
echo "$@" >> {asked}
case "$3" in
 1) echo 1.0; echo 1.batch ;;
 2) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1 ;;
 3) echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1 ;;
 4) echo 4 ;;
 6) echo 6_5.0; echo 6_5.batch; echo 6_61.0 ;;
esac
"""


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A squeue that knows four jobs: of 1 step 0 runs, 2 is over, at 3 it has no answer, 4 runs."""
    lease._slurm_runs.cache_clear()
    asked = tmp_path / "asked"
    (tmp_path / "squeue").write_text(SQUEUE.format(asked=asked))
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    yield asked
    lease._slurm_runs.cache_clear()


@pytest.mark.parametrize(
    ("number", "step", "expected"),
    [
        ("1", "0", Kind.IN_WORK),
        ("1", "1", Kind.DIED),
        ("2", "0", Kind.DIED),
        ("3", "0", Kind.IN_WORK),
        ("4", None, Kind.IN_WORK),
        ("5", None, Kind.DIED),
    ],
)
def test_slurm_is_asked_for_jobs_on_other_nodes(records, squeue, number, step, expected):
    claimed(records, **ELSEWHERE, job_id=number, step_id=step)
    assert kind(records) is expected
    assert kind(records) is expected
    assert len(squeue.read_text().splitlines()) == 1
    if expected is Kind.IN_WORK:
        assert lease.owner_text(lease.read_lease(records).owner).startswith(
            f"job {number} on elsewhere, process "
        )


def test_slurm_is_asked_anew(records, squeue, monkeypatch):
    """A job that was alive once is not alive for ever; ten seconds are enough for thousands of scans."""
    now = [0.0]
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    claimed(records, **ELSEWHERE, job_id="1", step_id="0")
    assert kind(records) is Kind.IN_WORK
    program = squeue.with_name("squeue")
    program.write_text(f"#!/bin/sh\necho >> {squeue}\n")
    now[0] = job.ANSWER_AGE - 1
    assert kind(records) is Kind.IN_WORK
    now[0] = job.ANSWER_AGE + 1
    assert kind(records) is Kind.DIED
    assert len(squeue.read_text().splitlines()) == 2


@pytest.mark.parametrize(("task", "expected"), [("5", Kind.IN_WORK), ("6", Kind.DIED), ("65", Kind.DIED)])
def test_a_step_of_an_array_goes_by_the_number_of_its_task(records, squeue, task, expected):
    """As SLURM 22.05 was seen to name it."""
    claimed(records, **ELSEWHERE, job_id="6", step_id="0", array_task_id=task)
    assert kind(records) is expected


def test_of_a_job_in_another_cluster_this_one_knows_nothing(records, squeue, monkeypatch):
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    claimed(records, **ELSEWHERE, job_id="2", step_id="0", cluster_name="there")
    assert kind(records) is Kind.IN_WORK
    assert not squeue.exists()
    owner = records / "claims" / "1"
    for path in (owner, *owner.iterdir()):
        aged(path, 200)
    assert kind(records) is Kind.DIED


def test_a_job_that_waits_in_the_queue_again_has_no_process(records, squeue):
    claimed(records, **ELSEWHERE, job_id="4", step_id=None)
    assert kind(records) is Kind.IN_WORK
    (asked,) = squeue.read_text().splitlines()
    assert "running" in asked and "pending" not in asked


def test_a_job_that_was_requeued_knows_its_own_claims(records, squeue, monkeypatch):
    claimed(records, **ELSEWHERE, job_id="1", step_id="0", restart_count=None)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert kind(records) is Kind.DIED
    assert not squeue.exists()


def aged(path, seconds) -> None:
    when = time.time() - seconds
    os.utime(path, (when, when))


def silent(folder, seconds) -> None:
    """Let a lease be of so long ago."""
    for path in (*folder.iterdir(), folder):
        aged(path, seconds)


def test_an_owner_that_cannot_be_looked_up_lives_while_it_writes(records):
    claimed(records, **ELSEWHERE, job_id=None)
    lease_folder = records / "claims" / "1"
    assert kind(records) is Kind.IN_WORK
    silent(lease_folder, 200)
    assert kind(records) is Kind.DIED
    for name in ("events/0.jsonl", "work/sub-01.neuro/journal/a-0.jsonl"):
        (records / name).parent.mkdir(parents=True)
        (records / name).touch()
        assert kind(records) is Kind.IN_WORK
        aged(records / name, 200)
        assert kind(records) is Kind.DIED
    for name in (lease.OWNER, lease.OWNER_AGAIN):
        write_record(lease_folder / name, {**read_record(lease_folder / name), "lease": 0})
    silent(lease_folder, 1e6)
    assert kind(records) is Kind.IN_WORK


def test_a_claim_that_was_never_signed(records):
    """Its owner died within the moment between making and signing it."""
    claim = records / "claims" / "1"
    claim.mkdir(parents=True)
    assert kind(records) is Kind.IN_WORK
    aged(claim, 100)
    assert kind(records) is Kind.DIED


# What is damaged.


def flip(path, bit=300) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", [lease.OWNER, lease.OWNER_AGAIN])
@pytest.mark.parametrize("spoil", [flip, pathlib.Path.unlink, lambda path: path.write_bytes(b"")])
def test_an_owner_is_known_by_either_of_two_records(records, name, spoil):
    claimed(records, **gone())
    spoil(records / "claims" / "1" / name)
    assert kind(records) is Kind.DIED
    claimed(records)
    spoil(records / "claims" / "2" / name)
    assert kind(records) is Kind.IN_WORK
    assert lease.read_lease(records).owner["pid"] == os.getpid()


def test_an_owner_that_cannot_be_read_lives_as_long_as_there_are_signs_of_it(records):
    """Nobody is let into the folder of a run that may live: not by a damaged record either."""
    claimed(records)
    lease_folder, events = records / "claims" / "1", records / "events" / "0.jsonl"
    for name in (lease.OWNER, lease.OWNER_AGAIN):
        flip(lease_folder / name)
    assert kind(records) is Kind.IN_WORK
    assert lease.owner_text(lease.read_lease(records).owner).endswith("whose record is damaged")
    silent(lease_folder, lease.UNREADABLE + 60)
    assert kind(records) is Kind.DIED
    events.parent.mkdir()
    events.touch()
    assert kind(records) is Kind.IN_WORK


def test_what_every_owner_says_is_what_is_signed():
    assert lease.sign("run", 0.0).keys() >= lease._SIGNED


@pytest.mark.parametrize(
    "end",
    [b"", b"{}", document_of({"state": "odd"}), document_of({"ended": "now"}), document_of({"state": ["a"]})],
)
def test_an_end_that_cannot_be_read_is_an_end(records, end):
    """It is no death, and nobody waits for the process, which may live on; the work is taken up again."""
    claimed(records)
    (records / "claims" / "1" / "end.json").write_bytes(end)
    state = lease.read_lease(records)
    assert (state.kind, state.deaths, state.end) == (Kind.STOPPED, 0, {})
    assert claimed(records) == 2


def test_a_damaged_winner_is_a_winner(records):
    state = lease.read_lease(records)
    claimed(records)
    for name in (lease.OWNER, lease.OWNER_AGAIN):
        flip(records / "claims" / "1" / name)
    assert lease.acquire(records, state, lease.sign("late", 0)) is None


def test_a_file_among_the_leases_is_none(records):
    claimed(records)
    (records / "claims" / "99").touch()
    assert lease.read_lease(records).number == 1
