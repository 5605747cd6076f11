"""mpiimg-doctor on this machine: its page, its exit status, and what it leaves behind."""

from __future__ import annotations

import os

import launch
import pytest
from tools import warm


def test_two_ranks_get_a_page(tmp_path):
    """Every subject has a line; the rates are those of the two ranks; nothing is left in the folder."""
    done = launch.run_tool("mpiimg-doctor", "--dir", tmp_path, ranks=2)
    assert done.stdout.startswith("mpiimg-doctor ")
    subjects = [line.split()[1] for line in done.stdout.splitlines()[1:-1] if "->" not in line]
    assert subjects == [
        *(
            "MPI",
            "launcher",
            "messages",
            "binding",
            "CPU",
            "memory",
            "threads",
            "HDF5",
            "versions",
            "kernels",
        ),
        *("disk", "staging"),
    ]
    assert "GB/s each way between ranks" in done.stdout
    assert f"every rank sees what the others write in {tmp_path}" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="ROOT ONLY: mounting a file system takes root")
def test_a_folder_that_cannot_be_written_is_red(small_disk):
    """The exit status says so, and the line what to do."""
    folder = small_disk("16k")
    done = warm.run_tool("mpiimg-doctor", "--dir", folder, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "BAD" in line]
    assert f"staging    {folder}: rank 0 cannot write" in line
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    done = warm.run_tool("mpiimg-doctor", "--dir", tmp_path / "none", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "no such folder" in done.stderr
