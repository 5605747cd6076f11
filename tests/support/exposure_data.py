"""Exposures in every layout that is read, for tests: written by astropy, with facts that are known."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from astropy.io import fits

from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.search import find_exposures
from mpiimg.errors import BadInput

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "decam-testcase3"
SHAPE = (24, 31)
FACTS = {
    "FILTER": "r DECam SDSS c0002 6415.0 1480.0",
    "EXPNUM": 17,
    "CCDNUM": 5,
    "EXPTIME": 90.0,
    "GAIN": 4.0,
    "RDNOISE": 6.0,
    "SATURATE": 40000.0,
    "MAGZERO": 30.5,
    "MJD-OBS": 57110.25,
}


def coordinates(header=None, projection="TAN"):
    """Add a celestial WCS to a header."""
    header = fits.Header() if header is None else header
    for axis, (kind, value) in enumerate(zip(("RA---", "DEC--"), (150.0, 2.2), strict=True), 1):
        header[f"CTYPE{axis}"] = kind + projection
        header[f"CRVAL{axis}"] = value
        header[f"CRPIX{axis}"] = 10.0 + axis
        header[f"CUNIT{axis}"] = "deg"
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -7.3e-5, 1e-7, 1e-7, 7.3e-5
    return header


def pixels(seed=1, shape=SHAPE):
    """Return an image with its sky, and its variance."""
    image = np.random.default_rng(seed).normal(250, 8, shape).astype(np.float32)
    return image, (image / 4 + 2.25).astype(np.float32)


def three_planes(names=("IMAGE", "VARIANCE", "MASK"), facts=FACTS, mask=None, seed=1, version=None):
    """Return the extensions of an exposure."""
    image, variance = pixels(seed)
    mask = np.zeros(SHAPE, np.int32) if mask is None else mask
    header = coordinates()
    header.update(facts)
    hdus = [
        fits.ImageHDU(plane, header if i == 0 else None, name=name, ver=version)
        for i, (plane, name) in enumerate(zip((image, variance, mask), names, strict=True))
    ]
    return hdus


def rice(hdus, **options):
    """Return the same extensions, compressed."""
    return [fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name, **options) for hdu in hdus]


def save(path, *hdus, primary=None, **options):
    header = fits.Header()
    header.update(primary or {})
    fits.HDUList([fits.PrimaryHDU(header=header), *hdus]).writeto(path, overwrite=True, **options)
    return path


def single(path, facts=FACTS, image=None, **changes):
    """Write an exposure of one image."""
    header = coordinates()
    header.update({k: v for k, v in {**facts, **changes}.items() if v is not None})
    fits.PrimaryHDU(pixels()[0] if image is None else image, header).writeto(path, overwrite=True)
    return path


def triplet(folder, codes, version="V4.8.2a", names=("N12",), stem="c4d_140818_232043_oo{}_z_ls9.fits"):
    """Write a DECam triplet whose mask is `codes`, with a weight of zero in the first pixel."""
    image, variance = pixels()
    weight = (1 / variance).astype(np.float32)
    weight[0, 0] = 0
    primary = {"PLVER": version} if version else {}
    primary |= {"FILTER": FACTS["FILTER"], "EXPNUM": 17, "EXPTIME": 90.0}
    sensor = {"CCDNUM": 43, "GAINA": 4.0, "GAINB": 4.2, "RDNOISEA": 6.0, "RDNOISEB": 7.0, "SATURATE": 4e4}
    paths = []
    for letter, plane in zip("iwd", (image, weight, codes), strict=True):
        hdus = []
        for i, name in enumerate(names):
            header = coordinates()
            header.update(sensor | {"CCDNUM": 43 + i})
            hdus.append(fits.ImageHDU(plane, header, name=name))
        paths.append(save(folder / stem.format(letter), *hdus, primary=primary))
    return paths


def refused(match, *paths, options=None, reading=False):
    """Check that exposures are refused in one line that says `match` and names the file."""
    with pytest.raises(BadInput, match=match) as caught:
        for ref in find_exposures(paths, options):
            assert reading, "the headers were accepted"
            read_exposure(ref)
    message = str(caught.value)
    assert "\n" not in message
    assert any(pathlib.Path(str(path).removeprefix("@")).name[:12] in message for path in paths)
    return message
