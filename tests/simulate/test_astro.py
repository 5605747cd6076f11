"""The simulated survey: a pure function of its parameters, and as its truth says."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import sep
from astropy.io import fits
from astropy.wcs import WCS

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.sky.wcs import parse_wcs
from mpiimg.simulate.astro import GAP, SimulatedSurvey
from mpiimg.simulate.profiles import PIXEL_SCALE
from mpiimg.simulate.sensor import bleed, scene
from mpiimg.simulate.sky import plane_to_sky, sky_to_plane
from mpiimg.simulate.survey_files import LAYOUTS, files, truth_files

SMALL = SimulatedSurvey(visits=3, sensors=4, shape=(300, 320), seed=11, magnitudes=(16.0, 24.0))
#: Nothing but sky and noise.
EMPTY = dataclasses.replace(SMALL, density=0.0, cosmic_rays=0.0, bad_columns=0, edge=0)


def planes(frame):
    return frame.image, frame.variance, frame.mask, frame.cosmic_rays


def digest(frame):
    """Return a checksum of everything that an exposure is."""
    data = b"".join(plane.tobytes() for plane in planes(frame)) + frame.header.tostring().encode()
    return hashlib.sha256(data).hexdigest()


# --------------------------------------------------------------------------- the same again


def test_an_exposure_does_not_depend_on_what_was_made_before():
    first = {(v, s): digest(SMALL.exposure(v, s)) for v in range(2) for s in range(2)}
    dataclasses.replace(SMALL, seed=12).exposure(0, 0)
    again = dataclasses.replace(SMALL)
    for key in reversed(first):
        assert digest(again.exposure(*key)) == first[key]
    assert len(set(first.values())) == 4


def test_an_exposure_is_the_same_in_another_process():
    script = (
        "import sys; sys.path.insert(0, 'tests'); import simulate.test_astro as t;"
        "print(t.digest(t.SMALL.exposure(1, 2)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == digest(SMALL.exposure(1, 2)), done.stderr


def test_another_seed_is_another_sky():
    one, other = SMALL.catalogue(), dataclasses.replace(SMALL, seed=12).catalogue()
    assert not np.isin(one["ra"], other["ra"]).any()
    assert SMALL.visit(0) != dataclasses.replace(SMALL, seed=12).visit(0)


def test_more_visits_or_sensors_leave_the_noise_as_it_is():
    more = dataclasses.replace(EMPTY, visits=9)
    assert digest(more.exposure(1, 2)) == digest(EMPTY.exposure(1, 2))


# --------------------------------------------------------------------------- sky and noise


def test_sky_and_noise():
    """Mean, variance and skewness of the pixels are those of Poisson counts and a normal readout."""
    survey = dataclasses.replace(EMPTY, shape=(700, 800), sensors=1, readnoise=5.0)
    facts = survey.visit(1)
    assert facts.sky == pytest.approx(survey.sky, rel=0.5)
    image = survey.exposure(1, 0).image.astype(float)
    sky = scene(survey, 1, 0).astype(float)
    assert np.median(sky) == pytest.approx(facts.sky, rel=0.01)
    noise = image - sky
    count = noise.size
    variance = sky / survey.gain + (survey.readnoise / survey.gain) ** 2
    z = noise / np.sqrt(variance)
    assert abs(z.mean()) < 4 / np.sqrt(count)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / count)
    electrons = sky.mean() * survey.gain
    skewness = electrons / (electrons + survey.readnoise**2) ** 1.5
    assert abs(scipy.stats.skew(z.ravel()) - skewness) < 4 * np.sqrt(6 / count)
    # White: neighbours know nothing of each other.
    for shifted in (z[1:] * z[:-1], z[:, 1:] * z[:, :-1]):
        assert abs(shifted.mean()) < 4 / np.sqrt(count)
    # And not correlated with another sensor's or visit's.
    other = dataclasses.replace(survey, sensors=2).exposure(1, 1).image - scene(
        dataclasses.replace(survey, sensors=2), 1, 1
    )
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(count)


def test_counts_are_near_poisson_also_under_a_dark_sky():
    """The distribution against numpy's own Poisson deviates, at the darkest sky that is allowed."""
    survey = dataclasses.replace(
        EMPTY, shape=(400, 500), sensors=1, sky=25.0, gain=2.2, readnoise=3.0, rotation=0.0
    )
    mean = scene(survey, 0, 0).astype(float) * survey.gain
    random = np.random.default_rng(1)
    true = random.poisson(mean) + random.normal(0, 3, mean.shape)
    found = survey.exposure(0, 0).image * survey.gain
    assert scipy.stats.ks_2samp((found - mean).ravel(), (true - mean).ravel()).pvalue > 0.001


