"""Diffusion subjects for the tests of the tools: write one, run a tool on it, read what came out."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from dipy.core.gradients import GradientTable, gradient_table
from dipy.io.gradients import read_bvals_bvecs
from support import warm

#: Maps of a fit, by the word for them in file names; "residual" on request.
MAPS = ("fa", "md", "ad", "rd", "rgb", "v1", "s0", "tensor")

#: Options of mpiimg-neuro for all files that it can write; a small head keeps its mask with a small filter.
EVERYTHING = ("--residual", "--fit-residual", "--median-radius", 2)

#: What a run says of itself: it differs from run to run, and is left out where bytes are compared.
RECORDS = (
    "run.json",
    "run-mask.json",
    "run-volumes.json",
    "run-denoise.json",
    "run-fit.json",
    "run-simulate.json",
)

#: Seconds that a run of a tool on a small subject may take on a loaded machine, compilation included.
PATIENCE = 240


@dataclass(frozen=True)
class Subject:
    """The files of a subject."""

    dwi: Path
    bvals: Path
    bvecs: Path

    @property
    def arguments(self) -> list:
        """What every tool that needs gradients is given."""
        return [self.dwi, "--bvals", self.bvals, "--bvecs", self.bvecs]

    @property
    def image(self) -> nibabel.Nifti1Image:
        return nibabel.load(self.dwi)

    @property
    def data(self) -> np.ndarray:
        """Values (x, y, z, volume), float64, scaled."""
        return np.asarray(self.image.get_fdata())

    @property
    def affine(self) -> np.ndarray:
        return self.image.affine

    @property
    def stem(self) -> str:
        return self.dwi.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_dwi")

    def gradients(self, b0_threshold: float = 50.0) -> GradientTable:
        """The gradient table as dipy reads it."""
        bvals, bvecs = read_bvals_bvecs(str(self.bvals), str(self.bvecs))
        return gradient_table(bvals, bvecs=bvecs, b0_threshold=b0_threshold)


def write_subject(
    folder: Path, data, affine, bvals, bvecs, name="dwi.nii.gz", kind=nibabel.Nifti1Image, header=None
) -> Subject:
    """Write a subject.

    Parameters
    ----------
    folder : made if missing
    data : (x, y, z, volume), written in its own dtype
    affine : (4, 4)
    bvals, bvecs : (V,) s/mm^2 and (V, 3), written as FSL has them, or paths of files to copy
    name : of the image
    kind : nibabel's class of image
    header : of the image, where the default would not do
    """
    folder.mkdir(parents=True, exist_ok=True)
    dwi = folder / name
    nibabel.save(kind(np.asarray(data), affine, header), dwi)
    paths = [folder / f"dwi{ending}" for ending in (".bval", ".bvec")]
    for path, table in zip(paths, (bvals, bvecs), strict=True):
        if isinstance(table, Path):
            path.write_bytes(table.read_bytes())
        else:
            np.savetxt(path, np.atleast_2d(np.asarray(table).T), fmt="%.9g")
    return Subject(dwi, *paths)


def read(folder: Path, what: str) -> np.ndarray:
    """Return the values of an output: mask, denoised, noise, residual, or the word for a map."""
    return np.asarray(nibabel.load(path(folder, what)).get_fdata())


def path(folder: Path, what: str, ending: str = ".nii.gz") -> Path:
    """Return the one file in `folder` that is called so."""
    patterns = {
        "mask": "*_desc-brain_mask",
        "denoised": "*_desc-denoised_dwi",
        "noise": "*_desc-noise_dwimap",
        "residual": "*_desc-residual_dwi",
        "fit-residual": "*_param-residual_dwimap",
    }
    found = list(Path(folder).glob(patterns.get(what, f"*_param-{what}_dwimap") + ending))
    assert len(found) == 1, f"{what} in {folder}: {found}"
    return found[0]


def digests(folder: Path) -> dict[str, str]:
    """Return a checksum of every file in `folder` but the records and events of runs; work must be gone."""
    kept = (p for p in sorted(Path(folder).iterdir()) if not p.name.startswith("events"))
    files = [p for p in kept if p.name not in RECORDS]
    assert all(p.is_file() for p in files), files
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def images(folder: Path) -> list[str]:
    """Return the checksums of all images, whose names and sidecars follow that of the input."""
    return sorted(digest for name, digest in digests(folder).items() if name.endswith(".nii.gz"))


def record(folder: Path, name: str = "run.json") -> dict:
    """Return what a run says of itself."""
    return json.loads((Path(folder) / name).read_text())


def stage(run: dict, name: str) -> dict:
    """Return what `run` says of one stage."""
    return next(entry for entry in run["stages"] if entry["stage"] == name)


def neuro(subject: Subject, out: Path, *options, **how) -> Path:
    """Run mpiimg-neuro and return the folder with its results."""
    return tool("mpiimg-neuro", subject, out, *options, **how)


def tool(
    name: str, subject: Subject, out: Path, *options, timeout=PATIENCE, run=warm.run_tool, **how
) -> Path:
    """Run a tool that takes gradients, and return the folder with its results."""
    run(name, *subject.arguments, "--out", out, *options, timeout=timeout, **how)
    return Path(out)


def gunzipped(subject: Subject, folder: Path) -> Subject:
    """Return the same subject with its image uncompressed."""
    folder.mkdir(parents=True, exist_ok=True)
    dwi = folder / subject.dwi.name.removesuffix(".gz")
    dwi.write_bytes(gzip.decompress(subject.dwi.read_bytes()))
    return Subject(dwi, subject.bvals, subject.bvecs)
