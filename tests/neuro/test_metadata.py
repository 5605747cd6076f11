"""What denoised series say of the acquisition: all that BIDS inherits, and nothing that is no longer true."""

from __future__ import annotations

import json

import pytest

from mpiimg.neuro.images import sidecar
from mpiimg.neuro.metadata import fields_of_volumes, inherited_fields

IMAGE = "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_dir-AP_dwi.nii.gz"

#: What topup and eddy are told, as dcm2niix writes it.
ACQUISITION = {
    "PhaseEncodingDirection": "j-",
    "TotalReadoutTime": 0.0498,
    "EffectiveEchoSpacing": 0.00062,
    "EchoTime": 0.089,
    "RepetitionTime": 3.2,
    "SliceTiming": [0.0, 1.6],
    "MultibandAccelerationFactor": 2,
}


@pytest.fixture
def tree(tmp_path):
    """Return a function that writes sidecars of a dataset by name, and returns the path of an image in it."""

    def make(image=IMAGE, description=True, **sidecars):
        for name, fields in sidecars.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
        if description:
            (tmp_path / "dataset_description.json").write_text('{"Name": "x"}')
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        return tmp_path / image

    return make


def test_all_sidecars_that_apply_are_merged_and_the_nearest_counts(tree):
    image = tree(
        **{
            "dwi.json": {"A": "root", "B": "root", "C": "root", "D": "root"},
            "dir-AP_dwi.json": {"B": "root, dir"},
            "dir-PA_dwi.json": {"B": "another direction", "X": 1},
            "sub-01/sub-01_dwi.json": {"C": "subject"},
            "sub-01/ses-1/sub-01_ses-1_acq-x_dwi.json": {"D": "session"},
            "sub-02/sub-02_dwi.json": {"X": 1},
            "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_dir-AP_dwi.json": {"E": "image"},
            "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_dir-AP_run-2_dwi.json": {"X": 1},
            "sub-01/ses-1/dwi/sub-01_ses-1_acq-x_dir-AP_sbref.json": {"X": 1},
        }
    )
    inherited = inherited_fields(image)
    assert inherited.fields == {"A": "root", "B": "root, dir", "C": "subject", "D": "session", "E": "image"}
    assert [path.name for path in inherited.files] == [
        "dwi.json",
        "dir-AP_dwi.json",
        "sub-01_dwi.json",
        "sub-01_ses-1_acq-x_dwi.json",
        "sub-01_ses-1_acq-x_dir-AP_dwi.json",
    ]
    assert inherited.warnings == ()


def test_outside_a_dataset_the_sidecar_beside_the_image_counts(tree):
    image = tree("study/scan.nii.gz", False, **{"study/scan.json": ACQUISITION, "dwi.json": {"X": 1}})
    assert inherited_fields(image).fields == ACQUISITION
    assert inherited_fields(tree("study/other.nii", False)).files == ()
    named = tree("sub-01/dwi/sub-01_dwi.nii", False, **{"sub-01/dwi/sub-01_dwi.json": ACQUISITION})
    assert inherited_fields(named).fields == ACQUISITION


def test_what_is_true_of_the_raw_image_alone_is_left_out(tree):
    untrue = {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "PhilipsRescaleSlope": 2.5,
        "IntendedFor": ["x"],
        "Units": "counts",
    }
    image = tree(**{"dwi.json": {**ACQUISITION, **untrue}})
    assert inherited_fields(image).fields == ACQUISITION
    said = json.loads(sidecar({**ACQUISITION, "Method": "of the scanner"}, Method="ours"))
    assert said["Method"] == "ours"
    assert said["SpatialReference"] == "orig"
    assert said.items() >= ACQUISITION.items()


def test_lists_of_volumes_lose_the_volumes_that_the_series_loses():
    fields = {"VolumeTiming": [0.0, 3.0, 6.0], "SliceTiming": [0.0, 1.0, 2.0], "EchoTime": 0.1}
    assert fields_of_volumes(fields, 3, [0, 2]) == {**fields, "VolumeTiming": [0.0, 6.0]}
    assert fields_of_volumes(fields, 4, [0, 2]) == fields


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("\xff", "not text in UTF-8"),
        ("[" * 99999, "not JSON"),
    ],
)
def test_a_sidecar_that_cannot_be_read_is_warned_about(tree, text, words):
    image = tree(**{"dwi.json": ACQUISITION})
    beside = image.with_name(image.name.replace(".nii.gz", ".json"))
    beside.write_bytes(text.encode("latin-1"))
    inherited = inherited_fields(image)
    assert inherited.fields == ACQUISITION
    assert [path.name for path in inherited.files] == ["dwi.json"]
    (warning,) = inherited.warnings
    assert str(beside) in warning
    assert words in warning
    assert warning.endswith("is not handed on")


def test_numbers_that_json_does_not_have_are_not_handed_on(tree):
    image = tree(**{"dwi.json": '{"EchoTime": NaN, "TotalReadoutTime": 0.05}'})
    assert inherited_fields(image).fields == {"TotalReadoutTime": 0.05}
