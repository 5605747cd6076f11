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
PROGRAMS, EXAMPLES = HERE / "systems", HERE.parent / "docs" / "examples"

#: Libraries read these when they are loaded, whichever a program loads first.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

#: What the tools of mpiimg call what the other programs call so.
TOOL_NAMES = {
    "mask.nii.gz": "dwi_desc-brain_mask.nii.gz",
    "fa.nii.gz": "dwi_model-tensor_param-fa_dwimap.nii.gz",
    "md.nii.gz": "dwi_model-tensor_param-md_dwimap.nii.gz",
}

#: The step that a stage of mpiimg belongs to, by the beginning of its name.
STEP_OF_STAGE = {
    "read-dwi": "ingest",
    "read": "ingest",
    "b0-mean": "mean",
    "mean": "mean",
    "brain_mask": "mask",
    "brightest": "regroup",
    "weights": "fit",
    "onto_patches": "warp",
    "rows": "detect",
    "table": "detect",
    "files": "write",
    "mask.b0-mean": "mean",
    "mask": "mask",
    "denoise": "denoise",
    "fit": "fit",
    "calibrate": "calibrate",
    "warp": "warp",
    "coadd": "coadd",
    "detect": "detect",
    "catalogue": "detect",
    "write": "write",
}


@dataclass(frozen=True)
class Case:
    """How a system is to run.

    Parameters
    ----------
    workers : processes or threads that work at once
    steps : let it finish each step before the next, so that steps can be told apart
    memory : bytes that it is told it may take, and above which it is killed
    timeout : seconds
    block_radius : how far around a voxel denoising looks for patches
    """

    workers: int
    steps: bool = False
    memory: int | None = None
    timeout: float | None = None
    block_radius: int = 5


@dataclass(frozen=True)
class System:
    """A system in one workload.

    Parameters
    ----------
    name : as the tables have it
    workload : "neuro", "astro" or "regroup"
    program : file in systems/ or of the examples of the docs, or a tool of mpiimg
    needs : modules without which it cannot run
    flags : more arguments
    tables : "same" where it calls the same functions as the others, "best" where it does its best; none where
        it runs under a limit of memory only
    shared : file in systems/ that starts the system for several programs; its lines count as well
    mpi : started by mpiexec, and told of its steps by its events
    ranks : how many ranks or workers, where not as many as the others have
    """

    name: str
    workload: str
    program: str
    needs: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    tables: tuple[str, ...] = ("same", "best")
    shared: str | None = None
    mpi: bool = False
    ranks: int | None = None

    @property
    def is_tool(self) -> bool:
        return not self.program.endswith(".py")

    def lines(self) -> int:
        """Return the lines of code of its program; none of the user's own for a tool."""
        files = [] if self.is_tool else [self.program, self.shared]
        return sum(lines.count_file(path_of(name)) for name in files if name)

    def lacking(self) -> str:
        """Return what it needs and is not there, "" if nothing."""
        missing = [
            name
            for name in self.needs
            if not (shutil.which(name) if name == "java" else importlib.util.find_spec(name))
        ]
        return ", ".join(missing)

    def command(self, source: Path, out: Path, case: Case) -> list[str]:
        """Return the command that runs it on the input in `source`."""
        here = Path(sys.executable).parent
        workers = self.ranks or case.workers
        launcher = [str(here / "mpiexec"), "-n", str(workers)] if self.mpi else []
        flags = [flag.format(workers=workers) for flag in self.flags]
        flags += ["--block-radius", str(case.block_radius)] * (self.workload == "neuro")
        if self.is_tool:
            limits = ["--memory", str(case.memory // workers)] if case.memory else ["--in-memory"]
            given = TOOL_ARGUMENTS[self.workload](source)
            return [*launcher, str(here / self.program), *given, "--out", str(out), *flags, *limits]
        limits = ["--memory", str(case.memory)] if case.memory else []
        given = [str(source), str(out), "--workers", str(workers), *["--steps"] * case.steps]
        return [*launcher, sys.executable, str(path_of(self.program)), *given, *flags, *limits]


def path_of(program: str) -> Path:
    """Return where a program is."""
    return PROGRAMS / program if (PROGRAMS / program).exists() else EXAMPLES / program


def python_path() -> str:
    """Return where programs find modules: beside those of systems/, and where this process does.

    Examples of the docs call the functions that lie beside the other programs.
    """
    return os.pathsep.join([str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])])


TOOL_ARGUMENTS: Mapping[str, Callable[[Path], list[str]]] = {
    "neuro": lambda source: [
        str(source / "dwi.nii.gz"),
        *("--bvals", str(source / "dwi.bval"), "--bvecs", str(source / "dwi.bvec")),
        *("--recipe", "study", "--sigma", "40"),
    ],
    "astro": lambda source: [
        *sorted(str(path) for path in source.glob("sim-*.fits")),
        *("--tract", str(source / "tract.toml"), "--recipe", "study"),
    ],
}

