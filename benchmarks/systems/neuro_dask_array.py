"""Neuroscience on Dask, by dask.array: blocks that are volumes, rechunked to slabs for the fit."""

import dask.array as da
import neuro_kernels as kernels
import numpy as np
from dask import delayed
from dask_client import client
from program import run


def denoise(block, mask, sigma, radius):
    return kernels.denoise(block[..., 0], mask, sigma, radius)[..., None]


def fit(block, mask, gradients):
    maps, inside = np.zeros((*mask.shape[:-1], 2), np.float32), mask[..., 0]
    if inside.any():
        maps[inside] = kernels.fit(block[inside], gradients)
    return maps


def pipeline(options, clock):
    gradients, affine = kernels.read_gradients(options.source), kernels.read_affine(options.source)
    shape = kernels.read_shape(options.source)[:3]
    with client(options, clock) as (dask, finish):
        # A .nii.gz can be read from the front only: it is split once, and workers read their volumes.
        paths = kernels.split_volumes(options.source, options.out)
        volumes = [da.from_delayed(delayed(np.load)(path), shape, np.float32) for path in paths]
        data = finish("ingest", da.stack(volumes, axis=-1))
        b0 = data[..., gradients.b0s_mask]
        clock.mark("filter")
        mean = finish("mean", b0.mean(axis=-1, dtype=np.float64).astype(np.float32))
        mask = dask.compute(mean.map_blocks(kernels.brain_mask, dtype=bool)).result()
        clock.mark("mask")
        known = dask.scatter(mask, broadcast=True)
        method = {"sigma": options.sigma, "radius": options.block_radius}
        denoised = finish("denoise", data.map_blocks(denoise, known, **method, dtype=np.float32))
        slabs = (-(-shape[0] // (4 * options.workers)), *shape[1:], -1)
        denoised = finish("regroup", denoised.rechunk(slabs))
        inside = da.from_array(mask[..., None], chunks=(*slabs[:3], 1))
        maps = da.map_blocks(
            fit, denoised, inside, gradients, chunks=(*denoised.chunks[:3], (2,)), dtype=np.float32
        )
        maps = maps.compute()
        clock.mark("fit")
    kernels.write_maps(options.out, affine, mask, maps[mask])
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
