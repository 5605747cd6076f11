"""Neuroscience on mpiimg's frame, where the stages do their work by dipy's functions."""

import logging

import neuro_kernels as kernels
import numpy as np
from program import run

from mpiimg.engine import Array, ChunkGrid, Compute, Packing, Part
from mpiimg.engine.mpi import runtime
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.nodes import memory_per_rank
from mpiimg.engine.plugins import default_rates
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.run import run as run_recipe
from mpiimg.neuro.images import inflate, write_dense, write_packed
from mpiimg.neuro.masks import count_voxels, volume
from mpiimg.neuro.steps.mask import b0_mean
from mpiimg.neuro.subject import SERIES

VOLUMES_AT_ONCE, SLICES_AT_ONCE = 1, 4


def brain(mean, inside):
    """Declare the mask: the whole mean in one chunk, as dipy's function takes it."""
    return Compute(
        "mask",
        mean.cut(z=mean.shape[0]),
        reads=(Part(mean),),
        writes=(inside,),
        work=lambda chunk, mean: (kernels.brain_mask(mean.T).T,),
    )


def denoise(img, dwi, inside, denoised, sigma, radius):
    """Declare denoising, a volume a chunk; what is written are the voxels in the mask."""

    def work(chunk, block, inside):
        inside = inside != 0
        return (kernels.denoise(img.scaled(block[0]).T, inside.T, sigma, radius).T[inside][None],)

    return Compute(
        "denoise",
        dwi.cut(v=VOLUMES_AT_ONCE, z=dwi.shape[1]),
        reads=(Part(dwi), Part(inside)),
        writes=(denoised,),
        work=work,
        parameters={"sigma": sigma, "block_radius": radius},
    )


def fit(denoised, maps, gradients):
    """Declare the fit, some slices a chunk."""
    offsets = denoised.packing.offsets
    counts = np.add.reduceat(np.diff(offsets), np.arange(0, len(offsets) - 1, SLICES_AT_ONCE))
    return Compute(
        "fit",
        ChunkGrid("z", (len(offsets) - 1,), (SLICES_AT_ONCE,)),
        reads=(Part(denoised),),
        writes=(maps,),
        work=lambda chunk, signal: (kernels.fit(signal.T, gradients).T if signal.size else signal[:2],),
        weights=tuple(counts.tolist()),
    )


def recipe(subject, gradients, *method):
    img, dwi, names = subject.image, subject.dwi, ("fa.nii.gz", "md.nii.gz")
    mean, inside = volume(img, "b0", "float32"), volume(img, "mask", "uint8")

    def stages():
        yield inflate(subject.inputs[0])
        yield b0_mean(img, dwi, subject.gradients.b0, mean)
        yield brain(mean, inside)
        packing = Packing("n", "z", (yield count_voxels(inside, "the mask")))
        denoised, maps = (
            Array(name, "vn", (rows, packing.offsets[-1]), "float32", packing)
            for name, rows in (("denoised", dwi.shape[0]), ("maps", len(names)))
        )
        yield denoise(img, dwi, inside, denoised, *method)
        yield fit(denoised, maps, gradients)
        yield write_dense("mask.nii.gz", img, (Part(inside),), lambda chunk, block: block, None, "uint8")
        for row, name in enumerate(names):
            yield write_packed(name, img, inside, maps, (row,))

    return Recipe(
        tool="neuro-by-dipy",
        stem="dwi",
        inputs=(),
        stages=stages,
        documents=lambda state: {},
        parameters={"method": method},
        sources=subject.sources,
        record="run.json",
        rates=default_rates(),
        baseline=110 << 20,
    )


def pipeline(options, clock):
    comm = runtime.world()
    endings = {"dwi": "nii.gz", "bvals": "bval", "bvecs": "bvec"}
    paths = {name: options.source / f"dwi.{ending}" for name, ending in endings.items()}
    taken = frozenset({"dwi", "gradients"})
    subject = on_root(comm, SERIES.inspect, paths, SERIES.parameters(), taken)
    made = recipe(subject, kernels.read_gradients(options.source), options.sigma, options.block_radius)
    memory = options.memory // options.workers if options.memory else memory_per_rank(comm)
    given = Options(options.out, memory, in_memory=options.memory is None)
    raise SystemExit(runtime.guard(comm, lambda: run_recipe(made, comm, given).status))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(pipeline)
