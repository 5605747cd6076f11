"""Which diffusion images a BIDS dataset holds, and which gradients apply to each; on made-up trees."""

from __future__ import annotations

import json
import os

import pytest

from mpiimg.errors import BadInput
from mpiimg.neuro.bids import find_scans
from mpiimg.neuro.derivative import describe_derivative, sources

DESCRIPTION = '{"Name": "made up", "BIDSVersion": "1.9.0", "DatasetDOI": "doi:10.0/x", "License": "CC0"}'


@pytest.fixture
def tree(tmp_path):
    """Return a function that makes a dataset of empty files."""

    def make(*names, description=DESCRIPTION):
        root = tmp_path / "raw data"
        root.mkdir(exist_ok=True)
        if description is not None:
            (root / "dataset_description.json").write_text(description)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return make


def found(root, **labels):
    """Return name -> (image, bval, bvec, problem) of the scans, paths relative to the dataset."""

    def short(path):
        return None if path is None else path.relative_to(root).as_posix()

    return {
        s.name: (short(s.dwi), short(s.bval), short(s.bvec), s.problem)
        for s in find_scans(root, **labels).scans
        if not s.passed_over
    }


def test_subjects_sessions_and_runs(tree):
    names = [
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-02/ses-a/dwi/sub-02_ses-a_run-1_dwi.nii.gz",
        "sub-02/ses-a/dwi/sub-02_ses-a_run-2_dwi.nii",
        "sub-02/ses-b/dwi/sub-02_ses-b_acq-x_dir-AP_dwi.nii.gz",
    ]
    gradients = [name.split(".nii")[0] + ending for name in names for ending in (".bval", ".bvec")]
    others = [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/dwi/sub-01_sbref.nii.gz",
        "sub-01/dwi/sub-01_part-phase_dwi.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
        "derivatives/other/sub-01/dwi/sub-01_dwi.nii.gz",
        "sourcedata/sub-09/dwi/sub-09_dwi.nii.gz",
    ]
    root = tree(*names, *gradients, *others)
    stems = ["sub-01", "sub-02_ses-a_run-1", "sub-02_ses-a_run-2", "sub-02_ses-b_acq-x_dir-AP"]
    assert list(found(root)) == stems
    for name, (stem, scan) in zip(names, found(root).items(), strict=True):
        bare = name.split(".nii")[0]
        assert scan == (name, f"{bare}.bval", f"{bare}.bvec", ""), stem
    study = find_scans(root)
    meant = [scan for scan in study.scans if not scan.passed_over]
    assert [scan.folder for scan in meant] == [name.rpartition("/")[0] for name in names]
    assert study.without == ("sub-03",)
    assert list(found(root, participants=["sub-02"], sessions=["b"])) == stems[3:]
    assert list(found(root, participants=["01", "02", "01"])) == stems
    assert list(found(root, sessions=["ses-a"])) == stems[1:3]


def test_other_images_are_passed_over_and_subjects_without_any_are_named(tree):
    root = tree(
        "dwi.bval",
        "dwi.bvec",
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-01/dwi/sub-01_sbref.nii.gz",
        "sub-01/dwi/sub-01_sbref.nii",
        "sub-01/dwi/sub-01_part-phase_dwi.nii.gz",
        "sub-01/dwi/sub-01_part-mag_dwi.nii.gz",
        "sub-01/dwi/sub-01_run-1_ADC.nii",
        "sub-01/dwi/sub-01_DWI.nii.gz",
        "sub-01/dwi/notes.txt",
        "sub-02/dwi/trace.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
        "sub-04/ses-1/dwi/sub-04_ses-1_dwi.nii.gz",
        "sub-04/ses-2/anat/sub-04_ses-2_T1w.nii.gz",
        "sub-05/ses-1/anat/sub-05_ses-1_T1w.nii.gz",
        "sub-05/ses-2/anat/sub-05_ses-2_T1w.nii.gz",
    )
    study = find_scans(root)
    assert {scan.name: scan.passed_over for scan in study.scans} == {
        "sub-01_sbref": "a reference image of one volume (sbref)",
        "sub-01_part-phase": "no magnitude image (part-phase), and so no signal to fit",
        "sub-01_run-1_ADC": "no diffusion series: its name ends in ADC, not in _dwi",
        "sub-02_trace": "no diffusion series: its name ends in trace, not in _dwi",
        "sub-01": "",
        "sub-01_part-mag": "",
        "sub-01_DWI": "",
        "sub-04_ses-1": "",
    }
    problems = {scan.name for scan in study.scans if scan.problem}
    assert problems == {"sub-01_DWI"}
    assert study.without == ("sub-03", "sub-04_ses-2", "sub-05")
    assert find_scans(root, sessions=["1"]).without == ("sub-01", "sub-02", "sub-03", "sub-05")


