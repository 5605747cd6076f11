"""Volumes to blocks of voxels on mpiimg's frame."""

import logging

import numpy as np
import regroup_kernels as kernels
from program import run

from mpiimg.engine import Array, Compute, Files, Part
from mpiimg.engine.mpi import runtime
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.nodes import memory_per_rank
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.run import run as run_recipe

#: Bytes of a block of voxels in all volumes, at most: a chunk is what a rank must be able to hold.
BLOCK_BYTES = 8 << 20


def recipe(paths, voxels):
    blocks = -(-4 * len(paths) * voxels // BLOCK_BYTES)
    volumes = Array("volumes", "vn", (len(paths), voxels), "float32")
    found = Array("brightest", "n", (voxels,), "int32")

    def read(chunk):
        return (np.load(paths[chunk.number])[None],)

    def regroup(chunk, block):
        return (kernels.brightest(block),)

    def write(chunk, folder, block):
        kernels.write(folder, block)

    def stages():
        yield Compute("read", volumes.cut(v=1), writes=(volumes,), work=read)
        by_block = found.cut(n=-(-voxels // blocks))
        yield Compute("regroup", by_block, reads=(Part(volumes),), writes=(found,), work=regroup)
        yield Files("write", found.cut(n=voxels), reads=(Part(found),), work=write, names=("brightest.npy",))

    return Recipe(
        tool="regroup",
        stem="volumes",
        inputs=(),
        stages=stages,
        documents=lambda state: {},
        parameters={},
        sources={"volumes": [str(path) for path in paths]},
        record="run.json",
        baseline=110 << 20,
    )


def pipeline(options, clock):
    comm = runtime.world()
    paths = on_root(comm, kernels.list_volumes, options.source)
    voxels = on_root(comm, lambda: np.load(paths[0], mmap_mode="r").size)
    memory = options.memory // options.workers if options.memory else memory_per_rank(comm)
    made = recipe(paths, voxels)
    given = Options(options.out, memory, in_memory=options.memory is None)
    raise SystemExit(runtime.guard(comm, lambda: run_recipe(made, comm, given).status))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(pipeline)
