"""At their limits parameters make slow or useless results, but no crash, no traceback and no hang."""

from __future__ import annotations

import numpy as np
import pytest
from support import warm
from support.astro_data import observe
from support.subjects import PATIENCE, Subject, write_subject

from mpiimg.simulate.astro import SimulatedSurvey
from mpiimg.tools.registry import tool

pytestmark = pytest.mark.tool

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])

#: What takes minutes at a limit, and why; the plan says so.
SLOW = {("mpiimg-astro", "pixel_scale"), ("mpiimg-astro", "patch"), ("mpiimg-neuro", "block_radius")}


def head(folder, shape, volumes=9) -> Subject:
    """A bright ball in noise, however small."""
    rng = np.random.default_rng(1)
    places = np.indices(shape) - (np.reshape(shape, (3, 1, 1, 1)) - 1) / 2
    ball = 1000.0 * (np.sqrt((places**2).sum(axis=0)) < max(1, 0.45 * min(shape)))
    bvals = np.array([0.0, *[1000.0] * (volumes - 1)])
    bvecs = rng.normal(size=(volumes, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
    bvecs[0] = 0
    noise = rng.normal(0, 20, (2, *shape, volumes))
    signal = ball[..., None] * np.exp(-7e-4 * bvals)
    return write_subject(folder, np.hypot(signal + noise[0], noise[1]).astype(np.int16), AFFINE, bvals, bvecs)


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    return head(tmp_path_factory.mktemp("head"), (10, 9, 6))


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return observe(
        tmp_path_factory.mktemp("sky") / "night", SimulatedSurvey(2, 1, (120, 150), 3, density=100.0)
    )


def assert_sane(name, *words):
    """Assert that a tool ends as it should: done, done without some, or refused in one line."""
    done = warm.run_tool(name, *words, "--quiet", check=False, timeout=PATIENCE)
    assert done.returncode in (0, 2, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode != 2 or len(done.stderr.splitlines()) == 1, done.stderr


def limits(name: str, *names: str) -> list:
    """Return (option, value) of parameters of a tool at both limits; of all without names."""
    return [
        f"{one.flag}={limit if one.type is not int else int(limit)!r}"
        for one in tool(name).parameters
        if one.limits is not None and (one.name in names if names else (name, one.name) not in SLOW)
        for limit in one.limits
    ]


#: Where the first version crashed, or nearly.
CALIBRATION = limits("mpiimg-calibrate", "mesh", "cr_iterations", "sigfrac")


@pytest.mark.parametrize("option", CALIBRATION)
def test_calibration_at_its_limits(night, tmp_path, option):
    assert_sane("mpiimg-calibrate", *night.exposures, "--out", tmp_path / "out", option)


@pytest.mark.long
@pytest.mark.parametrize("option", limits("mpiimg-astro"))
def test_a_survey_at_a_limit(night, tmp_path, option):
    tract = ("--patch", 120, "--border", 20)
    assert_sane("mpiimg-astro", *night.exposures, *tract, "--out", tmp_path / "out", option)


@pytest.mark.parametrize("size", [(16, 0), (16, 10_000)])
def test_patches_may_be_smaller_than_their_border(night, tmp_path, size):
    tract = ("--patch", size[0], "--border", size[1], "--pixel-scale", 1)
    assert_sane("mpiimg-astro", *night.exposures, *tract, "--out", tmp_path / "out")


@pytest.mark.long
@pytest.mark.parametrize("option", limits("mpiimg-neuro"))
def test_a_subject_at_a_limit(subject, tmp_path, option):
    assert_sane("mpiimg-neuro", *subject.arguments, "--out", tmp_path / "out", option)


@pytest.mark.long
@pytest.mark.parametrize("method", ["ols", "wls", "nlls", "restore"])
@pytest.mark.parametrize("option", limits("mpiimg-neuro", "min_signal", "restore_sigma"))
def test_a_fit_at_a_limit(subject, tmp_path, method, option):
    words = ("--median-radius", 1, "--method", method, option)
    assert_sane("mpiimg-neuro", *subject.arguments, "--out", tmp_path / "out", *words)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (2, 1, 1), pytest.param((1, 9, 1), marks=pytest.mark.long), (1, 1, 9), (3, 3, 1)],
    ids=str,
)
def test_an_image_may_be_smaller_than_any_filter(tmp_path, shape):
    small = head(tmp_path / "in", shape)
    for options in (["--median-radius", 19], ["--passes", 0, "--sigma", "estimate"]):
        assert_sane("mpiimg-neuro", *small.arguments, "--out", tmp_path / "out", "--force", *options)


@pytest.mark.long
@pytest.mark.parametrize(
    "option", ["--volumes=7", "--volumes=2048", "--sigma=0", "--sigma=1e6", f"--seed={2**32 - 1}"]
)
def test_a_simulation_at_a_limit(tmp_path, option):
    assert_sane(
        "mpiimg-simulate", "neuro", "--shape", "2x2x2", "--volumes", 7, "--out", tmp_path / "out", option
    )


FUNCTION = "def doubled(block):\n    return 2.0 * block\n"


@pytest.mark.parametrize("option", ["--halo=100000", "--slices=1", "--slices=100000"])
def test_a_function_at_a_limit(subject, tmp_path, option):
    (tmp_path / "mine.py").write_text(FUNCTION)
    assert_sane(
        "mpiimg-run", "--udf", f"{tmp_path}/mine.py:doubled", subject.dwi, tmp_path / "out.nii.gz", option
    )
