"""Masks that runs make or are given: radii, doubts, hot voxels, no background, given values, dwi2mask."""

from __future__ import annotations

import json
import shutil
import subprocess

import nibabel
import numpy as np
import pytest
from dipy.segment.mask import median_otsu
from support import launch, warm
from support.ranks import on_site
from support.subjects import PATIENCE, Subject, path, read, record, tool, write_subject

pytestmark = pytest.mark.tool

#: Real data of two whole heads, outside this repository.
UIH = launch.REPOSITORY.parent / "shared" / "data" / "uih-dmri"


def mask_of(subject, out, *options, **how) -> np.ndarray:
    return read(tool("mpiimg-mask", subject, out, *options, **how), "mask") != 0


def said(out, name="run-mask.json") -> str:
    """Return all warnings and notes of a run."""
    run = record(out, name)
    return "\n".join([*run["warnings"], *run["notes"]])


def changed(subject, folder, change) -> Subject:
    """Write the subject with its voxels (x, y, z, volume) changed in place."""
    data = np.array(subject.image.dataobj[...])
    change(data)
    return write_subject(folder, data, subject.affine, subject.bvals, subject.bvecs, "dwi.nii")


@pytest.fixture(scope="module")
def plain(simulated, tmp_path_factory):
    """The simulated head, whose voxels are 7.6 x 7.8 x 9.1 mm, and its mask by default."""
    out = tmp_path_factory.mktemp("plain") / "out"
    return mask_of(simulated, out), out


def test_size_is_in_log_record_and_sidecar(simulated, plain):
    mask, out = plain
    sidecar = json.loads(path(out, "mask", ".json").read_text())
    ml = mask.sum() * np.prod(simulated.image.header.get_zooms()[:3]) / 1000
    assert sidecar["VolumeML"] == pytest.approx(ml, rel=1e-5)
    assert sidecar["ShareOfField"] == pytest.approx(mask.mean(), rel=1e-5)
    assert (sidecar["MedianRadius"], sidecar["MedianRadiusVoxels"]) == ("8mm", [1, 1, 1])
    assert f"the computed mask: {mask.sum()} voxels, {ml:.4g} ml, {mask.mean():.1%} of the field" in said(out)
    assert "the median radius is 8mm, 1 x 1 x 1 voxels along x, y and z" in said(out)


def test_growth_in_mm(simulated, plain, tmp_path):
    grown = mask_of(simulated, tmp_path / "out", "--dilate", "9mm", ranks=2)
    zooms = simulated.image.header.get_zooms()[:3]
    assert [zoom < 9 for zoom in zooms] == [True, True, False], "along z no voxel is near enough"
    near = np.zeros((3, 3, 1), bool)
    near[1], near[:, 1] = True, True
    from scipy.ndimage import binary_dilation

    np.testing.assert_array_equal(grown, binary_dilation(plain[0], near))


# --------------------------------------------------------------------------- hot voxels


def corners(data):
    data[0, 0, 0], data[1, 0, 0], data[0, 1, 0] = 32767, 32767, 32767


def one_voxel(data):
    data[12, 14, 10] = 32767


@pytest.mark.parametrize(
    ("spoil", "options"),
    [
        (one_voxel, ()),
        (corners, ()),
        (corners, ("--median-radius", 2)),
        (corners, ("--median-radius", 1, "--passes", 1)),
        (corners, ("--passes", 0)),
    ],
    ids=["one", "corner", "corner, wide", "corner, once", "corner, raw"],
)
def test_hot_voxels_do_not_move_the_mask(simulated, plain, tmp_path, spoil, options):
    """Three in a corner outlive one median of 27 values, since the edges mirror them."""
    expected = mask_of(simulated, tmp_path / "plain", *options) if options else plain[0]
    spoilt = changed(simulated, tmp_path / "in", spoil)
    np.testing.assert_array_equal(mask_of(spoilt, tmp_path / "out", *options), expected)
    outlive = "--passes" in options
    assert ("hot or saturated" in said(tmp_path / "out")) == outlive


