"""Astronomy on Dask, by delayed functions on exposures and patches."""

from collections import defaultdict

import numpy as np
from dask import delayed
from dask_client import client
from program import run


def pipeline(options, clock):
    kernels = options.kernels
    patches = kernels.read_patches(options.source)
    with client(options, clock) as (dask, finish):
        paths = kernels.list_exposures(options.source)
        exposures = finish("ingest", [delayed(kernels.read_exposure)(path) for path in paths])
        calibrated = finish("calibrate", [delayed(kernels.calibrate)(exposure) for exposure in exposures])
        members = defaultdict(list)
        for path, planes in zip(paths, calibrated, strict=True):
            header = kernels.read_header(path)
            for patch, box in kernels.overlaps(header, patches):
                members[patch.name].append(delayed(kernels.warp)(planes, header, patch, box))
        patches = [patch for patch in patches if patch.name in members]
        pieces = finish("warp", [members[patch.name] for patch in patches])
        coadds = [delayed(kernels.coadd, nout=2)(*one) for one in zip(pieces, patches, strict=True)]
        coadds = finish("coadd", coadds)
        found = [delayed(kernels.detect)(*coadd, patch) for coadd, patch in zip(coadds, patches, strict=True)]
        found = finish("detect", found)
        # Workers write their patches, so that no coadd goes through this process.
        written = [
            delayed(kernels.write_patch)(options.out, patch, *coadd)
            for coadd, patch in zip(coadds, patches, strict=True)
        ]
        sources = dask.gather(dask.compute(found + written))[: len(found)]
        kernels.write_catalogue(options.out, np.concatenate(sources))
        clock.mark("write")


if __name__ == "__main__":
    run(pipeline, "astro_kernels")
