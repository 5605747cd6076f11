"""`make bench-scaling`: what grows with the number of ranks, measured, and as the plan predicts further.

    .venv/bin/python benchmarks/scaling.py --ranks 1 4 16 64

Of both pipelines: runs of one input on more and more ranks (strong), and of
inputs that grow with the ranks (weak), give bytes, messages, exchanges and
memory a rank; all but memory are exact on any machine, and as the plan says.
Times tell something only up to as many ranks as there are cores. The plan
alone then goes on to a cohort and to a survey on 4096 ranks. What the plan of
a stage takes, which every rank makes, is measured over more and more chunks.
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
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import run as benchmarks

#: What is measured of each run.
QUANTITIES = (
    *("seconds", "cpu_seconds", "bytes_moved", "bytes_per_rank"),
    *("messages", "messages_per_rank", "exchanges", "peak_per_rank"),
)

#: Of these the rank that has most counts, of all else the sum.
MOST = ("peak_per_rank",)

#: What is shown of a plan.
PLANNED = (
    *("ranks", "seconds", "cpu_seconds", "bytes_moved", "bytes_moved_between_nodes"),
    *("bytes_per_rank", "messages_per_rank", "peak_per_rank"),
)

#: Subjects of the cohort; ranks of a node; bytes of memory of a rank.
SUBJECTS, NODE, MEMORY = 900, 64, 4 << 30

#: Chunks along each side of the image of the stencil that is planned.
SIDES = (32, 64, 100, 316)

#: Ranks that plans are made for.
PLANS = tuple(4**k for k in range(7))


def launch(ranks: int, tool: str, *words) -> str:
    """Run a tool on `ranks` ranks, more than there are cores if need be; return what it prints."""
    here = Path(sys.executable).parent
    command = [here / "mpiexec", "-n", str(ranks), here / tool, *map(str, words)]
    environment = os.environ | dict.fromkeys(benchmarks.THREAD_VARIABLES, "1")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{tool} on {ranks} ranks ended with exit status {done.returncode}")
    return done.stdout


def subject(folder: Path) -> tuple:
    return (
        folder / "dwi.nii.gz",
        "--bvals",
        folder / "dwi.bval",
        "--bvecs",
        folder / "dwi.bvec",
        "--sigma",
        40,
    )


def sky(folder: Path, *flags) -> tuple:
    return (*sorted(folder.glob("sim-*.fits")), *flags)


def simulated_subject(folder: Path, given: argparse.Namespace, units: int) -> tuple:
    """Simulate a subject of so many times some volumes; return how mpiimg-neuro is given it."""
    size = ("--shape", given.shape, "--volumes", given.volumes * units)
    launch(1, "mpiimg-simulate", "neuro", *size, "--out", folder, "--quiet", "--force")
    return subject(folder)


def simulated_sky(folder: Path, given: argparse.Namespace, units: int) -> tuple:
    """Simulate two visits of so many sensors; return how mpiimg-astro is given them, in small patches."""
    size = ("--visits", 2, "--sensors", units, "--shape", given.sensor)
    launch(1, "mpiimg-simulate", "astro", *size, "--out", folder, "--quiet", "--force")
    return sky(folder, "--patch", 200, "--border", 20)


#: By pipeline: how its input is made, of as many units as ranks for the weak series.
WORKLOADS = {
    "neuro": ("mpiimg-neuro", simulated_subject),
    "astro": ("mpiimg-astro", simulated_sky),
}


def measure(tool: str, source: tuple, out: Path, ranks: int) -> dict:
    """Process an input in memory on `ranks` ranks; return what all stages took together."""
    launch(ranks, tool, *source, "--in-memory", "--force", "--quiet", "--out", out)
    stages = json.loads((out / "run.json").read_text())["stages"]
    for key in ("bytes_moved", "messages", "bytes_per_rank", "messages_per_rank"):
        if any(stage[key] != stage["planned"][key] for stage in stages):
            print(f"{tool} on {ranks} ranks: {key} is not as planned", file=sys.stderr)
    return {key: (max if key in MOST else sum)(stage[key] for stage in stages) for key in QUANTITIES}


def plans(tool: str, words: Sequence, counts: Sequence[int], memory: int = MEMORY) -> list:
    """Return the plan of `tool` on each number of ranks, at the default rates."""
    from mpiimg.engine.plan import Resources, plan_recipe
    from mpiimg.tools import cli, registry

    made = registry.tool(tool)
    values = vars(cli.parser(tool).parse_args([*map(str, words), "--out", "none"]))
    recipe = made.recipe(made.inspect(values), values)
    return [plan_recipe(recipe, Resources(n, memory, nodes=-(-n // NODE))) for n in counts]


def predict(tool: str, words: Sequence, counts: Sequence[int]) -> list[dict]:
    """Return what the plans of `tool` on each number of ranks come to."""
    from mpiimg.engine.log.show_plan import totals

    found = [totals(plan) | {"ranks": n} for plan, n in zip(plans(tool, words, counts), counts, strict=True)]
    return [{key: plan[key] for key in PLANNED} for plan in found]


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
                    "peak_per_rank": plan["peak_per_rank"],
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


def series(workload: str, given: argparse.Namespace, folder: Path) -> tuple[str, list[dict]]:
    """Measure a pipeline, strong and weak; return a section in Markdown, and the rows.

    The largest input of the weak series is that of the strong one, and so is the run on most ranks.
    """
    tool, make = WORKLOADS[workload]
    most = max(given.ranks)
    whole = make(folder / workload, given, most)
    strong = [{"ranks": n} | measure(tool, whole, folder / "out", n) for n in given.ranks]
    weak = [
        {"ranks": n} | measure(tool, make(folder / f"{workload}-{n}", given, n), folder / "out", n)
        for n in given.ranks
        if n < most
    ]
    weak += [row for row in strong if row["ranks"] == most]
    parts, rows = [], []
    for name, found in (("strong", strong), ("weak", weak)):
        counts = [row["ranks"] for row in found]
        laws = {key: law(counts, [row[key] for row in found]) for key in QUANTITIES}
        parts.append(f"## {workload}, {name}\n\n{table(found, laws)}")
        rows += [{"series": f"{workload} {name}"} | row for row in found]
    return "\n\n".join(parts), rows


def planning(side: int, ranks: int) -> dict:
    """Return how long every rank plans a stencil over side x side chunks, and what it comes to."""
    from mpiimg.engine.array import Array
    from mpiimg.engine.forecast import stage_sizes
    from mpiimg.engine.needs import Part
    from mpiimg.engine.plan import Resources, plan_stage
    from mpiimg.engine.stage import Compute

    image = Array("image", "yx", (64 * side, 64 * side), "float32")
    grid, resources, chunks = image.cut(y=64, x=64), Resources(ranks, MEMORY), range(side * side)
    make = Compute("make", grid, writes=(image,), work=None)
    near = (Part(image, {"y": 3, "x": 3}),)
    blur = Compute("blur", grid, reads=near, writes=(image.like("blurred"),), work=None)
    made = plan_stage(make, stage_sizes(make), resources, {}, chunks)
    placed = {image.name: made.placements[0]}
    started = time.perf_counter()
    planned = plan_stage(blur, stage_sizes(blur), resources, placed, chunks)
    planned.rounds(blur, placed, chunks)
    return {
        "chunks": len(chunks),
        "ranks": ranks,
        "seconds": time.perf_counter() - started,
        "bytes_moved": planned.moved,
        "messages": planned.messages,
    }


def predictions(given: argparse.Namespace, folder: Path) -> tuple[list[str], list[dict]]:
    """Plan a subject, the cohort and the survey; return sections in Markdown, and rows."""
    parts, rows = [], []
    big = header_only(folder / "subject", given.predict_shape, given.predict_volumes)
    planned = predict("mpiimg-neuro", subject(big), PLANS)
    title = f"{given.predict_shape}, {given.predict_volumes} volumes"
    parts.append(f"## predicted: one subject of {title}, staged\n\n{table(planned)}")
    turns = f"## predicted: {SUBJECTS} such subjects on so many ranks, in groups as large as is fastest"
    parts.append(f"{turns}\n\n{table(fastest(planned))}")
    rows += [{"series": "predicted subject"} | row for row in planned]
    visits, sensors, shape = given.predict_survey
    headers_of_survey(folder / "sky", int(visits), int(sensors), shape)
    planned = predict("mpiimg-astro", sky(folder / "sky"), PLANS)
    title = f"{visits} visits x {sensors} sensors of {shape}"
    parts.append(f"## predicted: a survey of {title}, staged\n\n{table(planned)}")
    rows += [{"series": "predicted survey"} | row for row in planned]
    planned = [planning(side, NODE) for side in SIDES]
    parts.append(f"## planning a stencil over more and more chunks, on each rank\n\n{table(planned)}")
    return parts, rows + [{"series": "planning"} | row for row in planned]


def fastest(plans: list[dict]) -> list[dict]:
    """Return, for each number of ranks planned for, the groups by which the cohort is done soonest."""
    return [{"ranks": n} | min(cohort(plans, n), key=lambda row: row["hours"]) for n in PLANS]


def main(arguments: list[str] | None = None) -> int:
    """Measure, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="measured")
    parser.add_argument("--only", choices=WORKLOADS, help="measure this pipeline alone")
    parser.add_argument("--shape", default="20x24x48", help="voxels of the subject (default %(default)s)")
    parser.add_argument("--volumes", type=int, default=8, help="of it, a rank (default %(default)s)")
    parser.add_argument("--sensor", default="160x160", help="pixels of a sensor (default %(default)s)")
    parser.add_argument("--predict-only", action="store_true", help="measure nothing")
    parser.add_argument("--measure-only", action="store_true", help="predict nothing")
    parser.add_argument("--predict-shape", default="145x174x145", help="of a subject of the cohort")
    parser.add_argument("--predict-volumes", type=int, default=288)
    parser.add_argument(
        *("--predict-survey",),
        nargs=3,
        metavar=("VISITS", "SENSORS", "SHAPE"),
        default=("24", "60", "4000x4072"),
    )
    parser.add_argument("--out", type=Path, default=benchmarks.HERE / "results", help="for the tables")
    given = parser.parse_args(arguments)
    where = benchmarks.conditions()
    parts, rows = ["  ".join(f"{key} {value}" for key, value in where.items())], []
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mpiimg-scaling-") as name:
        folder = Path(name)
        for workload in [] if given.predict_only else [given.only] if given.only else WORKLOADS:
            text, measured = series(workload, given, folder)
            parts, rows = [*parts, text], [*rows, *measured]
        if not given.measure_only:
            texts, planned = predictions(given, folder)
            parts, rows = parts + texts, rows + planned
    stem = given.out / f"scaling-{where['date'].replace(':', '')}"
    with open(f"{stem}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    text = "\n\n".join(parts) + "\n"
    Path(f"{stem}.md").write_text(text)
    print(text)
    return 0


def headers_of_survey(folder: Path, visits: int, sensors: int, shape: str) -> None:
    """Make the exposures of a survey of which only headers are there: pixels are holes in the files."""
    from astropy.io import fits

    from mpiimg.simulate.astro import SimulatedSurvey
    from mpiimg.simulate.survey_files import exposure_name

    rows, columns = map(int, shape.split("x"))
    survey = SimulatedSurvey(visits, sensors, (rows, columns))
    folder.mkdir()
    for visit in range(visits):
        for sensor in range(sensors):
            size = [("NAXIS", 2), ("NAXIS1", columns), ("NAXIS2", rows)]
            header = fits.Header([("SIMPLE", True), ("BITPIX", -32), *size])
            header.extend(survey.header(visit, sensor))
            with open(folder / f"{exposure_name(visit, sensor)}.fits", "wb") as file:
                file.write(header.tostring().encode("ascii"))
                file.truncate(file.tell() + -(-4 * rows * columns // 2880) * 2880)


def header_only(folder: Path, shape: str, volumes: int) -> Path:
    """Make a subject of which only header and gradients are there: all that a plan reads."""
    import gzip
    import os

    import nibabel

    folder.mkdir()
    image = nibabel.Nifti1Image(np.zeros((1, 1, 1, 1), np.int16), np.diag([-1.25, 1.25, 1.25, 1]))
    header = image.header.copy()
    header.set_data_shape((*map(int, shape.split("x")), volumes))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (folder / "dwi.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    # A hole, as long as the voxels would be: a file too short for its header is refused.
    os.truncate(folder / "dwi.nii.gz", 2 * int(np.prod(header.get_data_shape(), dtype=np.int64)))
    angles = np.linspace(0, np.pi, volumes)
    directions = np.stack(
        [np.cos(angles) * np.sin(7 * angles), np.sin(angles) * np.sin(7 * angles), np.cos(7 * angles)]
    )
    np.savetxt(folder / "dwi.bval", np.where(np.arange(volumes) % 16, 1000, 0)[None], fmt="%d")
    np.savetxt(folder / "dwi.bvec", directions / np.linalg.norm(directions, axis=0))
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
