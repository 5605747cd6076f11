"""The lock on a work folder: one run at a time, and no dead one keeps it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from engine.test_lease import ELSEWHERE, SQUEUE, aged, gone, silent, winner

from mpiimg.engine import lease
from mpiimg.engine.lease import Kind
from mpiimg.errors import BadInput, RunFailed, RunStopped

TIMEOUT = 3600.0

#: Seconds without a sign of life after which a run elsewhere is dead.
LEASE = TIMEOUT + lease.GRACE


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 0.0)


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "out" / "work" / "dwi.neuro"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def alive():
    """The owner that a process is which does nothing but live."""
    process = subprocess.Popen(["sleep", "600"])
    yield {"pid": process.pid, "started": lease._started(process.pid)}
    process.kill()
    process.wait()


class Alone:
    """The communicator of one rank, without MPI, since tests here fork."""

    rank, size = 0, 1

    def bcast(self, value):
        return value


def lock_as(work, owner) -> int:
    """Lock as another process."""
    return lease.acquire(work, lease.read_lease(work), {**lease.sign("other", TIMEOUT), **owner})


def take(work):
    out = work.parents[1]
    return lease.acquire_work(work, out / "events", out, TIMEOUT)


def test_who_holds_it_and_what_to_do_is_said_in_one_line(work, alive):
    lock_as(work, {**alive, "host": "n7", "job_id": "42"})
    with pytest.raises(BadInput) as refused:
        take(work)
    since = lease.read_owner(work, 1)["claimed"]
    assert str(refused.value) == (
        f"{work.parents[1]}: another run is at work there "
        f"(job 42 on n7, process {alive['pid']}, since {since}); wait until it has ended or "
        f"choose another --out; if you know that it is dead, remove {work}/claims"
    )
    assert [path.name for path in work.iterdir()] == ["claims"]
    assert [path.name for path in (work / "claims").iterdir()] == ["1"]


def test_a_dead_run_is_followed_at_once(work):
    lock_as(work, gone())
    lock_as(work, gone())
    lock_as(work, gone())
    assert take(work).number == 4


def test_a_process_may_follow_itself(work):
    """As in a notebook, after an error that left the lock behind."""
    assert [take(work).number, take(work).number] == [1, 2]


def test_one_that_is_about_to_die_is_waited_for(work, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 60.0)
    process = subprocess.Popen(["sleep", "0.3"])
    lock_as(work, {"pid": process.pid, "started": lease._started(process.pid)})
    assert take(work).number == 2
    process.wait()


def test_a_requeued_job_follows_itself_at_once(work, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    lock_as(work, ELSEWHERE)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert take(work).number == 2


@pytest.mark.parametrize(("job", "step", "lives"), [("1", "0", True), ("1", "1", False), ("2", "0", False)])
def test_slurm_knows_of_jobs_on_other_nodes(work, tmp_path, monkeypatch, job, step, lives):
    lease._slurm_runs.cache_clear()
    (tmp_path / "squeue").write_text(SQUEUE.format(asked=tmp_path / "asked"))
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    lock_as(work, {**ELSEWHERE, "job_id": job, "step_id": step})
    if lives:
        with pytest.raises(BadInput, match=f"job {job} on elsewhere"):
            take(work)
    else:
        assert take(work).number == 2
    lease._slurm_runs.cache_clear()


@pytest.mark.parametrize("sign", ["events/1.jsonl", "work/dwi.neuro/journal/a-0.jsonl"])
def test_elsewhere_a_run_lives_as_long_as_it_writes(work, sign):
    out = work.parents[1]
    (out / sign).parent.mkdir()
    (out / sign).touch()
    # The log of another run in the same folder says nothing of this one.
    (out / "events-mask").mkdir()
    (out / "events-mask" / "0.jsonl").touch()
    lock_as(work, {**ELSEWHERE, "job_id": None})
    silent(work / "claims" / "1", 2 * LEASE)
    aged(out / sign, LEASE - 60)
    with pytest.raises(BadInput, match="another run is at work"):
        take(work)
    aged(out / sign, LEASE + 60)
    assert take(work).number == 2


def test_what_the_refusal_says_about_a_dead_one_is_true(work):
    lock_as(work, {**ELSEWHERE, "job_id": None})
    with pytest.raises(BadInput) as refused:
        take(work)
    subprocess.run(["rm", "-r", str(refused.value).rpartition("remove ")[2]], check=True)
    assert take(work).number == 1


@pytest.mark.parametrize(("error", "how"), [(RunFailed, Kind.FAILED), (RunStopped, Kind.STOPPED)])
def test_a_run_that_fails_or_is_stopped_lets_go(work, error, how):
    with pytest.raises(error), lease.holding(take(work), Alone()):
        raise error("made up")
    assert lease.read_lease(work).kind is how


def test_a_lock_that_another_run_has_by_now_is_left_alone(work, alive):
    """Its folder was removed, by hand, say, and is there again."""
    mine = take(work)
    lease.remove_work(work)
    lock_as(work, alive)
    mine.release(Kind.DONE)
    assert lease.read_lease(work).kind is Kind.IN_WORK


def test_a_lock_that_cannot_be_given_back_goes_with_the_process(work, monkeypatch):
    def full(*arguments, **named):
        raise OSError("no space left")

    mine = take(work)
    monkeypatch.setattr(lease, "write_record", full)
    mine.release(Kind.FAILED)
    assert lease.read_lease(work).kind is Kind.IN_WORK


def race(work, barrier, winners):
    barrier.wait()
    try:
        take(work)
    except BadInput:
        pass
    else:
        winners.put(os.getpid())
    barrier.wait()  # nobody's process may be gone before all have tried


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_begin_at_once_one_gets_it(work, dead):
    if dead:
        lock_as(work, gone())
    first = winner(race, work)
    assert lease.read_owner(work, 1 + dead)["pid"] == first
    assert sorted(path.name for path in (work / "claims").iterdir()) == [str(n) for n in range(1, 2 + dead)]


DIES = """
import os, pathlib, shutil, signal, sys
from mpiimg.engine import lease
shutil.rmtree = lambda *arguments, **named: os.kill(os.getpid(), signal.SIGKILL)
lease.remove_work(pathlib.Path(sys.argv[1]))
"""


def test_the_lock_goes_with_the_folder_and_before_what_is_in_it(work):
    (work / "dwi.h5").touch()
    take(work)
    died = subprocess.run([sys.executable, "-c", DIES, work])
    assert died.returncode < 0
    assert not work.exists()
    (left,) = work.parent.iterdir()
    assert (left / "dwi.h5").exists()
    work.mkdir()
    assert take(work).number == 1
    lease.remove_work(work)
    assert not work.parent.exists()


def test_the_folders_of_other_runs_stay(work):
    other = work.with_name("dwi.neuropil")
    other.mkdir()
    lease.remove_work(work)
    lease.remove_work(work)
    assert list(work.parent.iterdir()) == [other]
