"""Tables that can be understood in two ways: the image decides, or the user is asked and both are named."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess

import nibabel
import numpy as np
import pytest
from mpi4py import MPI
from support import warm
from support.subjects import PATIENCE, digests, read, write_subject

from mpiimg.engine import compose, plugins
from mpiimg.engine.recipe import Options
from mpiimg.engine.run import run
from mpiimg.errors import BadInput
from mpiimg.simulate.gradients import gradients

NEURO = plugins.domain("neuro")
SHAPE = (16, 15, 8)
AFFINE = np.diag([-2.0, 2, 2, 1])

#: Mean diffusivity of the tissue, mm^2/s.
MD = 8e-4


def table(volumes=20, shells=(1000.0,)):
    """b-values and unit vectors, b0s among them."""
    return gradients(volumes, 1, shells)


def tissue(bvals, bvecs, seed=0):
    """Signals (x, y, z, volume) int16 of a ball of fibres in all directions, in noise."""
    rng = np.random.default_rng(seed)
    v1 = rng.normal(size=(*SHAPE, 3))
    v1 /= np.linalg.norm(v1, axis=-1, keepdims=True)
    fast, slow = 2 * MD, MD / 2
    along = slow + (fast - slow) * (v1 @ np.asarray(bvecs).T) ** 2
    length = np.linalg.norm(bvecs, axis=1)
    b = np.where(length > 0, bvals, 0)
    x, y, z = np.indices(SHAPE)
    ball = (x - 7.5) ** 2 + (y - 7) ** 2 + (2 * z - 7) ** 2 < 40
    signal = np.where(ball[..., None], 1000 * np.exp(-b * along), 0)
    return np.hypot(signal + rng.normal(0, 15, signal.shape), rng.normal(0, 15, signal.shape)).astype(
        np.int16
    )


def in_folder(folder, voxels, bvals, bvecs):
    return write_subject(folder, voxels, AFFINE, bvals, bvecs)


def go(subject, out, *steps, **settings):
    """Run steps, by default all; return the record and the last state."""
    links = []
    for name in steps or ("mask", "denoise", "fit"):
        step = plugins.step(NEURO, name)
        own = {"median_radius": 1, "passes": 1, "sigma": "15", "block_radius": 2, **settings}
        links.append(compose.Link(step, compose.filled(step.parameters, own), name))
    chain = compose.make_chain(NEURO, links, settings)
    paths = {"dwi": subject.dwi, "bvals": subject.bvals, "bvecs": subject.bvecs}
    recipe = compose.make_recipe(chain, compose.inspect_chain(chain, paths), compose.RunName("t", "run.json"))
    run(recipe, MPI.COMM_SELF, Options(out, 4 << 30))
    return json.loads((out / "run.json").read_text())


def md(out):
    """The median of MD in the mask, mm^2/s."""
    return np.median(read(out, "md")[read(out, "mask") > 0])


def same_maps(one, other):
    for path in sorted(one.glob("*dwimap.nii.gz")):
        ours, theirs = (np.asarray(nibabel.load(p).dataobj) for p in (path, other / path.name))
        assert ours.tobytes() == theirs.tobytes(), path.name


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A subject with an ordinary table, and what comes of it."""
    folder = tmp_path_factory.mktemp("plain")
    subject = in_folder(folder / "in", tissue(*table()), *table())
    record = go(subject, folder / "out")
    return subject, folder / "out", record


def test_an_ordinary_table_costs_nothing_and_its_shells_are_kept(plain):
    _, out, record = plain
    assert record["warnings"] == []
    asked = [one["stage"] for one in record["stages"] if "gradient" in one["stage"] or "used" in one["stage"]]
    # The check of flipped axes goes by the maps, whatever the table is like.
    assert asked == ["fit.gradient-check"]
    assert record["inputs"]["shells"] == [
        {"b": 0.0, "volumes": 2, "low": 0.0, "high": 0.0},
        {"b": 1000.0, "volumes": 18, "low": 1000.0, "high": 1000.0},
    ]
    assert 0.9 * MD < md(out) < 1.1 * MD


