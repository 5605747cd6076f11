"""The same command again, after bad exposures were repaired: it takes up these, and the others serve."""

from __future__ import annotations

import shutil

import pytest
from astropy.io import fits
from support import warm
from support.astro_data import TRACT, exposure_table, observe
from support.subjects import PATIENCE, digests, record, stage

from mpiimg.astro import survey as sky
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.sky.layout import Layout
from mpiimg.astro.steps import calibrate
from mpiimg.simulate.astro import SimulatedSurvey

pytestmark = pytest.mark.tool

SURVEY = SimulatedSurvey(4, 1, (300, 340), seed=2, density=40.0, magnitudes=(16.0, 21.0))


def flip(path):
    """Change a pixel of an exposure whose sums are in its header."""
    with fits.open(path) as hdus:
        place = hdus["IMAGE"].fileinfo()["datLoc"]
        hdus.writeto(path.with_suffix(".sums"), checksum=True)
    data = bytearray(path.with_suffix(".sums").read_bytes())
    path.with_suffix(".sums").unlink()
    data[place + 9001] ^= 64
    path.write_bytes(data)


@pytest.fixture
def spoiled(tmp_path):
    """Exposures of which one is cut short and one has a flipped bit; and the sound ones."""
    night = observe(tmp_path / "night", SURVEY)
    sound = [shutil.copy(path, tmp_path) for path in night.exposures]
    night.exposures[1].write_bytes(night.exposures[1].read_bytes()[:-50_000])
    flip(night.exposures[2])
    return night.exposures, sound


def run(exposures, out, *options, ranks=None):
    words = ("mpiimg-astro", *exposures, "--out", out, *TRACT, *options)
    return warm.run_tool(*words, ranks=ranks, check=False, timeout=PATIENCE)


def alone(exposures, out):
    """Return the files of a run on sound exposures that nothing came before."""
    assert run(exposures, out).returncode == 0
    return digests(out)


def test_a_rerun_takes_only_what_was_left_out(spoiled, tmp_path):
    exposures, sound = spoiled
    out = tmp_path / "out"
    done = run(exposures, out)
    assert done.returncode == 3, done.stderr
    assert "the same command takes up only the 2 left out" in done.stderr
    assert sum(exposure_table(out)["status"] == "used") == 2
    work = out / "work" / "survey.astro"
    assert {path.stem for path in work.glob("*.h5")} == {
        *(f"calibrate.exposure-{plane}" for plane in ("image", "variance", "mask")),
        *(f"calibrate.{table}" for table in ("stars", "stats")),
    }

    for repaired, path in zip(sound[1:3], exposures[1:3], strict=True):
        shutil.copy(repaired, path)
    done = run(exposures, out, ranks=3)
    assert done.returncode == 0, done.stderr
    assert stage(record(out), "calibrate")["resumed_chunks"] == 2
    assert not (out / "work").exists()
    assert digests(out) == alone(sound, tmp_path / "alone")

    done = run(exposures, out)
    assert done.returncode == 0 and "already done" in done.stderr


@pytest.mark.long
def test_more_exposures_use_what_fewer_gave(spoiled, tmp_path):
    """Another list of exposures is another command: it needs --force, and calibrates only what is new."""
    _, sound = spoiled
    out = tmp_path / "out"
    assert run([sound[0], sound[2]], out, "--keep-work").returncode == 0
    assert run(sound, out).returncode == 2
    done = run(sound, out, "--force")
    assert done.returncode == 0, done.stderr
    assert stage(record(out), "calibrate")["resumed_chunks"] == 2
    assert digests(out) == alone(sound, tmp_path / "alone")


def test_another_zero_point_needs_no_new_calibration(tmp_path):
    """And another gain does."""
    (path,) = observe(tmp_path / "night", SimulatedSurvey(1, 1, (64, 70))).exposures
    depends_on = []
    for options in ({"zero_point": 25}, {"zero_point": 26}, {"gain": 2}):
        (ref,) = find_exposures([path], ReadOptions(**options))
        layout = Layout((ref.shape,))
        state = sky.Survey(frames=(ref,), layout=layout)
        stage = calibrate.calibrate(state, calibrate.STEP.parameters(), layout.exposure_planes())
        depends_on.append(stage.depends(0))
    assert depends_on[0] == depends_on[1] != depends_on[2]
