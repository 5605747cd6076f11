"""A sky survey of any size whose truth is known.

A camera of several sensors points at one field again and again, a little
displaced each time. Every pixel is a pure function of the survey's parameters,
the visit and the sensor, so any rank makes any exposure, to the last bit.

Positions are pixels counted from 0 at the centre of the first pixel, (x, y);
arrays have axes (y, x). Fluxes are counts (ADU) of the exposure, those of the
catalogue counts at the zero point 27.
"""

from __future__ import annotations

import datetime
import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mpiimg.io.maskplanes import bits, plane_cards
from mpiimg.io.wcs import parse_wcs

#: The zero point that fluxes of the catalogue refer to.
CATALOGUE_ZEROPOINT = 27.0

#: Arcseconds a pixel at the centre of the field, as DECam's.
PIXEL_SCALE = 0.263

#: Pixels between neighbouring sensors.
GAP = 100

#: Degrees from the centre beyond which the distortion would fold the sky.
LARGEST_FIELD = 3.0

#: Distortion of the camera in degrees (TPV), of the size of DECam's: PV1_k, then PV2_k.
DISTORTION = (
    {0: 2.5e-5, 1: 1.0046, 2: -4e-5, 4: 2.0e-4, 5: 3.3e-4, 6: -2.4e-4, 7: -4.2e-3, 8: 9.6e-5, 9: -4.0e-3},
    {0: 7.1e-5, 1: 1.0044, 2: 5e-5, 4: -5.3e-4, 5: 2.8e-4, 6: 1.1e-4, 7: -4.4e-3, 8: 1.2e-4, 9: -3.9e-3},
)

#: Star counts grow as 10^(SLOPE magnitude).
SLOPE = 0.3

#: Mean and spread of the difference in magnitude between one band and the next.
COLOUR = (0.5, 0.3)

#: Stars are drawn out to where they are fainter than this many counts a pixel.
FAINTEST_PIXEL = 0.02

#: A profile is drawn at least so far that less than this part of its light is missing.
LOST_LIGHT = 5e-4

#: Cosmic rays a second and pixel: 1500 in 90 s on a sensor of 4000 x 4072.
COSMIC_RAY_RATE = 1500 / 90 / 16.288e6

#: Counts that a cosmic ray leaves in a pixel, least and most; pixels of its track, least and most.
COSMIC_RAY_COUNTS, COSMIC_RAY_LENGTH = (150.0, 3000.0), (2, 25)

#: Part of the sky that glows in addition where pixels are flagged EDGE.
GLOW = 0.2

#: Electrons of sky below which counts are too few for the noise that is drawn here.
LEAST_SKY = 50.0

#: Start of the first visit (MJD), and days from one to the next.
FIRST_NIGHT, CADENCE = 60310.0, 150 / 86400

#: Rows of a sensor that are worked on at once, small enough for a cache.
_ROWS = 16

#: First words of the seeds of independent random streams.
_STARS, _VISIT, _SENSOR, _NOISE, _COSMIC_RAYS, _ZEROPOINT = range(6)


class Frame(NamedTuple):
    """An exposure of one sensor, and what is true of it.

    image, variance (ny, nx) float32 in counts and counts squared; mask (ny, nx) int32 with
    the bits of :mod:`mpiimg.io.maskplanes`; cosmic_rays (ny, nx) bool, the pixels that they
    changed; header : astropy.io.fits.Header with the coordinates and what a telescope says.
    """

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    cosmic_rays: np.ndarray
    header: object


class Visit(NamedTuple):
    """What all sensors of a visit share.

    offset : displacement of the camera to the east and north, in degrees
    rotation : of the camera, in degrees
    seeing : full width at half maximum, in arcseconds
    sky : counts a pixel at the centre of the field
    gradient : relative change of the sky from the centre to the edge of the camera along x, y and xy
    """

    offset: tuple[float, float]
    rotation: float
    seeing: float
    sky: float
    gradient: tuple[float, float, float]


