"""Records of a cohort: what counts as done."""

from __future__ import annotations

import pytest

from mpiimg.engine import lease
from mpiimg.engine.lease import Kind
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
