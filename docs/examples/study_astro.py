"""The study's astronomy in user code: from exposures to a catalogue, by astroscrappy, reproject and sep."""

import astro_kernels as kernels
from program import run

import mpiimg as mi


def load(path):
    return kernels.read_header(path), kernels.calibrate(kernels.read_exposure(path))


def onto_patches(exposure, patches):
    header, planes = exposure
    for patch, box in kernels.overlaps(header, patches):
        yield patches.index(patch), kernels.warp(planes, header, patch, box)


def coadd(pieces, key, patches):
    return kernels.coadd(pieces, patches[key])


def detect(planes, key, patches):
    return kernels.detect(*planes, patches[key])


def save(folder, planes, key, patches):
    kernels.write_patch(folder, patches[key], *planes)


def pipeline(options, clock):
    patches = kernels.read_patches(options.source)
    exposures = mi.items(kernels.list_exposures(options.source), load)
    coadds = exposures.flat_map(onto_patches, patches=patches).group_by_key().map(coadd, patches=patches)
    sources = coadds.map(detect, patches=patches).table("x y flux peak")
    results = {"catalogue.fits": sources, "patches/": coadds.files(save, patches=patches)}
    mi.write(results, options.out, memory=options.memory_per_worker, in_memory=options.memory is None)


if __name__ == "__main__":
    run(pipeline)