def test_nan_and_negative_values_are_no_brain(simulated, plain, tmp_path):
    data = np.array(simulated.image.dataobj[...], np.float32)
    data[:2], data[-1] = np.nan, -5 * data[-1]
    masks = []
    for number in range(2):
        subject = write_subject(
            tmp_path / str(number), data, simulated.affine, simulated.bvals, simulated.bvecs, "dwi.nii"
        )
        masks.append(mask_of(subject, tmp_path / str(number) / "out"))
        data[:2] = 0
    np.testing.assert_array_equal(*masks)
    assert not masks[0][-1].any() and (masks[0] != plain[0]).mean() < 0.002


# --------------------------------------------------------------------------- no background


@pytest.mark.parametrize("name", ["small_64D", "small_101D"])
def test_where_there_is_no_background_all_voxels_are_taken(request, tmp_path, name):
    """Pieces cut out of a brain: Otsu would keep the brighter part."""
    subject = request.getfixturevalue(name)
    b0 = subject.data[..., subject.gradients().b0s_mask].mean(axis=-1).astype(np.float32)
    mask = mask_of(subject, tmp_path / "out")
    np.testing.assert_array_equal(mask, b0 != 0)
    assert "no background" in said(tmp_path / "out") and "taken in" in said(tmp_path / "out")
    assert json.loads(path(tmp_path / "out", "mask", ".json").read_text())["Method"].startswith("all voxels")
    dipys = mask_of(subject, tmp_path / "dipy", "--mask-method", "dipy")
    np.testing.assert_array_equal(dipys, median_otsu(b0, median_radius=4, numpass=4)[1])
    assert dipys.mean() < 0.95
    assert "left out" in said(tmp_path / "dipy")


def test_a_stripped_head_keeps_all_of_its_brain(simulated, plain, tmp_path):
    truth = nibabel.load(simulated.dwi.parent / "dwi_desc-truth_mask.nii.gz").get_fdata() != 0

    def strip(data):
        data[~truth] = 0

    mask = mask_of(changed(simulated, tmp_path / "in", strip), tmp_path / "out", "--median-radius", 3)
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.99
    assert "no background" in said(tmp_path / "out")
    assert "no background" not in said(plain[1])


# --------------------------------------------------------------------------- given masks


def given(simulated, folder, values, *options, **how):
    """Return the mask that a run makes of a given one, and what it says."""
    folder.mkdir()
    file = folder / "brain.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, simulated.affine), file)
    mask = mask_of_given(simulated, folder / "out", file, *options, **how)
    return mask, said(folder / "out", "run-denoise.json")


def mask_of_given(simulated, out, file, *options, **how):
    words = [simulated.dwi, "--mask", file, "--out", out, "--sigma", 40, "--inside-mask", *options]
    warm.run_tool("mpiimg-denoise", *words, timeout=PATIENCE, **how)
    return read(out, "denoised").any(axis=-1)


def test_probabilities_are_cut_at_a_half(simulated, plain, tmp_path):
    from scipy.ndimage import uniform_filter

    blurred = uniform_filter(plain[0].astype(np.float32), 3)
    mask, words = given(simulated, tmp_path / "in", blurred, ranks=2)
    assert not mask[blurred < 0.5].any() and mask[blurred >= 0.5].mean() > 0.99
    assert "voxels of at least 0.5 are inside" in words
    assert " ml, " in words


def test_labels_and_nan_are_said(simulated, plain, tmp_path):
    values = plain[0].astype(np.float32)
    values[:12] *= 41
    values[0] = np.nan
    mask, words = given(simulated, tmp_path / "in", values)
    assert not mask[0].any()
    assert "it holds labels, 1, 41: all but 0 are inside" in words
    assert f"{values[0].size} voxels are NaN or infinite, and count as outside" in words


def test_doubts_about_a_given_mask_are_said(simulated, tmp_path):
    values = np.zeros(simulated.data.shape[:3], np.uint8)
    values[:6], values[18:] = 1, 1
    _, words = given(simulated, tmp_path / "in", values, "--expect-ml", "200,900")
    for text in (
        "its largest piece is 50% of it",
        "100% of the first slice along x",
        "ml is not between the 200 and 900 ml that are expected",
    ):
        assert text in words, words


