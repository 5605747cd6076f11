"""What mpiimg-doctor makes of facts: each finding, good and bad, and the page that a person reads."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
from pathlib import Path

import pytest

from mpiimg.tools.doctor import disk, doctor, findings, probe
from mpiimg.tools.doctor.findings import BAD, GOOD, NOTE, Finding, RankReport

REPORT = RankReport(
    host="node1",
    cpu="A CPU",
    target="znver4",
    cpus=frozenset({0, 1}),
    memory=4 << 30,
    mpi="MPICH 5.0",
    thread_level="multiple",
    launcher="srun --mpi=pmi2",
    transport="",
    hdf5="1.14.6",
    parallel=True,
    versions=(("python", "3.11.7"), ("mpiimg", "1.0")),
    threads=(("OMP_NUM_THREADS", "1"),),
    kernels=(93, "/cache", True),
    rates=(2e-6, 5e9, 1),
    kill_on_bad_exit=True,
)


def two(**changes):
    """Two ranks that exchange with each other, the second changed."""
    return [REPORT, dataclasses.replace(REPORT, **{"rates": (2e-6, 5e9, 0), **changes})]


def test_all_is_well_on_a_good_machine():
    page = findings.judge(two())
    assert [finding.state for finding in page] == [GOOD] * len(findings.JUDGEMENTS)
    assert doctor.page(page, False).endswith("all is well")


@pytest.mark.parametrize(
    ("judgement", "changes", "state", "text", "advice"),
    [
        (findings.judge_mpi, {"mpi": "Open MPI 4.1"}, BAD, "MPICH 5.0 and Open MPI 4.1", "one environment"),
        (findings.judge_launcher, {"kill_on_bad_exit": False}, NOTE, "waiting", "SLURM_KILL_BAD_EXIT=1"),
        (
            findings.judge_rates,
            {"host": "node2", "rates": (3e-5, 1e8, 0), "transport": "FI_PROVIDER=tcp"},
            NOTE,
            r"0\.10 GB/s .* ranks 1 \(node2\) and 0 \(node1\), .*; 30 us per message; FI_PROVIDER=tcp",
            "MPI=system",
        ),
        (findings.judge_cpus, {"target": "skylake"}, BAD, r"\(skylake, znver4\)", "--portable"),
        (findings.judge_memory, {"memory": 100 << 20}, BAD, "100 MB per rank", "more memory"),
        (findings.judge_threads, {"threads": (("OMP_NUM_THREADS", "8"),)}, NOTE, "OMP_NUM_THREADS=8", "=1"),
        (findings.judge_hdf5, {"parallel": False}, BAD, "1.14.6", "one environment"),
        (
            findings.judge_versions,
            {"versions": (("python", "3.12.1"), ("mpiimg", "1.0"))},
            BAD,
            "python",
            "install",
        ),
        (
            findings.judge_kernels,
            {"kernels": (0, "/cache", True)},
            NOTE,
            "none compiled",
            "engine.precompile",
        ),
        (
            findings.judge_kernels,
            {"kernels": (0, "/cache", False)},
            NOTE,
            "cannot be written",
            "NUMBA_CACHE_DIR",
        ),
        (
            findings.judge_kernels,
            {"untrusted": ("/tmp/kernels belongs to user 7",)},
            BAD,
            "/tmp/kernels belongs to user 7",
            "remove that folder",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(judgement, changes, state, text, advice):
    finding = judgement(two(**changes))
    assert finding.state == state
    assert re.search(text, finding.text)
    assert advice in finding.advice


def test_settings_have_a_line_where_one_was_put_right():
    assert findings.judge_settings(two()) == []
    (finding,) = findings.judge_settings(two(put_right=("NUMBA_OPT=0 is not taken", "HDF5_DRIVER=core")))
    assert (finding.state, finding.text) == (NOTE, "HDF5_DRIVER=core; NUMBA_OPT=0 is not taken")
    assert "OPENBLAS" in findings.judge_versions(two(left_alone=("OPENBLAS_CORETYPE=x",))).text


def test_ranks_without_a_core_of_their_own():
    """Two ranks on one core of a node are an error of binding; three on two only slow."""
    alone = dataclasses.replace(REPORT, cpus=frozenset({3}))
    assert findings.judge_binding([alone, alone]).state == BAD
    assert findings.judge_binding([REPORT, REPORT, REPORT]).state == NOTE
    assert "3 ranks share 2 cores on node1" in findings.judge_binding([REPORT, REPORT, REPORT]).text
    elsewhere = dataclasses.replace(alone, host="node2")
    assert findings.judge_binding([alone, elsewhere]).state == GOOD


def test_one_rank_has_nobody_to_talk_to_and_may_have_threads():
    alone = [dataclasses.replace(REPORT, rates=None, threads=(), kill_on_bad_exit=None)]
    assert findings.judge_rates(alone).state == NOTE
    assert findings.judge_threads(alone).state == GOOD
    assert findings.judge_threads([*alone, *alone]) == Finding(
        "threads", NOTE, "OMP_NUM_THREADS is not set", "export OMP_NUM_THREADS=1"
    )


def test_the_page_has_colours_for_a_terminal_only():
    lines = [Finding("disk", BAD, "full", "empty it"), Finding("CPU", NOTE, "old")]
    plain = doctor.page(lines, False)
    assert plain.splitlines() == [
        "  BAD   disk       full",
        "                   -> empty it",
        "  note  CPU        old",
        "1 wrong, 1 worth knowing",
    ]
    assert "\033[31mBAD  \033[0m" in doctor.page(lines, True)


@pytest.mark.parametrize(
    ("changes", "state", "text"),
    [
        ({}, GOOD, "50 GB free"),
        ({"free": 1 << 30}, NOTE, "1 GB free"),
        ({"quota": 2 << 30}, NOTE, "2 GB of the quota left"),
        ({"largest_file": 1 << 20}, NOTE, "files of at most 1 MB"),
        ({"inodes": 10}, NOTE, "10 inodes"),
        ({"kind": "nfs4"}, NOTE, "may see late"),
    ],
)
def test_what_a_file_system_can_take(changes, state, text):
    space = dataclasses.replace(disk.Space("lustre", 50 << 30, 10**6, None, None), **changes)
    finding = findings.judge_space(Path("/out"), space)
    assert finding.state == state
    assert text in finding.text


# The facts themselves.


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "none: one rank"),
        ({"PMI_RANK": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "srun --mpi=pmi2"),
        ({"PMIX_NAMESPACE": "slurm", "SLURM_STEP_ID": "0"}, "srun --mpi=pmix"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prte"}, "mpirun of Open MPI"),
        ({"PMI_RANK": "1"}, "mpiexec of MPICH (hydra)"),
        # mpiexec inside a step of SLURM: the variables of both are there.
        ({"PMI_RANK": "1", "PMI_PORT": "x:1", "SLURM_STEP_ID": "0"}, "mpiexec of MPICH (hydra)"),
    ],
)
def test_the_launcher_is_known_by_what_it_leaves_in_the_environment(environment, launcher):
    assert probe.launcher(environment) == launcher


@pytest.mark.parametrize("size", range(1, 9))
def test_partners_are_mutual(size):
    pairs = {rank: probe.partner(rank, size) for rank in range(size)}
    assert all(pairs[other] == rank for rank, other in pairs.items() if other is not None)
    assert sum(other is None for other in pairs.values()) == size % 2


#: As `quota -w` and `lfs quota -q` print them.
QUOTA = """\
Disk quotas for user ada (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/home 900000* 1000000 1100000           12000       0       0
"""
LFS = "/lustre/scratch  1048576 0 3145728 - 1000 0 0 -\n"


@pytest.mark.parametrize(
    ("report", "left"), [("", None), (QUOTA, 100_000 << 10), (LFS, 2 << 30), ("/x 5 0 0 - 1 0 0 -\n", None)]
)
def test_a_quota_is_read_from_what_the_system_prints(report, left):
    assert disk.quota_left(report) == left


def test_the_file_system_of_a_folder(tmp_path):
    mounts = tmp_path / "mounts"
    inner = tmp_path / "with space"
    inner.mkdir()
    mounts.write_text(f"a / ext4 rw 0 0\nb {str(inner).replace(' ', chr(92) + '040')} lustre rw 0 0\n")
    assert disk.file_system(inner / "x", str(mounts)) == "lustre"
    assert disk.file_system(tmp_path, str(mounts)) == "ext4"


def test_space_is_what_the_system_counts(tmp_path):
    status = os.statvfs(tmp_path)
    found = disk.space(tmp_path)
    assert abs(found.free - status.f_bavail * status.f_frsize) < 1 << 30
    assert found.free == pytest.approx(disk.free_bytes(tmp_path), abs=1 << 30)
    assert found.largest_file is None or resource.getrlimit(resource.RLIMIT_FSIZE)[0] == found.largest_file
