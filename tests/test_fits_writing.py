"""Planes out as FITS files, against astropy and against what was written."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from exposure_data import (
    SHAPE,
    coordinates,
    pixels,
)

from mpiimg.io import maskplanes
from mpiimg.io.exposure import read_exposure
from mpiimg.io.exposure_search import find_exposures
from mpiimg.io.fits_writing import write_planes
from mpiimg.io.maskplanes import PLANES, bits


def patch():
    image, variance = pixels(3)
    image[0, 0] = np.nan
    mask = np.zeros(SHAPE, np.int32)
    mask[0, 0] = bits("NO_DATA")
    mask[4, 5] = bits("CLIPPED", "DETECTED_NEGATIVE")
    number = np.full(SHAPE, 24, np.int16)
    return {"IMAGE": image, "VARIANCE": variance, "MASK": mask, "NIMAGE": number}


PATCH_CARDS = {
    "BUNIT": ("count", "flux at zero point 27"),
    "MAGZERO": 27.0,
    "FILTER": "r",
    "EXPTIME": 2160.0,
    "NCOMBINE": 24,
    "FWHM": float("nan"),
    "INP0001": "a-very-long-name-of-an-exposure-" * 4,
}


@pytest.mark.parametrize("compress", ["none", "rice", "gzip"])
def test_patches_come_back(tmp_path, compress):
    wcs = coordinates().tostring(sep="\n", endcard=False, padding=False)
    planes = patch()
    path = write_planes(
        tmp_path / "patch-0-1.fits", planes, wcs, PATCH_CARDS, ["coadded by clipping"], compress
    )
    assert path.name == "patch-0-1.fits" + {"none": "", "rice": ".fz", "gzip": ".gz"}[compress]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # astropy warns of sums that fail
        with fits.open(path, checksum=True, disable_image_compression=True) as raw:
            assert all("CHECKSUM" in hdu.header and "DATASUM" in hdu.header for hdu in raw)
        with fits.open(path) as hdus:
            hdus.verify("exception")
            assert [hdu.name for hdu in hdus] == ["PRIMARY", *planes]
            head = hdus[0].header
            assert (head["MAGZERO"], head["NCOMBINE"], head["FILTER"]) == (27.0, 24, "r")
            assert head["INP0001"] == PATCH_CARDS["INP0001"] and "coadded" in str(head["HISTORY"])
            assert head["FWHM"] is None
            assert maskplanes.planes_of(hdus["MASK"].header) == PLANES
            assert (hdus["IMAGE"].header["BUNIT"], hdus["VARIANCE"].header["BUNIT"]) == (
                "count",
                "(count)**2",
            )
            assert all(WCS(hdu.header).has_celestial for hdu in hdus[1:])
            for name, plane in planes.items():
                if compress == "rice" and plane.dtype == np.float32:
                    assert (np.isnan(hdus[name].data) == np.isnan(plane)).all()
                    assert np.nanmax(np.abs(hdus[name].data - plane)) < 0.1 * np.nanstd(plane)
                else:
                    np.testing.assert_array_equal(hdus[name].data, plane)
    (ref,) = find_exposures([path])
    exposure = read_exposure(ref)
    assert (exposure.mask == planes["MASK"]).all()


@pytest.mark.parametrize("compress", ["none", "rice", "gzip"])
def test_a_patchs_bytes_follow_from_its_content(tmp_path, compress, monkeypatch):
    """The same at another time, on another day."""
    wcs = coordinates().tostring(sep="\n", endcard=False, padding=False)
    written = []
    for day in (1, 2):
        (tmp_path / str(day)).mkdir()
        with monkeypatch.context() as patched:
            patched.setattr("time.time", lambda day=day: 86400.0 * 20000 * day)
            path = write_planes(tmp_path / str(day) / "p.fits", patch(), wcs, PATCH_CARDS, ["x"], compress)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert b"DATE" not in written[0]


def test_patches_refuse_planes_of_several_shapes(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        write_planes(tmp_path / "p.fits", {"IMAGE": np.zeros((2, 3)), "MASK": np.zeros((3, 2))}, "", {})
    with pytest.raises(ValueError, match="compress"):
        write_planes(tmp_path / "p.fits", patch(), "", {}, compress="zip")
