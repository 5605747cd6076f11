"""A study is looked through before anything runs: scans are to do, passed over or broken, with the reason."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from support import warm
from support.subjects import PATIENCE

from mpiimg.engine.lease import Kind
from mpiimg.errors import BadInput
from mpiimg.neuro.bids import Scan
from mpiimg.neuro.cohort.records import Cohort
from mpiimg.neuro.cohort.review import Review, look_at

RNG = np.random.default_rng(4)

#: Directions of eight weighted volumes after a b0.
BVECS = np.vstack([np.zeros(3), RNG.normal(size=(8, 3))])
BVECS[1:] /= np.linalg.norm(BVECS[1:], axis=1)[:, None]

BVALS = np.array([0.0, *[1000.0] * 8])


def write(folder, stem, shape=(8, 8, 6, 9), bvals=None, bvecs=None, values=None):
    """Write an image, and gradients where there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.full(shape, 100, np.int16) if values is None else values
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), folder / f"{stem}.nii.gz")
    for ending, table in ((".bval", bvals), (".bvec", bvecs)):
        if table is not None:
            np.savetxt(folder / f"{stem}{ending}", np.atleast_2d(np.asarray(table).T), fmt="%.9g")
    return folder / f"{stem}.nii.gz"


def looked(tmp_path, inspect=lambda scan: None, problem="", **what):
    """Return what a look at a scan says."""
    image = write(tmp_path, "dwi", **what)
    tables = [image.with_name(f"dwi{ending}") for ending in (".bval", ".bvec")]
    scan = Scan("sub-01", "sub-01/dwi", image, *(one if one.exists() else None for one in tables), problem)
    cohort = Cohort(tmp_path, tmp_path / "out", (scan,), {"b0_threshold": 50.0}, inspect, recipe=None)
    return look_at(cohort, scan)


SIGNS = np.array([1, 1, 1, -1, -1, -1, 1, -1])

AXES = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]

