"""A user's own functions over a survey: filters of exposures, coadds, and a pipeline with our tools."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
from astropy.io import fits
from support import launch, warm
from support.astro_data import FIGURES, astro, observe
from support.subjects import PATIENCE, digests, record

from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.search import find_exposures
from mpiimg.errors import Exit
from mpiimg.simulate.astro import SimulatedSurvey

pytestmark = pytest.mark.tool

EXAMPLES = launch.REPOSITORY / "docs" / "examples"
PIPELINE = EXAMPLES / "sky.toml"
SURVEY = SimulatedSurvey(4, 1, (220, 260), seed=5, density=90.0)


def run(*words, **how):
    """Run mpiimg-run."""
    return warm.run_tool("mpiimg-run", *words, timeout=PATIENCE, **how)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return observe(tmp_path_factory.mktemp("udf") / "night", SURVEY)


@pytest.fixture(scope="module")
def piped(night, tmp_path_factory):
    """What one process makes of the survey by the pipeline of docs/examples."""
    out = tmp_path_factory.mktemp("udf") / "piped"
    run(PIPELINE, *night.exposures, "--out", out)
    return out


@pytest.fixture(scope="module")
def warps(night, tmp_path_factory):
    """What the same pipeline writes where it ends with the warps, and where with the filter."""
    folder = tmp_path_factory.mktemp("udf")
    text = PIPELINE.read_text().split('[[stage]]\nudf = "median_coadd.py')[0]
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, folder)
    (folder / "warps.toml").write_text(text)
    run(folder / "warps.toml", *night.exposures, "--out", folder / "warps")
    (folder / "filter.toml").write_text(text.split('[[stage]]\ntool = "warp"')[0])
    run(folder / "filter.toml", *night.exposures, "--out", folder / "filtered")
    return folder


def example(name):
    """Return the module of a file in docs/examples."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planes(path) -> list[np.ndarray]:
    with fits.open(path) as hdus:
        found = [hdus[name].data for name in ("IMAGE", "VARIANCE", "MASK")]
        return [pixels.astype(pixels.dtype.newbyteorder("=")) for pixels in found]


@pytest.mark.parametrize(
    "ranks, options", [(3, ("--in-memory",)), pytest.param(7, (), marks=pytest.mark.long)]
)
def test_any_number_of_ranks(night, piped, tmp_path, ranks, options):
    run(PIPELINE, *night.exposures, "--out", tmp_path / "out", *options, ranks=ranks)
    assert digests(tmp_path / "out") == digests(piped)
    moved = {entry["stage"]: entry["bytes_moved"] for entry in record(tmp_path / "out")["stages"]}
    assert moved["udf-MedianCoadd"] > 0


def test_every_file_is_there(piped):
    others = {"catalogue.fits", "catalogue.reg", "exposures.ecsv", "mosaic.fits", "tract.toml", *FIGURES}
    found = set(digests(piped))
    assert {name for name in found if not name.startswith("patch-")} == others
    assert len(found - others) >= 4


def test_the_filter_is_that_of_each_calibrated_exposure(night, warps, tmp_path):
    """Inside a pipeline, and alone on files."""
    calibrated = tmp_path / "calibrated"
    warm.run_tool("mpiimg-calibrate", *night.exposures, "--out", calibrated, timeout=PATIENCE)
    files = sorted(calibrated.glob("*.fits"))
    run("--udf", EXAMPLES / "columns.py:level_columns", *files, "--out", tmp_path / "alone")
    level = example("columns").level_columns
    assert len(files) == SURVEY.visits
    for ref in find_exposures(files, ReadOptions()):
        exposure = read_exposure(ref)
        expected = level(exposure.image, exposure.variance, exposure.mask)
        assert np.abs(expected - exposure.image).max() > 0
        for folder in (warps / "filtered", tmp_path / "alone"):
            image, variance, mask = planes(folder / f"{ref.name}.fits")
            np.testing.assert_array_equal(image, expected)
            np.testing.assert_array_equal(variance, exposure.variance)
            np.testing.assert_array_equal(mask, exposure.mask)
            header = fits.getheader(folder / f"{ref.name}.fits")
            assert header["MAGZERO"] == ref.magzero and "level_columns" in str(header["HISTORY"])


def test_the_coadd_is_the_median_of_the_warps(piped, warps, tmp_path):
    """By numpy over the whole patch; and the same from a folder of warps, by a function of all exposures."""
    code = """
import numpy as np
from median_coadd import MedianCoadd

def coadd(image, variance, mask, *, bounds, header):
    assert image.shape[1:] == tuple(b - a for a, b in bounds.values()) and header["MAGZERO"] == 27.0
    whole = MedianCoadd()
    return whole.finish([part for planes in zip(image, variance, mask) for part in whole.partial(*planes)])
"""
    (warps / "stacked.py").write_text(code)
    run("--udf", f"{warps}/stacked.py:coadd", "--over", "patches", warps / "warps", "--out", tmp_path)
    compared = 0
    for path in sorted(piped.glob("patch-*.fits")):
        image, variance, mask = planes(path)
        stack = np.full((SURVEY.visits, *image.shape), np.nan, np.float32)
        head = fits.getheader(path)
        for k, warp in enumerate(sorted((warps / "warps").glob(f"*_{path.stem}_warp.fits"))):
            own, values = fits.getheader(warp), planes(warp)
            y, x = (own[card] - head[card] for card in ("TRACTY", "TRACTX"))
            bad = (values[2] & bits("BAD", "SAT", "EDGE", "NO_DATA")) != 0
            stack[k, y : y + bad.shape[0], x : x + bad.shape[1]] = np.where(bad, np.nan, values[0])
        seen = np.isfinite(stack).any(axis=0)
        expected = np.full(image.shape, np.nan, np.float32)
        expected[seen] = np.nanmedian(stack[:, seen], axis=0)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(mask != bits("NO_DATA"), seen)
        assert np.isinf(variance[~seen]).all() and np.isfinite(variance[seen]).all()
        for found, whole in zip(planes(tmp_path / path.name), (image, variance, mask), strict=True):
            np.testing.assert_array_equal(found, whole)
        compared += np.count_nonzero(seen)
    assert compared > 40_000


