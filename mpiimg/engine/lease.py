"""Leases: which job works on a scan, or in the work folder of a run, written in files that all jobs see.

The leases of a scan are numbered folders, claims/1, claims/2, ..., in the folder of its records; the last one
counts. A job acquires the scan by creating the next number: it makes and signs a folder under another name
and renames it, which fails where another job was quicker. A lease holds owner.json, and end.json once it was
released; only when its process dies is there no end.json. Nothing in a lease is ever changed or removed, so
the history of a scan stays there.

All of these are records (engine/records.py), and what a damaged one means is the safe side. The owner is
written twice, for without one that can be read nobody knows whether it lives: then it lives as long as there
are signs of it. An end that cannot be read is one all the same; how the work ended is not known, so it is
taken up again.

A run outside a cohort acquires its work folder in the same way. Of two runs at once one is refused, and the
folder of a run that died is free. The lease moves with the folder: a run that ends well renames the folder,
and its lease with it, before it removes what is inside.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpiimg.engine.atomic import unique
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.job import slurm_facts
from mpiimg.engine.mpi.job import slurm_running as _slurm_runs
from mpiimg.engine.mpi.processes import boot_id, pid_namespace, process_stat
from mpiimg.engine.records import DamagedRecord, read_record, write_record
from mpiimg.engine.staging_place import remove_staged_elsewhere
from mpiimg.errors import BadInput, RunFailed, RunStopped

#: Folder of leases in that of a scan's records, or in the work folder of a run.
CLAIMS = "claims"

#: So many processes may die while they work on a scan before it is set aside.
DEATHS = 2

#: The record of who signed a lease, and the same once more.
OWNER, OWNER_AGAIN = "owner.json", "owner-again.json"

END = "end.json"

#: A lease without any owner, as after a loss of power, counts as dead after so many seconds.
UNSIGNED = 60.0

#: Seconds that a job may take between the end of its watchdog and the end of its lease.
GRACE = 600.0

#: A lease whose owner cannot be read counts as dead after so many seconds without a sign of life: as long as
#: one of a run with the default timeout that cannot be looked up.
UNREADABLE = 3600.0 + GRACE

#: Seconds that a run waits for another one to end: a launcher may end before the last of its ranks.
PATIENCE = 3.0


class Kind(enum.StrEnum):
    """What became of a scan so far."""

    TO_DO = "to do"
    IN_WORK = "in work"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    DIED = "died"
    SUSPECT = "suspect"
    BROKEN = "broken"
    PASSED_OVER = "passed over"


@dataclass(frozen=True)
class LeaseState:
    """What the leases of a scan, or of a work folder, say.

    Parameters
    ----------
    kind : Kind
        What became of the scan.
    number : int
        Of the last lease, the one that counts; 0 where there is none.
    deaths : int
        How many processes died while they worked on it.
    owner, end : dict
        Contents of owner.json and end.json of the last lease; empty where it has none that can be read.
    """

    kind: Kind
    number: int = 0
    deaths: int = 0
    owner: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)


def read_lease(records: Path, signs: Collection[Path] | None = None) -> LeaseState:
    """Return the state of a scan as its leases say it.

    Parameters
    ----------
    records : Path
        The scan's folder of records, or a work folder.
    signs : collection of Path, optional
        Files that the owner writes while it lives; see :func:`is_alive`.
    """
    leases = records / CLAIMS
    numbers = (int(name) for name in names_in(leases) if name.isdecimal() and (leases / name).is_dir())
    last = max(numbers, default=0)
    if not last:
        return LeaseState(Kind.TO_DO)
    owner = read_owner(records, last)
    ended = (leases / str(last) / END).exists()
    earlier_deaths = sum(not (leases / str(n) / END).exists() for n in range(1, last))
    if not ended and is_alive(owner, records, last, signs):
        return LeaseState(Kind.IN_WORK, last, earlier_deaths, owner)
    # Looked at again: it may have been released between the two looks.
    if (leases / str(last) / END).exists():
        kind, end = _read_end(leases / str(last))
        return LeaseState(kind, last, earlier_deaths, owner, end)
    deaths = earlier_deaths + 1
    return LeaseState(Kind.SUSPECT if deaths >= DEATHS else Kind.DIED, last, deaths, owner)


def _read_end(lease: Path) -> tuple[Kind, dict[str, Any]]:
    """Return how the work under a lease ended, and what else its end says."""
    with contextlib.suppress(DamagedRecord, OSError, KeyError, ValueError):
        end = read_record(lease / END)
        return Kind(end["state"]), end
    return Kind.STOPPED, {}


def read_owner(records: Path, number: int) -> dict[str, Any]:
    """Return who signed lease `number`; empty where there is none, or none that can be read."""
    for name in (OWNER, OWNER_AGAIN):
        with contextlib.suppress(DamagedRecord, OSError):
            owner = read_record(records / CLAIMS / str(number) / name)
            if owner is not None and owner.keys() >= _SIGNED:
                return owner
    return {}


def acquire(records: Path, state: LeaseState, owner: dict[str, Any]) -> int | None:
    """Acquire the lease that follows the last one of `state`.

    Parameters
    ----------
    records : Path
        The scan's folder of records, or a work folder.
    state : LeaseState
        As :func:`read_lease` gave it.
    owner : dict
        As :func:`sign` gives it.

    Returns
    -------
    int or None
        The number of the lease; None if another job was quicker.

    Raises
    ------
    OSError
        Nothing can be written there.
    """
    number = state.number + 1
    leases = records / CLAIMS
    leases.mkdir(parents=True, exist_ok=True)
    signed = {**owner, "claimed": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    part = leases / unique(f"{number}.part")
    try:
        part.mkdir(exist_ok=True)
        for name in (OWNER, OWNER_AGAIN):
            write_record(part / name, signed)
        part.replace(leases / str(number))
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not (leases / str(number)).exists():
            raise
        # A network file system may do what it then reports as failed.
        return number if read_owner(records, number) == signed else None
    return number


def release(records: Path, number: int, kind: Kind, **details) -> None:
    """Note in lease `number` that its work is over, and how it ended."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_record(records / CLAIMS / str(number) / END, {"state": kind, "ended": now, **details})


