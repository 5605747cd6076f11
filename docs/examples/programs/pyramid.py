"""A pyramid of an image, each level half as large as the one before, from Zarr to TIFF and Zarr."""

import mpiimg as mi

levels = [mi.read("stack.zarr")]
while min(levels[-1].sizes["y"], levels[-1].sizes["x"]) > 8:
    coarse = levels[-1].coarsen(y=2, x=2, boundary="trim").mean()
    levels.append(coarse.round().astype(levels[0].dtype))

mi.write({f"level-{n}.tif": level for n, level in enumerate(levels)}, "results")
mi.write({f"pyramid.zarr/{n}": level for n, level in enumerate(levels)}, "results")
