"""`make bench`: every kernel beside its peer in one run, CPU time of one core, as a table and as CSV.

The peers are dipy's functions. Both take their turns in one process, with one
thread, and the median counts. A row says which ratio was aimed for, and
whether it was reached.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mpiimg.pipeline.rates import cpu_model

HERE = Path(__file__).resolve().parent

#: How many times faster than its peer each kernel should be, by benchmark and size.
TARGETS = {
    ("mask", "small"): 15.0,
    ("mask", "hcp"): 15.0,
    ("nlmeans", "small"): 12.0,
    ("nlmeans", "hcp"): 20.0,
    ("tensor", "small"): 15.0,
    ("tensor", "hcp"): 6.5,
}

#: Libraries whose version a time depends on.
LIBRARIES = ("numpy", "numba", "llvmlite", "scipy", "dipy")

#: With these at 1, libraries start no threads, whose CPU time would be added up.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

COLUMNS = ("benchmark", "size", "peer", "peer_cpu_s", "our_cpu_s", "ratio", "target", "met", "rounds")


def measure(name: str, size: str, rounds: int) -> dict:
    """Run benchmark `name` at `size`; return its row of medians with the target beside it."""
    from importlib import import_module

    (row,) = import_module(f"bench_{name}").run(size, rounds)
    target = TARGETS[name, size]
    return {
        "benchmark": name,
        "size": size,
        **{key: row[key] for key in ("peer", "peer_cpu_s", "our_cpu_s", "ratio")},
        "target": target,
        "met": "yes" if row["ratio"] >= target else "no",
        "rounds": rounds,
    }


def conditions() -> dict[str, str]:
    """Return what the numbers depend on beside the code: when, where, which versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cpus": str(os.cpu_count()),
        "ranks": "1",
        "python": sys.version.split()[0],
        **{name: version(name) for name in LIBRARIES},
    }


def commit() -> str:
    """Return the commit of this checkout, with -dirty where files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| benchmark | size | peer | peer, CPU-s | mpiimg, CPU-s | ratio | target | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['benchmark']} | {r['size']} | {r['peer']} | {r['peer_cpu_s']:.3g} | {r['our_cpu_s']:.3g} "
        f"| {r['ratio']:.1f} | {r['target']:g} | {r['met']} |"
        for r in rows
    ]
    return "\n".join(lines)


def write_csv(path: Path, rows: list[dict], where: dict[str, str]) -> None:
    """Write the rows, each with the conditions it was measured under."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *where])
        writer.writeheader()
        writer.writerows(row | where for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; exit 1 where a target is missed, if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the size of an HCP subject as well: minutes")
    parser.add_argument("--only", choices=("mask", "nlmeans", "tensor"), help="one benchmark")
    parser.add_argument("--rounds", type=int, default=3, help="times each is run (default %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a target is missed")
    given = parser.parse_args(arguments)
    # Libraries read them when they are loaded, which the benchmarks do.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    where = conditions()
    print("  ".join(f"{name} {value}" for name, value in where.items()))
    rows = []
    for name, size in TARGETS:
        if (size == "small" or given.full) and given.only in (None, name):
            print(f"{name} {size} ...", file=sys.stderr, flush=True)
            rows.append(measure(name, size, given.rounds))
    print(table(rows))
    path = HERE / "results" / f"kernels-{where['date'].replace(':', '')}.csv"
    write_csv(path, rows, where)
    print(f"written to {os.path.relpath(path)}")
    return int(given.strict and any(row["met"] == "no" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
