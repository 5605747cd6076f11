"""The check of gradient tables: wrong ones are found, right ones pass, and what cannot be decided is said."""

from __future__ import annotations

import itertools
import json

import nibabel
import numpy as np
import pytest
from mpi4py import MPI
from scipy.spatial import cKDTree
from support.subjects import write_subject

from mpiimg.engine import compose, plugins
from mpiimg.engine.recipe import Options
from mpiimg.engine.run import run
from mpiimg.neuro.continuity import candidates, judge
from mpiimg.neuro.kernels.continuity import STEPS, continuity_scores
from mpiimg.simulate.gradients import gradients

NEURO = plugins.domain("neuro")
SHAPE = (32, 32, 32)
AFFINE = np.diag([-2.0, 2, 2, 1])


def wrong_matrices():
    """The 23 ways to flip and swap axes that change anything."""
    for order in itertools.permutations(range(3)):
        for flipped in (None, 0, 1, 2):
            matrix = np.eye(3)[list(order)]
            if flipped is not None:
                matrix[flipped] *= -1
            if not (order == (0, 1, 2) and flipped is None):
                yield matrix


def fibres(seed, affine=AFFINE):
    """A series of winding bundles in grey matter, and the table that it was made with."""
    bvals, bvecs = gradients(14, seed, (1000.0,))
    rng = np.random.default_rng(seed)
    centre, t = np.array(SHAPE) / 2, np.linspace(0, 2 * np.pi, 400)[:, None]
    points, tangents = [], []
    for _ in range(7):
        turn, phase = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.uniform(0, 6)
        winding = np.hstack([np.cos(t), np.sin(t), 0.3 * np.sin(2 * t + phase)]) @ turn.T
        points.append(centre + rng.uniform(9, 13) * winding)
        tangents.append(np.gradient(winding, axis=0))
    tangents = np.vstack(tangents)
    voxels = np.stack(np.indices(SHAPE), axis=-1).reshape(-1, 3)
    distance, nearest = cKDTree(np.vstack(points)).query(voxels)
    v1 = tangents[nearest] / np.linalg.norm(tangents[nearest], axis=1)[:, None]
    # Voxel axes to those of the table, whose x is negated where the determinant is positive.
    v1 = v1 * ([-1, 1, 1] if np.linalg.det(affine) > 0 else [1, 1, 1])
    in_bundle = distance < 1.5
    diffusivity = np.where(in_bundle[:, None], 3e-4 + 1.4e-3 * (v1 @ bvecs.T) ** 2, 8e-4)
    inside = np.linalg.norm(voxels - centre, axis=1) < 15.5
    signal = inside[:, None] * 1000 * np.exp(-bvals * diffusivity)
    signal = np.hypot(signal + rng.normal(0, 20, signal.shape), rng.normal(0, 20, signal.shape))
    return signal.reshape(*SHAPE, -1).astype(np.int16) + 1, inside.reshape(SHAPE), bvals, bvecs


def check(folder, voxels, inside, bvals, bvecs, affine=AFFINE, out="out"):
    """Run the check within a given mask; return its sidecar, and the warnings that are not of the mask."""
    subject = write_subject(folder / "in", voxels, affine, bvals, bvecs)
    nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), affine), folder / "mask.nii")
    step = plugins.step(NEURO, "gradcheck")
    chain = compose.make_chain(NEURO, [compose.Link(step, step.parameters(), "gradcheck")], {})
    inspected = compose.inspect_chain(chain, {"dwi": subject.dwi, "mask": folder / "mask.nii"})
    recipe = compose.make_recipe(chain, inspected, compose.RunName("t", "run.json"))
    run(recipe, MPI.COMM_SELF, Options(folder / out, 4 << 30, force=True))
    said = json.loads((folder / out / "dwi_desc-gradcheck_scores.json").read_text())
    warnings = json.loads((folder / out / "run.json").read_text())["warnings"]
    # Of the mask, which is no brain, others are given.
    return said, [warning for warning in warnings if "mask.nii: it" not in warning]


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 10))]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_wrong_table_is_found_and_what_is_wrong_with_it(tmp_path, seed):
    voxels, inside, bvals, bvecs = fibres(seed)
    said, warnings = check(tmp_path, voxels, inside, bvals, bvecs)
    assert said["Verdict"] == "the given table fits best" and said["Decided"] and warnings == []
    wrong = list(wrong_matrices())
    # Of the first seed a few run as users run them; all of them are judged.
    for matrix in wrong if seed else wrong[::8]:
        said, warnings = check(tmp_path, voxels, inside, bvals, bvecs @ matrix.T)
        assert said["Verdict"].startswith("another table fits better"), (matrix, said)
        (warning,) = warnings
        assert "times as well with another table of gradients" in warning
        (named,) = [one for one in candidates(AFFINE) if f"({one.name})" in warning and one.axes == "voxel"]
        # What is named undoes what was done, but for a sign of all axes.
        undone = np.array(candidates(AFFINE)[0].matrix).T @ np.array(named.matrix) @ matrix
        assert abs(np.trace(undone)) == 3


