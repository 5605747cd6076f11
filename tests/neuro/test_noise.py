"""Noise level: the residual of the tensor fit, the background, the choice between them, and maps."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.stats import chi2
from support import launch, warm
from support.ranks import on_site
from support.subjects import PATIENCE, digests, path, read, write_subject

from mpiimg.engine.boxes import box_slices
from mpiimg.errors import BadInput
from mpiimg.neuro import noise
from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.kernels.tensor import design_matrix, fit_iwls
from mpiimg.neuro.kernels.unexplained import unexplained
from mpiimg.neuro.masks import Mask, volume
from mpiimg.neuro.noise_background import Background, piesno
from mpiimg.neuro.noise_fit import FitLevel, fit_level, volumes_problem
from mpiimg.neuro.samples import image_of
from mpiimg.simulate.neuro import SimulatedSubject

SHAPE = (40, 48, 32)


def head(sigma=40.0, volumes=20, shells=None, shape=SHAPE):
    """Return a simulated head: voxels (V, z, y, x), the mask of its brain and its gradients."""
    brain = SimulatedSubject(shape, volumes, sigma, 7, shells=shells)
    values = np.stack([brain.volume(v, 0, shape[2]) for v in range(volumes)])
    bvals, bvecs = brain.gradients
    table = Gradients(tuple(bvals.tolist()), tuple(map(tuple, bvecs.tolist())), 50.0)
    return values, brain.truth(0, shape[2])["mask"], table


def described(values, mask):
    """Return the image, array and mask that stages are declared with."""
    image = image_of(values.shape)[0]
    offsets = np.concatenate([[0], np.cumsum(np.count_nonzero(mask, axis=(1, 2)))])
    return image, image.array("dwi"), Mask(volume(image, "mask", "uint8"), tuple(offsets.tolist()))


def reduced(stage, *arrays):
    """Return what a reduction finds in whole arrays, chunk by chunk."""
    rows = []
    for number in range(len(stage.grid)):
        chunk = stage.chunk(number)
        blocks = []
        for need, array in zip(stage.reads, arrays, strict=True):
            blocks.append(need.join([array[box_slices(box)] for box in need.boxes(chunk)]))
        rows.append(stage.work(chunk, *blocks))
    return stage.finish(np.array(rows, stage.row[1]))


def fitted(values, mask, table):
    image, dwi, described_mask = described(values, mask)
    return reduced(fit_level(image, dwi, described_mask, table, False), values, mask)


def plain_iwls(signal, design):
    """Fit (V, n) signals: weights from the signals, then twice from what is predicted."""
    logs, weights = np.log(np.maximum(signal, 1e-30)), np.maximum(signal, 1e-30) ** 2.0
    for _ in range(3):
        scaled = weights / weights.max(axis=0)
        normal = np.einsum("vn,vp,vq->npq", scaled, design, design)
        beta = np.linalg.solve(normal, np.einsum("vn,vp,vn->np", scaled, design, logs)[..., None])[..., 0]
        weights = np.exp(2 * design @ beta.T)
    return beta, np.sqrt(weights)


def plain_residuals(signal, design):
    """Return residuals over sqrt(1 - leverage), and predictions, by the definition."""
    _, predicted = plain_iwls(signal, design)
    rows = predicted.T[:, :, None] * design
    hat = rows @ np.linalg.inv(np.swapaxes(rows, 1, 2) @ rows) @ np.swapaxes(rows, 1, 2)
    leverage = np.diagonal(hat, axis1=1, axis2=2).T
    return (signal - predicted) / np.sqrt(1 - leverage), predicted


def design_of(table, volumes):
    return design_matrix(np.array(table.bvals)[volumes], np.array(table.bvecs)[volumes])


def test_residuals_with_leverage_are_those_of_the_definition():
    values, mask, table = head()
    design = design_of(table, np.arange(len(values)))
    # In units of 1/b near 1, for the plain inverse.
    near_one = design * np.array([1e-3] * 6 + [1.0])
    signal = values[:, mask != 0][:, ::7].astype(float)
    expected, predicted = plain_residuals(signal, near_one)
    residuals, smallest = unexplained(signal, design, fit_iwls(signal, design, 1e-30))
    np.testing.assert_allclose(residuals, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(smallest, predicted.min(axis=0), rtol=1e-5)


def test_the_level_is_that_of_the_definition():
    values, mask, table = head(sigma=80.0)
    shells = np.flatnonzero(np.array(table.bvals) <= 1500)
    eroded = binary_erosion(mask, border_value=1)
    near_one = design_of(table, shells) * np.array([1e-3] * 6 + [1.0])
    residuals, predicted = plain_residuals(values[shells][:, eroded].astype(float), near_one)
    variances, smallest = (residuals**2).mean(axis=0), predicted.min(axis=0)
    nu, counted = len(shells) - 7, np.ones(len(smallest), bool)
    for _ in range(4):
        sigma = np.sqrt(np.median(variances[counted]) / (chi2.median(nu) / nu))
        used, counted = counted, smallest > 3 * sigma
    found = fitted(values, mask, table).value
    assert found.voxels == np.count_nonzero(used)
    assert found.sigma == pytest.approx(sigma, rel=1e-6)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("snr", "volumes"),
    [
        (10, 20),
        pytest.param(5, 20, marks=LONG),
        pytest.param(30, 20, marks=LONG),
        pytest.param(5, 120, marks=LONG),
        pytest.param(30, 120, marks=LONG),
    ],
)
def test_the_level_is_within_a_tenth_of_the_truth(snr, volumes):
    """SNR of white matter at b = 0; 20 volumes have one shell, 120 have three."""
    sigma = 900.0 / snr
    found = fitted(*head(sigma, volumes))
    assert not found.value.problem
    assert found.value.sigma == pytest.approx(sigma, rel=0.1)
    assert not found.warnings


def test_bits_do_not_depend_on_the_other_voxels_of_a_slab():
    values, mask, table = head()
    design = design_of(table, np.arange(len(values)))
    signal = values[:, mask != 0][:, :100].astype(float)
    whole, _ = unexplained(signal, design, fit_iwls(signal, design))
    part, _ = unexplained(signal[:, 33:40], design, fit_iwls(signal[:, 33:40], design))
    np.testing.assert_array_equal(part, whole[:, 33:40])


def test_zeros_and_hot_voxels_do_not_move_the_level():
    values, mask, table = head()
    level = fitted(values, mask, table).value.sigma
    spoilt = values.copy()
    spoilt[:, mask == 0] = 0
    spoilt[:, 0, 0, 0] = 32767
    assert fitted(spoilt, mask, table).value.sigma == level
    spoilt[:, 16, 24, 20] = 32767
    spoilt[:, 15, 20, 20] = 0
    assert fitted(spoilt, mask, table).value.sigma == pytest.approx(level, rel=1e-3)


def test_a_slab_of_one_slice_is_not_eroded_away():
    values, mask, table = head(shape=(72, 72, 4))
    one = slice(2, 3)
    assert not fitted(values[:, one], mask[one], table).value.problem


def test_interpolated_series_are_warned_about():
    values, mask, table = head()
    shifted = ((values[..., :-1].astype(np.int32) + values[..., 1:]) // 2).astype(np.int16)
    found = fitted(shifted, np.ascontiguousarray(mask[..., :-1] * mask[..., 1:]), table)
    (warning,) = found.warnings
    assert "seems to have been interpolated" in warning


def test_seven_volumes_leave_no_residual():
    _, _, table = head(volumes=20, shape=(8, 8, 4))
    assert not volumes_problem(table)
    assert "the 12 volumes with b <= 1500 are too few" in volumes_problem(table.of_volumes(range(12)))
    assert "there are no gradients" in volumes_problem(None)


def background_of(values, mask):
    image, dwi, described_mask = described(values, mask)
    found = []
    stage = piesno(image, dwi, described_mask.array, 1, found.append, None)
    reduced(stage, values, mask)
    return found[0]


def test_zeroed_corners_are_no_reason_to_refuse_the_background():
    """A field of view that was rotated has zeros in its corners, and PIESNO finds what it found before."""
    values, mask, _ = head()
    whole = background_of(values, mask)
    _, y, x = np.indices(mask.shape)
    values[:, (x + y < 20) | (x + y > 66)] = 0
    cut = background_of(values, mask)
    assert np.mean(values[:, mask == 0] == 0) > 0.1
    np.testing.assert_allclose(cut.sigma, whole.sigma, rtol=0.05)
    assert cut.level == pytest.approx(40, rel=0.05)


def test_without_background_there_is_no_level_of_it():
    values, mask, _ = head()
    values[:, mask == 0] = 0
    assert "there is no background: 0 voxels" in background_of(values, mask).problem


NONE = Background(None, "there is no background")
FIT = FitLevel(4.0, 10000, 0.0)


@pytest.mark.parametrize(
    ("fit", "problem", "background", "method", "level", "words"),
    [
        (FIT, "", 3.0, "piesno", 3.0, ()),
        (FIT, "", 5.9, "piesno", 5.9, ()),
        (FIT, "", 2.5, "fit", 4.0, ("level of 4,", "one of 2.5:", "4, is taken")),
        (FIT, "", 7.0, "fit", 4.0, ("level of 4,", "one of 7:")),
        (FIT, "", None, "fit", 4.0, ("there is no background", "nothing confirms it")),
        (None, "no gradients", 3.0, "piesno", 3.0, ()),
        (
            None,
            "no gradients",
            None,
            None,
            None,
            ("no gradients", "there is no background", "a biased guess"),
        ),
    ],
)
def test_the_choice_between_the_brain_and_the_background(fit, problem, background, method, level, words):
    said = NONE if background is None else Background(np.full((1, 3), background))
    found = noise.choose("dwi.nii", fit, problem, said)
    text = " ".join(found.warnings)
    assert bool(text) == bool(words)
    assert all(word in text for word in words)
    if method is None:
        assert found.value is None
    else:
        assert (found.value.method, found.value.level) == (method, level)
        assert found.value.found == {
            **({"fit": fit.sigma} if fit and (background or method == "fit") else {}),
            **({"piesno": background} if background else {}),
        }


@pytest.mark.parametrize("text", ["auto", "fit", "piesno", "estimate", "study"])
def test_words_of_methods(text):
    assert noise.parse(text) == text


def test_numbers_and_maps():
    assert noise.parse("2.5") == 2.5
    assert noise.parse("maps/sigma.nii.gz") == Path("maps/sigma.nii.gz")
    for text in ("0", "-1", "nan", "sigma.txt"):
        with pytest.raises(BadInput, match=f"--sigma {text}: give auto, fit"):
            noise.parse(text)


# --------------------------------------------------------------------------- the tool


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A head with enough directions for a residual, and the mask of its brain."""
    folder = tmp_path_factory.mktemp("noise")
    values, mask, table = head(shape=(24, 28, 20))
    subject = write_subject(folder, values.T, np.diag([7, 7, 8, 1]), table.bvals, np.array(table.bvecs))
    nibabel.save(nibabel.Nifti1Image(mask.T, subject.affine), folder / "mask.nii.gz")
    return subject, folder / "mask.nii.gz"


