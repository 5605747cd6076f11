"""Files are whole under their names, or not there: before, meanwhile and after a failure."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from mpiimg.engine import atomic


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as part:
        part.write_text("half of the new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_others_find_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with atomic.replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_file_is_synced_before_it_takes_its_name_and_its_folder_after(tmp_path, monkeypatch):
    path, steps = tmp_path / "run.json", []
    replace = Path.replace
    monkeypatch.setattr(atomic, "sync", lambda synced: steps.append(Path(synced).name))
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (steps.append("renamed"), replace(self, target))
    )
    atomic.write_file(path, b"new")
    part, *after = steps
    assert part.startswith(".run.json.part") and after == ["renamed", tmp_path.name]


def test_no_two_processes_write_under_one_name():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        names = pool.map(atomic.unique, ["run.json"] * 2, chunksize=1)
    assert atomic.unique("run.json") not in names
