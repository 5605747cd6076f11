"""mpiimg's compiled kernels under the names of neuro_kernels.py, in place of dipy's functions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from neuro_common import mean_of, read_affine, read_data, read_shape, split_volumes, total_of, write_maps

from mpiimg.neuro.kernels import otsu
from mpiimg.neuro.kernels.median import median_filter
from mpiimg.neuro.kernels.nlmeans import nonlocal_means
from mpiimg.neuro.kernels.tensor import design_matrix, fit_wls
from mpiimg.neuro.kernels.tensor_maps import min_diffusivity, tensor_maps

__all__ = (
    "brain_mask",
    "denoise",
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

#: s/mm^2, as for dipy; voxels; passes of the median.
B0_THRESHOLD, MEDIAN_RADIUS, PASSES = 50, 4, 4


class Gradients(NamedTuple):
    bvals: np.ndarray
    bvecs: np.ndarray

    @property
    def b0s_mask(self) -> np.ndarray:
        return self.bvals <= B0_THRESHOLD


def read_gradients(source: Path) -> Gradients:
    bvals, bvecs = np.loadtxt(source / "dwi.bval"), np.loadtxt(source / "dwi.bvec")
    return Gradients(bvals, bvecs.T if len(bvecs) == 3 else bvecs)


def brain_mask(mean: np.ndarray) -> np.ndarray:
    smooth = mean.T
    for _ in range(PASSES):
        halo = ((MEDIAN_RADIUS, MEDIAN_RADIUS), (0, 0), (0, 0))
        smooth = median_filter(np.pad(smooth, halo, "symmetric"), MEDIAN_RADIUS)
    low, high = smooth.min(), smooth.max()
    return (smooth > otsu.threshold(otsu.histogram(smooth, low, high), low, high)).T


def denoise(volume: np.ndarray, mask: np.ndarray, sigma: float, radius: int, threads: int = 1) -> np.ndarray:
    """Return a volume denoised in its mask; the kernel works by one thread."""
    padded = np.pad(volume.T, radius, "reflect")
    return nonlocal_means(padded, np.full(len(padded), sigma), mask.T, 1, radius).T


def fit(signal: np.ndarray, gradients: Gradients) -> np.ndarray:
    """Return FA and MD, (voxels, 2), of signals, (voxels, volumes)."""
    design = design_matrix(*gradients)
    maps = tensor_maps(fit_wls(signal.T, design), min_diffusivity(design))
    return np.stack([maps.fa, maps.md], axis=-1).astype(np.float32)