# --- Units --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "unit"), [(1e-3, "ms/um2"), (1e6, "s/m2")])
def test_other_units_are_recognised_with_a_warning(tmp_path, plain, factor, unit):
    subject, out, _ = plain
    bvals, bvecs = table()
    other = in_folder(tmp_path / "in", subject.image.dataobj, bvals * factor, bvecs)
    record = go(other, tmp_path / "out")
    (warning,) = record["warnings"]
    assert "dwi.bval: b-values up to" in warning and unit[:3] in warning and "--b-unit" in warning
    same_maps(out, tmp_path / "out")
    assert np.loadtxt(tmp_path / "out" / "dwi_desc-denoised_dwi.bval").tolist() == bvals.tolist()


def test_a_unit_that_is_said_is_not_asked_for(tmp_path, plain):
    subject, out, _ = plain
    bvals, bvecs = table()
    other = in_folder(tmp_path / "in", subject.image.dataobj, bvals / 1000, bvecs)
    record = go(other, tmp_path / "out", b_unit="ms/um2")
    assert record["warnings"] == []
    assert "gradient-table" not in [one["stage"] for one in record["stages"]]
    same_maps(out, tmp_path / "out")
    record = go(other, tmp_path / "b0s", "mask", b_unit="s/mm2")
    assert [one["volumes"] for one in record["inputs"]["shells"]] == [20]


def test_small_b_values_that_the_image_does_not_bear_out_are_asked_for(tmp_path):
    """A scan of b = 5 in many directions is no scan of b = 5000."""
    bvals, bvecs = table()
    voxels = tissue(np.zeros(len(bvals)), bvecs)
    subject = in_folder(tmp_path / "in", voxels, bvals / 200, bvecs)
    with pytest.raises(
        BadInput, match=r"dwi\.bval: b-values up to 5 may be in ms/um\^2, but signal does not fall"
    ):
        go(subject, tmp_path / "out")
    assert go(subject, tmp_path / "out", "mask", b_unit="s/mm2")["warnings"] == []


def test_few_directions_of_small_b_values_are_b0s(tmp_path):
    """Scans with the other phase encoding have b = 1 to 5 in a direction or two."""
    bvals = np.array([0.0, 5, 5, 5])
    bvecs = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])
    subject = in_folder(tmp_path / "in", tissue(bvals, bvecs), bvals, bvecs)
    assert go(subject, tmp_path / "out", "mask")["warnings"] == []


# --- Lengths ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_shells(tmp_path_factory):
    """A subject of two shells, and what comes of it."""
    folder = tmp_path_factory.mktemp("shells")
    given = table(24, (1000.0, 2000.0))
    subject = in_folder(folder / "in", tissue(*given), *given)
    go(subject, folder / "out")
    return subject, folder / "out", given


def encoded(folder, subject, given):
    """The same with b-values in the lengths of bvecs."""
    bvals, bvecs = given
    return in_folder(
        folder, subject.image.dataobj, np.full(len(bvals), 2000.0), bvecs * np.sqrt(bvals / 2000)[:, None]
    )


def test_lengths_that_encode_b_are_not_cured_by_normalising_them(tmp_path, two_shells):
    """Refused with both flags, and the mean diffusivity that each gives."""
    subject, out, given = two_shells
    other = encoded(tmp_path / "in", subject, given)
    with pytest.raises(BadInput) as refusal:
        go(other, tmp_path / "out")
    line = str(refusal.value)
    assert "dwi.bvec: the lengths of bvecs seem to encode b-values" in line and "1000 to 2000 s/mm^2" in line
    scaled, plain = map(float, re.findall(r"MD of the brain (\S+) mm", line))
    assert line.index("--b-scaling") < line.index("--normalise-bvecs")
    go(other, tmp_path / "scaled", b_scaling=True)
    # A product of squares of roots is not b to the last bit.
    np.testing.assert_allclose(read(tmp_path / "scaled", "md"), read(out, "md"), rtol=1e-4, atol=1e-9)
    record = go(other, tmp_path / "normalised", normalise_bvecs=True)
    assert "although b multiplied by the square of the length makes shells of 1000" in record["warnings"][0]
    assert scaled == pytest.approx(md(tmp_path / "scaled"), rel=0.15)
    assert plain == pytest.approx(md(tmp_path / "normalised"), rel=0.15)
    assert scaled > 1.25 * plain


