"""Volumes to blocks of voxels on Dask, by delayed functions as the study wrote it."""

import numpy as np
import regroup_kernels as kernels
from dask import delayed
from dask_client import client
from program import run


@delayed
def split(volume, blocks):
    return np.array_split(volume, blocks)


@delayed
def brightest(parts):
    return kernels.brightest(np.stack(parts))


def pipeline(options, clock):
    with client(options, clock) as (dask, finish):
        volumes = [delayed(np.load)(path) for path in kernels.list_volumes(options.source)]
        volumes = finish("ingest", volumes)
        blocks = 4 * options.workers
        parts = [split(volume, blocks) for volume in volumes]
        found = dask.compute([brightest([part[b] for part in parts]) for b in range(blocks)])
        found = dask.gather(found)
        clock.mark("regroup")
    kernels.write(options.out, np.concatenate(found))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
