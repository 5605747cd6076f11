"""`make bench-systems`: both workloads on every system that is installed, as tables, CSV and a chart.

    .venv-bench/bin/python benchmarks/side_by_side.py --size medium --rounds 3
    .venv-bench/bin/python benchmarks/side_by_side.py --size deep --limits 600M 400M 300M
    .venv-bench/bin/python benchmarks/side_by_side.py --from A.csv B.csv --page docs/comparison.md

Systems take their turns round by round on the same simulated input; tables give
medians, and ranges where there are several rounds. With `--limits`, each runs once
without a limit of memory and once under each. The CSV is written after every run;
`--from` runs nothing, and makes tables and chart again from such files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import charts
import contenders
import report
import run as benchmarks
import runs
import workloads

#: Packages of the systems, whose versions are noted beside those of the libraries.
PACKAGES = ("mpi4py", "distributed", "pyspark", "tensorflow_cpu", "tiledb", "reproject")

#: Under a limit of memory: how many times as long as without it a run may take, and seconds for it at least.
PATIENCE, LEAST_PATIENCE = 4, 60


def turns(systems: list, given: argparse.Namespace) -> Iterator[tuple]:
    """Yield every run of a workload: (system, round, by steps, limit in bytes or None)."""
    rounds: list[tuple[bool, int | None]] = [(False, None)] * given.rounds
    # Regrouping tells its steps apart as it is.
    if not given.no_steps and systems[0].workload != "regroup":
        rounds.append((True, None))
    rounds += [(False, limit) for limit in given.limits]
    for number, (by_steps, limit) in enumerate(rounds):
        # Each round begins with another system, so that none is always the first.
        first = number % len(systems)
        for system in systems[first:] + systems[:first]:
            if limit is not None or system.tables:
                yield system, number, by_steps, limit


def compare(workload: str, source: Path, folder: Path, given: argparse.Namespace) -> Iterator[dict]:
    """Run every system of a workload in turn, and yield a row after each run."""
    systems = [one for one in contenders.SYSTEMS if one.workload == workload and wanted(one, given)]
    # What a system took without a limit says how long to wait for it under one.
    took: dict[str, float] = {}
    for system, number, by_steps, limit in turns(systems, given):
        row = {"workload": workload, "size": given.size, "system": system.name, "round": number}
        row |= {"by_steps": by_steps, "limit": limit, "tables": system.tables, "lines": system.lines()}
        row |= {"workers": system.ranks or given.workers}
        lacking = system.lacking()
        if lacking:
            yield row | {"result": f"not installed: {lacking}", "steps": {}}
            continue
        known = took.get(system.name.removesuffix(contenders.ONE_WORKER))
        patience = max(PATIENCE * known, LEAST_PATIENCE) if limit and known else given.timeout
        case = contenders.Case(
            given.workers,
            # Regrouping is told by its steps in every run, so that all do the same.
            by_steps or workload == "regroup",
            limit,
            min(patience, given.timeout),
            workloads.BLOCK_RADII.get(given.size, workloads.BLOCK_RADIUS),
        )
        out = results_folder(folder, system, limit)
        said = f"{', by steps' if by_steps else ''}{f', within {limit / 1e6:g} MB' if limit else ''}"
        print(f"{workload} {system.name}, round {number}{said}", file=sys.stderr, flush=True)
        row |= contenders.run(system, source, out, case)
        if row["result"] == "done":
            took.setdefault(system.name, row["seconds"])
            row["difference"] = difference(system, systems[0], folder, out)
        if given.keep is None and system is not systems[0]:
            shutil.rmtree(out)
        yield row


def wanted(system: contenders.System, given: argparse.Namespace) -> bool:
    if not given.only or system.name == "serial":
        return True
    return any(word.lower() in system.name.lower() for word in given.only)


def results_folder(folder: Path, system: contenders.System, limit: int | None = None) -> Path:
    name = f"{system.workload}-{system.name}{f'-{limit}' if limit else ''}"
    return folder / name.replace(" ", "-").replace(",", "")


def difference(system: contenders.System, serial: contenders.System, folder: Path, out: Path) -> str:
    """Return how far results are from those of the serial run without a limit, where that got through."""
    reference = results_folder(folder, serial)
    if out == reference or not (reference / "steps.json").exists():
        return ""
    return contenders.difference(system.workload, out, reference)


def conditions() -> dict[str, str]:
    """Return what the numbers depend on: when, where, which versions."""
    found = benchmarks.conditions()
    # The number of ranks is that of the workers of each row.
    del found["ranks"]
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def measure(given: argparse.Namespace) -> tuple[list[dict], Path]:
    """Simulate and run everything; return the rows, and the CSV file that they were written to."""
    where = conditions()
    path = given.out / f"systems-{given.size}-{where['date'].replace(':', '')}.csv"
    given.out.mkdir(parents=True, exist_ok=True)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="mpiimg-systems-"))
    print(f"every run goes to {path}", file=sys.stderr)
    # Users have compiled kernels: an install leaves them.
    subprocess.run([sys.executable, "-m", "mpiimg.engine.precompile"], check=True)
    rows = []
    try:
        for workload in given.workload or workloads.WORKLOADS:
            source = workloads.simulate(workload, given.size, folder)
            for row in compare(workload, source, folder, given):
                rows.append(row | {"where": where})
                runs.write(path, rows)
    finally:
        if given.keep is None:
            shutil.rmtree(folder)
    return rows, path


def size_in_bytes(text: str) -> int:
    """Return the bytes of "300M" or "1.5G", in powers of ten."""
    factors = {"K": 10**3, "M": 10**6, "G": 10**9}
    factor = factors.get(text[-1:].upper(), 1)
    found = float(text[:-1] if factor > 1 else text) * factor
    if not 0 < found < float("inf"):
        raise ValueError(text)
    return int(found)


def main(arguments: list[str] | None = None) -> int:
    """Simulate and run all, or read what was run before; write tables and chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", choices=workloads.SIZES, default="small", help="of the input (default %(default)s)")
    add("--workload", choices=workloads.WORKLOADS, action="append", help="default: all")
    add("--rounds", type=int, help="times each system runs (default 3, with --limits 1)")
    add("--workers", type=int, default=2, help="processes at once (default %(default)s)")
    add("--only", nargs="+", help="systems whose names contain one of these words, and serial")
    add("--no-steps", action="store_true", help="leave out the round that tells steps apart")
    add(
        "--limits",
        nargs="+",
        type=size_in_bytes,
        default=[],
        metavar="SIZE",
        help="memory for all processes of a system together, such as 600M or 1G, above which they are killed",
    )
    add("--timeout", type=float, default=7200, help="seconds for one run (default %(default)s)")
    add("--keep", type=Path, metavar="DIR", help="work in DIR and leave all files there")
    add("--out", type=Path, default=benchmarks.HERE / "results", help="folder of CSV, tables and chart")
    add(
        "--from",
        dest="known",
        nargs="+",
        type=Path,
        metavar="CSV",
        help="run nothing: make tables and chart of the runs in these files",
    )
    add("--chart", type=Path, metavar="PNG", help="where the chart goes (default: beside the CSV)")
    add(
        "--page",
        type=Path,
        metavar="MD",
        help="put tables and chart into this page of the docs, in place of those that it has",
    )
    given = parser.parse_args(arguments)
    if given.rounds is None:
        given.rounds = 1 if given.limits else 3
    if given.rounds < (0 if given.limits else 1):
        parser.error("--rounds: each system is to run at least once, or with --limits under a limit alone")
    if given.chart and not (given.chart.suffix == ".png" and given.chart.parent.is_dir()):
        parser.error(f"--chart {given.chart}: give a .png in a folder that is there")
    given.no_steps |= bool(given.limits)
    if given.page:
        page = given.page.read_text()
        report.on_page(page, "", "")
        given.chart = given.chart or given.page.parent / "images" / "systems.png"
    rows, path = (runs.read(given.known), given.known[0]) if given.known else measure(given)
    runs.require_one_cpu(rows)
    text = report.markdown(rows)
    path.with_suffix(".md").write_text(text)
    if given.page:
        chart = os.path.relpath(given.chart, given.page.parent)
        given.page.write_text(report.on_page(page, text, chart))
    charts.dots(rows, given.chart or path.with_suffix(".png"))
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
