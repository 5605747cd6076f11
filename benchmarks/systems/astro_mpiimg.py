"""Astronomy on mpiimg's frame, where the stages do their work by the functions that all systems call."""

import logging

import astro_kernels as kernels
import numpy as np
from program import run

from mpiimg.engine import Array, ChunkGrid, Compute, Files, Part, Pieces, Ragged, box_shape
from mpiimg.engine.mpi import runtime
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.nodes import memory_per_rank
from mpiimg.engine.recipe import Options, Recipe
from mpiimg.engine.run import run as run_recipe

PIXELS_A_SOURCE = 100


def inspect(source):
    """Read headers: exposures, and (exposure, patch, box) wherever one meets the other."""
    paths, patches = kernels.list_exposures(source), kernels.read_patches(source)
    headers = [kernels.read_header(path) for path in paths]
    meets = [
        (number, patch, box)
        for number, header in enumerate(headers)
        for patch, box in kernels.overlaps(header, patches)
    ]
    used = {patch.name for _, patch, _ in meets}
    return paths, headers, [patch for patch in patches if patch.name in used], meets


def planes(name, axes, count, shapes):
    """Describe items of so many planes each."""
    return Ragged(name, axes, tuple((count, *shape) for shape in shapes), "float32")


def recipe(paths, headers, patches, meets):
    exposures = planes("calibrated", "ecyx", 3, [kernels.shape_of(header) for header in headers])
    warped = planes("warped", "mcyx", 3, [box_shape(box) for _, _, box in meets])
    coadds = planes("coadds", "pcyx", 2, [box_shape(patch.outer) for patch in patches])
    of_exposure = [[k for k, one in enumerate(meets) if one[0] == number] for number in range(len(paths))]
    of_patch = [[k for k, one in enumerate(meets) if one[1].name == patch.name] for patch in patches]
    room = max(map(np.prod, (shape for _, *shape in coadds.shapes))) // PIXELS_A_SOURCE
    sources = Array("sources", "pnc", (len(patches), int(room), 4), "float64")
    by_exposure, by_patch = (
        ChunkGrid(axis, (n,), (1,)) for axis, n in (("e", len(paths)), ("p", len(patches)))
    )

    def calibrate(chunk):
        return (kernels.calibrate(kernels.read_exposure(paths[chunk.number]))[None],)

    def warp(chunk, block):
        header = headers[chunk.number]
        return (
            [kernels.warp(block[0], header, *meets[k][1:]).planes[None] for k in of_exposure[chunk.number]],
        )

    def coadd(chunk, blocks):
        boxes = [meets[k][2] for k in of_patch[chunk.number]]
        pieces = [kernels.Piece(box, block[0]) for box, block in zip(boxes, blocks, strict=True)]
        return (np.stack(kernels.coadd(pieces, patches[chunk.number]))[None],)

    def detect(chunk, block):
        found = kernels.detect(*block[0], patches[chunk.number])
        return (np.concatenate([found, np.full((int(room) - len(found), 4), np.nan)])[None],)

    def write(chunk, folder, block):
        kernels.write_patch(folder, patches[chunk.number], *block[0])

    def write_catalogue(chunk, folder, block):
        kernels.write_catalogue(folder, block[np.isfinite(block[..., 0])])

    def pieces(members):
        return Pieces(warped, lambda chunk: [warped.item(k) for k in members[chunk.number]])

    def stages():
        yield Compute("calibrate", by_exposure, writes=(exposures,), work=calibrate)
        yield Compute("warp", by_exposure, reads=(Part(exposures),), writes=(pieces(of_exposure),), work=warp)
        yield Compute(
            "coadd",
            by_patch,
            reads=(pieces(of_patch),),
            writes=(coadds,),
            work=coadd,
            weights=tuple(map(len, of_patch)),
        )
        yield Compute("detect", by_patch, reads=(Part(coadds),), writes=(sources,), work=detect)
        names = tuple(f"{patch.name}.fits" for patch in patches)
        yield Files("write-patches", by_patch, reads=(Part(coadds),), work=write, names=names)
        whole = ChunkGrid("k", (1,), (1,))
        yield Files(
            "write-catalogue", whole, reads=(Part(sources),), work=write_catalogue, names=("catalogue.fits",)
        )

    return Recipe(
        tool="astro-by-peers",
        stem="survey",
        inputs=(),
        stages=stages,
        documents=lambda state: {},
        parameters={},
        sources={"exposures": [str(path) for path in paths]},
        record="run.json",
        baseline=110 << 20,
    )


def pipeline(options, clock):
    comm = runtime.world()
    found = on_root(comm, inspect, options.source)
    memory = options.memory // options.workers if options.memory else memory_per_rank(comm)
    made = recipe(*found)
    given = Options(options.out, memory, in_memory=options.memory is None)
    raise SystemExit(runtime.guard(comm, lambda: run_recipe(made, comm, given).status))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(pipeline)
