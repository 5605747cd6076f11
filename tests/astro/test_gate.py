"""What is taken for true of an exposure is held against its pixels: its noise, and its cosmic rays."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import sep
from astropy.io import fits
from support import headers, warm

from mpiimg.astro.exposure_warnings import exposure_notes, exposure_warnings
from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.photometry import hits
from mpiimg.astro.photometry import stars as photometry
from mpiimg.astro.photometry.noise import noise_ratio
from mpiimg.astro.photometry.overlaps import Catalogue
from mpiimg.astro.photometry.zero_points import find_zero_points
from mpiimg.astro.steps.calibrate import Calibration, _calibrated, inspect
from mpiimg.astro.survey import EXPOSURE_STATS
from mpiimg.errors import BadInput

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"

GAIN, READ_NOISE, SKY = 4.0, 6.0, 400.0
SHAPE = (420, 460)


def star_field(seed=1, shape=SHAPE, fwhm=3.5, count=150, flux=(3.0, 5.0), sky=SKY):
    """Return the counts of a frame with gaussian stars, its places of stars (x, y) and their fluxes."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(20, shape[1] - 20, count), rng.uniform(20, shape[0] - 20, count)
    fluxes = 10 ** rng.uniform(*flux, count)
    sigma = fwhm / np.sqrt(8 * np.log(2))
    expected = np.full(shape, sky)
    for x0, y0, total in zip(x, y, fluxes, strict=True):
        places = zip((y0, x0), shape, strict=True)
        rows, columns = (np.arange(max(int(c) - 25, 0), min(int(c) + 26, n)) for c, n in places)
        along_y = np.exp(-((rows - y0) ** 2) / (2 * sigma**2))
        along_x = np.exp(-((columns - x0) ** 2) / (2 * sigma**2))
        expected[np.ix_(rows, columns)] += total * np.outer(along_y, along_x) / (2 * np.pi * sigma**2)
    electrons = rng.poisson(expected * GAIN) + rng.normal(0, READ_NOISE, shape)
    return (electrons / GAIN).astype(np.float32), expected, (x, y, fluxes)


def written(path, image, variance=None, **cards):
    """Write an exposure, of one image or with planes, and return what its headers say."""
    header = headers.tan(image.shape)
    facts = {"FILTER": "r", "EXPTIME": 90.0, "GAIN": GAIN, "RDNOISE": READ_NOISE, "MAGZERO": 30.0}
    header.update({**facts, **cards})
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, header, name="IMAGE")]
    if variance is not None:
        hdus += [fits.ImageHDU(variance, name="VARIANCE"), fits.ImageHDU(np.zeros(image.shape, "i4"))]
        hdus[-1].name = "MASK"
    fits.HDUList(hdus).writeto(path, overwrite=True)
    (ref,) = find_exposures([path])
    return ref


def calibrated(ref, **settings):
    """Return image, variance, mask, stars and EXPOSURE_STATS by name of a calibrated exposure."""
    image, variance, mask, stars, stats = (plane[0] for plane in _calibrated(ref, Calibration(**settings)))
    return image, variance, mask, stars, dict(zip(EXPOSURE_STATS, stats, strict=True))


def warnings_of(ref, stats):
    return exposure_warnings([ref], np.array([list(stats.values())]))


# --- Noise ------------------------------------------------------------------------------------------------


def smoothed(noise):
    """Noise that neighbours share, of the same deviation per pixel."""
    shared = noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))
    return shared / 2


@pytest.mark.parametrize("stars", [0, 150, 3000])
def test_the_noise_between_sources_is_what_was_drawn(stars):
    image, _, _ = star_field(2, (700, 800), count=stars, flux=(2.5, 4.5))
    nowhere = np.zeros(image.shape, bool)
    variance = np.full(image.shape, SKY / GAIN + (READ_NOISE / GAIN) ** 2, np.float32)
    # The truth of the sky: what is tested is the noise.
    ratio = noise_ratio(image, np.full(image.shape, SKY, np.float32), variance, nowhere)
    assert ratio == pytest.approx(1, abs=0.02 if stars < 1000 else 0.08)
    nine = noise_ratio(image, np.full(image.shape, SKY, np.float32), variance / 9, nowhere)
    assert nine == pytest.approx(3 * ratio, rel=1e-5)


def test_noise_that_neighbours_share_shows_in_bins():
    noise = np.random.default_rng(3).normal(0, 5, (600, 600))
    image, sky = smoothed(noise).astype(np.float32), np.zeros((600, 600), np.float32)
    variance, nowhere = np.full_like(image, 25), np.zeros(image.shape, bool)
    assert np.std(image) == pytest.approx(5, rel=0.01)
    sums = np.add.reduceat(np.add.reduceat(image, range(0, 600, 4), 0), range(0, 600, 4), 1)
    assert noise_ratio(image, sky, variance, nowhere) == pytest.approx(sums.std() / 4 / 5, rel=0.02)


