"""One subject from .nii.gz to maps on a few ranks, as a Markdown table: time, bytes moved, memory.

    python benchmarks/subject.py --ranks 2 > table.md

simulates a subject of the size of the Human Connectome Project and runs
mpiimg-neuro on it, both under the mpiexec of the environment that runs this.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import whole

LIBRARIES = ("numpy", "numba", "scipy", "dipy")

HCP_SHAPE, HCP_VOLUMES = "145x174x145", 288

#: Bytes a rank may take beside its share of the raw data and of the denoised data.
ALLOWANCE = 400e6


def memory_bound(raw_bytes: int, ranks: int) -> float:
    """Return the bytes that a rank may take: its share of int16 and denoised data, and a margin."""
    return 3 * raw_bytes / ranks + ALLOWANCE


def report(folder: Path, ranks: int, simulated: float, wall: float) -> str:
    """Return what a finished run in `folder` says of itself, in Markdown."""
    record = json.loads((folder / "maps" / "run.json").read_text())
    mask = json.loads((folder / "maps" / "dwi_desc-brain_mask.json").read_text())
    volumes, *extents = record["inputs"]["dwi"]["shape"]
    raw_bytes = 2 * volumes * extents[0] * extents[1] * extents[2]
    peak = max(stage["peak_per_rank"] for stage in record["stages"])
    bound = memory_bound(raw_bytes, ranks)
    shape = " x ".join(map(str, extents[::-1]))
    memory = ", in memory" if record["in_memory"] else ""
    return "\n".join(
        [
            f"{shape} voxels, {volumes} volumes, {mask['Voxels']} voxels in the mask; {ranks} ranks{memory}; "
            f"{whole.conditions(LIBRARIES)}",
            "",
            whole.table(record["stages"], wall),
            "",
            f"Peak memory of a rank: {peak / 1e6:.0f} MB, {bound / 1e6:.0f} MB allowed (its share of the "
            f"{raw_bytes / 1e6:.0f} MB of raw data and twice these of denoised data, and "
            f"{ALLOWANCE / 1e6:.0f} MB). Simulating the subject took {simulated:.0f} s.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Simulate, run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shape", default=HCP_SHAPE, help="voxels (default %(default)s)")
    parser.add_argument("--volumes", type=int, default=HCP_VOLUMES, help="(default %(default)s)")
    parser.add_argument("--in-memory", action="store_true", help="stage nothing on disk")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and leave all files there")
    given = parser.parse_args(arguments)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="mpiimg-subject-"))
    raw = folder / "raw"
    size = ("--shape", given.shape, "--volumes", given.volumes)
    try:
        simulated = whole.launch(given.ranks, "mpiimg-simulate", "neuro", *size, "--out", raw, "--force")
        subject = (raw / "dwi.nii.gz", "--bvals", raw / "dwi.bval", "--bvecs", raw / "dwi.bvec")
        flags = ("--in-memory",) if given.in_memory else ()
        wall = whole.launch(
            given.ranks, "mpiimg-neuro", *subject, "--out", folder / "maps", "--force", "--verbose", *flags
        )
        print(report(folder, given.ranks, simulated, wall))
    finally:
        if given.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
