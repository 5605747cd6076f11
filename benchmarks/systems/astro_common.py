"""What programs of the astronomy workload share whatever kernels they call: exposures, patches, sep, files.

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
from astropy.table import Table
from astropy.wcs import WCS, FITSFixedWarning

warnings.simplefilter("ignore", FITSFixedWarning)

#: Magnitude of one count in coadds; planes of the mask that make a pixel unusable; rows combined at once.
ZERO_POINT, UNUSABLE, STRIP_ROWS = 27.0, ("BAD", "SAT", "EDGE"), 250


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


def strips(patch: Patch) -> list[tuple]:
    """Return the boxes of rows of a patch that are combined at once."""
    (top, bottom), columns = patch.outer
    return [((row, min(row + STRIP_ROWS, bottom)), columns) for row in range(top, bottom, STRIP_ROWS)]


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
