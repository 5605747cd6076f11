"""Part the voxels of a series into three kinds by k-means; a run that is killed goes on with its pass."""

import numpy as np

import mpiimg as mi

series = mi.read("dwi.nii.gz").astype("float32")
start = mi.from_array(np.outer([200.0, 500.0, 800.0], np.ones(series.sizes["t"])), "k t")


def nearest(block, *, centres):
    return ((block[..., None, :] - centres) ** 2).sum(axis=-1).argmin(axis=-1)


def sums(block, *, centres):
    kinds = nearest(block, centres=centres)
    return [(np.sum(block[kinds == k], axis=0, dtype="f8"), np.sum(kinds == k)) for k in range(len(centres))]


def together(parts):
    return [(sum(total for total, _ in kind), sum(n for _, n in kind)) for kind in zip(*parts, strict=True)]


def means(kinds):
    return np.array([total / max(n, 1) for total, n in kinds])


def better(centres):
    new = {"out": "k t", "output_sizes": centres.sizes}
    return mi.reduction(series, sums, together, means, whole="t", centres=centres, **new)


centres = mi.iterate(better, start, until=lambda new, old: abs(new - old).max() < 1e-3, at_most=20)
kinds = mi.map_blocks(nearest, series, whole="t", out="x y z", centres=centres).astype("uint8")
mi.write({"kinds.nii.gz": kinds, "centres.npy": centres}, "results")
