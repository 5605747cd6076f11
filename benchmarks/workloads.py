"""What the systems are compared on: simulated subjects, surveys and volumes of several sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import run as benchmarks

WORKLOADS = ("neuro", "astro", "regroup")

#: In `deep`, data are large beside libraries, and the work on each voxel is small.
SIZES = ("tiny", "small", "medium", "deep", "hcp")

#: What is simulated, by workload and size: the arguments of mpiimg-simulate.
INPUTS = {
    ("neuro", "tiny"): ("--shape", "24x28x20", "--volumes", "8"),
    ("neuro", "small"): ("--shape", "48x56x40", "--volumes", "12"),
    ("neuro", "medium"): ("--shape", "64x72x56", "--volumes", "16"),
    ("neuro", "deep"): ("--shape", "72x80x56", "--volumes", "288"),
    ("neuro", "hcp"): ("--shape", "145x174x145", "--volumes", "288"),
    ("astro", "tiny"): ("--shape", "300x320", "--visits", "3", "--sensors", "1"),
    ("astro", "small"): ("--shape", "600x640", "--visits", "6", "--sensors", "2"),
    ("astro", "medium"): ("--shape", "1000x1018", "--visits", "6", "--sensors", "1"),
    ("astro", "deep"): ("--shape", "1000x1018", "--visits", "24", "--sensors", "1"),
    ("astro", "hcp"): ("--shape", "4000x4072", "--visits", "24", "--sensors", "2"),
}

#: Volumes, and voxels of each, that are regrouped.
VOLUMES = {
    "tiny": (8, 20_000),
    "small": (64, 300_000),
    "medium": (128, 600_000),
    "deep": (288, 600_000),
    "hcp": (288, 3_658_350),
}

#: Pixels a side of a patch, and of its border, by size.
PATCHES = {
    "tiny": (200, 20),
    "small": (500, 50),
    "medium": (800, 50),
    "deep": (500, 50),
    "hcp": (2000, 100),
}

#: How far around a voxel denoising looks for patches: as far as in the study, unless said here.
BLOCK_RADIUS, BLOCK_RADII = 5, {"deep": 2}

ONE_THREAD = dict.fromkeys(benchmarks.THREAD_VARIABLES, "1")


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
    from mpiimg.astro.fits.search import find_exposures
    from mpiimg.astro.sky.tract import Tract
    from mpiimg.astro.sky.wcs import footprint, parse_wcs

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
