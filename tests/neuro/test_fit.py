"""What enters the fit of a tensor by default, what is said of it and where it makes no sense, and recipes."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from support import reference, warm
from support.subjects import PATIENCE, path, read, record, tool, write_subject

from mpiimg.engine import plugins
from mpiimg.engine.parameters import checked, parameters_of
from mpiimg.errors import BadInput
from mpiimg.neuro import floor, plausible
from mpiimg.neuro.floor import Figures
from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.steps.fit import FitParameters, fitted_volumes

DIRECTIONS = np.random.default_rng(4).normal(size=(12, 3))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1)[:, None]
BVALS = np.array([0.0, 0] + 10 * [1000.0])
BVECS = np.where(BVALS[:, None] > 0, DIRECTIONS, 0)


@pytest.fixture
def subject(tmp_path):
    """Return a function that writes a subject of one tensor all over, MD 0.7e-3 mm^2/s, and a mask of it."""

    def write(scale=1000.0, bvals=BVALS, said=BVALS, bvecs=BVECS, dtype=np.float32):
        tensor = np.array([1.1e-3, 1e-4, 6e-4, 0, 0, 4e-4])[:, None, None, None] * np.ones((1, 4, 5, 6))
        s0 = np.random.default_rng(1).uniform(0.8, 1.2, (4, 5, 6))
        volumes = [reference.diffusion_signal(s0, tensor, b, g) for b, g in zip(bvals, bvecs, strict=True)]
        data = (scale * np.stack(volumes, axis=-1)).astype(dtype)
        mask = nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))
        nibabel.save(mask, tmp_path / "mask.nii")
        return write_subject(tmp_path / "in", data, np.eye(4), said, bvecs, "dwi.nii")

    return write


def fit(subject, out, *options):
    """Fit inside the mask; return the folder and the warnings."""
    mask = out.parent / "mask.nii"
    words = [*subject.arguments, "--mask", mask, "--out", out, *options]
    done = warm.run_tool("mpiimg-fit", *words, timeout=PATIENCE)
    return out, done.stderr


def sidecar(out, what="md"):
    return json.loads(path(out, what, ".json").read_text())


# --- Volumes ----------------------------------------------------------------------------------------------


def table(bvals):
    bvecs = np.where(np.array(bvals)[:, None] > 50, np.resize(DIRECTIONS, (len(bvals), 3)), 0)
    return Gradients(tuple(map(float, bvals)), tuple(map(tuple, bvecs)), 50.0)


def test_shells_up_to_1500_enter_whole():
    """Scanners jitter around a nominal value."""
    bvals = [0, *range(1490, 1512, 2), *range(2990, 3012, 2)]
    low = tuple(range(12))
    assert fitted_volumes(table(bvals), "auto") == low
    assert fitted_volumes(table(bvals), "none") == tuple(range(len(bvals)))
    assert fitted_volumes(table(bvals), "1500") == tuple(range(7))


def test_all_volumes_enter_where_the_low_ones_determine_no_tensor():
    assert fitted_volumes(table([0, 1000, 1000, *[3000] * 9]), "auto") == tuple(range(12))
    assert fitted_volumes(table([0, *[3000] * 11]), "auto") == tuple(range(12))


def test_what_is_left_out_by_default_is_said(subject, tmp_path):
    bvals = np.concatenate([BVALS, [3000.0, 3000.0]])
    one = subject(bvals=bvals, said=bvals, bvecs=np.vstack([BVECS, DIRECTIONS[:2]]))
    out, said = fit(one, tmp_path / "out")
    assert "2 of 14 volumes, those with b above 1500 s/mm^2, are left out of the fit" in said
    assert sidecar(out)["Volumes"] == 12
    out, said = fit(one, tmp_path / "all", "--b-max", "none")
    assert "b-values up to 3000 s/mm^2 enter the tensor fit; --b-max 1500" in said
    assert sidecar(out)["Volumes"] == 14


@pytest.mark.parametrize(
    "given", [{"b_max": "all"}, {"b_max": "-"}, {"min_signal": "none"}, {"min_signal": "sigma"}], ids=str
)
def test_other_words_are_refused(given):
    with pytest.raises(BadInput, match=r"give auto"):
        FitParameters(**given)


@pytest.mark.parametrize("given", ["auto", "piesno", "-3", "level"])
def test_a_noise_level_that_is_none_is_refused(given):
    with pytest.raises(BadInput, match="give"):
        FitParameters(fit_sigma=given)


# --- Floor ------------------------------------------------------------------------------------------------


def test_a_floor_by_slice_and_by_volume():
    signal = np.random.default_rng(0).uniform(0, 10, (3, 7)).astype(np.float32)
    by_slice = floor.of_noise(np.array([[1.0, 20.0, 4.0, 8.0]]), "given")
    levels = np.float32([10, 10, 10, 2, 2, 4, 4])  # half of those of slices 1 to 3, which have 3, 2 and 2
    raised, left, floored = by_slice.raise_signal(signal, 1, [3, 2, 2])
    np.testing.assert_array_equal(raised, np.maximum(signal, levels))
    np.testing.assert_array_equal(floored, (signal < levels).sum(axis=0))
    assert left < 1e-20
    by_volume = floor.of_noise(np.array([[2.0], [6.0], [18.0]]), "estimate")
    raised, _, floored = by_volume.raise_signal(signal, 0, [7])
    np.testing.assert_array_equal(raised, np.maximum(signal, np.float32([[1], [3], [9]])))
    np.testing.assert_array_equal(floored, (signal < np.float32([[1], [3], [9]])).sum(axis=0))


def test_without_a_noise_level_the_floor_follows_the_largest_signal_of_a_voxel():
    signal = np.array([[1e9, 1e-3, 0, np.nan], [10.0, 1e-12, 0, 1], [0, 1e-3, 0, 1]])
    raised, _, floored = floor.of_largest().raise_signal(signal, 0, [4])
    np.testing.assert_array_equal(raised[:, :2], [[1e9, 1e-3], [1e3, 1e-9], [1e3, 1e-3]])
    assert (raised[:, 2] > 0).all()
    assert np.isnan(raised[0, 3])
    np.testing.assert_array_equal(floored[:3], [2, 1, 3])


def test_tiny_and_huge_images_have_the_tensor_of_any_other(subject, tmp_path):
    """A floor in image units would swallow the one."""
    maps = {}
    for scale in (1e-6, 1e12):
        out, said = fit(subject(scale), tmp_path / f"{scale:g}")
        # The mask, which is all of the field, has warnings of its own.
        warnings = [line for line in said.splitlines() if line.startswith("mpiimg: warning: ")]
        assert all("mask.nii: it " in line for line in warnings)
        assert (sidecar(out)["MinSignal"], sidecar(out)["MinSignalShare"]) == ([1e-6], 0)
        assert sidecar(out)["MinSignalSource"] == "no noise level is known"
        maps[scale] = read(out, "fa")
        np.testing.assert_allclose(read(out, "md"), 7e-4, rtol=1e-5)
    np.testing.assert_allclose(maps[1e-6], maps[1e12], rtol=1e-5)


def test_a_noise_level_that_is_given_sets_the_floor(subject, tmp_path):
    out, _ = fit(subject(), tmp_path / "out", "--fit-sigma", 30)
    assert (sidecar(out)["MinSignal"], sidecar(out)["MinSignalBy"]) == ([15], "image")
    assert sidecar(out)["MinSignalSource"] == "half the noise level (given)"


def test_a_noise_level_by_voxel_sets_the_floor_of_each(subject, tmp_path):
    one = subject()
    data = np.asarray(one.image.dataobj)
    sigma = np.random.default_rng(3).uniform(200, 1800, data.shape[:3]).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(sigma, np.eye(4)), tmp_path / "sigma.nii.gz")
    out, _ = fit(one, tmp_path / "out", "--fit-sigma", tmp_path / "sigma.nii.gz")
    raised = np.maximum(data, np.float32(0.5) * sigma[..., None])
    assert sidecar(out)["MinSignalShare"] == (data < raised).mean()
    assert (sidecar(out)["MinSignalBy"], sidecar(out)["MinSignal"]) == ("voxel", [0.5])
    (tmp_path / "in").rename(tmp_path / "first")
    higher = write_subject(tmp_path / "in", raised, np.eye(4), BVALS, BVECS, "dwi.nii")
    expected, _ = fit(higher, tmp_path / "expected", "--min-signal", 1e-20)
    for key in ("tensor", "fa", "s0"):
        assert path(out, key).read_bytes() == path(expected, key).read_bytes()


@pytest.mark.parametrize("where", [(), ("--inside-mask",)], ids=["whole-field", "inside-mask"])
def test_a_map_given_to_the_chain_and_to_the_fit_alone_are_the_same(simulated, tmp_path, where):
    sigma = np.random.default_rng(3).uniform(30, 60, simulated.data.shape[:3]).astype(np.float32)
    level = tmp_path / "sigma.nii.gz"
    nibabel.save(nibabel.Nifti1Image(sigma, simulated.affine), level)
    chain = ("--median-radius", 1, "--passes", 1, "--block-radius", 2, "--sigma", level, *where)
    out = tool("mpiimg-neuro", simulated, tmp_path / "chain", *chain, ranks=2)
    tables = ("--bvals", simulated.bvals, "--bvecs", simulated.bvecs, "--mask", path(out, "mask"))
    words = (path(out, "denoised"), *tables, "--fit-sigma", level, "--out", tmp_path / "alone")
    warm.run_tool("mpiimg-fit", *words, timeout=PATIENCE)
    assert sidecar(out)["MinSignalSource"] == "half the noise level (map)"
    assert path(out, "tensor").read_bytes() == path(tmp_path / "alone", "tensor").read_bytes()


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"Sigma": [8.0], "SigmaBy": "image"}, [4]),
        ({"Sigma": 8, "SigmaBy": "image"}, [4]),
        ({"Sigma": [2, 4, 6, 8.5, 9, 10], "SigmaBy": "slice"}, [1, 2, 3, 4.25, 4.5, 5]),
        ({"Sigma": list(range(2, 14)), "SigmaBy": "volume"}, [2, 1.5]),
        ({"Sigma": [2, 4], "SigmaBy": "volume"}, None),
        ({"Sigma": [0], "SigmaBy": "image"}, None),
        ({"Sigma": "8", "SigmaBy": "image"}, None),
        ({"Sigma": [2, 4]}, None),
        ({}, None),
    ],
)
def test_the_noise_level_that_a_sidecar_says(fields, expected):
    found = floor.of_sidecar(fields, (2, 1) if fields.get("SigmaBy") == "volume" else (0, 1))
    assert (None if found is None else found.levels.ravel().tolist()) == expected


# --- What makes no sense ----------------------------------------------------------------------------------


def test_signals_below_the_floor_are_said(subject, tmp_path):
    out, said = fit(subject(1e-3), tmp_path / "out", "--min-signal", 1)
    assert "in 100% of the mask all signals lie below the floor of the fit (1 image units, given)" in said
    assert "is the image scaled to small numbers?" in said
    assert sidecar(out)["MinSignalShare"] == 1
    assert any("all signals lie below" in text for text in record(out, "run-fit.json")["warnings"])


def test_a_tenth_of_the_signals_below_the_floor_is_said(subject, tmp_path):
    out, said = fit(subject(), tmp_path / "out", "--min-signal", 600)
    share = sidecar(out)["MinSignalShare"]
    assert 0.1 < share < 0.9
    assert f"{share:.0%} of the signals in the mask lie below the floor of the fit (600 image units" in said


def test_signals_that_rise_with_b_are_said(subject, tmp_path):
    """Volumes in one order, and b-values in the other."""
    bvals = np.repeat([0.0, 1000.0], 6)
    _, said = fit(subject(bvals=bvals, said=bvals[::-1], bvecs=DIRECTIONS), tmp_path / "out")
    assert "in 100% of the mask the signal rises with b, as no diffusion makes it" in said


@pytest.mark.parametrize("factor, words", [(1e-3, "above 0.01 mm^2/s"), (1e3, "below 1e-05 mm^2/s")])
def test_b_values_in_another_unit_are_said(subject, tmp_path, factor, words):
    options = ("--b-unit", "s/mm2", "--b0-threshold", min(50, 50 * factor))
    _, said = fit(subject(said=BVALS * factor), tmp_path / "out", *options)
    assert f"in 100% of the mask the mean diffusivity is {words}" in said


def test_half_of_a_mask_is_no_reason_to_speak():
    least = floor.absolute(1.0)
    for name in ("lost", "rising", "slow", "fast"):
        assert not plausible.complaints(Figures(100, 0, **{name: 50}), 10, least)
        assert len(plausible.complaints(Figures(100, 0, **{name: 51}), 10, least)) == 1
    assert not plausible.complaints(Figures(100, 100), 10, least)
    assert len(plausible.complaints(Figures(100, 101), 10, least)) == 1


def test_figures_are_those_of_the_maps(subject, tmp_path):
    """Counted from what is written, in any order of elements and any frame."""
    one = subject()
    data = np.asarray(one.image.dataobj).copy()
    data[:2, ..., 2:] *= np.float32(6)
    bad = write_subject(tmp_path / "bad", data, np.eye(4), BVALS, BVECS, "dwi.nii")
    said = {}
    for order in ("dipy", "fsl", "mrtrix"):
        options = ("--tensor-order", order, "--frame", "scanner", "--min-signal", 700)
        out, _ = fit(bad, tmp_path / order, *options)
        said[order] = sidecar(out)["MinSignalShare"]
    assert set(said.values()) == {float((data < 700).mean())}


# --- The recipe by name -----------------------------------------------------------------------------------


def test_every_value_of_a_recipe_is_one_that_a_step_takes():
    for domain in plugins.every_domain():
        steps = [plugins.step(domain, name) for name in domain.steps]
        kinds = [one.parameters for one in (*steps, *domain.sources)]
        declared = {one.name: one for kind in kinds for one in parameters_of(kind)}
        for preset in domain.presets.values():
            for name, value in preset.values.items():
                held = checked(declared[name], value, name)
                assert (held, type(held)) == (value, type(value))


STUDY = {"MinSignal": [1e-4], "MinSignalSource": "given", "Method": "wls", "Volumes": 12}


def test_options_override_the_recipe(subject, tmp_path):
    one = subject()
    out, _ = fit(one, tmp_path / "study", "--recipe", "study")
    assert {key: sidecar(out)[key] for key in STUDY} == STUDY
    assert sidecar(out)["Recipe"] == record(out, "run-fit.json")["recipe"] == "study"
    out, _ = fit(one, tmp_path / "ols", "--method", "iwls", "--recipe=study")
    assert {key: sidecar(out)[key] for key in STUDY} == {**STUDY, "Method": "iwls"}
    assert sidecar(out)["Recipe"] == "study, with method iwls"
    parameters = record(out, "run-fit.json")["parameters"]
    assert (parameters["recipe"], parameters["min_signal"]) == ("study", "0.0001")


def test_the_recipe_in_toml_and_in_python_makes_the_same_files(subject, tmp_path):
    one = subject()
    expected, _ = fit(one, tmp_path / "tool", "--recipe", "study", "--tensor-order", "fsl")
    (tmp_path / "pipeline.toml").write_text(
        'recipe = "study"\n[[stage]]\ntool = "fit"\ntensor_order = "fsl"\n'
    )
    mask = ("--mask", tmp_path / "mask.nii")
    warm.run_tool("mpiimg-run", tmp_path / "pipeline.toml", one.dwi, *mask, "--out", tmp_path / "toml")
    script = tmp_path / "script.py"
    script.write_text(f"""import mpiimg