def test_a_pipeline_of_our_stages_alone_is_mpiimg_astro(night, tmp_path):
    (tmp_path / "ours.toml").write_text(
        '[[stage]]\ntool = "calibrate"\n[[stage]]\ntool = "warp"\npatch = 160\nborder = 20\n'
        '[[stage]]\ntool = "coadd"\nsigma = 2.5\n[[stage]]\ntool = "detect"\nthreshold = 6\n'
    )
    run(tmp_path / "ours.toml", *night.exposures, "--out", tmp_path / "ours")
    options = ("--patch", 160, "--border", 20, "--sigma", 2.5, "--threshold", 6)
    expected = astro(night.exposures, tmp_path / "astro", *options)
    assert digests(tmp_path / "ours") == digests(expected)


FILTER = "def f(image, variance, mask):\n    return {}\n"
AGGREGATE = "class f:\n    def partial(self, image, variance, mask):\n        return 0\n"
WRONG = {
    "shape": (FILTER.format("image[1:]"), (), ("must return (220 x 256)", "tried on a frame of 220 x 256")),
    "planes": (FILTER.format("image, variance"), (), ("returns 2 planes",)),
    "type": (FILTER.format("image, variance, mask * 1.0"), (), ("float64 where int32 is due",)),
    "raises": (FILTER.format("image + no"), (), ("mine.py:2: f: NameError", ": return image + no")),
    "aggregate": (AGGREGATE, (), ("an aggregate is over patches",)),
    "order": (FILTER.format("image"), ("--over", "patches"), ("f: takes one", "warps")),
    "halo": (FILTER.format("image"), ("--check-halo",), ("f has no halo",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_the_run(night, tmp_path, name):
    code, words, said = WRONG[name]
    (tmp_path / "mine.py").write_text(code)
    over = () if "--over" in words else ("--over", "exposures")
    what = ("--udf", f"{tmp_path}/mine.py:f", *over, *words)
    done = run(*what, *night.exposures, "--out", tmp_path / "out", check=False)
    assert done.returncode == Exit.BAD_INPUT
    assert len(done.stderr.splitlines()) == 1
    assert [text for text in said if text not in done.stderr] == []
    assert not (tmp_path / "out").exists()


FAULTY = """
def f(image, variance, mask, *, header):
    if header["NAME"] in {}:
        raise ValueError("odd\\n\\x1b[31m")
    return image
"""


def test_exposures_that_a_function_fails_on_are_left_out(night, tmp_path):
    names = [path.stem for path in night.exposures]
    what = ("--udf", f"{tmp_path}/mine.py:f", "--over", "exposures", *night.exposures)
    # It is tried on the first.
    (tmp_path / "mine.py").write_text(FAULTY.format(names[1:3]))
    done = run(*what, "--out", tmp_path / "out", check=False)
    assert done.returncode == Exit.PARTIAL, done.stderr
    entry = record(tmp_path / "out", "run.json")
    reasons = {name: rf"{name}: ValueError: odd \x1b[31m (stage udf-f)" for name in names[1:3]}
    assert entry["left_out"] == reasons
    assert all("mine.py" in fault["traceback"] for fault in entry["faults"])
    written = {path.stem for path in (tmp_path / "out").glob("*.fits")}
    assert written == set(names) - set(reasons)


def test_a_coadd_of_a_function_leaves_out_the_patch_that_it_fails_on(night, tmp_path):
    """It is tried on the first patch."""
    cut = ("--patch", 150, "--border", 10)
    astro(night.exposures, tmp_path / "warps", *cut, tool="mpiimg-warp", timeout=PATIENCE)
    code = "def f(image, variance, mask, *, header):\n    1 // (header['PATCHX'] != 1)\n"
    (tmp_path / "mine.py").write_text(code + "    return image.mean(axis=0), variance.mean(axis=0)\n")
    what = ("--udf", f"{tmp_path}/mine.py:f", "--over", "patches", tmp_path / "warps")
    done = run(*what, "--out", tmp_path / "out", check=False)
    assert done.returncode == Exit.PARTIAL, done.stderr
    failed = {path.name.split("_")[1] for path in (tmp_path / "warps").glob("*_patch-1-*_warp.fits")}
    assert failed and set(record(tmp_path / "out")["left_out"]) == failed
    patches = {path.stem for path in (tmp_path / "out").glob("patch-*.fits")}
    assert patches and not patches & failed


def test_a_coadd_gives_a_variance_and_results_go_to_a_folder(night, warps, tmp_path):
    (tmp_path / "mine.py").write_text(FILTER.format("image.mean(axis=0)"))
    what = ("--udf", f"{tmp_path}/mine.py:f", "--over", "patches", warps / "warps")
    done = run(*what, "--out", tmp_path / "out", check=False)
    assert done.returncode == Exit.BAD_INPUT and "returns no image and variance" in done.stderr
    done = run(*what, tmp_path / "out.fits", check=False)
    assert done.returncode == Exit.BAD_INPUT and "give --out DIR" in done.stderr
