"""The sky of a simulated survey: its random streams, its stars, and where they fall on a sensor."""

from __future__ import annotations

import datetime
import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mpiimg.astro.sky.wcs import parse_wcs
from mpiimg.simulate.profiles import PIXEL_SCALE, reach

if TYPE_CHECKING:
    from mpiimg.simulate.astro import SimulatedSurvey

#: Distortion of the camera in degrees (TPV), of the size of DECam's: PV1_k, then PV2_k.
DISTORTION = (
    {0: 2.5e-5, 1: 1.0046, 2: -4e-5, 4: 2.0e-4, 5: 3.3e-4, 6: -2.4e-4, 7: -4.2e-3, 8: 9.6e-5, 9: -4.0e-3},
    {0: 7.1e-5, 1: 1.0044, 2: 5e-5, 4: -5.3e-4, 5: 2.8e-4, 6: 1.1e-4, 7: -4.4e-3, 8: 1.2e-4, 9: -3.9e-3},
)

#: Star counts grow as 10^(SLOPE magnitude).
SLOPE = 0.3

#: Mean and spread of the difference in magnitude between one band and the next.
COLOUR = (0.5, 0.3)

#: Start of the first visit (MJD), and days from one to the next.
FIRST_NIGHT, CADENCE = 60310.0, 150 / 86400

#: First words of the seeds of independent random streams.
STARS, VISIT, SENSOR, NOISE, COSMIC_RAYS, ZEROPOINT = range(6)


def generator(*words: int) -> np.random.Generator:
    """Return the random stream of these words."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


@lru_cache(maxsize=4)
def stars(survey: SimulatedSurvey) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ra, dec (n,) and magnitudes (bands, n) of all stars; shared, so read-only."""
    random = generator(STARS, survey.seed)
    half = 1.02 * survey.radius + (survey.dither + reach(survey) * PIXEL_SCALE) / 3600
    count = random.poisson(survey.density * (2 * half * 60) ** 2)
    ra, dec = plane_to_sky(*random.uniform(-half, half, (2, count)), survey.center)
    # Counts that grow exponentially between two limits: the inverse of their cumulated distribution.
    low, high = (10 ** (SLOPE * limit) for limit in survey.magnitudes)
    first = np.log10(low + random.uniform(size=count) * (high - low)) / SLOPE
    mean, spread = COLOUR
    colour = mean + spread * random.standard_normal(count)
    magnitudes = first - np.arange(len(survey.bands))[:, None] * colour
    for array in (ra, dec, magnitudes):
        array.flags.writeable = False
    return ra, dec, magnitudes


def plane_to_sky(xi, eta, center):
    """Return ra and dec of tangent-plane coordinates about `center`; all in degrees.

    The gnomonic projection, as in Calabretta and Greisen 2002, A&A 395, 1077, section 5.1.3.
    """
    xi, eta = np.radians(xi), np.radians(eta)
    ra0, dec0 = np.radians(center)
    along = np.cos(dec0) - eta * np.sin(dec0)
    ra = ra0 + np.arctan2(xi, along)
    dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, along))
    return np.degrees(ra) % 360, np.degrees(dec)


def sky_to_plane(ra, dec, center):
    """Return tangent-plane coordinates xi and eta about `center`, in degrees: the inverse of that."""
    ra0, dec0 = np.radians(center)
    along, dec = np.radians(ra) - ra0, np.radians(dec)
    depth = np.sin(dec) * np.sin(dec0) + np.cos(dec) * np.cos(dec0) * np.cos(along)
    xi = np.cos(dec) * np.sin(along) / depth
    eta = (np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(along)) / depth
    return np.degrees(xi), np.degrees(eta)


def exposure_header(survey: SimulatedSurvey, visit: int, sensor: int):
    """Return the header of an exposure."""
    from astropy.io import fits

    facts = survey.visit(visit)
    ny, nx = survey.shape
    x, y = survey.sensor_center(sensor)
    ra, dec = plane_to_sky(*facts.offset, survey.center)
    turn = math.radians(facts.rotation)
    scale = PIXEL_SCALE / 3600
    mjd = FIRST_NIGHT + visit * CADENCE
    header = fits.Header()
    for axis, kind, value, pixel in (
        (1, "RA---TPV", ra, (nx + 1) / 2 - x),
        (2, "DEC--TPV", dec, (ny + 1) / 2 - y),
    ):
        header[f"CTYPE{axis}"], header[f"CUNIT{axis}"] = kind, "deg"
        header[f"CRVAL{axis}"], header[f"CRPIX{axis}"] = float(value), pixel
    header["CD1_1"], header["CD1_2"] = -scale * math.cos(turn), scale * math.sin(turn)
    header["CD2_1"], header["CD2_2"] = scale * math.sin(turn), scale * math.cos(turn)
    header["RADESYS"] = "ICRS"
    for axis, terms in enumerate(DISTORTION, 1):
        for term, value in terms.items():
            header[f"PV{axis}_{term}"] = value
    header["OBJECT"] = f"simulated survey, seed {survey.seed}"
    header["INSTRUME"] = "mpiimg"
    header["EXPNUM"] = (visit, "visit, from 0")
    header["CCDNUM"] = (sensor, "sensor, from 0")
    header["FILTER"] = survey.band(visit)
    header["EXPTIME"] = (survey.exptime, "s")
    start = datetime.datetime(1858, 11, 17) + datetime.timedelta(days=mjd)
    header["DATE-OBS"] = (start.isoformat(timespec="milliseconds"), "start of the exposure, UTC")
    header["MJD-OBS"] = mjd
    header["GAIN"] = (survey.gain, "electrons a count")
    header["RDNOISE"] = (survey.readnoise, "electrons")
    header["SATURATE"] = (survey.saturate, "counts")
    header["BUNIT"] = "adu"
    if survey.magzero:
        header["MAGZERO"] = (survey.true_zeropoint(visit, sensor), "magnitude of one count")
    return header


def positions(survey: SimulatedSurvey, visit: int, sensor: int, margin: float):
    """Return index, x and y of the stars on an exposure and up to `margin` pixels beside it."""
    ny, nx = survey.shape
    near = _near(survey, visit, sensor, margin)
    ra, dec, _ = stars(survey)
    text = exposure_header(survey, visit, sensor).tostring(sep="\n", endcard=False, padding=False)
    x, y = parse_wcs(text).all_world2pix(ra[near], dec[near], 0)
    inside = (np.abs(x - (nx - 1) / 2) <= nx / 2 + margin) & (np.abs(y - (ny - 1) / 2) <= ny / 2 + margin)
    return near[inside], x[inside], y[inside]


def _near(survey: SimulatedSurvey, visit: int, sensor: int, margin: float) -> np.ndarray:
    """Return the stars that may be on an exposure: an upper bound, without distortion."""
    facts = survey.visit(visit)
    ra, dec, _ = stars(survey)
    xi, eta = sky_to_plane(ra, dec, plane_to_sky(*facts.offset, survey.center))
    turn = math.radians(facts.rotation)
    scale = PIXEL_SCALE / 3600
    x = (-xi * math.cos(turn) + eta * math.sin(turn)) / scale
    y = (xi * math.sin(turn) + eta * math.cos(turn)) / scale
    radius = survey.radius + margin * scale
    slack = margin + 2 * (0.006 * radius + 0.006 * radius**3) / scale + 2
    x0, y0 = survey.sensor_center(sensor)
    ny, nx = survey.shape
    return np.flatnonzero((np.abs(x - x0) < nx / 2 + slack) & (np.abs(y - y0) < ny / 2 + slack))
