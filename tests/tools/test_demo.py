"""The demo, run small as `make demo` runs it: what it says is true, and can be repeated."""

import re
import shlex
import sys

import nibabel
import numpy as np
import pytest
from support import launch
from support.parsed_html import parsed

SMALL = ("--shape", "48x56x40", "--volumes", "8")


def run_demo(folder, *arguments, **options):
    """Run the demo in `folder`, writing to `folder`/demo."""
    command = [sys.executable, "-m", "mpiimg.demo", "demo", *arguments]
    return launch.run(command, cwd=folder, timeout=180, env={"MPIIMG_REPORT": "on"}, **options)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the demo once; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, *SMALL)


def commands(printed):
    """Return the commands that the demo says it runs."""
    return [line.removeprefix("$ ") for line in printed.splitlines() if line.startswith("$ ")]


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_a_newcomer_sees_no_warning_but_that_crops_of_a_brain_have_no_background(demo):
    _, finished = demo
    warnings = [line for line in finished.stderr.splitlines() if not line.startswith("mpiimg: ")]
    warnings += [line for line in finished.stderr.splitlines() if line.startswith("mpiimg: warning: ")]
    assert len(warnings) == 2
    for name, line in zip(("small_64D", "small_101D"), warnings, strict=True):
        assert name in line and "no background" in line


def test_each_subject_has_its_results_and_its_page(demo):
    folder, finished = demo
    for name in ("simulated-maps", "small_64D", "small_101D", "survey-sky"):
        assert f"  demo/{name}/report.html" in finished.stdout.splitlines()
        html = parsed(folder / "demo" / name / "report.html")
        assert "Methods" in html.headings and html.foreign == [] and html.unclosed == []
        assert (folder / "demo" / name / "run.json").is_file()


def test_what_it_says_was_found_is_in_the_files(demo):
    folder, finished = demo
    said = re.findall(
        r"mask (\d+) voxels, noise sigma ([\d.]+), median FA in the mask ([\d.]+)", finished.stdout
    )
    assert len(said) == 3
    for (count, _, fa), name, stem in zip(
        said,
        ("simulated-maps", "small_64D", "small_101D"),
        ("dwi", "small_64D", "small_101D"),
        strict=True,
    ):
        results = folder / "demo" / name
        mask = voxels(results / f"{stem}_desc-brain_mask.nii.gz") == 1
        assert mask.sum() == int(count) > 100
        found = voxels(results / f"{stem}_model-tensor_param-fa_dwimap.nii.gz")[mask]
        assert abs(np.median(found) - float(fa)) <= 0.005


def test_the_simulated_head_is_compared_with_its_truth(demo):
    folder, finished = demo
    dice, error = re.search(
        r"Dice ([\d.]+); noise sigma was 40; FA of white matter off by ([+-][\d.]+)", finished.stdout
    ).groups()
    raw, maps = folder / "demo/simulated", folder / "demo/simulated-maps"
    brain = voxels(raw / "dwi_desc-truth_mask.nii.gz") == 1
    mask = voxels(maps / "dwi_desc-brain_mask.nii.gz") == 1
    assert abs(2 * (mask & brain).sum() / (mask.sum() + brain.sum()) - float(dice)) <= 0.0005
    white = mask & (voxels(raw / "dwi_desc-truth_tissue.nii.gz") == 1)
    wrong = (
        voxels(maps / "dwi_model-tensor_param-fa_dwimap.nii.gz") - voxels(raw / "dwi_desc-truth_fa.nii.gz")
    )[white]
    assert abs(np.median(wrong) - float(error)) <= 0.0005
    assert white.sum() > 5000 and abs(float(error)) < 0.05


def test_the_survey_has_its_sources_and_its_page(demo):
    folder, finished = demo
    (said,) = re.findall(r"10 exposures, (\d+) patches, (\d+) sources", finished.stdout)
    sky = folder / "demo" / "survey-sky"
    assert len(list(sky.glob("patch-*.fits"))) == int(said[0]) > 1
    assert (sky / "catalogue.reg").read_text().count("circle") == int(said[1]) > 50
    assert (sky / "mosaic.fits").exists() and "survey-sky/report.html" in finished.stdout


def test_maps_hold_no_infinity(demo):
    folder, _ = demo
    maps = sorted((folder / "demo").glob("*/*_dwimap.nii.gz"))
    assert len(maps) == 3 * 9
    assert all(np.isfinite(voxels(path)).all() for path in maps)


def test_its_commands_can_be_repeated(demo):
    folder, finished = demo
    said = [line for line in commands(finished.stdout) if "mpiexec" in line]
    tools = [re.search(r"mpiimg-\w+", line)[0] for line in said]
    assert tools[:6] == ["mpiimg-simulate", *["mpiimg-neuro"] * 3, "mpiimg-simulate", "mpiimg-astro"]
    record = folder / "demo" / "small_101D" / "run.json"
    before = record.stat().st_mtime_ns
    launch.run(shlex.split(said[3]), cwd=folder)
    assert record.stat().st_mtime_ns > before


@pytest.mark.long
def test_it_can_be_run_again_and_finds_the_same(demo):
    folder, first = demo
    maps = sorted((folder / "demo").glob("*/*.nii.gz"))
    before = [path.read_bytes() for path in maps]
    second = run_demo(folder, *SMALL)
    assert commands(second.stdout) == commands(first.stdout)
    assert [path.read_bytes() for path in maps] == before and len(maps) > 30


def test_a_command_that_fails_ends_the_demo_with_its_status(tmp_path):
    finished = run_demo(tmp_path, "--volumes", "3", check=False)
    assert finished.returncode == 2
    assert "mpiimg-simulate" in finished.stdout and "the command above failed" in finished.stderr
