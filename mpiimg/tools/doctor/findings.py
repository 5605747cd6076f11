"""Findings: what the reports of all ranks and the file system say of an install, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiimg.tools.doctor import disk

GOOD, NOTE, BAD = "ok", "note", "BAD"


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
    untrusted : tuple of str
        Why places for compiled kernels are passed over: somebody else may have written there.
    put_right, left_alone : tuple of str
        What was wrong with the environment (tools/environment.py), and settings that are taken as they are.
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
    untrusted: tuple[str, ...] = ()
    put_right: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()


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
    text = [f"{name} {number}" for name, number in versions[0][:5]]
    text += _all(setting for report in ranks for setting in report.left_alone)
    return Finding("versions", GOOD, ", ".join(text))


def judge_kernels(ranks: Sequence[RankReport]) -> Finding:
    """Kernels should be compiled before many ranks start."""
    untrusted = _all(problem for report in ranks for problem in report.untrusted)
    if untrusted:
        return Finding(
            "kernels",
            BAD,
            f"not taken from where others can put code: {'; '.join(untrusted)}",
            "remove that folder, or export NUMBA_CACHE_DIR= with one that only you can write to",
        )
    count, folder, writable = min(report.kernels for report in ranks)
    if count:
        return Finding("kernels", GOOD, f"{count} compiled, in {folder}")
    if not writable:
        return Finding(
            "kernels",
            NOTE,
            f"none compiled, and {folder} cannot be written",
            "export NUMBA_CACHE_DIR= with a folder of your own",
        )
    return Finding(
        "kernels",
        NOTE,
        f"none compiled in {folder}: the first run does it",
        "python -m mpiimg.engine.precompile",
    )


def judge_settings(ranks: Sequence[RankReport]) -> list[Finding]:
    """Nothing in the environment should change results or name code of others; a finding where it does."""
    put_right = _all(note for report in ranks for note in report.put_right)
    if not put_right:
        return []
    return [Finding("settings", NOTE, "; ".join(put_right), "unset these where jobs are started")]


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
