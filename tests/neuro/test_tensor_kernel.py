"""The tensor fit against dipy, MRtrix3 and fifty decimal digits, and against itself elsewhere in a block."""

from __future__ import annotations

import subprocess

import nibabel
import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.data import get_fnames
from dipy.io.gradients import read_bvals_bvecs
from dipy.io.image import load_nifti_data
from dipy.reconst import dti
from support import reference

from mpiimg.neuro.kernels import tensor, tensor_blocks, tensor_maps, tensor_solve

#: The fits that dipy has too, and all.
DIPYS = {"WLS": tensor.fit_wls, "OLS": tensor.fit_ols}
FITS = {**DIPYS, "IWLS": tensor.fit_iwls}


def scheme(volumes=30, shells=(1000.0,), b0s=3, seed=0):
    """A gradient table of random directions."""
    rng = np.random.default_rng(seed)
    bvecs = rng.normal(size=(volumes, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
    bvals = rng.choice(shells, volumes)
    bvals[:b0s], bvecs[:b0s] = 0.0, 0.0
    return gradient_table(bvals, bvecs=bvecs)


def simulate(gradients, voxels, snr, seed=1):
    """Signals (voxels, volumes) of random tensors with Rician noise; S0 = 1000."""
    rng = np.random.default_rng(seed)
    frames = np.linalg.qr(rng.normal(size=(voxels, 3, 3)))[0]
    diffusivities = rng.uniform(1e-4, 3e-3, (voxels, 3))
    directions = np.einsum("vi,nij->nvj", gradients.bvecs, frames)
    signal = 1000 * np.exp(-gradients.bvals * np.einsum("nvj,nj->nv", directions**2, diffusivities))
    noise = rng.normal(size=(2, *signal.shape)) * 1000 / snr
    return np.hypot(signal + noise[0], noise[1])


def real(name):
    """Signals (voxels, volumes) and gradients of a data set that ships with dipy."""
    data, bvals, bvecs = get_fnames(name=name)
    bvals, bvecs = read_bvals_bvecs(bvals, bvecs)
    data = load_nifti_data(data)
    return data.reshape(-1, data.shape[-1]).astype(float), gradient_table(bvals, bvecs=bvecs)


def garbage(gradients, voxels=100, seed=2):
    """Signals (voxels, volumes) that no tissue has, from zeros to eighteen orders of magnitude."""
    rng = np.random.default_rng(seed)
    shape = (voxels, len(gradients.bvals))
    return np.concatenate(
        [
            np.zeros((3, shape[1])),
            np.full((3, shape[1]), 137.0),
            rng.uniform(0, 1000, shape),
            rng.uniform(0, 4000, shape) * (rng.random(shape) > 0.3),
            rng.normal(0, 100, shape),
            np.exp(rng.uniform(-9, 11, shape)),
            np.exp(gradients.bvals / 400) * rng.uniform(0.5, 2, shape),
        ]
    )


def fit_and_map(method, signal, gradients):
    """Our maps of signals (voxels, volumes)."""
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    parameters = FITS[method](np.ascontiguousarray(signal.T), design)
    return parameters, tensor_maps.tensor_maps(parameters, tensor_maps.min_diffusivity(design))


def assert_agrees_with_dipy(method, signal, gradients):
    parameters, maps = fit_and_map(method, signal, gradients)
    peer = dti.TensorModel(gradients, fit_method=method, return_S0_hat=True).fit(signal)
    np.testing.assert_allclose(maps.fa, peer.fa, rtol=0, atol=1e-6)
    np.testing.assert_allclose(maps.md, peer.md, rtol=1e-6)
    np.testing.assert_allclose(maps.ad, peer.ad, rtol=1e-6)
    np.testing.assert_allclose(maps.rd, peer.rd, rtol=1e-6)
    np.testing.assert_allclose(maps.eigenvalues.T, peer.evals, rtol=1e-6, atol=1e-6 * maps.ad.max())
    np.testing.assert_allclose(maps.s0, peer.S0_hat.ravel(), rtol=1e-6)
    assert np.isfinite(parameters).all()
    assert_directions_agree(maps, peer)


def assert_directions_agree(maps, peer):
    np.testing.assert_allclose((maps.v1**2).sum(axis=0), 1.0, rtol=1e-14)
    separated = maps.eigenvalues[0] - maps.eigenvalues[1] > 1e-3 * maps.eigenvalues[0]
    theirs = peer.evecs[..., 0].T
    ours = maps.v1 * np.sign((maps.v1 * theirs).sum(axis=0))
    np.testing.assert_allclose(ours[:, separated], theirs[:, separated], atol=1e-6)


@pytest.mark.parametrize("name", ["small_64D", "small_101D"])
def test_design_matrix_is_dipys(name):
    _, gradients = real(name)
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    np.testing.assert_array_equal(design, dti.design_matrix(gradients))
    assert design.dtype == np.float64


@pytest.mark.parametrize("method", DIPYS)
@pytest.mark.parametrize("snr", [3, 10, 50, 1e6])
@pytest.mark.parametrize("volumes, shells", [(30, (1000.0,)), (31, (1000.0, 3000.0)), (97, (500.0, 2000.0))])
def test_simulated_tensors_agree_with_dipy(method, snr, volumes, shells):
    gradients = scheme(volumes, shells)
    assert_agrees_with_dipy(method, simulate(gradients, 300, snr), gradients)


@pytest.mark.parametrize("method", DIPYS)
@pytest.mark.parametrize("name", ["small_64D", "small_101D"])
def test_real_data_agree_with_dipy(method, name):
    assert_agrees_with_dipy(method, *real(name))


@pytest.mark.parametrize("method", DIPYS)
@pytest.mark.parametrize("volumes", [30, 67])
def test_garbage_agrees_with_dipy(method, volumes):
    gradients = scheme(volumes, (1000.0, 2500.0))
    assert_agrees_with_dipy(method, garbage(gradients), gradients)


@pytest.mark.parametrize("method", FITS)
def test_fit_agrees_with_fifty_digits(method):
    gradients = scheme(24, (1000.0, 2500.0))
    signal = simulate(gradients, 20, 10)
    if method != "IWLS":  # Weights that garbage gives again and again amplify the last digit.
        signal = np.concatenate([signal, garbage(gradients, 6)])
    parameters, maps = fit_and_map(method, signal, gradients)
    design = dti.design_matrix(gradients)
    for voxel, values in enumerate(signal):
        exact = np.array(reference.tensor_fit(values, design, method))
        largest = np.abs(exact[:6]).max()
        np.testing.assert_allclose(parameters[:6, voxel], exact[:6], rtol=0, atol=1e-9 * largest + 1e-16)
        np.testing.assert_allclose(parameters[6, voxel], exact[6], atol=1e-9)
        fa, md, ad, rd, _, _ = reference.tensor_maps(exact, tensor_maps.min_diffusivity(design))
        assert maps.fa[voxel] == pytest.approx(fa, abs=1e-7)
        np.testing.assert_allclose([maps.md[voxel], maps.ad[voxel], maps.rd[voxel]], [md, ad, rd], rtol=1e-7)


@pytest.mark.parametrize("method, orders, digits", [("WLS", 8, 1e-8), ("IWLS", 3, 1e-7)])
def test_weights_that_need_qr_agree_with_fifty_digits(method, orders, digits):
    """Squared weights over fourteen orders of magnitude: normal equations alone would lose every digit."""
    gradients = scheme(20, (1000.0,))
    signal = np.exp(np.random.default_rng(5).uniform(-orders, orders, (40, 20)))
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    parameters = FITS[method](np.ascontiguousarray(signal.T), design)
    for voxel, values in enumerate(signal):
        exact = np.array(reference.tensor_fit(values, design, method))
        largest = np.abs(exact[:6]).max()
        np.testing.assert_allclose(parameters[:6, voxel], exact[:6], rtol=0, atol=digits * largest)


def test_cholesky_and_qr_agree():
    gradients = scheme(33, (1000.0, 2500.0))
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    scaled = tensor_blocks.scale_design(design)
    signal = np.ascontiguousarray(simulate(gradients, 40, 10).T)
    units = np.array([[scaled.scale]] * 6 + [[1.0]])
    ordinary, weighted = tensor.fit_ols(signal, design) * units, tensor.fit_wls(signal, design) * units
    correction = np.empty_like(ordinary)
    for voxel in range(40):
        logs = np.log(signal[:, voxel])
        tensor_solve.solve_qr(logs, scaled.rows, ordinary[:, voxel], False, correction[:, voxel])
    np.testing.assert_allclose(ordinary + correction, weighted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", FITS)
def test_finite_signals_give_finite_maps(method):
    gradients = scheme(20)
    spike = np.full(20, 1e-300)
    spike[7] = 1e300
    signal = np.stack([spike, 1 / spike, np.full(20, 1.7e308), np.full(20, -1.7e308), np.zeros(20)])
    signal = np.concatenate([signal, garbage(gradients, 12)])
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    parameters = FITS[method](np.ascontiguousarray(signal.T), design, min_signal=1e-300)
    maps = tensor_maps.tensor_maps(parameters, tensor_maps.min_diffusivity(design))
    assert np.isfinite(parameters).all()
    assert all(np.isfinite(values).all() for values in maps)


def test_singular_weights_leave_the_ordinary_fit():
    gradients = scheme(8, b0s=1)
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    signal = np.full((8, 1), 1e-100)
    signal[:3] = 1e100
    ordinary = tensor.fit_ols(signal, design, min_signal=1e-200)
    for weighted in (tensor.fit_wls, tensor.fit_iwls):
        np.testing.assert_array_equal(weighted(signal, design, min_signal=1e-200), ordinary)


def dwi2tensor(signal, gradients, folder):
    """Fit (voxels, volumes) by MRtrix3's default; return (voxels, 6) in dipy's order."""
    image = nibabel.Nifti1Image(np.float32(signal)[:, None, None, :], np.eye(4))
    nibabel.save(image, folder / "dwi.nii")
    np.savetxt(folder / "table", np.column_stack([gradients.bvecs, gradients.bvals]), "%.17g")
    files = folder / "dwi.nii", folder / "tensor.nii"
    subprocess.run(["dwi2tensor", "-quiet", "-grad", folder / "table", *files], check=True)
    return load_nifti_data(files[1])[:, 0, 0, [0, 3, 1, 4, 5, 2]]


@pytest.mark.needs_mrtrix
@pytest.mark.parametrize("name", ["snr 3", "snr 30", "small_64D", "small_101D"])
def test_iterated_weights_are_those_of_mrtrix(name, tmp_path):
    """To the last digits of the single-precision numbers that it writes."""
    if name.startswith("snr"):
        gradients = scheme(40, (1000.0, 2500.0))
        signal = simulate(gradients, 300, float(name.split()[1]))
    else:
        signal, gradients = real(name)
        signal = signal[signal.min(axis=1) > 0]
    expected = dwi2tensor(signal, gradients, tmp_path)
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    parameters = tensor.fit_iwls(np.ascontiguousarray(signal.T, dtype=np.float32), design)
    largest = np.abs(expected).max(axis=1)
    assert (np.abs(parameters[:6].T - expected).max(axis=1) <= 1e-6 * largest).all()


def tensors_to_diagonalise():
    """(7, n) parameters: isotropic, degenerate to the last digits, negative, diagonal, random."""
    rng = np.random.default_rng(6)
    frames = np.linalg.qr(rng.normal(size=(4000, 3, 3)))[0]
    values = rng.normal(1e-3, 1e-3, (4000, 3))
    values[:1000, 1] = values[:1000, 0] * (1 + rng.choice([0, 1e-15, 1e-12, 1e-8, 1e-4], 1000))
    values[500:1000, 2] = values[500:1000, 1] * (1 + 1e-10 * rng.normal(size=500))
    values[1000:1500] *= 10.0 ** rng.uniform(-12, 3, (500, 3))
    matrices = np.einsum("nij,nj,nkj->nik", frames, values, frames)
    special = [
        np.zeros((3, 3)),
        np.eye(3),
        -np.eye(3),
        np.diag([1, 2, 3]),
        np.diag([3, 1, 2]),
        np.ones((3, 3)),
    ]
    matrices = np.concatenate([np.array(special) * 1e-3, matrices])
    rows, columns = [0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 1, 2]
    return np.concatenate([matrices[:, rows, columns].T, np.zeros((1, len(matrices)))])


def test_maps_agree_with_eigh():
    parameters = tensors_to_diagonalise()
    maps = tensor_maps.tensor_maps(parameters, 3e-10)
    for voxel, values in enumerate(parameters.T):
        fa, md, ad, rd, eigenvalues, v1 = reference.tensor_maps(values, 3e-10)
        scale = np.abs(values[:6]).max()
        np.testing.assert_allclose(maps.eigenvalues[:, voxel], eigenvalues, rtol=0, atol=2e-15 * scale)
        assert maps.fa[voxel] == pytest.approx(fa, abs=1e-12 + 1e-15 * scale / ad)
        np.testing.assert_allclose([maps.md[voxel], maps.ad[voxel]], [md, ad], rtol=0, atol=2e-15 * scale)
        assert maps.rd[voxel] == pytest.approx(rd, abs=2e-15 * scale)
        if eigenvalues[0] - eigenvalues[1] > 1e-6 * scale:
            assert abs(maps.v1[:, voxel] @ v1) == pytest.approx(1.0, abs=1e-12)


def test_every_direction_is_a_unit_vector_with_its_largest_component_positive():
    parameters = tensors_to_diagonalise()
    v1 = tensor_maps.tensor_maps(parameters, 3e-10).v1
    np.testing.assert_allclose((v1**2).sum(axis=0), 1.0, rtol=1e-14)
    largest = np.abs(v1).argmax(axis=0)
    assert (np.take_along_axis(v1, largest[None], axis=0) > 0).all()
    np.testing.assert_array_equal(v1[:, 0], [1, 0, 0])
    np.testing.assert_array_equal(v1[:, 3], [0, 0, 1])


def test_direction_solves_the_eigenvalue_equation():
    parameters = tensors_to_diagonalise()
    xx, xy, yy, xz, yz, zz = parameters[:6]
    matrices = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    maps = tensor_maps.tensor_maps(parameters, -np.inf)
    image = np.einsum("ijn,jn->in", matrices, maps.v1)
    scale = np.abs(parameters[:6]).max(axis=0)
    assert (np.abs(image - maps.eigenvalues[0] * maps.v1) <= 4e-15 * scale).all()


def test_residual_agrees_with_the_loop():
    gradients = scheme(33)
    signal = np.concatenate([simulate(gradients, 40, 10), garbage(gradients, 3)])
    parameters, _ = fit_and_map("WLS", signal, gradients)
    design = dti.design_matrix(gradients)
    expected = [reference.tensor_residual(s, design, p) for s, p in zip(signal, parameters.T, strict=True)]
    result = tensor.fit_residual(np.ascontiguousarray(signal.T), design, parameters)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


def everything(signal, design):
    """Every output of the module for signals (volumes, voxels), as one (rows, voxels) array."""
    ols, wls, iwls = (fitter(signal, design) for fitter in (tensor.fit_ols, tensor.fit_wls, tensor.fit_iwls))
    maps = tensor_maps.tensor_maps(wls, tensor_maps.min_diffusivity(design))
    return np.vstack([ols, wls, iwls, *maps, tensor.fit_residual(signal, design, wls)])


@pytest.mark.parametrize("volumes", [29, 32])
def test_bits_do_not_depend_on_the_place_or_the_number_of_voxels(volumes):
    gradients = scheme(volumes, (1000.0, 2500.0))
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    signal = np.concatenate([simulate(gradients, 60, 10), garbage(gradients, 12)])
    signal = np.ascontiguousarray(np.random.default_rng(8).permutation(signal).T)
    voxels = signal.shape[1]
    whole = everything(signal, design)
    for start in range(2 * tensor.BLOCK_VOXELS + 1):
        for stop in {start + 1, start + 2 + start % 40, voxels - start}:
            part = everything(np.ascontiguousarray(signal[:, start:stop]), design)
            assert part.tobytes() == np.ascontiguousarray(whole[:, start:stop]).tobytes()
    order = np.random.default_rng(9).permutation(voxels)
    shuffled = everything(np.ascontiguousarray(signal[:, order]), design)
    assert shuffled.tobytes() == np.ascontiguousarray(whole[:, order]).tobytes()


def test_float32_signals_are_fitted_in_float64():
    gradients = scheme()
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    single = np.ascontiguousarray(simulate(gradients, 50, 10).T, dtype=np.float32)
    assert everything(single, design).tobytes() == everything(single.astype(np.float64), design).tobytes()


def test_nan_stays_in_its_voxel():
    gradients = scheme()
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    signal = np.ascontiguousarray(simulate(gradients, 40, 10).T)
    clean = everything(signal, design)
    signal[11, 5] = np.nan
    spoiled = everything(signal, design)
    assert np.isnan(spoiled[:21, 5]).all()
    maps = tensor_maps.tensor_maps(tensor.fit_wls(signal, design), tensor_maps.min_diffusivity(design))
    assert maps.fa[5] == 0.0
    assert np.isnan(maps.md[5])
    assert np.delete(spoiled, 5, axis=1).tobytes() == np.delete(clean, 5, axis=1).tobytes()


def test_no_voxels():
    gradients = scheme()
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    assert everything(np.empty((30, 0)), design).shape[1] == 0


def test_a_design_that_determines_no_tensor_is_refused():
    gradients = scheme(b0s=0)
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)
    with pytest.raises(ValueError, match="6 of a tensor's 7 unknowns"):
        tensor.fit_wls(np.ones((30, 4)), design)


@pytest.mark.parametrize(
    "signal, columns, min_signal, message",
    [
        (np.ones((29, 4)), 7, 1e-4, "signal has shape"),
        (np.ones((30, 4)), 6, 1e-4, "design matrix has shape"),
        (np.ones((30, 4)), 7, 0.0, "min_signal"),
    ],
)
def test_wrong_arguments_are_refused(signal, columns, min_signal, message):
    gradients = scheme()
    design = tensor.design_matrix(gradients.bvals, gradients.bvecs)[:, :columns]
    with pytest.raises(ValueError, match=message):
        tensor.fit_ols(signal, design, min_signal)
