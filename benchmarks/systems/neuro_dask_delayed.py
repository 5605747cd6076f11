"""Neuroscience on Dask, by delayed functions on volumes and blocks of voxels, as the study wrote it."""

import neuro_kernels as kernels
import numpy as np
from dask import delayed
from dask.distributed import Client, wait
from program import run


@delayed
def split(volume, mask, blocks):
    return np.array_split(volume[mask], blocks)


@delayed
def fit(parts, gradients):
    return kernels.fit(np.stack(parts, axis=-1), gradients)


def pipeline(options, clock):
    gradients, affine = kernels.read_gradients(options.source), kernels.read_affine(options.source)
    memory = options.memory // options.workers if options.memory else "auto"
    with Client(
        n_workers=options.workers, threads_per_worker=1, memory_limit=memory, dashboard_address=None
    ) as client:

        def finish(step, *values):
            """Compute now what must be known, or what is to be timed."""
            if clock.steps:
                values = client.persist(values)
                wait(values)
            clock.mark(step)
            return values

        clock.mark("start-up")
        read = delayed(kernels.read_volumes, nout=len(gradients.bvals))(options.source)
        volumes = finish("ingest", *read)
        b0 = [volumes[v] for v in np.flatnonzero(gradients.b0s_mask)]
        clock.mark("filter")
        (mean,) = finish("mean", delayed(kernels.mean_of)(delayed(kernels.total_of)(b0), len(b0)))
        mask = client.compute(delayed(kernels.brain_mask)(mean)).result()
        clock.mark("mask")
        known = client.scatter(mask, broadcast=True)
        denoised = finish("denoise", *(delayed(kernels.denoise)(v, known, options.sigma) for v in volumes))
        blocks = 4 * options.workers
        parts = [split(volume, known, blocks) for volume in denoised]
        gathered = finish("regroup", *(delayed(list)([part[b] for part in parts]) for b in range(blocks)))
        fitted = client.gather(client.compute([fit(signal, gradients) for signal in gathered]))
        clock.mark("fit")
    kernels.write_maps(options.out, affine, mask, np.concatenate(fitted))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
