"""Pages in a real browser: all that they show is in them, and a reader sees it, or is told of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import conformance, warm
from support.astro_data import observe
from support.subjects import PATIENCE

from mpiimg.neuro.report.cohort import ScanFigures, page_of
from mpiimg.report.page import render
from mpiimg.simulate.astro import SimulatedSurvey

pytestmark = pytest.mark.conformance


def cohort_page(path: Path) -> Path:
    """Write the page of a made-up cohort, whose dots are links."""
    rng = np.random.default_rng(1)
    scans = [
        ScanFigures(f"sub-{n:02d}", "done", "", "other.html", {"ndc": float(rng.normal(0.8, 0.02))})
        for n in range(30)
    ]
    scans[3] = ScanFigures("sub-03", "failed", "its image is cut off")
    path.write_text(render(page_of(scans, path.parent), "1"))
    return path


@pytest.fixture(scope="module")
def pages(alone, tmp_path_factory) -> list[Path]:
    """A page of a scan, of a survey and of a cohort."""
    root = tmp_path_factory.mktemp("pages")
    shutil.copytree(alone, root / "head")
    night = observe(root / "raw", SimulatedSurvey(3, 1, (300, 320), seed=3))
    flags = ("--patch", 200, "--border", 20, "--out", root / "sky")
    warm.run_tool("mpiimg-astro", *night.exposures, *flags, timeout=PATIENCE)
    for name in ("head", "sky"):
        warm.run_tool("mpiimg-report", root / name, timeout=PATIENCE)
    return [root / "head" / "report.html", root / "sky" / "report.html", cohort_page(root / "cohort.html")]


@pytest.fixture(scope="module")
def seen(pages) -> dict[str, dict]:
    """What a browser made of each page."""
    browser = conformance.program("chromium", "chromium")
    said = conformance.deno_in_browser("read_pages.mjs", browser, *pages)
    return {Path(one["path"]).relative_to(pages[0].parents[1]).parts[0]: one for one in json.loads(said)}


#: Pages, and how many pictures they have at least.
PAGES = {"head": 8, "sky": 5, "cohort.html": 0}


@pytest.mark.parametrize("name", PAGES)
def test_no_request_leaves_a_page(seen, name):
    assert seen[name]["requests"] == [] and seen[name]["messages"] == [] and seen[name]["scripts"] == 0


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_loads_and_says_what_it_shows(seen, name):
    pictures = seen[name]["pictures"]
    assert len(pictures) >= PAGES[name]
    assert [one for one in pictures if min(one["width"], one["height"]) < 20 or len(one["alt"]) < 15] == []


@pytest.mark.parametrize("name", PAGES)
def test_contrast_and_structure_are_right(seen, name):
    """By axe-core, with all that is folded unfolded."""
    assert seen[name]["violations"] == []
