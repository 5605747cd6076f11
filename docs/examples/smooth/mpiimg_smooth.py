"""A step for the neuro domain: Gaussian smoothing of each volume."""

from dataclasses import dataclass, replace

import numpy as np

from mpiimg.engine import Compute, Output, Part, declare_step, parameter, trimmed
from mpiimg.neuro.images import finite, write_dense
from mpiimg.neuro.subject import dense


@dataclass(frozen=True)
class Parameters:
    sigma: float = parameter(1.0, "Width of the Gaussian.", unit="voxels", limits=(0.1, 20))


def write(subject, p, folder):
    """Declare the smoothed image."""
    file = str(folder / f"{subject.stem}_desc-smooth_dwi.nii.gz")
    reads, volumes = (Part(subject.dwi),), subject.image.shape[0]
    return write_dense(file, subject.image, reads, lambda chunk, block: block, volumes, "float32")


@declare_step(takes=("dwi",), gives=("dwi",), parameters=Parameters, outputs=(Output("dwi", write, "end"),))
def smooth(subject, p, _):
    """Smooth each volume by a Gaussian."""
    subject = yield from dense(subject)
    dwi, image, halo = subject.dwi, subject.image, round(4 * p.sigma)
    smoothed = dwi.like("smoothed", dtype="float32")

    def blur(chunk, block):
        from scipy.ndimage import gaussian_filter

        values = finite(image.scaled(block[0])).astype(np.float32)
        return (trimmed(gaussian_filter(values, p.sigma, radius=halo), chunk.bounds["z"], halo)[None],)

    near = Part(dwi, {"z": halo})
    yield Compute("smooth", dwi.cut(v=1, z=16), reads=(near,), writes=(smoothed,), work=blur)
    return replace(subject, dwi=smoothed, image=image.made_of("float32"))