def test_useless_pixels_say_nothing_and_nothing_is_said_without_others():
    image = np.random.default_rng(4).normal(0, 1, (64, 64)).astype(np.float32)
    sky, variance = np.zeros_like(image), np.ones_like(image)
    useless = np.zeros(image.shape, bool)
    before = noise_ratio(image, sky, variance, useless)
    useless[:32], image[:32] = True, 1e6
    assert noise_ratio(image, sky, variance, useless) == pytest.approx(before, rel=0.1)
    assert np.isnan(noise_ratio(image, sky, variance, np.ones_like(useless)))
    assert np.isnan(noise_ratio(image[:3, :3], sky[:3, :3], variance[:3, :3], useless[:3, :3]))


def test_a_frame_without_its_sky_is_calibrated_as_the_one_with_it(tmp_path):
    """Its sky's noise is in no pixel's counts: three quarters of such a frame once were cosmic rays."""
    image, _, _ = star_field()
    with_sky = calibrated(written(tmp_path / "sky.fits", image))
    ref = written(tmp_path / "none.fits", image - np.float32(SKY))
    without = calibrated(ref)
    old = calibrated(ref, noise="given", cosmic_rays="always")
    assert old[4]["cosmic_ray_pixels"] > 0.2 * image.size
    assert abs(without[4]["cosmic_ray_pixels"] - with_sky[4]["cosmic_ray_pixels"]) < 10
    assert without[4]["stars"] == pytest.approx(with_sky[4]["stars"], abs=2) and with_sky[4]["stars"] > 30
    np.testing.assert_allclose(without[1], with_sky[1], rtol=0.02)
    (warning,) = warnings_of(ref, without[4])
    assert "none is" in warning and "--noise given" in warning
    assert not warnings_of(ref, with_sky[4])


def test_a_variance_without_a_plane_is_that_of_the_sky_and_of_photons_above_it(tmp_path):
    image, expected, _ = star_field()
    _, variance, mask, _, stats = calibrated(written(tmp_path / "a.fits", image))
    truth = expected / GAIN + (READ_NOISE / GAIN) ** 2
    good = mask == 0
    bright = good & (expected > 3 * SKY)
    assert np.median(variance[good] / truth[good]) == pytest.approx(1.0, abs=0.05)
    assert np.median(variance[bright] / truth[bright]) == pytest.approx(1.0, abs=0.03)
    assert stats["noise_ratio"] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("wrong", [0.25, 4.0])
def test_a_wrong_gain_is_told_and_does_not_spoil_the_noise_of_the_sky(tmp_path, wrong):
    image, _, _ = star_field()
    ref = written(tmp_path / "a.fits", image, GAIN=GAIN * wrong)
    _, variance, mask, _, stats = calibrated(ref)
    right = calibrated(written(tmp_path / "b.fits", image))
    assert stats["cosmic_ray_pixels"] <= right[4]["cosmic_ray_pixels"] + 10
    assert stats["noise_ratio"] == pytest.approx(np.sqrt(wrong), rel=0.15)
    assert np.median(variance[mask == 0]) == pytest.approx(np.median(right[1][right[2] == 0]), rel=0.1)
    assert "gain is wrong" in warnings_of(ref, stats)[0]


@pytest.mark.parametrize(("factor", "said"), [(1e-2, "is wrong"), (0.5, "is not that of"), (1e6, "is wrong")])
def test_a_variance_plane_is_scaled_to_the_noise(tmp_path, factor, said):
    image, expected, _ = star_field()
    truth = (expected / GAIN + (READ_NOISE / GAIN) ** 2).astype(np.float32)
    ref = written(tmp_path / "a.fits", image, np.float32(factor) * truth)
    _, variance, _, _, stats = calibrated(ref)
    right = calibrated(written(tmp_path / "b.fits", image, truth))
    assert right[4]["noise_scale"] == 1 and (right[1] == truth).all()
    np.testing.assert_allclose(variance, truth, rtol=0.04)
    assert stats["noise_scale"] == stats["noise_ratio"] == pytest.approx(factor**-0.5, rel=0.02)
    assert abs(stats["cosmic_ray_pixels"] - right[4]["cosmic_ray_pixels"]) < 20
    (warning,) = warnings_of(ref, stats)
    assert f"plane of a {said}" in warning
    given = calibrated(ref, noise="given")
    assert (given[1] == read_exposure(ref).variance).all() and np.isnan(given[4]["noise_ratio"])


