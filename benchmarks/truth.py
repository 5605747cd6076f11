"""What mask, denoising and fit make of a simulated head whose truth is known: prints Markdown tables.

    python benchmarks/truth.py [--shape 48x56x40] [--ranks 2]

Every figure comes from the tools themselves, run here: mpiimg-simulate, mpiimg-neuro
(mask, denoise, fit) and mpiimg-fit on the image as it came, inside the same mask.
docs/truth.md holds a run of it, and what to learn from it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np

BIN = Path(__file__).resolve().parent.parent / "bin"

#: Labels of the simulated head.
TISSUES = {1: "white matter", 2: "grey matter", 3: "CSF"}

#: The fits that are compared: of the image as it was measured, by default, and by the recipe of the study.
IMAGES = ("raw", "denoised", "study")

#: Volumes and noise levels of the subjects: one shell of b = 1000, then the three of a large study.
SUBJECTS = ((20, 20), (20, 40), (20, 80), (20, 120), (120, 40), (120, 120))


def tool(name: str, *words, ranks: int = 1) -> None:
    """Run one of the tools."""
    launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, BIN / name, *words, "--quiet"]
    subprocess.run([str(word) for word in command], check=True)


def make(folder: Path, shape: str, volumes: int, sigma: float, seed: int = 7, ranks: int = 1) -> None:
    """Simulate a subject in `folder`, process it into ``denoised`` and ``study``, and fit it into ``raw``."""
    size = ("--shape", shape, "--volumes", volumes, "--sigma", sigma, "--seed", seed)
    tool("mpiimg-simulate", "neuro", *size, "--out", folder, ranks=ranks)
    dwi = (folder / "dwi.nii.gz", "--bvals", folder / "dwi.bval", "--bvecs", folder / "dwi.bvec")
    tool("mpiimg-neuro", *dwi, "--mask-method", "dipy", "--out", folder / "denoised", ranks=ranks)
    tool("mpiimg-neuro", *dwi, "--recipe", "study", "--out", folder / "study", ranks=ranks)
    mask = folder / "denoised" / "dwi_desc-brain_mask.nii.gz"
    tool("mpiimg-fit", *dwi, "--mask", mask, "--out", folder / "raw", ranks=ranks)


def measure(folder: Path) -> dict:
    """Compare what :func:`make` left in `folder` with the truth.

    Returns
    -------
    dict
        ``dice`` of the mask; ``sigma``, median noise level found; ``zeros``, share of masked voxels
        that the study's denoising makes 0, by b-value; ``fa``, by tissue and image, the root mean square
        and the mean error; ``md``, the mean error as a share of the truth; ``angle``, median angle in
        degrees between v1 and the fibre in white matter. All but dice inside mask and brain.
    """
    mask = _read(folder / "denoised/dwi_desc-brain_mask.nii.gz") != 0
    brain = _read(folder / "dwi_desc-truth_mask.nii.gz") != 0
    tissue = _read(folder / "dwi_desc-truth_tissue.nii.gz")
    truth = _read(folder / "dwi_desc-truth_fa.nii.gz")
    noise = json.loads((folder / "denoised/dwi_desc-noise_dwimap.json").read_text())
    result = {
        "dice": dice(mask, brain),
        "sigma": float(np.median(noise["Sigma"])),
        "zeros": zeros_by_shell(folder, mask & brain),
        "fa": {},
        "md": {},
        "angle": {},
    }
    diffusivity = _read(folder / "dwi_desc-truth_tensor.nii.gz")[..., [0, 2, 5]].mean(axis=-1)
    for image in IMAGES:
        error = _read(folder / image / "dwi_model-tensor_param-fa_dwimap.nii.gz") - truth
        md = _read(folder / image / "dwi_model-tensor_param-md_dwimap.nii.gz")
        for label, name in TISSUES.items():
            inside = mask & (tissue == label)
            values = error[inside]
            result["fa"][name, image] = (float(np.sqrt((values**2).mean())), float(values.mean()))
            result["md"][name, image] = float(md[inside].mean() / diffusivity[inside].mean() - 1)
        result["angle"][image] = _angle(folder, image, mask & (tissue == 1))
    return result


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return twice the common voxels over all voxels of two masks."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def zeros_by_shell(folder: Path, inside: np.ndarray) -> dict[int, float]:
    """Return the share of voxels that the Rician correction set to 0, by b-value."""
    denoised = nibabel.load(folder / "study/dwi_desc-denoised_dwi.nii.gz").dataobj
    bvals = np.loadtxt(folder / "dwi.bval")
    shares = {}
    for b in np.unique(bvals):
        volumes = np.flatnonzero(bvals == b)
        shares[int(b)] = float(np.mean([(np.asarray(denoised[..., v])[inside] == 0).mean() for v in volumes]))
    return shares


def _angle(folder: Path, image: str, inside: np.ndarray) -> float:
    v1 = _read(folder / image / "dwi_model-tensor_param-v1_dwimap.nii.gz")[inside]
    xx, xy, yy, xz, yz, zz = _read(folder / "dwi_desc-truth_tensor.nii.gz")[inside].T
    tensors = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(-1, 3, 3)
    fibres = np.linalg.eigh(tensors)[1][..., -1]
    cosine = np.abs((v1 * fibres).sum(axis=1)).clip(0, 1)
    return float(np.degrees(np.median(np.arccos(cosine))))


def _read(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).get_fdata())


def tables(results: dict[tuple[int, float], dict]) -> str:
    """Return Markdown tables of what :func:`measure` found, by (volumes, sigma)."""
    lines = [
        f"| volumes | sigma | noise level found | mask Dice | v1 off, {', '.join(IMAGES)} |",
        "|---|---|---|---|---|",
    ]
    for (volumes, sigma), found in results.items():
        angles = ", ".join(f"{found['angle'][image]:.1f}°" for image in IMAGES)
        lines.append(f"| {volumes} | {sigma:g} | {found['sigma']:.1f} | {found['dice']:.4f} | {angles} |")
    titles = " | ".join(
        f"{what}, {', '.join(IMAGES)}" for what in ("FA rms error", "FA mean error", "MD error")
    )
    lines += ["", f"| volumes | sigma | tissue | {titles} |", "|---|---|---|---|---|---|"]
    for (volumes, sigma), found in results.items():
        for name in TISSUES.values():
            errors = [found["fa"][name, image] for image in IMAGES]
            rms = ", ".join(f"{one:.3f}" for one, _ in errors)
            bias = ", ".join(f"{one:+.3f}" for _, one in errors)
            md = ", ".join(f"{found['md'][name, image]:+.1%}" for image in IMAGES)
            lines.append(f"| {volumes} | {sigma:g} | {name} | {rms} | {bias} | {md} |")
    lines += ["", "| volumes | sigma | b | set to 0 |", "|---|---|---|---|"]
    for (volumes, sigma), found in results.items():
        lines += [f"| {volumes} | {sigma:g} | {b} | {share:.2%} |" for b, share in found["zeros"].items()]
    return "\n".join(lines)


def main() -> None:
    """Simulate, process, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="48x56x40")
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    results = {}
    for volumes, sigma in SUBJECTS:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), arguments.shape, volumes, sigma, ranks=arguments.ranks)
            results[volumes, sigma] = measure(Path(folder))
    print(tables(results))


if __name__ == "__main__":
    main()
