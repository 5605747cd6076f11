"""Who does what of many scans, in files that all jobs see: claims, how they ended, and what follows.

Claims on a scan are folders, claims/1, claims/2, ..., in the folder of its records. Who puts the next one
there has the scan: it is made and signed under another name, and renamed, which fails where there is one. A
claim holds owner.json, and end.json once it ended, in whatever way but by the death of a process. Nothing is
ever taken from a claim: a scan's history stays there. A run outside a cohort claims its work folder likewise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mpiimg.engine.atomic import unique, write_file
from mpiimg.engine.mpi.job import slurm_facts
from mpiimg.engine.mpi.processes import boot_id, pid_namespace, process_stat

#: Folder in OUT_DIR with a folder of records for each scan, and the settings of all.
LOGS = "logs"

#: Folder of claims in that of a scan's records, or in the work folder of a run.
CLAIMS = "claims"

#: Deaths of a process with a scan in work after which the scan is set aside.
DEATHS = 2

#: Seconds after which a claim counts as dead whose signature is lost, as by a loss of power.
UNSIGNED = 60.0

#: Seconds that a job may take between the end of its watchdog and that of its claim.
GRACE = 600.0


class Kind(enum.StrEnum):
    """What became of a scan so far."""

    TO_DO = "to do"
    IN_WORK = "in work"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    DIED = "died"
    SUSPECT = "suspect"


@dataclass(frozen=True)
class State:
    """What the claims on a scan say.

    Parameters
    ----------
    kind : what became of it
    claims : how many there are; the last one is the one that counts
    deaths : of processes that had it in work
    owner, end : of the last claim; empty where it has none
    """

    kind: Kind
    claims: int = 0
    deaths: int = 0
    owner: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)


def scan_states(out: Path) -> dict[str, State]:
    """Return the state of every scan that was ever selected for `out`, by name; empty for another folder."""
    settings = read_settings(out)
    return {records.name: scan_state(out, records, settings) for records in _folders(out / LOGS)}


def scan_state(out: Path, records: Path, settings: dict[str, Any]) -> State:
    """Return the state of a scan; what was done with other settings, or was removed since, is to be done."""
    state = read_state(records)
    if state.kind is not Kind.DONE:
        return state
    there = set(_names(out / state.end["folder"]))
    if state.end["settings"] == digest(settings) and there.issuperset(state.end["files"]):
        return state
    return dataclasses.replace(state, kind=Kind.TO_DO)


def read_settings(out: Path) -> dict[str, Any]:
    """Return the version and parameters that the scans in `out` are processed with; empty if none are."""
    return _read(out / LOGS / "cohort.json")


def write_settings(out: Path, settings: dict[str, Any]) -> None:
    """Keep the settings of a cohort."""
    _write(out / LOGS / "cohort.json", settings)


def digest(settings: dict[str, Any]) -> str:
    """Return a hash of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_state(records: Path, signs: Collection[Path] | None = None) -> State:
    """Return what the claims in a scan's folder of records say; for `signs` see :func:`is_alive`."""
    claims = records / CLAIMS
    last = max((int(name) for name in _names(claims) if name.isdecimal()), default=0)
    if not last:
        return State(Kind.TO_DO)
    owner = read_owner(records, last)
    end = _read(claims / str(last) / "end.json")
    before = sum(not (claims / str(n) / "end.json").exists() for n in range(1, last))
    if end:
        return State(Kind(end["state"]), last, before, owner, end)
    if is_alive(owner, records, last, signs):
        return State(Kind.IN_WORK, last, before, owner)
    # Looked at again: it may have ended between the two looks.
    end = _read(claims / str(last) / "end.json")
    if end:
        return State(Kind(end["state"]), last, before, owner, end)
    deaths = before + 1
    return State(Kind.SUSPECT if deaths >= DEATHS else Kind.DIED, last, deaths, owner)


def read_owner(records: Path, number: int) -> dict[str, Any]:
    """Return who signed a claim; empty where there is none, or none that can be read."""
    return _read(records / CLAIMS / str(number) / "owner.json")


