"""Exposures of skies whose truth is known, drawn by GalSim: for benchmarks/sky_truth.py.

Nothing of mpiimg makes them: profiles, seeing, noise and coordinates are GalSim's and astropy's. Positions
are degrees and pixels counted from 0; fluxes are counts of an exposure of zero point 30.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

#: Magnitude of one count, arcseconds of a pixel, electrons of a count, electrons of the readout.
ZERO_POINT, PIXEL, GAIN, READ_NOISE = 30.0, 0.263, 4.0, 7.0

#: Counts of sky in a pixel.
SKY = 250.0

#: Where the field is, degrees.
CENTER = (150.0, 2.2)


@dataclass(frozen=True)
class Scene:
    """What is in the sky.

    Parameters
    ----------
    side : int
        Pixels of an exposure along x and y.
    seed : int
    stars, galaxies : float
        Of each square arcminute.
    magnitudes : (bright, faint)
        Uniform in between.
    beta : float
        Of Moffat's profile, which stars have.
    color : float
        Magnitude in g less that in r, the mean; it scatters by 0.4.
    """

    side: int = 900
    seed: int = 1
    stars: float = 12.0
    galaxies: float = 12.0
    magnitudes: tuple[float, float] = (18.0, 26.0)
    beta: float = 3.0
    color: float = 0.6

    @property
    def wcs(self) -> WCS:
        """The coordinates of an exposure that is not displaced."""
        return wcs_of(self.side)

    def truth(self) -> Table:
        """Return the objects: ra, dec, mag_r, mag_g, star, half-light radius (arcsec), axis ratio, angle."""
        random = np.random.default_rng(self.seed)
        area = (self.side * PIXEL / 60) ** 2
        count = [int(self.stars * area), int(self.galaxies * area)]
        n = sum(count)
        x, y = random.uniform(15, self.side - 16, (2, n))
        ra, dec = self.wcs.all_pix2world(x, y, 0)
        mag = random.uniform(*self.magnitudes, n)
        color = random.normal(self.color, 0.4, n)
        star = np.arange(n) < count[0]
        radius = np.where(star, 0.0, random.uniform(0.3, 0.8, n))
        ratio, angle = random.uniform(0.4, 1, n), random.uniform(0, 180, n)
        names = ("ra", "dec", "mag_r", "mag_g", "star", "radius", "ratio", "angle")
        return Table([ra, dec, mag, mag + color, star, radius, ratio, angle], names=names)


@dataclass(frozen=True)
class Visit:
    """How an exposure was taken.

    Parameters
    ----------
    fwhm : float
        Arcseconds.
    shift : (x, y)
        Pixels that the camera is displaced by.
    band : str
    seed : int
        Of the noise.
    sky_left : float
        Counts of sky that are left in the image; the noise is that of all sky in any case.
    """

    fwhm: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    band: str = "r"
    seed: int = 0
    sky_left: float = SKY


def wcs_of(side: int, shift: tuple[float, float] = (0.0, 0.0)) -> WCS:
    """Return a tangent plane about the centre, north up and east left."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], CENTER
    wcs.wcs.crpix = [(side + 1) / 2 + shift[0], (side + 1) / 2 + shift[1]]
    wcs.wcs.cd = np.diag([-PIXEL, PIXEL]) / 3600
    return wcs


def clean(scene: Scene, truth: Table, visit: Visit) -> np.ndarray:
    """Return what is seen of the objects, without sky and noise, (side, side) float64 counts."""
    image = galsim.ImageD(scene.side, scene.side, scale=PIXEL)
    psf = galsim.Moffat(beta=scene.beta, fwhm=visit.fwhm)
    x, y = wcs_of(scene.side, visit.shift).all_world2pix(truth["ra"], truth["dec"], 0)
    for row, px, py in zip(truth, x, y, strict=True):
        flux = 10 ** (0.4 * (ZERO_POINT - row[f"mag_{visit.band}"]))
        drawn = psf
        if not row["star"]:
            # galsim's angles are counter-clockwise from +x.
            shape = {"q": float(row["ratio"]), "beta": float(row["angle"]) * galsim.degrees}
            drawn = galsim.Convolve(
                galsim.Exponential(half_light_radius=float(row["radius"])).shear(**shape), psf
            )
        size = int(min(400, max(48, 24 * visit.fwhm / PIXEL)))
        center = galsim.PositionD(px + 1, py + 1)
        stamp = drawn.withFlux(flux).drawImage(nx=size, ny=size, scale=PIXEL, center=center, dtype=float)
        common = stamp.bounds & image.bounds
        if common.isDefined():
            image[common] += stamp[common]
    return image.array


def expose(scene: Scene, visit: Visit, light: np.ndarray) -> np.ndarray:
    """Return an exposure of the light of objects: with sky, Poisson noise and readout, float32 counts."""
    random = np.random.default_rng((scene.seed, visit.seed, 1))
    electrons = random.poisson(np.maximum(light + SKY, 0) * GAIN) + random.normal(0, READ_NOISE, light.shape)
    return (electrons / GAIN - SKY + visit.sky_left).astype(np.float32)


def header(scene: Scene, visit: Visit, number: int) -> fits.Header:
    """Return the cards of an exposure."""
    cards = wcs_of(scene.side, visit.shift).to_header()
    cards["FILTER"], cards["GAIN"], cards["RDNOISE"], cards["EXPTIME"] = visit.band, GAIN, READ_NOISE, 90.0
    cards["MAGZERO"], cards["SATURATE"], cards["BUNIT"] = ZERO_POINT, 45000.0, "adu"
    cards["DATE-OBS"], cards["EXPNUM"] = f"2026-01-{1 + number:02d}T04:00:00", 1000 + number
    return cards


def write(folder: Path, scene: Scene, visits: Sequence[Visit], images: Sequence[np.ndarray]) -> list[Path]:
    """Write exposures as files of an image each; return these."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (visit, image) in enumerate(zip(visits, images, strict=True)):
        paths.append(folder / f"visit-{number:02d}-{visit.band}.fits")
        fits.PrimaryHDU(image, header(scene, visit, number)).writeto(paths[-1], overwrite=True)
    return paths


def observed(folder: Path, scene: Scene, visits: Sequence[Visit]) -> tuple[list[Path], Table]:
    """Write the exposures of a scene; return their files, and the truth."""
    truth, lights = scene.truth(), {}
    for visit in visits:
        key = dataclasses.replace(visit, seed=0, sky_left=0)
        if key not in lights:
            lights[key] = clean(scene, truth, visit)
    images = [
        expose(scene, visit, lights[dataclasses.replace(visit, seed=0, sky_left=0)]) for visit in visits
    ]
    return write(folder, scene, visits, images), truth
