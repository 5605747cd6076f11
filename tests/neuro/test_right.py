"""The tools' results against scipy and dipy, on simulated and real data."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from dipy.denoise.nlmeans import nlmeans as dipy_nlmeans
from dipy.denoise.noise_estimate import estimate_sigma, piesno
from dipy.reconst.dti import (
    TensorModel,
    color_fa,
    design_matrix,
    lower_triangular,
    ols_fit_tensor,
    wls_fit_tensor,
)
from dipy.segment.mask import median_otsu
from dipy.segment.threshold import otsu
from scipy.ndimage import median_filter
from support import reference, warm
from support.subjects import EVERYTHING, PATIENCE, neuro, path, read, record, tool, write_subject

pytestmark = pytest.mark.tool


#: The fit as dipy has it by default.
DIPYS = ("--method", "wls", "--min-signal", 1e-4, "--b-max", "none")


def b0_mean(subject, b0_threshold=50.0) -> np.ndarray:
    """Return the mean of the b0 volumes, added up in float64 in their order, rounded once to float32."""
    b0 = np.flatnonzero(subject.gradients(b0_threshold).b0s_mask)
    total = np.zeros(subject.data.shape[:3])
    for volume in b0:
        total += subject.data[..., volume]
    return (total / len(b0)).astype(np.float32)


def expected_mask(subject, radius=4, passes=4, b0_threshold=50.0) -> np.ndarray:
    """Return scipy's medians, cut at dipy's own Otsu threshold."""
    smooth = b0_mean(subject, b0_threshold)
    for _ in range(passes):
        smooth = median_filter(smooth, size=2 * np.array(radius) + 1, mode="reflect")
    return smooth > otsu(smooth)


def dipy_classic(volume, sigma, mask, patch_radius=1, block_radius=5, rician=True) -> np.ndarray:
    """Denoise (x, y, z) with dipy, padded before the call: dipy reads out of bounds where an axis is thin."""
    r = block_radius
    denoised = dipy_nlmeans(
        np.pad(volume, r, mode="reflect"),
        np.pad(np.broadcast_to(sigma, volume.shape).astype(float), r, mode="reflect"),
        mask=np.pad(mask, r),
        patch_radius=patch_radius,
        block_radius=block_radius,
        rician=rician,
        num_threads=1,
        method="classic",
    )
    return denoised[r:-r, r:-r, r:-r]


def assert_denoised(result, expected, sigma):
    """Assert the bound that is promised of (x, y, z): 1e-5 of the mean square, or of the Rician bias."""
    error = np.abs(result**2 - expected**2)
    assert (error <= 1e-5 * np.maximum(expected**2, 2 * np.broadcast_to(sigma, result.shape) ** 2)).all()


def noise_of(out) -> tuple[np.ndarray, str]:
    """Return the noise level by volume and slice, (V or 1, nz or 1), and how it was found."""
    sidecar = json.loads(path(out, "noise", ".json").read_text())
    sigma = np.array(sidecar["Sigma"])
    shapes = {"slice": (1, -1), "volume": (-1, 1), "image": (1, 1)}
    return sigma.reshape(shapes[sidecar["SigmaBy"]]), sidecar["NoiseMethod"]


def assert_maps(folder, signal, mask, subject, method="WLS", **options):
    """Assert that the maps in `folder` are dipy's of float64 `signal` (x, y, z, V) inside `mask`."""
    model = TensorModel(subject.gradients(), fit_method=method, return_S0_hat=True, **options)
    peer = model.fit(np.asarray(signal, float)[mask])
    np.testing.assert_allclose(read(folder, "fa")[mask], peer.fa, rtol=0, atol=1e-6)
    for what in ("md", "ad", "rd"):
        np.testing.assert_allclose(read(folder, what)[mask], getattr(peer, what), rtol=1e-6)
    s0 = np.minimum(np.ravel(peer.S0_hat), np.finfo(np.float32).max)
    np.testing.assert_allclose(read(folder, "s0")[mask], s0, rtol=1e-6)
    if method in ("WLS", "OLS"):
        fitted = linear_fit(method, signal[mask], subject, **options)
    else:
        fitted = lower_triangular(peer.quadratic_form)
    error = np.abs(read(folder, "tensor")[mask] - fitted)
    # Where there is no signal, both are rounding errors far below the least diffusivity that is told from 0.
    least = 1e-6 / subject.gradients().bvals.max()
    assert (error <= np.maximum(1e-6 * np.abs(fitted).max(axis=1, keepdims=True), 1e-5 * least)).all()
    assert_directions(folder, mask, peer, subject)
    for what in ("fa", "md", "ad", "rd", "s0", "tensor", "v1", "rgb"):
        assert not read(folder, what)[~mask].any()