@dataclass(frozen=True)
class Survey:
    """A simulated survey: its exposures, and the truth.

    Attributes
    ----------
    visits, sensors : int
        Exposures of the field, and sensors of the camera, in rows of a nearly square grid.
    shape : (ny, nx)
        Pixels of a sensor.
    seed : int
        0 to 2^32 - 1. Another seed gives other stars, pointings, seeing and noise.
    center : (ra, dec)
        Of the field, degrees.
    bands : tuple of str
        Names of filters, which visits take in turn.
    density : float
        Stars a square arcminute.
    magnitudes : (bright, faint)
        Range of the catalogue in the first band.
    profile : str
        "moffat" or "gaussian".
    beta : float
        Of Moffat's profile, at least 2.
    seeing : (least, most)
        Full width at half maximum in arcseconds; a visit's is uniform in between.
    dither : float
        Pointings are uniform within plus and minus this, arcseconds.
    rotation : float
        Rotations of the camera likewise, degrees.
    sky : float
        Mean counts a pixel; a visit's scatters by a tenth.
    gain, readnoise : float
        Electrons a count; electrons.
    saturate : float
        Counts at which a pixel is full.
    exptime : float
        Seconds.
    zeropoint, drift : float
        Magnitude of one count; standard deviation of what a visit adds to it. Each sensor
        adds a fifth of that, the same in all visits.
    magzero : bool
        Headers state the true zero point (MAGZERO), or none.
    edge : int
        Pixels along the border that glow, and are flagged EDGE.
    bad_columns : int
        Columns of a sensor that are dead or hot.
    cosmic_rays : float
        Times the usual rate.

    Raises
    ------
    ValueError
        For a parameter that makes no sense.
    """

    visits: int
    sensors: int
    shape: tuple[int, int]
    seed: int = 7
    center: tuple[float, float] = (150.0, 2.2)
    bands: tuple[str, ...] = ("r",)
    density: float = 20.0
    magnitudes: tuple[float, float] = (13.0, 25.0)
    profile: str = "moffat"
    beta: float = 3.0
    seeing: tuple[float, float] = (0.8, 1.4)
    dither: float = 30.0
    rotation: float = 0.1
    sky: float = 250.0
    gain: float = 4.0
    readnoise: float = 7.0
    saturate: float = 45000.0
    exptime: float = 90.0
    zeropoint: float = 30.0
    drift: float = 0.1
    magzero: bool = True
    edge: int = 8
    bad_columns: int = 3
    cosmic_rays: float = 1.0

    def __post_init__(self):
        for name in ("shape", "center", "bands", "magnitudes", "seeing"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("visits", "sensors", "seed", "edge", "bad_columns"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        object.__setattr__(self, "shape", tuple(map(operator.index, self.shape)))
        _check(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of sensors in the camera."""
        ny, nx = self.shape
        columns = max(1, min(self.sensors, round(math.sqrt(self.sensors * ny / nx))))
        return -(-self.sensors // columns), columns

    @property
    def radius(self) -> float:
        """Degrees from the centre of the camera to its farthest corner, before distortion."""
        half = [n * (size + GAP) / 2 for n, size in zip(self.grid, self.shape, strict=True)]
        return math.hypot(*half) * PIXEL_SCALE / 3600

    def sensor_center(self, sensor: int) -> tuple[float, float]:
        """Return where the centre of a sensor lies in the camera: pixels (x, y) from its middle."""
        rows, columns = self.grid
        row, column = divmod(sensor, columns)
        ny, nx = self.shape
        return (column - (columns - 1) / 2) * (nx + GAP), (row - (rows - 1) / 2) * (ny + GAP)

    def band(self, visit: int) -> str:
        """Return the filter of a visit."""
        return self.bands[visit % len(self.bands)]

    def visit(self, visit: int) -> Visit:
        """Return what all sensors of a visit share."""
        random = _generator(_VISIT, self.seed, visit)
        offset = random.uniform(-self.dither / 3600, self.dither / 3600, 2)
        rotation = random.uniform(-self.rotation, self.rotation)
        seeing = random.uniform(*self.seeing)
        sky = self.sky * max(0.5, 1 + 0.1 * random.standard_normal())
        gradient = random.normal(0, (0.04, 0.04, 0.02))
        return Visit(tuple(offset.tolist()), rotation, seeing, sky, tuple(gradient.tolist()))

    def true_zeropoint(self, visit: int, sensor: int) -> float:
        """Return the magnitude of one count in an exposure."""
        of_visit = _generator(_ZEROPOINT, self.seed, 0, visit).standard_normal()
        of_sensor = _generator(_ZEROPOINT, self.seed, 1, sensor).standard_normal()
        return self.zeropoint + self.drift * (of_visit + 0.2 * of_sensor)

    def zeropoints(self) -> np.ndarray:
        """Return the zero points of all exposures, (visits, sensors) float64."""
        pairs = [[self.true_zeropoint(v, s) for s in range(self.sensors)] for v in range(self.visits)]
        return np.array(pairs)

    def catalogue(self, band: str | None = None) -> dict[str, np.ndarray]:
        """Return the stars of the field, also those that no exposure sees.

        Returns
        -------
        dict
            ``ra``, ``dec`` in degrees (ICRS), ``mag`` in `band` (the first by default), and ``flux``
            in counts at the zero point 27: (n,) float64, read-only. The order is the same in all bands.
        """
        place = self.bands.index(self.bands[0] if band is None else band)
        ra, dec, magnitudes = _stars(self)
        return {
            "ra": ra,
            "dec": dec,
            "mag": magnitudes[place],
            "flux": 10 ** (0.4 * (CATALOGUE_ZEROPOINT - magnitudes[place])),
        }

    def header(self, visit: int, sensor: int):
        """Return the header of an exposure: coordinates, and what a telescope says."""
        return _header(self, *self._checked(visit, sensor))

    def positions(
        self, visit: int, sensor: int, margin: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which stars fall on an exposure, or at most `margin` pixels beside it.

        Returns
        -------
        index : (n,) intp, into the catalogue, ascending
        x, y : (n,) float64, pixels
        """
        return _positions(self, *self._checked(visit, sensor), margin)

    def exposure(self, visit: int, sensor: int, cosmic_rays: bool = True) -> Frame:
        """Make an exposure.

        Parameters
        ----------
        cosmic_rays : without them, everything else stays as it is, the noise too

        Notes
        -----
        Counts are Poisson distributed around stars and sky, with the normal
        noise of the readout, to the third cumulant: z being normal, mu the
        mean and s^2 = mu + readnoise^2 in electrons, a pixel is
        mu + s z + mu / (6 s^2) (z^2 - 1) (the first terms of Cornish and
        Fisher 1938, Rev. Inst. Int. Stat. 5, 307). VARIANCE is what a pipeline
        knows of it: from the noisy pixel, cosmic rays and all.
        """
        visit, sensor = self._checked(visit, sensor)
        image = _scene(self, visit, sensor)
        _add_noise(self, image, visit, sensor)
        mask = _defects(self, image, sensor)
        hit = np.zeros(self.shape, bool)
        if cosmic_rays:
            _add_cosmic_rays(self, image, mask, hit, (visit, sensor))
        variance = np.maximum(image, np.float32(0))
        variance *= np.float32(1 / self.gain)
        variance += np.float32((self.readnoise / self.gain) ** 2)
        return Frame(image, variance, mask, hit, self.header(visit, sensor))

    def _checked(self, visit: int, sensor: int) -> tuple[int, int]:
        visit, sensor = operator.index(visit), operator.index(sensor)
        if not (0 <= visit < self.visits and 0 <= sensor < self.sensors):
            raise ValueError(
                f"visit {visit}, sensor {sensor} is not one of {self.visits} visits of {self.sensors} sensors"
            )
        return visit, sensor


# --------------------------------------------------------------------------- the sky


def _generator(*words: int) -> np.random.Generator:
    """Return the random stream of these words."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


@lru_cache(maxsize=4)
def _stars(survey: Survey) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ra, dec (n,) and magnitudes (bands, n) of all stars; shared, so read-only."""
    random = _generator(_STARS, survey.seed)
    half = 1.02 * survey.radius + (survey.dither + _reach(survey) * PIXEL_SCALE) / 3600
    count = random.poisson(survey.density * (2 * half * 60) ** 2)
    ra, dec = _to_sky(*random.uniform(-half, half, (2, count)), survey.center)
    # Counts that grow exponentially between two limits: the inverse of their cumulated distribution.
    low, high = (10 ** (SLOPE * limit) for limit in survey.magnitudes)
    first = np.log10(low + random.uniform(size=count) * (high - low)) / SLOPE
    mean, spread = COLOUR
    colour = mean + spread * random.standard_normal(count)
    magnitudes = first - np.arange(len(survey.bands))[:, None] * colour
    for array in (ra, dec, magnitudes):
        array.flags.writeable = False
    return ra, dec, magnitudes


def _to_sky(xi, eta, center):
    """Return ra and dec of tangent-plane coordinates about `center`; all in degrees.

    The gnomonic projection, as in Calabretta and Greisen 2002, A&A 395, 1077, section 5.1.3.
    """
    xi, eta = np.radians(xi), np.radians(eta)
    ra0, dec0 = np.radians(center)
    along = np.cos(dec0) - eta * np.sin(dec0)
    ra = ra0 + np.arctan2(xi, along)
    dec = np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, along))
    return np.degrees(ra) % 360, np.degrees(dec)


def _to_plane(ra, dec, center):
    """Return tangent-plane coordinates xi and eta about `center`, in degrees; the inverse of `_to_sky`."""
    ra0, dec0 = np.radians(center)
    along, dec = np.radians(ra) - ra0, np.radians(dec)
    depth = np.sin(dec) * np.sin(dec0) + np.cos(dec) * np.cos(dec0) * np.cos(along)
    xi = np.cos(dec) * np.sin(along) / depth
    eta = (np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(along)) / depth
    return np.degrees(xi), np.degrees(eta)


def _header(survey: Survey, visit: int, sensor: int):
    """Return the header of an exposure."""
    from astropy.io import fits

    facts = survey.visit(visit)
    ny, nx = survey.shape
    x, y = survey.sensor_center(sensor)
    ra, dec = _to_sky(*facts.offset, survey.center)
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
    header["FILTER"] = f"{survey.band(visit)} simulated"
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


def _positions(survey: Survey, visit: int, sensor: int, margin: float):
    """Return index, x and y of the stars on an exposure and up to `margin` pixels beside it."""
    ny, nx = survey.shape
    near = _near(survey, visit, sensor, margin)
    ra, dec, _ = _stars(survey)
    text = _header(survey, visit, sensor).tostring(sep="\n", endcard=False, padding=False)
    x, y = parse_wcs(text).all_world2pix(ra[near], dec[near], 0)
    inside = (np.abs(x - (nx - 1) / 2) <= nx / 2 + margin) & (np.abs(y - (ny - 1) / 2) <= ny / 2 + margin)
    return near[inside], x[inside], y[inside]


def _near(survey: Survey, visit: int, sensor: int, margin: float) -> np.ndarray:
    """Return the stars that may be on an exposure: an upper bound, without distortion."""
    facts = survey.visit(visit)
    ra, dec, _ = _stars(survey)
    xi, eta = _to_plane(ra, dec, _to_sky(*facts.offset, survey.center))
    turn = math.radians(facts.rotation)
    scale = PIXEL_SCALE / 3600
    x = (-xi * math.cos(turn) + eta * math.sin(turn)) / scale
    y = (xi * math.sin(turn) + eta * math.cos(turn)) / scale
    reach = survey.radius + margin * scale
    slack = margin + 2 * (0.006 * reach + 0.006 * reach**3) / scale + 2
    x0, y0 = survey.sensor_center(sensor)
    ny, nx = survey.shape
    return np.flatnonzero((np.abs(x - x0) < nx / 2 + slack) & (np.abs(y - y0) < ny / 2 + slack))


# --------------------------------------------------------------------------- the light


def _scene(survey: Survey, visit: int, sensor: int) -> np.ndarray:
    """Return what an exposure would count on average: sky and stars, (ny, nx) float32."""
    image = _sky(survey, visit, sensor)
    facts = survey.visit(visit)
    index, x, y = survey.positions(visit, sensor, margin=_reach(survey))
    magnitudes = _stars(survey)[2][visit % len(survey.bands)][index]
    fluxes = 10 ** (0.4 * (survey.true_zeropoint(visit, sensor) - magnitudes))
    for star in zip(x.tolist(), y.tolist(), fluxes.tolist(), strict=True):
        _add_star(image, star, survey.profile, facts.seeing / PIXEL_SCALE, survey.beta)
    return image


def _sky(survey: Survey, visit: int, sensor: int) -> np.ndarray:
    """Return the sky of an exposure: smooth over the camera, with a glow along the sensor's edges."""
    facts = survey.visit(visit)
    ny, nx = survey.shape
    x0, y0 = survey.sensor_center(sensor)
    half = survey.radius * 3600 / PIXEL_SCALE
    x = ((np.arange(nx) - (nx - 1) / 2 + x0) / half).astype(np.float32)
    y = ((np.arange(ny) - (ny - 1) / 2 + y0) / half).astype(np.float32)
    along_x, along_y, along_xy = facts.gradient
    image = np.multiply.outer(y, np.float32(along_y) + np.float32(along_xy) * x)
    image += np.float32(1) + np.float32(along_x) * x
    for rows, columns in _borders(survey):
        image[rows, columns] += np.float32(GLOW)
    image *= np.float32(facts.sky)
    return image


def _borders(survey: Survey) -> list[tuple[slice, slice]]:
    """Return the four strips along the edges of a sensor, which do not overlap."""
    (ny, nx), edge = survey.shape, survey.edge
    if not edge:
        return []
    whole, middle = slice(None), slice(edge, ny - edge)
    return [
        (slice(0, edge), whole),
        (slice(ny - edge, ny), whole),
        (middle, slice(0, edge)),
        (middle, slice(nx - edge, nx)),
    ]


def _reach(survey: Survey) -> int:
    """Return how many pixels the light of the brightest star may reach."""
    brightest = 10 ** (0.4 * (survey.zeropoint + 5 * survey.drift - survey.magnitudes[0] + 1))
    return math.ceil(_radius(brightest, survey.profile, survey.seeing[1] / PIXEL_SCALE, survey.beta)) + 1


def _width(profile: str, fwhm: float, beta: float) -> float:
    """Return the scale of a profile: sigma, or Moffat's alpha."""
    if profile == "gaussian":
        return fwhm / math.sqrt(8 * math.log(2))
    return fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))