@pytest.mark.needs_mrtrix
def test_scaling_is_that_of_mrtrix(tmp_path, two_shells):
    """Tables as mrinfo exports them with its scaling, from the same files."""
    subject, _, given = two_shells
    other = encoded(tmp_path / "in", subject, given)
    exported = tmp_path / "bvecs", tmp_path / "bvals"
    command = ["mrinfo", other.dwi, "-fslgrad", other.bvecs, other.bvals, "-export_grad_fsl", *exported]
    subprocess.run([*command, "-bvalue_scaling", "true", "-quiet"], check=True)
    go(other, tmp_path / "out", b_scaling=True)
    ours = [np.loadtxt(tmp_path / "out" / f"dwi_desc-denoised_dwi.{one}") for one in ("bvec", "bval")]
    np.testing.assert_allclose(ours[1], np.loadtxt(exported[1]), atol=0.1)
    np.testing.assert_allclose(ours[0], np.loadtxt(exported[0]), atol=1e-5)


# --- Volumes without a direction --------------------------------------------------------------------------


def with_trace(voxels, bvals, bvecs):
    """The series with a trace image of b = 1000 at its end, as scanners append it."""
    weighted = np.asarray(voxels)[..., bvals > 50].astype(float)
    trace = np.exp(np.log(np.maximum(weighted, 1)).mean(axis=-1, keepdims=True)).astype(np.int16)
    return (
        np.append(voxels, trace, axis=-1),
        np.append(bvals, 1000.0),
        np.append(bvecs, np.zeros((1, 3)), axis=0),
    )


def test_a_trace_volume_is_left_out_of_everything(tmp_path, plain):
    subject, out, _ = plain
    voxels, bvals, bvecs = with_trace(subject.image.dataobj, *table())
    other = in_folder(tmp_path / "in", voxels, bvals, bvecs)
    record = go(other, tmp_path / "out")
    (warning,) = record["warnings"]
    assert "dwi.bvec: volumes 20 have a b-value and no direction, and are darker than b0s" in warning
    same_maps(out, tmp_path / "out")
    assert read(tmp_path / "out", "denoised").shape[3] == 20
    assert np.loadtxt(tmp_path / "out" / "dwi_desc-denoised_dwi.bvec").shape == (3, 20)


@pytest.mark.parametrize("others", [True, False], ids=["beside other b0s", "as the only b0s"])
def test_b0s_under_a_nominal_b_value_are_kept_as_such(tmp_path, plain, others):
    """As GE and old MRtrix write them."""
    subject, out, _ = plain
    bvals, bvecs = table()
    b0s = np.flatnonzero(bvals == 0)
    nominal = bvals.copy()
    nominal[b0s[1:] if others else b0s] = 1000
    record = go(in_folder(tmp_path / "in", subject.image.dataobj, nominal, bvecs), tmp_path / "out")
    (warning,) = record["warnings"]
    assert "bright as b0s: they are taken for b0s" in warning
    same_maps(out, tmp_path / "out")
    assert np.loadtxt(tmp_path / "out" / "dwi_desc-denoised_dwi.bval").tolist() == bvals.tolist()


def test_a_table_with_traces_alone_and_no_b0_is_refused(tmp_path, plain):
    subject, _, _ = plain
    voxels, bvals, bvecs = with_trace(subject.image.dataobj, *table())
    weighted = bvals > 0
    other = in_folder(tmp_path / "in", voxels[..., weighted], bvals[weighted], bvecs[weighted])
    with pytest.raises(BadInput, match="too dark for b0s, and the table has none; a b0 is needed"):
        go(other, tmp_path / "out")


