"""On a SLURM of three nodes: srun across nodes, and what is refused and warned of there."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from slurm.conftest import INSTALLS, SOON, settings
from support import launch, sabotage, warm
from support.astro_data import TRACT
from support.subjects import digests, images

pytestmark = pytest.mark.slurm

MPI = {".venv": "pmi2", ".venv-mpi": "pmix"}


def tool(install, name):
    return launch.REPOSITORY / install / "bin" / name


def forked(install, name, sabotaged=None) -> list[str]:
    """Return the command of a tool whose ranks are forked, wherever srun starts them."""
    return warm.tool_command(name, python=str(tool(install, "python")), sabotaged=sabotaged)


@pytest.mark.parametrize("install", INSTALLS)
def test_neuro_across_nodes_gives_the_bits_of_one_process(cluster, head, maps, tmp_path, install):
    """And the log of a job tells how far it is, without a terminal."""
    out = tmp_path / "out"
    seeing = sabotage.install(tmp_path / "often", "", sabotage.PROGRESS_AT_ONCE)
    srun = ("srun", "-N2", "-n3", f"--mpi={MPI[install]}", *forked(install, "mpiimg-neuro", seeing))
    done = cluster.run(*srun, *head.arguments, "--out", out, timeout=SOON, **settings(install))
    assert digests(out) == digests(maps)
    told = re.findall(r"^mpiimg: (\d+) %, .*\bdenoise \(", done.stderr, re.M)
    assert told and [int(percent) for percent in told] == sorted(map(int, told))
    assert done.stderr.count("SLURM_KILL_BAD_EXIT is not 1") == 1


@pytest.mark.parametrize("install", INSTALLS)
def test_astro_across_nodes_gives_the_bits_of_one_process(cluster, exposures, coadds, tmp_path, install):
    out = tmp_path / "out"
    srun = ("srun", "-N2", "-n2", f"--mpi={MPI[install]}", *forked(install, "mpiimg-astro"), *exposures)
    environment = {**settings(install), "SLURM_KILL_BAD_EXIT": "1"}
    done = cluster.run(*srun, "--out", out, *TRACT, timeout=SOON, **environment)
    assert digests(out) == digests(coadds)
    assert "SLURM_KILL_BAD_EXIT" not in done.stderr


def test_groups_on_two_nodes_share_a_cohort(cluster, head, maps, tmp_path):
    """Two scans for four ranks of the wheel's MPI: two groups, of which each lies on both nodes or on one."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    for subject in ("sub-1", "sub-2"):
        (raw / subject / "dwi").mkdir(parents=True)
        shutil.copy(head.dwi, raw / subject / "dwi" / f"{subject}_dwi.nii.gz")
    for path in (head.bvals, head.bvecs):
        shutil.copy(path, raw)
    (raw / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.9.0"}')
    srun = ("srun", "-N2", "-n4", "--mpi=pmi2", *forked(".venv", "mpiimg-neuro"), raw, out, "participant")
    cluster.run(*srun, "--group-size", 2, timeout=SOON, **settings(".venv"))
    for subject in ("sub-1", "sub-2"):
        assert images(out / subject / "dwi") == images(maps)
        assert json.loads((out / "logs" / subject / "run.json").read_text())["ranks"] == 2


FUNCTION = """
import os
def f(block):
    of_ranks = [name for name in os.environ if name.startswith(("PMI", "SLURM_"))]
    if block.shape[2] <= 2 and of_ranks:
        raise RuntimeError(f"tried as a rank: {of_ranks}")
    return block * 2
"""


@pytest.mark.parametrize("install", INSTALLS)
def test_a_function_is_tried_in_a_process_that_is_no_task(cluster, head, tmp_path, install):
    function, out = tmp_path / "mine.py", tmp_path / "out"
    function.write_text(FUNCTION)
    words = ("--udf", f"{function}:f", "--slices", 6, head.dwi, "--out", out)
    srun = ("srun", "-N2", "-n2", f"--mpi={MPI[install]}", *forked(install, "mpiimg-run"))
    cluster.run(*srun, *words, timeout=SOON, **settings(install))
    assert (out / "run.json").exists()


@pytest.mark.parametrize("install", INSTALLS)
def test_doctor_finds_two_nodes_in_order(cluster, tmp_path, install):
    srun = ("srun", "-N2", "-n2", f"--mpi={MPI[install]}", tool(install, "mpiimg-doctor"), "--dir", tmp_path)
    done = cluster.run(*srun, timeout=SOON, **settings(install), SLURM_KILL_BAD_EXIT="1")
    page = {line.split()[1]: line for line in done.stdout.splitlines()[1:-1] if "->" not in line}
    assert f"srun --mpi={MPI[install]}" in page["launcher"]
    assert "GB/s each way between ranks" in page["messages"]
    assert page["messages"].split()[0] == "ok"
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, sys
import numpy as np
import mpiimg as mi

numbers = mi.from_array(np.arange(24.0).reshape(2, 3, 4), "x y z")
print(numbers.sum().compute())
if "leave" in sys.argv and os.environ["SLURM_PROCID"] == "1": sys.exit()
mi.write({"twice.npy": numbers * 2}, sys.argv[1])
"""


@pytest.mark.parametrize("install", INSTALLS)
def test_a_script_of_python_runs_across_nodes(cluster, tmp_path, install):
    """And ends on all of them where a rank leaves it early."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    srun = ("srun", "-N2", "-n2", f"--chdir={tmp_path}", f"--mpi={MPI[install]}")
    srun = (*srun, tool(install, "python"), script, tmp_path / "out")
    environment = {**settings(install), "SLURM_KILL_BAD_EXIT": "1", "PYTHONPATH": str(launch.REPOSITORY)}
    done = cluster.run(*srun, timeout=SOON, **environment)
    assert sorted(done.stdout) == sorted("276.0\n" * 2)
    assert (tmp_path / "out" / "twice.npy").exists()
    done = cluster.run(*srun, "leave", check=False, timeout=SOON, **environment)
    assert done.returncode != 0
    said = "rank 1 called sys.exit() at script.py:8 where rank 0 called mi.write at script.py:9"
    assert done.stderr.count(said) == 1, done.stderr


def test_ranks_that_do_not_find_each_other_are_refused(cluster, head, tmp_path):
    """With an --mpi that says nothing to the MPI, each rank is a world of its own."""
    srun = ("srun", "-N2", "-n2", "--mpi=none", tool(".venv", "mpiimg-neuro"))
    words = (*head.arguments, "--out", tmp_path / "out")
    done = cluster.run(*srun, *words, check=False, timeout=SOON, **settings(".venv"))
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mpiimg: ")]
    assert "srun started 2 tasks" in line
    assert "--mpi=pmi2" in line
    assert not (tmp_path / "out").exists()


SIZE = (
    "import sys; from mpiimg.engine.mpi import runtime; "
    "c = runtime.world(); runtime.say(c, c.size, sys.stdout)"
)

RUNS = """#!/bin/bash
for venv in $installs; do
    cd "$home/$venv/bin"
    mpi=pmi2
    [ $venv = .venv ] || mpi=pmix
    for launcher in env "./mpiexec -n 2" "srun -N1 -n1 --mpi=$mpi"; do
        $launcher ./python -c "$program" 2>>"$errors"
    done
done
"""


def test_runs_inside_a_batch_job_are_not_refused(cluster, tmp_path):
    """A serial run, the MPI's own launcher on two nodes, and a step of one rank."""
    script = tmp_path / "runs.sh"
    script.write_text(RUNS)
    batch = ("sbatch", "--wait", "-N2", "-n2", "--output", tmp_path / "log", script)
    environment = {"installs": " ".join(INSTALLS), "home": str(launch.REPOSITORY), "program": SIZE}
    environment["errors"] = str(tmp_path / "errors")
    cluster.run(*batch, timeout=SOON, **settings(".venv"), **environment)
    assert (tmp_path / "log").read_text().split() == ["1", "2", "1"] * len(INSTALLS)
