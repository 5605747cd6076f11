"""`make bench`: every kernel beside its peer in one run, CPU time of one core, as a table and as CSV.

Both take their turns, on one thread, and the median counts: dipy, astroscrappy
and ccdproc in this process, SWarp as the program that it is. A row says which
ratio was aimed for, and whether it was reached. A peer that is not installed is
named, and nothing is said of it.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mpiimg.engine.rates import cpu_model
from mpiimg.kernels.jit import cpu_target

HERE = Path(__file__).resolve().parent

#: How many times faster than its peer each kernel should be, by benchmark and size.
TARGETS = {
    ("mask", "small"): 15.0,
    ("mask", "hcp"): 15.0,
    ("nlmeans", "small"): 12.0,
    ("nlmeans", "hcp"): 20.0,
    ("tensor", "small"): 15.0,
    ("tensor", "hcp"): 6.5,
    ("cosmics", "small"): 20.0,
    ("cosmics", "sensor"): 20.0,
    ("warp", "small"): 2.5,
    ("warp", "sensor"): 2.5,
    ("coadd", "small"): 5.0,
    ("coadd", "sensor"): 5.0,
    ("deflate", "small"): 2.0,
    ("deflate", "hcp"): 2.0,
}

#: What a benchmark compares with, where it is no part of an install, and how to come by it.
PEERS = {
    "cosmics": ("astroscrappy", ".venv/bin/pip install astroscrappy"),
    "warp": ("SWarp", "apt-get install swarp"),
    "coadd": ("ccdproc", ".venv/bin/pip install --no-deps ccdproc"),
}

#: Libraries whose version a time depends on.
LIBRARIES = ("numpy", "numba", "llvmlite", "scipy", "dipy", "astropy", "astroscrappy", "ccdproc")

#: With these at 1, libraries start no threads, whose CPU time would be added up.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

COLUMNS = (
    *("benchmark", "size", "peer", "peer_cpu_s", "our_cpu_s"),
    *("ratio", "target", "met", "rounds", "checks"),
)

#: What a benchmark says of itself in columns of their own; all else are its checks.
SAID = ("name", "size", "peer", "peer_cpu_s", "our_cpu_s", "ratio", "rounds")


def measure(name: str, size: str, rounds: int) -> list[dict]:
    """Run benchmark `name` at `size`; return its rows of medians with the target beside each."""
    from importlib import import_module

    target = TARGETS[name, size]
    return [
        {
            "benchmark": row["name"],
            "size": size,
            **{key: row[key] for key in ("peer", "peer_cpu_s", "our_cpu_s", "ratio")},
            "target": target,
            "met": "yes" if row["ratio"] >= target else "no",
            "rounds": rounds,
            "checks": "  ".join(f"{key} {value:.3g}" for key, value in row.items() if key not in SAID),
        }
        for row in import_module(f"bench_{name}").run(size, rounds)
    ]


def missing(name: str) -> str:
    """Return what to say where the peer of a benchmark is not installed; else nothing."""
    peer, remedy = PEERS.get(name, ("dipy", ""))
    there = shutil.which("SWarp") or shutil.which("swarp") if peer == "SWarp" else find_spec(peer)
    return "" if there else f"{name}: not measured, since {peer} is not installed: {remedy}"


def conditions() -> dict[str, str]:
    """Return what the numbers depend on beside the code: when, where, which versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "cpu": cpu_model(),
        "target": cpu_target(),
        "cpus": str(os.cpu_count()),
        "ranks": "1",
        "python": sys.version.split()[0],
        **{name: version(name) if find_spec(name) else "none" for name in LIBRARIES},
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
    said = (f"{r['benchmark']} {r['size']}: {r['checks']}" for r in rows if r["checks"])
    lines += ["", *dict.fromkeys(said)]
    return "\n".join(lines)


def write_csv(path: Path, rows: list[dict], where: dict[str, str], columns=COLUMNS) -> None:
    """Write the rows, each with the conditions it was measured under."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *where])
        writer.writeheader()
        writer.writerows(row | where for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; exit 1 where a target is missed, if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="an HCP subject and whole sensors as well")
    parser.add_argument("--only", choices=sorted({name for name, _ in TARGETS}), help="one benchmark")
    parser.add_argument("--rounds", type=int, default=3, help="times each is run (default %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed or not measured")
    given = parser.parse_args(arguments)
    # Libraries read them when they are loaded, which the benchmarks do.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    where = conditions()
    print("  ".join(f"{name} {value}" for name, value in where.items()))
    rows, unmeasured = [], []
    for name, size in TARGETS:
        if (size != "small" and not given.full) or given.only not in (None, name):
            continue
        if missing(name):
            unmeasured.append(missing(name))
            continue
        print(f"{name} {size} ...", file=sys.stderr, flush=True)
        rows += measure(name, size, given.rounds)
    print("\n".join([table(rows)] * bool(rows) + list(dict.fromkeys(unmeasured))))
    path = HERE / "results" / f"kernels-{where['date'].replace(':', '')}.csv"
    write_csv(path, rows, where)
    print(f"written to {os.path.relpath(path)}")
    return int(given.strict and (bool(unmeasured) or any(row["met"] == "no" for row in rows)))


if __name__ == "__main__":
    raise SystemExit(main())
