"""The study's neuroscience in user code: filter, mean, mask, denoising and fit, by dipy's functions."""

import neuro_kernels as kernels
import numpy as np
from program import run

import mpiimg as mi


def fit(signal, mask, gradients):
    maps = np.zeros((2, *mask.shape), np.float32)
    if mask.any():
        maps[:, mask] = kernels.fit(signal[mask], gradients).T
    return tuple(maps)


def pipeline(options, clock):
    gradients = kernels.read_gradients(options.source)
    dwi = mi.read(options.source / "dwi.nii.gz").astype("float32")
    mean = dwi.isel(t=gradients.b0s_mask).mean("t")
    mask = mi.map_blocks(kernels.brain_mask, mean, whole="x y z")
    method = {"sigma": options.sigma, "radius": options.block_radius}
    clean = mi.map_blocks(kernels.denoise, dwi, mask, each="t", whole="x y z", **method)
    maps = mi.map_blocks(
        fit, clean, mask, whole="t", out=("x y z", "x y z"), weight=mask, gradients=gradients
    )
    results = {"mask.nii.gz": mask, "fa.nii.gz": maps[0], "md.nii.gz": maps[1]}
    mi.write(results, options.out, memory=options.memory_per_worker, in_memory=options.memory is None)


if __name__ == "__main__":
    run(pipeline)
