"""What programs of the neuroscience workload share whatever kernels they call: files and means.

Volumes are float32 in the axes of the file, (x, y, z).
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np


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


def write_maps(out: Path, affine: np.ndarray, mask: np.ndarray, maps: np.ndarray) -> None:
    """Write the mask, and FA and MD of its voxels, (voxels, 2) in the order of the mask."""
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), out / "mask.nii.gz")
    for row, name in enumerate(("fa", "md")):
        image = np.zeros(mask.shape, np.float32)
        image[mask] = maps[:, row]
        nibabel.save(nibabel.Nifti1Image(image, affine), out / f"{name}.nii.gz")
