"""Neuroscience with dipy alone, on one core; with --threads also on dipy's own OpenMP threads."""

import numpy as np
from program import run


def pipeline(options, clock):
    kernels = options.kernels
    gradients, affine = kernels.read_gradients(options.source), kernels.read_affine(options.source)
    clock.mark("start-up")
    data = kernels.read_data(options.source)
    clock.mark("ingest")
    b0 = np.moveaxis(data[..., gradients.b0s_mask], -1, 0)
    clock.mark("filter")
    mean = kernels.mean_of(kernels.total_of(b0), len(b0))
    clock.mark("mean")
    mask = kernels.brain_mask(mean)
    clock.mark("mask")
    method = options.sigma, options.block_radius, options.threads
    for v in range(data.shape[-1]):
        data[..., v] = kernels.denoise(data[..., v], mask, *method)
    clock.mark("denoise")
    signal = data[mask]
    clock.mark("regroup")
    maps = kernels.fit(signal, gradients)
    clock.mark("fit")
    kernels.write_maps(options.out, affine, mask, maps)
    clock.mark("write")


if __name__ == "__main__":
    run(pipeline, "neuro_kernels")
