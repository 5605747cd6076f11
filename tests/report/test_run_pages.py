"""Every run into a folder leaves a page about it there; what keeps it from being made is a warning."""

import shutil

import pytest
from support import launch, warm
from support.parsed_html import parsed
from support.subjects import PATIENCE

from mpiimg.report.run_section import stretches

pytestmark = pytest.mark.tool

ON = {"MPIIMG_REPORT": "on"}


@pytest.fixture(scope="module")
def ran(simulated, tmp_path_factory):
    """A mask of two ranks with its page, and the run."""
    out = tmp_path_factory.mktemp("reported") / "out"
    words = ["mpiimg-mask", *simulated.arguments, "--out", out]
    return out, launch.run_tool(*words, ranks=2, env=ON, timeout=PATIENCE)


def test_the_last_line_names_the_page(ran):
    out, run = ran
    assert run.stderr.splitlines()[-1] == f"mpiimg: report: {out}/report.html"
    assert (out / "report.html").is_file()


def test_the_page_says_how_to_do_it_again(ran):
    out, _ = ran
    html = parsed(out / "report.html")
    assert "mpiexec -n 2 mpiimg-mask" in html.text and str(out) in html.text
    assert "Run: mpiimg-mask" in html.headings
    assert any("Timeline of 2 ranks" in alt for _, alt in html.pictures)
    assert html.foreign == [] and html.unclosed == []


def test_it_is_made_again_and_is_no_result(ran, tmp_path):
    out, _ = ran
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "report.html").unlink()
    done = launch.run_tool("mpiimg-report", copy)
    assert done.stdout.strip() == str(copy / "report.html")
    assert parsed(copy / "report.html").headings == parsed(out / "report.html").headings
    assert launch.run_tool("mpiimg-status", copy, "--verify").returncode == 0


def test_a_spoilt_result_is_a_line_and_the_rest_of_the_page_is_there(ran, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ran[0], copy)
    next(copy.glob("*_mask.nii.gz")).write_bytes(b"garbage")
    done = launch.run_tool("mpiimg-report", copy)
    (line,) = done.stderr.splitlines()
    assert "the part of neuro on the page could not be made" in line and "--verify" in line
    html = parsed(copy / "report.html")
    assert "Run: mpiimg-mask" in html.headings and "could not be made" in html.text


def test_a_page_that_cannot_be_made_is_a_warning(simulated, tmp_path):
    out = tmp_path / "out"
    (out / "report.html").mkdir(parents=True)
    run = launch.run_tool("mpiimg-mask", *simulated.arguments, "--out", out, env=ON, timeout=PATIENCE)
    assert "warning: no report: " in run.stderr.splitlines()[-1]
    assert (out / "run-mask.json").is_file()


def test_none_is_written_where_none_is_wanted(simulated, tmp_path):
    out = tmp_path / "out"
    words = ["mpiimg-mask", *simulated.arguments, "--out", out, "--no-report"]
    run = launch.run_tool(*words, env=ON, timeout=PATIENCE)
    assert "report" not in run.stderr and not (out / "report.html").exists()


def test_a_folder_without_runs_is_refused(tmp_path):
    done = warm.run_tool("mpiimg-report", tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0 and "no record of a run" in done.stderr


def test_what_a_rank_was_at():
    events = [
        {"event": "stage", "stage": "mask.otsu", "time": 10.0},
        {"event": "chunks", "stage": "mask.otsu", "time": 11.0},
        {"event": "ended", "stage": "mask.otsu", "time": 12.0},
        {"event": "stage", "stage": "fit", "time": 12.5},
    ]
    assert stretches(events, 10.0) == [("mask.otsu", 0.0, 2.0)]
