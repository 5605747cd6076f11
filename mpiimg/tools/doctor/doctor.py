"""mpiimg-doctor: one page about an install on a machine, what is right and what to do about what is not.

Every rank reports on itself; plain functions draw findings from the reports of all ranks.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mpiimg.engine import plugins, rates
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.nodes import memory_per_rank
from mpiimg.engine.mpi.runtime import say
from mpiimg.errors import BadInput, Exit
from mpiimg.tools import environment
from mpiimg.tools.doctor import disk, probe
from mpiimg.tools.doctor.findings import (
    BAD,
    GOOD,
    NOTE,
    Finding,
    RankReport,
    judge,
    judge_settings,
    judge_space,
)
from mpiimg.version import __version__

COLOURS = {GOOD: "\033[32m", NOTE: "\033[33m", BAD: "\033[31m"}


#: Libraries whose versions must be the same on all nodes.
COMPARED_LIBRARIES = ("numpy", "numba", "scipy", "mpi4py", "h5py", "dipy", "nibabel", "astropy", "sep")


#: Variables by which libraries that mpiimg calls choose their number of threads.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def doctor(values: Mapping[str, Any], comm) -> int:
    """Look, print the page and return the exit status: 1 where something is wrong. Collective.

    Raises
    ------
    BadInput
        --dir is no folder.
    """
    folder = Path(values["dir"])
    on_root(comm, _check_folder, folder)
    ranks = comm.allgather(gather(comm))
    findings = [*judge(ranks), *judge_settings(ranks), *look_at_disk(folder, comm)]
    hosts = len({report.host for report in ranks})
    say(comm, f"mpiimg-doctor {__version__}: ranks {comm.size}, nodes {hosts}", sys.stdout)
    say(comm, page(findings, _is_terminal()), sys.stdout)
    if values["rates"]:
        say(comm, on_root(comm, _measure_rates), sys.stdout)
    return Exit.FAILED if any(finding.state == BAD for finding in findings) else Exit.DONE


def _measure_rates() -> str:
    """Time the kernels on this machine, store their rates for the plans to come, and say so."""
    usual = plugins.default_rates()
    measured = rates.measure_rates(plugins.samples())
    lines = [
        f"  {name:<12} {rate * 1e9:10.3g} ns per unit (else {usual[name] * 1e9:.3g})"
        for name, rate in measured.items()
    ]
    try:
        lines.append(f"kept in {rates.store_rates(measured)}")
    except OSError as error:
        lines.append(f"not kept: {error}")
    return "\n".join(["rates of the kernels, one core:", *lines])


def _is_terminal() -> bool:
    """Say whether a person sees stdout: the mpirun of Open MPI gives ranks a terminal nobody looks at."""
    return sys.stdout.isatty() and "OMPI_COMM_WORLD_SIZE" not in os.environ


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise BadInput(f"--dir {folder}: no such folder; name one on the file system that results will go to")


def gather(comm) -> RankReport:
    """Return the report of this rank on itself. Collective."""
    import h5py

    from mpiimg.kernels import cache
    from mpiimg.kernels.jit import cpu_target

    return RankReport(
        host=socket.gethostname(),
        cpu=rates.cpu_model(),
        target=cpu_target(),
        cpus=frozenset(os.sched_getaffinity(0)),
        memory=memory_per_rank(comm),
        mpi=probe.library(),
        thread_level=probe.thread_level(),
        launcher=probe.launcher(),
        transport=probe.transport(),
        hdf5=h5py.version.hdf5_version,
        parallel=h5py.get_config().mpi,
        versions=(
            ("python", platform.python_version()),
            ("mpiimg", __version__),
            *((name, version(name)) for name in COMPARED_LIBRARIES),
        ),
        threads=tuple((name, os.environ[name]) for name in THREADS if name in os.environ),
        kernels=_kernels(),
        untrusted=tuple(cache.ours().problems()),
        put_right=tuple(environment.notes),
        left_alone=tuple(
            f"{name}={os.environ[name]}" for name in environment.LEFT_ALONE if name in os.environ
        ),
        rates=probe.exchange_rates(comm),
        locking=os.environ.get("HDF5_USE_FILE_LOCKING", ""),
        kill_on_bad_exit=os.environ.get("SLURM_KILL_BAD_EXIT") == "1"
        if "SLURM_STEP_ID" in os.environ
        else None,
    )


def _kernels() -> tuple[int, str, bool]:
    """Count the compiled kernels that are found, say where, and whether others can be added."""
    from mpiimg.kernels import cache
    from mpiimg.kernels.disk import kept

    ours = cache.ours()
    counts = {folder: len(list(folder.glob(f"*{kept.ENDING}"))) for folder in ours.folders()}
    fullest = max(counts, key=counts.get, default=None)
    count = counts.get(fullest, 0)
    return count, str(fullest if count else ours.folder()), cache.can_write(ours.folder())


def look_at_disk(folder: Path, comm) -> list[Finding]:
    """Look at the file system of `folder`, from all ranks. Collective."""
    findings = on_root(comm, lambda: [judge_space(folder, disk.space(folder))])
    try:
        disk.stage_together(folder, comm)
    except OSError as error:
        findings.append(
            Finding(
                "staging",
                BAD,
                f"{folder}: {error}",
                "results must go to a file system that all nodes share and may write to",
            )
        )
    else:
        findings.append(Finding("staging", GOOD, f"every rank sees what the others write in {folder}"))
    return findings


def page(findings: Sequence[Finding], coloured: bool) -> str:
    """Return the findings as lines, in colour for a terminal, with what to do below each."""
    lines = []
    for finding in findings:
        state = f"{finding.state:<5}"
        if coloured:
            state = f"{COLOURS[finding.state]}{state}\033[0m"
        lines.append(f"  {state} {finding.subject:<10} {finding.text}")
        if finding.advice:
            lines.append(f"  {'':<5} {'':<10} -> {finding.advice}")
    wrong = sum(finding.state == BAD for finding in findings)
    notes = sum(finding.state == NOTE for finding in findings)
    counts = [f"{count} {what}" for count, what in ((wrong, "wrong"), (notes, "worth knowing")) if count]
    lines.append(", ".join(counts) or "all is well")
    return "\n".join(lines)