def test_variance_plane_is_what_gain_and_read_noise_say():
    frame = SMALL.exposure(0, 1)
    model = np.maximum(frame.image, 0).astype(float) / SMALL.gain + (SMALL.readnoise / SMALL.gain) ** 2
    np.testing.assert_allclose(frame.variance, model, rtol=1e-6)


def test_the_sky_slopes_over_the_camera_and_not_over_each_sensor():
    survey = dataclasses.replace(EMPTY, sensors=4)
    slope_x, slope_y, twist = survey.visit(0).gradient
    half = survey.radius * 3600 / PIXEL_SCALE
    for sensor in range(4):
        light = scene(survey, 0, sensor)
        x0, y0 = survey.sensor_center(sensor)
        for row, column in ((0, 0), (10, 300), (299, 319), (150, 160)):
            x, y = (column - 159.5 + x0) / half, (row - 149.5 + y0) / half
            expected = survey.visit(0).sky * (1 + slope_x * x + slope_y * y + twist * x * y)
            assert light[row, column] == pytest.approx(expected, rel=1e-5)


def test_seeing_sky_and_zero_points_vary():
    survey = SimulatedSurvey(visits=200, sensors=20, shape=(100, 100), drift=0.1)
    visits = [survey.visit(number) for number in range(200)]
    seeing = [visit.seeing for visit in visits]
    assert 0.8 <= min(seeing) < 0.85 and 1.35 < max(seeing) <= 1.4
    offsets = np.array([visit.offset for visit in visits]) * 3600
    assert 25 < np.abs(offsets).max() <= 30
    zeropoints = survey.zeropoints()
    assert zeropoints.shape == (200, 20)
    assert zeropoints[7, 3] == survey.true_zeropoint(7, 3)
    assert zeropoints.mean(axis=1).std() == pytest.approx(0.1, rel=0.2)
    assert zeropoints.mean(axis=0).std() == pytest.approx(0.02, rel=0.4)


# --------------------------------------------------------------------------- stars


@pytest.mark.parametrize("profile", ["moffat", "gaussian"])
def test_stars_hold_their_flux(profile):
    """All light of the stars well inside a sensor, without noise, against the catalogue."""
    survey = dataclasses.replace(EMPTY, density=1.0, profile=profile, shape=(700, 700), sensors=1)
    dark = dataclasses.replace(survey, density=0.0)
    light = scene(survey, 0, 0).astype(float) - scene(dark, 0, 0)
    index, x, y = survey.positions(0, 0, margin=400)
    zeropoint = survey.true_zeropoint(0, 0)
    flux = survey.catalogue()["flux"][index] * 10 ** (0.4 * (zeropoint - ZERO_POINT))
    np.testing.assert_allclose(flux, 10 ** (0.4 * (zeropoint - survey.catalogue()["mag"][index])), rtol=1e-12)
    inside = (x > -0.5) & (x < 699.5) & (y > -0.5) & (y < 699.5)
    lonely = [
        i
        for i in np.flatnonzero((np.abs(x - 349.5) < 320) & (np.abs(y - 349.5) < 320))
        if np.sort(np.hypot(x - x[i], y - y[i]))[1] > 60
    ]
    assert len(lonely) >= 3 and inside.sum() > len(lonely)
    for i in lonely:
        column, row = round(x[i]), round(y[i])
        box = light[max(row - 29, 0) : row + 30, max(column - 29, 0) : column + 30]
        assert box.sum() == pytest.approx(flux[i], rel=2e-3, abs=5)


