"""What killed ranks left on a node: whose is removed, and whose is not."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import launch

from mpiimg.engine.mpi import stale_shm
from mpiimg.engine.mpi.processes import mapped_files
from mpiimg.engine.mpi.stale_shm import (
    remove_left_behind,
    remove_stale_segments,
    segment_names,
    step_birth,
)

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


as_root = pytest.mark.skipif(os.getuid() != 0, reason="ROOT ONLY: giving a file away takes root")


def old(path: Path, seconds: float = 1e4) -> Path:
    when = time.time() - seconds
    os.utime(path, (when, when))
    return path


def segment(folder: Path, name: str = "mpich_shm_1f_0", seconds: float = 1e4) -> Path:
    (folder / name).write_bytes(bytes(mmap.PAGESIZE))
    return old(folder / name, seconds)


def remove(folder: Path, **environment) -> None:
    remove_left_behind(environment, str(folder), str(folder))


NAMES = (
    "mpich_shm_342b_0",
    "mpich_vci_1f_1",
    "ucx_shm_posix_6d",
    "vader_segment.n.0.58.2",
    "sm_segment.n.0.5.1",
)


def test_segments_that_nobody_has_open_are_removed_and_nothing_else(tmp_path):
    left, others = [segment(tmp_path, name) for name in NAMES], [segment(tmp_path, "sem.mine")]
    others += [segment(tmp_path, "mpich_shm_young_0", seconds=1)]
    (tmp_path / "mpich_shm_folder_0").mkdir()
    os.mkfifo(tmp_path / "mpich_shm_pipe_0")
    (tmp_path / "mpich_shm_link_0").symlink_to(others[0])
    remove(tmp_path)
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in others)
    assert len(list(tmp_path.iterdir())) == 5


@as_root
def test_those_of_other_users_stay(tmp_path):
    theirs = segment(tmp_path)
    os.chown(theirs, 54321, -1)
    remove(tmp_path)
    assert theirs.exists()


#: Has a file open, or only mapped, until it is killed.
HOLDER = """
import ctypes, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "mapped":
    library = ctypes.CDLL(None)
    library.mmap.restype = ctypes.c_void_p
    assert library.mmap(None, 4096, 3, 1, file, ctypes.c_long(0)) != ctypes.c_void_p(-1).value
    os.close(file)
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_what_a_process_has_open_or_mapped_stays_until_it_is_dead(tmp_path, how):
    held = segment(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(held), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        remove(tmp_path)
        assert held.exists()
        holder.kill()
    remove(tmp_path)
    assert not held.exists()


def test_a_lease_ends_nobody_who_opens_the_file(tmp_path):
    """By default the kernel sends SIGIO to the one that holds it, of which a process dies."""
    held = segment(tmp_path)
    opening = (
        f"import os; os.kill({os.getpid()}, 0); os.close(os.open({str(held)!r}, os.O_RDWR)); print('opened')"
    )
    with stale_shm._opened(held, os.O_RDWR) as descriptor:
        assert stale_shm._has_no_other_user(descriptor)
        other = subprocess.Popen([sys.executable, "-c", opening], stdout=subprocess.PIPE, text=True)
        time.sleep(0.3)
    assert other.communicate(timeout=60)[0] == "opened\n"


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"MPI_LOCALRANKID": "0", "PMI_RANK": "4"}, True),
        ({"MPI_LOCALRANKID": "1", "SLURM_LOCALID": "0"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, False),
        ({"SLURM_LOCALID": "0", "PMI_RANK": "7"}, True),
        ({"PMI_RANK": "1"}, False),
    ],
)
def test_one_rank_of_a_node_removes(tmp_path, environment, first):
    """Two that look at once would each take the other for a user."""
    left = segment(tmp_path)
    remove(tmp_path, **environment)
    assert left.exists() != first


@pytest.fixture
def sessions(tmp_path) -> Path:
    folder = tmp_path / f"ompi.{socket.gethostname().partition('.')[0]}.{os.getuid()}"
    folder.mkdir(mode=0o700)
    return folder


def session(folder: Path, process: int, seconds: float = 1e4) -> Path:
    made = folder / f"pid.{process}"
    (made / "store").mkdir(parents=True)
    segment(made / "store", "data")
    os.mkfifo(made / "fifo")
    return old(made, seconds)


def ended() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_sessions_of_dead_launchers_are_removed(tmp_path, sessions):
    dead, young = session(sessions, ended()), session(sessions, 4194305, seconds=1)
    alive, held = session(sessions, os.getpid()), session(sessions, 4194306)
    with open(held / "store" / "data", "r+b"):
        remove(tmp_path)
    assert not dead.exists()
    assert all((path / "store" / "data").exists() for path in (young, alive, held))


def test_a_link_in_place_of_the_sessions_leads_nowhere(tmp_path, sessions):
    dead = session(sessions, ended())
    sessions.rename(tmp_path / "elsewhere")
    sessions.symlink_to(tmp_path / "elsewhere")
    remove(tmp_path)
    assert (tmp_path / "elsewhere" / dead.name).exists()


@as_root
@pytest.mark.parametrize("thing", ["file", "pipe", "link"])
def test_a_segment_that_somebody_else_put_there_is_refused(tmp_path, capsys, thing):
    """MPICH would take it for its own: the name follows from the number of the job."""
    path = tmp_path / segment_names(STEP["PMI_JOBID"], "1")[0]
    if thing == "link":
        path.symlink_to(segment(tmp_path, "ours"))
    else:
        os.mkfifo(path) if thing == "pipe" else segment(tmp_path, path.name)
        os.chown(path, 54321, -1)
    with pytest.raises(SystemExit) as end:
        remove_stale_segments(STEP, str(tmp_path), time.time())
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"mpiimg: error: {path} on ")
    assert os.path.lexists(path)


#: A rank that says who it is, and which segments it has.
RANK = """
import os, time
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
os.write(1, b"%d\\n" % os.getpid())
time.sleep(60)
"""


def started() -> tuple[subprocess.Popen, set[str]]:
    """Start two ranks; return their launcher and the segments that they have mapped."""
    command = [*launch.mpiexec(2), sys.executable, "-c", RANK]
    launcher = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=launch.environment(),
        start_new_session=True,
    )
    ranks = [int(launcher.stdout.readline()) for _ in range(2)]
    paths = set().union(*(mapped_files(f"/proc/{rank}/maps") for rank in ranks))
    return launcher, {path for path in paths if path.startswith("/dev/shm/") and os.path.exists(path)}


@pytest.mark.tool
@pytest.mark.site
def test_what_ranks_that_were_killed_left_is_removed_and_what_others_have_is_not(monkeypatch):
    """All at once, with their launcher, as by the end of a job's cgroup."""
    monkeypatch.setattr(stale_shm, "SEGMENT_AGE", 0.0)
    (dead, left), (alive, held) = started(), started()
    try:
        assert left and held
        launch.kill_session(dead)
        assert all(os.path.exists(path) for path in left)
        # What was killed may still hold its segments for a moment, on a busy machine.
        deadline = time.monotonic() + 20
        while any(map(os.path.exists, left)) and time.monotonic() < deadline:
            remove_left_behind({})
            time.sleep(0.05)
        assert [path for path in left if os.path.exists(path)] == []
        assert all(os.path.exists(path) for path in held)
    finally:
        launch.kill_session(alive)
        remove_left_behind({})
