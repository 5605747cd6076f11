"""`make bench-systems`: both workloads on every system that is installed, as tables, CSV and plots.

    .venv-bench/bin/python benchmarks/side_by_side.py --size small --rounds 3

Systems take their turns round by round on the same simulated input; tables give
medians, and ranges where there are several rounds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import charts
import contenders
import numpy as np
import report
import run as benchmarks

#: What is simulated, by workload and size: the arguments of mpiimg-simulate.
INPUTS = {
    ("neuro", "tiny"): ("--shape", "24x28x20", "--volumes", "8"),
    ("neuro", "small"): ("--shape", "48x56x40", "--volumes", "12"),
    ("neuro", "medium"): ("--shape", "64x72x56", "--volumes", "16"),
    ("neuro", "hcp"): ("--shape", "145x174x145", "--volumes", "288"),
    ("astro", "tiny"): ("--shape", "300x320", "--visits", "3", "--sensors", "1"),
    ("astro", "small"): ("--shape", "600x640", "--visits", "6", "--sensors", "2"),
    ("astro", "medium"): ("--shape", "1000x1018", "--visits", "6", "--sensors", "1"),
    ("astro", "hcp"): ("--shape", "4000x4072", "--visits", "24", "--sensors", "2"),
}

#: Volumes, and voxels of each, that are regrouped.
VOLUMES = {
    "tiny": (8, 20_000),
    "small": (64, 300_000),
    "medium": (128, 600_000),
    "hcp": (288, 3_658_350),
}

#: Pixels a side of a patch, and of its border, by size.
PATCHES = {"tiny": (200, 20), "small": (500, 50), "medium": (800, 50), "hcp": (2000, 100)}

ONE_THREAD = dict.fromkeys(benchmarks.THREAD_VARIABLES, "1")

WORKLOADS = ("neuro", "astro", "regroup")

SIZES = ("tiny", "small", "medium", "hcp")


def simulate(workload: str, size: str, folder: Path) -> Path:
    """Simulate the input of a workload in `folder`, unless it is there; return where it is."""
    source = folder / f"{workload}-{size}"
    if not source.exists():
        here, part = Path(sys.executable).parent, source.with_suffix(".part")
        if workload == "regroup":
            make_volumes(part, *VOLUMES[size])
            return part.rename(source)
        command = [here / "mpiexec", "-n", "2", here / "mpiimg-simulate", workload, "--out", part, "--force"]
        subprocess.run([*command, *INPUTS[workload, size]], check=True, env=os.environ | ONE_THREAD)
        if workload == "astro":
            lay_out(part, *PATCHES[size])
        part.rename(source)
    return source


def make_volumes(folder: Path, volumes: int, voxels: int) -> None:
    """Write volumes of noise to files of their own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    for number in range(volumes):
        np.save(folder / f"volume-{number:04d}.npy", random.random(voxels, np.float32))


def lay_out(folder: Path, patch: int, border: int) -> None:
    """Lay a tract around the exposures in `folder`; write it for mpiimg, and its patches for the others."""
    from mpiimg.io.exposure_search import find_exposures
    from mpiimg.io.tract import Tract
    from mpiimg.io.wcs import footprint, parse_wcs

    found = find_exposures([str(path) for path in sorted(folder.glob("sim-*.fits"))])
    outlines = [footprint(parse_wcs(ref.wcs), ref.shape) for ref in found]
    tract = Tract.around(outlines, None, 0.333, patch, border)
    header = tract.wcs.to_header().tostring()
    patches = [
        {
            "name": f"patch-{x}-{y}",
            "tract": header,
            "outer": tract.outer((x, y)),
            "inner": tract.inner((x, y)),
        }
        for x, y in tract.patches
    ]
    (folder / "tract.toml").write_text(tract.to_toml())
    (folder / "patches.json").write_text(json.dumps(patches))


