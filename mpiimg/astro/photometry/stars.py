"""What one frame says of itself: its sky, its stars, and their aperture correction.

Plain functions from arrays to arrays. What the stars of many frames say of each other is in overlaps.py.

References
----------
Background and extraction: E. Bertin and S. Arnouts 1996, A&AS 117, 393, doi:10.1051/aas:1996164, by way of
sep, K. Barbary 2016, doi:10.21105/joss.00058. Mode by half samples: D. Bickel and R. Fruehwirth 2006,
CSDA 50, 3500, doi:10.1016/j.csda.2005.07.011.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD, ZERO_POINT
from mpiimg.astro.photometry.extraction import extract
from mpiimg.astro.photometry.masked_sky import masked_background
from mpiimg.astro.photometry.profiles import star_profile
from mpiimg.errors import BadInput

#: Magnitudes per relative error.
MAGNITUDES_PER_RELATIVE_ERROR = 2.5 / np.log(10)

#: No star's ratio of aperture fluxes is trusted better than this: the shape of stars varies over a frame.
RATIO_FLOOR = 0.01

#: The variance of a pixel's own width, as that of a squared FWHM: sums spread its flux over its area.
PIXEL_FWHM_SQUARED = 8 * np.log(2) / 12

#: Deviations beyond this many times the scatter are outliers.
CLIP = 4.0

#: Parts that a blend of stars is split into, at most.
MAX_STAR_PARTS = 100_000


#: What apertures of stars may be measured in, with the radius of the large one: that of 4 FWHM has as much
#: of the light of seeing (a Moffat profile of beta 3) as that of 3 half-light diameters.
SIZES = {"fwhm": 4.0, "half-light": 3.0}


class Sky(NamedTuple):
    """The sky of a frame, in the frame's unit."""

    map: np.ndarray  # (h, w) float32
    level: float  # its median over the frame
    noise: float  # standard deviation of the pixels about it


class StarSettings(NamedTuple):
    """How stars are measured. Radii of apertures in units of the frame's `size`."""

    threshold: float = 5.0  # of detection, in standard deviations of a pixel
    min_area: int = 5  # pixels above it
    size: str = "fwhm"  # of SIZES: what radii of apertures are measured in
    small: float = 1.0
    large: float = 4.0
    min_snr: float = 20.0  # flux / error in the small aperture
    min_roundness: float = 0.6  # minor / major axis
    size_tolerance: float = 0.25  # of a star's FWHM about the frame's, relative
    faint_neighbour: float = 0.01  # of a star's flux: fainter ones leave it isolated
    min_stars: int = 5  # stars for a size or an aperture correction
    few_stars: int = 3  # that are enough for a size where most of so few sources agree
    reach: float = 6.0  # of a source that is not sky, in its own semi-axes (standard deviations)


def star_settings(size: str) -> StarSettings:
    """Return how stars are measured whose apertures go by a size, of SIZES.

    By half-light diameters as they were before there was a FWHM: no frame has one of fewer than five stars.
    """
    settings = StarSettings(size=size, large=SIZES[size])
    return settings if size == "fwhm" else settings._replace(few_stars=settings.min_stars)


class Stars(NamedTuple):
    """Unsaturated point sources of a frame, in order of detection; arrays of one length, float64."""

    x: np.ndarray  # windowed centroid, pixels, 0 at the centre of the first
    y: np.ndarray
    flux: np.ndarray  # in the small aperture, unit of the frame
    flux_error: np.ndarray
    large_flux: np.ndarray  # in the large aperture
    large_flux_error: np.ndarray
    half_light: np.ndarray  # pixels: diameter of half the large aperture's flux, less the pixel's width
    isolated: np.ndarray  # bool: nothing else, and nothing masked, in the large aperture


class FrameStars(NamedTuple):
    """What the stars of one frame say. NaN where there are too few."""

    stars: Stars
    fwhm: float  # pixels, of the profile of the stars before pixels take its mean
    half_light_diameter: float  # pixels: the median of the stars
    correction: float  # large / small aperture flux
    correction_error: float
    correction_count: int  # stars it is the median of


def clipped_median(values: np.ndarray, clip: float = 3.0) -> tuple[float, float]:
    """Return the median and standard deviation of values, clipped about the median until nothing changes.

    NaN for no values.
    """
    inliers = np.sort(np.asarray(values, np.float64), axis=None)
    if not inliers.size:
        return np.nan, np.nan
    while True:
        centre, reach = np.median(inliers), clip * inliers.std()
        # Rounding must not reject equal values.
        inside = np.abs(inliers - centre) <= max(reach, 1e-12 * abs(centre))
        if inside.all():
            return float(centre), float(inliers.std())
        inliers = inliers[inside]