def _peak(profile: str, width: float, beta: float) -> float:
    """Return the height of a profile that holds a flux of one."""
    return (0.5 if profile == "gaussian" else beta - 1) / (math.pi * width**2)


def _radius(flux: float, profile: str, fwhm: float, beta: float) -> float:
    """Return how far a star is drawn: till it is faint, and holds nearly all of its light."""
    width = _width(profile, fwhm, beta)
    ratio = max(1.0, flux * _peak(profile, width, beta) / FAINTEST_PIXEL)
    if profile == "gaussian":
        return width * math.sqrt(2 * math.log(max(ratio, 1 / LOST_LIGHT)))
    return width * math.sqrt(max(ratio ** (1 / beta), LOST_LIGHT ** (1 / (1 - beta))) - 1)


def _add_star(image: np.ndarray, star, profile: str, fwhm: float, beta: float) -> None:
    """Add a star (x, y, flux): the profile at the centres of pixels, out to a circle.

    The profiles are wide against a pixel: their values sum up to the flux. Moffat 1969, A&A 3, 455.
    """
    x, y, flux = star
    radius = _radius(flux, profile, fwhm, beta)
    ny, nx = image.shape
    x0, x1 = max(0, math.ceil(x - radius)), min(nx, math.floor(x + radius) + 1)
    y0, y1 = max(0, math.ceil(y - radius)), min(ny, math.floor(y + radius) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    width = _width(profile, fwhm, beta)
    dx = ((np.arange(x0, x1) - x) / width) ** 2
    dy = ((np.arange(y0, y1) - y) / width) ** 2
    height = flux * _peak(profile, width, beta)
    if profile == "gaussian":
        stamp = np.multiply.outer(np.exp(-0.5 * dy), height * np.exp(-0.5 * dx))
    else:
        squared = np.add.outer(dy, dx)
        stamp = squared + 1
        np.power(stamp, -beta, out=stamp)
        stamp *= height
        stamp[squared > (radius / width) ** 2] = 0
    image[y0:y1, x0:x1] += stamp


# --------------------------------------------------------------------------- the sensor


def _add_noise(survey: Survey, image: np.ndarray, visit: int, sensor: int) -> None:
    """Turn mean counts into counts, in place; see `Survey.exposure`."""
    random = _generator(_NOISE, survey.seed, visit, sensor)
    gain, readout = np.float32(survey.gain), np.float32(survey.readnoise**2)
    z = np.empty((_ROWS, image.shape[1]), np.float32)
    spread, skew = np.empty_like(z), np.empty_like(z)
    for start in range(0, len(image), _ROWS):
        mean = image[start : start + _ROWS]
        z, spread, skew = z[: len(mean)], spread[: len(mean)], skew[: len(mean)]
        random.standard_normal(out=z, dtype=np.float32)
        mean *= gain
        np.add(mean, readout, out=spread)
        np.multiply(z, z, out=skew)
        skew -= np.float32(1)
        skew *= mean
        skew /= spread
        skew *= np.float32(1 / 6)
        np.sqrt(spread, out=spread)
        spread *= z
        mean += spread
        mean += skew
        mean *= np.float32(1 / survey.gain)


def _defects(survey: Survey, image: np.ndarray, sensor: int) -> np.ndarray:
    """Let full pixels overflow, spoil columns, and return the mask that says so."""
    level = np.float32(survey.saturate)
    _bleed(image, level)
    mask = np.zeros(survey.shape, np.int32)
    mask[image >= level] = bits("SAT")
    for rows, columns in _borders(survey):
        mask[rows, columns] |= bits("EDGE")
    for column, first, hot in _bad_columns(survey, sensor):
        image[first:, column] = 0.4 * level if hot else 0
        mask[first:, column] |= bits("BAD")
    return mask


def _bad_columns(survey: Survey, sensor: int) -> list[tuple[int, int, bool]]:
    """Return the bad columns of a sensor: which, from what row on, and whether hot instead of dead."""
    ny, nx = survey.shape
    random = _generator(_SENSOR, survey.seed, sensor)
    columns = random.permutation(nx)[: survey.bad_columns]
    first = random.integers(0, ny, columns.size) * random.integers(0, 2, columns.size)
    hot = random.integers(0, 2, columns.size) == 1
    return list(zip(columns.tolist(), first.tolist(), hot.tolist(), strict=True))


def _bleed(image: np.ndarray, level: np.float32) -> None:
    """Spill what pixels cannot hold along their columns, half up and half down, in place.

    Charge is conserved, but for what runs off the sensor.
    """
    x, y = np.nonzero((image > level).T) if image.max() > level else (np.zeros(0, int),) * 2
    starts = np.flatnonzero((np.diff(x, prepend=-1) != 0) | (np.diff(y, prepend=-1) != 1))
    for first, last in zip(starts, [*starts[1:] - 1, x.size - 1], strict=False):
        column = image[:, x[first]].astype(np.float64)
        low, high = y[first], y[last] + 1
        excess = np.maximum(column[low:high] - level, 0).sum()
        column[low:high] = np.minimum(column[low:high], level)
        _fill(column[high:], excess / 2, level)
        _fill(column[:low][::-1], excess / 2, level)
        image[:, x[first]] = column


def _fill(pixels: np.ndarray, charge: float, level: float) -> None:
    """Fill pixels one after the other up to `level` until the charge is spent, in place."""
    filled = np.cumsum(np.maximum(level - pixels, 0))
    count = int(np.searchsorted(filled, charge))
    if count < pixels.size:
        pixels[count] += charge - (filled[count - 1] if count else 0)
    pixels[:count] = np.maximum(pixels[:count], level)


def _add_cosmic_rays(survey: Survey, image, mask, hit, key: tuple[int, int]) -> None:
    """Add the tracks of cosmic rays, in place; pixels that are bad or full anyhow show none."""
    random = _generator(_COSMIC_RAYS, survey.seed, *key)
    ny, nx = survey.shape
    count = random.poisson(COSMIC_RAY_RATE * survey.cosmic_rays * survey.exptime * ny * nx)
    length = random.integers(*COSMIC_RAY_LENGTH, count)
    angle = random.uniform(0, math.pi, count)
    x, y = random.uniform(0, nx, count), random.uniform(0, ny, count)
    counts = random.uniform(*COSMIC_RAY_COUNTS, count)
    steps = np.arange(0, COSMIC_RAY_LENGTH[1], 0.7)
    x = np.floor(x[:, None] + steps * np.cos(angle)[:, None]).astype(np.intp)
    y = np.floor(y[:, None] + steps * np.sin(angle)[:, None]).astype(np.intp)
    counts = counts[:, None] * random.uniform(0.6, 1.4, x.shape)
    there = (steps < length[:, None]) & (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    index, which = np.unique(y[there] * nx + x[there], return_inverse=True)
    counts = np.bincount(which, counts[there], minlength=index.size).astype(np.float32)
    sound = mask.reshape(-1)[index] & bits("BAD", "SAT") == 0
    index, level = index[sound], np.float32(survey.saturate)
    values = np.minimum(image.reshape(-1)[index] + counts[sound], level)
    image.reshape(-1)[index] = values
    mask.reshape(-1)[index[values >= level]] |= bits("SAT")
    hit.reshape(-1)[index] = True


# --------------------------------------------------------------------------- files

#: How an exposure may be written.
LAYOUTS = ("planes", "triplet", "single")


def stem(visit: int, sensor: int) -> str:
    """Return the name of an exposure, which its files begin with."""
    return f"sim-{visit:04d}-{sensor:03d}"


def files(survey: Survey, visit: int, sensor: int, layout: str = "planes") -> dict:
    """Return the files of an exposure: name, below the survey's folder, and HDUList.

    Parameters
    ----------
    layout : "planes": IMAGE, VARIANCE and MASK of one file; "triplet": `ooi`, `oow` and `ood` as the
        DECam Community Pipeline writes them, EDGE being bad there; "single": the image alone

    Raises
    ------
    ValueError
        For another layout, or an exposure that is not of the survey.

    Notes
    -----
    With them comes ``truth/<stem>_cosmic-rays.fits.fz``, 1 where a cosmic ray is. No file tells the time.
    """
    from astropy.io import fits

    if layout not in LAYOUTS:
        raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, not {layout}")
    frame = survey.exposure(visit, sensor)
    name = stem(visit, sensor)
    truth = fits.CompImageHDU(frame.cosmic_rays.astype(np.uint8), name="CR")
    out = {f"truth/{name}_cosmic-rays.fits.fz": fits.HDUList([fits.PrimaryHDU(), truth])}
    if layout == "single":
        out[f"{name}.fits"] = fits.HDUList([fits.PrimaryHDU(frame.image, frame.header)])
    elif layout == "triplet":
        out |= _triplet(frame, name, survey.band(visit))
    else:
        mask = fits.ImageHDU(frame.mask, _coordinates(frame.header), name="MASK")
        mask.header.extend(fits.Card(*card) for card in plane_cards())
        planes = [
            fits.ImageHDU(frame.image, frame.header, name="IMAGE"),
            fits.ImageHDU(frame.variance, _coordinates(frame.header), name="VARIANCE"),
            mask,
        ]
        out[f"{name}.fits"] = fits.HDUList([fits.PrimaryHDU(), *planes])
    return out


def _coordinates(header):
    """Return the cards of a header before OBJECT: the coordinates."""
    return header[: header.index("OBJECT")]


def _triplet(frame: Frame, name: str, band: str) -> dict:
    """Return the three files that the DECam Community Pipeline would make of a frame."""
    from astropy.io import fits

    weight = 1 / frame.variance
    weight[frame.mask & bits("BAD") != 0] = 0
    codes = np.zeros(frame.mask.shape, np.int32)
    codes[frame.mask & bits("SAT") != 0] = 3
    codes[frame.mask & bits("BAD", "EDGE") != 0] = 1
    header = frame.header.copy()
    for card in ("GAIN", "RDNOISE"):
        header[f"{card}A"] = header[f"{card}B"] = header.pop(card)
    del header["BUNIT"]
    out = {}
    for letter, plane in (("i", frame.image), ("w", weight), ("d", codes)):
        primary = fits.PrimaryHDU()
        primary.header["PLVER"] = "V4.8.2a"
        image = fits.ImageHDU(plane, header, name=f"S{header['CCDNUM']}")
        out[f"{name}_oo{letter}_{band}.fits"] = fits.HDUList([primary, image])
    return out


def truth_files(survey: Survey) -> dict:
    """Return ``truth/survey.fits``: table STARS, the catalogue, and table EXPOSURES, how each was taken.

    Columns of STARS: RA, DEC (deg), and for each band MAG_<band> and FLUX_<band> (counts at zero point 27).
    Of EXPOSURES: VISIT, SENSOR, BAND, ZEROPOINT (mag), SEEING (arcsec), SKY (counts).
    """
    from astropy.io import fits

    catalogues = {band: survey.catalogue(band) for band in survey.bands}
    first = catalogues[survey.bands[0]]
    stars = [
        fits.Column("RA", "D", "deg", array=first["ra"]),
        fits.Column("DEC", "D", "deg", array=first["dec"]),
    ]
    for band, stars_in_band in catalogues.items():
        stars.append(fits.Column(f"MAG_{band}", "D", "mag", array=stars_in_band["mag"]))
        stars.append(fits.Column(f"FLUX_{band}", "D", "adu", array=stars_in_band["flux"]))
    visit, sensor = np.divmod(np.arange(survey.visits * survey.sensors), survey.sensors)
    facts = [survey.visit(number) for number in range(survey.visits)]
    exposures = [
        fits.Column("VISIT", "J", array=visit),
        fits.Column("SENSOR", "J", array=sensor),
        fits.Column("BAND", "16A", array=np.array([survey.band(number) for number in visit.tolist()])),
        fits.Column("ZEROPOINT", "D", "mag", array=survey.zeropoints().ravel()),
        fits.Column("SEEING", "D", "arcsec", array=np.array([facts[number].seeing for number in visit])),
        fits.Column("SKY", "D", "adu", array=np.array([facts[number].sky for number in visit])),
    ]
    tables = [
        fits.BinTableHDU.from_columns(stars, name="STARS"),
        fits.BinTableHDU.from_columns(exposures, name="EXPOSURES"),
    ]
    return {"truth/survey.fits": fits.HDUList([fits.PrimaryHDU(), *tables])}


# --------------------------------------------------------------------------- checks


def _check(survey: Survey) -> None:
    """Raise ValueError for the first parameter that makes no sense."""
    (bright, faint), (least, most) = survey.magnitudes, survey.seeing
    numbers = [value for value in vars(survey).values() if isinstance(value, int | float)]
    shape = survey.shape
    rules = [
        (all(map(math.isfinite, numbers)), "all numbers must be finite"),
        (survey.visits >= 1 and survey.sensors >= 1, "visits and sensors must be positive"),
        (len(shape) == 2 and min(shape) >= 1, f"shape must be two positive numbers of pixels, not {shape}"),
        (0 <= survey.seed < 2**32, f"seed must be from 0 to 2^32 - 1, not {survey.seed}"),
        (abs(survey.center[1]) <= 90, f"center must be ra, dec in degrees, not {survey.center}"),
        (len(set(survey.bands)) == len(survey.bands) > 0, f"bands must be different, not {survey.bands}"),
        (survey.density >= 0 and survey.cosmic_rays >= 0, "density and cosmic_rays must not be negative"),
        (bright < faint, f"magnitudes must be bright, faint, not {survey.magnitudes}"),
        (
            survey.profile in ("moffat", "gaussian"),
            f"profile must be moffat or gaussian, not {survey.profile}",
        ),
        (survey.beta >= 2, f"beta must be at least 2, not {survey.beta}"),
        (0.6 <= least <= most, f"seeing must be least, most in arcsec, from 0.6 on, not {survey.seeing}"),
        (survey.gain > 0 and survey.readnoise >= 0, "gain must be positive and readnoise not negative"),
        (survey.sky * survey.gain >= LEAST_SKY, f"sky x gain must be at least {LEAST_SKY:g} electrons"),
        (survey.saturate > 3 * survey.sky and survey.exptime > 0, "saturate must be far above the sky"),
        (
            min(survey.dither, survey.rotation, survey.drift) >= 0,
            "dither, rotation, drift must not be negative",
        ),
        (0 <= 2 * survey.edge <= min(shape), f"edge must fit into the sensor, not {survey.edge}"),
        (0 <= survey.bad_columns <= shape[-1], "bad_columns must fit into the sensor"),
    ]
    for holds, message in rules:
        if not holds:
            raise ValueError(message)
    if survey.radius > LARGEST_FIELD:
        raise ValueError(f"the camera may reach {LARGEST_FIELD:g} degrees, not {survey.radius:.2g}")
