"""What every system calls in the astronomy workload: astroscrappy, sep, reproject and ccdproc."""

from __future__ import annotations

from collections.abc import Callable

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
    shape_of,
    strips,
    write_catalogue,
    write_patch,
)
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from astroscrappy import detect_cosmics
from ccdproc import Combiner
from reproject import reproject_interp
from scipy.ndimage import maximum_filter

__all__ = (
    "Exposure",
    "Patch",
    "Piece",
    "calibrate",
    "coadd",
    "detect",
    "list_exposures",
    "overlaps",
    "read_exposure",
    "read_header",
    "read_patches",
    "shape_of",
    "warp",
    "write_catalogue",
    "write_patch",
)

#: Pixels a side that an interpolated value comes from, near enough.
FOOTPRINT = 5


def calibrate(exposure: Exposure) -> np.ndarray:
    """Repair cosmic rays, subtract the sky, and bring the pixels to the common zero point."""
    image, variance, unusable = exposure.planes
    bad = unusable != 0
    struck, clean = detect_cosmics(
        image,
        inmask=bad,
        invar=variance,
        satlevel=exposure.saturate,
        readnoise=0.0,
        cleantype="medmask",
        fsmode="median",
    )
    clean = np.ascontiguousarray(clean, np.float32)
    clean -= sep.Background(clean, mask=bad | struck).back()
    # What is unusable must not ring through the spline, nor count where it reaches into one (as in mpiimg).
    clean[bad] = 0
    unusable = maximum_filter(unusable, FOOTPRINT)
    scale = np.float32(10 ** (0.4 * (ZERO_POINT - exposure.zero_point)))
    return np.stack([clean * scale, variance * scale**2, unusable])


def warp(planes: np.ndarray, header: str, patch: Patch, box: tuple) -> Piece:
    """Resample an exposure onto a box of a patch; light is conserved."""
    source, tract = (WCS(fits.Header.fromstring(text)) for text in (header, patch.tract))
    area = proj_plane_pixel_area(tract) / proj_plane_pixel_area(source)
    target = tract[tuple(slice(*bounds) for bounds in box)]
    shape = tuple(high - low for low, high in box)
    # Both calls ask for the same places, which cost more than the rest; the way back is not looked at.
    target.pixel_to_world, source.world_to_pixel = map(_once, (target.pixel_to_world, source.world_to_pixel))
    method = {"roundtrip_coords": False, "return_footprint": False}
    values = reproject_interp((planes[:2], source), target, shape_out=(2, *shape), order="bicubic", **method)
    # A flag is one or none: of the nearest pixel.
    unusable = reproject_interp(
        (planes[2], source), target, shape_out=shape, order="nearest-neighbor", **method
    )
    return Piece(box, np.stack([values[0] * area, values[1] * area**2, unusable]).astype(np.float32))


def _once(transform: Callable) -> Callable:
    """Return a transform that answers the question that it is first asked, and every later one alike."""
    answers = []

    def answer(*places):
        if not answers:
            answers.append(transform(*places))
        return answers[0]

    return answer


def coadd(pieces: list[Piece], patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Return the clipped and weighted mean of the pieces of a patch, and its standard error."""
    weights = np.array([1 / np.nanmedian(piece.planes[1]) for piece in pieces])
    (top, bottom), (left, right) = patch.outer
    image, error = np.empty((2, bottom - top, right - left), np.float32)
    for strip in strips(patch):
        known = [(_cut(piece, strip), weight) for piece, weight in zip(pieces, weights, strict=True)]
        known = [(data, weight) for data, weight in known if data is not None]
        rows = slice(*(row - top for row in strip[0]))
        image[rows] = error[rows] = np.nan
        if known:
            stack = [data for data, _ in known]
            combiner = Combiner(stack, dtype=np.float32)
            for _ in range(2):
                combiner.sigma_clipping(low_thresh=3, high_thresh=3, func="mean", dev_func="std")
            # Weights by frame would count in the divisor of ccdproc's mean where a pixel is masked as well.
            kept = np.array([weight for _, weight in known])[:, None, None] * ~combiner.data_arr.mask
            combiner.weights = kept
            image[rows] = combiner.average_combine().data
            # The squared error of a weighted mean of what clipping has left; NaN where nothing is.
            variances = np.stack([data.uncertainty.array for data in stack])
            error[rows] = np.sqrt((kept**2 * variances).sum(axis=0)) / kept.sum(axis=0)
            image[rows][~np.isfinite(error[rows])] = np.nan
    return image, error


def _cut(piece: Piece, strip) -> CCDData | None:
    """Return a piece on a strip of rows of its patch, masked where it has nothing usable."""
    (top, bottom), (left, right) = strip
    (y0, y1), (x0, x1) = piece.box
    first, last = max(top, y0), min(bottom, y1)
    if first >= last:
        return None
    shape = (bottom - top, right - left)
    data, variance, mask = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.ones(shape, bool)
    part = slice(first - top, last - top), slice(x0 - left, x1 - left)
    planes = piece.planes[:, first - y0 : last - y0]
    data[part], variance[part], unusable = np.nan_to_num(planes)
    mask[part] = ~(np.isfinite(planes[0]) & (unusable < 0.1))
    return CCDData(data, mask=mask, uncertainty=VarianceUncertainty(variance), unit="adu")
