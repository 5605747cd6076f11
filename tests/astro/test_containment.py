"""A fault in the work on one exposure or patch, at every stage: it is left out, and nothing else moves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from support import warm
from support.astro_data import TRACT, catalogue, exposure_table, observe, once
from support.subjects import PATIENCE

from mpiimg.simulate.astro import SimulatedSurvey

pytestmark = pytest.mark.tool

SURVEY = SimulatedSurvey(4, 1, (300, 340), seed=2, density=40.0, magnitudes=(16.0, 21.0))

#: The noise of the filtered image is that of all patches, so that losing one moves the threshold of the
#: others a little. In standard deviations of pixels it does not.
ALONE = (*TRACT, "--threshold-noise", "pixel", "--threshold", 2)

#: Raises where `when` says so of the arguments of a function.
FAULT = """
import importlib

module = importlib.import_module("{module}")
original = getattr(module, "{function}")

def changed(*arguments, **keywords):
    {before}
    if {when}:
        raise {error}
    return original(*arguments, **keywords)

setattr(module, "{function}", changed)
"""

#: Functions that the work on an exposure, and on a patch, goes through, and what tells which one it is of.
OF_EXPOSURES = {
    "calibrate": ("mpiimg.astro.steps.calibrate", "_calibrated", "arguments[0].name"),
    "calibrate.write-exposures": ("mpiimg.astro.exposure_files", "_write", "arguments[0].stem"),
    "warp": ("mpiimg.astro.steps.warp", "_Exposure", "arguments[3].name"),
}
OF_PATCHES = {
    "coadd": ("mpiimg.astro.steps.coadd", "stacked", "arguments[1].patch"),
    "detect": ("mpiimg.astro.patch_sources", "_detected", "arguments[1]"),
    "detect.catalogue-rows": ("mpiimg.astro.photometry.seams", "locate", "arguments[0]['id'][0] >> 32"),
    "coadd.average": ("mpiimg.astro.mosaic", "block_means", "sum(start for start, _ in arguments[1])"),
    "detect.write-patches": ("mpiimg.astro.patch_files", "_write", "arguments[2]"),
}


def broken(folder, place, which, error="ValueError('odd\\n\\x1b[31m')", before="pass"):
    """Write what makes a function raise for some exposures or patches; return the folder."""
    folder.mkdir()
    module, function, tells = place
    when = f"{tells} in {which!r}"
    code = FAULT.format(module=module, function=function, when=when, error=error, before=before)
    (folder / "sabotaged.py").write_text(code)
    return folder


def run(exposures, out, *options, sabotaged=None, ranks=None):
    words = ("mpiimg-astro", *exposures, "--out", out, *options)
    return warm.run_tool(*words, check=False, timeout=PATIENCE, sabotaged=sabotaged, ranks=ranks)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound exposures, and what is made of them."""

    def make(folder):
        exposures = observe(folder / "in", SURVEY).exposures
        assert run(exposures, folder / "out", *ALONE).returncode == 0
        return exposures, folder / "out"

    return once(tmp_path_factory, "contained", make)


def record(out):
    return json.loads((out / "run.json").read_text())


def products(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".fits", ".reg")}


@pytest.mark.parametrize("stage", OF_EXPOSURES)
def test_an_exposure_that_fails_at_a_stage_is_left_out(sound, tmp_path, stage):
    exposures, alone = sound
    tract = ("--tract", alone / "tract.toml", "--calibrated")
    sabotaged = broken(tmp_path / "broken", OF_EXPOSURES[stage], ["sim-0001-000"])
    done = run(exposures, tmp_path / "out", *tract, sabotaged=sabotaged)
    assert done.returncode == 3, done.stderr
    entry = record(tmp_path / "out")
    reason = rf"sim-0001-000: ValueError: odd \x1b[31m (stage {stage})"
    assert entry["left_out"] == {"sim-0001-000": reason}
    (fault,) = entry["faults"]
    assert fault["place"].startswith("ValueError at sabotaged:")
    assert "Traceback" in fault["traceback"]
    assert f"mpiimg: warning: left out: {reason}\n" in done.stderr
    assert "Traceback" not in done.stderr
    table = exposure_table(tmp_path / "out")
    assert table["status"].tolist() == ["used", reason, "used", "used"]
    others = [path for path in exposures if "0001" not in path.name]
    assert run(others, tmp_path / "others", *tract).returncode == 0
    assert products(tmp_path / "out") == products(tmp_path / "others")
    written = {path.stem for path in (tmp_path / "out" / "calibrated").iterdir()}
    # What fails later was calibrated well.
    assert ("sim-0001-000" in written) is (stage == "warp")


