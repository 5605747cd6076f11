"""Planes out as FITS files, against astropy, funpack and what was written."""

from __future__ import annotations

import shutil
import subprocess
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.units import Unit
from astropy.wcs import WCS
from support.exposure_data import SHAPE, coordinates, pixels

from mpiimg.astro.fits import maskplanes
from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.maskplanes import MASK_PLANES, bits
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.fits.writing import history_lines, own_history, write_planes

FUNPACK = shutil.which("funpack")

LINES = history_lines("coadd", "clip beyond 3 sigma; " * 5)


def patch():
    image, variance = pixels(3)
    image[0, 0], variance[0, 0] = np.nan, np.inf
    image[1, 1] = 0
    mask = np.zeros(SHAPE, np.int32)
    mask[0, 0] = bits("NO_DATA")
    mask[4, 5] = bits("CLIPPED", "DETECTED_NEGATIVE")
    number = np.full(SHAPE, 24, np.int16)
    segmentation = np.where(image > np.nanmean(image), 7, -1).astype(np.int32)
    return {
        "IMAGE": image,
        "VARIANCE": variance,
        "MASK": mask,
        "NIMAGE": number,
        "WEIGHT": 1 / variance,
        "SEGMENTATION": segmentation,
    }


CARDS = {
    "BUNIT": ("ct", "flux at zero point 27"),
    "MAGZERO": 27.0,
    "FILTER": "r",
    "EXPTIME": 2160.0,
    "NCOMBINE": 24,
    "FWHM": float("nan"),
    "INP0001": "a-very-long-name-of-an-exposure-" * 4,
    "HISTORY": LINES,
}
NAMES = pytest.mark.parametrize("name", ["patch-0-1.fits", "patch-0-1.fits.fz"])


def write(path, planes=None, cards=CARDS):
    wcs = coordinates().tostring(sep="\n", endcard=False, padding=False)
    write_planes(path, planes or patch(), wcs, cards)
    return path


def assert_comes_back(found, plane):
    """Assert that integers are the same, and floats within a part of the noise and finite where they were."""
    if plane.dtype.kind == "i":
        assert found.dtype == plane.dtype.newbyteorder(">") or found.dtype == plane.dtype
        np.testing.assert_array_equal(found, plane)
        return
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(plane))
    finite = np.isfinite(plane)
    assert (found[plane == 0] == 0).all()
    # The noise is measured row by row, and a row here is short.
    assert np.abs(found - plane)[finite].max() < 0.1 * plane[finite].std()
    assert abs((found - plane)[finite].mean()) < 0.01 * plane[finite].std()


@NAMES
def test_planes_and_cards_come_back(tmp_path, name):
    path, planes = write(tmp_path / name), patch()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # astropy warns of sums that fail
        with fits.open(path, checksum=True, disable_image_compression=True) as raw:
            assert all("CHECKSUM" in hdu.header and "DATASUM" in hdu.header for hdu in raw)
        with fits.open(path) as hdus:
            hdus.verify("exception")
            assert [hdu.name for hdu in hdus] == ["PRIMARY", *planes]
            head = hdus[0].header
            assert (head["MAGZERO"], head["NCOMBINE"], head["FILTER"]) == (27.0, 24, "r")
            assert head["INP0001"] == CARDS["INP0001"]
            assert head["FWHM"] is None
            assert tuple(head["HISTORY"]) == LINES and own_history(head) == LINES
            assert maskplanes.planes_of(hdus["MASK"].header) == MASK_PLANES
            units = {hdu.name: hdu.header.get("BUNIT") for hdu in hdus[1:]}
            assert units == {
                **dict.fromkeys(planes),
                "IMAGE": "ct",
                "VARIANCE": "ct2",
                "WEIGHT": "ct-2",
            }
            assert all(WCS(hdu.header).has_celestial for hdu in hdus[1:])
            for plane, expected in planes.items():
                if name.endswith(".fz"):
                    assert_comes_back(hdus[plane].data, expected)
                else:
                    np.testing.assert_array_equal(hdus[plane].data, expected)
    (ref,) = find_exposures([path])
    assert ref.history == LINES
    assert (read_exposure(ref).mask == planes["MASK"]).all()


@pytest.mark.skipif(FUNPACK is None, reason="funpack is NOT INSTALLED (Debian: libcfitsio-bin)")
def test_funpack_reads_what_is_compressed(tmp_path):
    write(tmp_path / "patch.fits.fz")
    subprocess.run([FUNPACK, "-C", "patch.fits.fz"], cwd=tmp_path, check=True, timeout=60)
    with fits.open(tmp_path / "patch.fits") as theirs, fits.open(tmp_path / "patch.fits.fz") as ours:
        for plane, expected in patch().items():
            found = theirs[plane].data
            np.testing.assert_array_equal(found, ours[plane].data)
            assert_comes_back(found, expected)


@NAMES
def test_the_bytes_follow_from_the_content(tmp_path, name, monkeypatch):
    """The same at another time, on another day; also of rows that Rice leaves to gzip."""
    planes = patch()
    planes["IMAGE"][:3], planes["VARIANCE"][:3] = np.nan, np.inf
    written = []
    for day in (1, 2):
        (tmp_path / str(day)).mkdir()
        with monkeypatch.context() as patched:
            patched.setattr("time.time", lambda day=day: 86400.0 * 20000 * day)
            written.append(write(tmp_path / str(day) / name, planes=planes).read_bytes())
    assert written[0] == written[1]
    assert b"DATE" not in written[0]


@pytest.mark.parametrize("unit", ["adu", "count", "ct s-1", "adu/s"])
def test_units_of_planes_are_of_the_standard(tmp_path, unit):
    with fits.open(write(tmp_path / "p.fits", cards={"BUNIT": unit})) as hdus:
        for plane, power in (("VARIANCE", 2), ("WEIGHT", -2)):
            assert Unit(hdus[plane].header["BUNIT"], format="fits") == Unit(unit, format="fits") ** power
        assert hdus["IMAGE"].header["BUNIT"] == unit


def test_a_unit_of_nobodys(tmp_path):
    with fits.open(write(tmp_path / "p.fits", cards={"BUNIT": "counts of DECam"})) as hdus:
        assert hdus["VARIANCE"].header["BUNIT"] == "(counts of DECam)**2"
    with fits.open(write(tmp_path / "p.fits", cards={})) as hdus:
        assert "BUNIT" not in hdus["VARIANCE"].header


def test_lines_of_history_fit_a_card_and_are_known_again():
    assert len(LINES) > 1 and all(len(line) <= 72 for line in LINES)
    header = fits.Header()
    for line in ("of another program", *LINES):
        header["HISTORY"] = line
    assert own_history(fits.Header.fromstring(header.tostring())) == LINES
    assert own_history(fits.Header()) == ()


def test_planes_of_several_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        write_planes(tmp_path / "p.fits", {"IMAGE": np.zeros((2, 3)), "MASK": np.zeros((3, 2))}, "", {})