@pytest.mark.parametrize("profile", ["moffat", "gaussian"])
def test_stars_are_as_wide_as_the_seeing(profile):
    survey = dataclasses.replace(EMPTY, density=1.0, profile=profile, shape=(700, 700), sensors=1)
    dark = dataclasses.replace(survey, density=0.0)
    light = scene(survey, 2, 0).astype(float) - scene(dark, 2, 0)
    index, x, y = survey.positions(2, 0)
    star = np.argmin(survey.catalogue()["mag"][index])
    half = survey.visit(2).seeing / PIXEL_SCALE / 2
    width = survey.visit(2).seeing / PIXEL_SCALE
    flux = 10 ** (0.4 * (survey.true_zeropoint(2, 0) - survey.catalogue()["mag"][index[star]]))
    peak = flux * (
        4 * np.log(2) / (np.pi * width**2)
        if profile == "gaussian"
        else 4 * (survey.beta - 1) * (2 ** (1 / survey.beta) - 1) / (np.pi * width**2)
    )
    # Half of the peak at half of the width: interpolated along the row through the star.
    row = round(y[star])
    radii = np.hypot(np.arange(700) - x[star], row - y[star])
    right = np.arange(700) > x[star]
    assert np.interp(half, radii[right], light[row, right]) == pytest.approx(peak / 2, rel=0.03)


def test_the_catalogue_counts_as_its_density_and_slope_say():
    survey = SimulatedSurvey(visits=1, sensors=4, shape=(2000, 2000), density=20.0)
    stars = survey.catalogue()
    xi, eta = sky_to_plane(stars["ra"], stars["dec"], survey.center)
    inner = (np.abs(xi) < 0.1) & (np.abs(eta) < 0.1)
    expected = 20.0 * 12**2
    assert abs(inner.sum() - expected) < 4 * np.sqrt(expected)
    assert stars["mag"].min() >= 13 and stars["mag"].max() <= 25
    fainter, brighter = (((m - 1 <= stars["mag"]) & (stars["mag"] < m)).sum() for m in (25, 23))
    assert np.log10(fainter / brighter) / 2 == pytest.approx(0.3, abs=0.02)
    with pytest.raises(ValueError, match="read-only"):
        stars["ra"][0] = 0


def test_bands_take_turns_and_share_their_stars():
    survey = dataclasses.replace(SMALL, bands=("g", "r"), density=50.0)
    assert [survey.band(visit) for visit in range(3)] == ["g", "r", "g"]
    g, r = survey.catalogue("g"), survey.catalogue("r")
    assert (g["ra"] == r["ra"]).all()
    colour = g["mag"] - r["mag"]
    assert colour.mean() == pytest.approx(0.5, abs=0.1) and colour.std() == pytest.approx(0.3, abs=0.1)
    assert survey.header(1, 0)["FILTER"] == "r"


# --------------------------------------------------------------------------- coordinates


@pytest.mark.parametrize("center", [(150.0, 2.2), (0.01, -75.0), (40.0, 89.9)])
def test_tangent_planes_are_astropys(center):
    header = fits.Header()
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": center[0], "CRVAL2": center[1]})
    header.update({"CD1_1": 1.0, "CD2_2": 1.0, "CD1_2": 0.0, "CD2_1": 0.0, "CRPIX1": 0.0, "CRPIX2": 0.0})
    xi, eta = np.random.default_rng(1).uniform(-2, 2, (2, 50))
    ra, dec = plane_to_sky(xi, eta, center)
    # CRPIX is 0, and pixels are counted from 1: what goes in are degrees in the tangent plane.
    found = np.array(WCS(header).all_pix2world(xi, eta, 1))
    shift = (np.array([ra, dec]) - found + 180) % 360 - 180
    assert np.abs(shift).max() < 1e-9
    np.testing.assert_allclose(sky_to_plane(ra, dec, center), (xi, eta), atol=1e-9)


def test_positions_are_those_of_the_header():
    """Every star of the catalogue, sent through the header's coordinates, and back to the sky."""
    survey = SimulatedSurvey(visits=2, sensors=6, shape=(500, 400), density=10.0)
    stars = survey.catalogue()
    for visit, sensor in ((0, 0), (1, 3), (1, 5)):
        wcs = parse_wcs(survey.header(visit, sensor).tostring(sep="\n"))
        assert wcs.wcs.ctype[0].startswith("RA---")
        x, y = wcs.all_world2pix(stars["ra"], stars["dec"], 0)
        inside = (x >= -0.5) & (x <= 399.5) & (y >= -0.5) & (y <= 499.5)
        index, found_x, found_y = survey.positions(visit, sensor)
        assert index.tolist() == np.flatnonzero(inside).tolist()
        assert len(index) > 10
        np.testing.assert_allclose((found_x, found_y), (x[inside], y[inside]), atol=1e-6)
        ra, dec = wcs.all_pix2world(found_x, found_y, 0)
        east = (ra - stars["ra"][index]) * np.cos(np.radians(dec))
        distance = np.hypot(east, dec - stars["dec"][index]) * 3600 / PIXEL_SCALE
        assert distance.max() < 0.02


