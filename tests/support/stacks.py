"""Stacks of exposures of one sky, for the tests of comparison: arrays alone."""

from __future__ import annotations

import numpy as np

from mpiimg.astro.comparison import Matching, compare_tile


def moffat(y, x, fwhm, beta=3.0):
    """A star of flux 1."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
    return (beta - 1) / (np.pi * alpha**2) * (1 + (x**2 + y**2) / alpha**2) ** -beta


def add_stars(image, stars, fwhm, beta=3.0, shift=(0.0, 0.0)):
    """Add stars (y, x, flux) to an image, each in a box around it."""
    reach = int(12 * fwhm)
    for y, x, flux in stars:
        y, x = y + shift[0], x + shift[1]
        rows = slice(max(int(y) - reach, 0), int(y) + reach + 1)
        columns = slice(max(int(x) - reach, 0), int(x) + reach + 1)
        own = image[rows, columns]
        yy, xx = np.mgrid[rows, columns][:, : own.shape[0], : own.shape[1]]
        own += flux * moffat(yy - y, xx - x, fwhm, beta)


def some_stars(shape, count, seed=1, fluxes=(1e3, 1e6), margin=0):
    rng = np.random.default_rng(seed)
    place = rng.uniform(margin, np.array(shape) - 1 - margin, (count, 2))
    return np.column_stack([place, np.exp(rng.uniform(*np.log(fluxes), count))])


def whole(images, masks, variances, fwhm):
    """Compare exposures of a patch in one tile."""
    box = ((0, images[0].shape[0]), (0, images[0].shape[1]))
    n = len(images)
    return compare_tile(box, box, [box] * n, images, masks, variances, Matching.of(fwhm))
