"""What grows with ranks, by the plan's arithmetic alone, without MPI or pixels.

That runs move the bytes and messages that are planned is asserted in tests/engine/test_executor.py.
"""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
from support import launch

from mpiimg.engine.stage import Reduce, Stream

RANKS = (1, 2, 8, 16, 64)

#: Bytes a rank: all arrays fit.
AMPLE = 1 << 40

#: What docs/performance.md names: one rank reads a stream, and the owners of the mask send it to all.
NAMED = ("read-dwi", "denoise", "denoise.write-dwi_desc-denoised_dwi.nii.gz")


@pytest.fixture(scope="module")
def scaling():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(launch.REPOSITORY / "benchmarks")
        yield importlib.import_module("scaling")


@pytest.fixture(scope="module")
def strong(scaling, tmp_path_factory):
    """Plans of a subject and of a survey on each number of ranks, stage by stage."""
    folder = tmp_path_factory.mktemp("scaling")
    scaling.headers_of_survey(folder / "sky", 6, 6, "1000x1018")
    words = {
        "mpiimg-neuro": scaling.subject(scaling.header_only(folder / "subject", "40x44x36", 64)),
        "mpiimg-astro": scaling.sky(folder / "sky"),
    }
    return {
        tool: dict(zip(RANKS, scaling.plans(tool, given, RANKS, AMPLE), strict=True))
        for tool, given in words.items()
    }


@pytest.mark.parametrize("tool", ["mpiimg-neuro", "mpiimg-astro"])
def test_more_ranks_hold_and_send_less_each(strong, tool):
    """The same input: neither memory nor bytes of the busiest rank grow, but for what the docs name."""
    sent = {
        n: sum(planned.moved_per_rank for stage, planned in plan if stage.name not in NAMED)
        for n, plan in strong[tool].items()
    }
    peaks = {n: max(planned.peak for _, planned in plan) for n, plan in strong[tool].items()}
    assert sent[1] == 0 < sent[64] < sent[2]
    assert all(peaks[more] <= peaks[less] for less, more in itertools.pairwise(RANKS))


@pytest.mark.parametrize("tool", ["mpiimg-neuro", "mpiimg-astro"])
def test_a_rank_has_no_more_partners_than_there_are_chunks(strong, tool):
    """What a stage moves in all is bounded by what its chunks read, however many ranks there are."""
    for n, plan in strong[tool].items():
        for stage, planned in plan:
            if isinstance(stage, Stream):
                assert planned.messages_per_rank <= len(stage.grid)
                continue
            needs = len(stage.reads) + isinstance(stage, Reduce)
            rounds = -(-len(stage.grid) // planned.batch)
            assert planned.messages_per_rank <= needs * rounds * min(n - 1, len(stage.grid))


def test_halos_come_from_neighbours_alone(strong):
    for n, plan in strong["mpiimg-neuro"].items():
        for stage, planned in plan:
            if stage.name.startswith("mask.median"):
                # Blocks of three slices, a halo of four: two neighbours on either side.
                assert planned.messages_per_rank <= min(n - 1, 4)
                assert planned.messages <= 4 * len(stage.grid)


def test_a_survey_that_grows_with_ranks_takes_no_more_of_each(scaling, tmp_path):
    """As many sensors as ranks: bytes and messages of the busiest rank, and its memory, stay as they are."""
    found = {}
    for n in (8, 64):
        scaling.headers_of_survey(tmp_path / f"sky-{n}", 2, n, "500x509")
        tract = ("--patch", 500, "--border", 50, "--pixel-scale", 0.333)
        words = scaling.sky(tmp_path / f"sky-{n}", *tract)
        (plan,) = scaling.plans("mpiimg-astro", words, [n], AMPLE)
        (coadd,) = (planned for stage, planned in plan if stage.name == "coadd")
        found[n] = (coadd.moved_per_rank, coadd.messages_per_rank, max(planned.peak for _, planned in plan))
    # Where sensors and patches meet differs a little with the width of the camera.
    assert all(more <= 1.6 * few for few, more in zip(found[8], found[64], strict=True))


def test_plans_are_made_from_headers_alone(scaling, tmp_path):
    source = scaling.header_only(tmp_path / "subject", "20x24x18", 12)
    (plan,) = scaling.predict("mpiimg-neuro", scaling.subject(source), [8])
    assert (
        plan["ranks"] == 8 and plan["bytes_moved"] > plan["bytes_per_rank"] > 0 and plan["peak_per_rank"] > 0
    )


def test_more_chunks_of_a_stencil_send_more_at_the_borders_of_ranks_alone(scaling):
    """As many messages, of halos as long as the image is wide: as the side of the image, not its area."""
    few, many = (scaling.planning(side, 64) for side in (64, 128))
    assert (few["chunks"], many["chunks"]) == (4096, 16384)
    assert few["messages"] == many["messages"] == 2 * 63
    assert few["bytes_moved"] < many["bytes_moved"] < 2.5 * few["bytes_moved"]


def test_laws_are_the_powers_by_which_numbers_grow(scaling):
    ranks = [1, 2, 4, 8]
    assert scaling.law(ranks, [5 * n**2 for n in ranks]) == pytest.approx(2)
    assert scaling.law(ranks, [7, 7, 7, 7]) == pytest.approx(0)
    assert scaling.law(ranks, [0, 3, 6, 12]) == pytest.approx(1)
    assert math.isnan(scaling.law(ranks, [0, 0, 0, 5]))


def test_a_cohort_takes_as_many_turns_as_its_groups_leave(scaling):
    plans = [{"ranks": n, "seconds": 3600 / n, "peak_per_rank": 10} for n in (1, 64, 8192)]
    one, many = scaling.cohort(plans, 4096)
    assert (one["groups"], one["turns"], one["hours"]) == (4096, 1, 1.0)
    assert (many["groups"], many["turns"], many["hours"]) == (64, 15, 15 / 64)