def linear_fit(method, signal, subject, min_signal=1e-4) -> np.ndarray:
    """Return dipy's tensors (n, 6) as fitted, before it clips their eigenvalues."""
    fitter = {"WLS": wls_fit_tensor, "OLS": ols_fit_tensor}[method]
    signal = np.maximum(np.asarray(signal, float), min_signal)
    fitted, _ = fitter(design_matrix(subject.gradients()), signal, return_lower_triangular=True)
    return fitted[:, :6]


def assert_directions(folder, mask, peer, subject):
    """Assert that v1 and colours are dipy's, colours turned into scanner axes, where v1 is determined."""
    v1, theirs = read(folder, "v1")[mask], peer.evecs[..., 0]
    np.testing.assert_allclose(np.linalg.norm(v1, axis=1), 1, rtol=1e-6)
    clear = peer.evals[:, 0] - peer.evals[:, 1] > 1e-3 * peer.evals[:, 0]
    v1 = v1 * np.sign((v1 * theirs).sum(axis=1))[:, None]
    np.testing.assert_allclose(v1[clear], theirs[clear], atol=1e-5)
    axes = subject.affine[:3, :3] / np.linalg.norm(subject.affine[:3, :3], axis=0)
    flip = np.diag([-1.0, 1, 1]) if np.linalg.det(axes) > 0 else np.eye(3)
    colours = color_fa(peer.fa, np.einsum("ij,njk->nik", axes @ flip, peer.evecs))
    np.testing.assert_allclose(read(folder, "rgb")[mask][clear], colours[clear], atol=1e-5)


def everywhere(subject, folder):
    """Write a mask of all voxels, and return its path."""
    mask = folder / "all.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones(subject.data.shape[:3], np.uint8), subject.affine), mask)
    return mask


def test_mask_of_a_run(dataset):
    subject, out = dataset
    radius = 4 if record(out)["parameters"]["mask_method"] == "dipy" else 2
    mask = read(out, "mask")
    np.testing.assert_array_equal(mask, expected_mask(subject, radius))
    assert 0 < mask.sum() < mask.size


def test_mask_by_default_is_dipys_of_a_radius_of_8_mm(simulated, tmp_path):
    """The voxels of the simulated head are longer than 2 mm."""
    out = tool("mpiimg-mask", simulated, tmp_path / "out")
    radii = [int(8 / size + 0.5) for size in simulated.image.header.get_zooms()[:3]]
    assert radii != [4, 4, 4]
    np.testing.assert_array_equal(read(out, "mask"), expected_mask(simulated, radii))


def test_mask_of_dipys_own_radius(simulated, tmp_path):
    out = tool("mpiimg-mask", simulated, tmp_path / "out", "--mask-method", "dipy")
    np.testing.assert_array_equal(read(out, "mask"), expected_mask(simulated))


@pytest.mark.parametrize(
    "options, dipys",
    [
        (("--dilate", 2), {"dilate": 2}),
        (("--passes", 0), {"numpass": 0}),
        (("--passes", 0, "--finalize"), {"numpass": 0, "finalize_mask": True}),
        (("--passes", 0, "--dilate", 1, "--finalize"), {"numpass": 0, "dilate": 1, "finalize_mask": True}),
        (("--passes", 1, "--median-radius", 3), {"numpass": 1, "median_radius": 3}),
    ],
    ids=str,
)
def test_mask_options_are_dipys(simulated, tmp_path, options, dipys):
    """On a head with a hole and an island, which a median filter would remove."""
    data = np.array(simulated.image.dataobj)
    data[11:14, 13:16, 9:12] //= 50
    data[1:4, 1:4, 1:4] += 3000
    spotted = write_subject(
        tmp_path / "in", data, simulated.affine, simulated.bvals, simulated.bvecs, "dwi.nii"
    )
    out = tool("mpiimg-mask", spotted, tmp_path / "out", "--median-radius", 2, *options)
    _, expected = median_otsu(b0_mean(spotted), **{"median_radius": 2, **dipys})
    np.testing.assert_array_equal(read(out, "mask"), expected)
    for option in dipys:
        left_out = {key: value for key, value in dipys.items() if key != option}
        _, other = median_otsu(b0_mean(spotted), **{"median_radius": 2, **left_out})
        assert (expected != other).any(), option


