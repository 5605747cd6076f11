"""Neuroscience on Spark, by RDDs of volumes and of blocks of voxels, as the study wrote it."""

import neuro_kernels as kernels
import numpy as np
from program import run
from spark_context import context, first


def pipeline(options, clock):
    gradients, affine = kernels.read_gradients(options.source), kernels.read_affine(options.source)
    method = options.sigma, options.block_radius
    with context(options, clock) as (spark, finish):
        # A .nii.gz can be read from the front only: the driver splits it, and tasks read their volumes.
        paths = list(enumerate(kernels.split_volumes(options.source, options.out)))
        volumes = finish("ingest", spark.parallelize(paths, 4 * options.workers).mapValues(np.load))
        b0s = set(np.flatnonzero(gradients.b0s_mask).tolist())
        b0 = finish("filter", volumes.filter(lambda pair: pair[0] in b0s).values())
        total = b0.map(lambda volume: volume.astype(np.float64)).reduce(np.add)
        clock.mark("mean")
        mask = kernels.brain_mask(kernels.mean_of(total, len(b0s)))
        clock.mark("mask")
        known, blocks = spark.broadcast(mask), 4 * options.workers

        def split(pair):
            parts = np.array_split(pair[1][known.value], blocks)
            return [(block, (pair[0], part)) for block, part in enumerate(parts)]

        def fit(parts):
            return kernels.fit(np.stack([part for _, part in sorted(parts, key=first)], axis=-1), gradients)

        denoised = volumes.mapValues(lambda volume: kernels.denoise(volume, known.value, *method))
        denoised = finish("denoise", denoised)
        gathered = finish("regroup", denoised.flatMap(split).groupByKey(blocks))
        fitted = gathered.mapValues(fit).collect()
        clock.mark("fit")
    kernels.write_maps(
        options.out, affine, mask, np.concatenate([maps for _, maps in sorted(fitted, key=first)])
    )
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
