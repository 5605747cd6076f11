"""Surveys: the same files to the last bit on any number of ranks, in memory, killed, on either install."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time

import pytest
from support import astro_data, launch, sabotage, warm
from support.astro_data import astro, observe
from support.ranks import on_site
from support.subjects import digests, record

from mpiimg.engine import plan
from mpiimg.engine.checkpoint import read_marks
from mpiimg.tools import cli, registry

pytestmark = pytest.mark.tool


#: As many exposures and patches as in the crowded field, each a quarter as large.
SMALL = dataclasses.replace(astro_data.CROWDED, shape=(250, 310))
TRACT = ("--patch", 240, "--border", 25, "--pixel-scale", 0.333)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return observe(tmp_path_factory.mktemp("small") / "night", SMALL)


@pytest.fixture(scope="module")
def alone(night, tmp_path_factory):
    return astro(night.exposures, tmp_path_factory.mktemp("small") / "alone", *TRACT)


def assert_same_files(folder, expected):
    """Assert that two folders hold the same files with the same bytes, but for the records of the runs."""
    assert digests(folder) == digests(expected)


def test_every_file_is_there(alone):
    patches = {f"patch-{x}-{y}.fits" for x in range(2) for y in range(3)}
    tables = {
        "catalogue.fits",
        "catalogue.reg",
        "mosaic.fits",
        *astro_data.FIGURES,
        "exposures.ecsv",
        "rejected.ecsv",
        "tract.toml",
    }
    assert set(digests(alone)) == patches | tables


@pytest.mark.parametrize(
    "ranks, options",
    [*on_site((2, ()), (3, ("--in-memory",))), pytest.param(7, (), marks=pytest.mark.long)],
)
def test_any_number_of_ranks(night, alone, tmp_path, ranks, options):
    """Also with the tract given that the first run derived."""
    tract = ("--tract", alone / "tract.toml") if ranks == 2 else TRACT
    out = astro(night.exposures, tmp_path / "out", *tract, *options, ranks=ranks)
    assert_same_files(out, alone)
    assert record(out)["ranks"] == ranks
    assert record(out)["in_memory"] == bool(options)
    moved = {entry["stage"]: entry["bytes_moved"] for entry in record(out)["stages"]}
    assert moved["coadd"] > 0, "the warps of a strip come from the ranks of all its exposures"


def marked(out) -> set[str]:
    """Return the stages of which an unfinished run has marked any chunk."""
    return {mark.stage for mark in read_marks(out / "work" / "survey.astro" / "journal")}


def kill_after(stage, exposures, out, ranks):
    """Start a run and kill its ranks, all at once, when `stage` has left its first mark."""
    command = warm.tool_command("mpiimg-astro", *exposures, "--out", out, *astro_data.TRACT, ranks=ranks)
    process = subprocess.Popen(
        command,
        env=launch.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + astro_data.PATIENCE
        while stage not in marked(out):
            assert process.poll() is None and time.monotonic() < deadline, f"never marked {stage}"
            time.sleep(0.002)
        sabotage.kill(sabotage.rank_processes(process))
        assert process.wait(timeout=60) != 0, "ended before it was killed"
    finally:
        launch.kill_session(process)


def test_killed_and_resumed_on_other_ranks(tmp_path_factory, tmp_path):
    """What was marked is not made again, and the files are those of a run in one go, on the other install."""
    # Large, so that there is the time to kill it.
    night, alone = (make(tmp_path_factory) for make in (astro_data.crowded, astro_data.crowded_results))
    out = tmp_path / "out"
    kill_after("warp", night.exposures, out, 3)
    assert sorted(path.name for path in out.iterdir()) == ["events", "work"]
    python = launch.other_install()
    astro(night.exposures, out, *astro_data.TRACT, ranks=1 if python is None else 4, python=python)
    assert_same_files(out, alone)
    resumed = {entry["stage"]: entry["resumed_chunks"] for entry in record(out)["stages"]}
    assert resumed["calibrate"] == len(night.exposures)
    assert resumed["warp"] > 0


def test_other_install_place_and_order(night, alone, tmp_path):
    """Exposures copied elsewhere, with other times, listed backwards in a file, called by relative paths."""
    python = launch.other_install()
    for path in night.exposures:
        shutil.copyfile(path, tmp_path / path.name)
    names = [path.name for path in reversed(night.exposures)]
    (tmp_path / "list.txt").write_text("# backwards\n" + "\n".join(names) + "\n")
    astro(["@list.txt"], "out", *TRACT, cwd=tmp_path, ranks=4, python=python)
    assert_same_files(tmp_path / "out", alone)
    if python is None:
        pytest.skip("THE OTHER INSTALL IS NOT THERE: nothing is compared with it")


def test_out_of_core(night, alone, tmp_path):
    """With as little memory as a run accepts, pixels lie in files between the stages; all stays below it."""
    words = [*night.exposures, *TRACT]
    tool = registry.tool("mpiimg-astro")
    values = vars(cli.parser("mpiimg-astro").parse_args([*map(str, words), "--out", "out"]))
    least, _ = plan.min_memory(tool.recipe(tool.inspect(values), values))
    out = astro(night.exposures, tmp_path / "out", *TRACT, "--memory", least, ranks=2, run=launch.run_tool)
    assert_same_files(out, alone)
    stages = record(out)["stages"]
    assert any(entry["planned"]["read"] for entry in stages)
    for entry in stages:
        assert entry["peak_per_rank"] <= min(least, entry["planned"]["peak_per_rank"])