def test_a_wide_camera_is_distorted_and_finds_its_stars():
    """At the corner of sixty large sensors, where DECam-like distortion is largest."""
    survey = SimulatedSurvey(visits=1, sensors=60, shape=(4000, 4072), density=0.2)
    stars = survey.catalogue()
    header = survey.header(0, 0)
    x, y = WCS(header).all_world2pix(stars["ra"], stars["dec"], 0)
    inside = (np.abs(x - 2035.5) <= 2036) & (np.abs(y - 1999.5) <= 2000)
    assert survey.positions(0, 0)[0].tolist() == np.flatnonzero(inside).tolist()
    scales = [
        np.sqrt(abs(np.linalg.det(_jacobian(survey.header(0, sensor), survey.shape)))) for sensor in (0, 27)
    ]
    assert 0.005 < abs(scales[0] / scales[1] - 1) < 0.1


def _jacobian(header, shape):
    """Arcseconds a pixel at the centre of a sensor, by differences on the sky."""
    x, y = shape[1] / 2, shape[0] / 2
    ra, dec = WCS(header).all_pix2world([x, x + 1, x], [y, y, y + 1], 0)
    east = (ra[1:] - ra[0]) * np.cos(np.radians(dec[0]))
    return np.array([east, dec[1:] - dec[0]]) * 3600


def test_sensors_lie_side_by_side():
    survey = SimulatedSurvey(visits=1, sensors=6, shape=(200, 300))
    rows, columns = survey.grid
    assert rows * columns >= 6
    centers = np.array([survey.sensor_center(sensor) for sensor in range(6)])
    for one in range(6):
        for other in range(one):
            dx, dy = np.abs(centers[one] - centers[other])
            assert dx >= 300 + GAP or dy >= 200 + GAP


def test_bright_stars_are_where_and_as_bright_as_the_truth_says():
    """Measured by sep on the noisy frame: centroids to 0.02 pixel, aperture magnitudes to 0.02."""
    survey = SimulatedSurvey(
        1, 1, (600, 600), 5, density=2.0, magnitudes=(17.0, 18.5), profile="gaussian", cosmic_rays=0
    )
    frame = survey.exposure(0, 0)
    image = frame.image - sep.Background(frame.image).back()
    index, x, y = survey.positions(0, 0)
    width = survey.visit(0).seeing / PIXEL_SCALE
    clear = [
        i
        for i in range(len(x))
        if 30 < x[i] < 570
        and 30 < y[i] < 570
        and np.sort(np.hypot(x - x[i], y - y[i]))[1:2].min(initial=99) > 40
        and not frame.mask[round(y[i]) - 15 : round(y[i]) + 16, round(x[i]) - 15 : round(x[i]) + 16].any()
    ]
    assert len(clear) >= 3
    x, y = x[clear], y[clear]
    found_x, found_y, _ = sep.winpos(image, x, y, width / 2.355)
    assert np.hypot(found_x - x, found_y - y).max() < 0.02
    flux, _, _ = sep.sum_circle(image, x, y, 2.5 * width)
    magnitude = frame.header["MAGZERO"] - 2.5 * np.log10(flux)
    assert np.abs(magnitude - survey.catalogue()["mag"][index[clear]]).max() < 0.02


# --------------------------------------------------------------------------- defects


def test_cosmic_rays_are_where_the_truth_says():
    """With bright stars too, whose full pixels a ray cannot change."""
    survey = dataclasses.replace(SMALL, cosmic_rays=20.0, magnitudes=(10.0, 20.0))
    for sensor in range(2):
        dirty, clean = survey.exposure(1, sensor), survey.exposure(1, sensor, cosmic_rays=False)
        assert ((dirty.image != clean.image) == dirty.cosmic_rays).all()
        assert not clean.cosmic_rays.any()
        assert 500 < dirty.cosmic_rays.sum() < 0.2 * dirty.image.size
        assert (clean.mask & bits("SAT")).any()
        assert not (dirty.cosmic_rays & (clean.mask & bits("BAD", "SAT") != 0)).any()
        gained = (dirty.image - clean.image)[dirty.cosmic_rays]
        assert gained.min() > 0 and np.median(gained) > 500
        # Nothing but a ray that fills a pixel shows in the mask: the pipeline has to find them.
        changed = dirty.mask != clean.mask
        assert (dirty.image[changed] == survey.saturate).all()