how = {{"mask": {str(tmp_path / "mask.nii")!r}, "recipe": "study"}}
tables = {{"bvals": {str(one.bvals)!r}, "bvecs": {str(one.bvecs)!r}}}
mpiimg.run([{{"tool": "fit", "tensor_order": "fsl"}}], {str(one.dwi)!r}, {str(tmp_path / "stages")!r}, **how)
mpiimg.run("fit", {str(one.dwi)!r}, {str(tmp_path / "named")!r}, **how, **tables, tensor_order="fsl")
""")
    warm.run_tool("mpiimg-run", script)
    for name in ("toml", "stages", "named"):
        for key in ("fa", "tensor"):
            assert path(tmp_path / name, key).read_bytes() == path(expected, key).read_bytes()
            assert sidecar(tmp_path / name, key)["Recipe"] == "study"


def test_the_plan_names_the_recipe_and_another_one_is_refused(subject, tmp_path):
    one = subject()
    words = [*one.arguments, "--mask", tmp_path / "mask.nii", "--out", tmp_path / "out"]
    done = warm.run_tool("mpiimg-fit", *words, "--plan", "--recipe", "study")
    assert done.stdout.splitlines()[2].endswith("; recipe study")
    done = warm.run_tool("mpiimg-fit", *words, "--plan=json", "--recipe", "study")
    assert json.loads(done.stdout)["recipe"] == "study"
    done = warm.run_tool("mpiimg-fit", *words, "--recipe", "other", check=False)
    assert done.returncode == 2
    assert "--recipe: invalid choice: 'other'" in done.stderr
    (tmp_path / "pipeline.toml").write_text('recipe = "other"\n[[stage]]\ntool = "fit"\n')
    words = (tmp_path / "pipeline.toml", one.dwi, "--mask", tmp_path / "mask.nii", "--out", tmp_path / "out")
    done = warm.run_tool("mpiimg-run", *words, check=False)
    assert done.returncode == 2
    assert "recipe other: no such recipe of neuro; there are study" in done.stderr


def test_the_recipe_leaves_steps_of_the_pipeline_out(simulated, tmp_path):
    """And says so of options that are for these alone."""
    words = (*simulated.arguments, "--recipe", "study", "--out", tmp_path / "out")
    done = warm.run_tool("mpiimg-neuro", *words, "--plan=json")
    stages = [one["stage"] for one in json.loads(done.stdout)["stages"]]
    assert "fit.plausible" in stages
    assert not any(name.startswith("volumes.") for name in stages)
    by_name = warm.run_tool("mpiimg-run", "neuro:neuro", *words, "--plan=json")
    assert [one["stage"] for one in json.loads(by_name.stdout)["stages"]] == stages
    done = warm.run_tool("mpiimg-neuro", *words, "--exclude", "empty", check=False)
    assert done.returncode == 2
    assert "--exclude is of the step volumes, which the recipe study leaves out" in done.stderr


def test_a_switch_of_the_recipe_can_be_switched_off(simulated, tmp_path):
    words = ("--recipe", "study", "--sigma", 40, "--median-radius", 1, "--passes", 1)
    inside = tool("mpiimg-neuro", simulated, tmp_path / "inside", *words)
    outside = tool("mpiimg-neuro", simulated, tmp_path / "outside", *words, "--no-inside-mask")
    mask = read(inside, "mask") != 0
    assert not read(inside, "denoised")[~mask].any()
    assert read(outside, "denoised")[~mask].all()