def denoised(subject, mask, out, *options, check=True, ranks=1):
    """Run mpiimg-denoise, and return what it said."""
    words = [subject.dwi, *(("--mask", mask) if mask else ()), "--out", out, "--block-radius", 2, *options]
    return warm.run_tool("mpiimg-denoise", *words, timeout=PATIENCE, check=check, ranks=ranks)


def sidecar_of(out):
    return json.loads(path(out, "noise", ".json").read_text())


@pytest.mark.tool
def test_both_levels_stand_in_the_sidecars(on_disk, tmp_path):
    """Gradients beside the image are found."""
    subject, mask = on_disk
    denoised(subject, mask, tmp_path / "out")
    said = sidecar_of(tmp_path / "out")
    assert said["NoiseMethod"] == "piesno"
    assert said["NoiseLevelsFound"]["fit"] == pytest.approx(40, rel=0.1)
    assert said["NoiseLevelsFound"]["piesno"] == said["NoiseLevel"] == pytest.approx(40, rel=0.05)
    series = json.loads(path(tmp_path / "out", "denoised", ".json").read_text())
    assert {key: said[key] for key in ("NoiseMethod", "NoiseLevel", "NoiseLevelsFound")} == {
        key: series[key] for key in ("NoiseMethod", "NoiseLevel", "NoiseLevelsFound")
    }


