"""The pages on tables and on programs of others: their code runs, and comes to what it says."""

import re

import numpy as np
import pandas as pd
import pytest
from support import launch

import mpiimg as mi

#: What the pages take for given.
FRAMES = [{"night": n, "x": np.arange(4.0) * 30, "flux": np.arange(4.0) * 200 + n} for n in range(3)]
VALUES = np.arange(120, dtype="f4").reshape(4, 3, 2, 5)
MEAN = "import sys, numpy; print(numpy.load(sys.argv[1]).mean())"


def names_of(page, given, folder):
    """Run all code of a page, and return the names that it leaves."""
    text = (launch.REPOSITORY / "docs" / page).read_text()
    names = dict(given)
    for code in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(compile(code, page, "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mi.session(tmp_path / "session"):
        yield tmp_path


def test_the_page_on_tables(folder):
    names = names_of("tables.md", {"frames": FRAMES}, folder)
    assert names["table"]["flux"].tolist() == [300, 301, 302]
    assert names["table"]["brightest"].tolist() == [600, 601, 602]
    assert str(names["table"]["flux"].unit) == "ct"
    assert names["zero_points"][2] == 302
    assert len(names["bright"].compute()) == 0
    assert names["back"].compute()["flux"].tolist() == [600, 601, 602]
    assert names["few"].compute().colnames == ["night", "x", "ratio"]
    by_night = pd.read_parquet(folder / "results" / "by-night")
    assert by_night["night"].astype(int).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_the_page_on_programs(folder):
    (folder / "a.txt").write_text("1\n2\n")
    names = names_of("commands.md", {"values": VALUES, "MEAN": MEAN}, folder)
    assert np.array_equal(names["copies"].compute(), VALUES)
    assert np.load(folder / "results" / "means.npy").tolist() == VALUES.mean((0, 1, 2)).tolist()
    assert names["lines"][0].split()[0] == "2"
    assert np.array_equal(names["same"][0], VALUES[..., 0])
