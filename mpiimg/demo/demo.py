"""What `make demo` runs: simulate a subject and a survey, process them and real data, show what came out.

`python -m mpiimg.demo DIR` says each command before it runs it, so that a reader can repeat it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.report import NAME as PAGE
from mpiimg.version import __version__

RANKS = 2

#: The subject that is simulated, and the noise that is put into it.
SHAPE, VOLUMES, SIGMA = "72x86x72", 30, 40

#: What Open MPI, unlike the MPI of the wheel, must be told to run as root, or with more ranks than cores.
OPEN_MPI_SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


#: Real exposures that stand beside the project where it is developed; the demo goes without them elsewhere.
REAL_EXPOSURES = Path(__file__).parents[3] / "shared" / "data" / "decam-testcase3"


@dataclass(frozen=True)
class DemoSubject:
    """A diffusion image with its gradients, and what to say of it.

    Parameters
    ----------
    name : str
        The name of the folder of its results.
    title : str
        The heading of the step.
    dwi, bvals, bvecs : Path
    flags : tuple of str
        Options of mpiimg-neuro, beside those that every subject gets.
    remark : str
        A remark for the reader.
    """

    name: str
    title: str
    dwi: Path
    bvals: Path
    bvecs: Path
    flags: tuple[str, ...] = ()
    remark: str = ""


class DemoFailed(Exception):
    """A command could not be run or failed. Carries its exit status."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def simulated(folder: Path) -> DemoSubject:
    """Return the subject that :func:`run_demo` simulates into `folder`."""
    paths = (folder / f"dwi{ending}" for ending in (".nii.gz", ".bval", ".bvec"))
    return DemoSubject("simulated-maps", f"Simulated head, noise {SIGMA}", *paths)


def shipped_with_dipy() -> list[DemoSubject]:
    """Return the two real subjects, cut to a few voxels, whose files lie inside the dipy package.

    They are cut from the middle of a brain. Without a background there is nothing to estimate the
    noise from, so it is given: what dipy's estimate_sigma finds in their weighted volumes.
    """
    from dipy.data import get_fnames

    cut = "A few voxels from inside a brain: there is no air to measure the noise in, so it is given."
    return [
        DemoSubject(
            "small_64D",
            "Real data: small_64D of dipy",
            *map(Path, get_fnames(name="small_64D")),
            flags=("--sigma", "20"),
            remark=cut,
        ),
        DemoSubject(
            "small_101D",
            "Real data: small_101D of dipy",
            *map(Path, get_fnames(name="small_101D")),
            flags=("--sigma", "8", "--b-max", "1500"),
            remark=f"{cut} Of b-values up to 4000, those a tensor describes.",
        ),
    ]


def run_demo(out: Path, shape: str = SHAPE, volumes: int = VOLUMES) -> None:
    """Simulate and process; say what is done, what it took and where the results are.

    Parameters
    ----------
    out : Path
        A folder, made if missing; the results of an earlier demo in it are overwritten.
    shape : str
        Voxels of the simulated subject, e.g. "72x86x72".
    volumes : int
        Volumes of the simulated subject.

    Raises
    ------
    DemoFailed
        A command failed; it has said why.
    """
    started = time.monotonic()
    print(f"mpiimg {__version__}: diffusion MRI to maps on {RANKS} MPI ranks. Each command is shown.")
    launcher = _launcher()
    if _is_open_mpi(launcher):
        os.environ.update(OPEN_MPI_SETTINGS)
        print(f"\n$ export {' '.join(f'{name}={value}' for name, value in OPEN_MPI_SETTINGS.items())}")
    os.environ["OMP_NUM_THREADS"] = "1"

    raw = out / "simulated"
    print(f"\nSimulate a head with known truth: {shape} voxels, {volumes} volumes")
    arguments = ("--shape", shape, "--volumes", volumes, "--sigma", SIGMA, "--out", raw, "--force")
    _run(launcher, "mpiimg-simulate", "neuro", *arguments)

    subjects = [simulated(raw), *shipped_with_dipy()]
    folders = [_process(subject, launcher, out) for subject in subjects]
    _compare_with_truth(raw, out)
    folders += _surveys(launcher, out)

    print(f"\nAll done in {time.monotonic() - started:.0f} s. Each folder has a page to open in a browser:")
    for folder in folders:
        print(f"  {_shown(folder)}/{PAGE}")
    print("Names of the files: docs/files.md and docs/astro.md. How each step works: docs/stages.md.")


def _surveys(launcher: Path, out: Path) -> list[Path]:
    """Run mpiimg-astro on a simulated survey, and on real exposures where they are; return folders."""
    raw = out / "survey"
    print("\nSimulate a small sky survey: 5 visits of 2 sensors")
    arguments = ("--visits", 5, "--sensors", 2, "--shape", "700x800", "--out", raw, "--force")
    _run(launcher, "mpiimg-simulate", "astro", *arguments)
    print("\nSimulated survey: calibration, patches, coadds, detection")
    exposures = sorted(raw.glob("sim-*.fits"))
    folders = [_coadd(launcher, out / "survey-sky", exposures, ("--patch", 600, "--border", 50))]
    real = sorted(REAL_EXPOSURES.glob("*_ooi_*.fits"))
    if real:
        print("\nReal data: cut-outs of DECam exposures in three filters, too small for statistics")
        flags = ("--zero-point", 25, "--patch", 100, "--border", 10)
        folders.append(_coadd(launcher, out / "decam", real, flags))
    return folders