def test_denoised_volumes(dataset):
    """The whole field is denoised, also where there is no brain."""
    subject, out = dataset
    denoised = read(out, "denoised")
    sigma, _ = noise_of(out)
    volumes, everywhere = subject.data.shape[3], np.ones(subject.data.shape[:3], bool)
    by_slice = np.broadcast_to(sigma, (volumes, everywhere.shape[2]))
    for v in {0, 1, volumes // 2, volumes - 1}:
        expected = dipy_classic(subject.data[..., v], by_slice[v], everywhere, rician=False)
        assert_denoised(denoised[..., v], expected, by_slice[v])
        assert np.abs(denoised[..., v] - subject.data[..., v]).max() > sigma.mean() / 10
    assert nibabel.load(path(out, "denoised")).get_data_dtype() == np.float32
    sidecar = json.loads(path(out, "denoised", ".json").read_text())
    assert (sidecar["RicianBias"], sidecar["SkullStripped"]) == ("left in", False)


@pytest.fixture(scope="module")
def inside_mask(simulated, tmp_path_factory):
    """The simulated subject denoised in its mask alone."""
    folder = tmp_path_factory.mktemp("inside")
    return neuro(simulated, folder / "out", *EVERYTHING, *DIPYS, "--inside-mask", "--sigma", 40)


def test_inside_the_mask_the_rician_bias_is_taken_out_and_all_else_is_0(simulated, inside_mask):
    mask, denoised = read(inside_mask, "mask") != 0, read(inside_mask, "denoised")
    for v in (0, 5, 11):
        assert_denoised(denoised[..., v], dipy_classic(simulated.data[..., v], 40.0, mask), 40.0)
    assert not denoised[~mask].any()
    residual = simulated.data.astype(np.float32) - denoised.astype(np.float32)
    np.testing.assert_array_equal(read(inside_mask, "residual"), np.where(mask[..., None], residual, 0))
    assert_maps(inside_mask, denoised, mask, simulated)
    sidecar = json.loads(path(inside_mask, "denoised", ".json").read_text())
    assert (sidecar["RicianBias"], sidecar["SkullStripped"]) == ("subtracted", True)


def test_a_level_that_is_given_needs_no_mask(simulated, alone, tmp_path):
    """Nothing but the noise level would be measured in it."""
    options = ("--sigma", 37.5)
    without = warm.run_tool("mpiimg-denoise", simulated.dwi, "--out", tmp_path / "without", *options)
    assert without.returncode == 0
    denoise(simulated, tmp_path / "with", path(alone, "mask"), *options)
    one, other = (path(tmp_path / name, "denoised").read_bytes() for name in ("without", "with"))
    assert one == other
    assert "Mask" not in json.loads(path(tmp_path / "without", "denoised", ".json").read_text())


def test_noise_map(dataset):
    """By slice where it was found by slice; over volumes its root mean square."""
    _, out = dataset
    sigma, _ = noise_of(out)
    noise = read(out, "noise")
    expected = np.broadcast_to(np.sqrt((sigma**2).mean(axis=0)), noise.shape)
    np.testing.assert_allclose(noise, expected, rtol=1e-7)


def test_residual(dataset):
    subject, out = dataset
    expected = subject.data.astype(np.float32) - read(out, "denoised").astype(np.float32)
    np.testing.assert_array_equal(read(out, "residual"), expected)


def iwls(signal, design) -> np.ndarray:
    """Return the parameters (n, 7) of the signals (n, V) as MRtrix3's dwi2tensor finds them."""
    logs = np.log(signal)
    predicted = logs
    for _ in range(3):
        weights = np.exp(predicted - predicted.max(axis=1, keepdims=True))
        inverse = np.linalg.pinv(weights[..., None] * design)
        parameters = np.einsum("nqv,nv->nq", inverse, weights * logs)
        predicted = parameters @ design.T
    return parameters


def test_maps_of_the_denoised_image(dataset):
    """Weights found anew, the floor at half the noise level, and b up to 1500 s/mm^2."""
    subject, out = dataset
    mask, sidecar = read(out, "mask") != 0, json.loads(path(out, "md", ".json").read_text())
    low = np.flatnonzero(np.round(subject.gradients().bvals, -2) <= 1500)
    sigma, method = noise_of(out)
    floor = np.broadcast_to(sigma / 2, (subject.data.shape[3], mask.shape[2]))[low].T
    signal = read(out, "denoised")[..., low].astype(float)
    raised = np.maximum(signal, floor)[mask]
    share = (signal < floor.astype(np.float32))[mask].mean()
    design = design_matrix(subject.gradients())[low]
    parameters = iwls(raised, design)
    tensor = read(out, "tensor")[mask]
    error = np.abs(tensor - parameters[:, :6]).max(axis=1)
    assert (error <= 2e-6 * np.abs(parameters[:, :6]).max(axis=1)).all()
    expected = [reference.tensor_maps(one, 1e-6 / -design.min())[:2] for one in parameters]
    np.testing.assert_allclose(read(out, "fa")[mask], [fa for fa, _ in expected], rtol=0, atol=2e-6)
    np.testing.assert_allclose(read(out, "md")[mask], [md for _, md in expected], rtol=2e-6)
    assert (sidecar["Method"], sidecar["Volumes"]) == ("iwls", low.size)
    levels = sigma if len(sigma) == 1 else sigma[low]
    np.testing.assert_array_equal(2 * np.array(sidecar["MinSignal"]), levels.ravel())
    assert sidecar["MinSignalSource"] == f"half the noise level ({method})"
    assert sidecar["MinSignalShare"] == pytest.approx(share, abs=1e-12)
    for key in ("fa", "md"):
        said = json.loads(path(out, key, ".json").read_text())["MeanInMask"]
        assert said == pytest.approx(read(out, key)[mask].astype(np.float64).mean(), rel=1e-12)


@pytest.mark.parametrize("name", ["simulated", "small_101D"])
def test_the_recipe_of_the_study_is_dipys_chain(name, request, tmp_path):
    """From the mask to the maps, whatever the defaults are."""
    subject = request.getfixturevalue(name)
    out = neuro(subject, tmp_path / "out", "--recipe", "study", "--residual")
    mask, denoised = read(out, "mask") != 0, read(out, "denoised")
    np.testing.assert_array_equal(mask, expected_mask(subject))
    sigma, method = noise_of(out)
    if method == "piesno":
        found = np.array([piesno(subject.data[:, :, z].astype(np.int16), 1) for z in range(sigma.size)])
        good = np.isfinite(found) & (found > 0)
        np.testing.assert_array_equal(sigma[0], np.where(good, found, np.median(found[good])))
    else:
        np.testing.assert_array_equal(sigma[:, 0], estimate_sigma(subject.data))
    by_slice = np.broadcast_to(sigma, (subject.data.shape[3], mask.shape[2]))
    for v in (0, subject.data.shape[3] - 1):
        assert_denoised(denoised[..., v], dipy_classic(subject.data[..., v], by_slice[v], mask), by_slice[v])
    assert not denoised[~mask].any()
    assert_maps(out, denoised, mask, subject)
    for what in ("mask", "denoised", "noise", "fa"):
        assert json.loads(path(out, what, ".json").read_text())["Recipe"] == "study"
    assert record(out)["recipe"] == record(out)["parameters"]["recipe"] == "study"


@pytest.mark.parametrize("method", ["wls", "ols"])
def test_maps_of_every_voxel_of_the_raw_image(dataset, tmp_path, method):
    """Background, edges and zeros included."""
    subject, _ = dataset
    mask = everywhere(subject, tmp_path)
    options = ("--mask", mask, *DIPYS, "--method", method, "--fit-residual")
    out = tool("mpiimg-fit", subject, tmp_path / "out", *options)
    inside = np.ones(subject.data.shape[:3], bool)
    assert_maps(out, subject.data, inside, subject, method.upper())
    assert_fit_residual(out, subject)


def assert_fit_residual(out, subject):
    """Assert the root mean square of what the maps themselves leave unexplained, to float32 of the maps."""
    b, g = subject.gradients().bvals, subject.gradients().bvecs
    d = np.moveaxis(read(out, "tensor"), -1, 0)
    along = sum(
        (1 if i == j else 2) * np.multiply.outer(d[k], g[:, i] * g[:, j])
        for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)])
    )
    predicted = read(out, "s0")[..., None] * np.exp(-b * along)
    expected = np.sqrt(((subject.data - predicted) ** 2).mean(axis=-1))
    # Elements of float32 are off by 6e-8 of themselves, and b times six of them stand in an exponent.
    slack = 1e-6 * np.abs(predicted).max(axis=-1) * (1 + b.max() * np.abs(d).max(axis=0))
    assert (np.abs(read(out, "fit-residual") - expected) <= slack + 1e-6 * expected).all()


