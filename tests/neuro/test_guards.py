"""Guards of the neuro steps, each by the reason why it is there, on blocks without a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpiimg.engine.array import Array, Packing
from mpiimg.engine.needs import Chunk
from mpiimg.errors import BadInput
from mpiimg.neuro import gradients, images, maps, masks, median_otsu
from mpiimg.neuro.kernels.otsu import magnitudes
from mpiimg.neuro.lengths import Length
from mpiimg.neuro.noise_background import count_zeros, piesno
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.steps import denoise, mask
from mpiimg.neuro.subject import Noise


def chunk_of(stage, number: int) -> Chunk:
    return Chunk(number, stage.grid.axes, stage.grid.bounds(number))


def work(stage, *blocks, number: int = 0):
    return stage.work(chunk_of(stage, number), *blocks)


# The mask.


def test_a_hole_that_crosses_all_slices_is_filled_since_finalizing_is_one_chunk():
    """Cut into slabs, the hole would be open at their ends, and so no hole."""
    image, _ = image_of((40, 9, 9))
    solid, closed = masks.volume(image, "mask", "uint8"), masks.volume(image, "closed", "uint8")
    block = np.zeros((40, 9, 9), np.uint8)
    block[2:38, 2:7, 2:7] = 1
    block[3:37, 4, 4] = 0
    stage = mask.finalize(solid, closed)
    assert len(stage.grid) == 1
    (finalized,) = work(stage, block)
    assert finalized[3:37, 4, 4].all()


def test_nan_and_infinity_count_as_background_in_the_mean_of_the_b0_volumes():
    image, _ = image_of((2, 3, 4, 5))
    image = image.made_of("float32")
    block = np.full((2, 3, 4, 5), 6, np.float32)
    block[0, 0, 0, 0], block[1, 1, 1, 1] = np.nan, np.inf
    (mean,) = work(
        median_otsu.b0_mean(image, image.array("dwi"), (0, 1), masks.volume(image, "b0", "float32")), block
    )
    assert mean[0, 0, 0] == mean[1, 1, 1] == 3 and np.delete(mean.ravel(), [0, 26]).min() == 6


def test_voxels_at_the_threshold_are_outside_the_mask():
    image, _ = image_of((2, 3, 4))
    stage = median_otsu.above_threshold(
        masks.volume(image, "b0", "float32"), 2.0, median_otsu.Span(0, 9), masks.volume(image, "m", "uint8")
    )
    block = np.array([[[1.0, 2.0, 2.5]]], np.float32)
    assert work(stage, block)[0].tolist() == [[[False, False, True]]]


def test_an_empty_mask_ends_the_run_and_names_the_mask():
    image, _ = image_of((4, 3, 2))
    stage = masks.count_voxels(masks.volume(image, "mask", "uint8"), "brain.nii")
    with pytest.raises(BadInput, match=r"^brain\.nii is empty: .*--mask"):
        stage.finish(np.zeros((len(stage.grid), stage.grid.block[0] + 5), np.int64))


def test_an_image_that_is_the_same_everywhere_has_no_threshold_and_says_so():
    image, _ = image_of((4, 3, 2))
    radius = median_otsu.Radius(Length(4, "voxels"), (4, 4, 4))
    stage = median_otsu.value_range(masks.volume(image, "b0", "float32"), "b0.nii", radius, False)
    with pytest.raises(BadInput, match="the smoothed b0 is 3 everywhere"):
        stage.finish(np.stack([magnitudes(np.full(5, 3, np.float32))] * 2))


# The noise level.


def found_by_piesno(rows, whole_slices=False):
    """What PIESNO says by rows of level, voxels of noise, those of them inside, and voxels outside."""
    image, _ = image_of((6, 4, 3, 2))
    said = []
    stage = piesno(
        image, image.array("dwi"), masks.volume(image, "mask", "uint8"), 1, said.append, None, whole_slices
    )
    stage.finish(np.array(rows, np.float64))
    return said[0]


@pytest.mark.parametrize("whole_slices", [False, True])
@pytest.mark.parametrize(("inside", "is_used"), [(0, True), (100, True), (101, False)])
def test_piesno_that_takes_tissue_for_noise_is_not_used(inside, is_used, whole_slices):
    """A tenth of what it takes for noise may lie inside the mask."""
    found = found_by_piesno([[20.0, 1000, inside, 2000]], whole_slices)
    assert (found.sigma is not None) == is_used
    assert ("finds no noise outside the brain mask" in found.problem) != is_used


@pytest.mark.parametrize("whole_slices", [False, True])
def test_slices_in_which_piesno_finds_no_noise_take_the_median_of_the_others(whole_slices):
    rows = [[16.0, 9, 0, 500], [np.nan, 0, 0, 500], [0.0, 0, 0, 500], [24.0, 9, 0, 500]]
    found = found_by_piesno(rows, whole_slices)
    assert found.sigma.tolist() == [[16, 20, 20, 24]]
    assert "no noise in 2 slices" in found.warnings[0]


def test_slices_whose_noise_is_tissue_take_the_median_of_the_others():
    """Far off the others, or what is taken for noise lies in the mask; the study believes them."""
    rows = [[20.0, 90, 0, 500], [20.0, 90, 0, 500], [370.0, 20, 0, 500], [24.0, 10, 9, 500]]
    assert found_by_piesno(rows).sigma.tolist() == [[20, 20, 20, 20]]
    assert found_by_piesno(rows, whole_slices=True).sigma.tolist() == [[20, 20, 370, 24]]


def test_little_background_is_none():
    assert "999 voxels outside the mask" in found_by_piesno([[20.0, 900, 0, 999]]).problem
    assert found_by_piesno([[20.0, 900, 0, 1000]]).sigma is not None
    assert found_by_piesno([[20.0, 900, 0, 999]], whole_slices=True).sigma is not None


@pytest.mark.parametrize(("zeros", "is_noise"), [(10, True), (11, False)])
def test_to_the_study_a_background_of_which_more_than_a_tenth_is_zero_is_not_noise(zeros, is_noise):
    image, _ = image_of((6, 4, 3, 2))
    stage = count_zeros(image, image.array("dwi"), masks.volume(image, "mask", "uint8"), str)
    assert stage.finish(np.array([[60, zeros], [40, 0]])).value is is_noise


def test_an_image_without_voxels_outside_the_mask_has_no_noise_background():
    image, _ = image_of((6, 4, 3, 2))
    stage = count_zeros(image, image.array("dwi"), masks.volume(image, "mask", "uint8"), str)
    assert stage.finish(np.array([[0, 0]])).value is False


def test_a_chunk_without_masked_voxels_is_denoised_to_nothing():
    image, values = image_of((1, 8, 6, 5))
    voxels = Array("denoised", "vn", (1, 0), "float32", Packing("n", "z", (0,) * 9))
    stage = denoise.denoise(
        image,
        image.array("dwi"),
        masks.volume(image, "mask", "uint8"),
        voxels,
        Noise(np.full((1, 1), 40.0), "given", 40.0),
        denoise.DenoiseParameters(),
    )
    (packed,) = work(stage, values, np.zeros((4, 6, 5), np.uint8))
    assert packed.shape == (1, 0)


# The fit.


def test_a_fitted_s0_beyond_float32_is_written_as_the_largest_float32():
    """Where hardly any signal is left, exp of the fit overflows float32; infinities would spoil means."""
    from mpiimg.neuro.kernels.tensor import design_matrix

    bvecs = np.vstack([np.zeros((1, 3)), np.eye(3), (1 - np.eye(3)) / np.sqrt(2)])
    design = design_matrix(np.array([0.0] + [1000.0] * 6), bvecs)
    tensors = np.zeros((7, 2))
    tensors[[0, 2, 5]], tensors[6] = 1e-3, [-200, -3]
    drawn = maps.draw(np.ones((7, 2), np.float32), design, tensors, np.eye(3), "bvec", "dipy")
    assert np.isfinite(drawn).all()
    assert drawn[maps.ROWS["s0"][0], 0] == np.finfo(np.float32).max
    np.testing.assert_allclose(drawn[maps.ROWS["s0"][0], 1], np.exp(3), rtol=1e-6)


def test_rotated_directions_and_tensors_have_the_same_bits_however_many_are_rotated_at_once():
    """A matrix product by BLAS adds, and fuses products with sums, in ways that follow the shape."""
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    vectors, tensors = rng.normal(size=(3, 257)), rng.normal(size=(6, 257))
    for rotate, values in ((maps._rotate, vectors), (maps._rotate_tensor, tensors)):
        whole = rotate(rotation, values)
        pieces = [
            rotate(rotation, np.ascontiguousarray(values[:, i : i + n]))
            for i, n in ((0, 1), (1, 7), (8, 249))
        ]
        assert np.concatenate(pieces, axis=1).tobytes() == whole.tobytes()


def test_rotated_directions_are_sums_in_their_order_with_each_product_rounded():
    rng = np.random.default_rng(2)
    rotation, vectors = rng.normal(size=(3, 3)), rng.normal(size=(3, 64))
    expected = [
        [sum(float(rotation[i, j]) * float(vectors[j, n]) for j in range(3)) for n in range(64)]
        for i in range(3)
    ]
    assert maps._rotate(rotation, vectors).tolist() == expected


def test_the_frame_of_bvecs_turns_x_round_where_the_affine_keeps_its_handedness():
    turned = gradients.bvec_to_scanner(np.diag([2.0, 2, 2, 1]))
    np.testing.assert_array_equal(turned, np.diag([-1.0, 1, 1]))
    np.testing.assert_array_equal(gradients.bvec_to_scanner(np.diag([-2.0, 2, 2, 1])), np.diag([-1.0, 1, 1]))


# Images.


def test_integers_without_scaling_are_not_looked_through_for_nan():
    image, _ = image_of((2, 3, 4, 5))
    assert images.count_nonfinite(image, image.array("dwi")) is None
    real = image.made_of("float32")
    stage = images.count_nonfinite(real, real.array("dwi"))
    assert stage.finish(np.array([0, 0])).warnings == ()
    (warning,) = stage.finish(np.array([1, 2])).warnings
    assert warning == f"{Path('none.nii')}: 3 voxels are NaN or infinite, and are taken as 0"
