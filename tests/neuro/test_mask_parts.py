"""The pieces that masks are made and judged by, without a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage

from mpiimg.engine.boxes import box_slices
from mpiimg.engine.needs import Chunk
from mpiimg.neuro import masks
from mpiimg.neuro.dwi2mask import volumes_of_shells
from mpiimg.neuro.given_masks import judged, value_row
from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.kernels import median, shell_masks
from mpiimg.neuro.kernels.otsu import magnitudes, without_hot
from mpiimg.neuro.lengths import Length, LengthForm, voxel_sizes
from mpiimg.neuro.mask_checks import MaskSize, range_form
from mpiimg.neuro.masks import Counts
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.steps import mask
from mpiimg.neuro.steps.mask import MaskParameters, radius_of

# --------------------------------------------------------------------------- lengths

FORM = LengthForm(voxels=19, mm=100, words=("auto",))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("8mm", "8mm"),
        ("8 MM", "8mm"),
        ("2.50mm", "2.5mm"),
        ("4", "4"),
        ("4.0", "4"),
        ("3 voxels", "3"),
        ("auto", "auto"),
    ],
)
def test_a_length_is_in_mm_or_in_whole_voxels_and_kept_in_one_form(text, kept):
    assert FORM(text) == kept


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2.5", "a whole number of voxels as 4"),
        ("8cm", "a length as 8mm"),
        ("mm", "a length as 8mm"),
        ("1e400 voxels", "a length as 8mm"),
        ("20", "between 0 and 19 voxels"),
        ("-1mm", "between 0 and 100 mm"),
        ("nanmm", "between 0 and 100 mm"),
    ],
)
def test_what_is_no_length_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        FORM(text)


def test_a_median_radius_is_no_larger_than_its_kernel_takes():
    assert mask.MAX_RADIUS == median.MAX_RADIUS


@pytest.mark.parametrize(
    ("radius", "method", "sizes", "voxels"),
    [
        ("auto", "median_otsu", (1.25, 1.25, 1.25), (4, 4, 4)),
        ("auto", "median_otsu", (2.0, 2.0, 2.0), (4, 4, 4)),
        ("auto", "median_otsu", (4.2, 3.5, 3.5), (2, 2, 2)),
        ("auto", "median_otsu", (17.5, 0.84, 0.84), (0, 8, 8)),
        ("auto", "dipy", (4.2, 3.5, 3.5), (4, 4, 4)),
        ("5mm", "median_otsu", (2.0, 1.0, 0.5), (3, 5, 8)),
        ("6", "median_otsu", (2.0, 1.0, 0.5), (6, 6, 6)),
    ],
)
def test_a_radius_in_mm_is_the_nearest_number_of_voxels_along_each_axis_and_at_most_8(
    radius, method, sizes, voxels
):
    assert radius_of(MaskParameters(median_radius=radius, mask_method=method), sizes).voxels == voxels


def test_voxels_are_as_long_as_header_and_affine_say():
    import dataclasses

    import nibabel

    image, _ = image_of((2, 3, 4))
    header = nibabel.Nifti1Header()
    header["magic"] = b"n+1"
    for unit, scale in ((None, 1), ("mm", 1), ("micron", 1e-3), ("meter", 1e3)):
        header.set_sform(np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 5], [0, 0, 3, 0], [0, 0, 0, 1]]), 1)
        header.set_xyzt_units(unit)
        one = dataclasses.replace(image, header=header.binaryblock)
        np.testing.assert_allclose(voxel_sizes(one), np.array([3, 2, 1.5]) * scale, rtol=1e-6)


# --------------------------------------------------------------------------- growth


def grown(block, growth, sizes, thickness=None):
    """Dilate a mask by the stage, block after block."""
    image, _ = image_of(block.shape)
    stage = mask.dilate(masks.volume(image, "m", "uint8"), growth, sizes, masks.volume(image, "g", "uint8"))
    (need,) = stage.reads
    out = []
    for number in range(len(stage.grid)):
        chunk = Chunk.of(stage.grid, number)
        (box,) = need.boxes(chunk)
        out.append(stage.work(chunk, block[box_slices(box)])[0])
    return np.concatenate(out)


@pytest.mark.parametrize("mm", [0.5, 2.0, 3.3, 7.5])
def test_growth_in_mm_reaches_all_voxels_within_it(mm):
    sizes = (3.0, 2.0, 1.1)
    block = (np.random.default_rng(2).random((13, 9, 11)) > 0.99).astype(np.uint8)
    places = np.argwhere(block)
    assert len(places) > 3
    far = [
        min(math.dist(np.multiply(place, sizes), np.multiply(other, sizes)) for other in places)
        for place in np.ndindex(block.shape)
    ]
    expected = np.reshape(far, block.shape) <= mm * (1 + 1e-9)
    np.testing.assert_array_equal(grown(block, Length(mm, "mm"), sizes), expected)


def test_growth_in_voxels_is_along_the_axes():
    block = (np.random.default_rng(2).random((13, 9, 11)) > 0.99).astype(np.uint8)
    expected = scipy.ndimage.binary_dilation(block, iterations=2)
    np.testing.assert_array_equal(grown(block, Length(2, "voxels"), (1, 1, 1)), expected)


# --------------------------------------------------------------------------- given masks


def judge(values, cuts=2):
    """What is found of a mask that is looked at in pieces."""
    return judged(np.array([value_row(part) for part in np.array_split(np.asarray(values), cuts)]), "m.nii")


@pytest.mark.parametrize(
    ("values", "is_probable", "said"),
    [
        ([0, 1, 1, 0], False, None),
        ([0, 255, 255, 0], False, None),
        ([0.0, 0.99999, 0.99999], False, None),
        ([0, -1, -1], False, None),
        ([0.0, 0.2, 0.7, 1.0], True, "probabilities, up to 1: voxels of at least 0.5 are inside"),
        ([-0.05, 0.0, 0.4, 1.06], True, "probabilities, up to 1.06"),
        ([0.0, 120.5, 80.2, 1.0], False, "from 1 to 120.5, are those of an image and not of a mask"),
        ([0.0, 12.5, -80.2, 1.0], False, "from -80.2 to 12.5, are those of an image"),
        ([0, 2, 41, 3, 2], False, "labels, 2, 3, 41: all but 0 are inside"),
        (np.arange(100), False, "labels, 99 of them from 1 to 99"),
        ([0, 1, 1000], False, "labels, 1 or more of them from 1 to 1000"),
        ([0.0, 1.0, np.nan, np.inf], False, "2 voxels are NaN or infinite, and count as outside"),
    ],
    ids=str,
)
def test_what_the_values_of_a_mask_mean(values, is_probable, said):
    found = judge(values)
    assert found.value is is_probable
    assert bool(found.warnings) == (said is not None)
    assert said is None or said in found.warnings[0]


# --------------------------------------------------------------------------- doubts


def size_of(shape=(60, 72, 60), sizes=(3.0, 3.0, 3.0), voxels=45_000, with_signal=None, faces=(0,) * 6):
    return MaskSize(Counts((0, voxels), with_signal, faces), shape, sizes)


def doubts(largest=None, expected=None, all_inside=False, **about):
    size = size_of(**about)
    return size.doubts(size.voxels if largest is None else largest, expected, all_inside)


def test_a_plausible_brain_is_not_doubted():
    assert size_of().ml == 1215
    assert size_of().about() == {"VolumeML": 1215.0, "ShareOfField": 0.173611}
    assert doubts() == []


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (
            {"voxels": 5000, "with_signal": 259_200, "expected": (1, 900)},
            "1.93% of the voxels that are not 0",
        ),
        ({"voxels": 45_000, "with_signal": 47_000}, "96% of the voxels that are not 0"),
        ({"voxels": 250_000, "sizes": (1, 1, 1)}, "96% of the field"),
        ({"largest": 40_000}, "its largest piece is 89% of it: 5000 voxels"),
        ({"faces": (0, 0, 0, 200, 0, 0)}, "6% of the last slice along y"),
        ({"faces": (250, 0, 0, 0, 0, 0)}, "6% of the first slice along z"),
        ({"voxels": 18_000}, "486 ml is not between the 500 and 2300 ml that are plausible"),
        ({"voxels": 86_000}, "2322 ml is not between"),
        ({"expected": (20, 900)}, "1215 ml is not between the 20 and 900 ml that are expected"),
    ],
    ids=str,
)
def test_doubts(about, said):
    (doubt,) = doubts(**about)
    assert said in doubt


@pytest.mark.parametrize(
    "about",
    [
        {"voxels": 18_000, "expected": (400, 2000)},
        {"voxels": 18_000, "shape": (39, 72, 60)},
        {"voxels": 90_000, "sizes": (0.9, 3, 3), "shape": (140, 72, 60)},
        {"faces": (0, 0, 0, 180, 0, 0)},
        {"voxels": 46_999, "with_signal": 47_000, "all_inside": True},
        {"largest": 40_600},
    ],
    ids=str,
)
def test_no_doubts_where_a_head_would_not_fit_or_was_not_expected(about):
    assert doubts(**about) == []


def test_a_range_of_volumes():
    assert range_form(" 200, 9e2") == "200,900"
    for text in ("200", "900,200", "a,b", "-1,5", "1,2,3", "nan,5", "5,inf"):
        with pytest.raises(ValueError, match="two volumes in ml"):
            range_form(text)


# --------------------------------------------------------------------------- hot voxels


def range_of(values, cuts=3):
    return without_hot(np.stack([magnitudes(part) for part in np.array_split(np.float32(values), cuts)]))


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_hot_voxels_are_few_and_far_above_all_others(scale):
    values = np.float32(scale * np.random.default_rng(0).gamma(2.0, 200.0, 5000))
    plain = (values.min(), values.max())
    assert range_of(values) == (*plain, 0)
    assert range_of([*values, 1.2 * values.max()])[2] == 0, "a little brighter is not hot"
    for hot in ([65535.0], [9000.0, 65535.0, 65535.0]):
        assert range_of([*values, *np.multiply(hot, scale)]) == (*plain, len(hot))
    assert range_of([*values, *[65535.0] * 11])[2] == 0, "0.2 % are no hot voxels any more"
    assert range_of([*(-values), *values, 65535.0]) == (-values.max(), values.max(), 1)
    assert range_of([*np.zeros(5000), *np.full(20, 900.0)]) == (0, 900, 0)


# --------------------------------------------------------------------------- dwi2mask


def test_the_optimal_threshold_correlates_as_well_as_the_best_of_all():
    rng = np.random.default_rng(4)
    for _ in range(5):
        inside = rng.random((9, 11, 8)) < rng.uniform(0.1, 0.6)
        values = np.where(inside, rng.normal(900, 150, inside.shape), rng.gamma(2, 60, inside.shape))
        values = values.astype(np.float32)

        def correlation(threshold, values=values):
            return np.corrcoef(values.ravel(), (values > threshold).ravel())[0, 1]

        best = max(correlation(level) for level in np.linspace(values.min(), values.max(), 500)[1:-1])
        assert correlation(shell_masks.optimal_threshold(values)) > best - 0.002


def test_majority_is_the_median_of_the_voxels_in_the_field():
    volume = np.random.default_rng(1).random((4, 6, 5)) < 0.5
    for place in np.ndindex(volume.shape):
        window = volume[tuple(slice(max(i - 1, 0), i + 2) for i in place)]
        assert shell_masks.majority(volume)[place] == (np.median(window) > 0)


def test_one_piece_has_no_holes_and_no_islands():
    volume = np.zeros((12, 12, 12), bool)
    volume[2:9, 2:9, 2:9] = True
    expected = shell_masks.majority(volume)
    volume[4:7, 4:7, 4:7] = False
    volume[10:, 10:, 10:] = True
    np.testing.assert_array_equal(shell_masks.one_piece(volume), expected)


def test_what_hangs_on_a_thin_bridge_is_cut_off_but_a_thick_one_stays():
    brain = np.zeros((24, 15, 15), bool)
    brain[1:12, 2:13, 2:13] = True
    eye = brain.copy()
    eye[14:21, 4:11, 4:11] = True
    thin, thick = eye.copy(), eye.copy()
    thin[12:14, 7, 7] = True
    thick[12:14, 4:11, 4:11] = True
    cut = shell_masks.without_bridges(thin, 2)
    assert not cut[15:].any() and cut[1:11, 2:13, 2:13].all()
    np.testing.assert_array_equal(shell_masks.without_bridges(thick, 2), thick)
    np.testing.assert_array_equal(shell_masks.without_bridges(thin, 0), thin)


def table(*bvals):
    return Gradients(tuple(bvals), ((0.0, 0.0, 0.0),) * len(bvals), 50.0)


def test_shells_are_the_unweighted_volumes_and_what_lies_together():
    jittered = [0.0, *[990.0, 1005.0, 1010.0] * 3, 5.0, *[1990.0, 2000.0, 2060.0] * 2, 1500.0]
    shells = volumes_of_shells(table(*jittered))
    assert shells == ((0, 10), tuple(range(1, 10)), tuple(range(11, 17)))
    grid = volumes_of_shells(table(0.0, *np.repeat(np.arange(500.0, 4000, 500), 3)))
    assert grid == ((0,), tuple(range(1, 22)))
    assert volumes_of_shells(table(0.0, 0.0)) == ((0, 1),)
