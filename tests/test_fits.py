"""FITS exposures in and patches out, against astropy and against what was written."""

from __future__ import annotations

import itertools
import os
import pathlib
import pickle
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from mpiimg.errors import BadInput
from mpiimg.io import maskplanes
from mpiimg.io.fits import ReadOptions, find_exposures, parse_wcs, read_exposure, write_patch
from mpiimg.io.maskplanes import DECAM_BITS, DECAM_CODES, PLANES, bits

REAL = pathlib.Path(__file__).parents[2] / "shared" / "data" / "decam-testcase3"
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


# --------------------------------------------------------------------------- mask planes


def test_plane_numbers_are_those_of_lsst():
    fixed = ["BAD", "SAT", "INTRP", "CR", "EDGE", "DETECTED", "DETECTED_NEGATIVE", "SUSPECT", "NO_DATA"]
    assert [PLANES[name] for name in fixed] == list(range(9))
    assert len(set(PLANES.values())) == len(PLANES)
    assert bits("BAD", "CR", "BAD") == 1 + 8
    assert bits() == 0


def test_plane_cards_go_through_a_header():
    header = fits.Header()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header.extend(fits.Card(*card) for card in maskplanes.plane_cards())
    again = fits.Header.fromstring(header.tostring())
    assert maskplanes.planes_of(again) == PLANES
    assert maskplanes.planes_of(fits.Header()) == {}
    again["MP_CR"] = "three"
    with pytest.raises(ValueError, match="MP_CR"):
        maskplanes.planes_of(again)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">i4", "int64"])
def test_a_mask_with_other_numbers_is_remapped(dtype):
    """Every combination of planes, against a loop over names."""
    planes = {
        "CR": 0,
        "BAD": 1,
        "NO_DATA": 2,
        "UNMASKEDNAN": 3,
        "VIGNETTED": 4,
        "BRIGHT_OBJECT": 5,
        "WEIRD": 6,
    }
    meaning = ["CR", "BAD", "NO_DATA", "NO_DATA", "SUSPECT", None, "SUSPECT"]
    values = np.arange(128).reshape(8, 16).astype(dtype)
    expected = np.zeros(values.shape, np.int32)
    for bit, name in enumerate(meaning):
        if name:
            expected[values.astype(int) >> bit & 1 == 1] |= 1 << PLANES[name]
    found = maskplanes.remap(values, planes)
    assert found.dtype == np.int32
    assert (found == expected).all()
    far = {name: bit + 20 for name, bit in planes.items()}
    if np.dtype(dtype).itemsize >= 4:
        assert (maskplanes.remap(values << 20, far) == expected).all()


def test_remapping_our_own_planes_changes_nothing():
    values = np.random.default_rng(1).integers(0, 1 << len(PLANES), (50, 60), dtype=np.int32)
    found = maskplanes.remap(values, PLANES)
    assert (found == values).all()
    assert not np.shares_memory(found, values)
    assert (maskplanes.remap(np.array([1 << 14], np.int32), PLANES) == bits("SUSPECT")).all()


def test_sign_bit_of_a_mask():
    assert maskplanes.remap(np.array([-(2**31), 1], np.int32), PLANES).tolist() == [bits("SUSPECT"), 1]
    assert maskplanes.any_bad(np.array([0, 7, -1], np.int16)).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("version", "codes"),
    [
        ("V3.5.0", True),
        ("V3.4.9", False),
        ("V2.9", False),
        ("DES V3.5", True),
        ("V4.8.2a", True),
        ("V3.10", True),
    ],
)
def test_which_decam_versions_have_codes(version, codes):
    assert maskplanes.decam_has_codes(version) == codes


def test_decam_codes_and_bits():
    codes = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [-1, 500, 0, 0, 0]], np.int16)
    plane = {code: bits(name) for code, name in DECAM_CODES.items()} | {0: 0}
    expected = [[plane.get(code, bits("SUSPECT")) for code in row] for row in codes.tolist()]
    assert maskplanes.from_decam(codes, codes=True).tolist() == expected
    both = np.array([0, 1, 2, 4, 16, 64, 128, 256, 512, 1 + 16, 2 + 64, 8], np.int32)
    names = [
        (),
        "BAD",
        "SAT",
        "INTRP",
        "CR",
        "SAT",
        "SUSPECT",
        "EDGE",
        "EDGE",
        ("BAD", "CR"),
        "SAT",
        "SUSPECT",
    ]
    expected = [bits(*([name] if isinstance(name, str) else name)) for name in names]
    assert maskplanes.from_decam(both, codes=False).tolist() == expected


# --------------------------------------------------------------------------- all kinds in


@pytest.mark.parametrize(
    "names", [("IMAGE", "VARIANCE", "MASK"), ("SCI", "VAR", "DQ"), ("SCI", "ERR", "MASK")]
)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "rice"])
def test_three_planes(tmp_path, names, compressed):
    image, variance = pixels()
    mask = np.zeros(SHAPE, np.int32)
    mask[3, 4], mask[5, 6] = 1 << PLANES["CR"], 1 << PLANES["BAD"]
    hdus = three_planes(names, mask=mask)
    if names[1] == "ERR":
        hdus[1].data = np.sqrt(variance)
    path = tmp_path / ("a.fits.fz" if compressed else "a.fits")
    if compressed:
        hdus = [
            fits.CompImageHDU(
                hdu.data, hdu.header, name=hdu.name, quantize_level=0 if hdu.name != "MASK" else 16
            )
            if hdu.name != "MASK"
            else fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name)
            for hdu in hdus
        ]
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
    options = ReadOptions(gain="EGAIN", readnoise=5, magzero="25", band="MYFILT", visit="NIGHT", sensor="=N1")
    (ref,) = find_exposures([path], options)
    assert (ref.gain, ref.readnoise, ref.magzero) == (2.5, 5.0, 25.0)
    assert (ref.band, ref.visit, ref.sensor) == ("g", "3", "N1")
    assert find_exposures([path], ReadOptions(band="=z"))[0].band == "z"
    refused("no card XGAIN, which --gain names", path, options=ReadOptions(gain="XGAIN"))
    with pytest.raises(BadInput, match="--magzero-per"):
        ReadOptions(magzero_per="hour")
    with pytest.raises(BadInput, match="--decam-mask"):
        ReadOptions(decam_mask="?")


