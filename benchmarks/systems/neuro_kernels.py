"""What every system calls in the neuroscience workload: dipy on blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dipy.core.gradients import GradientTable, gradient_table
from dipy.denoise.nlmeans import nlmeans
from dipy.reconst.dti import TensorModel, design_matrix
from dipy.segment.mask import median_otsu
from neuro_common import mean_of, read_affine, read_data, read_shape, split_volumes, total_of, write_maps

__all__ = (
    "brain_mask",
    "denoise",
    "design_of",
    "fit",
    "mean_of",
    "read_affine",
    "read_data",
    "read_gradients",
    "read_shape",
    "split_volumes",
    "total_of",
    "write_maps",
)


def read_gradients(source: Path) -> GradientTable:
    bvals, bvecs = np.loadtxt(source / "dwi.bval"), np.loadtxt(source / "dwi.bvec")
    return gradient_table(bvals, bvecs=bvecs.T if len(bvecs) == 3 else bvecs)


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