def sky_background(
    image: np.ndarray,
    masked: np.ndarray,
    mesh: int = 64,
    filter_size: int = 3,
    how: str = "plain",
    sources: np.ndarray | None = None,
) -> Sky:
    """Measure the sky of a frame: sep's clipped modes of meshes, median-filtered and splined.

    Parameters
    ----------
    image : (h, w) float32
        The frame with its sky. NaN and infinite pixels count as masked.
    masked : (h, w) bool
        Pixels that say nothing of the sky.
    mesh : int
        Width and height of a mesh, in pixels. A frame narrower or lower than two of them takes a constant:
        the clipped median.
    filter_size : int
        Width and height of the median filter, in meshes.
    how : str
        Of masked_sky.SKIES: "objects-masked" masks objects before, where they leave enough.
    sources : (h, w) bool, optional
        Pixels of known sources, which are no sky either.

    Returns
    -------
    Sky

    Raises
    ------
    BadInput
        No pixel is left.
    """
    import sep

    unknown = masked | ~np.isfinite(image)
    masked = unknown if sources is None else unknown | sources
    if masked.all():
        raise BadInput("all pixels are masked or not finite: there is no sky to measure")
    if min(image.shape) < 2 * mesh:
        level, noise = clipped_median(image[~masked])
        return Sky(np.full(image.shape, level, np.float32), level, noise)
    if how == "objects-masked":
        measured = masked_background(image, unknown, (0, 0), mesh, filter_size, sources)
        if measured is not None:
            return Sky(measured[0], float(np.median(measured[0][::8, ::8])), measured[1])
    image = np.where(masked, np.float32(0), image)
    background = sep.Background(image, mask=masked, bw=mesh, bh=mesh, fw=filter_size, fh=filter_size)
    sky = background.back(dtype=np.float32)
    # It is smooth: some of its pixels have the median of all.
    return Sky(sky, float(np.median(sky[::8, ::8])), float(background.globalrms))


def detect_sources(
    image: np.ndarray,
    variance: np.ndarray,
    masked: np.ndarray,
    settings: StarSettings = StarSettings(),  # noqa: B008 (immutable)
) -> np.ndarray:
    """Detect the sources of a frame without its sky: sep's structured array of objects, in sep's order.

    Image, variance and mask are those of :func:`measure_stars`.
    """
    return _detect(*_known(image, variance, masked), settings)


def _detect(image, variance, unknown, settings):
    return extract(image, settings.threshold, variance, unknown, settings.min_area, MAX_STAR_PARTS)


def source_pixels(
    objects: np.ndarray, shape: tuple[int, int], reach: float = StarSettings().reach
) -> np.ndarray:
    """Return the pixels, (h, w) bool, of the ellipses of objects, `reach` times their semi-axes.

    Sky measured without these pixels is free of the wings of stars, which otherwise make it too bright by
    about a hundredth of its noise.
    """
    import sep

    pixels = np.zeros(shape, dtype=bool)
    shapes = [objects[name] for name in ("x", "y", "a", "b", "theta")]
    sep.mask_ellipse(pixels, *shapes, r=reach)
    return pixels


def _known(image, variance, masked):
    """Return image and variance with zeros where they are unknown, and where that is."""
    unknown = masked | ~np.isfinite(image) | ~np.isfinite(variance)
    zero = np.float32(0)
    return np.where(unknown, zero, image), np.where(unknown, zero, variance), unknown


def half_sample_mode(values: np.ndarray) -> float:
    """Return the mode of a sample: halve it again and again to its densest half. NaN for none."""
    densest = np.sort(values)
    if not densest.size:
        return np.nan
    while densest.size > 2:
        half = (densest.size + 1) // 2
        start = int(np.argmin(densest[half - 1 :] - densest[: densest.size - half + 1]))
        densest = densest[start : start + half]
    return float(densest.mean())


def frame_size(sizes: np.ndarray, tolerance: float, min_stars: int) -> float:
    """Return the size of a frame's stars: the median about the mode; galaxies are larger and hits smaller.

    `sizes` are those of round, isolated sources; NaN where fewer than `min_stars` lie within `tolerance` of
    the mode, relative.
    """
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    centre = half_sample_mode(sizes)
    for _ in range(2):
        near = sizes[np.abs(sizes - centre) <= tolerance * centre] if sizes.size else sizes
        if near.size < min_stars:
            return np.nan
        centre = float(np.median(near))
    return centre