def assert_mosaic_lacks(patch, whole, made):
    """Assert that a mosaic is the whole one but for a patch, of which it has only what others have too."""
    with fits.open(patch) as hdus:
        rows, columns = hdus["IMAGE"].data.shape
        corners = WCS(hdus["IMAGE"].header).all_pix2world([0, columns - 1], [0, rows - 1], 0)
    with fits.open(whole) as one, fits.open(made) as other:
        expected, found = one["NIMAGE"].data, other["NIMAGE"].data
        x, y = (np.rint(place).astype(int) for place in WCS(one["NIMAGE"].header).all_world2pix(*corners, 0))
        shift = np.subtract(WCS(other["NIMAGE"].header).wcs.crpix, WCS(one["NIMAGE"].header).wcs.crpix)
    assert (shift == 0).all() and found.shape == expected.shape
    inside = np.zeros(expected.shape, bool)
    inside[y[0] : y[1] + 1, x[0] : x[1] + 1] = True
    np.testing.assert_array_equal(found[~inside], expected[~inside])
    assert np.isfinite(found[inside]).sum() < np.isfinite(expected[inside]).sum()


@pytest.mark.parametrize("stage", OF_PATCHES)
def test_a_patch_that_fails_at_a_stage_is_in_no_result(sound, tmp_path, stage):
    """Its old file goes, and the catalogue is of the others, which are as they were."""
    exposures, alone = sound
    out = tmp_path / "out"
    assert run(exposures, out, *ALONE).returncode == 0
    assert len(list(out.glob("patch-*.fits"))) > 1
    before = "arguments[0].write_bytes(b'SIMPLE')" if stage == "detect.write-patches" else "pass"
    sabotaged = broken(tmp_path / "broken", OF_PATCHES[stage], [0], before=before)
    done = run(exposures, out, *ALONE, "--force", sabotaged=sabotaged)
    assert done.returncode == 3, done.stderr
    entry = record(out)
    assert list(entry["left_out"]) == ["patch-0-0"]
    assert [fault["stage"] for fault in entry["faults"]] == [f"stage {stage}"]
    expected, made = products(alone), products(out)
    del expected["patch-0-0.fits"]
    for name in ("catalogue.fits", "catalogue.reg", "mosaic.fits"):
        del expected[name], made[name]
    assert made == expected
    assert_mosaic_lacks(alone / "patch-0-0.fits", alone / "mosaic.fits", out / "mosaic.fits")
    rows, whole = catalogue(out), catalogue(alone)
    assert len(rows) and set(rows["patch"]) == set(whole["patch"]) - {"patch-0-0"}
    kept = whole[whole["patch"] != "patch-0-0"]
    assert rows["id"].tolist() == kept["id"].tolist()
    # What was second at a seam to one of the lost patch is now the only one.
    assert (rows["is_primary"] >= kept["is_primary"]).all()


def test_the_record_is_the_same_on_any_ranks_and_resumed(sound, tmp_path):
    exposures, _ = sound
    sabotaged = broken(tmp_path / "broken", OF_EXPOSURES["calibrate"], ["sim-0001-000", "sim-0002-000"])
    said = []
    for ranks, out in ((None, "one"), (3, "three"), (None, "three")):
        done = run(exposures, tmp_path / out, *TRACT, sabotaged=sabotaged, ranks=ranks)
        assert done.returncode == 3, done.stderr
        entry = record(tmp_path / out)
        said.append((entry["left_out"], entry["faults"], entry["warnings"], products(tmp_path / out)))
    assert said[0] == said[1] == said[2]
    resumed = next(stage for stage in entry["stages"] if stage["stage"] == "calibrate")
    assert resumed["resumed_chunks"] == 2
    # And once nothing fails, the same command takes them up.
    assert run(exposures, tmp_path / "three", *TRACT).returncode == 0
    assert run(exposures, tmp_path / "sound", *TRACT).returncode == 0
    assert products(tmp_path / "three") == products(tmp_path / "sound")


@pytest.mark.parametrize("ranks", [None, 3])
def test_the_same_fault_in_too_many_exposures_ends_the_run_with_its_traceback(sound, tmp_path, ranks):
    exposures, _ = sound
    every = [path.stem for path in exposures]
    sabotaged = broken(tmp_path / "broken", OF_EXPOSURES["warp"], every)
    done = run(exposures, tmp_path / "out", *TRACT, sabotaged=sabotaged, ranks=ranks)
    assert done.returncode == 1, done.stderr
    assert "ValueError at sabotaged:" in done.stderr and "in 4 of 4 exposures" in done.stderr
    assert "the first of them, sim-0000-000, stage warp" in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_memory_and_a_full_disk_are_no_fault_of_an_exposure(sound, tmp_path):
    exposures, _ = sound
    for number, error in enumerate(("MemoryError()", "OSError(28, 'No space left on device')")):
        folder = tmp_path / f"broken-{number}"
        sabotaged = broken(folder, OF_EXPOSURES["calibrate"], ["sim-0001-000"], error)
        done = run(exposures, tmp_path / f"out-{number}", *TRACT, sabotaged=sabotaged)
        assert done.returncode == 1, done.stderr


def test_strict_makes_a_fault_fatal(sound, tmp_path):
    exposures, _ = sound
    sabotaged = broken(tmp_path / "broken", OF_EXPOSURES["calibrate"], ["sim-0001-000"])
    done = run(exposures, tmp_path / "out", *TRACT, "--strict", sabotaged=sabotaged)
    assert done.returncode == 1
    assert "sim-0001-000, stage calibrate" in done.stderr and "Traceback" in done.stderr