@pytest.mark.tool
@pytest.mark.parametrize(("ranks",), on_site((2,), (3,)))
def test_a_zeroed_background_leaves_the_level_of_the_brain_on_any_ranks(on_disk, tmp_path, ranks):
    subject, mask = on_disk
    data = np.asarray(subject.image.dataobj) * (np.asarray(nibabel.load(mask).dataobj) != 0)[..., None]
    zeroed = write_subject(tmp_path, data.astype(np.int16), subject.affine, subject.bvals, subject.bvecs)
    done = denoised(zeroed, mask, tmp_path / "one")
    assert "there is no background" in done.stderr
    assert "nothing confirms it" in done.stderr
    said = sidecar_of(tmp_path / "one")
    assert said["NoiseMethod"] == "fit"
    assert said["NoiseLevel"] == pytest.approx(40, rel=0.1)
    denoised(zeroed, mask, tmp_path / "many", ranks=ranks)
    assert digests(tmp_path / "many") == digests(tmp_path / "one")


@pytest.mark.tool
def test_the_fit_is_refused_where_it_says_nothing(simulated, alone, tmp_path):
    done = denoised(simulated, path(alone, "mask"), tmp_path / "out", "--sigma", "fit", check=False)
    assert done.returncode == 2
    assert "--sigma fit: the 12 volumes with b <= 1500 are too few" in done.stderr


