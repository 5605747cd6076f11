"""Chains of the survey's steps: which orders make sense, what each begins with, and what a rerun takes up."""

from __future__ import annotations

import dataclasses
import itertools
import shutil

import numpy as np
import pytest
from astropy.io import fits
from support import warm
from support.astro_data import TRACT, astro, exposure_table, observe
from support.subjects import PATIENCE, record, stage

from mpiimg.astro.exposure_files import write_exposures
from mpiimg.engine import compose, plugins
from mpiimg.engine.stage import expected_stages
from mpiimg.engine.step import Output, Step
from mpiimg.errors import BadInput
from mpiimg.simulate.astro import SimulatedSurvey

DOMAIN = plugins.domain("astro")

ORDER = ("calibrate", "warp", "coadd", "detect")

#: A small survey, whose exposures tell their zero points.
SURVEY = SimulatedSurvey(4, 1, (300, 340), seed=2, density=40.0, magnitudes=(16.0, 21.0))


def unchanged(state, parameters, data):
    """Stages of a step that does nothing."""
    return state
    yield


#: What a user's function over exposures is: a step that takes pixels and needs no zero points.
LOOK = Step(
    "look",
    "Look at exposures.",
    takes=("pixels",),
    gives=("pixels",),
    stages=unchanged,
    outputs=(Output("pixels", lambda state, p, folder: write_exposures(state, folder), when="end"),),
)


def step(name):
    return LOOK if name == "look" else plugins.step(DOMAIN, name)


def chain(*names, **settings):
    links = [compose.Link(step(name), step(name).parameters(), name) for name in names]
    return compose.make_chain(DOMAIN, links, settings, "this pipeline")


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return observe(tmp_path_factory.mktemp("chains") / "night", SURVEY)


@pytest.fixture(scope="module")
def made(night, tmp_path_factory):
    """What one run leaves, warps included."""
    return astro(night.exposures, tmp_path_factory.mktemp("chains") / "made", *TRACT, "--warps")


# --- Order --------------------------------------------------------------------------------------------------

STEPS = (*ORDER, "look")

#: What may follow what directly.
FOLLOWS = {*itertools.pairwise(ORDER), ("calibrate", "look"), ("look", "warp"), ("warp", "look")}


@pytest.mark.parametrize(
    "first, second", [pair for pair in itertools.permutations(STEPS, 2) if pair not in FOLLOWS]
)
def test_a_step_after_one_that_does_not_lead_to_it(first, second):
    with pytest.raises(BadInput, match=f"^this pipeline: {second} cannot stand after {first}: it takes "):
        chain(first, second)


@pytest.mark.parametrize("pair", sorted(FOLLOWS))
def test_a_step_after_one_that_leads_to_it(pair):
    assert [link.step.name for link in chain(*pair).links] == list(pair)


@pytest.mark.parametrize(
    "names, said",
    [
        (("calibrate", "coadd"), "it takes warps, which warp gives"),
        (("calibrate", "warp", "detect"), "detect cannot stand after warp: it takes patches, which coadd"),
        (("warp", "calibrate"), "it takes frames, which no step before it gives"),
        (("coadd", "detect", "warp"), "it takes pixels and zero_points, which calibrate gives"),
    ],
)
def test_what_is_missing_is_named(names, said):
    with pytest.raises(BadInput, match=said):
        chain(*names)


def test_a_step_may_stand_twice_under_another_name(night):
    twice = [compose.Link(step(name), step(name).parameters(), name) for name in ORDER]
    twice.append(
        compose.Link(step("detect"), dataclasses.replace(step("detect").parameters(), **OTHER), "faint")
    )
    whole = compose.make_chain(DOMAIN, twice, {"patch": 400, "border": 50})
    inspected = compose.inspect_chain(whole, {"exposures": night.exposures, "tract": None, "out": None})
    recipe = compose.make_recipe(whole, inspected, compose.RunName("mpiimg-run", "run.json"))
    names = [one.name for one in recipe.expected]
    assert {"detect", "faint", "detect.count-sources", "faint.count-sources"} <= set(names)
    (patches,) = (one for one in recipe.expected if one.name.endswith(".write-patches"))
    assert "faint.patch-stats" in {need.array.name for need in patches.reads}


OTHER = {"threshold": 3.0, "catalogue": "faint.fits", "regions": "faint.reg", "mosaic": "faint-mosaic.fits"}


# --- What a chain begins with -------------------------------------------------------------------------------

BEGINNINGS = {
    ("calibrate",): ("exposures that calibrate reads itself", ["exposures"]),
    ("calibrate", "warp"): ("exposures that calibrate reads itself", ["exposures", "tract"]),
    ("look",): ("calibrated exposures", ["exposures"]),
    ("look", "warp"): ("calibrated exposures", ["exposures", "tract"]),
    ("warp", "coadd"): ("calibrated exposures", ["exposures", "tract"]),
    ("coadd",): ("a folder of warps", ["warps"]),
    ("detect",): ("a folder of patches", ["patches"]),
}


