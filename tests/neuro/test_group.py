"""The level group: the tables of a cohort, from records and sidecars; and the flags of other BIDS Apps."""

from __future__ import annotations

import csv
import json

import pytest
from support import warm
from support.subjects import PATIENCE

from mpiimg.engine import lease
from mpiimg.engine.lease import Kind
from mpiimg.errors import BadInput
from mpiimg.neuro.cohort.records import settings_digest, write_settings
from mpiimg.neuro.cohort.tables import snake, write_tables

SETTINGS = {
    "version": "1",
    "parameters": {"patch_radius": 1, "sigma": "auto", "method": "wls", "shells": None},
}

#: The small files of a scan that is done, as steps write them.
SIDECARS = {
    "desc-brain_mask": {
        "Type": "Brain",
        "Units": "1",
        "Voxels": 1000,
        "VolumeML": 1234.5,
        "Method": "median_otsu",
        "GeneratedBy": "mpiimg",
    },
    "desc-denoised_dwi": {"Method": "NLM", "PatchRadius": 1, "EchoTime": 0.09},
    "desc-noise_dwimap": {
        "Method": "NLM",
        "NoiseMethod": "piesno",
        "Sigma": [10.0, 11.0],
        "SigmaBy": "volume",
    },
    "model-tensor_param-fa_dwimap": {"Method": "wls", "Shells": [0.0, 1000.0], "Volumes": 9, "Mean": 0.25},
    "model-tensor_param-md_dwimap": {"Method": "wls", "Shells": [0.0, 1000.0], "Volumes": 9, "Mean": 7.5e-4},
    "desc-quality_volumes": {"Series": {"NumBadSlices": 2, "NDC": 0.91}},
}


def record(out, name, kind, **details):
    """Record what became of a scan."""
    records = out / "logs" / name
    number = lease.acquire(records, lease.read_lease(records), lease.sign("run", 0.0))
    lease.release(records, number, kind, **details)


def done(out, name, folder, sidecars=SIDECARS):
    files = {f"{name}_{what}.json": fields for what, fields in sidecars.items()}
    (out / folder).mkdir(parents=True)
    for file, fields in files.items():
        (out / folder / file).write_text(fields if isinstance(fields, str) else json.dumps(fields))
    record(out, name, Kind.DONE, folder=folder, files=[*files], settings=settings_digest(SETTINGS))


@pytest.fixture
def out(tmp_path):
    """A derivative with a scan in each state that a job leaves."""
    (tmp_path / "logs").mkdir()
    write_settings(tmp_path, SETTINGS)
    done(tmp_path, "sub-02_ses-1_run-1", "sub-02/ses-1/dwi")
    done(tmp_path, "sub-01", "sub-01/dwi", {"desc-brain_mask": {"Voxels": 7}, "desc-noise_dwimap": "{"})
    record(tmp_path, "sub-03_sbref", Kind.PASSED_OVER, reason="a reference image")
    record(tmp_path, "sub-04", Kind.BROKEN, reason="a\tb: two\nlines")
    record(tmp_path, "sub-05", Kind.FAILED, reason="rank 0")
    return tmp_path