def sign(run: str, timeout: float) -> dict[str, Any]:
    """Return what tells this process, as the owner of a lease, from all others.

    Parameters
    ----------
    run : str
        A word that no other run has.
    timeout : float
        Seconds after which its watchdog ends a run that hangs, 0 for never. An owner that cannot be looked up
        is taken for dead once it has given no sign of life for :data:`GRACE` longer.
    """
    return {
        "run": run,
        "host": socket.gethostname(),
        "machine": _line("/etc/machine-id"),
        "boot": boot_id(),
        "pids": pid_namespace(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        **slurm_facts(),
        "lease": timeout + GRACE if timeout else 0.0,
    }


#: What every owner that was signed says of itself.
_SIGNED = {"boot", "pids", "pid", "started", "host", "machine", "job_id", "step_id", "restart_count", "lease"}


def is_alive(
    owner: dict[str, Any], records: Path, number: int, signs: Collection[Path] | None = None
) -> bool:
    """Say whether the process that signed lease `number` may still be at work.

    Its process is looked up where it runs under the same kernel; elsewhere SLURM is asked for its job step.
    Where neither can tell, it counts as alive as long as it writes: a job that hangs for longer than its
    lease has been ended by its own watchdog.

    Parameters
    ----------
    owner : dict
        As :func:`read_owner` gives it.
    records : Path
        The folder of records that the lease is in.
    number : int
        Of the lease.
    signs : collection of Path, optional
        Files that the owner writes while it lives; by default the events and marks in `records`.
    """
    lease = records / CLAIMS / str(number)

    def silence() -> float:
        given = (*records.glob("events*/*.jsonl"), *records.glob("work/*/journal/*.jsonl"))
        return _age([lease, lease / OWNER, *(given if signs is None else signs)], records)

    if not owner:
        is_signed = (lease / OWNER).exists() or (lease / OWNER_AGAIN).exists()
        return silence() < (UNREADABLE if is_signed else UNSIGNED)
    me = sign("", 0)
    if owner["boot"] == me["boot"]:
        if owner["pids"] == me["pids"]:
            return owner["started"] is not None and _started(owner["pid"]) == owner["started"]
    elif (owner["host"], owner["machine"]) == (me["host"], me["machine"]):
        return False  # this machine was started anew since
    if owner["job_id"]:
        if owner["job_id"] == me["job_id"] and owner["restart_count"] != me["restart_count"]:
            return False  # this job was requeued since
        running = _runs_elsewhere(owner, me["cluster_name"])
        if running is not None:
            return running
    if not owner["lease"]:
        return True
    return silence() < owner["lease"]


def is_this_process(owner: dict[str, Any]) -> bool:
    """Say whether a lease was signed by the process that asks."""
    me = sign("", 0)
    return all(owner.get(name) == me[name] for name in ("boot", "pids", "pid", "started"))


def owner_text(owner: dict[str, Any]) -> str:
    """Say in words who signed a lease."""
    if not owner:
        return "a job that is just starting, or whose record is damaged"
    job = f"job {owner['job_id']} on " if owner.get("job_id") else ""
    return f"{job}{owner['host']}, process {owner['pid']}"


@dataclass(frozen=True)
class WorkLease:
    """The lease that a run has of its work folder.

    Parameters
    ----------
    work : Path
        The folder.
    number : int
        Of the lease; 0 where none is needed, since the job has a lease of the whole scan.
    run : str
        The word that it was signed with.
    """

    work: Path
    number: int = 0
    run: str = ""

    @property
    def is_first(self) -> bool:
        """Whether no other run has had the folder."""
        return self.number <= 1

    def release(self, kind: Kind) -> None:
        """Let others have the folder, if it still is the one that was acquired."""
        if self.number and read_owner(self.work, self.number).get("run") == self.run:
            with contextlib.suppress(OSError):  # as on a full disk: then it is free once this process is gone
                release(self.work, self.number, kind)


@contextlib.contextmanager
def holding(lease: WorkLease, comm) -> Iterator[None]:
    """Release a lease where the work under it fails or is stopped on all ranks. Collective."""
    try:
        yield
    except (RunFailed, RunStopped) as error:
        on_root(comm, lease.release, Kind.STOPPED if isinstance(error, RunStopped) else Kind.FAILED)
        raise


def acquire_work(work: Path, events: Path, out: Path, timeout: float) -> WorkLease:
    """Acquire the work folder of a run.

    Parameters
    ----------
    work : Path
        The folder; it is made if missing.
    events : Path
        Folder of the run's events, which show others that it lives.
    out : Path
        Folder of results, for messages.
    timeout : float
        Seconds after which its watchdog ends a run that hangs, 0 for never.

    Raises
    ------
    BadInput
        Another run is at work there.
    OSError
        Nothing can be written there.
    """
    run = uuid.uuid4().hex
    deadline = time.monotonic() + PATIENCE
    while True:
        state = read_lease(work, [*events.glob("*.jsonl"), *work.glob("journal/*.jsonl")])
        if not _is_held(state):
            number = acquire(work, state, sign(run, timeout))
            if number is not None:
                return WorkLease(work, number, run)
        if time.monotonic() > deadline:
            raise BadInput(_refusal(state, work, out))
        time.sleep(0.1)


def _is_held(state: LeaseState) -> bool:
    """Say whether a run is at work; what this process itself has left behind is over."""
    return state.kind is Kind.IN_WORK and not is_this_process(state.owner)


def _refusal(state: LeaseState, work: Path, out: Path) -> str:
    since = f", since {state.owner['claimed']}" if "claimed" in state.owner else ""
    return (
        f"{out}: another run is at work there ({owner_text(state.owner)}{since}); wait until it has ended or "
        f"choose another --out; if you know that it is dead, remove {work / CLAIMS}"
    )


def remove_work(work: Path) -> None:
    """Remove a work folder with its leases, and the folder above it if nothing else is in there."""
    mark = f"{work.name}.removed"
    _remove_all(work.parent, mark)  # what is left of a run that died while it removed
    remove_staged_elsewhere(work)
    with contextlib.suppress(FileNotFoundError):
        work.replace(work.with_name(unique(mark)))
        _remove_all(work.parent, mark)
    with contextlib.suppress(OSError):
        work.parent.rmdir()


def _remove_all(folder: Path, mark: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        for path in [path for path in folder.iterdir() if path.name.startswith(mark)]:
            shutil.rmtree(path, ignore_errors=True)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Return when a process began, in ticks since the machine started; None if there is none."""
    stat = process_stat(pid)
    return stat.ticks if stat is not None and stat.is_alive else None


def _runs_elsewhere(owner: dict[str, Any], cluster: str | None) -> bool | None:
    """Ask SLURM whether an owner's step (its job, without one) is running; None if it does not answer."""
    job, step, task = owner["job_id"], owner["step_id"], owner.get("array_task_id")
    if cluster and owner.get("cluster_name") not in (None, cluster):
        return None  # a job of another cluster, of which this one knows nothing
    running = _slurm_runs(job, bool(step))
    if running is None:
        return None
    if not step:
        return job in running
    # Steps of an array are named by the array and the task, such as 1234_5.0.
    return f"{job}.{step}" in running or any(name.endswith(f"_{task}.{step}") for name in running)


def _age(paths: list[Path], folder: Path) -> float:
    """Return the seconds since the last of `paths` changed, by the clock of their file system."""
    times = []
    for path in paths:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return _clock(folder) - max(times, default=0.0)


def _clock(folder: Path) -> float:
    """Return what time it is where `folder` is kept, whose clock may differ from this node's."""
    probe = folder / unique(".clock")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    except OSError:
        return time.time()
    return now
