"""Astronomy on mpiimg's frame, where the stages do their work by the functions that all systems call."""

import logging

import astro_kernels as kernels
import numpy as np
from program import run

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.mpi import runtime
from mpiimg.engine.plan import Options, Recipe
from mpiimg.engine.run import run as run_recipe
from mpiimg.engine.stage import Need, Stage
from mpiimg.engine.stores import Array
from mpiimg.errors import Exit

PIXELS_A_SOURCE = 100


def starts(sizes):
    return np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()


def flat(name, offsets):
    """Describe pieces that lie end to end, and return where each lies."""
    array = Array(name, "s", (offsets[-1],), "float32")
    return array, lambda number: ((offsets[number], offsets[number + 1]),)


def size(box):
    return int(np.prod([high - low for low, high in box]))


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


def recipe(paths, headers, patches, meets):
    shapes = [kernels.shape_of(header) for header in headers]
    exposures, exposure_run = flat("calibrated", starts([3 * rows * columns for rows, columns in shapes]))
    warped, piece_run = flat("warped", starts([3 * size(box) for _, _, box in meets]))
    coadds, coadd_run = flat("coadds", starts([2 * size(patch.outer) for patch in patches]))
    of_exposure = [[k for k, one in enumerate(meets) if one[0] == number] for number in range(len(paths))]
    of_patch = [[k for k, one in enumerate(meets) if one[1].name == patch.name] for patch in patches]
    room = max(size(patch.outer) for patch in patches) // PIXELS_A_SOURCE
    sources = Array("sources", "pnc", (len(patches), room, 4), "float64")
    by_exposure, by_patch = (
        ChunkGrid(axis, (n,), (1,)) for axis, n in (("e", len(paths)), ("p", len(patches)))
    )

    def calibrate(chunk):
        return (kernels.calibrate(kernels.read_exposure(paths[chunk.number])).ravel(),)

    def warp(chunk, planes):
        planes, header = planes[0].reshape(3, *shapes[chunk.number]), headers[chunk.number]
        pieces = [kernels.warp(planes, header, *meets[k][1:]) for k in of_exposure[chunk.number]]
        return (np.concatenate([piece.planes.ravel() for piece in pieces]),)

    def coadd(chunk, blocks):
        boxes = [meets[k][2] for k in of_patch[chunk.number]]
        pieces = [
            kernels.Piece(box, block.reshape(3, *(high - low for low, high in box)))
            for box, block in zip(boxes, blocks, strict=True)
        ]
        return (np.ravel(kernels.coadd(pieces, patches[chunk.number])),)

    def planes_of(chunk, block):
        (top, bottom), (left, right) = patches[chunk.number].outer
        return block[0].reshape(2, bottom - top, right - left)

    def detect(chunk, block):
        found = kernels.detect(*planes_of(chunk, block), patches[chunk.number])
        return (np.concatenate([found, np.full((room - len(found), 4), np.nan)])[None],)

    def write(chunk, folder, block):
        kernels.write_patch(folder, patches[chunk.number], *planes_of(chunk, block))

    def write_catalogue(chunk, folder, block):
        kernels.write_catalogue(folder, block[np.isfinite(block[..., 0])])

    def run_of(number):
        members = of_exposure[number]
        return ((piece_run(members[0])[0][0], piece_run(members[-1])[0][1]),)

    need_exposure = Need(exposures, place=lambda chunk: (exposure_run(chunk.number),))
    need_pieces = Need(warped, place=lambda chunk: tuple(piece_run(k) for k in of_patch[chunk.number]))
    need_coadd = Need(coadds, place=lambda chunk: (coadd_run(chunk.number),))
    names = tuple(f"{patch.name}.fits" for patch in patches)
    stages = [
        Stage(
            "calibrate",
            "map",
            by_exposure,
            (),
            (exposures,),
            calibrate,
            place={"calibrated": lambda chunk: exposure_run(chunk.number)},
        ),
        Stage(
            "warp",
            "map",
            by_exposure,
            (need_exposure,),
            (warped,),
            warp,
            place={"warped": lambda chunk: run_of(chunk.number)},
        ),
        Stage(
            "coadd",
            "regroup",
            by_patch,
            (need_pieces,),
            (coadds,),
            coadd,
            weights=tuple(map(len, of_patch)),
            place={"coadds": lambda chunk: coadd_run(chunk.number)},
        ),
        Stage("detect", "map", by_patch, (need_coadd,), (sources,), detect),
        Stage("write-patches", "files", by_patch, (need_coadd,), work=write, outputs=names),
        Stage(
            "write-catalogue",
            "files",
            ChunkGrid("k", (1,), (1,)),
            (Need(sources),),
            work=write_catalogue,
            outputs=("catalogue.fits",),
        ),
    ]
    return Recipe(
        tool="astro-by-peers",
        stem="survey",
        inputs={},
        steps=[lambda values, stage=stage: stage for stage in stages],
        values={},
        documents=lambda values: {},
        parameters={},
        sources={"exposures": [str(path) for path in paths]},
        record="run.json",
    )


def pipeline(options, clock):
    comm = runtime.world()
    found = runtime.on_root(comm, inspect, options.source)
    memory = options.memory // options.workers if options.memory else runtime.memory_per_rank(comm)
    made = recipe(*found)
    given = Options(options.out, memory, in_memory=options.memory is None)
    raise SystemExit(runtime.guard(comm, lambda: run_recipe(made, comm, given) and Exit.DONE))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(pipeline)
