"""What benchmarks of whole runs share: how a tool is started under mpiexec, and its run.json as a table."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import run as benchmarks

#: What is added up, or for peaks the largest taken, over stages in one row.
SUMS = ("chunks", "seconds", "cpu", "moved", "planned_moved")
PEAKS = ("peak", "planned_peak")


def launch(ranks: int, tool: str, *arguments) -> float:
    """Run a tool of this environment on `ranks` ranks; return its seconds.

    Raises
    ------
    SystemExit
        It failed, and has said why.
    """
    here = Path(sys.executable).parent
    launcher = shutil.which("mpiexec", path=str(here)) or "mpiexec"
    words = [str(word) for word in arguments]
    command = [launcher, "-n", str(ranks), str(here / tool), *words]
    shown = words if len(words) < 20 else [*words[:2], "...", *words[-10:]]
    print(f"$ mpiexec -n {ranks} {tool} {' '.join(shown)}", file=sys.stderr, flush=True)
    started = time.monotonic()
    status = subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
    if status:
        raise SystemExit(f"{tool} ended with exit status {status}")
    return time.monotonic() - started


def gathered(stages: list[dict], together: str = "write images") -> list[dict]:
    """Return the stages of a run with those that only differ by what they filter or write in one row."""
    rows: dict[str, dict] = {}
    for stage in stages:
        name = together if ".write-" in stage["stage"] else re.sub(r"-\d+$", "", stage["stage"])
        row = rows.setdefault(name, dict.fromkeys(SUMS + PEAKS, 0) | {"stage": name})
        row["chunks"] += stage["chunks"]
        row["seconds"] += stage["seconds"]
        row["cpu"] += stage["cpu_seconds"]
        row["moved"] += stage["bytes_moved"]
        row["planned_moved"] += stage["planned"]["bytes_moved"]
        row["peak"] = max(row["peak"], stage["peak_per_rank"])
        row["planned_peak"] = max(row["planned_peak"], stage["planned"]["peak_per_rank"])
    return list(rows.values())


def table(stages: list[dict], wall: float, together: str = "write images") -> str:
    """Return the stages of a run as a Markdown table, with their sum and the wall time of the command."""
    rows = gathered(stages, together)
    lines = [
        "| stage | chunks | seconds | CPU-seconds | MB moved | planned | peak MB per rank | planned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['stage']} | {r['chunks']} | {r['seconds']:.2f} | {r['cpu']:.2f} | {r['moved'] / 1e6:.1f} "
        f"| {r['planned_moved'] / 1e6:.1f} | {r['peak'] / 1e6:.0f} | {r['planned_peak'] / 1e6:.0f} |"
        for r in rows
    ]
    seconds, cpu, moved, planned = (sum(r[key] for r in rows) for key in SUMS[1:])
    peak, planned_peak = (max(r[key] for r in rows) for key in PEAKS)
    lines.append(
        f"| all stages | | {seconds:.1f} | {cpu:.1f} | {moved / 1e6:.0f} | {planned / 1e6:.0f} "
        f"| {peak / 1e6:.0f} | {planned_peak / 1e6:.0f} |"
    )
    lines.append(f"| whole command, with start-up | | {wall:.1f} | | | | | |")
    return "\n".join(lines)


def conditions(libraries: tuple[str, ...]) -> str:
    """Return in words what the numbers depend on."""
    where = benchmarks.conditions()
    versions = ", ".join(f"{name} {where[name]}" for name in libraries)
    return (
        f"{where['cpu']}, {where['cpus']} CPUs; commit {where['commit']}, {where['date'][:10]}; {versions}."
    )