def test_the_top_of_a_dataset_is_listed_once(tree, monkeypatch):
    """Not once for each scan, which would take the square of the number of subjects."""
    count = 30
    root = tree("dwi.bval", "dwi.bvec", *(f"sub-{n}/dwi/sub-{n}_dwi.nii" for n in range(count)))
    listed = []
    whole = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or whole(folder))
    assert len(find_scans(root).scans) == count
    assert listed.count(root) <= 2


@pytest.mark.parametrize(
    ("there", "bval"),
    [
        (["dwi.bval"], "dwi.bval"),
        (["acq-x_dwi.bval"], "acq-x_dwi.bval"),
        (["acq-y_dwi.bval"], None),
        (["run-1_dwi.bval", "dwi.bval"], "run-1_dwi.bval"),
        (["dwi.bval", "sub-01/sub-01_dwi.bval"], "sub-01/sub-01_dwi.bval"),
        (
            ["sub-01/sub-01_dwi.bval", "sub-01/ses-1/sub-01_ses-1_dwi.bval"],
            "sub-01/ses-1/sub-01_ses-1_dwi.bval",
        ),
        # The nearest folder counts, though a name above is more like the image's.
        (["sub-01/ses-1/dwi/sub-01_ses-1_dwi.bval", "acq-x_run-1_dwi.bval"],
         "sub-01/ses-1/dwi/sub-01_ses-1_dwi.bval"),
        (["sub-02/ses-1/dwi/sub-02_ses-1_dwi.bval"], None),
        (["sub-01/ses-1/dwi/sub-01_ses-1_acq-x_run-2_dwi.bval"], None),
    ],
)  # fmt: skip
def test_gradients_are_inherited(tree, there, bval):
    image = "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_run-1_dwi.nii.gz"
    root = tree(image, *there, "dwi.bvec", "sub-02/anat/sub-02_T1w.nii")
    (scan,) = found(root).values()
    assert scan[:3] == (image, bval, "dwi.bvec")
    assert bool(scan[3]) == (bval is None)
    if bval is None:
        assert "no .bval applies to it" in scan[3]


def test_a_scan_that_cannot_be_used_stays_among_the_others(tree):
    root = tree(
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-02/dwi/sub-02_dwi.nii.gz",
        "sub-02/dwi/sub-02_dwi.nii",
        "sub-03/dwi/sub-01_dwi.nii.gz",
        "sub-04/dwi/sub-04_run-1_acq-x_dwi.nii.gz",
        "sub-05/dwi/sub-05_desc-preproc_dwi.nii.gz",
        "sub-06/dwi/sub-06_run-1_dwi.nii.gz",
        "acq-x_dwi.bval",
        "dwi.bval",
        "dwi.bvec",
        "sub-06/dwi/run-1_dwi.bval",
        "sub-06/dwi/sub-06_dwi.bval",
    )
    problems = {name: scan[3] for name, scan in found(root).items()}
    expected = {
        "sub-01": "",
        "sub-02": "is there as .nii too",
        "sub-03_sub-01": "lies in the folder of sub-03",
        "sub-04_run-1_acq-x": "not the name of a raw diffusion image",
        "sub-05_desc-preproc": "not the name of a raw diffusion image",
        "sub-06_run-1": "sub-06_dwi.bval applies to sub-06_run-1_dwi.nii.gz as well",
    }
    assert problems.keys() == expected.keys()
    for name, words in expected.items():
        assert words in problems[name]
        assert bool(words) == bool(problems[name])