def test_cosmic_rays_come_at_their_rate():
    survey = SimulatedSurvey(visits=1, sensors=1, shape=(2000, 2036), density=0.0, bad_columns=0)
    hit = survey.exposure(0, 0).cosmic_rays.sum()
    # 375 tracks; a track of n pixels' length touches about n pixels, 13 on average.
    assert 0.7 < hit / (375 * 13) < 1.5


def _overflow(column, level):
    """Spill the excess of each run of full pixels, one after the other, pixel by pixel."""
    column = column.astype(float)
    full = column > level
    row = 0
    while row < len(column):
        if not full[row]:
            row += 1
            continue
        end = row
        excess = 0.0
        while end < len(column) and full[end]:
            excess += max(column[end] - level, 0)
            column[end] = min(column[end], level)
            end += 1
        for step, place in ((1, end), (-1, row - 1)):
            charge = excess / 2
            while charge > 0 and 0 <= place < len(column):
                taken = min(charge, max(level - column[place], 0))
                column[place] += taken
                charge -= taken
                place += step
        row = end
    return column


def test_full_pixels_overflow_along_their_columns():
    random = np.random.default_rng(3)
    image = random.uniform(0, 40, (80, 30)).astype(np.float32)
    for row, column, height in (
        (10, 3, 500),
        (40, 4, 900),
        (41, 4, 900),
        (46, 4, 300),
        (1, 9, 5000),
        (79, 29, 777),
    ):
        image[row, column] = height
    image[20:60, 15] = 130
    spilled = image.copy()
    bleed(spilled, np.float32(100))
    for column in range(30):
        np.testing.assert_allclose(spilled[:, column], _overflow(image[:, column], 100), rtol=1e-5, atol=1e-3)
    kept = [3, 4]
    np.testing.assert_allclose(spilled[:, kept].sum(0), image[:, kept].sum(0), rtol=1e-5)
    assert spilled.max() <= 100


def test_bright_stars_saturate_and_bleed():
    survey = dataclasses.replace(SMALL, magnitudes=(8.0, 14.0), density=3.0, cosmic_rays=0.0)
    frame = survey.exposure(0, 0)
    full = frame.mask & bits("SAT") != 0
    good = frame.mask & bits("BAD") == 0
    assert frame.image.max() == survey.saturate
    assert (full[good] == (frame.image >= survey.saturate)[good]).all()
    rows, columns = full.sum(axis=0).max(), full.sum(axis=1).max()
    assert rows > 1.5 * columns, "no trail along columns"


def test_bad_columns_are_the_sensors_own():
    survey = dataclasses.replace(SMALL, bad_columns=5)
    bad = [survey.exposure(visit, 1).mask & bits("BAD") for visit in range(3)]
    assert (bad[0] == bad[1]).all() and (bad[1] == bad[2]).all()
    assert (bad[0] != survey.exposure(0, 2).mask & bits("BAD")).any()
    columns = np.flatnonzero(bad[0].any(axis=0))
    assert len(columns) == 5
    frame = survey.exposure(0, 1, cosmic_rays=False)
    values = {frame.image[bad[0][:, column] != 0, column].std() for column in columns}
    assert values == {0.0}


