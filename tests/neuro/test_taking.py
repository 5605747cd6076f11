"""Which scans a group of a cohort's job takes, by what it saw of them when the job began."""

from __future__ import annotations

import pytest

from mpiimg.engine import lease
from mpiimg.engine.lease import Kind
from mpiimg.engine.recipe import Options
from mpiimg.neuro.bids import Scan
from mpiimg.neuro.cohort import records as records_of
from mpiimg.neuro.cohort import work


@pytest.fixture
def scans(tmp_path):
    """Return a cohort of one scan, whose records are there."""
    scan = Scan("sub-01", "sub-01/dwi", tmp_path / "dwi.nii.gz", None, None)
    made = records_of.Cohort(tmp_path / "raw", tmp_path / "out", (scan,), {}, inspect=None, recipe=None)
    made.records(scan).mkdir(parents=True)
    records_of.write_settings(made.out, made.settings)
    return made, scan, made.records(scan)


def claim(records, owner="another"):
    """Claim the scan as another job does; return the number of the claim."""
    return lease.acquire(records, lease.read_lease(records), lease.sign(owner, 0.0))


def take(cohort_of_one, scan, before):
    return work.acquire_scan(cohort_of_one, scan, before, lease.sign("this", 0.0))


@pytest.mark.parametrize("end", [Kind.DONE, Kind.FAILED])
def test_what_another_job_had_in_work_when_this_one_began_is_not_done_twice(scans, end):
    """It ended meanwhile, under the claim that this job saw."""
    made, scan, records = scans
    number = claim(records)
    before = records_of.scan_state(made.out, records, made.settings)
    assert before.kind is Kind.IN_WORK and take(made, scan, before) is None
    lease.release(
        records, number, end, folder=".", files=[], settings=records_of.settings_digest(made.settings)
    )
    assert take(made, scan, before) == 0


def test_what_had_failed_before_this_job_began_is_tried_again(scans):
    made, scan, records = scans
    lease.release(records, claim(records), Kind.FAILED)
    before = records_of.scan_state(made.out, records, made.settings)
    assert take(made, scan, before) == 2


def test_what_nobody_had_is_taken_once(scans):
    made, scan, records = scans
    before = records_of.scan_state(made.out, records, made.settings)
    assert take(made, scan, before) == 1
    assert take(made, scan, before) is None


class Alone:
    """A group of one rank."""

    rank, size = 0, 1

    @staticmethod
    def bcast(what):
        return what


class Undisturbed:
    """What tells a group that the job is to stop."""

    stops = False

    def interrupted(self):
        return self.stops


@pytest.fixture
def serve(scans, monkeypatch):
    """Serve the one scan, as a group whose work on it takes no time; returns what was done."""
    made, scan, records = scans
    monkeypatch.setattr(work, "SOONEST", 0.01)
    monkeypatch.setattr(work, "_process", lambda *_: (Kind.DONE, {"files": [], "image": []}, None, []))
    options = Options(records, 1 << 30)

    def run(outer=None, patience=60.0):
        monkeypatch.setattr(work, "PATIENCE", patience)
        before = {scan.name: records_of.scan_state(made.out, records, made.settings)}
        work._serve(
            made, work._Queue([scan], {}, True), before, Alone, outer or Undisturbed(), options, "this"
        )
        return records_of.scan_state(made.out, records, made.settings)

    return run


@pytest.mark.parametrize("end", ["dies", "stops"])
def test_what_another_job_leaves_over_is_taken_while_this_one_waits(scans, serve, monkeypatch, end):
    _, _, records = scans
    number, looks = claim(records), []

    def is_alive(*_):
        looks.append(1)
        if end == "stops" and len(looks) == 4:
            lease.release(records, number, Kind.STOPPED)
        return end == "stops" or len(looks) < 4

    monkeypatch.setattr(lease, "is_alive", is_alive)
    state = serve()
    assert (state.kind, state.number) == (Kind.DONE, 2)


def test_a_job_does_not_wait_for_ever_and_does_not_say_that_all_is_done(scans, serve):
    claim(scans[2])  # by this process, which lives
    assert serve(patience=0.1).kind is Kind.IN_WORK


def test_a_signal_ends_the_waiting(scans, serve):
    claim(scans[2])
    outer = Undisturbed()
    outer.stops = True
    assert serve(outer).kind is Kind.IN_WORK
