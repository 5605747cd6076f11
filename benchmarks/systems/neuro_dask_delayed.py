"""Neuroscience on Dask, by delayed functions on volumes and blocks of voxels, as the study wrote it."""

import numpy as np
from dask import delayed
from dask_client import client
from program import run


@delayed
def split(volume, mask, blocks):
    return np.array_split(volume[mask], blocks)


@delayed
def fit(parts, gradients, function):
    return function(np.stack(parts, axis=-1), gradients)


def pipeline(options, clock):
    kernels = options.kernels
    gradients, affine = kernels.read_gradients(options.source), kernels.read_affine(options.source)
    with client(options, clock) as (dask, finish):
        # A .nii.gz can be read from the front only: it is split once, and workers read their volumes.
        paths = kernels.split_volumes(options.source, options.out)
        volumes = finish("ingest", [delayed(np.load)(path) for path in paths])
        b0 = [volumes[v] for v in np.flatnonzero(gradients.b0s_mask)]
        clock.mark("filter")
        mean = finish("mean", delayed(kernels.mean_of)(delayed(kernels.total_of)(b0), len(b0)))
        mask = dask.compute(delayed(kernels.brain_mask)(mean)).result()
        clock.mark("mask")
        known = dask.scatter(mask, broadcast=True)
        method = options.sigma, options.block_radius
        denoised = finish("denoise", [delayed(kernels.denoise)(v, known, *method) for v in volumes])
        blocks = 4 * options.workers
        parts = [split(volume, known, blocks) for volume in denoised]
        gathered = finish("regroup", [delayed(list)([part[b] for part in parts]) for b in range(blocks)])
        fitted = dask.gather(dask.compute([fit(signal, gradients, kernels.fit) for signal in gathered]))
        clock.mark("fit")
    kernels.write_maps(options.out, affine, mask, np.concatenate(fitted))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline, "neuro_kernels")
