"""FITS beside astropy: extensions, scaling, blanks, compression, WCS and cards, and what is refused."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from support.peers import numbers, read_in_boxes, write_alone

from mpiimg.errors import BadInput
from mpiimg.formats import registry

SHAPE = (4, 6, 5)


def several(path):
    """A file with an empty primary, three images and a table."""
    images = [
        fits.ImageHDU(numbers("int16", (4, 5), seed), name=name, ver=ver)
        for seed, (name, ver) in enumerate([("SCI", 1), ("ERR", 1), ("SCI", 2)])
    ]
    table = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.zeros(3))], name="CAT")
    fits.HDUList([fits.PrimaryHDU(), *images, table]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("which", "number"),
    [
        ("", 1),
        ("[1]", 1),
        ("[2]", 2),
        ("[ERR]", 2),
        ("[err]", 2),
        ("[SCI,2]", 3),
        ("[SCI, 1]", 1),
        ("[3]", 3),
    ],
)
@pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
def test_an_image_is_named_by_number_name_and_version(which, number, ending, tmp_path):
    path = several(tmp_path / f"a{ending}")
    back, source = read_in_boxes(f"{path}{which}")
    np.testing.assert_array_equal(back, fits.getdata(path, number))
    assert source.files == (path,)


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("[MASK]", "there is no image MASK in it; there are 1 (SCI), 2 (ERR), 3 (SCI)"),
        ("[7]", "there is no image 7 in it; there are 1 (SCI)"),
        ("[SCI,5]", "there is no image SCI,5 in it"),
        ("[CAT]", "is no image; there are 1 (SCI)"),
        ("[0]", "is no image; there are 1 (SCI)"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(which, said, tmp_path):
    path = several(tmp_path / "a.fits")
    with pytest.raises(BadInput) as refused:
        registry.read(f"{path}{which}", "values")
    assert said in str(refused.value) and str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_without_an_image_is_refused(tmp_path):
    fits.PrimaryHDU().writeto(tmp_path / "a.fits")
    with pytest.raises(BadInput, match="has no image in it; there are none with pixels"):
        registry.read(tmp_path / "a.fits", "values")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
@pytest.mark.parametrize(
    ("cards", "kept"),
    [
        ({"BSCALE": 0.25, "BZERO": 7.0}, "float32"),
        ({"BLANK": 3}, "float32"),
        ({"BSCALE": 0.5, "BZERO": -1.0, "BLANK": 3}, "float32"),
        ({"BSCALE": 1.0, "BZERO": 0.0}, None),
    ],
)
def test_scaled_and_blank_values_are_those_of_astropy(dtype, cards, kept, compressed, tmp_path):
    values = np.random.default_rng(0).integers(0, 9, SHAPE).astype(dtype)
    hdu = fits.CompImageHDU(values, tile_shape=(1, 2, 5)) if compressed else fits.PrimaryHDU(values)
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), hdu] if compressed else [hdu]).writeto(path)
    with fits.open(path, "update", disable_image_compression=True) as hdus:
        for key, value in cards.items():
            hdus[-1].header["ZBLANK" if compressed and key == "BLANK" else key] = value
    back, _ = read_in_boxes(path)
    expected = values * cards.get("BSCALE", 1) + cards.get("BZERO", 0)
    expected = np.where(values == cards.get("BLANK"), np.nan, expected).astype(kept or dtype)
    assert back.dtype == expected.dtype
    np.testing.assert_array_equal(back, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = fits.getdata(path)
    if not (compressed and "BLANK" in cards):  # which astropy leaves as a number
        np.testing.assert_array_equal(back, theirs)


def test_tiles_of_reals_and_unsigned_numbers(tmp_path):
    """Quantised reals are what astropy makes of them, to the last bit."""
    values = np.random.default_rng(0).normal(100, 5, (40, 50)).astype(np.float32)
    values[3, 4] = np.nan
    for name, data, options in (
        ("quantised", values, {"quantize_level": 8, "tile_shape": (7, 50)}),
        ("lossless", values, {"quantize_level": 0, "compression_type": "GZIP_2"}),
        ("unsigned", numbers("uint16", (40, 50)), {"tile_shape": (8, 9)}),
    ):
        path = tmp_path / f"{name}.fits.fz"
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, **options)]).writeto(path)
        back, source = read_in_boxes(path, pieces=3)
        with fits.open(path) as hdus:
            np.testing.assert_array_equal(back, hdus[1].data)
        assert back.dtype == data.dtype and source.parallel


def test_a_compressed_image_in_a_gzipped_file_is_refused(tmp_path):
    path = tmp_path / "a.fits.gz"
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(numbers("int16", (4, 5)))]).writeto(path)
    with pytest.raises(BadInput, match="compressed image in a compressed file; gunzip it"):
        registry.read(path, "values")


def sky(**cards):
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 3.0, "CRPIX2": 2.0})
    for key, value in {"CRVAL1": 150.0, "CRVAL2": 2.0, "CD1_1": -1e-3, "CD2_2": 1e-3, **cards}.items():
        header[key] = value
    return header


def test_wcs_and_cards_are_written_again(tmp_path):
    values = numbers("float32", (4, 5))
    cards = {
        "OBJECT": "M 31",
        "EXPTIME": 30.5,
        "NCOMBINE": 3,
        "FLAT": True,
        "BUNIT": "adu",
        "DATE-OBS": "2026-11-30",
    }
    header = sky(**cards, **{"HIERARCH ESO DET ID": "e2v", "EXTNAME": "SCI", "DATAMAX": 9.0})
    header["HISTORY"] = "flattened"
    header["HISTORY"] = "and stacked"
    fits.PrimaryHDU(values, header).writeto(tmp_path / "a.fits")
    source = registry.read(tmp_path / "a.fits", "values")
    assert source.axes == ("y", "x") == source.array.axes
    assert source.attrs["OBJECT"] == "M 31" and source.attrs["HISTORY"] == ["flattened", "and stacked"]
    made = write_alone(
        tmp_path,
        "b.fits",
        values[::-1, 2:],
        source.axes,
        space=source.space.taken("y", 3, -1).taken("x", 2),
        attrs={**source.attrs, "not a keyword": 1, "WIDE": float("nan"), "TEXT": "x" * 300, "LINES": "a\nb"},
    )
    with warnings.catch_warnings(), fits.open(made) as hdus:
        warnings.simplefilter("error")
        hdus.verify("exception")
        written = hdus[0].header
        assert {key: written[key] for key in cards} == cards
        assert written["ESO DET ID"] == "e2v" and list(written["HISTORY"]) == ["flattened", "and stacked"]
        assert not {"DATAMAX", "WIDE", "LINES", "CD1_2"} & set(written)
        np.testing.assert_array_equal(hdus[0].data, values[::-1, 2:])
    assert made.stat().st_size % 2880 == 0
    ours, theirs = WCS(written), WCS(header)
    np.testing.assert_allclose(ours.all_pix2world([[0, 0]], 0), theirs.all_pix2world([[2, 3]], 0), rtol=1e-12)


def test_axes_beyond_the_wcs_and_axes_of_it_that_are_gone(tmp_path):
    values = numbers("float32", (3, 4, 5))
    fits.PrimaryHDU(values, sky(CTYPE3="FREQ", CRVAL3=1.4e9, CDELT3=1e6, CD3_3=1e6)).writeto(
        tmp_path / "a.fits"
    )
    space = registry.read(tmp_path / "a.fits", "values").space
    # A channel is an image of two axes.
    space = space.without("z", 1)
    channel = write_alone(tmp_path, "b.fits", values[1], ("y", "x"), space=space)
    assert fits.getdata(channel).shape == (4, 5) and WCS(fits.getheader(channel)).naxis == 2
    # A column keeps its place, as the sky has two axes.
    column = write_alone(tmp_path, "c.fits", values[1, :, 2], ("y",), space=space.without("x", 2))
    assert fits.getdata(column).shape == (4, 1)
    place = WCS(fits.getheader(column)).all_pix2world([[0, 3]], 0)
    np.testing.assert_allclose(place, WCS(sky()).all_pix2world([[2, 3]], 0), rtol=1e-12)
    # A stack of images has an axis that the sky knows nothing of.
    stack = write_alone(tmp_path, "d.fits", values, ("v", "y", "x"), space=space)
    wcs = WCS(fits.getheader(stack))
    assert fits.getdata(stack).shape == (3, 4, 5)
    np.testing.assert_allclose(
        wcs.all_pix2world([[2, 3, 1]], 0)[0][:2], WCS(sky()).all_pix2world([[2, 3]], 0)[0]
    )


def test_tables_of_distortions_are_left_out_with_a_word(tmp_path, caplog):
    fits.PrimaryHDU(numbers("int16", (4, 5)), sky(CPDIS1="LOOKUP")).writeto(tmp_path / "a.fits")
    assert registry.read(tmp_path / "a.fits", "values").space is not None
    assert "of its WCS the distortions in tables (CPDIS1) are left out" in caplog.text


def test_axes_are_placed_by_name_or_as_they_are(tmp_path):
    for axes, written in (
        (("y", "x"), (3, 4)),
        (("x", "y"), (4, 3)),
        (("x", "y", "t"), (5, 4, 3)),
        (("t", "y", "x"), (3, 4, 5)),
        (("a", "b"), (3, 4)),
        (("x",), (3,)),
        (("t", "x"), (3, 4)),
    ):
        values = numbers("float32", (3, 4, 5)[: len(axes)])
        data = fits.getdata(write_alone(tmp_path, "a.fits", values, axes))
        assert data.shape == written, axes
        order = sorted(range(len(axes)), key=lambda k: data.shape.index(values.shape[k]))
        np.testing.assert_array_equal(data, values.transpose(order))


def test_what_fits_does_not_have(tmp_path, caplog):
    with pytest.raises(BadInput, match=r"^a\.fits: FITS has no complex values"):
        write_alone(tmp_path, "a.fits", numbers("complex64", (3, 4)), ("y", "x"))
    with pytest.raises(BadInput, match="written with one image"):
        write_alone(tmp_path, "a.fits[SCI]", numbers("int16", (3, 4)), ("y", "x"))
    flags = numbers("bool", (3, 4))
    np.testing.assert_array_equal(fits.getdata(write_alone(tmp_path, "b.fits", flags, ("y", "x"))), flags)
    halves = numbers("float16", (3, 4))
    np.testing.assert_array_equal(fits.getdata(write_alone(tmp_path, "c.fits", halves, ("y", "x"))), halves)
    assert "c.fits: FITS has no float16" in caplog.text


@pytest.mark.parametrize("cards", [{"BSCALE": "wide"}, {"BZERO": "x"}, {"BLANK": "none"}])
def test_scales_that_are_no_numbers_are_refused(cards, tmp_path):
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(numbers("int16", (3, 4))).writeto(path)
    raw = path.read_bytes()
    ((key, value),) = cards.items()
    path.write_bytes(
        raw.replace(b"END" + b" " * 77, fits.Card(key, value).image.encode() + b"END", 1)[: len(raw)]
    )
    with pytest.raises(BadInput, match="is no number; write it again"):
        registry.read(path, "values")


def test_gzip_is_told_by_what_it_is(tmp_path):
    fits.PrimaryHDU(numbers("int16", (3, 4))).writeto(tmp_path / "a.fits")
    (tmp_path / "b.fits").write_bytes(gzip.compress((tmp_path / "a.fits").read_bytes()))
    back, source = read_in_boxes(tmp_path / "b.fits")
    np.testing.assert_array_equal(back, numbers("int16", (3, 4)))
    assert not source.parallel
