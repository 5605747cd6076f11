"""Staged arrays in a folder elsewhere: the same results, gone on with where they lie, and nothing left."""

from __future__ import annotations

import pathlib
import shutil

import pytest
from engine.test_executor import ON_PURPOSE, Calls, at, check, fails, go, marked, resumes, throw, work_folder
from support import toy
from support.ranks import COMM

from mpiimg.engine import staging_place
from mpiimg.errors import BadInput

pytestmark = pytest.mark.ranks


@pytest.fixture
def places(tmp_path):
    """Where results go, and where staged arrays do."""
    top = pathlib.Path(COMM.bcast(str(tmp_path)))
    return top / "out", top / "scratch"


def names(folder):
    """Return the names in a folder, while no rank changes it."""
    COMM.Barrier()  # all ranks have left the run
    found = sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []
    COMM.Barrier()  # none begins the next one
    return found


def broken():
    return toy.smooth(at("blur-2", 4, lambda: throw(ON_PURPOSE)))


@pytest.mark.parametrize("name", toy.TOYS)
def test_results_are_the_same_and_nothing_is_left_elsewhere(name, places):
    out, scratch = places
    made = toy.TOYS[name]()
    go(made, out, work_dir=scratch)
    check(made, out)
    assert names(scratch) == []
    assert not work_folder(made, out).exists()


def test_a_run_that_failed_goes_on_from_there_without_being_told(places):
    out, scratch = places
    made = broken()
    fails(made, out, "stage blur-2, chunk 4", work_dir=scratch)
    assert "pass-1.h5" in names(scratch)
    assert not list(work_folder(made, out).glob("*.h5"))
    before, calls = marked(made, out), Calls()
    assert before > 0
    resumes(before, calls, toy.smooth(calls), out)
    assert names(scratch) == []


def test_a_run_goes_on_where_it_lies_and_says_that_another_folder_is_not_taken(places, caplog):
    out, scratch = places
    fails(broken(), out, "stage blur-2, chunk 4", work_dir=scratch)
    before, calls = marked(broken(), out), Calls()
    resumes(before, calls, toy.smooth(calls), out, work_dir=scratch / "another")
    said = "".join(COMM.allgather(caplog.text))
    assert said.count("the run goes on there, where the last one left it, and not in --work-dir") == 1
    assert names(scratch) == []


def test_so_does_one_that_began_beside_its_results(places):
    out, scratch = places
    fails(broken(), out, "stage blur-2, chunk 4")
    before, calls = marked(broken(), out), Calls()
    resumes(before, calls, toy.smooth(calls), out, work_dir=scratch)
    assert not scratch.exists()


def test_what_was_cleaned_away_is_made_again(places):
    """Its marks speak of nothing."""
    out, scratch = places
    fails(broken(), out, "stage blur-2, chunk 4", work_dir=scratch)
    assert names(scratch)
    if COMM.rank == 0:
        shutil.rmtree(scratch)
    COMM.Barrier()  # all ranks begin when it is gone
    calls = Calls()
    resumes(0, calls, toy.smooth(calls), out, work_dir=scratch)
    assert names(scratch) == []


def test_two_runs_share_a_folder(places):
    out, scratch = places
    for place in (out / "a", out / "b"):
        fails(broken(), place, "stage blur-2, chunk 4", work_dir=scratch)
    assert names(scratch).count("pass-1.h5") == 2
    made = toy.smooth()
    go(made, out / "a", work_dir=scratch)
    assert names(scratch).count("pass-1.h5") == 1
    check(made, out / "a")


def test_a_folder_that_cannot_be_written_is_refused_and_nothing_left(places):
    out, scratch = places
    if COMM.rank == 0:
        scratch.write_text("a file")
    COMM.Barrier()  # all ranks begin when it is there
    with pytest.raises(BadInput, match=r"^--work-dir .*scratch: cannot write there: Not a directory"):
        go(toy.smooth(), out, work_dir=scratch)
    assert not out.exists()


def test_a_folder_that_one_node_alone_sees_is_refused_and_nothing_left(places, monkeypatch):
    out, scratch = places
    if COMM.rank == COMM.size - 1:
        monkeypatch.setattr(staging_place.socket, "gethostname", lambda: "far-away")
        monkeypatch.setattr(staging_place, "_is_seen", lambda staged: False)
    with pytest.raises(BadInput, match="far-away does not see there what another node has made"):
        go(toy.smooth(), out, work_dir=scratch)
    assert names(scratch) == []
    assert not out.exists()


def test_in_memory_there_is_nothing_to_stage(places):
    out, scratch = places
    with pytest.raises(BadInput, match="--work-dir: with --in-memory nothing is staged"):
        go(toy.smooth(), out, work_dir=scratch, in_memory=True)
