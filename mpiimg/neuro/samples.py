"""What the samples that measure rates share, and those of reading and writing images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpiimg.engine.rates import RateSample
from mpiimg.formats.gz import gzip_head, gzip_part, gzip_tail
from mpiimg.neuro.nifti import Image


def image_of(shape: tuple[int, ...]) -> tuple[Image, np.ndarray]:
    """Return an image that lies nowhere, and its int16 voxels: noise about a bright ball."""
    import nibabel

    header = nibabel.Nifti1Header()
    header["magic"] = b"n+1"
    rng = np.random.default_rng(1)
    z, y, x = (np.linspace(-1, 1, n) for n in shape[-3:])
    ball = 900.0 * ((z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) < 0.5)
    voxels = np.hypot(ball + rng.normal(0, 40, shape), rng.normal(0, 40, shape)).astype(np.int16)
    image = Image(Path("none.nii"), "nii", "none", shape, "<i2", 352, 1.0, 0.0, header.binaryblock, (0, 0, 0))
    return image, voxels


def sample_inflate() -> RateSample:
    """Inflate a .nii.gz; bytes."""
    from isal import igzip

    _, voxels = image_of((1, 16, 128, 128))
    head = gzip_head(voxels.tobytes())
    data = head.data + gzip_tail([head.digest])
    return lambda: igzip.decompress(data), voxels.nbytes


def sample_deflate() -> RateSample:
    """Compress a part of a .nii.gz; bytes."""
    _, voxels = image_of((1, 16, 128, 128))
    data = voxels.astype(np.float32).tobytes()
    return lambda: gzip_part(data), len(data)
