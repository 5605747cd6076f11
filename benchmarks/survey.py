"""A sky survey from exposures to a catalogue on a few ranks, as a Markdown table: time, bytes moved, memory.

    python benchmarks/survey.py --ranks 2 > table.md

simulates 24 visits of two sensors of 4000 x 4072 pixels and runs mpiimg-astro
on them, both under the mpiexec of the environment that runs this. That takes
some 9 GB on disk for the exposures, and 17 GB more while it runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import whole
from astropy.io import fits

LIBRARIES = ("numpy", "numba", "scipy", "astropy")


def report(folder: Path, given: argparse.Namespace, simulated: float, wall: float) -> str:
    """Return what a finished run in `folder` says of itself, in Markdown."""
    record = json.loads((folder / "sky" / "run.json").read_text())
    memory = ", in memory" if record["in_memory"] else f", {given.memory} a rank" if given.memory else ""
    patches = len(list((folder / "sky").glob("patch-*.fits")))
    sources = fits.getheader(folder / "sky" / "catalogue.fits", 1)["NAXIS2"]
    return "\n".join(
        [
            f"{given.visits} visits x {given.sensors} sensors of {given.shape}, {patches} patches, "
            f"{sources} sources; {given.ranks} ranks{memory}; {whole.conditions(LIBRARIES)}",
            "",
            whole.table(record["stages"], wall, "write patches"),
            "",
            f"Simulating the survey took {simulated:.0f} s.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Simulate, run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--visits", type=int, default=24, help="(default %(default)s)")
    parser.add_argument("--sensors", type=int, default=2, help="of a visit (default %(default)s)")
    parser.add_argument("--shape", default="4000x4072", help="pixels of a sensor (default %(default)s)")
    parser.add_argument("--memory", help="that a rank may use, as mpiimg-astro takes it")
    parser.add_argument("--in-memory", action="store_true", help="stage nothing on disk")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and leave all files there")
    given = parser.parse_args(arguments)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="mpiimg-survey-"))
    raw = folder / "raw"
    try:
        size = ("--visits", given.visits, "--sensors", given.sensors, "--shape", given.shape)
        simulated = whole.launch(
            given.ranks, "mpiimg-simulate", "astro", *size, "--out", raw, "--force", "--quiet"
        )
        exposures = folder / "exposures.txt"
        exposures.write_text("".join(f"{path}\n" for path in sorted(raw.glob("sim-*.fits"))))
        flags = (*(["--in-memory"] * given.in_memory), *(["--memory", given.memory] if given.memory else []))
        run = (f"@{exposures}", "--recipe", "study", "--out", folder / "sky", "--force", "--verbose", *flags)
        wall = whole.launch(given.ranks, "mpiimg-astro", *run)
        print(report(folder, given, simulated, wall))
    finally:
        if given.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