@pytest.mark.parametrize(
    ("names", "labels", "description", "words"),
    [
        ((), {}, DESCRIPTION, "no subjects"),
        (("sub-01/dwi/sub-01_dwi.nii",), {}, None, "dataset_description.json: cannot read it"),
        (("sub-01/dwi/sub-01_dwi.nii",), {}, "[]", "not a JSON object with a Name"),
        (("sub-01/dwi/sub-01_dwi.nii",), {}, '{"BIDSVersion": "1.9.0"}', "not a JSON object with a Name"),
        (("sub-01/anat/sub-01_T1w.nii",), {}, DESCRIPTION, "no diffusion images"),
        (
            ("sub-01/anat/sub-01_T1w.nii", "sub-02/dwi/sub-02_dwi.nii"),
            {"participants": ["01"]},
            DESCRIPTION,
            "no diffusion images of sub-01",
        ),
        (
            ("sub-01/dwi/sub-01_dwi.nii",),
            {"participants": ["7"]},
            DESCRIPTION,
            "no participant 7; there are 01",
        ),
        (("sub-01/dwi/sub-01_dwi.nii",), {"sessions": ["2"]}, DESCRIPTION, "no session 2; there are none"),
        (
            ("sub-01/ses-1/dwi/sub-01_ses-1_dwi.nii",),
            {"sessions": ["2"]},
            DESCRIPTION,
            "no session 2; there are 1",
        ),
    ],
)
def test_a_broken_layout_is_said_in_one_line(tree, names, labels, description, words):
    root = tree(*names, description=description)
    with pytest.raises(BadInput) as caught:
        find_scans(root, **labels)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_dicom_files_is_named_with_the_command(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "IM0001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(
        BadInput, match=f"^{tmp_path}: is a folder of DICOM files: .* dcm2niix .* {tmp_path}$"
    ):
        find_scans(tmp_path)


def test_links_that_lead_nowhere_are_scans(tree):
    """As datalad leaves them before their content is fetched: the image says so when it is opened."""
    root = tree("dwi.bval", "dwi.bvec", "sub-01/dwi/other.txt")
    (root / "sub-01/dwi/sub-01_dwi.nii.gz").symlink_to("../.git/annex/missing")
    assert found(root)["sub-01"][3] == ""


def test_what_a_derivative_says_of_itself(tree, tmp_path):
    root = tree("sub-01/dwi/sub-01_dwi.nii.gz", "dwi.bval", "sub-01/sub-01_dwi.bvec")
    files = describe_derivative(root, tmp_path / "out" / "here")
    said = json.loads(files["dataset_description.json"])
    assert said["DatasetType"] == "derivative"
    assert said["GeneratedBy"][0]["Name"] == "mpiimg-neuro"
    assert said["SourceDatasets"] == [{"URL": "../../raw%20data", "DOI": "doi:10.0/x"}]
    assert said["DatasetLinks"] == {"raw": "../../raw%20data"}
    assert said["License"] == "CC0"
    ignored = [f"*_dwimap{ending}" for ending in (".nii.gz", ".json", ".tsv", ".npz")]
    assert files[".bidsignore"].decode().splitlines() == [*ignored, "report.html"]
    assert b'Made from the dataset "made up"' in files["README.md"]
    (scan,) = find_scans(root).scans
    assert sources(root, scan) == [
        "bids:raw:sub-01/dwi/sub-01_dwi.nii.gz",
        "bids:raw:dwi.bval",
        "bids:raw:sub-01/sub-01_dwi.bvec",
    ]
