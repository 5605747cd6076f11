"""Smooth a volume, part it by Otsu's threshold, and list the connected regions of each slab of 8 planes."""

import numpy as np
from scipy import ndimage

import mpiimg as mi

volume = mi.read("volume.npy", axes="z y x")
smooth = mi.map_overlap(ndimage.gaussian_filter, volume, sigma=1.0, depth=4, boundary="reflect")
low, high = mi.compute(smooth.min(), smooth.max())
counts, edges = smooth.histogram(256, range=(low, high))

counts, middle = counts.compute(), (edges[1:] + edges[:-1]) / 2
below, mass = np.cumsum(counts), np.cumsum(counts * middle)
with np.errstate(invalid="ignore", divide="ignore"):
    between = (mass[-1] * below / below[-1] - mass) ** 2 / (below * (below[-1] - below))
threshold = middle[np.nanargmax(between[:-1])]


def regions(planes, key):
    labels, count = ndimage.label(np.stack(planes) > threshold)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return {"slab": key, "region": np.arange(1, count + 1), "voxels": sizes}


slabs = smooth.to_items("z").flat_map(lambda plane, key: [(key // 8, plane)]).group_by_key()
table = slabs.map(regions).table()
by_slab = table.group("slab").agg("count", voxels="sum")
mi.write({"smooth.npy": smooth, "regions.parquet": table, "slabs.csv": by_slab}, "results")
