"""What cameras call things: headers of ten instruments by their documentation, and files of a user's own."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from support.exposure_data import SHAPE, coordinates, pixels, refused, save, single, three_planes

from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.headers import ReadOptions, chosen_bits
from mpiimg.astro.fits.instruments import FOLDER, known_instruments
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.fits.units import pixel_unit
from mpiimg.errors import BadInput

#: Cards of an exposure, and what they say by the documentation: band, visit, sensor, gain, read noise.
HEADERS = {
    "decam": (
        {"INSTRUME": "DECam", "FILTER": "g DECam SDSS c0001 4720.0 1520.0", "EXPNUM": 349590, "CCDNUM": 43}
        | {"GAINA": 4.0, "GAINB": 4.2, "RDNOISEA": 6.0, "RDNOISEB": 7.0},
        ("g", "349590", "43", 4.1, 6.5),
    ),
    "mosaic": (
        {"INSTRUME": "Mosaic3", "FILTER": "zd DECam k1038", "EXPNUM": 77690, "EXPID": 0, "CCDNUM": 3}
        | {"GAIN": 1.91, "RDNOISE": 4.11},
        ("zd", "0", "3", 1.91, 4.11),
    ),
    "90prime": (
        {"INSTRUME": "90prime", "FILTER": "bokr", "OBSID": "ksb170430055945", "CCDNUM": 4},
        ("bokr", "ksb170430055945", "4", 1.4, 8.0),
    ),
    "acs": (
        {"TELESCOP": "HST", "INSTRUME": "ACS", "FILTER1": "F606W", "FILTER2": "CLEAR2L", "CCDCHIP": 2}
        | {"ROOTNAME": "j8xi01abc", "BUNIT": "ELECTRONS", "CCDGAIN": 2.0}
        | {f"READNSE{amplifier}": 5.0 for amplifier in "ABCD"},
        ("F606W", "j8xi01abc", "2", 1.0, 5.0),
    ),
    "wfc3": (
        {"TELESCOP": "HST", "INSTRUME": "WFC3", "FILTER": "F160W", "ROOTNAME": "ib5x01abc"}
        | {"BUNIT": "ELECTRONS/S", "EXPTIME": 200.0}
        | {f"READNSE{amplifier}": 20.0 for amplifier in "ABCD"},
        ("F160W", "ib5x01abc", "a", 200.0, 20.0),
    ),
    "eso": (
        {
            "ORIGIN": "ESO-PARANAL",
            "HIERARCH ESO INS FILT1 NAME": "V_HIGH",
            "ARCFILE": "FORS2.2010-01-01T01.fits",
        }
        | {"HIERARCH ESO DET OUT1 CONAD": 0.7, "HIERARCH ESO DET OUT1 RON": 2.9}
        | {"HIERARCH ESO INS FILT2 NAME": "free", "HIERARCH ESO DET CHIP1 ID": "CCID20"},
        ("V_HIGH", "FORS2.2010-01-01T01.fits", "CCID20", 0.7, 2.9),
    ),
    "ztf": (
        {
            "INSTRUME": "ZTF/MOSAIC",
            "FILTER": "ZTF_r",
            "EXPID": 57423,
            "RCID": 11,
            "GAIN": 6.2,
            "READNOI": 9.0,
        },
        ("ZTF_r", "57423", "11", 6.2, 9.0),
    ),
    "lco": (
        {"ORIGIN": "LCOGT", "FILTER": "rp", "ORIGNAME": "coj1m003-fa19-20230101-0100-e00", "GAIN": 1.0}
        | {"RDNOISE": 6.1},
        ("rp", "coj1m003-fa19-20230101-0100-e00", "a", 1.0, 6.1),
    ),
    "none": ({"FILTER": "SDSS r", "EXPNUM": 1, "GAIN": 2.0, "RDNOISE": 3.0}, ("SDSS r", "1", "a", 2.0, 3.0)),
}
BARE = {"FILTER": None, "EXPNUM": None, "CCDNUM": None, "GAIN": None, "RDNOISE": None}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_an_instrument(tmp_path, name):
    cards, expected = HEADERS[name]
    (ref,) = find_exposures([single(tmp_path / "a.fits", **BARE | cards)])
    assert (ref.band, ref.visit, ref.sensor, ref.gain, ref.readnoise) == expected


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_instrument_of_the_package_is_one_by_its_name(path):
    first = known_instruments((path.stem,))[0]
    assert first.fits(lambda card: None) and first.cards["filter"]


def test_jwst(tmp_path):
    """MJy/sr are no counts per second; of the bits two take a pixel away."""
    header = coordinates()
    header.update(
        {"TELESCOP": "JWST", "INSTRUME": "NIRCAM", "FILTER": "F200W", "PUPIL": "CLEAR", "DETECTOR": "NRCA1"}
        | {"OBS_ID": "V01324001001P0000000002101", "BUNIT": "MJy/sr", "PIXAR_SR": 2.23e-14, "XPOSURE": 837.0}
    )
    image, error = pixels()[0] / 1000, np.full(SHAPE, 0.01, np.float32)
    dq = np.zeros(SHAPE, np.uint32)
    dq[:, ::5] = 4  # JUMP_DET, on a fifth of the pixels
    dq[2, 3], dq[4, 6] = 1 + 4, 2
    hdus = [
        fits.ImageHDU(image, header, name="SCI"),
        fits.ImageHDU(error, name="ERR"),
        fits.ImageHDU(dq, name="DQ"),
    ]
    (ref,) = find_exposures([save(tmp_path / "jw_cal.fits", *hdus)])
    assert (ref.band, ref.visit, ref.sensor) == ("F200W", "V01324001001P0000000002101", "NRCA1")
    exposure = read_exposure(ref)
    marked = {tuple(place): int(exposure.mask[tuple(place)]) for place in np.argwhere(exposure.mask)}
    assert marked == {(2, 3): bits("BAD"), (4, 6): bits("SAT")}
    # Pixels are nanojansky, in AB magnitudes 8.90 - 2.5 log10(Jy).
    np.testing.assert_allclose(exposure.image, image * 1e6 * 2.23e-14 * 1e9, rtol=1e-6)
    np.testing.assert_allclose(exposure.variance, (error * 1e6 * 2.23e-14 * 1e9) ** 2, rtol=1e-6)
    assert ref.magzero == pytest.approx(31.4)
    # A zero point that the user gives holds for the pixels as they are in the file.
    (ref,) = find_exposures([tmp_path / "jw_cal.fits"], ReadOptions(zero_point="28"))
    assert ref.magzero - 2.5 * np.log10(ref.scale) == pytest.approx(28.0)


def test_the_area_of_a_pixel_is_that_of_its_coordinates_where_no_card_says_it(tmp_path):
    path = single(tmp_path / "a.fits", BUNIT="MJy/sr")
    (ref,) = find_exposures([path])
    side = np.radians(7.3e-5)
    assert ref.scale == pytest.approx(1e15 * side**2, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "kind", "per_second", "jansky"),
    [
        ("ADU", "counts", False, None),
        ("DN/s", "counts", True, None),
        ("ELECTRONS/S", "electrons", True, None),
        ("e-", "electrons", False, None),
        ("e- s**-1", "electrons", True, None),
        ("electron/s/pixel", "electrons", True, None),
        ("MJy/sr", "flux", False, 1e6),
        ("Jy/pixel", "flux", False, 1.0),
        ("10.0*nanoJansky", "flux", False, 1e-8),
        ("nanomaggy", "flux", False, 3.631e-6),
    ],
)
def test_units(text, kind, per_second, jansky):
    unit = pixel_unit(text)
    assert (unit.known, unit.kind, unit.per_second) == (True, kind, per_second)
    assert jansky is None or unit.jansky == pytest.approx(jansky)


@pytest.mark.parametrize("text", ["counts/sq arcsec", "ADU/frame", "mag", "/sr"])
def test_a_unit_that_is_not_known_is_said(tmp_path, text):
    assert not pixel_unit(text).known
    (ref,) = find_exposures([single(tmp_path / "a.fits", BUNIT=text)])
    assert len(ref.notes) == 1 and text in ref.notes[0]


def test_zero_points_of_hst(tmp_path):
    """PHOTFLAM and PHOTPLAM, as the ACS Data Handbook turns them into AB magnitudes."""
    cards = {"INSTRUME": "ACS", "PHOTFLAM": 7.862e-20, "PHOTPLAM": 5921.9, "MAGZERO": None, "EXPTIME": 100.0}
    expected = -2.5 * np.log10(7.862e-20) - 5 * np.log10(5921.9) - 2.408
    (ref,) = find_exposures([single(tmp_path / "a.fits", **cards, BUNIT="ELECTRONS/S")])
    assert ref.magzero == pytest.approx(expected)
    (ref,) = find_exposures([single(tmp_path / "a.fits", **cards, BUNIT="ELECTRONS")])
    assert ref.magzero == pytest.approx(expected + 5)


def test_filters_that_differ_are_never_one(tmp_path):
    names = ["SDSS r", "SDSS g", "Bessel V", "Johnson B", "H alpha", "H beta"]
    paths = [single(tmp_path / f"{i}.fits", FILTER=name, EXPNUM=i) for i, name in enumerate(names)]
    assert {ref.band for ref in find_exposures(paths)} == set(names)
    (ref,) = find_exposures([single(tmp_path / "a.fits", FILTER=None)])
    assert ref.band == "unknown" and "--filter" in ref.notes[0]


# --- Masks ------------------------------------------------------------------------------------------------


def _with_dq(path, share):
    mask = np.zeros(SHAPE, np.int16)
    mask.flat[: int(share * mask.size)] = 4
    return save(path, *three_planes(("SCI", "ERR", "DQ"), facts=HEADERS["none"][0], mask=mask))


def test_a_mask_of_unknown_meaning_that_would_take_much_away_is_refused(tmp_path):
    path = _with_dq(tmp_path / "a.fits", 0.15)
    message = refused("--bad-bits", path, reading=True)
    assert "4: 15 %" in message
    few = _with_dq(tmp_path / "few.fits", 0.03)
    (ref,) = find_exposures([few])
    assert np.count_nonzero(read_exposure(ref).mask == bits("BAD")) == int(0.03 * SHAPE[0] * SHAPE[1])


@pytest.mark.parametrize(
    ("chosen", "share"), [("none", 0), ("1,2", 0), ("4", 0.15), ("~4", 0), ("1+4", 0.15), ("~1", 0.15)]
)
def test_which_bits_are_bad_is_a_choice(tmp_path, chosen, share):
    (ref,) = find_exposures([_with_dq(tmp_path / "a.fits", 0.15)], ReadOptions(bad_bits=chosen))
    assert np.count_nonzero(read_exposure(ref).mask) == int(share * SHAPE[0] * SHAPE[1])


@pytest.mark.parametrize("text", ["", "x", "0", "-4", "1,,2", "99999999999"])
def test_bits_that_make_no_sense(text):
    with pytest.raises(BadInput, match="--bad-bits"):
        chosen_bits(text)


def test_planes_alone(tmp_path):
    """SCI and ERR, SCI and WHT, IMAGE and MASK, an empty MASK."""
    _, variance = pixels()
    sci, var, mask = three_planes()
    sci.name, var.name = "SCI", "ERR"
    var.data = np.sqrt(variance)
    (ref,) = find_exposures([save(tmp_path / "i2d.fits", sci, var)])
    assert (ref.variance_is, ref.mask_is) == ("error", "none")
    np.testing.assert_allclose(read_exposure(ref).variance, variance, rtol=1e-6)
    var.name, var.data = "WHT", 1 / variance
    (ref,) = find_exposures([save(tmp_path / "drz.fits", sci, var)])
    np.testing.assert_allclose(read_exposure(ref).variance, variance, rtol=1e-6)
    mask.data[3, 4] = bits("BAD")
    (ref,) = find_exposures([save(tmp_path / "novar.fits", sci, mask)])
    assert (ref.variance_is, np.argwhere(read_exposure(ref).mask).tolist()) == ("model", [[3, 4]])
    (ref,) = find_exposures([save(tmp_path / "empty.fits", sci, var, fits.ImageHDU(name="MASK"))])
    assert (ref.variance_is, ref.mask_is) == ("weight", "none")


@pytest.mark.parametrize("kind", ["weight", "variance", "error"])
def test_weights_and_masks_in_files_of_their_own(tmp_path, kind):
    _, variance = pixels()
    path = single(tmp_path / "night.fits")
    plane = {"weight": 1 / variance, "variance": variance, "error": np.sqrt(variance)}[kind]
    save(tmp_path / "night.weight.fits", fits.ImageHDU(plane))
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2] = 1
    save(tmp_path / "night.flag.fits", fits.ImageHDU(mask))
    options = ReadOptions(weight_file="{stem}.weight.fits", weight_file_is=kind, mask_file="{stem}.flag.fits")
    (ref,) = find_exposures([path], options)
    exposure = read_exposure(ref)
    np.testing.assert_allclose(exposure.variance, variance, rtol=1e-6)
    assert np.argwhere(exposure.mask).tolist() == [[1, 2]] and len(ref.identity) == 3
    refused("none.weight.fits, which --weight-file names", single(tmp_path / "none.fits"), options=options)
    with pytest.raises(BadInput, match=r"\{stem\}"):
        ReadOptions(mask_file="mask.fits")


# --- Exposures told apart -----------------------------------------------------------------------------------


def test_exposures_that_share_a_visit_are_told_apart_by_the_card_that_differs(tmp_path):
    """VISIT is 0 in all files of Mosaic3; HST and IRAF have the date in one card, and the time in another."""
    paths = []
    for number in (1, 2):
        for sensor in (3, 4):
            path = tmp_path / f"{number}-{sensor}.fits"
            cards = {"VISIT": 0, "EXPNUM": 100 + number, "CCDNUM": sensor}
            paths.append(single(path, image=pixels(10 * number + sensor)[0], **cards))
    assert [(ref.visit, ref.sensor) for ref in find_exposures(paths)] == [
        ("101", "3"),
        ("101", "4"),
        ("102", "3"),
        ("102", "4"),
    ]
    paths = [
        single(
            tmp_path / f"{i}.fits",
            image=pixels(i)[0],
            **BARE | {"MJD-OBS": None, "DATE-OBS": "2010-01-01", "TIME-OBS": f"0{i}:00:00", "GAIN": 1.0},
            **{"RDNOISE ": 1.0},
            SENSOR=1,
        )
        for i in (1, 2)
    ]
    refs = find_exposures(paths, ReadOptions(sensor="=1"))
    assert [ref.visit for ref in refs] == ["01:00:00", "02:00:00"]


def test_exposures_that_no_card_tells_apart_are_so_by_their_pixels(tmp_path):
    first = single(tmp_path / "a.fits")
    other = single(tmp_path / "b.fits", image=pixels(2)[0])
    assert [ref.visit for ref in find_exposures([first, other])] == [str(first), str(other)]
    refused("duplicate exposure: its pixels are those of", first, single(tmp_path / "copy.fits"))
    # A copy that was compressed with loss is one, too.
    header = fits.getheader(first)
    lossy = save(tmp_path / "lossy.fits.fz", fits.CompImageHDU(pixels()[0], header, quantize_level=4))
    refused("duplicate exposure", first, lossy)


# --- Layouts ----------------------------------------------------------------------------------------------


def test_an_image_with_a_third_axis_of_one_pixel(tmp_path):
    header = coordinates()
    header.update(HEADERS["none"][0])
    header["WCSAXES"], header["CTYPE3"], header["CRVAL3"], header["CRPIX3"] = 3, "STOKES", 1.0, 1.0
    header["CDELT3"] = 1.0
    image, _ = pixels()
    fits.PrimaryHDU(image[None], header).writeto(tmp_path / "cube.fits")
    (ref,) = find_exposures([tmp_path / "cube.fits"])
    assert ref.shape == SHAPE and (read_exposure(ref).image == image).all()
    fits.PrimaryHDU(np.stack([image, image]), header).writeto(tmp_path / "two.fits")
    refused("has no image", tmp_path / "two.fits")


def test_an_exposure_in_bzip2(tmp_path):
    import bz2

    path = single(tmp_path / "a.fits")
    (tmp_path / "b.fits.bz2").write_bytes(bz2.compress(path.read_bytes()))
    (ref,) = find_exposures([tmp_path / "b.fits.bz2"])
    assert ref.name == "b" and (read_exposure(ref).image == pixels()[0]).all()
    half = bz2.compress(path.read_bytes())[:500]
    (tmp_path / "half.fits.bz2").write_bytes(half)
    refused("truncated or corrupt", tmp_path / "half.fits.bz2")


# --- Files of a user's own ----------------------------------------------------------------------------------


def test_a_user_brings_an_instrument(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'name = "Mine"\nmatch = { CAMERA = "x*" }\n[cards]\nfilter = [["WHEEL1", "WHEEL2"]]\n'
        'no_filter = ["open"]\nvisit = ["SHOT"]\n[values]\ngain = 2.5\nread_noise = 4\nunit = "adu/s"\n'
        '[mask]\nbits = { BAD = [1, 8] }\nunlisted = "good"\n'
    )
    cards = {"CAMERA": "X1", "WHEEL1": "open", "WHEEL2": "Ha 656", "SHOT": 7, "EXPTIME": 10.0}
    path = single(tmp_path / "a.fits", **BARE | cards)
    (ref,) = find_exposures([path], ReadOptions(instrument=(str(mine),)))
    assert (ref.band, ref.visit, ref.gain, ref.readnoise) == ("Ha 656", "7", 25.0, 4.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is no TOML"),
        ("", "name must be a text"),
        ('name = "a"\n[card]\n', "card is nothing that an instrument has"),
        ('name = "a"\n[cards]\ngian = ["GAIN"]\n', "cards.gian is nothing"),
        ('name = "a"\n[cards]\ngain = [1]\n', "cards.gain must be a text"),
        ('name = "a"\n[mask]\nbits = { BAD = [3] }\n', "3 is not the value of a bit"),
        ('name = "a"\n[mask]\nbits = { WRONG = [1] }\n', "'WRONG' is no mask plane"),
        ('name = "a"\n[mask]\nbits = { BAD = [1], SAT = [1] }\n', "1 is in two planes"),
        ('name = "a"\nmatch = "DECam"\n', "match must be a table"),
    ],
)
def test_an_instrument_that_makes_no_sense(tmp_path, text, said):
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(BadInput, match=said):
        known_instruments((str(mine),))
    with pytest.raises(BadInput, match="--instrument nobody: there is none of this name"):
        known_instruments(("nobody",))
