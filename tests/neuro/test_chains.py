"""Chains of the neuro steps: their order, a step that stands twice, a given mask, plans and runs alike."""

from __future__ import annotations

import dataclasses
import json

import nibabel
import numpy as np
import pytest
from mpi4py import MPI
from support.subjects import write_subject

from mpiimg.engine import compose, plugins
from mpiimg.engine.parameters import parameters_of
from mpiimg.engine.recipe import Options
from mpiimg.engine.run import run
from mpiimg.engine.stage import expected_stages
from mpiimg.engine.step import Step
from mpiimg.errors import BadInput
from mpiimg.neuro import noise_background
from mpiimg.neuro.volumes import keep_volumes

NEURO = plugins.domain("neuro")
SHAPE = (10, 9, 6)
AFFINE = np.diag([2, 2, 2, 1])
BVALS = np.array([0, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 0])

#: A filter that leaves something of a small head, and a noise level that needs no look at the data.
SETTINGS = {"median_radius": 1, "passes": 1, "sigma": "20"}


def step(name):
    return plugins.step(NEURO, name)


def link(name, label="", write=True, **settings):
    """A step in a chain, with the settings that it knows."""
    parameters = compose.filled(step(name).parameters, {**SETTINGS, **settings})
    return compose.Link(step(name), parameters, label or name, write)


def chain_of(*links):
    """A chain of links, or of steps by name."""
    return compose.make_chain(NEURO, [link(one) if isinstance(one, str) else one for one in links], {})


def paths_of(subject, mask=None):
    return {"dwi": subject.dwi, "bvals": subject.bvals, "bvecs": subject.bvecs, "mask": mask}


def recipe_of(chain, paths):
    return compose.make_recipe(
        chain, compose.inspect_chain(chain, paths), compose.RunName("mpiimg-test", "run.json")
    )


def go(out, chain, paths):
    """Run a chain; return its record."""
    run(recipe_of(chain, paths), MPI.COMM_SELF, Options(out, 4 << 30))
    return json.loads((out / "run.json").read_text())


def names(stages):
    return [stage.name for stage in stages]


def images(out):
    """The bytes of all images of a run, by name."""
    return {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}


def head(background: float) -> np.ndarray:
    """Voxels (x, y, z, volume) of a bright ball, in noise of this level outside it."""
    rng = np.random.default_rng(5)
    x, y, z = np.indices(SHAPE)
    ball = (x - 4.5) ** 2 + (y - 4) ** 2 + (2 * z - 5) ** 2 < 16
    noise = np.hypot(*rng.normal(0, 20, (2, *SHAPE, len(BVALS))))
    signal = 1000 * np.exp(-BVALS * 7e-4) + rng.normal(0, 20, (*SHAPE, len(BVALS)))
    return np.where(ball[..., None], signal, background * noise).astype(np.int16)


