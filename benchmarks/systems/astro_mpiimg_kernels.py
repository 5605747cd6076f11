"""mpiimg's compiled kernels under the names of astro_kernels.py; sky and sources are sep's in both."""

from __future__ import annotations

import numpy as np
import sep
from astro_common import (
    ZERO_POINT,
    Exposure,
    Patch,
    Piece,
    detect,
    list_exposures,
    overlaps,
    read_exposure,
    read_header,
    read_patches,
    strips,
    write_catalogue,
    write_patch,
)
from astropy.io import fits
from astropy.wcs import WCS

from mpiimg.astro.kernels.bad_pixels import interpolate_bad
from mpiimg.astro.kernels.coadd import MaskValues, combine
from mpiimg.astro.kernels.cosmics import detect_cosmics
from mpiimg.astro.kernels.warp import NODE_SPACING, resample
from mpiimg.astro.sky.wcs import source_grid

__all__ = (
    "calibrate",
    "coadd",
    "detect",
    "list_exposures",
    "overlaps",
    "read_exposure",
    "read_header",
    "read_patches",
    "warp",
    "write_catalogue",
    "write_patch",
)

#: Bits of a mask.
UNUSABLE, NO_DATA, CLIPPED, SATURATED = 1, 2, 4, 8


def calibrate(exposure: Exposure) -> np.ndarray:
    """Repair cosmic rays, subtract the sky, and bring the pixels to the common zero point."""
    image, variance, unusable = exposure.planes
    bad = unusable != 0
    struck, clean = detect_cosmics(
        image, mask=bad, variance=variance, satlevel=exposure.saturate, readnoise=0.0
    )
    clean -= sep.Background(clean, mask=bad | struck).back()
    clean, variance, _ = interpolate_bad(clean, variance, bad)
    scale = np.float32(10 ** (0.4 * (ZERO_POINT - exposure.zero_point)))
    return np.stack([clean * scale, variance * scale**2, unusable])


def warp(planes: np.ndarray, header: str, patch: Patch, box: tuple) -> Piece:
    """Resample an exposure onto a box of a patch; light is conserved."""
    source, tract = (WCS(fits.Header.fromstring(text)) for text in (header, patch.tract))
    grid = source_grid(source, tract, box, NODE_SPACING)
    image, variance, unusable = planes
    pixels = resample(image, variance, unusable.astype(np.int32), grid, box, no_data=NO_DATA)
    return Piece(box, np.stack(pixels[:3]))


def coadd(pieces: list[Piece], patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Return the clipped and weighted mean of the pieces of a patch, and its standard error."""
    spreads = [piece.planes[1] for piece in pieces]
    weights = np.array([1 / np.median(variance[np.isfinite(variance)]) for variance in spreads])
    bits = MaskValues(UNUSABLE | NO_DATA, NO_DATA, CLIPPED, SATURATED)
    parts = [combine(*_stack(pieces, strip), weights, bits)[:2] for strip in strips(patch)]
    image, variance = (np.concatenate(planes) for planes in zip(*parts, strict=True))
    return image, np.where(np.isfinite(variance), np.sqrt(variance), np.float32(np.nan))


def _stack(pieces: list[Piece], strip: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, variances and masks of all pieces on a strip, without data where they do not reach."""
    (top, bottom), (left, right) = strip
    shape = (len(pieces), bottom - top, right - left)
    images, variances, masks = (
        np.full(shape, value, kind) for value, kind in ((np.nan, "f4"), (np.inf, "f4"), (NO_DATA, "i4"))
    )
    for number, ((y0, y1), (x0, x1)), planes in ((n, *piece) for n, piece in enumerate(pieces)):
        first, last = max(top, y0), min(bottom, y1)
        if first < last:
            place = number, slice(first - top, last - top), slice(x0 - left, x1 - left)
            images[place], variances[place], masks[place] = planes[:, first - y0 : last - y0]
    return images, variances, masks
