"""Chains of steps run on ranks: what was found goes into what follows, into the outcome and the record."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib

import numpy as np
import pytest
from engine.test_compose import chain, link, recipe_of
from engine.test_executor import COMM, options
from support import toydomain
from support.toydomain import COUNT, DOMAIN, LEVEL, SCALE, STREAMED, WEIGH

from mpiimg.engine import Array, Compute, Part
from mpiimg.engine.log.events import last_events
from mpiimg.engine.run import run
from mpiimg.errors import Exit

pytestmark = pytest.mark.ranks


@pytest.fixture
def folder(tmp_path):
    """One folder for all ranks, with a sheet and weights."""
    folder = pathlib.Path(COMM.bcast(str(tmp_path)))
    if COMM.rank == 0:
        rng = np.random.default_rng(0)
        np.save(folder / "sheet.npy", rng.normal(size=(7, 3)) + 0.4)
        np.save(folder / "weights.npy", rng.uniform(size=7))
    COMM.Barrier()  # all is written before any rank reads it
    return folder


def go(folder, *links, domain=DOMAIN, out="out", **fields):
    """Run a chain; return what it came to."""
    paths = {"sheet": folder / "sheet.npy", "weights": folder / "weights.npy"}
    recipe = recipe_of(chain(*links, domain=domain), paths)
    # Nothing is to be compiled.
    recipe = dataclasses.replace(recipe, kernels=())
    return run(recipe, COMM, options(folder / out, **fields))


def sheet_in(path):
    return np.frombuffer(gzip.decompress(path.read_bytes())).reshape(-1, 3)


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
def test_a_chain_comes_to_what_numpy_makes(folder, in_memory):
    """Results, documents, and the states of all links; what the generator was sent decides what comes."""
    rows = np.load(folder / "sheet.npy")
    keep = link(SCALE, keep=True, factor=3.0)
    outcome = go(folder, keep, LEVEL, COUNT, in_memory=in_memory)
    scaled = 3.0 * rows
    sums = [scaled[a : a + 2].mean(axis=1).sum() for a in range(0, 7, 2)]
    mean = float(np.array(sums).sum() / 7)
    out = folder / "out"
    assert (sheet_in(out / "scaled" / "sheet.gz") == scaled).all()
    for number in range(4):
        part = slice(2 * number, 2 * number + 2)
        expected = (scaled[part] - mean).tobytes() + scaled[part].tobytes()
        assert (out / "level" / f"level-{number}.raw").read_bytes() == expected
    assert json.loads((out / "count.json").read_text()) == {"count": int((scaled - mean > 0).sum())}
    assert [state.level and state.level.mean for state in outcome.state] == [None, mean, mean]
    stages = [entry["stage"] for entry in outcome.report["stages"]]
    assert stages == [
        "scale",
        "scale.write-rows",
        "level.mean",
        "level.above",
        "level.write-level",
        "count",
        "count.fill",
    ]
    assert outcome.status is Exit.DONE
    assert outcome.left_out == {}


@pytest.mark.parametrize("first", [SCALE, WEIGH], ids=["streamed", "weights-from-a-step"])
def test_a_sheet_that_one_rank_reads(folder, first):
    """With weights from a file, or, where a step makes them, from that step."""
    streamed = dataclasses.replace(DOMAIN, sources=(STREAMED,))
    rows, weights = np.load(folder / "sheet.npy"), np.load(folder / "weights.npy")
    scaled = rows * 2.0 if first is SCALE else rows
    if first is WEIGH:
        weights = rows.sum(axis=1)
    outcome = go(folder, first, LEVEL, domain=streamed)
    sums = [(scaled[a : a + 2].mean(axis=1) * weights[a : a + 2]).sum() for a in range(0, 7, 2)]
    assert outcome.state[-1].level.mean == float(np.array(sums).sum() / 7)


def test_what_a_reduction_says_reaches_everybody(folder, capfd):
    """Warnings and the units left out: on every rank in the outcome, in the record, in the log's end."""
    negative = dataclasses.replace(toydomain.ScaleParameters(), factor=-1.0)
    turned = dataclasses.replace(link(SCALE), parameters=negative)
    outcome = go(folder, turned, LEVEL, COUNT)
    said = capfd.readouterr().err
    assert said.count("mpiimg: warning: toy: a mean\n") == (COMM.rank == 0)
    assert outcome.left_out == {"sheet": "is dark"}
    assert outcome.status is Exit.PARTIAL
    assert COMM.allgather(dict(outcome.left_out)) == [{"sheet": "is dark"}] * COMM.size
    report = json.loads((folder / "out" / "run.json").read_text())
    assert report["left_out"] == {"sheet": "is dark"}
    assert report["warnings"] == ["toy: from a file", "toy: to be counted", "toy: a mean"]
    assert [entry["stage"] for entry in report["stages"]][2] == "level.below"
    COMM.Barrier()  # all logs are ended before any is read
    ends = last_events(folder / "out" / "events")
    assert {rank: event["status"] for rank, event in ends.items()} == dict.fromkeys(
        range(COMM.size), Exit.PARTIAL
    )