def _isolated(x, y, flux, radius, faint):
    """Tell which sources have no neighbour within `radius` of more than `faint` times their flux."""
    from scipy.spatial import cKDTree

    places = np.column_stack([x, y])
    alone = np.ones(len(x), dtype=bool)
    if len(x):
        near = cKDTree(places).query_pairs(radius, output_type="ndarray")
        for one, other in (near.T, near[:, ::-1].T):
            alone[one[flux[other] > faint * flux[one]]] = False
    return alone


def measure_stars(
    image: np.ndarray,
    variance: np.ndarray,
    masked: np.ndarray,
    saturated: np.ndarray,
    settings: StarSettings = StarSettings(),  # noqa: B008 (immutable)
    objects: np.ndarray | None = None,
) -> FrameStars:
    """Find the stars of a frame and measure them in a small and a large aperture.

    Parameters
    ----------
    image : (h, w) float32
        The frame without its sky.
    variance : (h, w) float32
        Variance of its pixels, that of the sources' photons included, in the square of its unit.
    masked : (h, w) bool
        Pixels whose value is unknown: no star within a small aperture of them is measured.
    saturated : (h, w) bool
        Saturated pixels: sources with one in their small aperture are no stars, but are neighbours.
    settings : StarSettings
    objects : structured array, optional
        What :func:`detect_sources` found; it is called if this is not given.

    Returns
    -------
    FrameStars
        With no stars, and NaN, where fewer than `settings.min_stars` round sources agree on a size. Of those
        that do, the brightest give the FWHM: :mod:`mpiimg.astro.photometry.profiles`.

    Notes
    -----
    The aperture correction is the median ratio of the fluxes of isolated stars, weighted by what their noise
    and RATIO_FLOOR allow, so that many faint stars do not blur what the bright ones tell. It turns a star's
    small flux into its total one (:func:`star_magnitudes`).
    """
    image, variance, unknown = _known(image, variance, masked)
    if objects is None:
        objects = _detect(image, variance, unknown, settings)
    single = (objects["flag"] == 0) & (objects["b"] >= settings.min_roundness * objects["a"])
    tolerance, min_stars = settings.size_tolerance, settings.min_stars

    # Moments above the threshold are too small a measure, but good enough for a first aperture.
    bright = single & (objects["flux"] >= np.median(objects["flux"][single])) if single.any() else single
    if settings.few_stars < min_stars and np.count_nonzero(bright) < min_stars:
        bright = single
    sizes = 2.355 * np.sqrt(objects["a"] * objects["b"])[bright]
    first = frame_size(sizes, tolerance, _enough(len(sizes), settings))
    half_light = np.nan
    if np.isfinite(first):
        stars, whole = _measure_apertures(image, variance, objects, unknown | saturated, first, settings)
        bright = whole & single & (stars.flux > settings.min_snr * stars.flux_error)
        sizes = stars.half_light[bright & stars.isolated]
        half_light = frame_size(sizes, tolerance, _enough(len(sizes), settings))
    if not np.isfinite(half_light):
        nothing = Stars(*np.zeros((7, 0)), np.zeros(0, dtype=bool))
        return FrameStars(nothing, np.nan, np.nan, np.nan, np.nan, 0)
    fwhm = _fwhm(image, unknown | saturated, stars, bright, half_light, tolerance)
    size = fwhm if settings.size == "fwhm" else half_light
    stars, whole = _measure_apertures(image, variance, objects, unknown | saturated, size, settings)
    bright = whole & single & (stars.flux > settings.min_snr * stars.flux_error)
    chosen = bright & (np.abs(stars.half_light - half_light) <= tolerance * half_light)
    stars = Stars(*(field[chosen] for field in stars))
    return FrameStars(stars, fwhm, half_light, *_aperture_correction(stars, min_stars))


