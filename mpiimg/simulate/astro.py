"""A sky survey of any size whose truth is known.

A camera of several sensors points at one field again and again, a little
displaced each time. Every pixel is a pure function of the survey's parameters,
the visit and the sensor, so any rank makes any exposure, to the last bit.

Positions are pixels counted from 0 at the centre of the first pixel, (x, y);
arrays have axes (y, x). Fluxes are counts (ADU) of the exposure, those of the
catalogue counts at the zero point 27.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.simulate.profiles import PIXEL_SCALE
from mpiimg.simulate.sensor import add_cosmic_rays, add_noise, defects, scene
from mpiimg.simulate.sky import VISIT, ZEROPOINT, exposure_header, generator, positions, stars

#: Pixels between neighbouring sensors.
GAP = 100

#: Degrees from the centre beyond which the distortion would fold the sky.
MAX_FIELD = 3.0

#: Electrons of sky below which counts are too few for the noise that is drawn here.
MIN_SKY = 50.0


class SimulatedExposure(NamedTuple):
    """An exposure of one sensor, with its truth.

    Parameters
    ----------
    image, variance : (ny, nx) float32
        In counts and counts squared.
    mask : (ny, nx) int32
        The bits of :mod:`mpiimg.astro.fits.maskplanes`.
    cosmic_rays : (ny, nx) bool
        The pixels that cosmic rays changed.
    header : astropy.io.fits.Header
        The coordinates, and the cards of a telescope.
    """

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray
    cosmic_rays: np.ndarray
    header: object


class Visit(NamedTuple):
    """Conditions that all sensors of a visit share.

    Parameters
    ----------
    offset : (float, float)
        Displacement of the camera to the east and north, in degrees.
    rotation : float
        Rotation of the camera, in degrees.
    seeing : float
        Full width at half maximum, in arcseconds.
    sky : float
        Counts per pixel at the centre of the field.
    gradient : (float, float, float)
        Relative change of the sky from the centre to the edge of the camera along x, y and xy.
    """

    offset: tuple[float, float]
    rotation: float
    seeing: float
    sky: float
    gradient: tuple[float, float, float]


@dataclass(frozen=True)
class SimulatedSurvey:
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
        Stars per square arcminute.
    magnitudes : (bright, faint)
        Range of the catalogue in the first band.
    profile : str
        "moffat" or "gaussian".
    beta : float
        Of Moffat's profile, at least 2.
    seeing : (float, float)
        Smallest and largest full width at half maximum in arcseconds; a visit's is uniform in between.
    dither : float
        Pointings are uniform within plus and minus this, arcseconds.
    rotation : float
        Rotations of the camera likewise, degrees.
    sky : float
        Mean counts per pixel; a visit's scatters by a tenth.
    gain, readnoise : float
        Electrons per count; electrons.
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
        random = generator(VISIT, self.seed, visit)
        offset = random.uniform(-self.dither / 3600, self.dither / 3600, 2)
        rotation = random.uniform(-self.rotation, self.rotation)
        seeing = random.uniform(*self.seeing)
        sky = self.sky * max(0.5, 1 + 0.1 * random.standard_normal())
        gradient = random.normal(0, (0.04, 0.04, 0.02))
        return Visit(tuple(offset.tolist()), rotation, seeing, sky, tuple(gradient.tolist()))

    def true_zeropoint(self, visit: int, sensor: int) -> float:
        """Return the magnitude of one count in an exposure."""
        of_visit = generator(ZEROPOINT, self.seed, 0, visit).standard_normal()
        of_sensor = generator(ZEROPOINT, self.seed, 1, sensor).standard_normal()
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
        ra, dec, magnitudes = stars(self)
        return {
            "ra": ra,
            "dec": dec,
            "mag": magnitudes[place],
            "flux": 10 ** (0.4 * (ZERO_POINT - magnitudes[place])),
        }

    def header(self, visit: int, sensor: int):
        """Return the header of an exposure: coordinates, and what a telescope says."""
        return exposure_header(self, *self._checked(visit, sensor))

    def positions(
        self, visit: int, sensor: int, margin: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which stars fall on an exposure, or at most `margin` pixels beside it.

        Returns
        -------
        index : (n,) intp
            Places in the catalogue, ascending.
        x, y : (n,) float64
            Pixels.
        """
        return positions(self, *self._checked(visit, sensor), margin)

    def exposure(self, visit: int, sensor: int, cosmic_rays: bool = True) -> SimulatedExposure:
        """Make an exposure.

        Parameters
        ----------
        visit, sensor : int
        cosmic_rays : bool
            Without them everything else stays as it is, the noise too.

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
        image = scene(self, visit, sensor)
        add_noise(self, image, visit, sensor)
        mask = defects(self, image, sensor)
        hit = np.zeros(self.shape, bool)
        if cosmic_rays:
            add_cosmic_rays(self, image, mask, hit, (visit, sensor))
        variance = np.maximum(image, np.float32(0))
        variance *= np.float32(1 / self.gain)
        variance += np.float32((self.readnoise / self.gain) ** 2)
        return SimulatedExposure(image, variance, mask, hit, self.header(visit, sensor))

    def _checked(self, visit: int, sensor: int) -> tuple[int, int]:
        visit, sensor = operator.index(visit), operator.index(sensor)
        if not (0 <= visit < self.visits and 0 <= sensor < self.sensors):
            raise ValueError(
                f"visit {visit}, sensor {sensor} is not one of {self.visits} visits of {self.sensors} sensors"
            )
        return visit, sensor


def _check(survey: SimulatedSurvey) -> None:
    """Raise ValueError for the first parameter that makes no sense."""
    (bright, faint), (best, worst) = survey.magnitudes, survey.seeing
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
        (0.6 <= best <= worst, f"seeing must be best, worst in arcsec, from 0.6 on, not {survey.seeing}"),
        (survey.gain > 0 and survey.readnoise >= 0, "gain must be positive and readnoise not negative"),
        (survey.sky * survey.gain >= MIN_SKY, f"sky x gain must be at least {MIN_SKY:g} electrons"),
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
    if survey.radius > MAX_FIELD:
        raise ValueError(f"the camera may reach {MAX_FIELD:g} degrees, not {survey.radius:.2g}")
