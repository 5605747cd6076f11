"""FITS exposures in, of every layout, against what was written."""

from __future__ import annotations

import gzip
import itertools
import os
import pathlib
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from support.exposure_data import (
    FACTS,
    REAL,
    SHAPE,
    coordinates,
    pixels,
    refused,
    rice,
    save,
    single,
    three_planes,
    triplet,
)

from mpiimg.astro.exposure_files import exposure_names
from mpiimg.astro.fits import exposure as reading
from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.instruments import known_instruments
from mpiimg.astro.fits.maskplanes import MASK_PLANES, bits
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.sky.wcs import parse_wcs
from mpiimg.errors import BadInput


@pytest.mark.parametrize(
    "names", [("IMAGE", "VARIANCE", "MASK"), ("SCI", "VAR", "DQ"), ("SCI", "ERR", "MASK")]
)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "rice"])
def test_three_planes(tmp_path, names, compressed):
    image, variance = pixels()
    mask = np.zeros(SHAPE, np.int32)
    mask[3, 4], mask[5, 6] = 1 << MASK_PLANES["CR"], 1 << MASK_PLANES["BAD"]
    hdus = three_planes(names, mask=mask)
    if names[1] == "ERR":
        hdus[1].data = np.sqrt(variance)
    path = tmp_path / ("a.fits.fz" if compressed else "a.fits")
    if compressed:
        hdus = [*rice(hdus[:2], quantize_level=0), *rice(hdus[2:])]
        for hdu in hdus[:2]:
            hdu.compression_type = "GZIP_2"
    save(path, *hdus, checksum=True)
    (ref,) = find_exposures([path])
    assert (ref.name, ref.kind, ref.shape, ref.paths) == ("a", "planes", SHAPE, (path,))
    assert (ref.band, ref.visit, ref.sensor) == ("r", "17", "5")
    assert (ref.gain, ref.readnoise, ref.saturate) == (4.0, 6.0, 40000.0)
    assert (ref.magzero, ref.exptime, ref.mjd) == (30.5, 90.0, 57110.25)
    assert pickle.loads(pickle.dumps(ref)) == ref
    exposure = read_exposure(ref)
    for plane, dtype in ((exposure.image, "f4"), (exposure.variance, "f4"), (exposure.mask, "i4")):
        assert plane.dtype == dtype and plane.dtype.isnative and plane.flags.c_contiguous
    assert (exposure.image == image).all()
    np.testing.assert_allclose(exposure.variance, variance, rtol=3e-7)
    # What is not zero in a DQ plane that says nothing of its bits cannot be trusted.
    expected = mask if names[2] == "MASK" else np.where(mask != 0, bits("BAD"), 0)
    assert (exposure.mask == expected).all()


def test_a_negative_error_is_no_variance(tmp_path):
    """Its square would look like one."""
    hdus = three_planes(("SCI", "ERR", "MASK"))
    hdus[1].data[4, 5] *= -1
    (ref,) = find_exposures([save(tmp_path / "a.fits", *hdus)])
    planes = read_exposure(ref)
    assert np.argwhere(planes.mask).tolist() == [[4, 5]] and planes.mask[4, 5] == bits("NO_DATA")
    assert (planes.variance > 0).all()


def test_a_nan_in_a_mask_of_floats_is_no_good_pixel(tmp_path):
    mask = np.zeros(SHAPE, np.float32)
    mask[2, 3], mask[4, 5] = 1, np.nan
    (ref,) = find_exposures([save(tmp_path / "a.fits", *three_planes(("SCI", "VAR", "DQ"), mask=mask))])
    assert np.argwhere(read_exposure(ref).mask & bits("BAD")).tolist() == [[2, 3], [4, 5]]


def test_rice_floats_come_back_within_their_steps(tmp_path):
    image, _ = pixels()
    hdu = fits.CompImageHDU(image, coordinates(), name="N1", quantize_level=16, dither_seed=1)
    hdu.header.update(FACTS)
    (ref,) = find_exposures([save(tmp_path / "a.fits.fz", hdu)])
    assert ref.kind == "single"
    assert np.abs(read_exposure(ref).image - image).max() < 1