ASTRO = ("astroscrappy", "ccdproc", "reproject")
DASK = {"needs": ("dask", "distributed"), "shared": "dask_client.py"}
SPARK = {"needs": ("pyspark", "java"), "shared": "spark_context.py"}

#: What the name of a system ends with that runs on one worker where two have too little memory.
ONE_WORKER = ", one worker"
ALONE = {"tables": (), "ranks": 1}

#: What the name of a system ends with that does its work by mpiimg's kernels in place of the libraries.
OUR_KERNELS = ", mpiimg's kernels"


def kernels_of(workload: str) -> dict:
    """Return what makes a program do its work by mpiimg's kernels."""
    return {"flags": ("--kernels", f"{workload}_mpiimg_kernels"), "tables": ("best",)}


def with_astro(known: dict) -> dict:
    return known | {"needs": known["needs"] + ASTRO}


SYSTEMS = (
    System("serial", "neuro", "neuro_serial.py", ("dipy",)),
    System("dipy, OpenMP", "neuro", "neuro_serial.py", ("dipy",), ("--threads", "{workers}")),
    System("Dask delayed", "neuro", "neuro_dask_delayed.py", **DASK),
    System("Dask delayed" + ONE_WORKER, "neuro", "neuro_dask_delayed.py", **DASK, **ALONE),
    System("Dask array", "neuro", "neuro_dask_array.py", **DASK),
    System("Dask array" + ONE_WORKER, "neuro", "neuro_dask_array.py", **DASK, **ALONE),
    System("Spark", "neuro", "neuro_spark.py", **SPARK),
    System("Spark" + ONE_WORKER, "neuro", "neuro_spark.py", **SPARK, **ALONE),
    System("serial" + OUR_KERNELS, "neuro", "neuro_serial.py", **kernels_of("neuro")),
    System("Dask delayed" + OUR_KERNELS, "neuro", "neuro_dask_delayed.py", **DASK, **kernels_of("neuro")),
    System("TensorFlow", "neuro", "neuro_tensorflow.py", ("tensorflow",), tables=("best",)),
    System("TensorFlow, dipy by escape", "neuro", "neuro_tensorflow.py", ("tensorflow",), ("--function",)),
    System("mpiimg, their functions", "neuro", "study_neuro.py", ("mpi4py",), tables=("same",), mpi=True),
    System(
        "mpiimg, their functions, one rank",
        "neuro",
        "study_neuro.py",
        ("mpi4py",),
        tables=("same",),
        mpi=True,
        ranks=1,
    ),
    System("mpiimg", "neuro", "mpiimg-neuro", ("mpi4py",), tables=("best",), mpi=True),
    System("mpiimg, one rank", "neuro", "mpiimg-neuro", ("mpi4py",), tables=("best",), mpi=True, ranks=1),
    System("serial", "astro", "astro_serial.py", ASTRO),
    System("Dask delayed", "astro", "astro_dask.py", **with_astro(DASK)),
    System("Dask delayed" + ONE_WORKER, "astro", "astro_dask.py", **with_astro(DASK), **ALONE),
    System("Spark", "astro", "astro_spark.py", **with_astro(SPARK)),
    System("Spark" + ONE_WORKER, "astro", "astro_spark.py", **with_astro(SPARK), **ALONE),
    System(
        "mpiimg, their functions", "astro", "study_astro.py", ("mpi4py", *ASTRO), tables=("same",), mpi=True
    ),
    System(
        "mpiimg, their functions, one rank",
        "astro",
        "study_astro.py",
        ("mpi4py", *ASTRO),
        tables=("same",),
        mpi=True,
        ranks=1,
    ),
    System("serial" + OUR_KERNELS, "astro", "astro_serial.py", **kernels_of("astro")),
    System("Dask delayed" + OUR_KERNELS, "astro", "astro_dask.py", **DASK, **kernels_of("astro")),
    System("mpiimg", "astro", "mpiimg-astro", ("mpi4py",), tables=("best",), mpi=True),
    System("mpiimg, one rank", "astro", "mpiimg-astro", ("mpi4py",), tables=("best",), mpi=True, ranks=1),
    System("serial", "regroup", "regroup_serial.py"),
    System("Dask delayed", "regroup", "regroup_dask_delayed.py", **DASK),
    System("Dask delayed" + ONE_WORKER, "regroup", "regroup_dask_delayed.py", **DASK, **ALONE),
    System("Dask array, rechunked", "regroup", "regroup_dask.py", **DASK),
    System("Dask array, rechunked" + ONE_WORKER, "regroup", "regroup_dask.py", **DASK, **ALONE),
    System("Spark", "regroup", "regroup_spark.py", **SPARK),
    System("Spark" + ONE_WORKER, "regroup", "regroup_spark.py", **SPARK, **ALONE),
    System("TileDB", "regroup", "regroup_tiledb.py", ("tiledb",)),
    System("mpiimg", "regroup", "study_regroup.py", ("mpi4py",), mpi=True),
    System("mpiimg, one rank", "regroup", "study_regroup.py", ("mpi4py",), mpi=True, ranks=1),
)