def test_the_image_may_be_too_empty_to_answer(tmp_path):
    voxels, bvals, bvecs = with_trace(np.zeros((*SHAPE, 20), np.int16), *table())
    other = in_folder(tmp_path / "in", voxels, bvals, bvecs)
    with pytest.raises(BadInput, match="the image shows no brain to tell them apart; say what it means"):
        go(other, tmp_path / "out")


# --- Volumes by name --------------------------------------------------------------------------------------


def test_dropped_volumes_and_shells_are_as_if_they_had_never_been_there(tmp_path, two_shells):
    subject, _, (bvals, bvecs) = two_shells
    kept = np.setdiff1d(np.flatnonzero(bvals < 1500), [2, 3])
    cut = in_folder(tmp_path / "in", np.asarray(subject.image.dataobj)[..., kept], bvals[kept], bvecs[kept])
    go(cut, tmp_path / "cut")
    go(subject, tmp_path / "dropped", drop_volumes="2-3", shells="0,1000")
    same_maps(tmp_path / "cut", tmp_path / "dropped")
    tables = [np.loadtxt(tmp_path / one / "dwi_desc-denoised_dwi.bvec") for one in ("cut", "dropped")]
    np.testing.assert_allclose(*tables, atol=1e-8)


def test_a_volume_that_is_dropped_need_not_make_sense(tmp_path, plain):
    subject, _, _ = plain
    bvals, bvecs = table()
    bvals[5], bvecs[6] = np.nan, np.nan
    other = in_folder(tmp_path / "in", subject.image.dataobj, bvals, bvecs)
    go(other, tmp_path / "out", drop_volumes="5,6")
    assert read(tmp_path / "out", "denoised").shape[3] == 18


def test_tables_beside_an_image_follow_the_volumes_where_no_step_reads_them(tmp_path, plain):
    subject, out, _ = plain
    go(dataclasses.replace(subject, bvals=None, bvecs=None), tmp_path / "all", "mask", "denoise")
    mask = out / "dwi_desc-brain_mask.nii.gz"
    chain = compose.make_chain(
        NEURO,
        [
            compose.Link(
                plugins.step(NEURO, "denoise"),
                compose.filled(plugins.step(NEURO, "denoise").parameters, {"sigma": "15"}),
                "denoise",
            )
        ],
        {"drop_volumes": "19"},
    )
    inspected = compose.inspect_chain(chain, {"dwi": subject.dwi, "mask": mask})
    run(
        compose.make_recipe(chain, inspected, compose.RunName("t", "run.json")),
        MPI.COMM_SELF,
        Options(tmp_path / "one", 4 << 30),
    )
    assert len(np.loadtxt(tmp_path / "one" / "dwi_desc-denoised_dwi.bval")) == 19
    assert np.loadtxt(tmp_path / "one" / "dwi_desc-denoised_dwi.bvec").shape == (3, 19)


@pytest.mark.tool
@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.site(2))])
def test_what_the_image_answers_does_not_depend_on_the_ranks(tmp_path, plain, ranks):
    subject, _, _ = plain
    voxels, bvals, bvecs = with_trace(subject.image.dataobj, *table())
    other = in_folder(tmp_path / "in", voxels, bvals / 1000, bvecs)
    options = ("--verbose", "--median-radius", 1, "--passes", 1, "--sigma", 15, "--drop-volumes", "3,7-8")
    for out, many in (("one", None), ("many", ranks)):
        done = warm.run_tool(
            "mpiimg-neuro", other.dwi, "--out", tmp_path / out, *options, ranks=many, timeout=PATIENCE
        )
        assert "as ms/um^2" in done.stderr and "volumes 20 have a b-value and no direction" in done.stderr
        assert (
            "2 volumes of b = 0, 15 of b = 1000 s/mm^2, and 1 of another b-value without a direction"
            in done.stderr
        )
    assert digests(tmp_path / "one") == digests(tmp_path / "many")
