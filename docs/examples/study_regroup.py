"""The study's regrouping in user code: volumes to blocks of voxels, and where each is the brightest."""

import regroup_kernels as kernels
from program import run

import mpiimg as mi


def pipeline(options, clock):
    paths = kernels.list_volumes(options.source)
    volumes = mi.stack([mi.read(path, axes="n") for path in paths], "v")
    results = {"brightest.npy": mi.map_blocks(kernels.brightest, volumes, whole="v", out="n")}
    mi.write(results, options.out, memory=options.memory_per_worker, in_memory=options.memory is None)


if __name__ == "__main__":
    run(pipeline)