def test_a_single_image_has_its_variance_modelled(tmp_path):
    image = np.array([[250.0, -3.0, 39999.0], [40000.0, 1e5, np.nan]], np.float32)
    (ref,) = find_exposures([single(tmp_path / "a.fits", image=image)])
    assert (ref.kind, ref.variance, ref.mask) == ("single", None, None)
    exposure = read_exposure(ref)
    model = np.maximum(image, 0) / 4 + (6 / 4) ** 2
    assert np.allclose(exposure.variance[:1], model[:1], rtol=1e-6)
    sat, gone = bits("SAT"), bits("NO_DATA")
    assert exposure.mask.tolist() == [[0, 0, 0], [sat, sat, gone]]
    # Without data: the median of what is good, here of three pixels.
    assert exposure.image[1, 2] == 250
    assert exposure.variance[1, 2] == exposure.variance[0, 0]


def test_an_exposure_in_gzip_is_read_and_its_sums_are_checked(tmp_path):
    plain = save(tmp_path / "a.fits", *three_planes(), checksum=True)
    data = bytearray(plain.read_bytes())
    packed = tmp_path / "b.fits.gz"
    packed.write_bytes(gzip.compress(data))
    (ref,) = find_exposures([packed])
    assert packed.stat().st_size < plain.stat().st_size
    np.testing.assert_array_equal(read_exposure(ref).image, pixels()[0])
    with fits.open(plain) as hdus:
        data[hdus[1].fileinfo()["datLoc"] + 5] ^= 1
    packed.write_bytes(gzip.compress(data))
    with pytest.raises(BadInput, match="DATASUM"):
        read_exposure(find_exposures([packed])[0])


def test_exposures_of_one_name_get_names_of_their_own():
    refs = [SimpleNamespace(name=name) for name in ("a", "b", "a", "c4d_ooi_z", "a")]
    assert exposure_names(refs) == ["a.fits", "b.fits", "a-2.fits", "c4d_calibrated_z.fits", "a-3.fits"]


def test_pixels_without_data_take_the_median_of_a_regular_sample_or_of_all_where_it_has_none():
    values = np.arange(4 * reading._SAMPLE, dtype=np.float32).reshape(-1, 512) ** 2
    useful = np.ones(values.shape, bool)
    assert reading._typical(values, useful) == np.median(values.ravel()[::4])
    useful.ravel()[::4] = False
    assert reading._typical(values, useful) == np.float32(np.median(values[useful]))


@pytest.mark.parametrize(
    ("unit", "gain"),
    [
        ("adu", 4.0),
        ("electron", 1.0),
        ("electrons", 1.0),
        ("e-", 1.0),
        ("ADU/s", 360.0),
        ("electron/s", 90.0),
    ],
)
def test_units(tmp_path, unit, gain):
    """Gain is electrons per unit of the image, whatever that unit; read noise stays in electrons."""
    (ref,) = find_exposures([single(tmp_path / "a.fits", BUNIT=unit)])
    assert (ref.gain, ref.readnoise) == (gain, 6.0)
    image = pixels()[0].astype(float)
    np.testing.assert_allclose(read_exposure(ref).variance, image / gain + (6 / gain) ** 2, rtol=1e-6)


def test_scaled_integers(tmp_path):
    counts = np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint16).reshape(SHAPE) + 40000
    (ref,) = find_exposures([single(tmp_path / "a.fits", image=counts, SATURATE=65535.0)])
    exposure = read_exposure(ref)
    assert (exposure.image == counts).all()


def test_several_sensors_in_a_file(tmp_path):
    """By EXTVER in any order; by their order without it; sensors of a mosaic without planes."""
    planes = [three_planes(facts=FACTS | {"CCDNUM": n}, seed=n, version=n) for n in (1, 2, 10)]
    shuffled = [hdu for kind in zip(*planes, strict=True) for hdu in kind]
    by_version = find_exposures([save(tmp_path / "v.fits", *shuffled)])
    following = [three_planes(facts=FACTS | {"CCDNUM": n}, seed=n) for n in (1, 2, 10)]
    in_order = find_exposures([save(tmp_path / "o.fits", *itertools.chain(*following))])
    for refs in (by_version, in_order):
        assert [ref.sensor for ref in refs] == ["1", "2", "10"]
        assert [ref.name[1:] for ref in refs] == [".1", ".2", ".10"]
        for ref, seed in zip(refs, (1, 2, 10), strict=True):
            exposure = read_exposure(ref)
            image, variance = pixels(seed)
            assert (exposure.image == image).all() and (exposure.variance == variance).all()
    facts = {key: value for key, value in FACTS.items() if key != "CCDNUM"}
    header = coordinates()
    header.update(facts)
    mosaic = [fits.ImageHDU(pixels(n)[0], header, name=name) for n, name in ((1, "S1"), (2, "N1"))]
    refs = find_exposures([save(tmp_path / "m.fits", *mosaic)])
    assert [(ref.kind, ref.sensor, ref.image.hdu) for ref in refs] == [
        ("single", "N1", 2),
        ("single", "S1", 1),
    ]


