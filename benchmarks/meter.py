"""Run a command and measure all of its processes: wall and CPU time, the most memory they held together.

    python benchmarks/meter.py --report meter.json [--limit BYTES] [--timeout SECONDS] -- COMMAND...

Memory is the sum of proportional set sizes (PSS), in which a page that several
processes share counts once; it is sampled. CPU time is that of the kernel's
accounts, in which orphans are included, since this program adopts them. Above
`--limit` all processes are killed, as a memory cgroup would: pages of files, such
as those of libraries, do not count there, since the kernel drops them instead.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import time
from pathlib import Path

#: Seconds between samples, and for what a command left behind to end by itself.
INTERVAL, GRACE = 0.05, 5.0

#: prctl: orphaned descendants become children of the process that asks for it.
PR_SET_CHILD_SUBREAPER = 36

TICKS = os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> dict[tuple[int, int], float]:
    """Return the CPU seconds of all processes below `root`, by process id and time of start."""
    children: dict[int, list[int]] = {}
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid, parent, started = int(entry), int(fields[1]), int(fields[19])
        children.setdefault(parent, []).append(pid)
        found[pid] = (started, (int(fields[11]) + int(fields[12])) / TICKS)
    below, waiting = {}, [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            started, seconds = found[pid]
            below[pid, started] = seconds
            waiting.append(pid)
    return below


def held_by(pid: int) -> tuple[int, int]:
    """Return the proportional set size of a process in bytes, and what of it is no page of a file.

    Both are 0 if it has ended.
    """
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss")}
    return found["Pss:"], found["Pss_Anon:"] + found["Pss_Shmem:"]


class Meter:
    """What the processes below this one have taken so far."""

    def __init__(self):
        self.cpu: dict[tuple[int, int], float] = {}
        self.peak = self.kept_peak = self.processes = 0
        self.samples: list[tuple[float, float]] = []

    def sample(self) -> int:
        """Take a sample; return the bytes that all processes hold together and that cannot be dropped."""
        below = descendants(os.getpid())
        self.cpu.update(below)
        self.samples.append((time.monotonic(), sum(self.cpu.values())))
        held, kept = (sum(sizes) for sizes in zip((0, 0), *(held_by(pid) for pid, _ in below), strict=True))
        self.peak, self.kept_peak = max(self.peak, held), max(self.kept_peak, kept)
        self.processes = max(self.processes, len(below))
        return kept


def measure(command: list[str], limit: int | None = None, timeout: float | None = None) -> dict:
    """Run `command` and return what it took.

    Parameters
    ----------
    command : program and arguments
    limit : bytes that all processes together may hold; above, all are killed
    timeout : seconds; after them, all are killed

    Returns
    -------
    dict
        status (negative: a signal), ended ("itself", "memory" or "timeout"), started (monotonic clock),
        started_at (the same moment in seconds since 1970), seconds, cpu_seconds, peak_pss and, without pages
        of files, peak_kept (bytes), processes (most at one time), and samples of (monotonic clock,
        CPU-seconds until then).
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    meter, ended, started, started_at = Meter(), "itself", time.monotonic(), time.time()
    process = subprocess.Popen(command, env={**os.environ, "BENCH_STARTED": repr(started)})
    while process.poll() is None:
        kept = meter.sample()
        if limit is not None and kept > limit:
            ended = "memory"
        elif timeout is not None and time.monotonic() - started > timeout:
            ended = "timeout"
        if ended != "itself":
            _end_all(signal.SIGKILL)
            process.wait()
        time.sleep(INTERVAL)
    seconds = time.monotonic() - started
    _reap_rest(meter)
    accounted = os.times()
    cpu_seconds = max(accounted.children_user + accounted.children_system, sum(meter.cpu.values()))
    # What came after the last sample counts for the last steps.
    meter.samples.append((started + seconds, cpu_seconds))
    return {
        "status": process.returncode,
        "ended": ended,
        "started": started,
        "started_at": started_at,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_pss": meter.peak,
        "peak_kept": meter.kept_peak,
        "processes": meter.processes,
        "samples": meter.samples,
    }


def _end_all(number: int) -> None:
    for pid, _ in descendants(os.getpid()):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _reap_rest(meter: Meter) -> None:
    """Wait for what the command left running, and end it if it stays."""
    deadline = time.monotonic() + GRACE
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            meter.cpu.update(descendants(os.getpid()))
            if time.monotonic() > deadline:
                _end_all(signal.SIGKILL)
            time.sleep(INTERVAL)


def main(arguments: list[str] | None = None) -> int:
    """Measure a command and write the report; return the command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--limit", type=int, help="bytes that all processes together may hold")
    parser.add_argument("--timeout", type=float, help="seconds")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    report = measure(given.command, given.limit, given.timeout)
    given.report.write_text(json.dumps(report))
    return report["status"] if report["status"] >= 0 else 128 - report["status"]


if __name__ == "__main__":
    raise SystemExit(main())
