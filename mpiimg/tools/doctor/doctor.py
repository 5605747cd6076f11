"""mpiimg-doctor: one page about an install on a machine, what is right and what to do about what is not.

Every rank reports on itself; plain functions draw findings from the reports of all ranks.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mpiimg.engine import plugins, rates
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.nodes import memory_per_rank
from mpiimg.engine.mpi.runtime import say
from mpiimg.errors import BadInput, Exit
from mpiimg.tools.doctor import disk, probe
from mpiimg.version import __version__

GOOD, NOTE, BAD = "ok", "note", "BAD"

COLOURS = {GOOD: "\033[32m", NOTE: "\033[33m", BAD: "\033[31m"}

#: Libraries whose versions must be the same on all nodes.
COMPARED_LIBRARIES = ("numpy", "numba", "scipy", "mpi4py", "h5py", "dipy", "nibabel", "astropy", "sep")

#: Variables by which libraries that mpiimg calls choose their number of threads.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

#: A finding says so below these: memory of a rank, free space, inodes, bytes per second between two ranks.
LITTLE_MEMORY, LITTLE_SPACE, LITTLE_INODES, SLOW = 512 << 20, 10 << 30, 10_000, 200e6


@dataclass(frozen=True)
class Finding:
    """A line of the page: a subject, its state, what was seen, and what to do about it."""

    subject: str
    state: str
    text: str
    advice: str = ""


@dataclass(frozen=True)
class RankReport:
    """The report of one rank on itself.

    Parameters
    ----------
    host, cpu, target : str
        The node, the model of its CPU, and the CPU that kernels are compiled for.
    cpus : frozenset of int
        The CPUs that this process may run on.
    memory : int
        Bytes that this rank may use.
    mpi, thread_level, launcher, transport : str
        As from :mod:`mpiimg.tools.doctor.probe`.
    hdf5 : str
        Version of HDF5.
    parallel : bool
        Whether h5py has MPI.
    versions : tuple of (str, str)
        Those of Python, mpiimg and the libraries, by name.
    threads : tuple of (str, str)
        The value of each of THREADS that is set.
    kernels : (int, str, bool)
        Compiled kernels in the cache, their folder, and whether it can be written.
    rates : (float, float, int), optional
        As from :func:`mpiimg.tools.doctor.probe.exchange_rates`.
    locking : str
        HDF5_USE_FILE_LOCKING, "" where it is not set.
    kill_on_bad_exit : bool, optional
        Whether SLURM ends a step when one of its tasks fails; None outside of SLURM.
    """

    host: str
    cpu: str
    target: str
    cpus: frozenset[int]
    memory: int
    mpi: str
    thread_level: str
    launcher: str
    transport: str
    hdf5: str
    parallel: bool
    versions: tuple[tuple[str, str], ...]
    threads: tuple[tuple[str, str], ...]
    kernels: tuple[int, str, bool]
    rates: tuple[float, float, int] | None
    locking: str = ""
    kill_on_bad_exit: bool | None = None


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
    findings = [*judge(ranks), *look_at_disk(folder, comm)]
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
    return "\n".join(["rates of the kernels, one core:", *lines, f"kept in {rates.store_rates(measured)}"])


def _is_terminal() -> bool:
    """Say whether a person sees stdout: the mpirun of Open MPI gives ranks a terminal nobody looks at."""
    return sys.stdout.isatty() and "OMPI_COMM_WORLD_SIZE" not in os.environ


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise BadInput(f"--dir {folder}: no such folder; name one on the file system that results will go to")


def gather(comm) -> RankReport:
    """Return the report of this rank on itself. Collective."""
    import h5py

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
        rates=probe.exchange_rates(comm),
        locking=os.environ.get("HDF5_USE_FILE_LOCKING", ""),
        kill_on_bad_exit=os.environ.get("SLURM_KILL_BAD_EXIT") == "1"
        if "SLURM_STEP_ID" in os.environ
        else None,
    )


def _kernels() -> tuple[int, str, bool]:
    """Count the compiled kernels that numba finds, say where, and whether others can be added."""
    from mpiimg.kernels import cache

    folder = cache.ours().folder()
    return len(list(folder.glob("*.nbi"))), str(folder), cache.can_write(folder)


# --- Findings from the reports ----------------------------------------------------------------------------


def judge(ranks: Sequence[RankReport]) -> list[Finding]:
    """Return the findings from the reports of all ranks."""
    return [judgement(ranks) for judgement in JUDGEMENTS]


def _all(values: Iterable) -> list:
    """Return the different values, sorted."""
    return sorted(set(values))


def judge_mpi(ranks: Sequence[RankReport]) -> Finding:
    """All ranks must use one MPI."""
    libraries = _all(report.mpi for report in ranks)
    if len(libraries) > 1:
        return Finding("MPI", BAD, " and ".join(libraries), "start all ranks in one environment")
    return Finding("MPI", GOOD, f"{libraries[0]}, threads {ranks[0].thread_level}")


def judge_launcher(ranks: Sequence[RankReport]) -> Finding:
    """A step of several tasks should end when one of them does."""
    text = ", ".join(_all(report.launcher for report in ranks))
    if len(ranks) > 1 and any(report.kill_on_bad_exit is False for report in ranks):
        return Finding(
            "launcher",
            NOTE,
            f"{text}; one rank that dies may leave the others waiting",
            "export SLURM_KILL_BAD_EXIT=1, or srun --kill-on-bad-exit=1",
        )
    return Finding("launcher", GOOD, text)


def judge_rates(ranks: Sequence[RankReport]) -> Finding:
    """Report how fast ranks reach each other, the slowest pair by name."""
    pairs = [(rank, report) for rank, report in enumerate(ranks) if report.rates is not None]
    if not pairs:
        return Finding("messages", NOTE, "one rank: nothing to measure", "mpiexec -n 2 mpiimg-doctor")
    latency = max(report.rates[0] for _, report in pairs)
    rank, slowest = min(pairs, key=lambda pair: pair[1].rates[1])
    other = ranks[slowest.rates[2]]
    text = (
        f"{slowest.rates[1] / 1e9:.2f} GB/s each way between ranks {rank} ({slowest.host}) and "
        f"{slowest.rates[2]} ({other.host}), the slowest pair; {1e6 * latency:.0f} us per message"
        + (f"; {slowest.transport}" if slowest.transport else "")
    )
    if slowest.rates[1] < SLOW:
        advice = "use the MPI of the site, which knows its fabric (make install MPI=system); check binding"
        return Finding("messages", NOTE, text, advice)
    return Finding("messages", GOOD, text)


def judge_binding(ranks: Sequence[RankReport]) -> Finding:
    """Every rank should have a core of its own."""
    for host in _all(report.host for report in ranks):
        cpus = [report.cpus for report in ranks if report.host == host]
        cores = frozenset().union(*cpus)
        if len(cores) < len(cpus):
            return Finding(
                "binding",
                BAD if len(cores) == 1 else NOTE,
                f"{len(cpus)} ranks share {len(cores)} cores on {host}: slower, with the same results",
                "one rank per core: fewer ranks, or --cpus-per-task=1 and --cpu-bind=cores",
            )
    min_cores = min(len(report.cpus) for report in ranks)
    return Finding("binding", GOOD, f"each rank may use {min_cores} cores or more, and none is left without")


def judge_cpus(ranks: Sequence[RankReport]) -> Finding:
    """All nodes must compile for one CPU."""
    targets = _all(report.target for report in ranks)
    if len(targets) > 1:
        return Finding(
            "CPU",
            BAD,
            f"nodes of different kinds ({', '.join(targets)}), whose results differ in the last bit",
            "ask for one kind (--constraint), or give --portable to every tool",
        )
    return Finding(
        "CPU", GOOD, f"{', '.join(_all(report.cpu for report in ranks))}, compiled for {targets[0]}"
    )


def judge_memory(ranks: Sequence[RankReport]) -> Finding:
    """A rank needs room for libraries and a chunk."""
    smallest = min(report.memory for report in ranks)
    text = f"{smallest >> 20} MB per rank"
    if smallest < LITTLE_MEMORY:
        return Finding("memory", BAD, text, "fewer ranks on a node, or more memory for the job")
    return Finding("memory", GOOD, text)


def judge_threads(ranks: Sequence[RankReport]) -> Finding:
    """Threads of libraries compete with ranks for cores."""
    wrong = _all(f"{name}={value}" for report in ranks for name, value in report.threads if value != "1")
    if wrong:
        return Finding(
            "threads", NOTE, f"{', '.join(wrong)}: ranks get in each other's way", "export OMP_NUM_THREADS=1"
        )
    if len(ranks) > 1 and not any(report.threads for report in ranks):
        return Finding("threads", NOTE, "OMP_NUM_THREADS is not set", "export OMP_NUM_THREADS=1")
    return Finding("threads", GOOD, "one per rank")


def judge_hdf5(ranks: Sequence[RankReport]) -> Finding:
    """Report HDF5; a serial one is no fault, since the staged file is written without it."""
    builds = _all((report.hdf5, report.parallel) for report in ranks)
    if len(builds) > 1:
        return Finding("HDF5", BAD, f"ranks have {builds}", "start all ranks in one environment")
    number, parallel = builds[0]
    locking = ranks[0].locking
    text = f"{number}, {'parallel (mpio)' if parallel else 'serial: ranks write at offsets'}"
    return Finding(
        "HDF5", GOOD, text + (f"; HDF5_USE_FILE_LOCKING={locking}" if locking else "; opened without locks")
    )


def judge_versions(ranks: Sequence[RankReport]) -> Finding:
    """All ranks must run the same code."""
    versions = _all(report.versions for report in ranks)
    if len(versions) > 1:
        different = _all(name for name, _ in set(versions[0]) ^ set(versions[1]))
        return Finding(
            "versions", BAD, f"nodes differ in {', '.join(different)}", "install on a shared file system"
        )
    return Finding("versions", GOOD, ", ".join(f"{name} {number}" for name, number in versions[0][:5]))


def judge_kernels(ranks: Sequence[RankReport]) -> Finding:
    """Kernels should be compiled before many ranks start."""
    count, folder, writable = min(report.kernels for report in ranks)
    if count:
        return Finding("kernels", GOOD, f"{count} compiled, in {folder}")
    if not writable:
        return Finding(
            "kernels",
            NOTE,
            f"none compiled, and {folder} cannot be written",
            "export NUMBA_CACHE_DIR=/tmp/mpiimg-kernels, a disk of the node",
        )
    return Finding(
        "kernels",
        NOTE,
        f"none compiled in {folder}: the first run does it",
        "python -m mpiimg.engine.precompile",
    )


JUDGEMENTS: tuple[Callable[[Sequence[RankReport]], Finding], ...] = (
    judge_mpi,
    judge_launcher,
    judge_rates,
    judge_binding,
    judge_cpus,
    judge_memory,
    judge_threads,
    judge_hdf5,
    judge_versions,
    judge_kernels,
)


# --- The file system ----------------------------------------------------------------------------------------


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


def judge_space(folder: Path, space: disk.Space) -> Finding:
    """A run must have room, and a file system that shows ranks each other's writes."""
    usable = min(limit for limit in (space.free, space.quota, space.largest_file) if limit is not None)
    parts = [f"{folder} on {space.kind}", f"{space.free >> 30} GB free"]
    if space.quota is not None:
        parts.append(f"{space.quota >> 30} GB of the quota left")
    if space.largest_file is not None:
        parts.append(f"files of at most {space.largest_file >> 20} MB")
    text = ", ".join(parts)
    if usable < LITTLE_SPACE:
        return Finding(
            "disk", NOTE, text, "mpiimg-neuro --plan says what a run stages; --in-memory stages nothing"
        )
    if space.inodes is not None and space.inodes < LITTLE_INODES:
        return Finding(
            "disk", NOTE, f"{text}, {space.inodes} inodes", "remove files, or use another file system"
        )
    if space.kind in disk.INCOHERENT:
        advice = "use the cluster's parallel file system for --out, or one node, or --in-memory"
        return Finding("disk", NOTE, f"{text}: what one node writes another may see late", advice)
    return Finding("disk", GOOD, text)


# --- The page -----------------------------------------------------------------------------------------------


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