def test_an_image_in_the_primary(tmp_path):
    _, variance, mask = three_planes()
    header = coordinates()
    header.update(FACTS)
    primary = fits.PrimaryHDU(pixels()[0], header)
    fits.HDUList([primary, variance, mask]).writeto(tmp_path / "a.fits")
    (ref,) = find_exposures([tmp_path / "a.fits"])
    assert (ref.kind, ref.image.hdu, ref.variance.hdu, ref.mask.hdu) == ("planes", 0, 1, 2)


def test_masks_go_by_their_cards(tmp_path):
    hdus = three_planes(mask=np.full(SHAPE, 1 << 3, np.int32))
    hdus[2].header["MP_SAT"] = 3
    hdus[2].data[0, 0] = 0
    (ref,) = find_exposures([save(tmp_path / "a.fits", *hdus)])
    mask = read_exposure(ref).mask
    assert mask[0, 0] == 0
    assert (mask.ravel()[1:] == bits("SAT")).all()


# --------------------------------------------------------------------------- facts


def test_which_cards_are_read(tmp_path):
    path = tmp_path / "a.fits"
    halves = {"GAIN": None, "RDNOISE": None, "GAINA": 3.0, "GAINB": 5.0, "RDNOISEA": 6.0, "RDNOISEB": 8.0}
    (ref,) = find_exposures([single(path, **halves)])
    assert (ref.gain, ref.readnoise) == (4.0, 7.0)
    visits = {"EXPID": "c12", "VISIT": 9, "EXPNUM": 17, "DATE-OBS": "2015-03-29T06:00:00"}
    for card in visits:
        (ref,) = find_exposures([single(path, **visits)])
        assert ref.visit == str(visits[card])
        visits[card] = None
    (ref,) = find_exposures([single(path, **visits, FILTER=None, CCDNUM=None)])
    assert (ref.visit, ref.sensor, ref.band) == ("a", "a", "unknown")
    (ref,) = find_exposures([single(path, **{"MJD-OBS": None, "DATE-OBS": "2015-03-29T06:00:00"})])
    assert ref.mjd == 57110.25
    (ref,) = find_exposures([single(path, MAGZERO=None, SATURATE=None)])
    assert (ref.magzero, ref.saturate) == (None, None)


def test_options_name_cards_or_give_values(tmp_path):
    path = single(tmp_path / "a.fits", EGAIN=2.5, MYFILT="g wide", NIGHT=3)
    options = ReadOptions(
        gain="EGAIN", read_noise=5, zero_point="25", filter="MYFILT", visit="NIGHT", sensor="=N1"
    )
    (ref,) = find_exposures([path], options)
    assert (ref.gain, ref.readnoise, ref.magzero) == (2.5, 5.0, 25.0)
    assert (ref.band, ref.visit, ref.sensor) == ("g wide", "3", "N1")
    assert find_exposures([path], ReadOptions(filter="=z"))[0].band == "z"
    refused("no card XGAIN, which --gain names", path, options=ReadOptions(gain="XGAIN"))
    with pytest.raises(BadInput, match="--zero-point-per"):
        ReadOptions(zero_point_per="hour")
    with pytest.raises(BadInput, match="--decam-mask"):
        ReadOptions(decam_mask="?")


def test_zero_points_per_second(tmp_path):
    options = ReadOptions(zero_point_per="second")
    (ref,) = find_exposures([single(tmp_path / "a.fits")], options)
    assert ref.magzero == pytest.approx(30.5 + 2.5 * np.log10(90))
    (ref,) = find_exposures([single(tmp_path / "a.fits", BUNIT="adu/s")], options)
    assert ref.magzero == 30.5
    refused("no EXPTIME", single(tmp_path / "a.fits", EXPTIME=None), options=options)