@pytest.mark.parametrize("x", [-1, 1])
def test_oblique_images_are_checked_along_their_own_axes(tmp_path, x):
    turn = np.linalg.qr(np.array([[0.8, 0.5, 0.2], [-0.5, 0.8, -0.4], [-0.3, 0.2, 0.9]]))[0]
    turn = turn * np.sign(np.diag(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0 * x, 2, 2])
    voxels, inside, bvals, bvecs = fibres(1, affine)
    assert len(candidates(affine)) == 71
    said, warnings = check(tmp_path, voxels, inside, bvals, bvecs, affine)
    assert said["Verdict"] == "the given table fits best" and warnings == []
    said, warnings = check(tmp_path, voxels, inside, bvals, bvecs * [1, -1, 1], affine)
    assert said["Axes"] == "voxel" and "(y negated)" in warnings[0]
    # A table that nobody turned from scanner axes to those of the voxels.
    along_scanner = bvecs @ np.array(candidates(affine)[0].matrix).T
    said, warnings = check(tmp_path, voxels, inside, bvals, along_scanner, affine)
    assert said["Axes"] == "unrotated" and "(as given, taken as written along scanner axes)" in warnings[0]


@pytest.mark.parametrize("frame", ["bvec", "scanner"])
def test_the_fit_warns_of_a_wrong_table_from_its_own_maps(tmp_path, frame):
    voxels, inside, bvals, bvecs = fibres(2)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), AFFINE), tmp_path / "mask.nii")
    step = plugins.step(NEURO, "fit")
    for name, signs in (("right", [1, 1, 1]), ("wrong", [1, -1, 1])):
        subject = write_subject(tmp_path / "in", voxels, AFFINE, bvals, bvecs * signs)
        link = compose.Link(step, step.parameters(frame=frame), "fit")
        inspected = compose.inspect_chain(
            chain := compose.make_chain(NEURO, [link], {}),
            {"dwi": subject.dwi, "mask": tmp_path / "mask.nii"},
        )
        recipe = compose.make_recipe(chain, inspected, compose.RunName("t", "run.json"))
        run(recipe, MPI.COMM_SELF, Options(tmp_path / name, 4 << 30))
        warnings = json.loads((tmp_path / name / "run.json").read_text())["warnings"]
        told = [warning for warning in warnings if "another table of gradients (y negated)" in warning]
        assert len(told) == (name == "wrong"), warnings


def test_noise_without_fibres_is_not_decidable(tmp_path):
    _, _, bvals, bvecs = fibres(0)
    rng = np.random.default_rng(0)
    signal = 1000 * np.exp(-bvals * 8e-4) * np.ones((*SHAPE, 1))
    voxels = np.maximum(signal + rng.normal(0, 150, signal.shape), 1).astype(np.int16)
    said, warnings = check(tmp_path, voxels, np.ones(SHAPE, bool), bvals, bvecs)
    assert said["Verdict"].startswith("not decidable: ") and not said["Decided"] and warnings == []


def test_slabs_and_small_images_are_not_decidable(tmp_path):
    voxels, inside, bvals, bvecs = fibres(0)
    few = inside & (np.indices(SHAPE)[0] < 9)
    said, warnings = check(tmp_path, voxels, few, bvals, bvecs * [1, 1, -1])
    assert "voxels have an FA above 0.25; 2000 are needed" in said["Verdict"] and warnings == []
    slab = slice(10, 17)
    wide = np.tile(voxels[:, :, slab], (2, 2, 1, 1))
    said, warnings = check(tmp_path, wide, np.tile(inside[:, :, slab], (2, 2, 1)), bvals, bvecs * [1, 1, -1])
    assert "only 7 slices along z have such voxels; 8 are needed" in said["Verdict"] and warnings == []


def test_halves_that_speak_for_different_tables_decide_nothing():
    tables = candidates(AFFINE)
    halves = np.ones((2, 24))
    halves[0, 3], halves[1, 5] = 2, 2.1
    verdict = judge(tables, halves, 5000, dict.fromkeys("xyz", 20))
    assert verdict.better is None and "two halves" in verdict.reason
    halves[0, 5] = 2.1
    assert judge(tables, halves, 5000, dict.fromkeys("xyz", 20)).better == 5
    halves[:, 0] = 2
    assert "fit equally well" in judge(tables, halves, 5000, dict.fromkeys("xyz", 20)).reason


def test_scores_are_sums_over_all_pairs_whatever_the_slabs():
    """Against the definition, written out; and cut anywhere that blocks end."""
    rng = np.random.default_rng(2)
    fa = rng.uniform(0, 1, (17, 6, 5)).astype(np.float32)
    v1 = rng.normal(size=(3, *fa.shape))
    v1 = (v1 / np.linalg.norm(v1, axis=0)).astype(np.float32)
    units = STEPS[:, ::-1] / np.linalg.norm(STEPS, axis=1)[:, None]
    turned = np.stack([units, units * [1, -1, 1]])
    expected = np.zeros((2, 2))
    for place in np.argwhere(fa > 0.25):
        for step, unit in zip(STEPS, turned.transpose(1, 0, 2), strict=True):
            beside = place + step
            if (beside < 0).any() or (beside >= fa.shape).any() or fa[tuple(beside)] <= 0.25:
                continue
            for table, along in enumerate(unit):
                both = [abs(v1[:, *one].astype(float) @ along) for one in (place, beside)]
                if min(both) > np.cos(np.radians(30)):
                    pair = float(fa[tuple(place)]) * float(fa[tuple(beside)])
                    expected[(place // 8).sum() % 2, table] += pair
    total = np.zeros((2, 2))
    for first in (0, 8, 16):
        last = min(first + 8, 17)
        part = slice(first, last + 1)
        scores, counted = continuity_scores(fa[part], v1[:, part], turned, first, last - first, 0.25)
        total += scores
        assert np.array_equal(counted, fa[first:last] > 0.25)
    np.testing.assert_allclose(total, expected, rtol=1e-12)
