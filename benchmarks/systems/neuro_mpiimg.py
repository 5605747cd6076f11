"""Neuroscience on mpiimg's frame, where the stages do their work by dipy's functions."""

import logging

import neuro_kernels as kernels
import numpy as np
from program import run

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.mpi import runtime
from mpiimg.engine.plan import Options, Recipe
from mpiimg.engine.run import run as run_recipe
from mpiimg.engine.stage import Need, Stage
from mpiimg.engine.stores import Array
from mpiimg.errors import Exit
from mpiimg.neuro import images as image
from mpiimg.neuro.steps import mask
from mpiimg.neuro.subject import inspect_subject

VOLUMES_AT_ONCE, SLICES_AT_ONCE = 1, 4


def brain(img):
    """Declare the mask: the whole mean in one chunk, as dipy's function takes it."""
    depth = img.shape[1]
    return Stage(
        "mask",
        "map",
        ChunkGrid("z", (depth,), (depth,)),
        (Need(mask.volume(img, "b0", "float32")),),
        (mask.volume(img, "mask", "uint8"),),
        lambda chunk, mean: (kernels.brain_mask(mean.T).T,),
    )


def denoise(img, offsets, sigma, radius):
    """Declare denoising, a volume a chunk; what is written are the voxels in the mask."""
    volumes, depth = img.shape[:2]

    def work(chunk, block, inside):
        inside = inside != 0
        return (kernels.denoise(img.scaled(block[0]).T, inside.T, sigma, radius).T[inside][None],)

    return Stage(
        "denoise",
        "map",
        ChunkGrid("vz", (volumes, depth), (VOLUMES_AT_ONCE, depth)),
        (Need(img.array("dwi")), Need(mask.volume(img, "mask", "uint8"))),
        (Array("denoised", "vn", (volumes, offsets[-1]), "float32"),),
        work,
        {"sigma": sigma, "block_radius": radius},
        offsets=offsets,
    )


def fit(img, offsets, gradients):
    """Declare the fit, some slices a chunk."""
    counts = np.add.reduceat(np.diff(offsets), np.arange(0, len(offsets) - 1, SLICES_AT_ONCE))
    return Stage(
        "fit",
        "map",
        ChunkGrid("z", (img.shape[1],), (SLICES_AT_ONCE,)),
        (Need(Array("denoised", "vn", (img.shape[0], offsets[-1]), "float32"), offsets=offsets),),
        (Array("maps", "cn", (2, offsets[-1]), "float32"),),
        lambda chunk, signal: (kernels.fit(signal.T, gradients).T if signal.size else signal[:2],),
        weights=tuple(counts.tolist()),
        offsets=offsets,
    )


def recipe(subject, gradients, *method):
    img, names = subject.dwi, {"fa.nii.gz": (0,), "md.nii.gz": (1,)}
    inside = mask.volume(img, "mask", "uint8")

    def write(values, name):
        maps = Array("maps", "cn", (2, values["offsets"][-1]), "float32")
        return image.write_packed(name, img, inside, maps, values["offsets"], names[name])

    return Recipe(
        tool="neuro-by-dipy",
        stem="dwi",
        inputs={},
        steps=[
            lambda values: image.inflate(img, "dwi"),
            lambda values: mask.b0_mean(img, img.array("dwi"), subject.gradients.b0),
            lambda values: brain(img),
            lambda values: mask.count_voxels(img, inside, "the mask"),
            lambda values: denoise(img, values["offsets"], *method),
            lambda values: fit(img, values["offsets"], gradients),
            lambda values: image.write_dense(
                "mask.nii.gz", img, (Need(inside),), lambda chunk, block: block, None, "uint8"
            ),
            *(lambda values, name=name: write(values, name) for name in names),
        ],
        values={"offsets": tuple(np.arange(img.shape[1] + 1) * img.shape[2] * img.shape[3])},
        documents=lambda values: {},
        parameters={"method": method},
        sources=subject.sources(),
        record="run.json",
    )


def pipeline(options, clock):
    comm = runtime.world()
    paths = [str(options.source / name) for name in ("dwi.nii.gz", "dwi.bval", "dwi.bvec")]
    subject = runtime.on_root(comm, inspect_subject, *paths)
    made = recipe(subject, kernels.read_gradients(options.source), options.sigma, options.block_radius)
    memory = options.memory // options.workers if options.memory else runtime.memory_per_rank(comm)
    given = Options(options.out, memory, in_memory=options.memory is None)
    raise SystemExit(runtime.guard(comm, lambda: run_recipe(made, comm, given) and Exit.DONE))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(pipeline)
