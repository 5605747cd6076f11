"""Sky and stars of frames against simulations whose truth is known; from pixels to zero points."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
from support import headers

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.photometry import stars as photometry
from mpiimg.astro.photometry import zero_points
from mpiimg.astro.photometry.overlaps import Catalogue
from mpiimg.astro.photometry.stars import StarSettings
from mpiimg.astro.sky.wcs import wcs_text
from mpiimg.astro.steps import calibrate
from mpiimg.errors import BadInput

DECAM = pathlib.Path(__file__).parents[3] / "shared" / "data" / "decam-testcase3"

FWHM = 3.4
SKY = 200.0


def sky_truth(shape):
    """A sky that brightens by a tenth across the frame."""
    return SKY * (1 + 0.1 * np.arange(shape[1]) / shape[1]) + np.zeros(shape)


def gaussian_stars(x, y, flux, fwhm, shape):
    """Flux per pixel of gaussian stars; FWHM in pixels."""
    sigma = fwhm / np.sqrt(8 * np.log(2))
    image = np.zeros(shape)
    for x0, y0, total in zip(x, y, flux, strict=True):
        rows = np.s_[max(int(y0) - 25, 0) : int(y0) + 26]
        columns = np.s_[max(int(x0) - 25, 0) : int(x0) + 26]
        along_y = np.exp(-((np.arange(shape[0])[rows] - y0) ** 2) / (2 * sigma**2))
        along_x = np.exp(-((np.arange(shape[1])[columns] - x0) ** 2) / (2 * sigma**2))
        image[rows, columns] += total * np.outer(along_y, along_x) / (2 * np.pi * sigma**2)
    return image


def spread(count, shape, rng):
    """Places on a shuffled, jittered grid: no two stars meet."""
    side = int(np.ceil(np.sqrt(count)))
    row, column = np.divmod(rng.permutation(side**2)[:count], side)
    jitter = rng.uniform(0.35, 0.65, (2, count))
    return (column + jitter[0]) * shape[1] / side, (row + jitter[1]) * shape[0] / side


class Frame:
    """A simulated frame in electrons with its truth."""

    def __init__(self, seed=0, count=196, shape=(620, 660), fwhm=FWHM):
        rng = np.random.default_rng(seed)
        self.x, self.y = spread(count, shape, rng)
        self.flux = 10 ** rng.uniform(3.4, 5.3, count)
        self.sky = sky_truth(shape)
        expected = gaussian_stars(self.x, self.y, self.flux, fwhm, shape) + self.sky
        self.image = rng.normal(expected, np.sqrt(expected)).astype(np.float32)
        self.variance = expected.astype(np.float32)
        self.masked, self.saturated = np.zeros((2, *shape), dtype=bool)

    def measure(self, **settings):
        return photometry.measure_frame(
            self.image, self.variance, self.masked, self.saturated, StarSettings(**settings)
        )

    def nearest(self, stars):
        """The true star of each measured one, and how far it is."""
        distance = np.hypot(stars.x[:, None] - self.x, stars.y[:, None] - self.y)
        return distance.argmin(axis=1), distance.min(axis=1)


@pytest.fixture(scope="module")
def frame():
    return Frame()


@pytest.fixture(scope="module")
def measured(frame):
    return frame.measure()


# --- Sky ----------------------------------------------------------------------------------------------------


def test_sky_is_found_under_stars(frame, measured):
    sky, _ = measured
    assert sky.map.dtype == np.float32 and sky.map.shape == frame.image.shape
    error = sky.map - frame.sky
    # The noise is 14.5 a pixel, 0.02 of a mean over all of them, about 0.4 of sep's mode of a mesh.
    assert abs(error.mean()) < 0.2 and error.std() < 0.5
    assert sky.level == pytest.approx(np.median(frame.sky), abs=0.3)
    assert sky.noise == pytest.approx(np.sqrt(1.05 * SKY), rel=0.02)
    # Without leaving the sources out, their wings count as sky.
    once = photometry.sky_background(frame.image, frame.masked)
    assert abs(error.mean()) < abs((once.map - frame.sky).mean()) / 2


def test_masked_pixels_say_nothing_of_the_sky():
    rng = np.random.default_rng(1)
    image = rng.normal(100, 5, (200, 260)).astype(np.float32)
    clean = photometry.sky_background(image, np.zeros(image.shape, bool))
    spoilt, masked = image.copy(), np.zeros(image.shape, bool)
    spoilt[:90, :100], masked[:90, :100] = 1e6, True
    spoilt[150, ::3] = np.nan
    spoilt[170, ::3] = np.inf
    sky = photometry.sky_background(spoilt, masked)
    assert np.isfinite(sky.map).all()
    assert np.abs(sky.map - clean.map).max() < 1.5
    assert sky.level == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize("shape", [(51, 41), (127, 400), (400, 127)])
def test_a_frame_of_less_than_two_meshes_has_a_constant_sky(shape):
    image = np.random.default_rng(2).normal(50, 3, shape).astype(np.float32)
    image[10:14, 10:14] += 1000
    masked = np.zeros(shape, bool)
    masked[20] = True
    image[20] = -1e5
    sky = photometry.sky_background(image, masked)
    assert np.unique(sky.map).size == 1
    # The error of a median.
    assert sky.level == pytest.approx(50, abs=5 * 1.25 * 3 / np.sqrt(image.size))
    assert sky.noise == pytest.approx(3, rel=0.1)
    two = photometry.sky_background(image.repeat(4, 0).repeat(4, 1), masked.repeat(4, 0).repeat(4, 1))
    assert np.unique(two.map).size > 1


@pytest.mark.parametrize("shape", [(40, 40), (200, 200)])
def test_a_frame_without_a_pixel_is_refused(shape):
    image = np.ones(shape, np.float32)
    with pytest.raises(BadInput, match="all pixels"):
        photometry.sky_background(image, np.ones(shape, bool))
    with pytest.raises(BadInput, match="all pixels"):
        photometry.sky_background(image * np.nan, np.zeros(shape, bool))


def test_clipped_median_ignores_outliers_and_takes_equal_values():
    assert photometry.clipped_median(np.full(7, 0.1)) == (pytest.approx(0.1), pytest.approx(0, abs=1e-12))
    values = np.r_[np.random.default_rng(0).normal(10, 1, 4000), np.full(400, 1e4)]
    assert photometry.clipped_median(values)[0] == pytest.approx(10, abs=0.1)
    assert np.isnan(photometry.clipped_median(np.array([]))).all()


def test_rounding_does_not_reject_equal_values():
    centre, noise = photometry.clipped_median(np.array([1.0] * 20 + [np.nextafter(1, 2)]))
    assert centre == 1 and noise > 0, "the last one, larger by a bit, is still among them"


def flux_bias(frame, found):
    """Mean relative error of total fluxes, and the standard deviation it has from noise and correction."""
    true, _ = frame.nearest(found.stars)
    flux, error = (value * found.correction for value in (found.stars.flux, found.stars.flux_error))
    weight = (flux / error) ** 2
    bias = np.average(flux / frame.flux[true] - 1, weights=weight)
    return bias, np.hypot(weight.sum() ** -0.5, found.correction_error / found.correction)


def test_source_pixels_are_ellipses_of_the_objects(frame):
    sky = photometry.sky_background(frame.image, frame.masked)
    objects = photometry.detect_sources(frame.image - sky.map, frame.variance, frame.masked)
    pixels = photometry.source_pixels(objects, frame.image.shape, 6.0)
    assert 0.03 < pixels.mean() < 0.3
    # What is left of the stars is far below the noise of a pixel.
    assert (frame.variance - frame.sky)[~pixels].max() < 0.15 * np.sqrt(SKY)
    assert not photometry.source_pixels(objects[:0], (5, 6)).any()


# --- Stars --------------------------------------------------------------------------------------------------


def test_fluxes_are_unbiased_and_their_errors_right(frame, measured):
    _, found = measured
    stars = found.stars
    true, distance = frame.nearest(stars)
    assert len(np.unique(true)) == len(true) > 0.9 * len(frame.x)
    assert distance.max() < 0.3 and np.sqrt(np.mean(distance**2)) < 0.06
    pull = (stars.flux * found.correction - frame.flux[true]) / (stars.flux_error * found.correction)
    assert pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * pull.size))
    bias, allowance = flux_bias(frame, found)
    assert abs(bias) < 3 * allowance < 0.005


def before_pixels(fwhm):
    """The FWHM of a Gaussian that pixels of a frame here have taken the mean of: they have its values."""
    return np.sqrt(fwhm**2 - photometry.PIXEL_FWHM_SQUARED)


def test_fwhm_and_aperture_correction_are_those_of_a_gaussian(measured):
    _, found = measured
    assert found.fwhm == pytest.approx(before_pixels(FWHM), rel=0.01)
    assert found.half_light_diameter == pytest.approx(FWHM, rel=0.01)
    # Exact sums over circles see the star spread over a pixel: 1/12 more variance.
    spread_variance = FWHM**2 / (8 * np.log(2)) + 1 / 12
    light = 1 - np.exp(-(found.fwhm**2) / (2 * spread_variance))
    assert found.correction == pytest.approx(1 / light, abs=3 * found.correction_error)
    assert found.correction_count == found.stars.isolated.sum() > 150
    assert 0 < found.correction_error < 0.002


@pytest.mark.parametrize("fwhm", [2.4, 6.0])
def test_seeing_changes_the_apertures_and_not_the_flux(fwhm):
    frame = Frame(seed=3, count=64, shape=(512, 512), fwhm=fwhm)
    _, found = frame.measure()
    assert found.fwhm == pytest.approx(before_pixels(fwhm), rel=0.01)
    bias, allowance = flux_bias(frame, found)
    assert abs(bias) < 3 * allowance < 0.008


def test_saturated_masked_and_blended_stars_are_left_out(frame):
    spoilt = Frame()
    _, before = spoilt.measure()
    order = np.argsort(-spoilt.flux)
    saturated, masked, blended, hit = order[:4], order[10:14], order[20:24], order[30:34]
    for one in saturated:
        x, y = round(spoilt.x[one]), round(spoilt.y[one])
        spoilt.saturated[y - 1 : y + 2, x - 1 : x + 2] = True
    for one in masked:
        spoilt.masked[round(spoilt.y[one]) + 1] = True
        spoilt.image[round(spoilt.y[one]) + 1] = np.nan
    companion = gaussian_stars(
        spoilt.x[blended] + 5, spoilt.y[blended], spoilt.flux[blended] / 3, FWHM, spoilt.image.shape
    )
    spoilt.image += companion.astype(np.float32)
    # A pixel that is wrong and not known to be: the profile is too sharp for a star.
    spoilt.image[np.rint(spoilt.y[hit]).astype(int), np.rint(spoilt.x[hit]).astype(int)] += (
        3 * spoilt.flux[hit]
    )
    _, found = spoilt.measure()
    true, distance = spoilt.nearest(found.stars)
    true = true[distance < 2]
    assert np.isin(np.r_[saturated, masked, blended, hit], spoilt.nearest(before.stars)[0]).all()
    assert not np.isin(np.r_[saturated, masked, hit], true).any()
    assert not np.isin(blended, true[found.stars.isolated[distance < 2]]).any()
    assert found.correction == pytest.approx(before.correction, abs=0.004)


def test_a_neighbour_counts_from_a_hundredth_of_a_star_on():
    x, y, flux = np.array([0.0, 2.0, 20.0, 22.0]), np.zeros(4), np.array([100.0, 5.0, 100.0, 0.5])
    assert photometry._isolated(x, y, flux, 3.0, 0.01).tolist() == [False, False, True, False]


def test_galaxies_do_not_set_the_fwhm():
    """As many extended sources as stars: the FWHM is that of the stars, and only these are returned."""
    frame = Frame(seed=5, count=100, shape=(600, 600))
    rng = np.random.default_rng(6)
    blobs = np.arange(100) % 2 == 0
    frame.image[:] = 0
    for index in range(100):
        fwhm = FWHM * rng.uniform(1.5, 3.0) if blobs[index] else FWHM
        frame.image += gaussian_stars(
            frame.x[[index]], frame.y[[index]], frame.flux[[index]], fwhm, frame.image.shape
        ).astype(np.float32)
    frame.variance = (frame.image + frame.sky).astype(np.float32)
    frame.image = rng.normal(frame.variance, np.sqrt(frame.variance)).astype(np.float32)
    _, found = frame.measure()
    true, _ = frame.nearest(found.stars)
    assert found.fwhm == pytest.approx(FWHM, rel=0.03)
    assert (~blobs)[true].mean() > 0.95 and len(true) > 35


def test_an_empty_frame_has_no_stars_and_says_so():
    rng = np.random.default_rng(7)
    image = rng.normal(100, 10, (150, 150)).astype(np.float32)
    nowhere = np.zeros(image.shape, bool)
    _, found = photometry.measure_frame(image, np.full_like(image, 100), nowhere, nowhere)
    assert len(found.stars.x) == 0 and found.correction_count == 0
    assert np.isnan([found.fwhm, found.correction, found.correction_error]).all()


def test_a_centroid_that_goes_astray_beside_a_neighbour_is_left_where_it_was_found(frame):
    image = gaussian_stars([50, 55.5], [50, 50], [1e5, 2e3], FWHM, (100, 100)).astype(np.float32)
    objects = np.zeros(2, [("x", "f8"), ("y", "f8")])
    objects["x"], objects["y"] = [50, 55.5], 50
    nowhere = np.zeros(image.shape, bool)
    stars, _ = photometry._measure_apertures(
        image, np.ones_like(image), objects, nowhere, FWHM, StarSettings()
    )
    assert stars.x[0] != 50 and abs(stars.x[0] - 50) < 0.05
    assert (stars.x[1], stars.y[1]) == (55.5, 50)


def test_a_star_with_something_masked_in_its_large_aperture_is_not_isolated():
    spoilt = Frame()
    one = np.argsort(-spoilt.flux)[3]
    _, before = spoilt.measure()
    spoilt.masked[round(spoilt.y[one]), round(spoilt.x[one] + 2 * FWHM)] = True
    _, after = spoilt.measure()
    for found, isolated in ((before, True), (after, False)):
        true, _ = spoilt.nearest(found.stars)
        assert found.stars.isolated[true == one].tolist() == [isolated]


def stars_of_ratio(ratio, error, large_error):
    """Isolated stars with a flux of 1 in the small aperture."""
    nothing = np.zeros(len(ratio))
    ones = np.ones(len(ratio))
    fields = (nothing, nothing, ones, ones * error, np.asarray(ratio), ones * large_error, nothing)
    return photometry.Stars(*fields, np.ones(len(ratio), bool))


def test_an_aperture_correction_is_weighted_by_the_noise_between_the_apertures():
    """The noise inside the small aperture is in both fluxes."""
    error = np.array([0.3] * 3 + [0.01] * 5)
    large_error = np.array([0.3001] * 3 + [0.2] * 5)
    stars = stars_of_ratio([1.1] * 3 + [1.2] * 5, error, large_error)
    assert photometry._aperture_correction(stars, 5)[0] == 1.1


def test_one_bright_star_does_not_decide_the_aperture_correction():
    """Stars have not quite the same shape all over a frame."""
    stars = stars_of_ratio([1.3] + [1.1] * 10, 0.0, [1e-8] + [0.005] * 10)
    assert photometry._aperture_correction(stars, 5)[0] == 1.1


def test_an_outlier_does_not_count_in_the_error_of_the_aperture_correction():
    ratio = 1.1 + 1e-3 * np.linspace(-1, 1, 21)
    plain = photometry._aperture_correction(stars_of_ratio(ratio, 0.0, 0.01), 5)
    ratio[0] = 3
    hit = photometry._aperture_correction(stars_of_ratio(ratio, 0.0, 0.01), 5)
    assert hit[1] < 2 * plain[1] < 2e-3


def test_sources_that_cover_a_frame_leave_it_the_sky_of_the_first_pass():
    shape = (40, 40)
    image = gaussian_stars([20], [20], [1e6], 16, shape).astype(np.float32)
    image += np.random.default_rng(1).normal(100, 1, shape).astype(np.float32)
    nowhere = np.zeros(shape, bool)
    variance = np.ones(shape, np.float32)
    sky, _ = photometry.measure_frame(image, variance, nowhere, nowhere)
    objects = photometry.detect_sources(image - sky.map, variance, nowhere)
    assert photometry.source_pixels(objects, shape).all()
    assert sky.level == photometry.sky_background(image, nowhere).level


def test_magnitudes_and_the_factor_to_the_common_zero_point():
    value, error = photometry.star_magnitudes(np.array([100.0, 0.0, -1.0]), np.full(3, 1.0), 2.0, 25.0)
    assert value[0] == pytest.approx(25 - 2.5 * np.log10(200))
    assert error[0] == pytest.approx(0.010857, rel=1e-4)
    assert np.isnan(value[1:]).all() and np.isnan(error[1:]).all()
    # The same star, measured in pixels brought to the common zero point.
    scaled, _ = photometry.star_magnitudes(100 * photometry.flux_scale(25.0), 1.0, 2.0, ZERO_POINT)
    assert scaled == pytest.approx(value[0])


@pytest.mark.skipif(not DECAM.is_dir(), reason="the real DECam cut-outs (../shared/data) are not here")
def test_real_cutouts_have_a_sky_and_fail_softly_on_stars():
    from astropy.io import fits

    seen = 0
    for path in sorted(DECAM.rglob("*.fits*")):
        with fits.open(path) as planes:
            images = [plane.data for plane in planes if plane.data is not None and np.ndim(plane.data) == 2]
        for image in images:
            image = np.ascontiguousarray(image, np.float32)
            if min(image.shape) >= 128 or not np.isfinite(image).any() or np.ptp(image) == 0:
                continue
            nowhere = np.zeros(image.shape, bool)
            variance = np.full_like(image, max(photometry.clipped_median(image)[1] ** 2, 1e-12))
            sky, found = photometry.measure_frame(image, variance, nowhere, nowhere)
            assert np.unique(sky.map).size == 1
            assert np.isnan(found.fwhm) or found.fwhm > 0
            seen += 1
    assert seen > 0


def test_measured_frames_agree_on_zero_points():
    """From pixels to offsets: one field, three exposures through different air."""
    truth = np.array([0.0, -0.25, 0.15])
    exposures = []
    for k, gain in enumerate(truth):
        frame = Frame(seed=20, count=100, shape=(450, 450))
        rng = np.random.default_rng(30 + k)
        expected = (frame.variance - frame.sky) * 10 ** (0.4 * gain) + frame.sky
        frame.variance = expected.astype(np.float32)
        frame.image = rng.normal(expected, np.sqrt(expected)).astype(np.float32)
        _, found = frame.measure()
        value, error = photometry.star_magnitudes(found.stars.flux, found.stars.flux_error, found.correction)
        exposures.append(Catalogue(found.stars.x / 3600, found.stars.y / 3600, value, error))
    points, _ = zero_points.find_zero_points(exposures, [None] * 3)
    # A brighter exposure has smaller magnitudes, and needs a larger offset; corrections add 0.001 mag.
    np.testing.assert_allclose(points - 27, truth - truth.mean(), atol=0.006)


def test_without_an_aperture_correction_magnitudes_are_those_of_the_large_aperture(measured):
    """So that an exposure of few stars is on the scale of the others, which are corrected to it."""
    wcs = SimpleNamespace(
        wcs="CTYPE1  = 'RA---TAN'\nCTYPE2  = 'DEC--TAN'\nCRVAL1  = 10.0\nCRVAL2  = 2.0\n"
        "CRPIX1  = 1.0\nCRPIX2  = 1.0\nCD1_1   = -1e-4\nCD1_2   = 0.0\nCD2_1   = 0.0\nCD2_2   = 1e-4"
    )
    _, found = measured
    corrected, count = calibrate._star_table(found, wcs)
    alone, same = calibrate._star_table(found._replace(correction=np.nan), wcs)
    assert count == same > 20
    apart = (alone - corrected)[:count, 2]
    assert abs(np.median(apart)) < 0.005
    assert (alone[:count, 3] >= corrected[:count, 3]).all()


def test_the_brightest_isolated_stars_of_an_exposure_are_kept(measured, monkeypatch):
    _, found = measured
    stars = found.stars._replace(isolated=found.stars.isolated.copy())
    order = np.argsort(-np.where(stars.isolated, stars.flux, 0))
    stars.isolated[order[1]] = False
    monkeypatch.setattr(calibrate, "MAX_STARS", 3)
    ref = SimpleNamespace(wcs=wcs_text(headers.tan((620, 660))))
    table, count = calibrate._star_table(found._replace(stars=stars), ref)
    chosen = np.sort(order[[0, 2, 3]])
    magnitude, _ = photometry.star_magnitudes(stars.flux[chosen], 1.0, found.correction)
    assert count == 3 and np.array_equal(table[:, 2], magnitude)


def test_edges_that_glow_say_nothing_of_the_sky(monkeypatch):
    shape = (100, 100)
    image = np.random.default_rng(2).normal(200, 3, shape).astype(np.float32)
    mask = np.zeros(shape, np.int32)
    image[:60] += 500
    mask[:60] = bits("EDGE")
    exposure = SimpleNamespace(image=image, variance=np.full(shape, 9, np.float32), mask=mask)
    monkeypatch.setattr(calibrate, "read_exposure", lambda ref: exposure)
    ref = SimpleNamespace(
        saturate=None, variance="a plane", exptime=None, wcs=wcs_text(headers.tan(shape)), shape=shape
    )
    *_, stats = calibrate._calibrated(ref, calibrate.Calibration())
    assert stats[0, 1] == pytest.approx(200, abs=1)


def test_the_time_of_a_calibration_is_that_of_cosmic_rays_sky_and_stars(monkeypatch):
    seen = []
    measure = photometry.measure_frame
    monkeypatch.setattr(
        photometry, "measure_frame", lambda image, *rest: seen.append(image.size) or measure(image, *rest)
    )
    work, pixels = calibrate.sample()
    work()
    assert seen == [pixels]
