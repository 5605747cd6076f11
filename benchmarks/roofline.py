"""`make bench-roofline`: what share of this machine's limits each kernel reaches, on one core.

    .venv/bin/python benchmarks/roofline.py --rounds 7

The limits are measured (`machine.py`), the operations and bytes of each kernel
are counted (`operations.py`), and limits and kernels are timed in turn, round by
round, by CPU time. The best round counts, since other work on the machine can
only slow a core down; how far the median lies above it says how noisy it was.

A kernel has two limits. The roofline's is the peak of fused multiply-adds, or
memory bandwidth times its operations a byte where that is less. The other is
the rate of a loop that does nothing but the kernel's own mixture of operations,
loads and stores, without any dependence between them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import run as benchmarks

#: Libraries read these when they are loaded, which the kernels do.
os.environ.update(dict.fromkeys(benchmarks.THREAD_VARIABLES, "1"))

import charts
import machine
import operations
from machine import Work

#: What is measured of arithmetic, by the name in the table.
ARITHMETIC = {
    "fused multiply-add": Work(fma=1),
    "add": Work(add=1),
    "multiply": Work(multiply=1),
    "add and multiply": Work(add=1, multiply=1),
    "minimum and maximum": Work(compare=1),
    "divide": Work(divide=1),
    "square root": Work(root=1),
}

#: What passes go over: level of the cache, and how much of it; far more than the last is memory.
SIZES_OF_STREAMS = {"second-level cache": (2, 0.5), "memory": (3, 8.0)}

#: The processor's counter of operations on floats, where the system gives it away (AMD Zen).
COUNTER = "fp_ret_sse_avx_ops.all:u"

COLUMNS = (
    *("kernel", "unit", "units", "operations", "flops", "bytes", "intensity", "useful"),
    *("cpu_s", "cpu_s_median", "gops", "gbytes", "roof_gops", "roof_share", "mixture_gops", "mixture_share"),
    *("counted", "uncounted"),
)


class Timed:
    """Something that is timed once a round."""

    def __init__(self, measure):
        self.measure, self.values = measure, []

    def turn(self) -> None:
        self.values.append(self.measure())


class Limits:
    """The limits of the machine, each measured once a round."""

    def __init__(self):
        self.arithmetic = {
            (element, name): [Timed(machine.Loop(element, work, width).rate) for width in machine.WIDTHS]
            for element, works in (
                ("float32", ARITHMETIC),
                ("float64", ARITHMETIC),
                ("uint8", {"add": Work(integer=1)}),
                ("uint16", {"add": Work(integer=1)}),
            )
            for name, work in works.items()
        }
        self.bytes = {
            (where, name): [Timed(machine.Stream(name, int(share * machine.cache_bytes(level))).rate)]
            for where, (level, share) in SIZES_OF_STREAMS.items()
            for name in machine.PASSES
        }

    def turn(self) -> None:
        for timed in [*self.arithmetic.values(), *self.bytes.values()]:
            for one in timed:
                one.turn()

    def peak(self, element: str) -> float:
        """Return operations a second: fused multiply-adds of floats, additions of integers."""
        name = "fused multiply-add" if element.startswith("float") else "add"
        return best(self.arithmetic[element, name])

    def bandwidth(self, where: str) -> float:
        """Return the bytes a second of the fastest pass."""
        return max(best(timed) for (place, _), timed in self.bytes.items() if place == where)

    def rows(self) -> list[dict]:
        """Return a row a limit."""
        found = []
        for kind, unit, limits in (("operations", "Gop/s", self.arithmetic), ("bytes", "GB/s", self.bytes)):
            for (where, name), timed in limits.items():
                found.append(
                    {"limit": f"{where}, {name}", "kind": kind, "unit": unit, "rate": best(timed) / 1e9}
                    | {"median": median(timed) / 1e9}
                )
        return found


def best(timed: list[Timed]) -> float:
    """Return the highest rate of all variants and rounds."""
    return max(max(one.values) for one in timed)


def median(timed: list[Timed]) -> float:
    """Return the median over rounds of the variant that was best."""
    return statistics.median(max(timed, key=lambda one: max(one.values)).values)


class Measured:
    """A kernel's job with its times, and the loops of its mixture."""

    def __init__(self, name: str, size: str):
        self.name, self.job = name, operations.job(name, size)
        self.seconds = Timed(self.once)
        self.mixture = {
            element: [Timed(machine.Loop(element, work, width).rate) for width in machine.WIDTHS]
            for element, work in self.job.work.items()
        }
        self.job.call()  # compile

    def once(self) -> float:
        start = time.process_time()
        self.job.call()
        return time.process_time() - start

    def turn(self) -> None:
        self.seconds.turn()
        for timed in self.mixture.values():
            for one in timed:
                one.turn()

    def row(self, limits: Limits) -> dict:
        """Return what was reached beside the limits.

        Where a kernel works on several kinds of elements, their times at the limit are added up.
        """
        job = self.job
        total, flops = operations_of(job), flops_of(job)
        seconds = min(self.seconds.values)
        by_bytes = job.traffic / limits.bandwidth("memory")
        roof = max(by_bytes, sum(w.operations() / limits.peak(e) for e, w in job.work.items()))
        mixture = max(by_bytes, sum(w.operations() / best(self.mixture[e]) for e, w in job.work.items()))
        return {
            "kernel": self.name,
            "unit": job.unit,
            "units": job.units,
            "operations": total / job.units,
            "flops": flops / job.units,
            "bytes": job.traffic / job.units,
            "intensity": total / job.traffic,
            "useful": job.useful,
            "cpu_s": seconds,
            "cpu_s_median": statistics.median(self.seconds.values),
            "gops": total / seconds / 1e9,
            "gbytes": job.traffic / seconds / 1e9,
            "roof_gops": total / roof / 1e9,
            "roof_share": roof / seconds,
            "mixture_gops": total / mixture / 1e9,
            "mixture_share": mixture / seconds,
            "counted": "",
            "uncounted": job.uncounted,
        }