def test_sigma_of_piesno_is_dipys_slice_by_slice(simulated, alone):
    sigma, method = noise_of(alone)
    assert method == "piesno"
    found = [piesno(simulated.data[:, :, z].astype(np.int16), 1) for z in range(sigma.size)]
    good = np.isfinite(found) & (np.array(found) > 0)
    np.testing.assert_array_equal(sigma[0][good], np.array(found)[good])
    np.testing.assert_array_equal(sigma[0][~good], np.median(np.array(found)[good]))


def denoise(subject, out, mask, *options, check=True):
    """Run mpiimg-denoise."""
    words = [subject.dwi, "--mask", mask, "--out", out, *options]
    return warm.run_tool("mpiimg-denoise", *words, timeout=PATIENCE, check=check)


@pytest.mark.parametrize("coils", [None, 4])
def test_sigma_by_estimate_is_dipys_volume_by_volume(simulated, alone, tmp_path, coils):
    options = () if coils is None else ("--coils", coils)
    denoise(simulated, tmp_path / "out", path(alone, "mask"), "--sigma", "estimate", *options)
    sigma, method = noise_of(tmp_path / "out")
    assert method == "estimate"
    np.testing.assert_array_equal(sigma[:, 0], estimate_sigma(simulated.data, N=coils or 0))
    everywhere, v = np.ones(simulated.data.shape[:3], bool), 3
    expected = dipy_classic(simulated.data[..., v], sigma[v], everywhere, rician=False)
    assert_denoised(read(tmp_path / "out", "denoised")[..., v], expected, sigma[v])


