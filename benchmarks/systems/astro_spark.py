"""Astronomy on Spark, by RDDs of exposures, of pieces by patch, and of patches, as the study wrote it."""

import astro_kernels as kernels
import numpy as np
from program import run
from spark_context import context, first


def pipeline(options, clock):
    patches, out = kernels.read_patches(options.source), options.out.absolute()
    places = {patch.name: place for place, patch in enumerate(patches)}
    with context(options, clock) as (spark, finish):

        def warp(pair):
            path, planes = pair
            header = kernels.read_header(path)
            # The order of exposures goes with the pieces, since a shuffle does not keep it.
            return [
                (places[patch.name], (path, kernels.warp(planes, header, patch, box)))
                for patch, box in kernels.overlaps(header, patches)
            ]

        def coadd(pair):
            place, pieces = pair
            return place, kernels.coadd([piece for _, piece in sorted(pieces, key=first)], patches[place])

        def detect(pair):
            place, made = pair
            return place, (made, kernels.detect(*made, patches[place]))

        def write(pair):
            place, (made, sources) = pair
            # Tasks write their patches, so that no coadd goes through the driver.
            kernels.write_patch(out, patches[place], *made)
            return place, sources

        paths = spark.parallelize(kernels.list_exposures(options.source), 4 * options.workers)
        exposures = finish("ingest", paths.map(lambda path: (path, kernels.read_exposure(path))))
        calibrated = finish("calibrate", exposures.mapValues(kernels.calibrate))
        pieces = finish("warp", calibrated.flatMap(warp))
        # A patch a partition: their places are their hashes.
        coadds = finish("coadd", pieces.groupByKey(len(patches)).map(coadd))
        found = finish("detect", coadds.map(detect)).map(write).collect()
        kernels.write_catalogue(out, np.concatenate([sources for _, sources in sorted(found, key=first)]))
        clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
