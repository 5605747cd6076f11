"""A filter of exposures: every column of a sensor gets the level of the sky, which calibration has made 0."""

import warnings

import numpy as np

import mpiimg
from mpiimg.astro.fits.maskplanes import bits

UNUSABLE = bits("BAD", "SAT", "CR", "NO_DATA")


@mpiimg.udf(over="exposures")
def level_columns(image, variance, mask, *, strength=1.0):
    usable = np.where(mask & UNUSABLE, np.nan, image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns without a usable pixel
        levels = np.nan_to_num(np.nanmedian(usable, axis=0))
    return image - (strength * levels).astype("float32")
