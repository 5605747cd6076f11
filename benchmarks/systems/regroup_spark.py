"""Volumes to blocks of voxels on Spark, by groupByKey as the study wrote it."""

import numpy as np
import regroup_kernels as kernels
from program import run
from spark_context import context, first


def pipeline(options, clock):
    with context(options, clock) as (spark, finish):
        blocks = 4 * options.workers
        paths = spark.parallelize(list(enumerate(kernels.list_volumes(options.source))), blocks)
        volumes = finish("ingest", paths.mapValues(np.load))

        def split(pair):
            return [(b, (pair[0], part)) for b, part in enumerate(np.array_split(pair[1], blocks))]

        def brightest(parts):
            return kernels.brightest(np.stack([part for _, part in sorted(parts, key=first)]))

        found = volumes.flatMap(split).groupByKey(blocks).mapValues(brightest).collect()
        clock.mark("regroup")
    kernels.write(options.out, np.concatenate([part for _, part in sorted(found, key=first)]))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