def table(out):
    with open(out / "logs/group_dwi.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_a_row_for_each_scan_in_the_order_of_names(out):
    said = write_tables(out)
    assert said == f"{out}/logs/group_dwi.tsv: 5 scans: 2 done, 1 failed, 1 broken, 1 passed over"
    rows = table(out)
    first = ("participant_id", "session_id", "scan", "status", "reason")
    assert [tuple(row[column] for column in first) for row in rows] == [
        ("sub-01", "n/a", "sub-01", "done", "n/a"),
        ("sub-02", "ses-1", "sub-02_ses-1_run-1", "done", "n/a"),
        ("sub-03", "n/a", "sub-03_sbref", "passed over", "a reference image"),
        ("sub-04", "n/a", "sub-04", "broken", "a b: two lines"),
        ("sub-05", "n/a", "sub-05", "failed", "rank 0"),
    ]
    assert {name: value for name, value in rows[1].items() if name not in first} == {
        "mask_voxels": "1000",
        "mask_volume_ml": "1234.5",
        "mask_method": "median_otsu",
        "denoise_method": "NLM",
        "noise_method": "piesno",
        "noise_sigma": "10.5",
        "noise_sigma_by": "volume",
        "fit_method": "wls",
        "fit_shells": "0.0,1000.0",
        "fit_volumes": "9",
        "fa_mean": "0.25",
        "md_mean": "0.00075",
        "quality_series_num_bad_slices": "2",
        "quality_series_ndc": "0.91",
    }
    filled = {name for name, value in rows[0].items() if value != "n/a"}
    assert filled == {"participant_id", "scan", "status", "mask_voxels"}
    assert all(set(row.values()) - {"n/a"} <= {*(row[c] for c in first)} for row in rows[2:])


def test_every_column_is_described(out):
    write_tables(out)
    described = json.loads((out / "logs/group_dwi.json").read_text())
    assert list(described) == list(table(out)[0])
    assert all(column["Description"].endswith(".") for column in described.values())
    assert described["mask_volume_ml"]["Units"] == "ml"
    assert described["fa_mean"]["Description"] == "Mean, as the sidecar of the fa says it."


def test_tables_are_the_same_each_time_and_may_be_of_some_subjects(out):
    write_tables(out)
    files = [out / "logs" / name for name in ("group_dwi.tsv", "group_dwi.json")]
    before = [file.read_bytes() for file in files]
    write_tables(out)
    assert [file.read_bytes() for file in files] == before
    write_tables(out, ["02", "sub-04"])
    assert [row["scan"] for row in table(out)] == ["sub-02_ses-1_run-1", "sub-04"]
    write_tables(out, sessions=["1"])
    assert [row["scan"] for row in table(out)] == ["sub-02_ses-1_run-1"]


@pytest.mark.parametrize("labels", [{}, {"participants": ["9"]}])
def test_without_scans_there_is_no_table(tmp_path, out, labels):
    folder = out if labels else tmp_path / "empty"
    with pytest.raises(BadInput, match="no scan was processed there; run the level participant first"):
        write_tables(folder, **labels)


@pytest.mark.parametrize(
    ("field", "column"),
    [("VolumeML", "volume_ml"), ("NDC", "ndc"), ("Series.NumBadSlices", "series_num_bad_slices")],
)
def test_names_of_columns(field, column):
    assert snake(field) == column


# --- On the command line ----------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path):
    """A dataset with nothing in it that is meant to be processed."""
    folder = tmp_path / "raw/sub-01/dwi"
    folder.mkdir(parents=True)
    (folder / "sub-01_sbref.nii.gz").touch()
    (tmp_path / "raw/dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    return tmp_path / "raw"


def run(*words, status=0):
    made = warm.run_tool("mpiimg-neuro", *words, timeout=PATIENCE, check=False)
    assert made.returncode == status, made.stderr
    return made


@pytest.mark.tool
def test_both_levels_and_flags_that_callers_of_bids_apps_give(raw, tmp_path):
    out = tmp_path / "out"
    flags = ["--skip_bids_validation", "--n-cpus", 8, "--omp-nthreads", 2, "-w", tmp_path / "work"]
    flags += ["--mem_mb", 9000, "--notrack", "--dwi-only", "-vv", "--stop-on-first-crash"]
    said = run(raw, out, "participant", "group", *flags).stderr
    for flag, why in (
        ("--skip_bids_validation", "no validator runs"),
        ("--n-cpus", "the ranks that mpiexec or srun starts"),
        ("--omp-nthreads", "the ranks that mpiexec or srun starts"),
        ("--mem_mb", "--memory says"),
        ("--notrack", "nothing is sent"),
        ("--dwi-only", "no other images are read"),
    ):
        assert said.count(f"mpiimg: note: {flag} is ignored: {why}") == 1
    assert not (tmp_path / "work").exists()
    assert f"{out}/logs/group_dwi.tsv: 1 scan: 1 passed over" in said
    assert [row["status"] for row in table(out)] == ["passed over"]
    (out / "logs/group_dwi.tsv").unlink()
    run(raw, out, "group", "--quiet")
    assert table(out)[0]["scan"] == "sub-01_sbref"
    plan = json.loads(run(raw, out, "group", "--plan=json").stdout)
    assert plan["totals"] == {"peak_per_rank": 0, "seconds": 0.0}


@pytest.mark.tool
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{raw}", "{out}", "group"], "no scan was processed there; run the level participant first"),
        (["{raw}", "{out}", "group", "participant"], "or both in this order"),
        (["{raw}", "{out}", "participant", "--session_id", "7"], "no session 7; there are none"),
        (["{raw}", "{out}", "subject"], "analysis level subject: there are participant and group"),
        (["a.nii", "--bvals", "x", "--bvecs", "y", "--out", "{out}", "--n_cpus", "3"], "--n_cpus goes with"),
        (["{raw}", "{out}", "participant", "--bids-filter-file", "{raw}/none.json"], "none.json: cannot"),
        (
            ["{raw}", "{out}", "participant", "--bids-filter-file", "{out}.json"],
            "the filter selects none of its 1 diffusion images",
        ),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_answered_in_one_line(raw, tmp_path, words, said):
    (tmp_path / "out.json").write_text('{"dwi": {"session": "7"}}')
    places = {"raw": str(raw), "out": str(tmp_path / "out")}
    made = run(*(word.format(**places) for word in words), status=2)
    assert said in made.stderr.splitlines()[-1]
    assert len(made.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