def test_the_same_step_twice_is_done_twice(folder):
    go(folder, link(SCALE, "first", factor=3.0), link(SCALE, "second", factor=5.0))
    assert (sheet_in(folder / "out" / "sheet.gz") == 5.0 * (3.0 * np.load(folder / "sheet.npy"))).all()


def test_another_parameter_makes_anew_what_may_depend_on_it(folder):
    """Of a stage that says what it depends on, and of one that says nothing and comes after it."""

    def again(*links):
        outcome = go(folder, *links, force=True, keep_work=True)
        COMM.Barrier()  # all have read the record before the next run replaces it
        return {e["stage"]: e["chunks"] - e["resumed_chunks"] for e in outcome.report["stages"]}

    silent = dataclasses.replace(
        SCALE,
        name="silent",
        stages=lambda sheet, p, data: unsaid(toydomain.scale(sheet, p, data)),
        outputs=(),
    )
    assert set(again(SCALE, silent, LEVEL).values()) == {4}
    assert {n: c for n, c in again(SCALE, silent, LEVEL).items() if c} == {"level.write-level": 4}
    # `keep` is no parameter of the stages that say what they depend on.
    changed = again(SCALE, link(silent, keep=True), link(LEVEL))
    assert (changed["scale"], changed["silent.scale"], changed["level.mean"]) == (0, 4, 4)


def test_a_stage_that_says_nothing_follows_what_was_found_before_it(folder):
    """Its work may use the mean, which depends on weights that it does not read."""
    streamed = dataclasses.replace(DOMAIN, sources=(STREAMED,))

    def use(sheet, p, data):
        lifted = Array("lifted", "zx", sheet.rows.shape, "float64")
        mean = sheet.level.mean
        yield Compute(
            "lift",
            toydomain.cut(lifted),
            reads=(Part(sheet.rows),),
            writes=(lifted,),
            work=lambda chunk, block: (block + mean,),
        )
        return dataclasses.replace(sheet, rows=lifted)

    lift = dataclasses.replace(SCALE, name="lift", takes=("rows", "level"), stages=use)
    for _ in range(2):
        outcome = go(folder, LEVEL, lift, domain=streamed, force=True, keep_work=True)
        mean = outcome.state[-1].level.mean
        assert (sheet_in(folder / "out" / "sheet.gz") == np.load(folder / "sheet.npy") + mean).all()
        COMM.Barrier()  # all have looked at the result before the weights change
        if COMM.rank == 0:
            np.save(folder / "weights.npy", np.load(folder / "weights.npy") * 2)
        COMM.Barrier()  # the weights have changed before any rank reads them
    (lifted,) = [entry for entry in outcome.report["stages"] if entry["stage"] == "lift"]
    assert lifted["resumed_chunks"] == 0


def unsaid(stages):
    """Take from stages what they say they depend on."""
    value = None
    try:
        while True:
            stage = stages.send(value)
            value = yield dataclasses.replace(stage, parameters=None)
    except StopIteration as end:
        return end.value
