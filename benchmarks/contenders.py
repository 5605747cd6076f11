"""The systems that stand side by side: their programs, how each is started, and where its results are."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import lines
import numpy as np

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "systems"

#: What the tools of mpiimg call what the other programs call so.
TOOL_NAMES = {
    "mask.nii.gz": "dwi_desc-brain_mask.nii.gz",
    "fa.nii.gz": "dwi_model-tensor_param-fa_dwimap.nii.gz",
    "md.nii.gz": "dwi_model-tensor_param-md_dwimap.nii.gz",
}

#: The step that a stage of mpiimg belongs to, by the beginning of its name.
STEP_OF_STAGE = {
    "read-dwi": "ingest",
    "b0-mean": "mean",
    "median": "mask",
    "range": "mask",
    "otsu": "mask",
    "threshold": "mask",
    "mask": "mask",
    "denoise": "denoise",
    "fit": "fit",
    "calibrate": "calibrate",
    "zero-points": "calibrate",
    "warp": "warp",
    "weigh": "coadd",
    "coadd": "coadd",
    "few-inputs": "coadd",
    "detect": "detect",
    "catalogue": "detect",
    "write": "write",
    "read": "ingest",
    "regroup": "regroup",
}


@dataclass(frozen=True)
class System:
    """A system in one workload.

    Parameters
    ----------
    name : as the tables have it
    workload : "neuro", "astro" or "regroup"
    program : file in systems/, or a tool of mpiimg
    needs : modules without which it cannot run
    flags : more arguments
    tables : "same" where it calls the same functions as the others, "best" where it does its best
    mpi : started by mpiexec, and told of its steps by run.json
    ranks : how many, where not as many as the others have workers
    """

    name: str
    workload: str
    program: str
    needs: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    tables: tuple[str, ...] = ("same", "best")
    mpi: bool = False
    ranks: int | None = None

    @property
    def is_tool(self) -> bool:
        return not self.program.endswith(".py")

    def lines(self) -> int | None:
        """Return the lines of code of its program; none of the user's own for a tool."""
        return 0 if self.is_tool else lines.count_file(PROGRAMS / self.program)

    def lacking(self) -> str:
        """Return what it needs and is not there, "" if nothing."""
        missing = [
            name
            for name in self.needs
            if not (shutil.which(name) if name == "java" else importlib.util.find_spec(name))
        ]
        return ", ".join(missing)

    def command(self, source: Path, out: Path, workers: int, steps: bool, memory: int | None) -> list[str]:
        """Return the command that runs it on the input in `source`."""
        here = Path(sys.executable).parent
        workers = self.ranks or workers
        launcher = [str(here / "mpiexec"), "-n", str(workers)] if self.mpi else []
        if self.is_tool:
            limits = ["--memory", str(memory // workers)] if memory else ["--in-memory"]
            given = TOOL_ARGUMENTS[self.workload](source)
            return [*launcher, str(here / self.program), *given, "--out", str(out), *self.flags, *limits]
        flags = [flag.format(workers=workers) for flag in self.flags]
        limits = ["--memory", str(memory)] if memory else []
        given = [str(source), str(out), "--workers", str(workers), *["--steps"] * steps]
        return [*launcher, sys.executable, str(PROGRAMS / self.program), *given, *flags, *limits]


TOOL_ARGUMENTS: Mapping[str, Callable[[Path], list[str]]] = {
    "neuro": lambda source: [
        str(source / "dwi.nii.gz"),
        *("--bvals", str(source / "dwi.bval"), "--bvecs", str(source / "dwi.bvec")),
        *("--sigma", "40"),
    ],
    "astro": lambda source: [
        *sorted(str(path) for path in source.glob("sim-*.fits")),
        *("--tract", str(source / "tract.toml")),
    ],
}

ASTRO = ("astroscrappy", "ccdproc", "reproject")

SYSTEMS = (
    System("serial", "neuro", "neuro_serial.py", ("dipy",)),
    System("dipy, OpenMP", "neuro", "neuro_serial.py", ("dipy",), ("--threads", "{workers}")),
    System("Dask delayed", "neuro", "neuro_dask_delayed.py", ("dask", "distributed")),
    System("Dask array", "neuro", "neuro_dask_array.py", ("dask", "distributed")),
    System("Spark", "neuro", "neuro_spark.py", ("pyspark", "java")),
    System("TensorFlow", "neuro", "neuro_tensorflow.py", ("tensorflow",), tables=("best",)),
    System("TensorFlow, dipy by escape", "neuro", "neuro_tensorflow.py", ("tensorflow",), ("--function",)),
    System("mpiimg, their functions", "neuro", "neuro_mpiimg.py", ("mpi4py",), tables=("same",), mpi=True),
    System(
        "mpiimg, their functions, one rank",
        "neuro",
        "neuro_mpiimg.py",
        ("mpi4py",),
        tables=("same",),
        mpi=True,
        ranks=1,
    ),
    System("mpiimg", "neuro", "mpiimg-neuro", ("mpi4py",), tables=("best",), mpi=True),
    System("mpiimg, one rank", "neuro", "mpiimg-neuro", ("mpi4py",), tables=("best",), mpi=True, ranks=1),
    System("serial", "astro", "astro_serial.py", ASTRO),
    System("Dask delayed", "astro", "astro_dask.py", ("dask", "distributed", *ASTRO)),
    System("Spark", "astro", "astro_spark.py", ("pyspark", "java", *ASTRO)),
    System(
        "mpiimg, their functions", "astro", "astro_mpiimg.py", ("mpi4py", *ASTRO), tables=("same",), mpi=True
    ),
    System("mpiimg", "astro", "mpiimg-astro", ("mpi4py",), tables=("best",), mpi=True),
    System("mpiimg, one rank", "astro", "mpiimg-astro", ("mpi4py",), tables=("best",), mpi=True, ranks=1),
    System("serial", "regroup", "regroup_serial.py"),
    System("Dask delayed", "regroup", "regroup_dask_delayed.py", ("dask", "distributed")),
    System("Dask array, rechunked", "regroup", "regroup_dask.py", ("dask", "distributed")),
    System("Spark", "regroup", "regroup_spark.py", ("pyspark", "java")),
    System("TileDB", "regroup", "regroup_tiledb.py", ("tiledb",)),
    System("mpiimg", "regroup", "regroup_mpiimg.py", ("mpi4py",), mpi=True),
)


def run(
    system: System,
    source: Path,
    out: Path,
    workers: int,
    steps: bool = False,
    memory: int | None = None,
    timeout: float | None = None,
) -> dict:
    """Run a system once under the meter and return what it took.

    Parameters
    ----------
    source, out : folders
    workers : processes or threads that work at once
    steps : let it finish each step before the next, so that steps can be told apart
    memory : bytes that it is told it may take, and above which it is killed
    timeout : seconds

    Returns
    -------
    dict
        result ("done", "out of memory", "timeout" or "failed: ..."), seconds, cpu_seconds, peak_pss,
        processes, and steps: (seconds, CPU-seconds) by name.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    report, log = out.with_suffix(".json"), out.with_suffix(".log")
    limits = ["--limit", str(memory)] * bool(memory) + ["--timeout", str(timeout)] * bool(timeout)
    command = system.command(source, out, workers, steps, memory)
    with open(log, "w") as file:
        subprocess.run(
            [sys.executable, str(HERE / "meter.py"), "--report", str(report), *limits, "--", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
    found = json.loads(report.read_text())
    return {
        "result": outcome(found, log.read_text()),
        **{key: found[key] for key in ("seconds", "cpu_seconds", "peak_pss", "processes")},
        "steps": steps_of(out, found),
    }


def outcome(found: dict, log: str) -> str:
    """Return in a few words how a run ended."""
    if found["ended"] != "itself":
        return {"memory": "out of memory", "timeout": "timeout"}[found["ended"]]
    if found["status"] == 0:
        return "done"
    said = [line.strip() for line in log.splitlines() if line.strip()]
    return f"failed: {said[-1][:120]}" if said else f"failed: status {found['status']}"


def steps_of(out: Path, found: dict) -> dict[str, tuple[float, float]]:
    """Return (seconds, CPU-seconds over all processes) of each step of a run."""
    if (out / "steps.json").exists():
        times, spent = np.array(found["samples"]).T
        steps, before = {}, found["started"]
        for step, moment in json.loads((out / "steps.json").read_text()):
            cpu = np.interp([before, moment], times, spent)
            steps[step] = (moment - before, float(cpu[1] - cpu[0]))
            before = moment
        return steps
    if not (out / "run.json").exists():
        return {}
    steps: dict[str, tuple[float, float]] = {}
    for stage in json.loads((out / "run.json").read_text())["stages"]:
        known = [step for start, step in STEP_OF_STAGE.items() if stage["stage"].startswith(start)]
        seconds, cpu = steps.get(known[0] if known else "other", (0.0, 0.0))
        steps[known[0] if known else "other"] = (seconds + stage["seconds"], cpu + stage["cpu_seconds"])
    took, cpu = (sum(column) for column in zip(*steps.values(), strict=True))
    return {"start-up": (found["seconds"] - took, found["cpu_seconds"] - cpu), **steps}


def result_file(out: Path, name: str) -> Path:
    """Return where a result is, whoever made it."""
    return out / name if (out / name).exists() else out / TOOL_NAMES.get(name, name)


def difference(workload: str, out: Path, reference: Path) -> str:
    """Return how far the results in `out` are from those of the serial run, in words."""
    return DIFFERENCES[workload](out, reference)


def _neuro_difference(out: Path, reference: Path) -> str:
    import nibabel

    (mask, fa), (their_mask, their_fa) = (
        [np.asarray(nibabel.load(result_file(folder, name)).dataobj) for name in ("mask.nii.gz", "fa.nii.gz")]
        for folder in (out, reference)
    )
    voxels = np.count_nonzero(mask != their_mask)
    both = (mask != 0) & (their_mask != 0)
    largest = float(np.abs(fa[both] - their_fa[both]).max(initial=0))
    return f"FA {largest:.1g}" + (f", mask {voxels} voxels" if voxels else "")


def _astro_difference(out: Path, reference: Path) -> str:
    from astropy.io import fits

    squares, noise = [], []
    for path in sorted(reference.glob("patch-*.fits")):
        theirs, error = (fits.getdata(path, name).astype(float) for name in ("IMAGE", "ERROR"))
        away = fits.getdata(out / path.name, "IMAGE") - theirs
        known = np.isfinite(away) & (error > 0)
        squares.append(away[known] ** 2)
        noise.append(error[known])
    sources, theirs = (len(fits.getdata(folder / "catalogue.fits", 1)) for folder in (out, reference))
    rms = np.sqrt(np.concatenate(squares).mean()) / np.median(np.concatenate(noise))
    return f"{rms:.2g} of the noise, {sources} sources for {theirs}"


def _regroup_difference(out: Path, reference: Path) -> str:
    found, theirs = (np.load(folder / "brightest.npy") for folder in (out, reference))
    return f"{np.count_nonzero(found != theirs)} voxels"


DIFFERENCES = {"neuro": _neuro_difference, "astro": _astro_difference, "regroup": _regroup_difference}
