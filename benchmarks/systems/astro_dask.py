"""Astronomy on Dask, by delayed functions on exposures and patches."""

from collections import defaultdict

import astro_kernels as kernels
import dask
from dask import delayed
from dask.distributed import Client, wait
from program import run


def pipeline(options, clock):
    patches = kernels.read_patches(options.source)
    memory = options.memory // options.workers if options.memory else "auto"
    with Client(
        n_workers=options.workers, threads_per_worker=1, memory_limit=memory, dashboard_address=None
    ) as client:

        def finish(step, values):
            """Compute now what is to be timed."""
            if clock.steps:
                (values,) = dask.persist(values)
                wait(values)
            clock.mark(step)
            return values

        clock.mark("start-up")
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
        coadds, catalogues = client.gather(client.compute([delayed(list)(coadds), delayed(list)(found)]))
        clock.mark("detect")
    kernels.write(options.out, patches, coadds, catalogues)
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline)