def subject_in(folder, background=1.0):
    """Write a subject."""
    directions = np.random.default_rng(3).normal(size=(len(BVALS), 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    directions[BVALS == 0] = 0
    return write_subject(folder, head(background), AFFINE, BVALS, directions)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return subject_in(tmp_path_factory.mktemp("chains"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, subject):
    """What the whole pipeline makes of it."""
    out = tmp_path_factory.mktemp("whole")
    go(out, chain_of("mask", "denoise", "fit"), paths_of(subject))
    return out


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# --------------------------------------------------------------------------- what a chain is given


def offered(*steps):
    """The options of a chain, and whether each must be given."""
    chain = chain_of(*steps)
    offers = compose.arguments_of(chain.source, chain.taken, chain.welcome)
    return {argument.name: required for argument, required in offers}


GRADIENTS = {"dwi": True, "bvals": False, "bvecs": False, "grad": False}


@pytest.mark.parametrize(
    ("steps", "arguments"),
    [
        (("mask",), GRADIENTS),
        (("denoise",), {**GRADIENTS, "mask": False}),
        (("fit",), {**GRADIENTS, "mask": True}),
        (("mask", "denoise"), {**GRADIENTS, "mask": False}),
        (("mask", "denoise", "fit"), {**GRADIENTS, "mask": False}),
        (("denoise", "fit"), {**GRADIENTS, "mask": True}),
    ],
)
def test_a_chain_is_given_what_its_steps_take_and_none_of_them_gives(steps, arguments):
    assert offered(*steps) == arguments


def test_parameters_of_gradients_are_offered_where_gradients_are_taken():
    taking_none = dataclasses.replace(step("denoise"), may_take=())
    without = chain_of(compose.Link(taking_none, taking_none.parameters(), "denoise"))
    of_volumes, of_gradients, of_masks = (
        {one.name for one in compose.parameters_for(chain.source.parameters, chain.fields)}
        for chain in (without, chain_of("mask"), chain_of("fit"))
    )
    assert of_volumes == {"drop_volumes"}
    assert of_masks - of_gradients == {"expect_ml"}
    assert of_gradients - of_volumes == {
        "b0_threshold",
        "b_unit",
        "b_scaling",
        "normalise_bvecs",
        "shells",
    }


def test_no_two_steps_have_a_parameter_of_one_name_but_what_is_asked_of_every_mask():
    kinds = [NEURO.sources[1].parameters, *(step(name).parameters for name in NEURO.steps)]
    options = [one for kind in kinds for one in parameters_of(kind)]
    shared = [one for one in options if one.name == "expect_ml"]
    assert len(shared) == 2 and shared[0] == shared[1]
    assert len({one.name for one in options}) == len(options) - 1


def test_every_field_that_a_step_takes_or_gives_is_one_of_the_state():
    fields = {field.name for field in dataclasses.fields(NEURO.state)}
    for name in NEURO.steps:
        assert {*step(name).takes, *step(name).gives} <= fields
    for source in NEURO.sources:
        assert set(source.gives) <= fields


def test_a_step_that_takes_only_the_image_may_have_one_of_three_dimensions(tmp_path, subject):
    any_image = dataclasses.replace(step("fit"), name="any", takes=("image",))
    chain = compose.make_chain(NEURO, [compose.Link(any_image, any_image.parameters(), "any")], {})
    solid = tmp_path / "solid.nii"
    nibabel.save(nibabel.Nifti1Image(head(1.0)[..., 0], AFFINE), solid)
    state = chain.source.inspect(paths_of(subject) | {"dwi": solid}, chain.parameters, chain.fields)
    assert state.dwi.axes == ("z", "y", "x")
    assert state.gradients is None
    with pytest.raises(BadInput, match="4-D is needed"):
        compose.inspect_chain(chain_of("mask"), paths_of(subject) | {"dwi": solid})


# --------------------------------------------------------------------------- order


def test_a_step_cannot_stand_before_what_gives_what_it_takes():
    late = dataclasses.replace(step("denoise"), name="late", takes=("dwi", "maps"))
    last = compose.Link(late, late.parameters(), "late")
    with pytest.raises(BadInput, match="late cannot stand first: it takes maps, which fit gives"):
        chain_of(last)
    with pytest.raises(BadInput, match="late cannot stand after denoise: it takes maps, which fit gives"):
        chain_of("mask", "denoise", last)
    assert chain_of("mask", "fit", last).taken == {"dwi", "gradients"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("denoise", {"inside_mask": True}), ("denoise", {"sigma": "auto"}), ("fit", {})],
)
def test_a_step_without_its_mask_says_what_is_missing(subject, name, settings):
    needy = link(name, **settings)
    with pytest.raises(BadInput, match=f"{name} needs a mask: give --mask, or put a mask stage before it"):
        compose.inspect_chain(chain_of(needy), paths_of(subject))
    with pytest.raises(BadInput, match=f"{name} needs a mask"):
        compose.inspect_chain(chain_of(needy, "mask"), paths_of(subject))


def test_gradients_are_those_beside_the_image_or_the_missing_file_is_named(tmp_path, subject, whole):
    mask = whole / "dwi_desc-brain_mask.nii.gz"
    bare = {**paths_of(subject, mask), "bvals": None, "bvecs": None}
    beside = compose.inspect_chain(chain_of("fit"), bare).state
    assert beside.gradients == compose.inspect_chain(chain_of("fit"), paths_of(subject, mask)).state.gradients
    lonely = tmp_path / "lonely.nii"
    nibabel.save(nibabel.load(subject.dwi), lonely)
    with pytest.raises(BadInput, match=r"lonely\.bval is not beside it; give --bvals"):
        compose.inspect_chain(chain_of("fit"), bare | {"dwi": lonely})
    assert compose.inspect_chain(chain_of("denoise"), bare | {"dwi": lonely}).state.gradient_files == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": "much"}, "--sigma much: give auto, fit, piesno, estimate, study, a positive number"),
        ({"sigma": "estimate", "coils": 3}, "--coils 3: choose one of 0, 1, 4"),
        ({"sigma": "piesno", "coils": 0}, "--coils 0: PIESNO needs at least one"),
        ({"patch_radius": 5}, "--patch-radius 5 does not fit into --block-radius 5"),
    ],
)
def test_parameters_that_do_not_fit_together_are_refused_before_any_image(settings, words):
    with pytest.raises(BadInput, match=words):
        link("denoise", **settings)


