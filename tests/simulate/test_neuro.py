"""The simulated diffusion subject: slabs do not matter, and the truth is the truth."""

from itertools import pairwise

import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel, fractional_anisotropy, from_lower_triangular
from dipy.sims.voxel import single_tensor
from numpy.testing import assert_allclose, assert_array_equal
from support import reference

from mpiimg.simulate import fields, head, neuro
from mpiimg.simulate.gradients import gradients
from mpiimg.simulate.head import TISSUES
from mpiimg.simulate.neuro import SimulatedSubject

SHAPE = (23, 27, 19)

CUTS = [[0, 19], [0, 1, 19], [0, 7, 7, 13, 19], list(range(20))]


def forget():
    """Empty the caches, so that what comes next is computed anew."""
    for function in (head.slice_truth, head._tissue, fields._lattice, neuro._cached_gradients):
        function.cache_clear()


# --------------------------------------------------------------------------- any cut, the same bits


@pytest.mark.parametrize("cut", CUTS)
def test_slabs_of_truth_are_the_whole_truth(cut):
    whole = SimulatedSubject(SHAPE, 30).truth(0, SHAPE[2])
    forget()
    slabs = [SimulatedSubject(SHAPE, 30).truth(z0, z1) for z0, z1 in pairwise(cut)]
    for name, values in whole.items():
        joined = np.concatenate([slab[name] for slab in slabs], axis=-3)
        assert joined.tobytes() == values.tobytes(), name


@pytest.mark.parametrize("cut", CUTS)
def test_slabs_of_volumes_are_the_whole_volumes(cut):
    for v in (0, 1, 29):
        forget()
        whole = SimulatedSubject(SHAPE, 30).volume(v, 0, SHAPE[2])
        forget()
        slabs = [SimulatedSubject(SHAPE, 30).volume(v, z0, z1) for z0, z1 in pairwise(cut)]
        assert np.concatenate(slabs).tobytes() == whole.tobytes()


def test_slices_in_any_order_are_the_same():
    subject = SimulatedSubject(SHAPE, 30)
    forward = [subject.volume(5, z, z + 1) for z in range(SHAPE[2])]
    forget()
    backward = [subject.volume(5, z, z + 1) for z in reversed(range(SHAPE[2]))]
    assert_array_equal(forward, backward[::-1])


def test_seeds_and_volumes_differ():
    a, b = SimulatedSubject(SHAPE, 30, seed=1), SimulatedSubject(SHAPE, 30, seed=2)
    assert (a.volume(0, 0, 19) != b.volume(0, 0, 19)).mean() > 0.9
    assert (a.truth(0, 19)["tissue"] != b.truth(0, 19)["tissue"]).any()
    first, second = (np.flatnonzero(a.gradients[0] == 0)[:2]).tolist()
    assert (a.volume(first, 0, 19) != a.volume(second, 0, 19)).mean() > 0.9


def test_what_a_caller_writes_into_the_truth_stays_with_the_caller():
    subject = SimulatedSubject(SHAPE, 30)
    before = subject.volume(3, 0, 19)
    for array in subject.truth(0, 19).values():
        array[...] = 0
    assert_array_equal(subject.volume(3, 0, 19), before)


# --------------------------------------------------------------------------- the signal


def test_noise_free_volume_is_the_model_rounded():
    subject = SimulatedSubject(SHAPE, 30, sigma=0)
    truth = subject.truth(8, 10)
    bvals, bvecs = subject.gradients
    for v in (0, 1, 17):
        expected = reference.diffusion_signal(truth["s0"], truth["tensor"], bvals[v], bvecs[v])
        # Half a unit from rounding, and the float32 exponential.
        assert_allclose(subject.volume(v, 8, 10), expected, rtol=0, atol=0.501)


