"""What a sensor makes of the light: stars and sky, noise, defects, saturation and cosmic rays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mpiimg.astro.fits.maskplanes import bits
from mpiimg.simulate.profiles import PIXEL_SCALE, add_star, reach
from mpiimg.simulate.sky import COSMIC_RAYS, NOISE, SENSOR, generator, stars

if TYPE_CHECKING:
    from mpiimg.simulate.astro import SimulatedSurvey

#: Cosmic rays per second and pixel: 1500 in 90 s on a sensor of 4000 x 4072.
COSMIC_RAY_RATE = 1500 / 90 / 16.288e6

#: Fewest and most counts that a cosmic ray leaves in a pixel; fewest and most pixels of its track.
COSMIC_RAY_COUNTS, COSMIC_RAY_LENGTH = (150.0, 3000.0), (2, 25)

#: Part of the sky that glows in addition where pixels are flagged EDGE.
GLOW = 0.2

#: Rows of a sensor that are worked on at once, small enough for a cache.
_ROWS = 16


def scene(survey: SimulatedSurvey, visit: int, sensor: int) -> np.ndarray:
    """Return what an exposure would count on average: sky and stars, (ny, nx) float32."""
    image = _sky(survey, visit, sensor)
    facts = survey.visit(visit)
    index, x, y = survey.positions(visit, sensor, margin=reach(survey))
    magnitudes = stars(survey)[2][visit % len(survey.bands)][index]
    fluxes = 10 ** (0.4 * (survey.true_zeropoint(visit, sensor) - magnitudes))
    for star in zip(x.tolist(), y.tolist(), fluxes.tolist(), strict=True):
        add_star(image, star, survey.profile, facts.seeing / PIXEL_SCALE, survey.beta)
    return image


def _sky(survey: SimulatedSurvey, visit: int, sensor: int) -> np.ndarray:
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


def _borders(survey: SimulatedSurvey) -> list[tuple[slice, slice]]:
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


def add_noise(survey: SimulatedSurvey, image: np.ndarray, visit: int, sensor: int) -> None:
    """Turn mean counts into counts, in place; see `SimulatedSurvey.exposure`."""
    random = generator(NOISE, survey.seed, visit, sensor)
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


def defects(survey: SimulatedSurvey, image: np.ndarray, sensor: int) -> np.ndarray:
    """Let full pixels overflow, spoil columns, and return the mask that says so."""
    level = np.float32(survey.saturate)
    bleed(image, level)
    mask = np.zeros(survey.shape, np.int32)
    mask[image >= level] = bits("SAT")
    for rows, columns in _borders(survey):
        mask[rows, columns] |= bits("EDGE")
    for column, first, hot in _bad_columns(survey, sensor):
        image[first:, column] = 0.4 * level if hot else 0
        mask[first:, column] |= bits("BAD")
    return mask


def _bad_columns(survey: SimulatedSurvey, sensor: int) -> list[tuple[int, int, bool]]:
    """Return the bad columns of a sensor: which, from what row on, and whether hot instead of dead."""
    ny, nx = survey.shape
    random = generator(SENSOR, survey.seed, sensor)
    columns = random.permutation(nx)[: survey.bad_columns]
    first = random.integers(0, ny, columns.size) * random.integers(0, 2, columns.size)
    hot = random.integers(0, 2, columns.size) == 1
    return list(zip(columns.tolist(), first.tolist(), hot.tolist(), strict=True))


def bleed(image: np.ndarray, level: np.float32) -> None:
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


def add_cosmic_rays(survey: SimulatedSurvey, image, mask, hit, key: tuple[int, int]) -> None:
    """Add the tracks of cosmic rays, in place; pixels that are bad or full anyhow show none."""
    random = generator(COSMIC_RAYS, survey.seed, *key)
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
