"""Shared memory that killed ranks left: whose is removed, and whose is not."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from mpiimg.engine.mpi.stale_shm import remove_stale_segments, segment_names, step_birth

STEP = {"SLURM_STEP_NUM_TASKS": "4", "PMI_FD": "11", "PMI_JOBID": "3877260.0", "SLURM_NODEID": "1"}


def test_the_name_is_the_one_that_mpich_makes():
    """As MPICH 5.0.2 was seen to name it under srun."""
    assert segment_names("3877260.0", "1")[0] == "mpich_shm_f4999f4a_1"


@pytest.mark.parametrize(
    ("name", "seconds", "environment", "stays"),
    [
        ("mpich_shm_f4999f4a_1", -1, STEP, False),
        ("mpich_vci_f4999f4a_1", -1, STEP, False),
        # That of this very step, of another node and of another job; without srun's pmi2.
        ("mpich_shm_f4999f4a_1", 1, STEP, True),
        ("mpich_shm_f4999f4a_0", -1, STEP, True),
        ("mpich_shm_f4999f4b_1", -1, STEP, True),
        ("mpich_shm_f4999f4a_1", -1, {"PMI_FD": "11", "PMI_JOBID": "3877260.0"}, True),
    ],
)
def test_only_that_of_an_earlier_run_of_this_step_is_removed(tmp_path, name, seconds, environment, stays):
    segment, born = tmp_path / name, time.time() - 100
    segment.touch()
    os.utime(segment, (born + seconds, born + seconds))
    remove_stale_segments(environment, str(tmp_path), born)
    assert segment.exists() == stays


def test_nothing_is_removed_where_no_slurmstepd_is_seen(tmp_path):
    segment = tmp_path / "mpich_shm_f4999f4a_1"
    segment.touch()
    remove_stale_segments(STEP, str(tmp_path))
    assert segment.exists()
    assert step_birth() == 0


def test_the_step_is_as_old_as_its_daemon(tmp_path):
    daemon = tmp_path / "slurmstepd"
    daemon.symlink_to("/bin/sh")
    before = time.time()
    with subprocess.Popen(
        [daemon, "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as shell:
        child = int(shell.stdout.readline())
        born = step_birth(child)
        os.kill(child, 9)
    # The kernel counts hundredths of a second.
    assert before - 0.02 <= born <= time.time()
