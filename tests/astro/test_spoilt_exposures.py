"""Exposures that are spoilt in many ways, among sound ones: named and left out, and nothing else moves."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from astropy.io import fits
from support import warm
from support.astro_data import TRACT, observe, once
from support.spoilt_exposures import CASES
from support.subjects import PATIENCE

from mpiimg.astro.fits.maskplanes import bits
from mpiimg.simulate.astro import SimulatedSurvey

pytestmark = pytest.mark.tool

SURVEY = SimulatedSurvey(4, 1, (300, 340), seed=2, density=40.0, magnitudes=(16.0, 21.0))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound exposures, and what is made of them alone."""

    def make(folder):
        night = observe(folder / "in", SURVEY)
        warm.run_tool("mpiimg-astro", *night.exposures, "--out", folder / "out", *TRACT, timeout=PATIENCE)
        return night.exposures, folder / "out"

    return once(tmp_path_factory, "sound", make)


def spoilt(exposures, folder, names):
    """Write a copy of the first exposure for each of these cases, each of a visit of its own."""
    folder.mkdir()
    paths = []
    for name in names:
        path = folder / f"{name}.fits"
        shutil.copyfile(exposures[0], path)
        with fits.open(path, mode="update") as hdus:
            hdus[1].header["EXPNUM"] = 1000 + len(paths)
        CASES[name][0](path)
        paths.append(path)
    return paths


def run(exposures, out, tract):
    words = ("mpiimg-astro", *exposures, "--out", out, "--tract", tract)
    return warm.run_tool(*words, check=False, timeout=PATIENCE)


def products(out):
    """Return the bytes of patches, catalogue and mosaic."""
    names = {path.name for path in out.iterdir() if path.suffix in (".fits", ".reg", ".tsv")}
    # It has a row for each, also those that are left out.
    names.remove("calibration.tsv")
    return {name: (out / name).read_bytes() for name in sorted(names)}


def test_spoilt_exposures_are_named_in_one_line_and_the_others_do_not_notice(sound, tmp_path):
    """One run with all of them: what it makes is what it makes without them, byte for byte."""
    exposures, alone = sound
    names = [name for name, (_, pattern) in CASES.items() if pattern is not None]
    paths = spoilt(exposures, tmp_path / "in", names)
    done = run([*paths, *exposures], tmp_path / "out", alone / "tract.toml")
    assert done.returncode == 3, done.stderr
    assert all(letter.isprintable() or letter == "\n" for letter in done.stderr)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    reasons = {fault["unit"]: fault["reason"] for fault in record["faults"]}
    assert reasons == record["left_out"]
    for name, path in zip(names, paths, strict=True):
        reason = reasons.get(str(path)) or reasons.get(path.stem)
        assert reason is not None, f"{name} was used"
        assert path.name in reason and reason.isprintable()
        assert re.search(CASES[name][1], reason), (name, reason)
        assert f"left out: {reason}\n" in done.stderr
    # All of it is said of the data: no error had to be caught by its traceback.
    assert [fault["unit"] for fault in record["faults"] if fault["traceback"]] == []
    assert products(tmp_path / "out") == products(alone)


def test_what_is_odd_and_can_be_used_is_used_and_leaves_no_number_that_is_none(sound, tmp_path):
    exposures, alone = sound
    names = [name for name, (_, pattern) in CASES.items() if pattern is None]
    paths = spoilt(exposures, tmp_path / "in", names)
    done = run([*paths, *exposures, "--calibrated", "--warps"], tmp_path / "out", alone / "tract.toml")
    assert done.returncode == 0, done.stderr
    # Their cards are written too, and read again.
    calibrated = [fits.getheader(path) for path in (tmp_path / "out" / "calibrated").iterdir()]
    assert len(calibrated) == len(paths) + len(exposures)
    assert all(letter.isprintable() or letter == "\n" for letter in done.stderr)
    assert "Warning" not in done.stderr
    patches = sorted((tmp_path / "out").glob("patch-*.fits"))
    assert patches
    for path in patches:
        with fits.open(path) as hdus:
            hdus.verify("exception")
            assert hdus[0].header["NCOMBINE"] > 4
            good = hdus["MASK"].data & bits("NO_DATA") == 0
            assert good.any()
            for plane in ("IMAGE", "VARIANCE"):
                assert np.isfinite(hdus[plane].data[good]).all()
            assert np.abs(hdus["IMAGE"].data[good]).max() < 1e9


@pytest.mark.parametrize("name", ["escape", "garbage_tiles"])
def test_strict_makes_one_of_them_fatal(sound, tmp_path, name):
    exposures, alone = sound
    (path,) = spoilt(exposures, tmp_path / "in", [name])
    words = (*exposures, path, "--out", tmp_path / "out", "--tract", alone / "tract.toml", "--strict")
    done = warm.run_tool("mpiimg-astro", *words, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"{name}.fits" in done.stderr