def operations_of(job: operations.Job) -> float:
    return sum(work.operations() for work in job.work.values())


def flops_of(job: operations.Job) -> float:
    return sum(work.flops() for element, work in job.work.items() if element.startswith("float"))


# --- The processor's own count ------------------------------------------------------------------------------


def count_flops(name: str, size: str) -> float | None:
    """Return the flops of one call as the processor counts them; nothing where it cannot be asked."""
    if not shutil.which("perf"):
        return None
    counts = [_counted(name, size, calls) for calls in (1, 2)]
    return None if None in counts else counts[1] - counts[0]


def _counted(name: str, size: str, calls: int) -> float | None:
    command = ["perf", "stat", "-x,", "-e", COUNTER, sys.executable, __file__]
    command += ["--size", size, "--only", name, "--call", str(calls)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.split(",") for line in ran.stderr.splitlines() if COUNTER in line]
    if ran.returncode or not lines or not lines[0][0].isdigit():
        return None
    return float(lines[0][0])


# --- Tables -------------------------------------------------------------------------------------------------


def limits_table(rows: list[dict]) -> str:
    """Return the limits as Markdown."""
    lines = ["| limit | best | median |", "|---|---|---|"]
    lines += [f"| {r['limit']} | {r['rate']:.3g} {r['unit']} | {r['median']:.3g} |" for r in rows]
    return "\n".join(lines)


def kernels_table(rows: list[dict]) -> str:
    """Return what the kernels reach as Markdown."""
    lines = [
        "| kernel | unit | operations a unit | bytes a unit | operations a byte | CPU-s (median) | Gop/s "
        "| GB/s | roofline, Gop/s | share | own mixture, Gop/s | share |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['kernel']} | {r['unit']} | {r['operations']:.4g} | {r['bytes']:.3g} | {r['intensity']:.3g} "
        f"| {r['cpu_s']:.3g} ({r['cpu_s_median']:.3g}) | {r['gops']:.3g} | {r['gbytes']:.2g} "
        f"| {r['roof_gops']:.3g} | {r['roof_share']:.0%} "
        f"| {r['mixture_gops']:.3g} | {r['mixture_share']:.0%} |"
        for r in rows
    ]
    for r in rows:
        notes = [f"{r['useful']:.0%} of the work falls on results"]
        if r["counted"]:
            notes.append(
                f"the processor counted {r['counted']:.4g} flops a unit, the formula {r['flops']:.4g}"
            )
        if r["uncounted"]:
            notes.append(f"not counted: {r['uncounted']}")
        lines += ["", f"{r['kernel']}: {'; '.join(notes)}"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="of the kernels' inputs")
    parser.add_argument("--only", choices=operations.KERNELS, action="append", help="a kernel (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="times each is measured (default %(default)s)")
    parser.add_argument(
        "--no-count", action="store_true", help="do not ask the processor for its count (perf)"
    )
    parser.add_argument("--call", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=benchmarks.HERE / "results", help="for the tables")
    given = parser.parse_args(arguments)
    names = given.only or list(operations.KERNELS)
    if given.call is not None:
        job = operations.job(names[0], given.size)
        for _ in range(given.call):
            job.call()
        return 0
    where = benchmarks.conditions()
    print("  ".join(f"{name} {value}" for name, value in where.items()))
    limits, kernels = Limits(), [Measured(name, given.size) for name in names]
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds} ...", file=sys.stderr, flush=True)
        for one in (limits, *kernels):
            one.turn()
    rows = [kernel.row(limits) for kernel in kernels]
    if not given.no_count:
        for row in rows:
            counted = count_flops(row["kernel"], given.size) if row["flops"] else None
            row["counted"] = counted / row["units"] if counted else ""
    write(given.out / f"roofline-{where['date'].replace(':', '')}", limits, rows, where)
    return 0


def write(stem: Path, limits: Limits, rows: list[dict], where: dict[str, str]) -> None:
    """Print the tables and write them with their chart."""
    text = f"{limits_table(limits.rows())}\n\n{kernels_table(rows)}\n"
    benchmarks.write_csv(Path(f"{stem}.csv"), rows, where, COLUMNS)
    benchmarks.write_csv(Path(f"{stem}-limits.csv"), limits.rows(), where, list(limits.rows()[0]))
    Path(f"{stem}.md").write_text("  ".join(f"{k} {v}" for k, v in where.items()) + "\n\n" + text)
    peaks = {element: limits.peak(element) / 1e9 for element in ("float32", "float64")}
    slopes = {place: limits.bandwidth(place) / 1e9 for place in SIZES_OF_STREAMS}
    charts.roofline(peaks, slopes, rows, Path(f"{stem}.png"))
    print(text)
    print(f"written to {os.path.relpath(stem)}.csv, .md and .png")


if __name__ == "__main__":
    raise SystemExit(main())
