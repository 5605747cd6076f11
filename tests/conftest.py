"""What all tests share: quiet ranks under MPI, skips for absent peers, and no display."""

import os
import shutil
import sys

import pytest

pytest_plugins = ["support.fixtures"]

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Let rank 0 alone write the report of a run under ``mpiexec``; the others only print failures."""
    if not config.getoption("--with-mpi"):
        return
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank > 0:
        # Before pytest's own reporter takes it for the place to write to.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        config.pluginmanager.register(FailuresOnly(MPI.COMM_WORLD.rank))


class FailuresOnly:
    """Reporting of a rank above 0: a failure at once, since the other ranks may now wait for ever."""

    def __init__(self, rank: int):
        self.rank = rank

    def pytest_runtest_logreport(self, report):
        """Print what failed, and on which rank."""
        if report.failed:
            self._print(f"{report.nodeid} failed in {report.when}\n{report.longreprtext}")

    def pytest_collectreport(self, report):
        """Print a file that could not be collected."""
        if report.failed:
            self._print(f"{report.nodeid} was not collected\n{report.longreprtext}")

    def _print(self, message):
        print(f"[rank {self.rank}] {message}", file=sys.__stderr__, flush=True)


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
