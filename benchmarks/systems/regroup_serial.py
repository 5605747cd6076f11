"""Volumes to blocks of voxels in one array."""

import numpy as np
import regroup_kernels as kernels
from program import run


def pipeline(options, clock):
    clock.mark("start-up")
    volumes = [np.load(path) for path in kernels.list_volumes(options.source)]
    clock.mark("ingest")
    data = np.stack(volumes)
    blocks = np.array_split(np.arange(data.shape[1]), 4 * options.workers)
    found = [kernels.brightest(data[:, block[0] : block[-1] + 1]) for block in blocks]
    clock.mark("regroup")
    kernels.write(options.out, np.concatenate(found))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
