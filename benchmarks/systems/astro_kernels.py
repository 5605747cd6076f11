"""What every system calls in the astronomy workload: astroscrappy, sep, reproject, ccdproc, and files.

An exposure becomes three planes, (3, rows, columns): image, variance and whether a pixel is unusable.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sep
from astropy.io import fits
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.table import Table
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_area
from astroscrappy import detect_cosmics
from ccdproc import Combiner
from reproject import reproject_interp
from scipy.ndimage import maximum_filter

warnings.simplefilter("ignore", FITSFixedWarning)

#: Magnitude of one count in coadds; planes of the mask that make a pixel unusable; rows combined at once.
ZERO_POINT, UNUSABLE, STRIP_ROWS = 27.0, ("BAD", "SAT", "EDGE"), 250

#: Pixels a side that an interpolated value comes from, near enough.
FOOTPRINT = 5


class Exposure(NamedTuple):
    planes: np.ndarray
    zero_point: float
    saturate: float


class Patch(NamedTuple):
    """A patch: boxes ((y0, y1), (x0, x1)) in pixels of the tract, whose header is the same for all."""

    name: str
    tract: str
    outer: tuple
    inner: tuple


class Piece(NamedTuple):
    """What one exposure gives to one patch: planes on a box in pixels of the tract."""

    box: tuple
    planes: np.ndarray


def list_exposures(source: Path) -> list[Path]:
    return sorted(source.glob("sim-*.fits"))


def read_patches(source: Path) -> list[Patch]:
    return [Patch(**one) for one in json.loads((source / "patches.json").read_text())]


def read_header(path: Path) -> str:
    return fits.getheader(path, "IMAGE").tostring()


def shape_of(header: str) -> tuple[int, int]:
    cards = fits.Header.fromstring(header)
    return cards["NAXIS2"], cards["NAXIS1"]


def read_exposure(path: Path) -> Exposure:
    with fits.open(path) as hdus:
        image, variance, mask = (hdus[name].data for name in ("IMAGE", "VARIANCE", "MASK"))
        bits = sum(1 << hdus["MASK"].header[f"MP_{name}"] for name in UNUSABLE)
        planes = np.stack([image, variance, (mask & bits) != 0]).astype(np.float32)
        header = hdus["IMAGE"].header
        return Exposure(planes, header["MAGZERO"], header["SATURATE"])


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


def overlaps(header: str, patches: list[Patch]) -> list[tuple[Patch, tuple]]:
    """Return the patches that an exposure meets, each with the box of pixels that it can reach there."""
    rows, columns = shape_of(header)
    source, tract = (WCS(fits.Header.fromstring(text)) for text in (header, patches[0].tract))
    x, y = tract.world_to_pixel(source.pixel_to_world([0, columns, 0, columns], [0, 0, rows, rows]))
    found = []
    for patch in patches:
        box = tuple(
            (max(low, int(min(edge))), min(high, int(max(edge)) + 1))
            for (low, high), edge in zip(patch.outer, (y, x), strict=True)
        )
        if all(high > low for low, high in box):
            found.append((patch, box))
    return found


def warp(planes: np.ndarray, header: str, patch: Patch, box: tuple) -> Piece:
    """Resample an exposure onto a box of a patch; light is conserved."""
    source, tract = (WCS(fits.Header.fromstring(text)) for text in (header, patch.tract))
    area = proj_plane_pixel_area(tract) / proj_plane_pixel_area(source)
    target = tract[tuple(slice(*bounds) for bounds in box)]
    shape = (3, *(high - low for low, high in box))
    warped = reproject_interp(
        (planes, source), target, shape_out=shape, order="bicubic", return_footprint=False
    )
    return Piece(box, (warped * np.array([area, area**2, 1])[:, None, None]).astype(np.float32))


def coadd(pieces: list[Piece], patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Return the clipped and weighted mean of the pieces of a patch, and its standard error."""
    weights = np.array([1 / np.nanmedian(piece.planes[1]) for piece in pieces])
    (top, bottom), (left, right) = patch.outer
    image, error = np.empty((2, bottom - top, right - left), np.float32)
    for row in range(top, bottom, STRIP_ROWS):
        strip = (row, min(row + STRIP_ROWS, bottom)), (left, right)
        known = [(_cut(piece, strip), weight) for piece, weight in zip(pieces, weights, strict=True)]
        known = [(data, weight) for data, weight in known if data is not None]
        rows = slice(row - top, strip[0][1] - top)
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


def detect(image: np.ndarray, error: np.ndarray, patch: Patch) -> np.ndarray:
    """Return x, y (pixels of the tract), flux and peak of the sources centred in a patch's inner box."""
    bad = ~(np.isfinite(image) & np.isfinite(error) & (error > 0))
    data = np.where(bad, np.float32(0), image)
    data -= sep.Background(data, mask=bad).back()
    noise = np.where(bad, np.float32(1), error)
    # The threshold is 5 times the noise of a pixel, as for mpiimg; sep's default is of the filtered image.
    found = sep.extract(data, 5.0, err=noise, mask=bad, filter_type="conv")
    (top, bottom), (left, right) = patch.inner
    x, y = found["x"] + patch.outer[1][0], found["y"] + patch.outer[0][0]
    inside = (x >= left - 0.5) & (x < right - 0.5) & (y >= top - 0.5) & (y < bottom - 0.5)
    return np.stack([x, y, found["flux"], found["peak"]], axis=1)[inside]


def write_patch(out: Path, patch: Patch, image: np.ndarray, error: np.ndarray) -> None:
    """Write a coadd with its place in the sky."""
    header = WCS(fits.Header.fromstring(patch.tract))[tuple(slice(*b) for b in patch.outer)].to_header()
    planes = [fits.ImageHDU(plane, header, name) for plane, name in ((image, "IMAGE"), (error, "ERROR"))]
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(out / f"{patch.name}.fits", overwrite=True)


def write_catalogue(out: Path, sources: np.ndarray) -> None:
    """Write the sources of all patches."""
    Table(sources, names=("x", "y", "flux", "peak")).write(out / "catalogue.fits", overwrite=True)