PASSED_OVER = {
    "3-D": ({"shape": (8, 8, 6)}, "one volume, as scans of the opposite phase encoding have"),
    "few volumes": ({"shape": (8, 8, 6, 3)}, "3 volumes, as scans of the opposite phase encoding have"),
    "b0s alone": (
        {"bvals": [5] * 9, "bvecs": np.zeros((9, 3))},
        "only b0 volumes (b <= 50 s/mm^2)",
    ),
    "b0s with one direction": ({"bvals": [5] * 9, "bvecs": [[0, 0, 1]] * 9}, "only b0 volumes"),
    "a trace": ({"bvals": BVALS, "bvecs": np.zeros((9, 3))}, "no direction in its gradients"),
    "three axes": (
        {"bvals": BVALS, "bvecs": np.vstack([np.zeros(3), AXES])},
        "3 directions in its gradients",
    ),
    "axes and their opposites": (
        {"bvals": BVALS, "bvecs": np.vstack([np.zeros(3), AXES * SIGNS[:, None]])},
        "3 directions in its gradients",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PASSED_OVER)
def test_what_is_not_meant_for_a_tensor_is_passed_over(tmp_path, what):
    made, words = PASSED_OVER[what]
    review = looked(tmp_path, **made)
    assert review.kind is Kind.PASSED_OVER
    assert words in review.reason
    assert str(tmp_path) not in review.reason  # scans of one reason are said in one line


TO_DO = {
    "FSL's layout": {"bvals": BVALS, "bvecs": BVECS},
    "a row per volume": {"bvals": BVALS, "bvecs": BVECS.T},
    "b in ms/um^2": {"bvals": BVALS / 1000, "bvecs": BVECS},
    "NaN in the b0's direction": {"bvals": BVALS, "bvecs": np.vstack([[np.nan] * 3, BVECS[1:]])},
    "lengths that encode b": {"bvals": [1000.0] * 9, "bvecs": BVECS * 0.7},
}


@pytest.mark.parametrize("what", TO_DO)
def test_what_may_be_meant_is_left_to_the_inspection(tmp_path, what):
    review = looked(tmp_path, **TO_DO[what])
    assert review == Review(Kind.TO_DO, "", 8 * 8 * 6 * 9)

    def refuse(scan):
        raise BadInput(f"{scan.name}: made up")

    assert looked(tmp_path, refuse, **TO_DO[what]).kind is Kind.BROKEN
    assert looked(tmp_path, refuse, **TO_DO[what]).reason == "sub-01: made up"

    def fail(scan):
        raise ZeroDivisionError

    assert looked(tmp_path, fail, **TO_DO[what]).kind is Kind.TO_DO  # said in full when its turn comes


def test_tables_of_another_scan_pass_nothing_over(tmp_path):
    """Three b0s beside an image of nine volumes are a mistake, and no scan for topup."""

    def refuse(scan):
        raise BadInput("3 b-values for an image of 9 volumes")

    review = looked(tmp_path, refuse, bvals=[0, 0, 0], bvecs=np.zeros((3, 3)))
    assert (review.kind, review.reason) == (Kind.BROKEN, "3 b-values for an image of 9 volumes")


def test_what_is_known_from_the_name_is_said(tmp_path):
    assert looked(tmp_path, problem="no .bval applies to it").kind is Kind.BROKEN
    # But a scan of the opposite phase encoding has no tables in many studies.
    assert looked(tmp_path, problem="no .bval applies to it", shape=(8, 8, 6, 2)).kind is Kind.PASSED_OVER


# --- A whole study ----------------------------------------------------------------------------------------

OPTIONS = ("--median-radius", 1, "--sigma", 20)


@pytest.fixture
def study(tmp_path):
    """A study as many are: series, scans for topup, reference and phase images, and a few mistakes."""
    root = tmp_path / "raw"
    x, y, z = np.indices((10, 9, 6))
    ball = 1000.0 * (np.hypot(np.hypot(x - 5, y - 4), 1.5 * (z - 3)) < 4)
    series = (ball[..., None] * np.exp(-7e-4 * BVALS) + RNG.normal(60, 20, (10, 9, 6, 9))).astype(np.int16)
    tables = {"bvals": BVALS, "bvecs": BVECS}
    write(root / "sub-01/dwi", "sub-01_dir-AP_dwi", values=series, **tables)
    write(root / "sub-01/dwi", "sub-01_dir-PA_dwi", values=series[..., :2])
    write(root / "sub-01/dwi", "sub-01_sbref", values=series[..., 0])
    write(root / "sub-02/dwi", "sub-02_dwi", values=series, **tables)
    write(root / "sub-02/dwi", "sub-02_part-phase_dwi", values=series, **tables)
    write(root / "sub-03/dwi", "sub-03_dwi", values=series)
    write(root / "sub-04/anat", "sub-04_T1w", values=series[..., 0])
    (root / "dataset_description.json").write_text('{"Name": "study", "BIDSVersion": "1.9.0"}')
    return root


def run(study, out, *options, status=0, ranks=None):
    words = ("mpiimg-neuro", study, out, "participant", *OPTIONS, *options)
    done = warm.run_tool(*words, timeout=PATIENCE, check=False, ranks=ranks)
    assert done.returncode == status, done.stderr
    return done


SAID = (
    "mpiimg: passed over: 2 volumes, as scans of the opposite phase encoding have, and a tensor takes 7: "
    "sub-01_dir-PA",
    "mpiimg: passed over: a reference image of one volume (sbref): sub-01_sbref",
    "mpiimg: passed over: no magnitude image (part-phase), and so no signal to fit: sub-02_part-phase",
)

STATES = {
    "sub-01_dir-AP": "to do",
    "sub-01_dir-PA": "passed over",
    "sub-01_sbref": "passed over",
    "sub-02": "to do",
    "sub-02_part-phase": "passed over",
    "sub-03": "broken",
}


@pytest.mark.tool
def test_a_plan_says_what_would_become_of_each_scan(study, tmp_path):
    verdict, *lines = run(study, tmp_path / "out", "--plan").stdout.splitlines()
    assert verdict.startswith("fits: a rank needs ") and verdict.endswith(" for all scans on 1 rank")
    assert lines[0] == "mpiimg: 6 scans: 2 to do, 1 broken, 3 passed over"
    assert lines[1].startswith("mpiimg: sub-03: broken: ")
    assert "no .bvec applies to it" in lines[1]
    assert lines[2:6] == [*SAID, "mpiimg: no diffusion image: sub-04"]
    assert lines[6] == "mpiimg: 2 scans to do by 1 group of 1 rank"
    plan = json.loads(run(study, tmp_path / "out", "--plan=json").stdout)
    assert {name: scan["state"] for name, scan in plan["scans"].items()} == STATES
    assert "no .bvec applies" in plan["scans"]["sub-03"]["reason"]
    assert plan["scans"]["sub-02"]["reason"] == ""
    assert plan["without"] == ["sub-04"]
    assert not (tmp_path / "out").exists()


@pytest.mark.tool
def test_only_what_was_meant_to_work_counts(study, tmp_path):
    """What is passed over is said once, and kept; the exit status is 3 for what is broken alone."""
    out = tmp_path / "out"
    first = run(study, out, status=3, ranks=2)
    assert "mpiimg: 6 scans: 2 to do, 1 broken, 3 passed over before this job" in first.stderr
    assert "mpiimg: 6 scans: 2 done, 1 broken, 3 passed over" in first.stderr
    for line in SAID:
        assert first.stderr.count(line) == 1
    assert "mpiimg: no diffusion image: sub-04" in first.stderr
    write(study / "sub-03/dwi", "sub-03_dwi", shape=(10, 9, 6), bvals=[0], bvecs=[[0, 0, 0]])
    second = run(study, out)
    assert not any(line in second.stderr for line in SAID)
    assert "sub-03" in second.stderr  # for what it is now
    assert "mpiimg: 6 scans: 2 done, 4 passed over" in second.stderr
    claims = [path.name for path in (out / "logs/sub-01_sbref/claims").iterdir()]
    assert claims == ["1"]
    status = warm.run_tool("mpiimg-status", out)
    assert "6 scans: 2 done, 4 passed over" in status.stdout
    assert "sub-01_sbref       passed over  a reference image of one volume (sbref)" in status.stdout
    assert "passed over" not in run(study, out, "--quiet").stderr


@pytest.mark.tool
def test_strict_refuses_a_broken_scan_before_anything_runs(study, tmp_path):
    done = run(study, tmp_path / "out", "--strict", status=2)
    assert "sub-03" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
