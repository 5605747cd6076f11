"""What every system calls in the neuroscience workload: dipy and numpy on blocks, and files in and out.

Volumes are float32 in the axes of the file, (x, y, z).
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from dipy.core.gradients import GradientTable, gradient_table
from dipy.denoise.nlmeans import nlmeans
from dipy.reconst.dti import TensorModel, design_matrix
from dipy.segment.mask import median_otsu


def read_gradients(source: Path) -> GradientTable:
    bvals, bvecs = np.loadtxt(source / "dwi.bval"), np.loadtxt(source / "dwi.bvec")
    return gradient_table(bvals, bvecs=bvecs.T if len(bvecs) == 3 else bvecs)


def read_affine(source: Path) -> np.ndarray:
    return nibabel.load(source / "dwi.nii.gz").affine


def read_shape(source: Path) -> tuple[int, ...]:
    return nibabel.load(source / "dwi.nii.gz").shape


def read_data(source: Path) -> np.ndarray:
    """Return all volumes, (x, y, z, volume)."""
    return nibabel.load(source / "dwi.nii.gz").get_fdata(dtype=np.float32)


def split_volumes(source: Path, out: Path) -> list[Path]:
    """Write each volume to a file of its own, with one in memory at a time; return the files."""
    image = nibabel.load(source / "dwi.nii.gz", keep_file_open=True)
    paths = [out.absolute() / f"volume-{v}.npy" for v in range(image.shape[-1])]
    for v, path in enumerate(paths):
        np.save(path, np.asarray(image.dataobj[..., v], np.float32))
    return paths


def mean_of(total: np.ndarray, count: int) -> np.ndarray:
    """Return the mean of `count` volumes from their sum in float64."""
    return (total / count).astype(np.float32)


def total_of(volumes) -> np.ndarray:
    return sum(volume.astype(np.float64) for volume in volumes)


def brain_mask(mean: np.ndarray) -> np.ndarray:
    _, mask = median_otsu(mean, median_radius=4, numpass=4)
    return mask.astype(bool)


def denoise(volume: np.ndarray, mask: np.ndarray, sigma: float, radius: int, threads: int = 1) -> np.ndarray:
    """Return a volume denoised in its mask by dipy's voxelwise non-local means, the method of the study."""
    return nlmeans(
        np.asarray(volume, np.float32),
        sigma,
        mask=mask,
        patch_radius=1,
        block_radius=radius,
        rician=True,
        num_threads=threads,
        method="classic",
    )


def design_of(gradients: GradientTable) -> np.ndarray:
    return design_matrix(gradients)


def fit(signal: np.ndarray, gradients: GradientTable) -> np.ndarray:
    """Return FA and MD, (voxels, 2), of signals, (voxels, volumes)."""
    # dipy is fastest in steps of 500 voxels.
    fitted = TensorModel(gradients, step=500).fit(signal)
    return np.stack([fitted.fa, fitted.md], axis=-1).astype(np.float32)


def write_maps(out: Path, affine: np.ndarray, mask: np.ndarray, maps: np.ndarray) -> None:
    """Write the mask, and FA and MD of its voxels, (voxels, 2) in the order of the mask."""
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), out / "mask.nii.gz")
    for row, name in enumerate(("fa", "md")):
        image = np.zeros(mask.shape, np.float32)
        image[mask] = maps[:, row]
        nibabel.save(nibabel.Nifti1Image(image, affine), out / f"{name}.nii.gz")
