"""The MPI of this install works on the ranks it was asked for, and is the only one in the process."""

import importlib.util
import os
import pathlib

import h5py
import pytest
from support.ranks import COMM

pytestmark = pytest.mark.ranks

CHECK = pathlib.Path(__file__).resolve().parents[2] / "install" / "check_mpi.py"


def test_ranks_are_one_job():
    """All ranks meet in one communicator: mpiexec and mpi4py are of the same MPI."""
    assert COMM.allreduce(COMM.rank) == COMM.size * (COMM.size - 1) // 2
    assert COMM.allgather(COMM.rank) == list(range(COMM.size))


def test_ranks_are_as_many_as_asked_for():
    """A launcher of another MPI would start singletons without a word."""
    asked = os.environ.get("MPIIMG_TEST_RANKS")
    if asked is None:
        pytest.skip("only who started the ranks knows how many: pytest without mpiexec")
    assert COMM.size == int(asked)


def test_one_mpi_library_with_h5py_loaded():
    """Two MPI libraries in one process end in "Attempting to use an MPI routine before initializing"."""
    spec = importlib.util.spec_from_file_location("check_mpi", CHECK)
    check_mpi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_mpi)
    assert h5py.h5.get_libversion() > (1, 10)
    assert len(check_mpi.mpi_libraries()) == 1


@pytest.mark.skipif(not h5py.get_config().mpi, reason="serial h5py")
def test_parallel_hdf5_writes_from_all_ranks(tmp_path):
    """Every rank writes its own element of one data set through the mpio driver."""
    path = COMM.bcast(str(tmp_path / "ranks.h5"))
    with h5py.File(path, "w", driver="mpio", comm=COMM) as file:
        file.create_dataset("rank", (COMM.size,), dtype="i4")[COMM.rank] = COMM.rank
    with h5py.File(path, "r", driver="mpio", comm=COMM) as file:
        assert file["rank"][:].tolist() == list(range(COMM.size))
