"""Neuroscience on Dask, by dask.array: blocks that are volumes, rechunked to slabs for the fit."""

import dask.array as da
import neuro_kernels as kernels
import numpy as np
from dask import delayed
from dask.distributed import Client, wait
from program import run


def denoise(block, mask, sigma):
    return kernels.denoise(block[..., 0], mask, sigma)[..., None]


def fit(block, mask, gradients):
    maps, inside = np.zeros((*mask.shape[:-1], 2), np.float32), mask[..., 0]
    if inside.any():
        maps[inside] = kernels.fit(block[inside], gradients)
    return maps


def pipeline(options, clock):
    gradients, affine = kernels.read_gradients(options.source), kernels.read_affine(options.source)
    shape = kernels.read_shape(options.source)
    memory = options.memory // options.workers if options.memory else "auto"
    with Client(
        n_workers=options.workers, threads_per_worker=1, memory_limit=memory, dashboard_address=None
    ) as client:

        def finish(step, array):
            """Compute now what is to be timed."""
            if clock.steps:
                array = client.persist(array)
                wait(array)
            clock.mark(step)
            return array

        clock.mark("start-up")
        read = delayed(kernels.read_data)(options.source)
        data = da.from_delayed(read, shape, np.float32).rechunk((*shape[:3], 1))
        data = finish("ingest", data)
        b0 = data[..., gradients.b0s_mask]
        clock.mark("filter")
        mean = finish("mean", b0.mean(axis=-1, dtype=np.float64).astype(np.float32))
        mask = client.compute(mean.map_blocks(kernels.brain_mask, dtype=bool)).result()
        clock.mark("mask")
        known = client.scatter(mask, broadcast=True)
        denoised = finish("denoise", data.map_blocks(denoise, known, options.sigma, dtype=np.float32))
        slabs = (-(-shape[0] // (4 * options.workers)), *shape[1:3], -1)
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
