"""A filter of exposures: columns of a sensor are brought to the level of the sky, 0 after calibration."""

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
