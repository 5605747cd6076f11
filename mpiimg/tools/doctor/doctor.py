"""mpiimg-doctor: one page about an install on a machine, what is right and what to do about what is not.

Every rank gathers facts about itself; from those of all ranks plain functions
draw findings.
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

#: Below these a finding says so: memory of a rank, free space, inodes, and bytes a second between two ranks.
LITTLE_MEMORY, LITTLE_SPACE, LITTLE_INODES, SLOW = 512 << 20, 10 << 30, 10_000, 200e6


@dataclass(frozen=True)
class Finding:
    """A line of the page: what was looked at, how it is, and what to do about it."""

    subject: str
    state: str
    text: str
    advice: str = ""


@dataclass(frozen=True)
class RankReport:
    """What one rank knows of itself.

    Parameters
    ----------
    host, cpu, target : node, model of its CPU, and what kernels are compiled for
    cpus : that this process may run on
    memory : bytes that this rank may use
    mpi, thread_level, launcher, transport : see comm.probe
    hdf5, parallel : version, and whether h5py has MPI
    versions : of Python, mpiimg and the libraries
    threads : value of each of THREADS that is set
    kernels : compiled kernels in the cache, their folder, and whether it can be written
    rates : see comm.probe.exchange_rates
    locking : HDF5_USE_FILE_LOCKING, "" where it is not set
    kill_on_bad_exit : SLURM ends a step when one of its tasks fails; None outside of SLURM
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
    BadInput : --dir is no folder
    """
    folder = Path(values["dir"])
    on_root(comm, _check_folder, folder)
    ranks = comm.allgather(gather(comm))
    findings = [*judge(ranks), *look_at_disk(folder, comm)]
    hosts = len({facts.host for facts in ranks})
    say(comm, f"mpiimg-doctor {__version__}: ranks {comm.size}, nodes {hosts}", sys.stdout)
    say(comm, page(findings, _is_terminal()), sys.stdout)
    if values["rates"]:
        say(comm, on_root(comm, _measure_rates), sys.stdout)
    return Exit.FAILED if any(finding.state == BAD for finding in findings) else Exit.DONE


def _measure_rates() -> str:
    """Measure the kernels on this machine, keep what was found for the plans to come, and say so."""
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
    """Return what this rank knows of itself. Collective."""
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


# --- What the facts mean ------------------------------------------------------------------------------------


def judge(ranks: Sequence[RankReport]) -> list[Finding]:
    """Return what the facts of all ranks say."""
    return [judgement(ranks) for judgement in JUDGEMENTS]


def _all(values: Iterable) -> list:
    """Return the different values, sorted."""
    return sorted(set(values))


def judge_mpi(ranks: Sequence[RankReport]) -> Finding:
    """All ranks must use one MPI."""
    found = _all(facts.mpi for facts in ranks)
    if len(found) > 1:
        return Finding("MPI", BAD, " and ".join(found), "start all ranks in one environment")
    return Finding("MPI", GOOD, f"{found[0]}, threads {ranks[0].thread_level}")


def judge_launcher(ranks: Sequence[RankReport]) -> Finding:
    """A step of several tasks should end when one of them does."""
    text = ", ".join(_all(facts.launcher for facts in ranks))
    if len(ranks) > 1 and any(facts.kill_on_bad_exit is False for facts in ranks):
        return Finding(
            "launcher",
            NOTE,
            f"{text}; one rank that dies may leave the others waiting",
            "export SLURM_KILL_BAD_EXIT=1, or srun --kill-on-bad-exit=1",
        )
    return Finding("launcher", GOOD, text)


def judge_rates(ranks: Sequence[RankReport]) -> Finding:
    """Report how fast ranks reach each other, the slowest pair by name."""
    pairs = [(rank, facts) for rank, facts in enumerate(ranks) if facts.rates is not None]
    if not pairs:
        return Finding("messages", NOTE, "one rank: nothing to measure", "mpiexec -n 2 mpiimg-doctor")
    latency = max(facts.rates[0] for _, facts in pairs)
    rank, slowest = min(pairs, key=lambda pair: pair[1].rates[1])
    other = ranks[slowest.rates[2]]
    text = (
        f"{slowest.rates[1] / 1e9:.2f} GB/s each way between ranks {rank} ({slowest.host}) and "
        f"{slowest.rates[2]} ({other.host}), the slowest pair; {1e6 * latency:.0f} us a message"
        + (f"; {slowest.transport}" if slowest.transport else "")
    )
    if slowest.rates[1] < SLOW:
        advice = "use the MPI of the site, which knows its fabric (make install MPI=system); check binding"
        return Finding("messages", NOTE, text, advice)
    return Finding("messages", GOOD, text)


def judge_binding(ranks: Sequence[RankReport]) -> Finding:
    """Every rank should have a core of its own."""
    for host in _all(facts.host for facts in ranks):
        here = [facts.cpus for facts in ranks if facts.host == host]
        cores = frozenset().union(*here)
        if len(cores) < len(here):
            return Finding(
                "binding",
                BAD if len(cores) == 1 else NOTE,
                f"{len(here)} ranks share {len(cores)} cores on {host}: slower, with the same results",
                "one rank a core: fewer ranks, or --cpus-per-task=1 and --cpu-bind=cores",
            )
    fewest = min(len(facts.cpus) for facts in ranks)
    return Finding("binding", GOOD, f"each rank may use {fewest} cores or more, and none is left without")


def judge_cpus(ranks: Sequence[RankReport]) -> Finding:
    """All nodes must compile for one CPU."""
    targets = _all(facts.target for facts in ranks)
    if len(targets) > 1:
        return Finding(
            "CPU",
            BAD,
            f"nodes of different kinds ({', '.join(targets)}), whose results differ in the last bit",
            "ask for one kind (--constraint), or give --portable to every tool",
        )
    return Finding("CPU", GOOD, f"{', '.join(_all(facts.cpu for facts in ranks))}, compiled for {targets[0]}")


def judge_memory(ranks: Sequence[RankReport]) -> Finding:
    """A rank needs room for libraries and a chunk."""
    least = min(facts.memory for facts in ranks)
    text = f"{least >> 20} MB a rank"
    if least < LITTLE_MEMORY:
        return Finding("memory", BAD, text, "fewer ranks on a node, or more memory for the job")
    return Finding("memory", GOOD, text)


def judge_threads(ranks: Sequence[RankReport]) -> Finding:
    """Threads of libraries compete with ranks for cores."""
    wrong = _all(f"{name}={value}" for facts in ranks for name, value in facts.threads if value != "1")
    if wrong:
        return Finding(
            "threads", NOTE, f"{', '.join(wrong)}: ranks get in each other's way", "export OMP_NUM_THREADS=1"
        )
    if len(ranks) > 1 and not any(facts.threads for facts in ranks):
        return Finding("threads", NOTE, "OMP_NUM_THREADS is not set", "export OMP_NUM_THREADS=1")
    return Finding("threads", GOOD, "one a rank")


def judge_hdf5(ranks: Sequence[RankReport]) -> Finding:
    """Report HDF5; a serial one is no fault, since the staged file is written without it."""
    found = _all((facts.hdf5, facts.parallel) for facts in ranks)
    if len(found) > 1:
        return Finding("HDF5", BAD, f"ranks have {found}", "start all ranks in one environment")
    number, parallel = found[0]
    locking = ranks[0].locking
    text = f"{number}, {'parallel (mpio)' if parallel else 'serial: ranks write at offsets'}"
    return Finding(
        "HDF5", GOOD, text + (f"; HDF5_USE_FILE_LOCKING={locking}" if locking else "; opened without locks")
    )


def judge_versions(ranks: Sequence[RankReport]) -> Finding:
    """All ranks must run the same code."""
    found = _all(facts.versions for facts in ranks)
    if len(found) > 1:
        different = _all(name for name, _ in set(found[0]) ^ set(found[1]))
        return Finding(
            "versions", BAD, f"nodes differ in {', '.join(different)}", "install on a shared file system"
        )
    return Finding("versions", GOOD, ", ".join(f"{name} {number}" for name, number in found[0][:5]))


def judge_kernels(ranks: Sequence[RankReport]) -> Finding:
    """Kernels should be compiled before many ranks start."""
    count, folder, writable = min(facts.kernels for facts in ranks)
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


def judge_space(folder: Path, found: disk.Space) -> Finding:
    """A run must have room, and a file system that shows ranks each other's writes."""
    left = min(limit for limit in (found.free, found.quota, found.largest_file) if limit is not None)
    parts = [f"{folder} on {found.kind}", f"{found.free >> 30} GB free"]
    if found.quota is not None:
        parts.append(f"{found.quota >> 30} GB of the quota left")
    if found.largest_file is not None:
        parts.append(f"files of at most {found.largest_file >> 20} MB")
    text = ", ".join(parts)
    if left < LITTLE_SPACE:
        return Finding(
            "disk", NOTE, text, "mpiimg-neuro --plan says what a run stages; --in-memory stages nothing"
        )
    if found.inodes is not None and found.inodes < LITTLE_INODES:
        return Finding(
            "disk", NOTE, f"{text}, {found.inodes} inodes", "remove files, or use another file system"
        )
    if found.kind in disk.INCOHERENT:
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
    lines.append(f"{wrong} to mend, {notes} to know" if wrong or notes else "all is well")
    return "\n".join(lines)
