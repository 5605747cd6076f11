"""Tests marked `ranks` run inside ranks, which pytest starts itself, for each number of ranks in turn.

    from support.ranks import COMM, LAST

    pytestmark = pytest.mark.ranks

A plain ``pytest tests/neuro`` collects such a test once for each number of --ranks, has all of one number run
by a job under mpiexec (:class:`Job`), and reports what its ranks say (:class:`Starter`). Those ranks are
forked (zygote.py) and run pytest too, with --with-mpi (:class:`Rank`). A rank in which a test fails ends the
whole job at once, since the others may now wait for it for ever: what comes after it is not run.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

#: All ranks of this job; None in the process that starts the ranks, where no test uses it.
COMM: Comm | None = None

#: The last of these ranks.
LAST = -1

#: Each install takes some numbers of ranks, and both together all; an install alone takes all.
SHARES = {".venv": (1, 3), ".venv-mpi": (2, 4)}

#: Seconds for one job.
PATIENCE = float(os.environ.get("MPI_TIMEOUT", 600))


def share() -> tuple[int, ...]:
    """Return the numbers of ranks that tests run on where the command line says nothing."""
    from support import launch

    every = tuple(sorted(number for numbers in SHARES.values() for number in numbers))
    return every if launch.other_install() is None else SHARES.get(Path(sys.prefix).name, every)


def pytest_addoption(parser):
    """Add what a plain run is told, and what it tells its ranks."""
    group = parser.getgroup("ranks")
    group.addoption(
        "--ranks",
        metavar="N,N,...",
        help="numbers of ranks for tests marked so (default: 1,3 on .venv, 2,4 on .venv-mpi)",
    )
    group.addoption("--job", metavar="FOLDER", help="of a job under mpiexec: what to run, and its reports")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Be one of the ranks, or the process that starts them."""
    global COMM, LAST
    if not config.getoption("--with-mpi"):
        config.pluginmanager.register(Starter(config))
        return
    from mpi4py import MPI

    COMM, LAST = MPI.COMM_WORLD, MPI.COMM_WORLD.size - 1
    config.pluginmanager.register(Rank(COMM, config))


def is_ranks(item) -> bool:
    return item.get_closest_marker("ranks") is not None


def on(metafunc, numbers) -> None:
    """Make a test one for each number of ranks; ranks and their starter must call it by the same name."""
    if metafunc.definition.get_closest_marker("ranks"):
        metafunc.fixturenames.append("ranks")
        metafunc.parametrize("ranks", numbers, ids=[f"{n}-rank{'s' * (n > 1)}" for n in numbers])


def on_site(*parameters: tuple) -> list:
    """Return parameters of which the first is a number of ranks, for a tool's test on each install's MPI.

    As with tests inside ranks, one install is enough for each number; both run what names none.
    """
    return [pytest.param(*values, marks=pytest.mark.site(ranks=values[0])) for values in parameters]


class Rank:
    """Pytest in one rank: it runs what it is told to, reports to a file, and ends the job if a test fails."""

    def __init__(self, comm: Comm, config):
        self._comm, self._reports = comm, None
        if config.getoption("--job"):
            folder = Path(config.getoption("--job"))
            self._selected = set(json.loads((folder / "selected.json").read_text()))
            self._reports = open(folder / f"{comm.rank}.jsonl", "w")  # noqa: SIM115
        if comm.rank > 0:
            # Before pytest's own reporter takes it for the place to write to: rank 0 alone says what passed.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def pytest_generate_tests(self, metafunc):
        """Name tests by the number of ranks."""
        on(metafunc, [self._comm.size])

    def pytest_collection_modifyitems(self, items):
        """Leave out what was not asked for."""
        if self._reports:
            items[:] = [item for item in items if item.nodeid in self._selected]

    def pytest_runtest_logreport(self, report):
        """Tell the starter of it, and the other ranks if it failed."""
        if self._reports:
            words = "\n".join(
                [report.longreprtext, *(f"{title}:\n{text}" for title, text in report.sections)]
            )
            if report.skipped:
                words = report.longrepr[2].removeprefix("Skipped: ")
            told = {"test": report.nodeid, "when": report.when, "outcome": report.outcome, "words": words}
            print(json.dumps(told), file=self._reports, flush=True)
        if report.failed:
            self.end(f"{report.nodeid} failed in {report.when}\n{report.longreprtext}")

    def pytest_collectreport(self, report):
        """Go no further without a file that could not be collected."""
        if report.failed:
            self.end(f"{report.nodeid} was not collected\n{report.longreprtext}")

    def pytest_internalerror(self, excrepr):
        """Go no further without pytest itself."""
        self.end(f"pytest failed\n{excrepr}")

    def end(self, why: str) -> None:
        """Say why, and end all ranks."""
        print(f"[rank {self._comm.rank}] {why}", file=sys.__stderr__, flush=True)
        self._comm.Abort(1)


