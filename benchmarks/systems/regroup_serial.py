"""Volumes to blocks of voxels in one array."""

import numpy as np
import regroup_kernels as kernels
from program import run


def pipeline(options, clock):
    clock.mark("start-up")
    paths = kernels.list_volumes(options.source)
    data = np.empty((len(paths), np.load(paths[0], mmap_mode="r").size), np.float32)
    for row, path in zip(data, paths, strict=True):
        row[:] = np.load(path)
    clock.mark("ingest")
    blocks = np.array_split(np.arange(data.shape[1]), 4 * options.workers)
    found = [kernels.brightest(data[:, block[0] : block[-1] + 1]) for block in blocks]
    clock.mark("regroup")
    kernels.write(options.out, np.concatenate(found))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