def compare(workload: str, source: Path, folder: Path, given: argparse.Namespace) -> list[dict]:
    """Run every system of a workload in turn, `given.rounds` times, and once by steps; return all rows."""
    systems = [one for one in contenders.SYSTEMS if one.workload == workload and wanted(one, given)]
    rows = []
    turns = [(number, False) for number in range(given.rounds)]
    # Regrouping tells its steps apart as it is.
    turns += [(given.rounds, True)] * (not given.no_steps and workload != "regroup")
    for number, steps in turns:
        # Each round begins with another system, so that none is always the first.
        for system in systems[number % len(systems) :] + systems[: number % len(systems)]:
            rows.append(one_run(system, source, folder, number, steps, given))
    add_differences(workload, systems, folder, rows)
    return rows


def wanted(system: contenders.System, given: argparse.Namespace) -> bool:
    return not given.only or any(word.lower() in system.name.lower() for word in given.only)


def one_run(system, source: Path, folder: Path, number: int, steps: bool, given) -> dict:
    row = {"workload": system.workload, "system": system.name, "round": number, "by_steps": steps}
    row |= {"tables": system.tables, "lines": system.lines(), "workers": given.workers}
    lacking = system.lacking()
    if lacking:
        return row | {"result": f"not installed: {lacking}", "steps": {}}
    print(f"{system.workload} {system.name}, round {number}{' by steps' if steps else ''}", file=sys.stderr)
    out = results_folder(folder, system)
    return row | contenders.run(system, source, out, given.workers, steps, given.memory, given.timeout)


def results_folder(folder: Path, system: contenders.System) -> Path:
    return folder / f"{system.workload}-{system.name}".replace(" ", "-").replace(",", "")


def add_differences(workload: str, systems: list, folder: Path, rows: list[dict]) -> None:
    """Note in each row how far the last results of its system are from the serial ones."""
    reference = results_folder(folder, systems[0])
    for system in systems:
        mine = [row for row in rows if row["system"] == system.name]
        if mine[-1]["result"] == "done" and system is not systems[0]:
            found = contenders.difference(workload, results_folder(folder, system), reference)
            for row in mine:
                row["difference"] = found


def write_csv(path: Path, rows: list[dict], where: dict[str, str]) -> None:
    """Write every run as a row, its steps in columns, with the conditions it was measured under."""
    flat = [
        {key: value for key, value in row.items() if key not in ("steps", "tables")}
        | {f"{step}_cpu_s": spent for step, (_, spent) in row["steps"].items()}
        | {f"{step}_s": seconds for step, (seconds, _) in row["steps"].items()}
        | where
        for row in rows
    ]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)


def main(arguments: list[str] | None = None) -> int:
    """Simulate, run all, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small", help="of the input (default %(default)s)")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="times each system runs (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes at once (default %(default)s)")
    parser.add_argument(
        "--only", nargs="+", help="systems whose names contain one of these words, and serial"
    )
    parser.add_argument("--no-steps", action="store_true", help="leave out the round that tells steps apart")
    parser.add_argument("--memory", type=int, help="bytes for a system as a whole, above which it is killed")
    parser.add_argument(
        "--timeout", type=float, default=7200, help="seconds for one run (default %(default)s)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and leave all files there")
    parser.add_argument("--out", type=Path, default=benchmarks.HERE / "results", help="for the tables")
    given = parser.parse_args(arguments)
    if given.only:
        given.only.append("serial")
    folder = given.keep or Path(tempfile.mkdtemp(prefix="mpiimg-systems-"))
    where = benchmarks.conditions()
    stem = f"systems-{given.size}-{where['date'].replace(':', '')}"
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    # Users have compiled kernels: an install leaves them.
    subprocess.run([sys.executable, "-m", "mpiimg.kernels.warm"], check=True)
    try:
        for workload in given.workload or WORKLOADS:
            source = simulate(workload, given.size, folder)
            rows += compare(workload, source, folder, given)
            # What is measured so far is kept, should a later workload be interrupted.
            write_csv(given.out / f"{stem}.csv", rows, where)
        text = report.markdown(rows, where)
        (given.out / f"{stem}.md").write_text(text)
        charts.bars(rows, given.out / f"{stem}.png")
        print(text)
    finally:
        if given.keep is None:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