def _coadd(launcher: Path, folder: Path, exposures: list[Path], flags: tuple) -> Path:
    """Run mpiimg-astro on exposures, say what was found, and return the folder of the results."""
    from astropy.table import Table

    _run(launcher, "mpiimg-astro", *exposures, *flags, "--quiet", "--out", folder, "--force")
    patches = sorted(folder.glob("*patch-*.fits"))
    sources = Table.read(folder / "catalogue.fits")
    print(f"  {len(exposures)} exposures, {len(patches)} patches, {sources['is_primary'].sum()} sources")
    return folder


def _process(subject: DemoSubject, launcher: Path, out: Path) -> Path:
    """Run mpiimg-neuro on a subject, say what was found, and return the folder of the results."""
    folder = out / subject.name
    print(f"\n{subject.title}: brain mask, denoising, tensor fit")
    if subject.remark:
        print(f"  {subject.remark}")
    arguments = (subject.dwi, "--bvals", subject.bvals, "--bvecs", subject.bvecs, *subject.flags)
    _run(launcher, "mpiimg-neuro", *arguments, "--residual", "--out", folder, "--force")
    results = outputs(subject, folder)
    figures = findings(results)
    print(
        f"  mask {figures['voxels']} voxels, noise sigma {figures['sigma']:.1f}, "
        f"median FA in the mask {figures['fa']:.2f}"
    )
    return folder


def outputs(subject: DemoSubject, folder: Path) -> dict[str, Path]:
    """Return the files of a finished run that the demo reads, by what they hold."""
    from mpiimg.neuro.nifti import output_stem

    names = {
        "mask": "desc-brain_mask",
        "denoised": "desc-denoised_dwi",
        "residual": "desc-residual_dwi",
        "noise": "desc-noise_dwimap",
        "fa": "model-tensor_param-fa_dwimap",
        "rgb": "model-tensor_param-rgb_dwimap",
    }
    return {what: folder / f"{output_stem(subject.dwi)}_{name}.nii.gz" for what, name in names.items()}


def findings(results: dict[str, Path]) -> dict[str, float]:
    """Return what a run found: voxels in the mask, and medians of the noise level and of FA in the mask."""
    mask = _voxels(results["mask"]) > 0
    sidecar = results["noise"].with_name(results["noise"].name.removesuffix(".nii.gz") + ".json")
    sigma = json.loads(sidecar.read_text())["Sigma"]
    return {
        "voxels": int(mask.sum()),
        "sigma": float(np.median(sigma)),
        "fa": float(np.median(_voxels(results["fa"])[mask])),
    }


def _compare_with_truth(raw: Path, out: Path) -> None:
    """Say how far the results of the simulated subject are from what was put in."""
    results = outputs(simulated(raw), out / simulated(raw).name)
    mask = _voxels(results["mask"]) > 0
    brain = _voxels(raw / "dwi_desc-truth_mask.nii.gz") > 0
    white = _voxels(raw / "dwi_desc-truth_tissue.nii.gz") == 1
    error = (_voxels(results["fa"]) - _voxels(raw / "dwi_desc-truth_fa.nii.gz"))[white & mask]
    dice = 2 * (mask & brain).sum() / (mask.sum() + brain.sum())
    print(
        f"\nThe simulated head against its truth: mask Dice {dice:.3f}; noise sigma was {SIGMA}; "
        f"FA of white matter off by {np.median(error):+.3f} (median)"
    )


def _voxels(path: Path) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj)


def _launcher() -> Path:
    """Return the mpiexec of the environment that runs this, or the one on PATH."""
    launcher = shutil.which("mpiexec", path=str(_programs())) or shutil.which("mpiexec")
    if launcher is None:
        raise DemoFailed(
            f"no mpiexec in {_programs()} or on PATH; run make install, or pip install 'mpiimg[mpich]'"
        )
    return Path(launcher)


def _programs() -> Path:
    """Return the folder of the programs of this environment."""
    return Path(sys.executable).parent


def _is_open_mpi(launcher: Path) -> bool:
    said = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout
    return "open mpi" in said.lower() or "openrte" in said.lower()


def _run(launcher: Path, tool: str, *arguments) -> None:
    """Say and run a tool on RANKS ranks, and say how long it took."""
    program = _programs() / tool
    if not program.exists():
        raise DemoFailed(f"{program} is missing; run make install")
    command = [_shown(launcher), "-n", str(RANKS), _shown(program), *map(_shown, arguments)]
    print(f"$ {shlex.join(command)}", flush=True)
    started = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    if status:
        raise DemoFailed(f"the command above failed with exit status {status}", status)
    print(f"  {time.monotonic() - started:.1f} s")


def _shown(word) -> str:
    """Return a path as one would type it here: relative below the working folder; other words as they are."""
    if isinstance(word, Path) and word.is_absolute() and word.is_relative_to(Path.cwd()):
        return str(word.relative_to(Path.cwd()))
    return str(word)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mpiimg.demo", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="DIR", help="The folder of all that the demo writes.")
    parser.add_argument(
        "--shape", default=SHAPE, help="The simulated head has this many voxels (default %(default)s)."
    )
    parser.add_argument(
        "--volumes",
        type=int,
        default=VOLUMES,
        help="The simulated series has this many volumes (default %(default)s).",
    )
    args = parser.parse_args(arguments)
    try:
        run_demo(args.out, args.shape, args.volumes)
    except DemoFailed as error:
        print(f"mpiimg demo: {error}", file=sys.stderr)
        return error.status
    return 0