def test_order_is_by_band_visit_and_sensor(tmp_path):
    keys = [("g", 9, 10), ("r", 2, 3), ("g", 10, 1), ("g", 9, 9)]
    paths = [
        single(tmp_path / f"{i}.fits", FILTER=band, EXPNUM=visit, CCDNUM=sensor)
        for i, (band, visit, sensor) in enumerate(keys)
    ]
    expected = [("g", "9", "9"), ("g", "9", "10"), ("g", "10", "1"), ("r", "2", "3")]
    for order in (paths, paths[::-1]):
        assert [(ref.band, ref.visit, ref.sensor) for ref in find_exposures(order)] == expected


def test_lists_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        single(tmp_path / f"{i}.fits", EXPNUM=i)
    (tmp_path / "list.txt").write_text("# tonight\n0.fits\n\n1.fits  # clouds\n")
    refs = find_exposures(["@list.txt", "2.fits"])
    # As Windows writes it.
    (tmp_path / "windows.txt").write_text("\ufeff0.fits\r\n1.fits\r\n", encoding="utf-8", newline="")
    assert find_exposures(["@windows.txt", "2.fits"]) == refs
    assert [ref.visit for ref in refs] == ["0", "1", "2"]
    refused("cannot read this list", "@nolist.txt")


def test_files_of_one_name_whose_headers_tell_no_visit_are_two_exposures(tmp_path):
    nowhere = {"EXPNUM": None, "CCDNUM": None, "DATE-OBS": None}
    paths = [tmp_path / night / "img.fits" for night in ("night1", "night2")]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        single(path, image=pixels(seed)[0], **nowhere)
    assert [ref.visit for ref in find_exposures(paths)] == list(map(str, paths))
    assert [ref.visit for ref in find_exposures(paths[:1])] == ["img"]
    (tmp_path / "link").symlink_to(paths[0].parent)
    refused("duplicate exposure", paths[0], tmp_path / "link" / "img.fits")
    refused("duplicate exposure", *paths, paths[1])


def test_a_bad_exposure_can_be_left_out(tmp_path):
    good, bad = single(tmp_path / "good.fits"), tmp_path / "bad.fits"
    bad.write_text("no FITS at all")
    rejected = []
    refs = find_exposures([bad, good, good], rejected=rejected)
    assert [ref.name for ref in refs] == ["good"]
    assert [pathlib.Path(fault.unit).name for fault in rejected] == ["bad.fits", "good.fits"]
    assert "not a FITS file" in rejected[0].reason and "duplicate" in rejected[1].reason


def test_identity_tells_files_apart(tmp_path):
    path = single(tmp_path / "a.fits")
    (first,) = find_exposures([path])
    os.utime(path, ns=(first.identity[0][1],) * 2)
    assert find_exposures([path])[0].identity == first.identity
    single(path, GAIN=4.1)
    os.utime(path, ns=(first.identity[0][1],) * 2)
    assert find_exposures([path])[0].identity != first.identity


@pytest.mark.filterwarnings("ignore:.*datfix")
@pytest.mark.parametrize("projection", ["TAN", "TPV", "TAN-SIP"])
def test_coordinates_are_astropys(tmp_path, projection):
    header = coordinates(projection=projection)
    header.update(FACTS)
    if projection == "TPV":
        header.update({"PV1_1": 1.0003, "PV1_7": -0.012, "PV2_1": 0.9998, "PV2_7": -0.011, "PV1_4": 1e-3})
    if projection == "TAN-SIP":
        header.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-5, "B_1_1": -2e-5})
    fits.PrimaryHDU(pixels()[0], header).writeto(tmp_path / "a.fits")
    (ref,) = find_exposures([tmp_path / "a.fits"])
    points = np.random.default_rng(1).uniform(0, 30, (20, 2))
    found = parse_wcs(ref.wcs).all_pix2world(points, 0)
    assert (found == WCS(header).all_pix2world(points, 0)).all()
    linear = WCS(coordinates()).all_pix2world(points, 0)
    assert (projection == "TAN") == np.allclose(found, linear, atol=1e-9, rtol=0)


# --------------------------------------------------------------------------- DECam