@pytest.mark.parametrize(
    "options, dipys",
    [
        (("--gaussian",), {"rician": False}),
        (("--patch-radius", 2, "--block-radius", 4), {"patch_radius": 2, "block_radius": 4}),
        (("--block-radius", 3), {"block_radius": 3}),
    ],
    ids=str,
)
def test_denoising_options_are_dipys(simulated, alone, tmp_path, options, dipys):
    mask, v = read(alone, "mask") != 0, 4
    options = ("--sigma", 37.5, "--inside-mask", *options)
    denoise(simulated, tmp_path / "out", path(alone, "mask"), *options)
    assert noise_of(tmp_path / "out") == (37.5, "given")
    expected = dipy_classic(simulated.data[..., v], 37.5, mask, **dipys)
    assert_denoised(read(tmp_path / "out", "denoised")[..., v], expected, 37.5)
    plain = dipy_classic(simulated.data[..., v], 37.5, mask)
    assert np.abs(expected - plain).max() > 1


@pytest.fixture(scope="module")
def without_background(simulated, alone, tmp_path_factory):
    """The simulated subject as it would be released: nothing outside the mask."""
    data = np.asarray(simulated.image.dataobj) * (read(alone, "mask") != 0)[..., None].astype(np.int16)
    folder = tmp_path_factory.mktemp("zeroed")
    return write_subject(folder, data, simulated.affine, simulated.bvals, simulated.bvecs)


def test_the_study_falls_back_to_estimate_where_the_background_is_zeroed(without_background, alone, tmp_path):
    done = denoise(without_background, tmp_path / "out", path(alone, "mask"), "--sigma", "study")
    lines = done.stderr.splitlines()
    line, again = [line for line in lines if "exact zeros" in line]
    assert line.startswith("mpiimg: warning: ") and again == line.replace("warning:", " ")
    assert "100% of the voxels outside the mask are exact zeros" in line
    sigma, method = noise_of(tmp_path / "out")
    assert method == "estimate"
    np.testing.assert_array_equal(sigma[:, 0], estimate_sigma(without_background.data))
    warnings = record(tmp_path / "out", "run-denoise.json")["warnings"]
    assert line.removeprefix("mpiimg: warning: ") in warnings


def test_piesno_refuses_a_zeroed_background(without_background, alone, tmp_path):
    done = denoise(
        without_background, tmp_path / "out", path(alone, "mask"), "--sigma", "piesno", check=False
    )
    assert done.returncode == 2
    assert "0 voxels outside the mask are not 0 in all volumes" in done.stderr
    assert not (tmp_path / "out").exists()


