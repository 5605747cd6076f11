"""The median of the exposures that overlap, as an aggregate: one partial result per exposure and strip."""

import warnings

import numpy as np

import mpiimg
from mpiimg.astro.fits.maskplanes import bits

UNUSABLE = bits("BAD", "SAT", "EDGE", "NO_DATA")


@mpiimg.udf(over="patches")
class MedianCoadd:
    def partial(self, image, variance, mask):
        unusable = (mask & UNUSABLE) != 0
        return [(np.where(unusable, np.nan, image), np.where(unusable, 0, variance), ~unusable)]

    def merge(self, one, other):
        return one + other

    def finish(self, exposures):
        images, variances, used = map(np.stack, zip(*exposures, strict=True))
        number = np.maximum(used.sum(axis=0), 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # pixels that no exposure reaches
            median = np.nanmedian(images, axis=0)
        # The median of many Gaussian values has pi / 2 times the variance of their mean.
        return median, (np.pi / 2 * variances.sum(axis=0) / number**2).astype("float32")