@pytest.mark.parametrize("codes", [True, False], ids=["codes", "bits"])
def test_decam_triplets(tmp_path, codes):
    """A mask with every code, or every bit; any of the three files stands for all."""
    (decam, *_) = known_instruments(("decam",))
    table = decam.codes if codes else decam.bits
    mask = np.zeros(SHAPE, np.int32)
    for place, value in enumerate(table, 1):
        mask[place, place] = value
    paths = triplet(tmp_path, mask, "V3.5.0" if codes else "V3.4.1")
    (ref,) = find_exposures(paths)
    for given in ([paths[0]], [paths[1]], [paths[2]], paths[::-1]):
        assert find_exposures(given) == [ref]
    assert (ref.kind, ref.paths, len(ref.identity)) == ("triplet", tuple(paths), 3)
    assert (ref.band, ref.visit, ref.sensor) == ("r", "17", "43")
    assert (ref.gain, ref.readnoise, ref.magzero) == (4.1, 6.5, None)
    exposure = read_exposure(ref)
    image, variance = pixels()
    assert (exposure.image[1:] == image[1:]).all()
    np.testing.assert_allclose(exposure.variance[1:], variance[1:], rtol=3e-7)
    assert exposure.mask[0, 0] == bits("NO_DATA")
    for place, name in enumerate(table.values(), 1):
        assert exposure.mask[place, place] == bits(name)
    assert (exposure.mask != 0).sum() == 1 + len(table)


def test_decam_triplets_with_several_sensors_and_endings(tmp_path):
    paths = triplet(tmp_path, np.zeros(SHAPE, np.int32), names=("N12", "N13"))
    paths[1] = paths[1].rename(paths[1].with_name(paths[1].name + ".fz"))
    refs = find_exposures(paths)
    assert [(ref.sensor, ref.image.hdu, ref.mask.hdu) for ref in refs] == [("43", 1, 1), ("44", 2, 2)]
    assert refs[0].variance.path == paths[1]


def test_decam_bad_triplets(tmp_path):
    mask = np.zeros(SHAPE, np.int32)
    paths = triplet(tmp_path, mask, version=None)
    refused("--decam-mask", paths[0])
    assert find_exposures(paths, ReadOptions(decam_mask="bits"))[0].mask_is == "bits"
    paths[1].unlink()
    message = refused("missing planes", paths[0])
    assert "_oow_" in message
    paths = triplet(tmp_path, mask)
    fits.setval(paths[2], "EXTNAME", value="N99", ext=1)
    refused("no extension N12", paths[0])
    paths = triplet(tmp_path, mask[:-1])
    refused("mixed shapes: the image is 31x24 pixels, its mask 31x23", paths[0])


@pytest.mark.skipif(not REAL.exists(), reason=f"SKIPPED: the real DECam cut-outs are not at {REAL}")
def test_real_decam_cutouts():
    paths = sorted(REAL.glob("*.fits"))
    refs = find_exposures(paths)
    images = [path for path in paths if "_ooi_" in path.name]
    assert images and refs == find_exposures(images)
    assert sorted(ref.image.path for ref in refs) == images
    assert {ref.band for ref in refs} == {"g", "r", "z"}
    assert all(find_exposures([path], ReadOptions(zero_point=25))[0].magzero == 25 for path in images)
    for ref in refs:
        image = fits.getdata(ref.image.path)
        weight = fits.getdata(ref.variance.path)
        header = fits.getheader(ref.image.path, 1)
        exposure = read_exposure(ref)
        assert (ref.kind, ref.mask_is, ref.shape) == ("triplet", "codes", image.shape)
        assert ref.gain == pytest.approx((header["GAINA"] + header["GAINB"]) / 2)
        assert (exposure.image == image).all() and not exposure.mask.any()
        np.testing.assert_allclose(exposure.variance, 1 / weight, rtol=3e-7)
        # They still have their sky, whose noise is what gain and read noise say.
        model = np.median(image) / ref.gain + (ref.readnoise / ref.gain) ** 2
        assert 0.8 < np.median(exposure.variance) / model < 1.25
        corners = [[0, 0], [40, 49]]
        assert (parse_wcs(ref.wcs).all_pix2world(corners, 0) == WCS(header).all_pix2world(corners, 0)).all()