def run(system: System, source: Path, out: Path, case: Case) -> dict:
    """Run a system once under the meter and return what it took.

    Returns
    -------
    dict
        result ("done", "out of memory", "timeout", "refused: ..." or "failed: ..."), seconds, cpu_seconds,
        peak_pss, peak_kept, processes, steps: (seconds, CPU-seconds) by name, recorded: the CPU-seconds of
        mpiimg's own record, and rehearsal: those that it spent on trying the functions before the run.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    report, log = out.with_suffix(".json"), out.with_suffix(".log")
    limits = ["--limit", str(case.memory)] * bool(case.memory) + ["--timeout", str(case.timeout)] * bool(
        case.timeout
    )
    command = system.command(source, out, case)
    with open(log, "w") as file:
        subprocess.run(
            [sys.executable, str(HERE / "meter.py"), "--report", str(report), *limits, "--", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            env=os.environ | ONE_THREAD | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": python_path()},
        )
    found = json.loads(report.read_text())
    return {
        "result": outcome(found, log.read_text()),
        **{key: found[key] for key in ("seconds", "cpu_seconds", "peak_pss", "peak_kept", "processes")},
        "steps": steps_between(marks_of(out, found), found),
        "recorded": recorded(out),
        "rehearsal": rehearsal(out),
    }


def outcome(found: dict, log: str) -> str:
    """Return in a few words how a run ended."""
    if found["ended"] != "itself":
        return {"memory": "out of memory", "timeout": "timeout"}[found["ended"]]
    if found["status"] == 0:
        return "done"
    said = [line.strip() for line in log.splitlines() if line.strip()]
    if found["status"] == 2:
        # What was asked for cannot be; a launcher may add words of its own.
        refusals = [line for line in said if "error: " in line] or said
        return f"refused: {refusals[-1][:200]}" if said else "refused: status 2"
    return f"failed: {said[-1][:200]}" if said else f"failed: status {found['status']}"


def marks_of(out: Path, found: dict) -> list[tuple[str, float]]:
    """Return which step ended when (monotonic clock): by the marks of a program, or the events of mpiimg."""
    if (out / "steps.json").exists():
        return [(step, moment) for step, moment in json.loads((out / "steps.json").read_text())]
    events = [
        json.loads(line) for path in out.glob("events*/*.jsonl") for line in path.read_text().splitlines()
    ]
    started, ended = [], {}
    for event in events:
        moment = event["time"] - found["started_at"] + found["started"]
        if event["event"] == "stage":
            started.append(moment)
        elif event["event"] == "ended":
            # A stage has ended where it has on every rank.
            ended[event["stage"]] = max(moment, ended.get(event["stage"], moment))
    if not ended:
        return []
    ends = sorted(ended.items(), key=lambda one: one[1])
    return [("start-up", min(started)), *((step_of(stage), moment) for stage, moment in ends)]


def step_of(stage: str) -> str:
    """Return the step that a stage of mpiimg belongs to."""
    return next((step for start, step in STEP_OF_STAGE.items() if stage.startswith(start)), "other")


def steps_between(marks: list[tuple[str, float]], found: dict) -> dict[str, tuple[float, float]]:
    """Return (seconds, CPU-seconds over all processes, by the meter) of each step."""
    times, spent = np.array(found["samples"]).T
    steps: dict[str, tuple[float, float]] = {}
    before = found["started"]
    for step, moment in marks:
        cpu = np.interp([before, moment], times, spent)
        seconds, known = steps.get(step, (0.0, 0.0))
        steps[step] = (seconds + moment - before, known + float(cpu[1] - cpu[0]))
        before = moment
    return steps


def recorded(out: Path) -> dict[str, float]:
    """Return the CPU-seconds of each step as the stages of mpiimg count them; nothing for other systems."""
    steps: dict[str, float] = {}
    for stage in record_of(out).get("stages", ()):
        step = step_of(stage["stage"])
        steps[step] = steps.get(step, 0.0) + stage["cpu_seconds"]
    return steps


def rehearsal(out: Path) -> float | None:
    """Return the CPU-seconds of trying users' functions before a run; None where nothing was tried."""
    return record_of(out).get("rehearsal", {}).get("cpu_seconds")


def record_of(out: Path) -> dict:
    """Return mpiimg's record of a run, which has the name of the result where there is but one."""
    found = sorted(out.glob("run*.json"))
    return json.loads(found[0].read_text()) if found else {}


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
        mine = out / path.name if (out / path.name).exists() else out / "patches" / path.name
        away = fits.getdata(mine, "IMAGE") - theirs
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
