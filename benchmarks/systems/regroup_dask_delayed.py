"""Volumes to blocks of voxels on Dask, by delayed functions as the study wrote it."""

import numpy as np
import regroup_kernels as kernels
from dask import delayed
from dask.distributed import Client, wait
from program import run


@delayed
def split(volume, blocks):
    return np.array_split(volume, blocks)


@delayed
def brightest(parts):
    return kernels.brightest(np.stack(parts))


def pipeline(options, clock):
    memory = options.memory // options.workers if options.memory else "auto"
    with Client(
        n_workers=options.workers, threads_per_worker=1, memory_limit=memory, dashboard_address=None
    ) as client:
        clock.mark("start-up")
        volumes = client.persist([delayed(np.load)(path) for path in kernels.list_volumes(options.source)])
        wait(volumes)
        clock.mark("ingest")
        blocks = 4 * options.workers
        parts = [split(volume, blocks) for volume in volumes]
        found = client.compute([brightest([part[b] for part in parts]) for b in range(blocks)])
        found = client.gather(found)
        clock.mark("regroup")
    kernels.write(options.out, np.concatenate(found))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
