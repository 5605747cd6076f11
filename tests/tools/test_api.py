"""Wrong arguments of mpiimg.run are said in a line that names them; right ones of any kind work."""

from __future__ import annotations

import functools
import json

import nibabel
import numpy as np
import pytest

import mpiimg
from mpiimg.errors import BadInput


def double(block):
    return 2 * block


class Scaled:
    """A callable with something of its own."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, block):
        return self.factor * block


class Sum:
    """An aggregate."""

    def partial(self, block):
        return block.sum(keepdims=True)


class Unknown:
    """Nothing that is known here."""


IMAGE = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
IN_MEMORY = "which is in memory: that goes to mi.from_array(x, axes), and what comes of it to mi.write"


@pytest.mark.parametrize(
    ("recipe", "inputs", "out", "options", "said"),
    [
        (double, np.zeros((2, 2, 2)), "o.nii.gz", {}, f"file, not a ndarray, {IN_MEMORY}"),
        (double, IMAGE, "o.nii.gz", {}, f"inputs: takes the path of a file, not a Nifti1Image, {IN_MEMORY}"),
        (double, [IMAGE], "o.nii.gz", {}, f"not a Nifti1Image, {IN_MEMORY}"),
        (double, [], "o.nii.gz", {}, "inputs: there are none"),
        (double, None, "o.nii.gz", {}, "inputs: must be the path of a file, not None"),
        (double, {"dwi": "dwi.nii"}, "o.nii.gz", {}, "inputs: must be the path of a file, not a dict"),
        (double, "dwi.nii", None, {}, "out = must be the path of a file, not None"),
        (double, "dwi.nii", np.zeros(3), {}, "out = takes the path of a file, not a ndarray"),
        (double, "dwi.nii", "x.npy", {}, "out = 'x.npy': is the name of a file; double writes a .nii.gz, or"),
        (double, "dwi.nii", "x.nii", {}, "out = 'x.nii': is the name of a file; double writes a .nii.gz, or"),
        ([double], "dwi.nii", "x.nii.gz", {}, "a file; a pipeline has several results: give a folder"),
        (double, "dwi.nii", "o", {"mask": IMAGE}, "mask = takes the path of a file, not a Nifti"),
        (double, "dwi.nii", "o", {"params": [1]}, "params: must be a dict of keywords and values"),
        (7, "dwi.nii", "o", {}, "pipeline: must be a function, a list of stages, the path of"),
        ({"tool": "mask"}, "dwi.nii", "o", {}, "not a dict; a table of a stage goes into a list"),
        (np.zeros(2), "dwi.nii", "o", {}, "pipeline: must be a function"),
        (Sum(), "dwi.nii", "o", {}, "not a Sum; give the class itself, and what it is made with as params"),
        (Unknown(), "dwi.nii", "o", {}, "pipeline: must be a function"),
        ([Unknown()], "dwi.nii", "o", {}, "give either tool"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_said_in_a_line(recipe, inputs, out, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        mpiimg.run(recipe, inputs, out, **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def image(tmp_path):
    values = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    path = tmp_path / "in.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path, values


def test_whatever_can_be_called_is_a_function(image, tmp_path):
    path, values = image
    for number, code in enumerate(
        (Scaled(3.0), functools.partial(np.multiply, 3.0), lambda block: block * 3)
    ):
        out = tmp_path / f"out-{number}.nii.gz"
        mpiimg.run(code, path, out, in_memory=True)
        np.testing.assert_array_equal(nibabel.load(out).get_fdata(), 3 * values)
    aggregate = mpiimg.run(Sum, path, tmp_path / "sum.json", in_memory=True)
    assert json.loads(aggregate.files["sum.json"].read_text()) == [[[values.sum()]]]


def test_a_callable_is_known_by_what_it_holds(image, tmp_path):
    path, values = image
    mpiimg.run(Scaled(2.0), path, tmp_path / "out.nii.gz")
    mpiimg.run(Scaled(4.0), path, tmp_path / "out.nii.gz", force=True)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "out.nii.gz").get_fdata(), 4 * values)


def test_a_folder_may_have_any_name_once_it_is_there(image, tmp_path):
    folder = tmp_path / "results.npy"
    folder.mkdir()
    done = mpiimg.run(double, image[0], folder, in_memory=True)
    assert done.files["in_desc-double.nii.gz"].parent == folder
