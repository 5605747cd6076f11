"""Astronomy on Spark, by RDDs of exposures, of pieces by patch, and of patches, as the study wrote it."""

import astro_kernels as kernels
from program import run
from pyspark import StorageLevel
from spark_context import context


def pipeline(options, clock):
    patches = {patch.name: patch for patch in kernels.read_patches(options.source)}
    with context(options) as spark:

        def finish(step, rdd):
            """Compute now what is to be timed."""
            if clock.steps:
                rdd = rdd.persist(StorageLevel.MEMORY_AND_DISK)
                rdd.count()
            clock.mark(step)
            return rdd

        def warp(pair):
            path, planes = pair
            header = kernels.read_header(path)
            # The order of exposures goes with the pieces, since a shuffle does not keep it.
            return [
                (patch.name, (path, kernels.warp(planes, header, patch, box)))
                for patch, box in kernels.overlaps(header, list(patches.values()))
            ]

        def coadd(pair):
            name, pieces = pair
            pieces = [piece for _, piece in sorted(pieces, key=lambda one: one[0])]
            return name, kernels.coadd(pieces, patches[name])

        clock.mark("start-up")
        paths = spark.parallelize(kernels.list_exposures(options.source), 4 * options.workers)
        exposures = finish("ingest", paths.map(lambda path: (path, kernels.read_exposure(path))))
        calibrated = finish("calibrate", exposures.mapValues(kernels.calibrate))
        pieces = finish("warp", calibrated.flatMap(warp))
        coadds = finish("coadd", pieces.groupByKey(4 * options.workers).map(coadd))
        found = coadds.map(lambda pair: (*pair, kernels.detect(*pair[1], patches[pair[0]]))).collect()
        clock.mark("detect")
    places = {name: place for place, name in enumerate(patches)}
    names, coadds, sources = zip(*sorted(found, key=lambda one: places[one[0]]), strict=True)
    kernels.write(options.out, [patches[name] for name in names], coadds, sources)
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