def take(records: Path, state: State, owner: dict[str, Any]) -> int | None:
    """Claim a scan that is in `state`; return the number of the claim, None if another was quicker."""
    number = state.claims + 1
    claims = records / CLAIMS
    claims.mkdir(parents=True, exist_ok=True)
    signed = {**owner, "claimed": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    part = claims / unique(f"{number}.part")
    try:
        part.mkdir(exist_ok=True)
        _write(part / "owner.json", signed)
        part.replace(claims / str(number))
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        there = read_owner(records, number)
        if not there:
            raise
        # A network file system may do what it then reports as failed.
        return number if there == signed else None
    return number


def end(records: Path, number: int, state: Kind, **said) -> None:
    """Note how a claim ended."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    _write(records / CLAIMS / str(number) / "end.json", {"state": state, "ended": when, **said})


def sign(run: str, timeout: float) -> dict[str, Any]:
    """Return what tells the owner of a claim, this process, from all others.

    Parameters
    ----------
    run : a word that no other run has
    timeout : seconds within which its watchdog ends a run that hangs, 0 for never. An owner that cannot be
        looked up is taken for dead when it gave no sign of life for somewhat longer
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


def is_alive(
    owner: dict[str, Any], records: Path, number: int, signs: Collection[Path] | None = None
) -> bool:
    """Say whether the process that signed claim `number` may still be at work.

    On the same kernel its process is looked up; elsewhere SLURM is asked for its job step. Where neither can
    tell, it is alive as long as one of the files `signs`, by default events and marks in the scan's records,
    changes within its lease: a job that hangs for longer has been ended by its own watchdog.
    """
    claim = records / CLAIMS / str(number)
    if not owner:
        return _age([claim], records) < UNSIGNED
    me = sign("", 0)
    if owner["boot"] == me["boot"]:
        if owner["pids"] == me["pids"]:
            return owner["started"] is not None and _started(owner["pid"]) == owner["started"]
    elif (owner["host"], owner["machine"]) == (me["host"], me["machine"]):
        return False  # this machine was started anew since
    if owner["job_id"]:
        if owner["job_id"] == me["job_id"] and owner["restart_count"] != me["restart_count"]:
            return False  # this job was requeued since
        running = _slurm_runs(owner["job_id"], owner["step_id"])
        if running is not None:
            return running
    if not owner["lease"]:
        return True
    if signs is None:
        signs = [*records.glob("events*/*.jsonl"), *records.glob("work/*/journal/*.jsonl")]
    return _age([claim / "owner.json", *signs], records) < owner["lease"]


def is_this_process(owner: dict[str, Any]) -> bool:
    """Say whether a claim was signed by the process that asks."""
    me = sign("", 0)
    return all(owner.get(name) == me[name] for name in ("boot", "pids", "pid", "started"))


def who(owner: dict[str, Any]) -> str:
    """Say in words who signed a claim."""
    if not owner:
        return "a job that is just starting"
    job = f"job {owner['job_id']} on " if owner.get("job_id") else ""
    return f"{job}{owner['host']}, process {owner['pid']}"


def _folders(parent: Path) -> list[Path]:
    return [parent / name for name in sorted(_names(parent)) if (parent / name).is_dir()]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_file(path, json.dumps(content, indent=2).encode() + b"\n")


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Return when a process began, in ticks since the machine started; None if there is none."""
    stat = process_stat(pid)
    return stat.ticks if stat is not None and stat.is_alive else None


@lru_cache
def _slurm_runs(job: str, step: str | None) -> bool | None:
    """Ask SLURM whether a step of a job (the job, without one) is running; None if it does not answer.

    Python starts it by vfork, which copies nothing of a process that has MPI's memory.
    """
    wanted = ["squeue", "--noheader", "-j", job] + (["-s", "-o", "%i"] if step else ["-o", "%A"])
    try:
        answer = subprocess.run(wanted, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode:
        return False if "Invalid job id" in answer.stderr else None
    return (f"{job}.{step}" if step else job) in answer.stdout.split()


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
