"""The page of a run, made by a process of its own: no rank loads what draws, or fails by it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.children import environment_of_program, last_lines, run_program, scratch_folder
from mpiimg.engine.mpi.job import pages_wanted
from mpiimg.engine.mpi.runtime import say
from mpiimg.report import NAME

log = logging.getLogger("mpiimg")

#: Seconds that a page may take; then the run ends without it.
TIMEOUT = 300.0


def report_on(comm, folder: Path, label: str = "", always: bool = True, speaks: bool = True) -> None:
    """Write the page of the runs in a folder, and say where it is. Collective.

    A page that cannot be made is a warning: the results are there.

    Parameters
    ----------
    comm : communicator
    folder : Path
        Of the records of the runs.
    label : str
        What lines begin with.
    always : bool
        Make it anew also where there is one.
    speaks : bool
        Say where it is; what is wrong is said in any case.
    """
    if not pages_wanted():
        return
    page = Path(folder) / NAME
    problem = "" if not always and page.exists() else on_root(comm, _make, Path(folder))
    if not log.isEnabledFor(logging.WARNING):
        return
    if problem:
        say(comm, f"mpiimg: {label}warning: no report: {problem}; mpiimg-report {folder} tries again")
    elif speaks:
        say(comm, f"mpiimg: {label}report: {page}")


def _make(folder: Path) -> str:
    """Let a process make the page; return what went wrong."""
    words = [sys.executable, "-m", "mpiimg.report", str(folder)]
    try:
        with scratch_folder() as scratch:
            ended = run_program(words, scratch, environment_of_program(1, {}), TIMEOUT)
            if ended.status == 0:
                return ""
            if ended.late:
                return f"it took longer than {TIMEOUT:.0f} s"
            said = last_lines(ended.stderr, 1)
            return said[0].removeprefix("mpiimg: error: ") if said else f"its process {ended.how}"
    except Exception as error:
        # Whatever it is, the results are there.
        return f"{type(error).__name__}: {error}"
