"""Volumes to blocks of voxels on Dask: an array in chunks of volumes, rechunked."""

import dask.array as da
import numpy as np
import regroup_kernels as kernels
from dask import delayed
from dask_client import client
from program import run


def pipeline(options, clock):
    with client(options, clock) as (_, finish):
        paths = kernels.list_volumes(options.source)
        voxels = np.load(paths[0], mmap_mode="r").size
        volumes = [da.from_delayed(delayed(np.load)(path), (voxels,), np.float32) for path in paths]
        data = finish("ingest", da.stack(volumes))
        blocks = data.rechunk((-1, -(-voxels // (4 * options.workers))))
        found = blocks.map_blocks(kernels.brightest, dtype=np.int32, drop_axis=0).compute()
        clock.mark("regroup")
    kernels.write(options.out, found)
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