class Job:
    """Tests run by so many ranks, and what became of each.

    Parameters
    ----------
    ranks : how many
    selected : names (pytest's node ids) of the tests
    files : that hold them
    folder : to which the names are relative, and where the ranks run
    """

    def __init__(self, ranks: int, selected: list[str], files: list[Path], folder: Path):
        from support import launch, warm

        self._ranks, self._selected, self._reports = ranks, selected, defaultdict(list)
        with TemporaryDirectory(prefix="ranks-") as shared:
            (Path(shared) / "selected.json").write_text(json.dumps(selected))
            options = ("-p", "support.ranks", "-p", "no:cacheprovider", "--with-mpi", "--job", shared, "-q")
            rank = warm.zygote(sys.executable).rank("support.ranks", *options, *files)
            command = [*launch.mpiexec(ranks, sys.executable), *rank]
            asked = {"MPIIMG_TEST_RANKS": str(ranks)}
            try:
                done = launch.run(command, timeout=PATIENCE, check=False, cwd=folder, env=asked)
                self._said = f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
            except pytest.fail.Exception as late:
                done, self._said = None, str(late)
            for number in range(ranks):
                self._read(number, Path(shared) / f"{number}.jsonl")
        # Where it ended early, and no rank had the time to say in which test.
        lost = [name for name in selected if not self._has_ended(name)]
        failed = any(told["outcome"] == "failed" for reports in self._reports.values() for _, told in reports)
        broken = lost or done is None or done.returncode
        self._guilty = (lost or selected)[0] if broken and not failed else None

    def _read(self, rank: int, path: Path) -> None:
        for line in path.read_text().splitlines() if path.exists() else ():
            told = json.loads(line)
            self._reports[told["test"]].append((rank, told))

    def _has_ended(self, name: str) -> bool:
        return any(rank == 0 and told["when"] == "teardown" for rank, told in self._reports[name])

    def judge(self, name: str) -> None:
        """Fail or skip the test that runs now as the test `name` did on any rank."""
        for rank, told in self._reports[name]:
            if told["outcome"] == "failed":
                pytest.fail(f"rank {rank} of {self._ranks}, {told['when']}:\n{told['words']}", pytrace=False)
        if name == self._guilty:
            pytest.fail(f"{self._ranks} ranks: {self._said}", pytrace=False)
        if not self._has_ended(name):
            pytest.skip(f"NOT RUN: the job of {self._ranks} ranks had ended")
        for _, told in self._reports[name]:
            if told["outcome"] == "skipped":
                pytest.skip(told["words"])


class Starter:
    """Pytest outside: it has tests run by ranks, all of one number at once, and repeats what these say."""

    def __init__(self, config):
        self._folder, self._jobs = config.rootpath, {}
        told = config.getoption("--ranks")
        self._numbers = [int(word) for word in told.split(",")] if told else share()

    def pytest_generate_tests(self, metafunc):
        """Make a test of its own for each number of ranks."""
        on(metafunc, self._numbers)

    def pytest_collection_modifyitems(self, items):
        """Neither make the fixtures of a test inside ranks here nor call it; leave out what others run."""
        items[:] = [item for item in items if not self._is_for_others(item)]
        for item in filter(is_ranks, items):
            item.setup = lambda: None
            item.runtest = partial(self._run, item)

    def _is_for_others(self, item) -> bool:
        """Say whether a tool's test is for a number of ranks that the other install takes."""
        numbers = [mark.kwargs.get("ranks") for mark in item.iter_markers("site")]
        return any(number and number not in self._numbers for number in numbers)

    def _run(self, item) -> None:
        number = item.callspec.params["ranks"]
        if number not in self._jobs:
            those = [
                other
                for other in item.session.items
                if is_ranks(other) and other.callspec.params["ranks"] == number
            ]
            files = list(dict.fromkeys(other.path for other in those))
            self._jobs[number] = Job(number, [other.nodeid for other in those], files, self._folder)
        self._jobs[number].judge(item.nodeid)


def main(words: list[str]) -> int:
    """Be one rank of a job."""
    status = pytest.main(words)
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(status)
    return 0