# --------------------------------------------------------------------------- a step that stands twice


@pytest.mark.parametrize("inside", [False, True], ids=["whole-field", "inside-mask"])
def test_a_step_may_stand_twice_and_works_on_what_it_made_before(subject, whole, out, inside):
    """Denoising what was denoised: the same voxels as by a second run on the file of the first."""
    once = link("denoise", inside_mask=inside)
    first, second = (dataclasses.replace(once, label=label) for label in ("first", "second"))
    record = go(
        out / "twice", chain_of("mask", dataclasses.replace(first, write=False), second), paths_of(subject)
    )
    stages = {entry["stage"] for entry in record["stages"]}
    assert {"first", "second"} <= stages
    assert ("second.unpack-unpacked" in stages) == inside
    mask = whole / "dwi_desc-brain_mask.nii.gz"
    go(out / "once", chain_of(once), paths_of(subject, mask))
    denoised = out / "once" / "dwi_desc-denoised_dwi.nii.gz"
    go(out / "again", chain_of(once), {"dwi": denoised, "mask": mask})
    once = nibabel.load(out / "again" / "dwi_desc-denoised_desc-denoised_dwi.nii.gz")
    both = nibabel.load(out / "twice" / "dwi_desc-denoised_dwi.nii.gz")
    assert np.asarray(once.dataobj).tobytes() == np.asarray(both.dataobj).tobytes()
    assert both.get_fdata().tobytes() != nibabel.load(denoised).get_fdata().tobytes()


def test_two_results_of_one_name_are_refused(subject):
    chain = chain_of("mask", link("denoise", "first"), link("denoise", "second"))
    with pytest.raises(BadInput, match=r"two results would be called dwi_desc-denoised_dwi\.nii\.gz"):
        recipe_of(chain, paths_of(subject))


def test_a_fit_may_stand_before_and_after_denoising(subject, whole, out):
    """What it is given is the image at its place in the chain."""
    chain = chain_of("mask", link("fit", "before"), "denoise", link("fit", "after", write=False))
    go(out, chain, paths_of(subject))
    raw = chain_of("fit")
    go(out / "raw", raw, paths_of(subject, whole / "dwi_desc-brain_mask.nii.gz"))
    made, expected = images(out), images(out / "raw")
    assert len(expected) == 8
    assert {name: made[name] for name in expected} == expected
    assert (
        expected["dwi_model-tensor_param-fa_dwimap.nii.gz"]
        != images(whole)["dwi_model-tensor_param-fa_dwimap.nii.gz"]
    )


# --------------------------------------------------------------------------- a given mask


@pytest.mark.parametrize(
    "steps", [("mask", "denoise", "fit"), ("mask", "denoise"), ("denoise", "fit"), ("denoise",)]
)
def test_a_given_mask_takes_the_place_of_the_computed_one(subject, whole, out, steps):
    mask = whole / "dwi_desc-brain_mask.nii.gz"
    record = go(out, chain_of(*steps), paths_of(subject, mask))
    stages = [entry["stage"] for entry in record["stages"]]
    expected = ["read-dwi", "read-mask-image", "mask-values", "mask-in", "mask-voxels", "mask-pieces"]
    assert stages[:6] == expected
    # The mask is only written: nothing of the step that would compute it runs.
    assert {name for name in stages if name.startswith("mask.")} <= {f"mask.write-{mask.name}"}
    assert record["inputs"]["mask"]["path"] == str(mask)
    expected = images(whole)
    made = images(out)
    assert made == {name: expected[name] for name in made}
    assert ("dwi_desc-brain_mask.nii.gz" in made) == ("mask" in steps)
    if "mask" in steps:
        sidecar = json.loads((out / "dwi_desc-brain_mask.json").read_text())
        computed = json.loads((whole / "dwi_desc-brain_mask.json").read_text())
        assert sidecar["Method"] == "given by the user"
        assert sidecar["Sources"] == [mask.name]
        assert sidecar["Voxels"] == computed["Voxels"]


# --------------------------------------------------------------------------- plans and runs


