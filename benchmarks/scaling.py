"""`make bench-scaling`: what grows with the number of ranks, measured, and as the plan predicts further.

    .venv/bin/python benchmarks/scaling.py --ranks 1 2 4 8

Runs of one simulated subject on more and more ranks (strong), and of subjects
that grow with the ranks (weak), give bytes, messages, exchanges and memory a
rank; those are exact on any machine. Times tell something only up to as many
ranks as there are cores. The plan alone, which runs assert to be right, then
goes on to a cohort and to a survey on 4096 ranks.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import run as benchmarks

#: What each run is asked for, and what of it should not grow with the ranks.
QUANTITIES = ("seconds", "cpu_seconds", "bytes_moved", "messages", "exchanges", "peak_a_rank")

#: Subjects of the cohort; ranks of a node; memory of a rank.
SUBJECTS, NODE, MEMORY = 900, 64, "4G"


def launch(ranks: int, tool: str, *words) -> str:
    """Run a tool on `ranks` ranks, more than there are cores if need be; return what it prints."""
    here = Path(sys.executable).parent
    command = [here / "mpiexec", "-n", str(ranks), here / tool, *map(str, words)]
    environment = os.environ | dict.fromkeys(benchmarks.THREAD_VARIABLES, "1")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{tool} on {ranks} ranks ended with exit status {done.returncode}")
    return done.stdout


def simulate(folder: Path, shape: tuple[int, int, int], volumes: int) -> Path:
    """Simulate a subject in `folder`; return it."""
    words = (
        "--shape",
        "x".join(map(str, shape)),
        "--volumes",
        volumes,
        "--out",
        folder,
        "--quiet",
        "--force",
    )
    launch(1, "mpiimg-simulate", "neuro", *words)
    return folder


def subject(folder: Path) -> tuple:
    return (folder / "dwi.nii.gz", "--bvals", folder / "dwi.bval", "--bvecs", folder / "dwi.bvec", "--quiet")


def measure(source: Path, out: Path, ranks: int) -> dict:
    """Process a subject on `ranks` ranks; return what all stages took together."""
    launch(ranks, "mpiimg-neuro", *subject(source), "--sigma", 40, "--in-memory", "--force", "--out", out)
    return totals(json.loads((out / "run.json").read_text())["stages"])


def totals(stages: list[dict]) -> dict:
    """Return sums over stages, of memory the most."""
    found = {key: sum(stage[key] for stage in stages) for key in QUANTITIES if key != "peak_a_rank"}
    return found | {"peak_a_rank": max(stage["peak_a_rank"] for stage in stages)}


def predict(tool: str, words: tuple, ranks: int) -> dict:
    """Return the totals of the plan of `tool` on `ranks` ranks."""
    nodes = -(-ranks // NODE)
    flags = ("--plan=json", "--ranks", ranks, "--nodes", nodes, "--memory", MEMORY)
    return json.loads(launch(1, tool, *words, *flags))["totals"] | {"ranks": ranks}


def law(ranks: list[int], values: list[float]) -> float:
    """Return the power of `ranks` by which `values` grow, by least squares of logarithms; NaN if unknown."""
    known = [(math.log(n), math.log(value)) for n, value in zip(ranks, values, strict=True) if value > 0]
    if len({x for x, _ in known}) < 2:
        return math.nan
    return float(np.polyfit(*np.array(known).T, 1)[0])


def cohort(plans: list[dict], ranks: int) -> list[dict]:
    """Return, for groups of each planned size, how long `ranks` ranks take for all subjects of the cohort."""
    found = []
    for plan in plans:
        groups = ranks // plan["ranks"]
        if groups:
            turns = -(-SUBJECTS // groups)
            found.append(
                {
                    "ranks a subject": plan["ranks"],
                    "groups": groups,
                    "turns": turns,
                    "hours": turns * plan["seconds"] / 3600,
                    "peak_a_rank": plan["peak_a_rank"],
                }
            )
    return found


def table(rows: list[dict], laws: dict[str, float] | None = None) -> str:
    """Return rows as a Markdown table, with the power law of each column in the last line."""
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(_text(row[name]) for name in names) + " |" for row in rows]
    if laws:
        powers = (
            f"ranks^{laws[name]:.2f}" if math.isfinite(laws.get(name, math.nan)) else "" for name in names[1:]
        )
        lines.append("| grows as | " + " | ".join(powers) + " |")
    return "\n".join(lines)


def _text(value) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def series(name: str, sources: list[Path], ranks: list[int], folder: Path) -> tuple[str, list[dict]]:
    """Measure each source on its number of ranks; return a section in Markdown, and the rows."""
    rows = [
        {"ranks": n} | measure(source, folder / "out", n) for source, n in zip(sources, ranks, strict=True)
    ]
    laws = {key: law(ranks, [row[key] for row in rows]) for key in QUANTITIES}
    return f"## {name}\n\n{table(rows, laws)}", [{"series": name} | row for row in rows]


def main(arguments: list[str] | None = None) -> int:
    """Measure, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="measured")
    parser.add_argument("--shape", default="36x44x64", help="voxels of the subject (default %(default)s)")
    parser.add_argument("--volumes", type=int, default=64, help="of the subject (default %(default)s)")
    parser.add_argument("--predict-only", action="store_true", help="measure nothing")
    parser.add_argument("--predict-shape", default="145x174x145", help="of a subject of the cohort")
    parser.add_argument("--predict-volumes", type=int, default=288)
    parser.add_argument("--out", type=Path, default=benchmarks.HERE / "results", help="for the tables")
    given = parser.parse_args(arguments)
    x, y, z = map(int, given.shape.split("x"))
    where = benchmarks.conditions()
    parts, rows = ["  ".join(f"{key} {value}" for key, value in where.items())], []
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mpiimg-scaling-") as name:
        folder = Path(name)
        if not given.predict_only:
            source = simulate(folder / "subject", (x, y, z), given.volumes)
            text, measured = series("strong: one subject", [source] * len(given.ranks), given.ranks, folder)
            parts, rows = [*parts, text], [*rows, *measured]
            each = max(8, given.volumes // 8)  # fewer determine no tensor
            sources = [simulate(folder / f"subject-{n}", (x, y, z), each * n) for n in given.ranks]
            text, measured = series(f"weak: {each} volumes a rank", sources, given.ranks, folder)
            parts, rows = [*parts, text], [*rows, *measured]
        big = header_only(folder / "cohort", given.predict_shape, given.predict_volumes)
        words = (*subject(big), "--sigma", 40, "--out", folder / "none")
        plans = [predict("mpiimg-neuro", words, 4**k) for k in range(7)]
        keys = ("ranks", "seconds", "cpu_seconds", "bytes_moved", "bytes_moved_between_nodes", "peak_a_rank")
        shown = [{key: plan[key] for key in keys} for plan in plans]
        laws = {
            key: law([plan["ranks"] for plan in plans], [plan[key] for plan in plans]) for key in keys[1:]
        }
        parts.append(f"## predicted: one subject of {given.predict_shape}, staged\n\n{table(shown, laws)}")
        parts.append(f"## predicted: {SUBJECTS} subjects on 4096 ranks\n\n{table(cohort(plans, 4096))}")
        rows += [{"series": "predicted subject"} | row for row in shown]
    stem = given.out / f"scaling-{where['date'].replace(':', '')}"
    with open(f"{stem}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    text = "\n\n".join(parts) + "\n"
    Path(f"{stem}.md").write_text(text)
    print(text)
    return 0


def header_only(folder: Path, shape: str, volumes: int) -> Path:
    """Make a subject of which only header and gradients are there: all that a plan reads."""
    import gzip

    import nibabel

    folder.mkdir()
    image = nibabel.Nifti1Image(np.zeros((1, 1, 1, 1), np.int16), np.diag([-1.25, 1.25, 1.25, 1]))
    header = image.header.copy()
    header.set_data_shape((*map(int, shape.split("x")), volumes))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (folder / "dwi.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    angles = np.linspace(0, np.pi, volumes)
    directions = np.stack(
        [np.cos(angles) * np.sin(7 * angles), np.sin(angles) * np.sin(7 * angles), np.cos(7 * angles)]
    )
    np.savetxt(folder / "dwi.bval", np.where(np.arange(volumes) % 16, 1000, 0)[None], fmt="%d")
    np.savetxt(folder / "dwi.bvec", directions / np.linalg.norm(directions, axis=0))
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