# --------------------------------------------------------------------------- dwi2mask


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def mrtrixs(subject, folder) -> np.ndarray:
    """Return the mask of MRtrix3's own program."""
    if shutil.which("dwi2mask") is None:
        pytest.skip("MRtrix3 (dwi2mask) is not installed")
    folder.mkdir(exist_ok=True)
    file = folder / "mrtrix.nii.gz"
    words = ["dwi2mask", "-quiet", subject.dwi, "-fslgrad", subject.bvecs, subject.bvals, file]
    subprocess.run(list(map(str, words)), check=True, timeout=60)
    return nibabel.load(file).get_fdata() != 0


def test_dwi2mask_is_mrtrixs_to_the_voxel(simulated, tmp_path):
    mask = mask_of(simulated, tmp_path / "out", "--mask-method", "dwi2mask")
    assert "of the field" in said(tmp_path / "out")
    assert "median radius" not in said(tmp_path / "out")
    np.testing.assert_array_equal(mask, mrtrixs(simulated, tmp_path / "in"))


@pytest.mark.parametrize("stem", ["uih_AP_9_134431", "uih_PA_rot_12_132222"])
def test_dwi2mask_of_real_heads(tmp_path, stem):
    if not (UIH / f"{stem}.nii.gz").exists():
        pytest.skip(f"NO REAL DATA: {UIH} is not there, and nothing is tested on it")
    subject = Subject(*(UIH / f"{stem}{ending}" for ending in (".nii.gz", ".bval", ".bvec")))
    mask = mask_of(subject, tmp_path / "out", "--mask-method", "dwi2mask")
    assert dice(mask, mrtrixs(subject, tmp_path / "in")) >= 0.98
    assert "% of the first slice along z" in said(tmp_path / "out"), "the field ends below the brain"


@pytest.mark.parametrize(
    "shape", ["48x56x40", pytest.param("110x132x110", marks=pytest.mark.long)], ids=["3.9 mm", "1.65 mm"]
)
def test_masks_of_a_head_with_skull_and_scalp(tmp_path, shape):
    words = ("--shape", shape, "--volumes", 12, "--sigma", 40)
    warm.run_tool("mpiimg-simulate", "neuro", *words, "--out", tmp_path / "in", timeout=PATIENCE)
    subject = Subject(*(tmp_path / "in" / f"dwi{ending}" for ending in (".nii.gz", ".bval", ".bvec")))
    truth = nibabel.load(tmp_path / "in" / "dwi_desc-truth_mask.nii.gz").get_fdata() != 0
    for method in ("dwi2mask", "median_otsu"):
        mask = mask_of(subject, tmp_path / method, "--mask-method", method, ranks=2)
        assert dice(mask, truth) >= 0.95, method
        assert record(tmp_path / method, "run-mask.json")["warnings"] == []


# --------------------------------------------------------------------------- ranks


@pytest.fixture(scope="module")
def alone(simulated, tmp_path_factory):
    """What one process writes, by options."""
    made = {}

    def made_of(options):
        if options not in made:
            out = tmp_path_factory.mktemp("alone") / "out"
            made[options] = files(tool("mpiimg-mask", simulated, out, *options))
        return made[options]

    return made_of


def files(out):
    return {name.name: name.read_bytes() for name in out.glob("*_mask.*")}


@pytest.mark.parametrize("ranks", on_site((2,), (3,), (4,)))
@pytest.mark.parametrize(
    "options",
    [
        ("--mask-method", "dwi2mask", "--finalize"),
        ("--median-radius", "16mm", "--dilate", "12mm", "--passes", "2"),
    ],
    ids=["dwi2mask", "mm"],
)
def test_any_number_of_ranks_makes_the_same_mask(simulated, alone, tmp_path, options, ranks):
    out = tool("mpiimg-mask", simulated, tmp_path / "out", *options, ranks=ranks)
    assert files(out) == alone(options)