def test_zeroed_background_is_seen_through_scaling_and_nan(without_background, alone, tmp_path):
    """A background of 0 whose voxels hold 10, for an intercept of -10, or NaN."""
    data = without_background.data.astype(np.float32)
    data[:12][data[:12] == 0] = np.nan
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    image = nibabel.Nifti1Image((data + 10) / 2, without_background.affine, header)
    image.header.set_slope_inter(1, 0)
    raw = tmp_path / "dwi.nii"
    nibabel.save(image, raw)
    scaled = bytearray(raw.read_bytes())
    scaled[112:120] = np.array([2, -10], "<f4").tobytes()
    raw.write_bytes(bytes(scaled))
    launched = warm.run_tool(
        *("mpiimg-denoise", raw, "--mask", path(alone, "mask"), "--out", tmp_path / "out"),
        *("--sigma", "study"),
        timeout=PATIENCE,
    )
    assert "100% of the voxels outside the mask are exact zeros" in launched.stderr


def test_b_max_leaves_shells_out(simulated, alone, tmp_path):
    """Half of the directions are said to be of a shell that is then left out."""
    bvals = simulated.gradients().bvals.copy()
    bvals[1::4] = 3000
    data = np.asarray(simulated.image.dataobj)
    shells = write_subject(tmp_path / "in", data, simulated.affine, bvals, simulated.gradients().bvecs)
    mask = path(alone, "mask")
    out = tool("mpiimg-fit", shells, tmp_path / "out", "--mask", mask, *DIPYS, "--b-max", 1500)
    kept = bvals <= 1500
    low = write_subject(
        tmp_path / "low", data[..., kept], simulated.affine, bvals[kept], simulated.gradients().bvecs[kept]
    )
    assert_maps(out, low.data, read(alone, "mask") != 0, low)
    sidecar = json.loads(path(out, "fa", ".json").read_text())
    assert (sidecar["Shells"], sidecar["Volumes"]) == ([0, 1000], int(kept.sum()))


def test_b0_threshold_chooses_what_is_averaged(simulated, tmp_path):
    bvals = simulated.gradients().bvals.copy()
    bvals[[2, 5]] = 300
    data = np.asarray(simulated.image.dataobj)
    near = write_subject(tmp_path / "in", data, simulated.affine, bvals, simulated.gradients().bvecs)
    out = tool("mpiimg-mask", near, tmp_path / "out", "--b0-threshold", 400, "--median-radius", 2)
    expected = expected_mask(near, 2, b0_threshold=400)
    np.testing.assert_array_equal(read(out, "mask"), expected)
    assert (expected != expected_mask(near, 2)).any()


def test_min_signal_is_dipys(simulated, alone, tmp_path):
    options = ("--mask", path(alone, "mask"), *DIPYS, "--min-signal", 300)
    out = tool("mpiimg-fit", simulated, tmp_path / "out", *options)
    mask = read(alone, "mask") != 0
    assert (simulated.data[mask] < 300).any()
    assert_maps(out, simulated.data, mask, simulated, min_signal=300)


@pytest.mark.parametrize("method, options", [("nlls", {}), ("restore", {"sigma": 40.0})])
def test_nonlinear_and_robust_fits_are_dipys(simulated, alone, tmp_path, method, options):
    mask = np.zeros(simulated.data.shape[:3], bool)
    mask[10:14, 12:15, 9:11] = True
    image = tmp_path / "few.nii.gz"
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), simulated.affine), image)
    sigma = ("--restore-sigma", 40) if method == "restore" else ()
    words = ("--mask", image, *DIPYS, "--method", method, *sigma)
    out = tool("mpiimg-fit", simulated, tmp_path / "out", *words, ranks=2)
    assert_maps(out, simulated.data, mask, simulated, method.upper(), **options)


def test_bvecs_are_rescaled_on_request(simulated, alone, tmp_path):
    data = np.asarray(simulated.image.dataobj)
    gradients = simulated.gradients()
    long = write_subject(tmp_path / "in", data, simulated.affine, gradients.bvals, 1.5 * gradients.bvecs)
    words = [*long.arguments, "--mask", path(alone, "mask"), "--out", tmp_path / "out", *DIPYS]
    words.append("--normalise-bvecs")
    done = warm.run_tool("mpiimg-fit", *words, timeout=PATIENCE)
    assert "bvecs were rescaled to unit length" in done.stderr
    assert_maps(tmp_path / "out", data, read(alone, "mask") != 0, simulated)