def test_noise_free_signal_is_dipys_single_tensor():
    subject = SimulatedSubject(SHAPE, 40, sigma=0)
    bvals, bvecs = subject.gradients
    table = gradient_table(bvals, bvecs=bvecs)
    truth = subject.truth(0, 19)
    run = np.stack([subject.volume(v, 0, 19) for v in range(40)], axis=-1)
    for label in (1, 2, 3, 4):
        where = np.argwhere(truth["tissue"] == label)
        z, y, x = where[len(where) // 2]
        values, vectors = np.linalg.eigh(from_lower_triangular(truth["tensor"][:, z, y, x]))
        expected = single_tensor(table, truth["s0"][z, y, x], evals=values, evecs=vectors, snr=None)
        assert_allclose(run[z, y, x], expected, rtol=0, atol=0.51)


def test_background_is_rayleigh():
    sigma = 40.0
    subject = SimulatedSubject((40, 40, 24), 30, sigma=sigma)
    air = subject.truth(0, 24)["s0"] == 0
    noise = np.concatenate([subject.volume(v, 0, 24)[air] for v in range(4)]).astype(float)
    error = sigma / np.sqrt(noise.size)
    assert noise.size > 50_000
    assert abs(noise.mean() - sigma * np.sqrt(np.pi / 2)) < 5 * error
    assert abs(noise.std() - sigma * np.sqrt(2 - np.pi / 2)) < 5 * error
    assert abs((noise**2).mean() - 2 * sigma**2) < 5 * 2 * sigma * error


def test_noise_in_the_brain_is_rician():
    sigma = 100.0
    subject, clean = (SimulatedSubject((40, 40, 24), 30, sigma=s) for s in (sigma, 0))
    brain = subject.truth(0, 24)["mask"] > 0
    noisy, signal = (s.volume(1, 0, 24)[brain].astype(float) for s in (subject, clean))
    excess = noisy**2 - signal**2  # its mean is 2 sigma^2 at any signal
    assert abs(excess.mean() - 2 * sigma**2) < 5 * excess.std() / np.sqrt(excess.size)


def test_noise_is_white():
    residual = SimulatedSubject((32, 32, 40), 30).volume(0, 0, 3).astype(float)  # above the head: air alone
    residual -= residual.mean()
    for axis in range(3):
        a, b = np.moveaxis(residual, axis, 0)[:-1], np.moveaxis(residual, axis, 0)[1:]
        assert abs((a * b).mean() / residual.var()) < 5 / np.sqrt(a.size)


def test_no_signal_wraps_around_int16():
    assert SimulatedSubject((8, 8, 8), 7, sigma=1e6).volume(0, 0, 8).min() >= 0


# --------------------------------------------------------------------------- the truth


def test_arrays_are_as_promised():
    truth = SimulatedSubject(SHAPE, 30).truth(3, 9)
    assert tuple(truth) == head.TRUTH_NAMES
    for name, values in truth.items():
        assert values.shape == ((6,) if name == "tensor" else ()) + (6, 27, 23)
        assert values.dtype == (np.uint8 if name in ("tissue", "mask") else np.float32)
        assert values.flags.c_contiguous and values.flags.writeable
    volume = SimulatedSubject(SHAPE, 30).volume(0, 3, 9)
    assert volume.dtype == np.int16 and volume.shape == (6, 27, 23) and volume.flags.c_contiguous


def test_fa_and_diffusivities_are_those_of_the_tensor():
    truth = SimulatedSubject(SHAPE, 30).truth(0, 19)
    tensor = np.moveaxis(truth["tensor"], 0, -1).astype(float)
    values = np.linalg.eigvalsh(from_lower_triangular(tensor))
    # float32 tensor elements near 1e-3 carry 1e-7 of themselves.
    assert_allclose(truth["fa"], np.nan_to_num(fractional_anisotropy(values)), rtol=0, atol=1e-6)
    for label, tissue in enumerate(TISSUES):
        here = values[truth["tissue"] == label]
        assert len(here) > 0
        assert_allclose(here[:, 2], tissue.parallel, rtol=1e-6)
        assert_allclose(here[:, :2], tissue.perpendicular, rtol=0, atol=1e-9)


def test_dipy_recovers_the_tensor_without_noise():
    subject = SimulatedSubject((17, 19, 11), 66, sigma=0, shells=(1000.0,))
    truth = subject.truth(4, 6)
    run = np.stack([subject.volume(v, 4, 6) for v in range(66)], axis=-1)
    bvals, bvecs = subject.gradients
    white = (truth["tissue"] == head.WHITE_MATTER) & (truth["s0"] > 600)
    fit = TensorModel(gradient_table(bvals, bvecs=bvecs)).fit(run, mask=white)
    found = fit.lower_triangular()[white]
    # Rounding to integers is noise of 0.29 on signals from about 110 (600 exp(-1.7)) up: 0.3 % at
    # worst in one volume, 2.6e-6 mm^2/s at b = 1000, and 60 of them are fitted at once.
    assert_allclose(found, np.moveaxis(truth["tensor"], 0, -1)[white], rtol=0, atol=3e-6)
    assert_allclose(fit.fa[white], truth["fa"][white], rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", [(145, 174, 145), (72, 72, 60), (31, 20, 24), (16, 16, 16)])
def test_brain_fills_its_part_of_any_grid(shape):
    subject = SimulatedSubject(shape, 30)
    mask = subject.truth(0, shape[2])["mask"] if np.prod(shape) < 1e6 else None
    if mask is None:  # the mid-slice alone: an ellipse
        assert subject.truth(72, 73)["mask"].mean() == pytest.approx(np.pi * 0.70 * 0.80 / 4, abs=0.005)
    else:
        assert mask.mean() == pytest.approx(0.22, abs=0.01)


def test_tissues_are_where_they_belong():
    truth = SimulatedSubject((72, 72, 60), 30).truth(0, 60)
    tissue, mask, s0 = truth["tissue"], truth["mask"], truth["s0"]
    assert_array_equal(mask == 1, (tissue >= 1) & (tissue <= 3))
    parts = np.bincount(tissue[mask == 1], minlength=5) / mask.sum()
    assert 0.4 < parts[1] < 0.7 and 0.2 < parts[2] < 0.4 and 0.1 < parts[3] < 0.25
    assert (s0[tissue == 0] == 0).all() and (s0[tissue > 0] > 0).all()
    means = [s0[tissue == label].mean() for label in (4, 1, 2, 3)]
    assert means == sorted(means)
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any() and not mask[:, :, [0, -1]].any()


def test_random_field_is_the_spline_of_its_lattice():
    subject = SimulatedSubject((5, 4, 3), 30)
    x, y, z = head._coordinates(subject.shape, 1)
    field = fields.random_field(x, y, z, 0.5, 7, (head.WANDER, 0))
    lattice = fields._lattice(8, 7, (head.WANDER, 0))
    expected = [[reference.bspline_field(lattice, 0.5, px, py, z) for px in x[0]] for py in y[:, 0]]
    assert_allclose(field, expected, rtol=0, atol=1e-12)


def test_random_field_has_unit_variance():
    x, y, _ = head._coordinates((60, 60, 60), 0)
    field = np.stack([fields.random_field(x, y, z, 0.1, 3, (9,)) for z in np.linspace(-1, 1, 60)])
    assert field.std() == pytest.approx(1, abs=0.05)
    assert abs(field.mean()) < 0.05


# --------------------------------------------------------------------------- the gradient table


def test_hcp_scheme():
    bvals, bvecs = gradients(288, 7)
    assert np.bincount(bvals.astype(int))[[0, 1000, 2000, 3000]].tolist() == [18, 90, 90, 90]
    assert_array_equal(np.flatnonzero(bvals == 0), np.arange(0, 288, 16))
    for start in range(0, 288, 16):  # every part of the run sees every shell
        assert set(bvals[start : start + 16]) == {0, 1000, 2000, 3000}
    for b in (1000, 2000, 3000):
        cosines = np.abs(bvecs[bvals == b] @ bvecs[bvals == b].T)
        np.fill_diagonal(cosines, 0)
        nearest = np.degrees(np.arccos(cosines.max(axis=1)))
        assert nearest.min() > 11  # 90 axes packed as tightly as possible are about 16 degrees apart


@pytest.mark.parametrize("volumes", [7, 8, 15, 30, 59, 60, 119, 120, 150])
def test_any_number_of_volumes_can_be_fitted(volumes):
    bvals, bvecs = gradients(volumes, 3)
    assert bvals.shape == (volumes,) and bvecs.shape == (volumes, 3)
    assert bvals[0] == 0 and not bvecs[bvals == 0].any()
    assert_allclose(np.linalg.norm(bvecs[bvals > 0], axis=1), 1, rtol=0, atol=1e-8)
    assert len(np.unique(bvals)) - 1 == 1 + (volumes >= 60) + (volumes >= 120)
    assert np.linalg.matrix_rank(TensorModel(gradient_table(bvals, bvecs=bvecs)).design_matrix) == 7


def test_gradients_follow_the_seed_and_the_shells():
    assert_array_equal(gradients(30, 3)[1], gradients(30, 3)[1])
    assert (gradients(30, 3)[1] != gradients(30, 4)[1]).any()
    assert np.flatnonzero(gradients(30, 3)[0] == 0).tolist() == [0, 10, 20]
    bvals, _ = gradients(20, 3, shells=(700, 2800))
    assert sorted(set(bvals)) == [0, 700, 2800]


# --------------------------------------------------------------------------- small, empty and wrong


@pytest.mark.parametrize("shape", [(5, 6, 4), (1, 1, 1), (9, 8, 1), (1, 7, 3), (12, 1, 2)])
def test_tiny_subjects(shape):
    subject = SimulatedSubject(shape, 7)
    nx, ny, nz = shape
    assert subject.truth(0, nz)["tensor"].shape == (6, nz, ny, nx)
    assert subject.volume(6, 0, nz).shape == (nz, ny, nx)
    assert subject.truth(0, nz)["mask"].any()


def test_an_empty_slab_is_empty():
    subject = SimulatedSubject(SHAPE, 30)
    assert subject.truth(4, 4)["tensor"].shape == (6, 0, 27, 23)
    assert subject.volume(0, 19, 19).shape == (0, 27, 23)


def test_affine_is_ras_about_the_centre():
    subject = SimulatedSubject((145, 174, 145), 30)
    assert_allclose(subject.voxel_size, 1.25)
    assert np.linalg.det(subject.affine[:3, :3]) > 0
    assert_allclose(subject.affine @ [72, 86.5, 72, 1], [0, 0, 0, 1], atol=1e-12)
    assert_allclose(SimulatedSubject(SHAPE, 30, voxel_size=(2, 2, 3)).affine.diagonal(), [2, 2, 3, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"volumes": 6}, "at least 7"),
        ({"shape": (5, 0, 4)}, "three positive"),
        ({"shape": (5, 4)}, "three positive"),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": np.nan}, "sigma"),
        ({"seed": -1}, "seed"),
        ({"voxel_size": (1, 1, 0)}, "voxel_size"),
        ({"shells": (0,)}, "shells"),
        ({"shells": ()}, "shells"),
    ],
)
def test_wrong_subjects_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimulatedSubject(**{"shape": (5, 6, 4), "volumes": 8} | arguments)


def test_wrong_slabs_and_volumes_are_refused():
    subject = SimulatedSubject(SHAPE, 30)
    for z0, z1 in ((-1, 3), (3, 2), (0, 20)):
        with pytest.raises(ValueError, match="slab"):
            subject.truth(z0, z1)
    with pytest.raises(ValueError, match="volume 30"):
        subject.volume(30, 0, 1)
    with pytest.raises(ValueError, match="at least 7"):
        gradients(6, 0)
