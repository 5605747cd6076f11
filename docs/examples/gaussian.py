"""A 3-D Gaussian filter, on blocks of slices of every volume."""

from scipy.ndimage import gaussian_filter

import mpiimg


# scipy looks int(4 * sigma + 0.5) voxels away: a halo of 6 is enough for a sigma of up to 1.6.
@mpiimg.udf(over="slabs", halo=6, dtype="float32")
def gaussian(block, *, sigma=1.5):
    return gaussian_filter(block.astype("float32"), sigma)