@pytest.mark.parametrize("names", BEGINNINGS, ids="-".join)
def test_what_a_chain_begins_with_and_what_it_is_asked(names):
    of_chain = chain(*names)
    source, arguments = BEGINNINGS[names]
    assert of_chain.source.name == source
    asked = compose.arguments_of(of_chain.source, of_chain.taken, of_chain.welcome)
    assert [argument.name for argument, _ in asked] == arguments
    assert [argument.name for argument, required in asked if required] == arguments[:1]
    options = {one.name for one in compose.parameters_for(of_chain.source.parameters, of_chain.fields)}
    assert ({"center", "pixel_scale", "patch", "border"} <= options) == ("tract" in arguments)
    assert ("strict" in options) == (arguments[0] == "exposures")


def first_state(names, path, **settings):
    of_chain = chain(*names, **settings)
    argument = of_chain.source.arguments[0].name
    state = of_chain.source.inspect(
        {argument: path, "tract": None, "out": None}, of_chain.parameters, of_chain.fields
    )
    _, opened = expected_stages(of_chain.source.stages(state, of_chain.parameters, of_chain.fields))
    return state, opened


def test_exposures_that_are_calibrated(night):
    state, _ = first_state(("calibrate",), night.exposures)
    assert state.tract is None and state.frames == state.exposures and len(state.exposures) == 4
    assert state.layout.patches == () and state.pixels is None
    state, _ = first_state(("calibrate", "warp"), night.exposures, patch=400, border=50)
    assert state.tract.patch == 400 and len(state.layout.footprints) >= 4 and state.nbytes > 0


def test_exposures_as_they_are(night):
    state, opened = first_state(("look",), night.exposures)
    assert state.tract is None and state.frames == ()
    assert opened.pixels.image.shapes == tuple(ref.shape for ref in state.exposures)
    assert opened.zero_points == tuple(ref.magzero for ref in state.exposures)
    assert opened.usable == (True,) * 4


def test_zero_points_are_asked_of_those_that_are_warped_alone(night, tmp_path):
    paths = [shutil.copy(path, tmp_path) for path in night.exposures]
    fits.delval(paths[2], "MAGZERO", extname="IMAGE")
    _, opened = first_state(("look",), paths)
    assert np.isnan(opened.zero_points[2]) and opened.usable == (True,) * 4
    assert opened.left_out == {}
    state, _ = first_state(("look", "warp"), paths)
    assert len(state.exposures) == 3
    assert "has no zero point (MAGZERO)" in state.left_out["sim-0002-000"]
    with pytest.raises(BadInput, match="has no zero point"):
        first_state(("warp",), paths, strict=True)
    with pytest.raises(BadInput, match="has no zero point"):
        first_state(("warp",), paths[2:3])


def test_a_folder_of_warps_and_one_of_patches(made):
    state, opened = first_state(("coadd",), made / "warps")
    assert len(state.products) == len(state.layout.footprints) == len(opened.warps.image.shapes)
    assert len(state.exposures) == 4 and not state.from_patches and not state.own_tract
    state, opened = first_state(("detect",), made)
    assert len(state.products) == len(state.layout.patches) == len(opened.patches.nimage.shapes)
    assert state.exposures == () and state.from_patches


# --- A rerun ------------------------------------------------------------------------------------------------


@pytest.mark.tool
def test_an_exposure_that_was_left_out_and_is_back_has_only_its_warps_made_again(night, made, tmp_path):
    exposures = [tmp_path / path.name for path in night.exposures]
    for path, copy in zip(night.exposures, exposures, strict=True):
        shutil.copy(path, copy)
    exposures[1].write_bytes(flipped(night.exposures[1], tmp_path))
    words = (*exposures, "--out", tmp_path / "out", *TRACT, "--warps", "--keep-work")
    ended = warm.run_tool("mpiimg-astro", *words, check=False, timeout=PATIENCE)
    assert ended.returncode == 3, ended.stderr
    assert list(exposure_table(tmp_path / "out")["status"] == "used") == [True, False, True, True]

    shutil.copy(night.exposures[1], exposures[1])
    warm.run_tool("mpiimg-astro", *words, ranks=3, timeout=PATIENCE)
    ran = record(tmp_path / "out")
    assert stage(ran, "calibrate")["resumed_chunks"] == 3
    assert stage(ran, "warp")["resumed_chunks"] == 3
    assert stage(ran, "coadd")["resumed_chunks"] == 0
    assert files(tmp_path / "out") == files(made)


def files(out):
    """Return the bytes of all results of a run, those in folders of their own included."""
    places = [*(path for path in out.iterdir() if path.is_file()), *(out / "warps").iterdir()]
    return {path.relative_to(out): path.read_bytes() for path in places if path.name != "run.json"}


def flipped(path, folder):
    """Return the bytes of an exposure with sums in its header, and one bit changed."""
    with fits.open(path) as hdus:
        place = hdus["IMAGE"].fileinfo()["datLoc"]
        hdus.writeto(folder / "sums", checksum=True)
    data = bytearray((folder / "sums").read_bytes())
    data[place + 9001] ^= 64
    return bytes(data)
