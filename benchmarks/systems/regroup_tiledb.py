"""Volumes into an array of TileDB, and blocks of voxels out of it."""

import numpy as np
import regroup_kernels as kernels
import tiledb
from program import run

VOLUMES_A_TILE = 16


def pipeline(options, clock):
    paths = kernels.list_volumes(options.source)
    voxels = np.load(paths[0], mmap_mode="r").size
    threads = str(options.workers)
    context = tiledb.Ctx({"sm.compute_concurrency_level": threads, "sm.io_concurrency_level": threads})
    block = -(-voxels // (4 * options.workers))
    domain = tiledb.Domain(
        tiledb.Dim(
            "volume", domain=(0, len(paths) - 1), tile=min(VOLUMES_A_TILE, len(paths)), dtype=np.int32
        ),
        tiledb.Dim("voxel", domain=(0, voxels - 1), tile=block, dtype=np.int32),
    )
    schema = tiledb.ArraySchema(domain, [tiledb.Attr("", dtype=np.float32)])
    where = str(options.out / "volumes.tdb")
    tiledb.Array.create(where, schema, ctx=context)
    clock.mark("start-up")
    # Whole tiles at a time: less would leave a fragment of each volume.
    with tiledb.open(where, "w", ctx=context) as array:
        for first in range(0, len(paths), VOLUMES_A_TILE):
            volumes = np.stack([np.load(path) for path in paths[first : first + VOLUMES_A_TILE]])
            array[first : first + len(volumes)] = volumes
    clock.mark("ingest")
    with tiledb.open(where, ctx=context) as array:
        found = [kernels.brightest(array[:, first : first + block]) for first in range(0, voxels, block)]
    clock.mark("regroup")
    kernels.write(options.out, np.concatenate(found))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