def test_a_frame_without_any_noise_keeps_its_variance(tmp_path):
    image = np.full(SHAPE, 100, np.float32)
    for variance in (None, np.full(SHAPE, 7, np.float32)):
        ref = written(tmp_path / "a.fits", image, variance)
        _, found, _, _, stats = calibrated(ref)
        assert (found == read_exposure(ref).variance).all() and stats["noise_scale"] == 1


# --- Real frames ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", "abcde")
def test_real_stamps_without_their_sky_keep_their_pixels(letter):
    """49 to 74 % of them once were cosmic rays; astroscrappy, with the sky put back, finds few."""
    path = DATA / "sfft-decam" / f"DEC-OBS04{letter}.mini.fits"
    if not path.exists():
        pytest.skip(f"NO REAL FRAME: {path} is not there")
    astroscrappy = pytest.importorskip("astroscrappy")
    (ref,) = find_exposures([path], ReadOptions(zero_point=25, no_checksums=True))
    image, variance, mask, _, stats = calibrated(ref)
    raw = read_exposure(ref)
    nowhere = np.zeros(raw.image.shape, bool)
    noise = photometry.sky_background(raw.image, nowhere).noise
    # They have been resampled: sums over pixels have more noise than pixels say.
    assert 0.95 < np.sqrt(np.median(variance)) / noise < 1.3
    level = noise**2 * ref.gain - ref.readnoise**2 / ref.gain
    struck, _ = astroscrappy.detect_cosmics(
        raw.image + np.float32(level),
        gain=ref.gain,
        readnoise=ref.readnoise,
        satlevel=np.inf,
        sepmed=True,
        cleantype="medmask",
    )
    found = (mask & bits("CR")) != 0
    assert stats["cosmic_ray_pixels"] < 0.002 * image.size
    assert np.count_nonzero(found ^ struck) < 0.001 * image.size


# --- Cosmic rays ------------------------------------------------------------------------------------------


def with_tracks(image, count=60, seed=5):
    """Return an image with tracks of cosmic rays, and where they are."""
    rng = np.random.default_rng(seed)
    image, struck = image.copy(), np.zeros(image.shape, bool)
    for y, x, angle in zip(*rng.uniform(10, 400, (2, count)), rng.uniform(0, np.pi, count), strict=True):
        steps = np.arange(rng.integers(1, 12))
        rows, columns = (y + steps * np.sin(angle)).astype(int), (x + steps * np.cos(angle)).astype(int)
        inside = (rows > 8) & (rows < 410) & (columns > 8) & (columns < 450)
        image[rows[inside], columns[inside]] += rng.uniform(200, 3000)
        struck[rows[inside], columns[inside]] = True
    return image, struck


def test_how_many_hits_there_may_be():
    """At least a hundredth of the pixels, and a tenth at most; in between as long as the shutter was open."""
    shares = [hits.most_hits(seconds) for seconds in (None, 0.0, 90.0, 900.0, 1e5)]
    assert shares == pytest.approx([0.01, 0.01, 0.01, 0.045, 0.1])


def test_more_hits_than_can_be_are_dropped_and_the_exposure_says_so(tmp_path):
    image, _, _ = star_field()
    ref = written(tmp_path / "a.fits", image - np.float32(SKY))
    found, _, mask, _, stats = calibrated(ref, noise="given")
    assert stats["cosmic_ray_search"] == hits.TOO_MANY and stats["cosmic_ray_pixels"] == 0
    assert stats["cosmic_ray_share"] > 0.2 and not (mask & bits("CR", "INTRP")).any()
    never = calibrated(ref, noise="given", no_cosmic_rays=True)
    assert (found == never[0]).all() and never[4]["cosmic_ray_search"] == hits.OFF
    (warning,) = warnings_of(ref, stats)
    assert "more than can be" in warning and "--cosmic-rays always" in warning
    assert not warnings_of(ref, never[4])


@pytest.mark.parametrize("count", [8, 60, 150, 1100])
@pytest.mark.parametrize("fwhm", [2.2, 3.5])
def test_cosmic_rays_are_found_among_few_stars_and_many(tmp_path, fwhm, count):
    """Up to 300 stars per square arcminute of 0.26 arcsec pixels the search is not dropped."""
    image, _, _ = star_field(6, fwhm=fwhm, count=count, flux=(2.0, 4.0) if count > 1000 else (3.0, 5.0))
    image, struck = with_tracks(image)
    ref = written(tmp_path / "a.fits", image)
    _, _, mask, _, stats = calibrated(ref)
    assert stats["cosmic_ray_search"] == hits.SEARCHED and not warnings_of(ref, stats)
    found = (mask & bits("CR")) != 0
    assert np.count_nonzero(found & struck) > (0.9 if count < 1000 else 0.5) * np.count_nonzero(struck)


