"""Exposures that cannot be used: one clear line each; and pixels without data."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from support.exposure_data import (
    FACTS,
    SHAPE,
    coordinates,
    pixels,
    refused,
    rice,
    save,
    single,
    three_planes,
)

from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.search import find_exposures
from mpiimg.errors import BadInput


def test_no_such_file_no_fits_no_image(tmp_path):
    refused("No such file", tmp_path / "nowhere.fits")
    refused("is a folder", tmp_path)
    with pytest.raises(BadInput, match="no exposures"):
        find_exposures([])
    for name, text in (("empty.fits", ""), ("text.fits", "nothing of the kind\n" * 500)):
        (tmp_path / name).write_text(text)
        refused("not a FITS file", tmp_path / name)
    table = fits.BinTableHDU.from_columns([fits.Column("X", "E", array=np.zeros(3))])
    refused("has no image", save(tmp_path / "table.fits", table))
    refused("has no image", save(tmp_path / "cube.fits", fits.ImageHDU(np.zeros((2, 4, 5), "f4"))))


def test_missing_planes_and_mixed_shapes(tmp_path):
    image, variance, mask = three_planes()
    variance.data = variance.data[:, :-1]
    path = save(tmp_path / "mixed.fits", image, variance, mask)
    refused("mixed shapes: the image is 31x24 pixels, its variance 30x24", path)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "rice"])
def test_truncated_files(tmp_path, compressed):
    """Cut anywhere: inside pixels, inside a header, at the end; found in the headers alone."""
    hdus = rice(three_planes()) if compressed else three_planes()
    whole = save(tmp_path / "whole.fits", *hdus).read_bytes()
    path = tmp_path / "truncated.fits"
    with fits.open(tmp_path / "whole.fits") as opened:
        places = [hdu.fileinfo()[key] for hdu in list(opened)[1:] for key in ("hdrLoc", "datLoc")]
    for cut in [place + extra for place in places for extra in (100, 1000)] + [len(whole) - 1, 1000]:
        path.write_bytes(whole[:cut])
        refused("truncated|corrupt|missing planes|no mask plane", path)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "rice"])
def test_failing_checksums(tmp_path, compressed):
    hdus = rice(three_planes()) if compressed else three_planes()
    path = save(tmp_path / "checksum.fits", *hdus, checksum=True)
    (ref,) = find_exposures([path])
    assert read_exposure(ref).image.shape == SHAPE
    whole = bytearray(path.read_bytes())
    with fits.open(path) as opened:
        place = opened[1].fileinfo()
    corrupt = whole.copy()
    corrupt[whole.index(b"EXPTIME") + 29] ^= 1
    path.write_bytes(corrupt)
    (ref,) = find_exposures([path])
    # The pixels are what they say: a program has changed a card, and left the sum behind.
    assert ref.notes == ("its header was changed after its CHECKSUM was written",)
    assert read_exposure(ref).image.shape == SHAPE
    assert find_exposures([path], ReadOptions(no_checksums=True))[0].notes == ()
    corrupt = whole.copy()
    corrupt[place["datLoc"] + 300] ^= 1
    path.write_bytes(corrupt)
    refused("extension 1 fails its DATASUM.*--no-checksums", path, reading=True)
    assert read_exposure(find_exposures([path], ReadOptions(no_checksums=True))[0]).image.shape == SHAPE


def test_coordinates_that_are_none(tmp_path):
    header = fits.Header()
    header.update(FACTS)

    def written(name, changes):
        changed = header.copy()
        changed.update(changes)
        fits.PrimaryHDU(pixels()[0], changed).writeto(tmp_path / name)
        return tmp_path / name

    whole = dict(coordinates())
    refused("has no WCS", written("none.fits", {}))
    refused("not celestial", written("linear.fits", whole | {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}))
    refused("unusable WCS", written("half.fits", whole | {"CTYPE2": "FREQ"}))
    singular = {"CD1_1": 0.0, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.0}
    refused("singular", written("singular.fits", whole | singular))
    scaleless = {card: value for card, value in whole.items() if not card.startswith("CD")}
    refused("neither CD1_1, CD1_2 nor CDELT1", written("scaleless.fits", scaleless))
    refused("singular", written("flat.fits", whole | dict.fromkeys(singular, 7e-5)))
    refused("not supported", written("tnx.fits", whole | {"CTYPE1": "RA---TNX", "CTYPE2": "DEC--TNX"}))


def test_gain_and_read_noise_are_needed_for_a_single_image(tmp_path):
    path = tmp_path / "single.fits"
    refused("no gain .*--gain", single(path, GAIN=None))
    refused("no gain .*--gain", single(path, GAIN=None, GAINA=4.0))
    refused("no read noise .*--read-noise", single(path, RDNOISE=None))
    refused("GAIN = 0.0 is no positive number; give --gain", single(path, GAIN=0.0))
    refused("GAIN = 'high'", single(path, GAIN="high"))
    refused("no EXPTIME", single(path, BUNIT="adu/s", EXPTIME=None))
    assert find_exposures([single(path, GAIN=None)], ReadOptions(gain=4.0))[0].gain == 4.0
    hdus = three_planes(facts={key: FACTS[key] for key in ("FILTER", "EXPNUM")})
    (ref,) = find_exposures([save(path, *hdus)])
    assert (ref.gain, ref.readnoise) == (None, None)


def test_duplicates(tmp_path):
    first = single(tmp_path / "exposure-1.fits")
    refused("duplicate", first, first)
    message = refused("duplicate", first, single(tmp_path / "exposure-2.fits"))
    assert "exposure-1.fits" in message and "exposure-2.fits" in message
    assert len(find_exposures([first, single(tmp_path / "exposure-2.fits", FILTER="g")])) == 2


@pytest.mark.parametrize("what", ["masked", "saturated", "nan", "weightless"])
def test_exposures_without_a_usable_pixel(tmp_path, what):
    hdus = three_planes()
    if what == "nan":
        hdus[0].data[:] = np.nan
    elif what == "weightless":
        hdus[1].data[:] = 0
    else:
        hdus[2].data[:] = bits("BAD" if what == "masked" else "SAT")
    path = save(tmp_path / f"all-{what}.fits", *hdus)
    refused("no pixel that can be used", path, reading=True)
    saturated = single(tmp_path / "all-single.fits", image=np.full(SHAPE, 4e4, np.float32))
    refused("no pixel that can be used", saturated, reading=True)


def test_a_file_that_goes_or_changes_after_its_headers_were_read(tmp_path):
    path = single(tmp_path / "changing.fits")
    (ref,) = find_exposures([path])
    single(path, image=np.ones((5, 6), np.float32))
    with pytest.raises(BadInput, match="has changed"):
        read_exposure(ref)
    path.unlink()
    with pytest.raises(BadInput, match="gone"):
        read_exposure(ref)


def test_pixels_without_data(tmp_path):
    hdus = three_planes()
    hdus[0].data[1, 1], hdus[0].data[2, 2] = np.nan, np.inf
    hdus[1].data[3, 3], hdus[1].data[4, 4], hdus[1].data[5, 5] = np.nan, 0, -1
    (ref,) = find_exposures([save(tmp_path / "a.fits", *hdus)])
    exposure = read_exposure(ref)
    expected = np.zeros(SHAPE, np.int32)
    expected[range(1, 6), range(1, 6)] = bits("NO_DATA")
    assert (exposure.mask == expected).all()
    good = expected == 0
    assert (exposure.image[~good] == np.median(exposure.image[good])).all()
    assert (exposure.variance[~good] == np.median(exposure.variance[good])).all()
