"""Volumes to blocks of voxels on mpiimg's frame."""

import logging

import numpy as np
import regroup_kernels as kernels
from program import run

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.mpi import runtime
from mpiimg.engine.plan import Options, Recipe
from mpiimg.engine.run import run as run_recipe
from mpiimg.engine.stage import Need, Stage
from mpiimg.engine.stores import Array
from mpiimg.errors import Exit

#: Bytes of a block of voxels in all volumes, at most: a chunk is what a rank must be able to hold.
BLOCK_BYTES = 8 << 20


def recipe(paths, voxels):
    blocks = -(-4 * len(paths) * voxels // BLOCK_BYTES)
    volumes = Array("volumes", "vn", (len(paths), voxels), "float32")
    found = Array("brightest", "n", (voxels,), "int32")
    by_volume = ChunkGrid("v", (len(paths),), (1,))
    by_block = ChunkGrid("n", (voxels,), (-(-voxels // blocks),))
    whole = ChunkGrid("n", (voxels,), (voxels,))
    stages = [
        Stage("read", "map", by_volume, (), (volumes,), lambda chunk: (np.load(paths[chunk.number])[None],)),
        Stage(
            "regroup",
            "map",
            by_block,
            (Need(volumes),),
            (found,),
            lambda chunk, block: (kernels.brightest(block),),
        ),
        Stage(
            "write",
            "files",
            whole,
            (Need(found),),
            work=lambda chunk, folder, block: kernels.write(folder, block),
            outputs=("brightest.npy",),
        ),
    ]
    return Recipe(
        tool="regroup",
        stem="volumes",
        inputs={},
        steps=[lambda values, stage=stage: stage for stage in stages],
        values={},
        documents=lambda values: {},
        parameters={},
        sources={"volumes": [str(path) for path in paths]},
        record="run.json",
    )


def pipeline(options, clock):
    comm = runtime.world()
    paths = runtime.on_root(comm, kernels.list_volumes, options.source)
    voxels = runtime.on_root(comm, lambda: np.load(paths[0], mmap_mode="r").size)
    memory = options.memory // options.workers if options.memory else runtime.memory_per_rank(comm)
    made = recipe(paths, voxels)
    given = Options(options.out, memory, in_memory=options.memory is None)
    raise SystemExit(runtime.guard(comm, lambda: run_recipe(made, comm, given) and Exit.DONE))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(pipeline)
