"""Exposures that are spoilt one way each: what headers, pixels and files may hold that none should."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from astropy.io import fits

#: How each is spoilt: functions of the path of a sound exposure, which they rewrite. By name, with a pattern
#: that the reason holds, or None where the exposure can be used all the same.
CASES: dict[str, tuple] = {}


def case(word: str | None = ""):
    """Register the function that follows."""

    def register(function):
        CASES[function.__name__] = function, word
        return function

    return register


def edit(path: Path, change, **options) -> None:
    """Rewrite an exposure after `change(hdus)`, as no careful program would."""
    with fits.open(path) as hdus:
        hdus = fits.HDUList([hdu.copy() for hdu in hdus])
    change(hdus)
    hdus.writeto(path, overwrite=True, output_verify="ignore", **options)


def recard(path: Path, keyword: str, card: str) -> None:
    """Replace each card of this keyword by 80 letters of any kind, or put it before the first END."""
    data, begin = bytearray(path.read_bytes()), keyword.ljust(8).encode() + b"="
    places = [at for at in range(0, len(data), 80) if data[at : at + 9] == begin]
    if not places:
        # After the last card of the image, in the filling behind END.
        image = data.index(b"XTENSION")
        end = next(at for at in range(image, len(data), 80) if data[at : at + 80] == b"END".ljust(80))
        assert data[end + 80 : end + 160] == b" " * 80
        data[end + 80 : end + 160], places = data[end : end + 80], [end]
    for at in places:
        data[at : at + 80] = card.encode("latin-1").ljust(80)[:80]
    path.write_bytes(data)


def card(name: str, text: str, word: str | None = "", keyword: str = "") -> None:
    """Register an exposure of which one card is another: `text` is all of its 80 letters."""
    CASES[name] = (lambda path: recard(path, keyword or text[:8].rstrip(), text)), word


def value(name: str, keyword: str, content: str, word: str | None = "") -> None:
    """Register an exposure of which one card has another value, as it is written."""
    card(name, f"{keyword:8}= {content}", word)


def pixels(name: str, extension: str, change, word: str | None = "") -> None:
    """Register an exposure of which pixels of a plane are others."""

    def spoil(path):
        def edited(hdus):
            hdus[extension].data = change(hdus[extension].data.copy()).astype(hdus[extension].data.dtype)

        edit(path, edited)

    CASES[name] = spoil, word


def some(number):
    """Return a function that gives nine pixels this value."""

    def change(data):
        data[40:43, 50:53] = number
        return data

    return change


def all_of(number):
    """Return a function that gives all pixels this value."""
    return lambda data: np.full_like(data, number)


# --- Pixels -----------------------------------------------------------------------------------------------

HUGE = 3.4e38
pixels("huge_pixels", "IMAGE", some(HUGE), None)
pixels("huge_negative_pixels", "IMAGE", some(-HUGE), None)
pixels("large_pixels", "IMAGE", some(1e20), None)
pixels("infinite_pixels", "IMAGE", some(np.inf), None)
pixels("no_numbers", "IMAGE", some(np.nan), None)
pixels("all_no_numbers", "IMAGE", all_of(np.nan), "no pixel")
pixels("all_huge", "IMAGE", all_of(HUGE), "no pixel")
pixels("all_infinite", "IMAGE", all_of(np.inf), "no pixel")
pixels("all_minus_infinite", "IMAGE", all_of(-np.inf), "no pixel")
pixels("all_zero", "IMAGE", all_of(0), None)
pixels("all_denormal", "IMAGE", all_of(1e-42), None)
pixels("huge_variance", "VARIANCE", some(HUGE), None)
pixels("infinite_variance", "VARIANCE", some(np.inf), None)
pixels("negative_variance", "VARIANCE", all_of(-1), "no pixel")
pixels("no_variance_at_all", "VARIANCE", all_of(0), "no pixel")
pixels("all_variance_huge", "VARIANCE", all_of(HUGE), "no pixel")
pixels("all_masked", "MASK", all_of(-1), "no pixel")
pixels("strange_mask", "MASK", some(-(2**31)), None)
pixels("half_without_data", "IMAGE", lambda d: np.where(np.arange(d.shape[1]) < 170, np.nan, d), None)
pixels(
    "one_pixel_left", "IMAGE", lambda d: np.where(np.arange(d.size).reshape(d.shape) == 5000, d, np.nan), None
)


@case("truncated")
def cut_in_pixels(path):
    path.write_bytes(path.read_bytes()[:-50_000])


@case("truncated|not a FITS|corrupt")
def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:3100])


@case("not a FITS")
def empty(path):
    path.write_bytes(b"")


@case("not a FITS")
def text(path):
    path.write_text("nothing of the kind\n" * 500)


@case("no pixel|has no image|shape|mixed|missing|small|")
def one_pixel(path):
    edit(path, lambda hdus: [setattr(hdu, "data", hdu.data[:1, :1]) for hdu in hdus[1:]] and None)


@case("")
def one_row(path):
    edit(path, lambda hdus: [setattr(hdu, "data", hdu.data[:1]) for hdu in hdus[1:]] and None)


@case("mixed shapes")
def planes_of_two_shapes(path):
    edit(path, lambda hdus: setattr(hdus["VARIANCE"], "data", hdus["VARIANCE"].data[:-1]))


@case(None)  # an image with its variance is an exposure
def no_mask(path):
    edit(path, lambda hdus: hdus.pop(3) and None)


@case("no image|no variance|missing|has no|")
def a_table_for_an_image(path):
    def change(hdus):
        columns = fits.ColDefs([fits.Column("X", "E", array=np.zeros(30))])
        hdus[1] = fits.BinTableHDU.from_columns(columns, name="IMAGE")

    edit(path, change)


@case("")
def a_cube_for_an_image(path):
    edit(path, lambda hdus: setattr(hdus[1], "data", np.stack([hdus[1].data] * 2)))


@case("")
def two_images_of_one_name(path):
    edit(path, lambda hdus: hdus.append(hdus[1].copy()))


@case("DATASUM")
def a_flipped_bit(path):
    edit(path, lambda hdus: None, checksum=True)
    with fits.open(path) as hdus:
        at = hdus["IMAGE"].fileinfo()["datLoc"]
    data = bytearray(path.read_bytes())
    data[at + 9001] ^= 64
    path.write_bytes(data)


def compressed(path, change=lambda data, place: None):
    """Compress the planes, and then change bytes of the first."""
    with fits.open(path) as hdus:
        planes = [fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name) for hdu in hdus[1:]]
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(path, overwrite=True)
    with fits.open(path, disable_image_compression=True) as hdus:
        place = hdus[1].fileinfo()
    data = bytearray(path.read_bytes())
    change(data, place)
    path.write_bytes(data)


@case("")
def garbage_tiles(path):
    def change(data, place):
        begin = place["datLoc"] + 340 * 32
        data[begin : begin + 60_000] = np.random.default_rng(1).bytes(60_000)

    compressed(path, change)


@case("")
def garbage_descriptors(path):
    def change(data, place):
        data[place["datLoc"] : place["datLoc"] + 3000] = np.random.default_rng(1).bytes(3000)

    compressed(path, change)


@case("said to hold")
def compressed_and_said_to_be_huge(path):
    compressed(path)
    for keyword in ("ZNAXIS1", "ZNAXIS2"):
        recard(path, keyword, f"{keyword:8}=                30000")


@case("truncated")
def said_to_be_huge(path):
    data = path.read_bytes()
    for keyword in (b"NAXIS1  =", b"NAXIS2  ="):
        data = data.replace(keyword + b"                  3", keyword + b"               3000")
    path.write_bytes(data)


@case("truncated|corrupt")
def gzip_cut_short(path):
    path.write_bytes(gzip.compress(path.read_bytes())[:-1000])


@case("truncated|corrupt")
def gzip_with_garbage(path):
    data = bytearray(gzip.compress(path.read_bytes()))
    data[5000:5100] = bytes(100)
    path.write_bytes(data)


@case("no extension|corrupt")
def more_than_headers_promise(path):
    path.write_bytes(gzip.compress(path.read_bytes() + b"x" * (20 << 20), 1))


@case("no end|corrupt|truncated")
def no_end(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b"END".ljust(80), b"   ".ljust(80)))


# --- Cards ------------------------------------------------------------------------------------------------

value("naxis_negative", "NAXIS1", "-340", "NAXIS1")
value("naxis_text", "NAXIS1", "'many'", "NAXIS1")
value("naxis_zero", "NAXIS1", "0", "")
value("naxis_enormous", "NAXIS1", "99999999999999999999999999", "NAXIS1")
value("bitpix_odd", "BITPIX", "-33", "BITPIX")
value("pcount_negative", "PCOUNT", "-7", "PCOUNT")
value("gcount_huge", "GCOUNT", "100000", "truncated")
for _number, _content in enumerate(("0.0", "1E300", "NaN", "'x'", "T", "INF")):
    value(f"bscale_{_number}", "BSCALE", _content, "")
value("bzero_huge", "BZERO", "1E300", "no pixel")
value("blank_for_floats", "BLANK", "'x'", None)
for _keyword, _contents in {
    "GAIN": ("1E300", "0", "-1", "NaN", "'high'", "T", "'" + "x" * 67, "1E999", "9" * 60),
    "SATURATE": ("0", "-5", "1E300", "NaN", "'x'", "(1,2)"),
    "MAGZERO": ("1E300", "-1E5", "NaN", "'x'", "T"),
    "CRVAL1": ("1E300", "NaN", "'x'", "T", "", "INF"),
    "CRVAL2": ("91.0", "-1000.0", "NaN"),
    "CRPIX1": ("1E300", "NaN", "'x'", "-1E9"),
    "CD1_2": ("1E300", "NaN", "1.0", "-100.0", "'x'", "T"),
    "CTYPE1": ("'RA---XYZ'", "'DEC--TAN'", "5", "''", "'RA---AIT'"),
    "CUNIT1": ("'furlong'", "5"),
}.items():
    for _number, _content in enumerate(_contents):
        value(f"{_keyword}_{_number}", _keyword, _content, "")
for _keyword, _contents in {
    "MJD-OBS": ("1E300", "NaN", "'x'", "-1E300"),
    "EXPTIME": ("1E300", "-1", "NaN", "'x'", "0"),
    "OBJECT": ("'\xe9t\xe9'", "T", "'" + "x" * 68 + "&", "'a''b'"),
    "DATE-OBS": ("'9999-99-99T99:99:99'", "5"),
    "AIRMASS": ("1E300", "NaN", "INF", "(1.0,2.0)", "9" * 69, "T", "-0", "1.0D400"),
    "PROPID": ("''''", "'/'", "'" + "&" * 68, "T", "2012"),
    "BUNIT": ("'furlong**9/x'", "'adu    '", "''"),
    "EQUINOX": ("1E300", "'x'"),
}.items():
    for _number, _content in enumerate(_contents):
        value(f"{_keyword}_{_number}", _keyword, _content, None)
card("card_of_garbage", "OBJECT  \xff\x00\x01\x02 nothing = here", None, "OBJECT")
card("card_without_keyword", "        =  5", None, "OBJECT")
card("hierarch", "HIERARCH ESO DET \x1b[2J = 'x'", None, "OBJECT")
card("continue_without_before", "CONTINUE  'and so on'", "corrupt header", "OBJECT")
card("escape", "OBJECT  = 'a\x1b[31mred'", "corrupt header")
card("line_end", "OBJECT  = 'a\nb'", "corrupt header")
card("bell", "DATE-OBS= '\x07'", "corrupt header")
card("duplicate_of_a_card", "EXPTIME =                 17.0", None, "OBJECT")
card("mask_planes_unparsable", "MP_BAD  = x'nothing", "", "MP_BAD")
card("mask_planes_negative", "MP_BAD  = -1", "bit number", "MP_BAD")
card("mask_planes_text", "MP_BAD  = 'zero'", "bit number", "MP_BAD")
card("mask_planes_huge", "MP_BAD  = 99999999999999999999", "bit number", "MP_BAD")
card("xtension_unknown", "XTENSION= 'NOTHING '", "", "XTENSION")


@case("")
def on_the_other_side_of_the_sky(path):
    edit(
        path, lambda hdus: [hdu.header.update({"CRVAL1": 330.0, "CRVAL2": -2.0}) for hdu in hdus[1:]] and None
    )


@case("pixels are|sky|WCS")
def pixels_of_a_degree(path):
    edit(path, lambda hdus: [hdu.header.update({"CD1_1": 1.0, "CD2_2": 1.0}) for hdu in hdus[1:]] and None)


@case("pixels are|singular")
def pixels_of_nothing(path):
    edit(
        path, lambda hdus: [hdu.header.update({"CD1_1": 1e-12, "CD2_2": 1e-12}) for hdu in hdus[1:]] and None
    )


@case("")
def a_distortion_that_folds(path):
    def change(hdus):
        for hdu in hdus[1:]:
            hdu.header["CTYPE1"], hdu.header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
            hdu.header["A_ORDER"] = hdu.header["B_ORDER"] = 3
            hdu.header["A_3_0"], hdu.header["B_0_3"] = 1e-2, -1e-2

    edit(path, change)