def _enough(sources: int, settings: StarSettings) -> int:
    """Return how many of so many sources must agree on a size: of few, three in five."""
    return min(settings.min_stars, max(settings.few_stars, -(-3 * sources // 5)))


def _fwhm(image, unusable, stars, bright, half_light, tolerance):
    """Return the FWHM of the isolated stars among sources, or their half-light diameter where none fits."""
    good = bright & stars.isolated & (np.abs(stars.half_light - half_light) <= tolerance * half_light)
    fwhm = star_profile(image, unusable, stars.x[good], stars.y[good], stars.flux[good], half_light).fwhm
    return fwhm if np.isfinite(fwhm) else half_light


def measure_frame(
    image: np.ndarray,
    variance: np.ndarray,
    masked: np.ndarray,
    saturated: np.ndarray,
    settings: StarSettings = StarSettings(),  # noqa: B008 (immutable)
    mesh: int = 64,
    filter_size: int = 3,
    first: Sky | None = None,
    how: str = "plain",
) -> tuple[Sky, FrameStars]:
    """Measure sky and stars of a frame that still has its sky.

    The sky is measured twice, the second time without the sources found above the first. Where those leave
    nothing, the first holds.

    Parameters
    ----------
    image, variance, masked, saturated, settings
        As in :func:`measure_stars`, but for the sky.
    mesh, filter_size
        As in :func:`sky_background`.
    first : Sky, optional
        The sky above which sources are looked for, where it has been measured already.
    how : str
        As in :func:`sky_background`, the second time.

    Returns
    -------
    Sky, FrameStars

    Raises
    ------
    BadInput
        All pixels are masked, saturated, or not finite.
    """
    unusable = masked | saturated | ~np.isfinite(image)
    sky = sky_background(image, unusable, mesh, filter_size) if first is None else first
    objects = detect_sources(image - sky.map, variance, masked, settings)
    sources = source_pixels(objects, image.shape, settings.reach)
    if not (unusable | sources).all():
        sky = sky_background(image, unusable, mesh, filter_size, how, sources)
    return sky, measure_stars(image - sky.map, variance, masked, saturated, settings, objects)


def _measure_apertures(image, variance, objects, unusable, size, settings):
    """Measure all detections. Return them, and which have a small aperture that is whole."""
    import sep

    small, large = settings.small * size, settings.large * size
    x, y, _ = sep.winpos(image, objects["x"], objects["y"], size / 2.355, mask=unusable)
    # Beside a neighbour a windowed centroid may run away.
    astray = ~(np.hypot(x - objects["x"], y - objects["y"]) < size / 2)
    x, y = np.where(astray, objects["x"], x), np.where(astray, objects["y"], y)
    aperture = {"var": variance, "mask": unusable, "subpix": 0}
    flux, error, flags = sep.sum_circle(image, x, y, small, **aperture)
    large_flux, large_error, large_flags = sep.sum_circle(image, x, y, large, **aperture)
    radius, _ = sep.flux_radius(image, x, y, np.full(x.shape, large), 0.5, mask=unusable, subpix=5)
    alone = _isolated(x, y, flux, large + small, settings.faint_neighbour) & (large_flags == 0)
    half_light = np.sqrt(np.maximum((2 * radius) ** 2 - PIXEL_FWHM_SQUARED, 0))
    return Stars(x, y, flux, error, large_flux, large_error, half_light, alone), flags == 0


def _aperture_correction(stars, min_stars):
    """Return the median ratio of large to small flux of isolated stars, its error and their number."""
    flux, large_flux = stars.flux[stars.isolated], stars.large_flux[stars.isolated]
    if flux.size < min_stars:
        return np.nan, np.nan, flux.size
    ratio = large_flux / flux
    # The noise of what is between the two apertures, over the star.
    ring = np.maximum(stars.large_flux_error**2 - stars.flux_error**2, 0)[stars.isolated] / flux**2
    weight = 1 / (ring + RATIO_FLOOR**2)
    order = np.argsort(ratio, kind="stable")
    reached = np.cumsum(weight[order])
    middle = ratio[order][np.searchsorted(reached, reached[-1] / 2)]
    deviation = np.abs(ratio - middle)
    # As for the mean, but that a median is less sure of itself, and knows no outliers.
    deviation = np.minimum(deviation, CLIP * SIGMA_PER_MAD * np.median(deviation))
    error = np.sqrt(np.pi / 2 * np.sum((weight * deviation) ** 2)) / weight.sum()
    return float(middle), float(error), flux.size


def star_magnitudes(
    flux: np.ndarray, error: np.ndarray, correction: float = 1.0, zero_point: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return magnitudes of positive fluxes, and their errors; NaN for the others.

    Parameters
    ----------
    flux, error : float64 arrays of one shape
        Fluxes in the small aperture, in the unit of the frame.
    correction : float
        Aperture correction: total / small flux.
    zero_point : float
        Magnitude of a total flux of 1; 0 gives instrumental magnitudes.
    """
    flux = np.asarray(flux, np.float64)
    positive = np.where(flux > 0, flux, np.nan)
    value = zero_point - 2.5 * np.log10(positive * correction)
    return value, MAGNITUDES_PER_RELATIVE_ERROR * (error / positive)


def flux_scale(zero_point: float) -> float:
    """Return the factor that brings pixels of `zero_point` to the common one; variances take its square."""
    return float(10 ** (0.4 * (ZERO_POINT - zero_point)))