@pytest.mark.parametrize("fwhm", [1.2, 1.5])
def test_stars_as_sharp_as_cosmic_rays_keep_their_light_unless_asked(tmp_path, fwhm):
    image, _, (x, y, flux) = star_field(7, fwhm=fwhm, flux=(3.5, 5))
    ref = written(tmp_path / "a.fits", image)
    found, _, mask, _, stats = calibrated(ref)
    assert stats["cosmic_ray_search"] in (hits.TOO_MANY, hits.ON_STARS, hits.TOO_SHARP)
    assert not (mask & bits("CR")).any() and len(warnings_of(ref, stats)) == 1
    repaired = calibrated(ref, cosmic_rays="always")
    assert repaired[4]["cosmic_ray_search"] == hits.SEARCHED
    light = [
        np.median(sep.sum_circle(np.ascontiguousarray(plane), x, y, 4.0)[0] / flux)
        for plane in (found, repaired[0])
    ]
    assert light[0] == pytest.approx(1, abs=0.02) and light[1] < 0.9


def test_what_contradicts_itself_about_cosmic_rays_is_refused():
    with pytest.raises(BadInput, match="contradict"):
        inspect(None, Calibration(cosmic_rays="always", no_cosmic_rays=True))


def test_the_brightest_star_of_a_real_frame_keeps_its_core():
    """Its PSF is two pixels wide: of 144 pixels that were once repaired nearly all were of that one star."""
    paths = sorted((DATA / "nircam").glob("*_stamp.fits"))
    if not paths:
        pytest.skip(f"NO REAL FRAME: {DATA / 'nircam'} has none")
    options = ReadOptions(weight_file="{stem}.noise.fits", weight_file_is="error")
    (ref,) = find_exposures(paths[:1], options)
    raw = read_exposure(ref)
    image, _, mask, _, stats = calibrated(ref)
    peak = np.unravel_index(np.argmax(np.where(raw.mask == 0, raw.image, 0)), image.shape)
    assert stats["cosmic_ray_search"] == hits.ON_STARS
    assert mask[peak] == 0 and image[peak] == pytest.approx(raw.image[peak] - stats["sky"], abs=0.01)
    _, _, mask, _, _ = calibrated(ref, cosmic_rays="always")
    assert mask[peak] & bits("CR")


# --- Little of anything -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [6, 10])
@pytest.mark.parametrize("seed", [0, 1])
def test_small_frames_find_their_stars_and_a_fwhm(tmp_path, count, seed):
    image, _, (x, y, _) = star_field(seed, shape=(150, 170), count=count, flux=(3.5, 5))
    stats = calibrated(written(tmp_path / "a.fits", image))[4]
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 1e3 * np.eye(count)
    alone = np.count_nonzero(apart.min(axis=1) > 25)
    assert stats["fwhm"] == pytest.approx(3.5, rel=0.05)
    assert min(3, alone) <= stats["stars"] <= count


def test_an_exposure_that_lacks_much_is_named(tmp_path):
    image, _, _ = star_field(8, count=0)
    image[:, :150] = np.nan
    ref = written(tmp_path / "a.fits", image)
    stats = calibrated(ref)[4]
    assert stats["no_data"] == pytest.approx(150 / 460, abs=0.001)
    assert "32.6 % of the pixels of a are bad or without data" in warnings_of(ref, stats)[0]
    assert "too few stars for a FWHM in a" in exposure_notes([ref], np.array([list(stats.values())]))[0]


def test_an_exposure_alone_without_a_zero_point_has_a_relative_one():
    stars = Catalogue(*np.zeros((3, 5)), np.full(5, 0.01))
    points, kinds = find_zero_points([stars], [None])
    assert points.tolist() == [27.0] and kinds == ["RELATIVE"]
    for cards, reference in (([25.0], None), ([None], stars)):
        _, kinds = find_zero_points([stars], cards, reference)
        assert kinds != ["RELATIVE"]


@pytest.mark.tool
@pytest.mark.parametrize(
    ("bad", "why"), [(0.0, "nothing is above --threshold"), (0.5, "the coadds hold no data")]
)
def test_an_empty_catalogue_says_why(tmp_path, bad, why):
    """Pixels that are bad in grains leave no whole footprint of Lanczos-3 anywhere."""
    image, expected, _ = star_field(9, shape=(120, 130), count=0)
    path = tmp_path / "in.fits"
    written(path, image, (expected / GAIN + (READ_NOISE / GAIN) ** 2).astype(np.float32))
    with fits.open(path, mode="update") as hdus:
        hdus["MASK"].data[np.random.default_rng(1).random(image.shape) < bad] = bits("BAD")
    out = tmp_path / "out"
    said = warm.run_tool("mpiimg-astro", path, "--out", out).stderr
    assert f"the catalogue is empty: {why}" in said
    assert ("% of the pixels of in are bad or without data" in said) == (bad > 0)