def test_edges_glow_and_are_flagged():
    survey = dataclasses.replace(EMPTY, edge=8)
    frame = survey.exposure(0, 0)
    inner = np.zeros(survey.shape, bool)
    inner[8:-8, 8:-8] = True
    assert ((frame.mask == 0) == inner).all()
    assert (frame.mask[~inner] == bits("EDGE")).all()
    difference = frame.image - EMPTY.exposure(0, 0).image
    assert np.abs(difference[inner]).max() == 0
    assert difference[~inner].mean() == pytest.approx(0.2 * survey.visit(0).sky, rel=0.05)


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_read_back(tmp_path, layout):
    survey = dataclasses.replace(SMALL, magnitudes=(11.0, 20.0))
    frame = survey.exposure(2, 3)
    (tmp_path / "truth").mkdir()
    for name, hdus in files(survey, 2, 3, layout).items():
        hdus.writeto(tmp_path / name)
    (ref,) = find_exposures(sorted(tmp_path.glob("*.fits")))
    exposure = read_exposure(ref)
    assert (ref.kind, ref.band, ref.visit, ref.sensor) == (layout, "r", "2", "3")
    assert (ref.gain, ref.readnoise, ref.saturate) == (survey.gain, survey.readnoise, survey.saturate)
    assert ref.magzero == pytest.approx(survey.true_zeropoint(2, 3), abs=1e-9)
    assert ref.mjd == pytest.approx(frame.header["MJD-OBS"], abs=1e-9)
    assert (exposure.image == frame.image)[exposure.mask & bits("NO_DATA") == 0].all()
    good = frame.mask & bits("BAD") == 0
    np.testing.assert_allclose(exposure.variance[good], frame.variance[good], rtol=1e-6)
    if layout == "planes":
        assert (exposure.mask == frame.mask).all()
    elif layout == "triplet":
        bad = frame.mask & bits("BAD") != 0
        assert (exposure.mask[bad] == bits("BAD", "NO_DATA")).all()
        edge = (frame.mask & bits("EDGE") != 0) & ~bad
        assert (exposure.mask[edge] == bits("BAD")).all()
        assert (exposure.mask == bits("SAT"))[~edge & ~bad].sum() == (frame.mask == bits("SAT")).sum() > 0
    index, x, y = survey.positions(2, 3)
    found = parse_wcs(ref.wcs).all_world2pix(
        survey.catalogue()["ra"][index], survey.catalogue()["dec"][index], 0
    )
    assert np.abs(np.array(found) - (x, y)).max() < 0.02
    with fits.open(tmp_path / "truth" / "sim-0002-003_cosmic-rays.fits.fz") as truth:
        assert (truth["CR"].data == frame.cosmic_rays).all()


def test_files_have_the_same_bytes_at_another_time(tmp_path, monkeypatch):
    written = []
    for day in (1, 2):
        with monkeypatch.context() as patched:
            patched.setattr("time.time", lambda day=day: 86400.0 * 20000 * day)
            made = files(SMALL, 0, 0) | truth_files(SMALL)
            for name, hdus in made.items():
                path = tmp_path / str(day) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                hdus.writeto(path)
                written.append((name, path.read_bytes()))
    assert written[: len(made)] == written[len(made) :]


def test_truth_tables():
    survey = dataclasses.replace(SMALL, bands=("g", "r"))
    hdus = truth_files(survey)["truth/survey.fits"]
    stars, exposures = hdus["STARS"].data, hdus["EXPOSURES"].data
    assert (stars["MAG_r"] == survey.catalogue("r")["mag"]).all()
    assert (stars["RA"] == survey.catalogue()["ra"]).all()
    assert len(exposures) == survey.visits * survey.sensors
    row = exposures[1 * survey.sensors + 2]
    assert (row["VISIT"], row["SENSOR"], row["BAND"]) == (1, 2, "r")
    assert row["ZEROPOINT"] == survey.true_zeropoint(1, 2)
    assert row["SEEING"] == survey.visit(1).seeing


def test_headers_without_a_zero_point():
    assert "MAGZERO" not in dataclasses.replace(SMALL, magzero=False).header(0, 0)
    assert "MAGZERO" in SMALL.header(0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"visits": 0},
        {"sensors": 0},
        {"shape": (10, 0)},
        {"shape": (10, 10, 10)},
        {"seed": -1},
        {"profile": "airy"},
        {"beta": 1.0},
        {"seeing": (1.4, 0.8)},
        {"gain": 0.0},
        {"sky": 1.0},
        {"magnitudes": (20.0, 15.0)},
        {"edge": 200},
        {"bands": ("r", "r")},
        {"center": (0.0, 91.0)},
        {"sensors": 4000, "shape": (4000, 4072)},
        {"drift": float("nan")},
    ],
)
def test_parameters_that_make_no_sense(wrong):
    with pytest.raises(ValueError):
        dataclasses.replace(SMALL, **wrong)


def test_exposures_that_are_not_of_the_survey():
    for visit, sensor in ((3, 0), (-1, 0), (0, 4)):
        with pytest.raises(ValueError, match="is not one of"):
            SMALL.exposure(visit, sensor)
    with pytest.raises(ValueError, match="layout"):
        files(SMALL, 0, 0, "raw")
