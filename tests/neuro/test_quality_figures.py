"""The figures of a scan are those of dipy, or of NumPy on the results; its slices are those of the images."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.data import get_sphere
from dipy.stats.qc import neighboring_dwi_correlation
from support.subjects import EVERYTHING, neuro

from mpiimg.engine import plugins
from mpiimg.neuro.quality_figures import MAX_MD, MD_BINS, csf_peak, spread_energy
from mpiimg.neuro.shown_slices import cut, parted, planes_to_show
from mpiimg.neuro.steps.qc import DEFINITIONS, OF_SHELLS, definition

pytestmark = pytest.mark.tool


@pytest.fixture(scope="module")
def found(simulated, alone):
    """The figures, the voxels of all images, and the table of gradients."""

    def voxels(name):
        return np.asarray(nibabel.load(alone / f"dwi_{name}.nii.gz").dataobj)

    bvals, bvecs = np.loadtxt(simulated.bvals), np.loadtxt(simulated.bvecs)
    images = {
        "raw": np.asarray(nibabel.load(simulated.dwi).dataobj, float),
        "denoised": voxels("desc-denoised_dwi"),
        "mask": voxels("desc-brain_mask") > 0,
        **{name: voxels(f"model-tensor_param-{name}_dwimap") for name in ("fa", "md", "s0", "tensor")},
    }
    figures = json.loads((alone / "dwi_desc-qc_dwimap.json").read_text())
    return figures, images, gradient_table(bvals, bvecs=bvecs.T if len(bvecs) == 3 else bvecs)


@pytest.mark.parametrize(("name", "image"), [("ndc", "raw"), ("ndc_denoised", "denoised")])
def test_correlation_of_neighbours_is_dipys(found, name, image):
    figures, images, table = found
    expected = neighboring_dwi_correlation(images[image].astype(float), table, mask=images["mask"])
    assert figures[name] == pytest.approx(expected, abs=1e-4)


def test_signal_to_noise(found):
    figures, images, table = found
    b0s = images["raw"][images["mask"]][:, table.b0s_mask]
    if b0s.shape[1] < 3:
        assert figures["snr_b0"] is None
    else:
        expected = b0s.mean() / np.sqrt(b0s.var(axis=1, ddof=1).mean())
        assert figures["snr_b0"] == pytest.approx(expected, rel=1e-5)
    weighted = images["raw"][images["mask"]][:, ~table.b0s_mask]
    (name,) = (one for one in figures if one.startswith("snr_b") and one != "snr_b0")
    assert figures[name] == pytest.approx(weighted.mean() / figures["sigma"], rel=1e-5)


def test_contrast_to_noise(found):
    figures, images, table = found
    inside, chosen = images["mask"], ~table.b0s_mask
    xx, xy, yy, xz, yz, zz = images["tensor"][inside].astype(float).T
    tensors = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    power = np.einsum("vi,ijn,vj->nv", table.bvecs, tensors, table.bvecs) * -table.bvals
    predicted = (images["s0"][inside].astype(float)[:, None] * np.exp(power))[:, chosen]
    rest = images["raw"][inside][:, chosen] - predicted
    expected = np.sqrt(predicted.var(axis=1).mean() / (rest**2).mean())
    (name,) = (one for one in figures if one.startswith("cnr_b"))
    assert figures[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "largest"), [("fa", 1.0), ("md", MAX_MD)])
def test_histograms_are_numpys(found, name, largest):
    figures, images, _ = found
    counts = figures["Histograms"][name]["Counts"]
    values = np.clip(images[name][images["mask"]].astype(float), 0, np.nextafter(largest, 0))
    expected, _ = np.histogram(values, len(counts), (0, largest))
    assert sum(counts) == images["mask"].sum()
    assert np.abs(np.array(counts) - expected).sum() <= 2  # a value may lie on an edge


def test_the_mask_and_the_image(found):
    figures, images, _ = found
    assert [figures[f"size_{axis}"] for axis in "xyzt"] == list(images["raw"].shape)
    volume = images["mask"].sum() * figures["spacing_x"] * figures["spacing_y"] * figures["spacing_z"] / 1000
    assert figures["mask_ml"] == pytest.approx(volume, rel=1e-4)
    assert figures["fa_mean"] == pytest.approx(images["fa"][images["mask"]].mean(), rel=1e-4)


def test_figures_do_not_depend_on_how_tensors_are_written(simulated, found, tmp_path):
    figures, _, _ = found
    flags = (*EVERYTHING, "--frame", "scanner", "--tensor-order", "fsl")
    out = neuro(simulated, tmp_path / "out", *flags)
    other = json.loads((out / "dwi_desc-qc_dwimap.json").read_text())
    names = [name for name in figures if name.startswith("cnr_b")]
    assert names and [other[name] for name in names] == pytest.approx([figures[name] for name in names])


def test_the_table_and_the_json_say_the_same(alone):
    names, values = (alone / "dwi_desc-qc_dwimap.tsv").read_text().splitlines()
    figures = json.loads((alone / "dwi_desc-qc_dwimap.json").read_text())
    said = dict(zip(names.split("\t"), values.split("\t"), strict=True))
    assert said == {name: "n/a" if figures[name] is None else str(figures[name]) for name in said}
    assert set(said) == set(figures["Definitions"]) and len(said) > 30


def test_every_figure_has_a_definition():
    for name in (*DEFINITIONS, *(f"{start}1000" for start in OF_SHELLS)):
        unit, text = definition(name)
        assert text.endswith(".") and isinstance(unit, str)


def test_slices_that_are_shown_are_those_of_the_images(found, alone):
    _, images, _ = found
    with np.load(alone / "dwi_desc-qc_dwimap.npz") as held:
        planes = [held[f"planes_{axis}"] for axis in "zyx"]
        for number, volume in enumerate(held["volumes"]):
            low, high = float(held["low"][number]), float(held["high"][number])
            for kind, name in enumerate(("raw", "denoised")):
                shown = low + held["levels"][number, kind] / 65535 * (high - low)
                expected = cut(images[name][..., volume].T, planes)
                for part, slices in zip(parted(shown, held["sides"]), expected, strict=True):
                    assert np.abs(part - slices).max() <= (high - low) / 65535


def test_large_slices_are_thinned():
    volume = np.arange(4 * 1100 * 600).reshape(4, 1100, 600)
    axial, coronal, sagittal = cut(volume, ((1,), (5,), (7,)))
    assert np.array_equal(axial, volume[1:2, ::3, ::2])
    assert np.array_equal(coronal[0], volume[:, 5, ::2])
    assert np.array_equal(sagittal[0], volume[:, ::3, 7])


def test_few_slices_are_all_shown():
    assert planes_to_show((2, 1, 4), [(0, 1), (0, 0), (0, 3)]) == ((0, 1), (0,), (1, 2))


def test_evenly_spread_directions_have_energy_one():
    sphere = get_sphere(name="repulsion100").vertices
    half = sphere[sphere[:, 2] > 0]
    assert spread_energy(half) == pytest.approx(1.0, abs=0.02)
    bunched = half[half[:, 2] > 0.5]
    assert spread_energy(bunched) > 1.1
    assert spread_energy(half[:5]) is None
    assert spread_energy(np.concatenate([half, -half])) == pytest.approx(spread_energy(half))


def test_the_peak_of_csf_is_none_where_there_is_only_a_tail():
    md = (np.arange(MD_BINS) + 0.5) * MAX_MD / MD_BINS
    tail = 1e5 * np.exp(-((md - 0.8e-3) ** 2) / (2 * 0.5e-3**2))
    assert csf_peak(np.rint(tail)) is None
    peak = tail + 900 * np.exp(-((md - 2.9e-3) ** 2) / (2 * 0.15e-3**2))
    assert csf_peak(np.rint(peak)) == pytest.approx(2.9e-3, abs=0.1e-3)
    assert csf_peak(np.zeros(MD_BINS)) is None


def test_it_is_a_tool_of_its_own(simulated, alone, tmp_path):
    """With a mask alone it says what there is to say of the scan."""
    from support import warm

    mask = alone / "dwi_desc-brain_mask.nii.gz"
    warm.run_tool("mpiimg-qc", *simulated.arguments, "--mask", mask, "--out", tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "dwi_desc-qc_dwimap.json").read_text())
    whole = json.loads((alone / "dwi_desc-qc_dwimap.json").read_text())
    assert figures["ndc"] == whole["ndc"] and figures["snr_b0"] == whole["snr_b0"]
    assert "fa_mean" not in figures and "sigma" not in figures


def test_the_step_is_none_of_the_study():
    domain = plugins.domain("neuro")
    assert "qc" in domain.pipelines["neuro"].steps and "qc" in domain.presets["study"].without