@pytest.mark.parametrize(
    ("sigma", "background", "masked", "left_out"),
    [
        ("20", 1.0, False, set()),
        ("estimate", 1.0, False, set()),
        ("piesno", 1.0, False, set()),
        ("auto", 1.0, False, {"denoise.noise"}),
        ("auto", 0.0, False, set()),
        ("study", 1.0, False, {"denoise.noise"}),
        ("study", 0.0, False, {"denoise.piesno"}),
        # What PIESNO takes for noise lies inside this mask: it is tried, and then not used.
        ("auto", 1.0, True, set()),
        ("study", 1.0, True, set()),
    ],
)
def test_a_run_has_the_stages_of_its_plan_in_their_order(
    monkeypatch, tmp_path, sigma, background, masked, left_out
):
    monkeypatch.setattr(noise_background, "MIN_BACKGROUND", 100)
    subject = subject_in(tmp_path / "subject", background)
    mask = None
    if masked:
        mask = tmp_path / "mask.nii"
        nibabel.save(nibabel.Nifti1Image((np.indices(SHAPE)[0] > 1).astype(np.uint8), AFFINE), mask)
    chain, paths = chain_of("mask", link("denoise", sigma=sigma), "fit"), paths_of(subject, mask)
    planned = names(recipe_of(chain, paths).expected)
    record = go(tmp_path / "out", chain, paths)
    assert left_out <= set(planned)
    assert [entry["stage"] for entry in record["stages"]] == [one for one in planned if one not in left_out]


def test_a_plan_does_not_change_what_a_run_declares(subject):
    """The generator has no side effects: driven again it declares the same."""
    recipe = recipe_of(chain_of("mask", link("denoise", sigma="auto"), "fit"), paths_of(subject))
    first, second = (expected_stages(recipe.stages())[0] for _ in range(2))
    assert names(first) == names(second) == names(recipe.expected)
    assert [stage.parameters for stage in first] == [stage.parameters for stage in second]
    assert len(set(names(first))) == len(first)


# --------------------------------------------------------------------------- volumes that are left out


def dropping(*numbers):
    """A step that leaves volumes of the current image out."""

    def stages(subject, p, data):
        kept = [v for v in range(subject.image.shape[0]) if v not in numbers]
        return (yield from keep_volumes(subject, kept))

    name = "drop-" + "-".join(map(str, numbers))
    one = Step(name=name, takes=("dwi",), gives=("dwi",), stages=stages)
    return compose.Link(one, one.parameters(), name)


def cut(subject, folder, kept):
    """The same subject with some volumes alone."""
    bvals, bvecs = (np.loadtxt(path, ndmin=2) for path in (subject.bvals, subject.bvecs))
    voxels = np.asarray(subject.image.dataobj)[..., kept]
    return write_subject(folder, voxels, AFFINE, bvals[0, kept], bvecs[:, kept].T)


def test_volumes_are_left_out_of_image_gradients_and_index_alike(tmp_path, subject):
    """The same results as from a file that never had them, also where they are left out one by one."""
    kept = [0, 2, 3, 4, 5, 6, 7]
    go(tmp_path / "cut", chain_of("mask", "denoise", "fit"), paths_of(cut(subject, tmp_path / "s", kept)))
    chain = chain_of(dropping(8), dropping(1), "mask", "denoise", "fit")
    recipe = recipe_of(chain, paths_of(subject))
    last = expected_stages(recipe.stages())[1][-1]
    assert last.volumes == tuple(kept)
    assert last.image.shape[0] == last.denoised.voxels.shape[0] == len(last.gradients.bvals) == len(kept)
    go(tmp_path / "dropped", chain, paths_of(subject))
    assert images(tmp_path / "dropped") == images(tmp_path / "cut")
    tables = [
        [np.loadtxt(path) for path in sorted((tmp_path / folder).glob("*.bv*"))]
        for folder in ("dropped", "cut")
    ]
    np.testing.assert_allclose(np.vstack(tables[0]), np.vstack(tables[1]), atol=1e-8)


def test_volumes_of_packed_voxels_are_left_out_too(tmp_path, subject, whole):
    """After denoising: as a fit to the denoised file without them."""
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    go(tmp_path / "dropped", chain_of("mask", "denoise", dropping(4), "fit"), paths_of(subject))
    denoised = dataclasses.replace(subject, dwi=whole / "dwi_desc-denoised_dwi.nii.gz")
    given = paths_of(cut(denoised, tmp_path / "s", kept), whole / "dwi_desc-brain_mask.nii.gz")
    go(tmp_path / "cut", chain_of("fit"), given)
    made = images(tmp_path / "dropped")
    assert images(tmp_path / "cut").items() <= made.items()


def test_where_all_volumes_are_kept_nothing_is_copied(subject):
    states = recipe_of(chain_of(dropping(), "mask"), paths_of(subject)).expected
    assert not [stage for stage in states if "kept" in stage.name]


def test_a_plan_that_does_not_know_the_volumes_reckons_with_a_copy_of_all(subject):
    state = compose.inspect_chain(chain_of("mask"), paths_of(subject)).state
    (stage,), after = expected_stages(keep_volumes(state, None))
    assert stage.writes[0].shape == state.dwi.shape
    assert after.gradients == state.gradients and after.volumes == state.volumes