def save_map(folder, values, affine, name="sigma.nii.gz"):
    nibabel.save(nibabel.Nifti1Image(np.asarray(values, np.float32), affine), folder / name)
    return folder / name


@pytest.mark.tool
@pytest.mark.parametrize(("ranks", "name"), on_site((2, "sigma.nii.gz"), (3, "sigma.nii")))
def test_a_level_by_voxel_is_taken_from_a_map(on_disk, tmp_path, ranks, name):
    from dipy.denoise.nlmeans import nlmeans

    subject, _ = on_disk
    levels = np.random.default_rng(1).uniform(20, 60, subject.data.shape[:3]).astype(np.float32)
    sigma = save_map(tmp_path, levels, subject.affine, name)
    denoised(subject, None, tmp_path / "out", "--sigma", sigma)
    np.testing.assert_array_equal(read(tmp_path / "out", "noise"), levels)
    said = sidecar_of(tmp_path / "out")
    assert (said["NoiseMethod"], said["SigmaBy"], said["SigmaMap"]) == ("map", "voxel", name)
    assert said["NoiseLevel"] == pytest.approx(np.median(levels), rel=1e-6)
    expected = nlmeans(
        *(np.pad(one, 2, mode="reflect") for one in (subject.data[..., 3], levels.astype(float))),
        patch_radius=1,
        block_radius=2,
        rician=False,
        num_threads=1,
        method="classic",
    )[2:-2, 2:-2, 2:-2]
    error = np.abs(read(tmp_path / "out", "denoised")[..., 3] ** 2 - expected**2)
    assert (error <= 1e-5 * np.maximum(expected**2, 2 * levels**2)).all()
    denoised(subject, None, tmp_path / "many", "--sigma", sigma, ranks=ranks)
    assert digests(tmp_path / "many") == digests(tmp_path / "out")