def test_zero_points_per_second(tmp_path):
    options = ReadOptions(magzero_per="second")
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
    assert [ref.visit for ref in refs] == ["0", "1", "2"]
    refused("cannot read this list", "@nolist.txt")


def test_a_bad_exposure_can_be_left_out(tmp_path):
    good, bad = single(tmp_path / "good.fits"), tmp_path / "bad.fits"
    bad.write_text("no FITS at all")
    rejected = []
    refs = find_exposures([bad, good, good], rejected=rejected)
    assert [ref.name for ref in refs] == ["good"]
    assert [pathlib.Path(path).name for path, _ in rejected] == ["bad.fits", "good.fits"]
    assert "not a FITS file" in rejected[0][1] and "duplicate" in rejected[1][1]


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
    table = DECAM_CODES if codes else DECAM_BITS
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
    assert all(find_exposures([path], ReadOptions(magzero=25))[0].magzero == 25 for path in images)
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


# --------------------------------------------------------------------------- bad input


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
    refused("no mask plane", save(tmp_path / "novar.fits", image, variance))
    refused("no variance plane", save(tmp_path / "nomask.fits", image, mask))
    variance.data = variance.data[:, :-1]
    path = save(tmp_path / "mixed.fits", image, variance, mask)
    refused("mixed shapes: the image is 31x24 pixels, its variance 30x24", path)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "rice"])
def test_truncated_files(tmp_path, compressed):
    """Cut anywhere: inside pixels, inside a header, at the end; found in the headers alone."""
    hdus = three_planes()
    if compressed:
        hdus = [fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name) for hdu in hdus]
    whole = save(tmp_path / "whole.fits", *hdus).read_bytes()
    path = tmp_path / "truncated.fits"
    with fits.open(tmp_path / "whole.fits") as opened:
        places = [hdu.fileinfo()[key] for hdu in list(opened)[1:] for key in ("hdrLoc", "datLoc")]
    for cut in [place + extra for place in places for extra in (100, 1000)] + [len(whole) - 1, 1000]:
        path.write_bytes(whole[:cut])
        refused("truncated|corrupt|missing planes|no mask plane", path)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "rice"])
def test_failing_checksums(tmp_path, compressed):
    hdus = three_planes()
    if compressed:
        hdus = [fits.CompImageHDU(hdu.data, hdu.header, name=hdu.name) for hdu in hdus]
    path = save(tmp_path / "checksum.fits", *hdus, checksum=True)
    (ref,) = find_exposures([path])
    assert read_exposure(ref).image.shape == SHAPE
    whole = bytearray(path.read_bytes())
    with fits.open(path) as opened:
        place = opened[1].fileinfo()
    for where, name in ((place["datLoc"] + 300, "DATASUM"), (whole.index(b"EXPTIME") + 29, "CHECKSUM")):
        corrupt = whole.copy()
        corrupt[where] ^= 1
        path.write_bytes(corrupt)
        refused(f"extension 1 fails its {name}", path, reading=True)
    assert read_exposure(find_exposures([path])[0], verify=False).image.shape == SHAPE


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
    refused("not celestial|cannot be used", written("half.fits", whole | {"CTYPE2": "FREQ"}))
    singular = {"CD1_1": 0.0, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.0}
    refused("singular|cannot be used", written("singular.fits", whole | singular))
    scaleless = {card: value for card, value in whole.items() if not card.startswith("CD")}
    refused("singular", written("scaleless.fits", scaleless))
    refused("singular|cannot be used", written("flat.fits", whole | dict.fromkeys(singular, 7e-5)))
    refused("not supported", written("tnx.fits", whole | {"CTYPE1": "RA---TNX", "CTYPE2": "DEC--TNX"}))


def test_gain_and_read_noise_are_needed_for_a_single_image(tmp_path):
    path = tmp_path / "single.fits"
    refused("no gain .*--gain", single(path, GAIN=None))
    refused("no gain .*--gain", single(path, GAIN=None, GAINA=4.0))
    refused("no read noise .*--readnoise", single(path, RDNOISE=None))
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


# --------------------------------------------------------------------------- patches out


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
    path = write_patch(
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
            path = write_patch(tmp_path / str(day) / "p.fits", patch(), wcs, PATCH_CARDS, ["x"], compress)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert b"DATE" not in written[0]


def test_patches_refuse_planes_of_several_shapes(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        write_patch(tmp_path / "p.fits", {"IMAGE": np.zeros((2, 3)), "MASK": np.zeros((3, 2))}, "", {})
    with pytest.raises(ValueError, match="compress"):
        write_patch(tmp_path / "p.fits", patch(), "", {}, compress="zip")
