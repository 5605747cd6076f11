"""Astronomy with astroscrappy, sep, reproject and ccdproc alone, on one core."""

from collections import defaultdict

import astro_kernels as kernels
from program import run


def pipeline(options, clock):
    patches = kernels.read_patches(options.source)
    clock.mark("start-up")
    paths = kernels.list_exposures(options.source)
    exposures = [kernels.read_exposure(path) for path in paths]
    clock.mark("ingest")
    calibrated = [kernels.calibrate(exposure) for exposure in exposures]
    clock.mark("calibrate")
    pieces = defaultdict(list)
    for path, planes in zip(paths, calibrated, strict=True):
        header = kernels.read_header(path)
        for patch, box in kernels.overlaps(header, patches):
            pieces[patch.name].append(kernels.warp(planes, header, patch, box))
    clock.mark("warp")
    patches = [patch for patch in patches if patch.name in pieces]
    coadds = [kernels.coadd(pieces[patch.name], patch) for patch in patches]
    clock.mark("coadd")
    catalogues = [kernels.detect(*coadd, patch) for coadd, patch in zip(coadds, patches, strict=True)]
    clock.mark("detect")
    kernels.write(options.out, patches, coadds, catalogues)
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
