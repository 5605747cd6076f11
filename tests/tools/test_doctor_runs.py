"""mpiimg-doctor on this machine: its page, its exit status, and what it leaves behind."""

from __future__ import annotations

import os
import re

import pytest
from support import launch, warm

from mpiimg.engine import plugins, rates

pytestmark = pytest.mark.tool


@pytest.mark.site
def test_two_ranks_get_a_page(tmp_path):
    """Every subject has a line; the rates are those of the two ranks; nothing is left in the folder."""
    done = warm.run_tool("mpiimg-doctor", "--dir", tmp_path, ranks=2)
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


def test_rates_are_measured_and_kept_for_plans(tmp_path, monkeypatch):
    """Every rate that is printed is the one that plans read afterwards."""
    done = launch.run_tool(
        "mpiimg-doctor", "--rates", "--dir", tmp_path, env={"XDG_CACHE_HOME": str(tmp_path)}
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    printed = dict(re.findall(r"^  ([\w-]+) +([\d.e+-]+) ns per unit", done.stdout, re.M))
    assert set(printed) == set(plugins.samples())
    kept = rates.load_rates()
    assert {name: float(f"{kept[name] * 1e9:.3g}") for name in printed} == {
        name: float(value) for name, value in printed.items()
    }
    assert f"kept in {tmp_path / 'mpiimg' / 'rates.json'}" in done.stdout


@pytest.mark.site
def test_results_have_the_mode_that_the_user_asked_for(simulated, tmp_path):
    """With a umask of 002 a group can write to every file and folder, and with 077 nobody else reads one."""
    for mask, folder, file in (("002", 0o775, 0o664), ("077", 0o700, 0o600)):
        out = tmp_path / mask
        words = warm.tool_command("mpiimg-mask", *simulated.arguments, "--out", out, "--keep-work")
        launch.run(["bash", "-c", f'umask {mask}; exec "$@"', "bash", *words])
        paths = [out, *out.rglob("*")]
        assert len(paths) > 6
        modes = {path: path.stat().st_mode & 0o777 for path in paths}
        assert modes == {path: folder if path.is_dir() else file for path in paths}


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
