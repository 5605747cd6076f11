"""What an install has beside the package is found and copied: batch scripts, documents, examples."""

from __future__ import annotations

import filecmp

import pytest
from support import launch

from mpiimg.tools import cli


@pytest.mark.parametrize("name", ["slurm", "docs"])
def test_a_checkout_says_where_its_own_files_are(name, capsys):
    assert cli.main(f"mpiimg-{name}", []) == 0
    assert capsys.readouterr().out == f"{launch.REPOSITORY / name}\n"


def test_files_are_copied_once(tmp_path, capsys):
    assert cli.main("mpiimg-docs", ["--copy", str(tmp_path)]) == 0
    assert not filecmp.dircmp(launch.REPOSITORY / "docs", tmp_path / "docs").diff_files
    assert (tmp_path / "docs/examples/programs/kmeans.py").is_file()
    (tmp_path / "docs/install.md").write_text("mine")
    assert cli.main("mpiimg-docs", ["--copy", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "docs/install.md").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main("mpiimg-slurm", ["--copy", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
