"""Astronomy with astroscrappy, sep, reproject and ccdproc alone, on one core."""

from collections import defaultdict

import numpy as np
from program import run


def pipeline(options, clock):
    kernels = options.kernels
    patches = kernels.read_patches(options.source)

    def finish(step, values):
        """End a step; without steps, an exposure goes through all of them before the next is read."""
        values = list(values) if clock.steps else values
        clock.mark(step)
        return values

    clock.mark("start-up")
    paths = kernels.list_exposures(options.source)
    exposures = finish("ingest", map(kernels.read_exposure, paths))
    calibrated = finish("calibrate", map(kernels.calibrate, exposures))
    pieces = defaultdict(list)
    for path, planes in zip(paths, calibrated, strict=True):
        header = kernels.read_header(path)
        for patch, box in kernels.overlaps(header, patches):
            pieces[patch.name].append(kernels.warp(planes, header, patch, box))
    clock.mark("warp")
    patches = [patch for patch in patches if patch.name in pieces]
    coadds = finish("coadd", (kernels.coadd(pieces.pop(patch.name), patch) for patch in patches))
    found = zip(patches, coadds, strict=True)
    found = finish("detect", ((patch, coadd, kernels.detect(*coadd, patch)) for patch, coadd in found))
    sources = []
    for patch, coadd, detected in found:
        kernels.write_patch(options.out, patch, *coadd)
        sources.append(detected)
    kernels.write_catalogue(options.out, np.concatenate(sources))
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline, "astro_kernels")
