"""Records of a cohort: what counts as done."""

from __future__ import annotations

import pytest

from mpiimg.engine import lease
from mpiimg.engine.lease import Kind
from mpiimg.errors import BadInput
from mpiimg.neuro.cohort import records as records_of

FILES = ["sub-01_mask.nii.gz", "sub-01_mask.json"]


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "logs" / "sub-01"
    folder.mkdir(parents=True)
    return folder


def test_done_is_what_was_done_with_these_settings_and_is_there(records):
    out = records.parents[1]
    settings = {"version": "1", "parameters": {"b_max": None}}
    records_of.write_settings(out, settings)
    (out / "sub-01" / "dwi").mkdir(parents=True)
    for name in FILES:
        (out / "sub-01" / "dwi" / name).touch()
    lease.acquire(records, lease.read_lease(records), lease.sign("run", 100.0))
    lease.release(
        records, 1, Kind.DONE, folder="sub-01/dwi", files=FILES, settings=records_of.settings_digest(settings)
    )
    assert records_of.scan_states(out)["sub-01"].kind is Kind.DONE
    (out / "sub-01" / "dwi" / FILES[1]).unlink()
    state = records_of.scan_states(out)["sub-01"]
    assert (state.kind, state.number) == (Kind.TO_DO, 1)
    (out / "sub-01" / "dwi" / FILES[1]).touch()
    records_of.write_settings(out, {"version": "2", "parameters": {"b_max": None}})
    assert records_of.scan_states(out)["sub-01"].kind is Kind.TO_DO


def test_a_folder_without_scans(tmp_path):
    assert records_of.scan_states(tmp_path) == {}
    assert records_of.scan_states(tmp_path / "missing") == {}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def done(out, name, settings):
    records = out / "logs" / name
    number = lease.acquire(records, lease.read_lease(records), lease.sign("run", 0.0))
    lease.release(
        records, number, Kind.DONE, folder=name, files=[], settings=records_of.settings_digest(settings)
    )


def test_damaged_settings_are_told(records):
    out = records.parents[1]
    records_of.write_settings(out, {"version": "1"})
    flip(out / "logs" / "cohort.json")
    for read in (records_of.read_settings, records_of.scan_states):
        with pytest.raises(BadInput, match=r"cohort\.json: does not have the checksum .*, mends it$"):
            read(out)


def test_what_was_done_with_other_settings_is_known_without_their_record(records):
    out, settings = records.parents[1], {"version": "1", "parameters": {"b_max": None}}
    done(out, "sub-01", settings)
    assert records_of.maybe_otherwise(out, settings) == []
    done(out, "sub-02", {**settings, "version": "2"})
    lease.acquire(out / "logs" / "sub-03", lease.LeaseState(Kind.TO_DO), lease.sign("run", 0.0))
    assert records_of.maybe_otherwise(out, settings) == ["sub-02", "sub-03"]


@pytest.mark.parametrize("end", [{}, {"folder": 7}, {"folder": "sub-01", "files": 3}, {"folder": "sub-01"}])
def test_an_end_of_another_version_is_not_done(records, end):
    lease.acquire(records, lease.read_lease(records), lease.sign("run", 0.0))
    lease.release(records, 1, Kind.DONE, **{"settings": records_of.settings_digest({}), **end})
    assert records_of.scan_state(records.parents[1], records, {}).kind is Kind.TO_DO