@pytest.mark.tool
def test_gaps_of_a_map_take_its_median_with_a_word(on_disk, tmp_path):
    """As in a map that was made inside a mask: zeros outside are of no account, holes inside are said."""
    subject, mask = on_disk
    inside = np.asarray(nibabel.load(mask).dataobj) != 0
    levels, (hole, below, *_) = np.where(inside, 30.0, 0.0), map(tuple, np.argwhere(inside))
    levels[hole], levels[below] = np.nan, -1
    done = denoised(subject, mask, tmp_path / "out", "--sigma", save_map(tmp_path, levels, subject.affine))
    assert "2 voxels inside the mask are not above 0; they take the median of the others, 30" in done.stderr
    np.testing.assert_array_equal(read(tmp_path / "out", "noise"), 30.0)


@pytest.mark.tool
def test_maps_that_are_none_of_this_image_are_refused(on_disk, tmp_path):
    subject, mask = on_disk
    levels = np.full(subject.data.shape[:3], 30.0)
    elsewhere = save_map(tmp_path, levels, subject.affine + np.diag([1, 0, 0, 0]))
    empty = save_map(tmp_path, 0 * levels, subject.affine, "empty.nii")
    for sigma, words in (
        (elsewhere, "is not in the space of"),
        (empty, "no voxel of this map of the noise level is above 0"),
        (tmp_path / "missing.nii", "cannot read this map of the noise level"),
    ):
        done = denoised(subject, mask, tmp_path / "out", "--sigma", sigma, check=False)
        assert done.returncode == 2
        assert words in done.stderr


# --------------------------------------------------------------------------- one head in four states

#: A whole head, 64 x 64 x 20 voxels and 17 volumes, outside this repository.
UIH_DMRI = launch.REPOSITORY.parent / "shared" / "data" / "uih-dmri"


@pytest.mark.tool
@pytest.mark.long
def test_one_head_in_four_states_has_one_noise_level_and_one_fa(tmp_path):
    """As scanned, skull-stripped, its background zeroed, and that with a hot voxel, which changes nothing."""
    name = "uih_AP_9_134431"
    if not (UIH_DMRI / f"{name}.nii.gz").exists():
        pytest.skip(f"NO REAL DATA: {UIH_DMRI} is not there, and nothing is tested on it")
    specification = importlib.util.spec_from_file_location(
        "noise_tables", launch.REPOSITORY / "benchmarks" / "noise.py"
    )
    tables = importlib.util.module_from_spec(specification)
    sys.modules["noise_tables"] = tables
    specification.loader.exec_module(tables)
    series = tables.Series(name, *(UIH_DMRI / f"{name}{end}" for end in (".nii.gz", ".bval", ".bvec")))
    mask = tables.mask_of(series, tmp_path / "mask", 1)
    scanned, *others = tables.head_rows(series, mask, tmp_path, 1)
    for row in others:
        assert 1 / 1.5 < row["sigma"] / scanned["sigma"] < 1.5
        assert row["fa"] == pytest.approx(scanned["fa"], abs=0.01)
    zeroed, hot = others[1:]
    assert (hot["sigma"], hot["fa"]) == (zeroed["sigma"], zeroed["fa"])


def test_residuals_beyond_all_numbers_tell_nothing_of_their_correlation():
    """Real series have voxels of hardly any signal, of which a fit says anything; NumPy is not to say so."""
    from mpiimg.neuro.noise_fit import _correlations

    residuals = np.array([[1.0, 2.0, np.inf, 1.0], [2.0, 4.0, -np.inf, 1.0]], np.float32)
    squares = (residuals.astype(np.float64) ** 2).sum(axis=0)
    numbers = np.arange(4).reshape(1, 1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        total, count = _correlations(residuals, squares, numbers[:, :, :-1], numbers[:, :, 1:])
    assert count == 1 and total == pytest.approx(1.0)
