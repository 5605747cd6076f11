"""What all tests share: where they run, skips for absent peers, and no display."""

import os
import shutil

import pytest

from mpiimg.engine.mpi import scripts

pytest_plugins = ["support.fixtures", "support.ranks"]

os.environ.setdefault("MPLBACKEND", "Agg")
# Drawing takes longer than the runs of most tests; those of the pages ask for them.
os.environ.setdefault("MPIIMG_REPORT", "off")
# Also of the peers that tests compare with: blocks share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The status of a rank that tests run in is that of its tests, and not of the runs that they make.
scripts.not_a_script()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Keep the thirty lines that pytest-mpi adds to each run out of the report."""
    for plugin in session.config.pluginmanager.get_plugins():
        if type(plugin).__name__ == "MPIPlugin":
            plugin._is_testing_mpi = False


def pytest_runtest_setup(item):
    """Skip a test that compares with MRtrix3 where MRtrix3 is not installed."""
    if item.get_closest_marker("needs_mrtrix") and shutil.which("dwi2tensor") is None:
        pytest.skip("MRtrix3 (dwi2tensor, tensor2metric) is not installed")
