"""The numbers of calibration: sky, stars, aperture correction, and zero points.

Plain functions from arrays to arrays. A frame's stars are measured on their own; zero points compare the
stars of all exposures of a band. Every sum runs in the order of its input, so the caller's order of
exposures, and nothing else, decides the bits.

References
----------
Background and extraction: E. Bertin and S. Arnouts 1996, A&AS 117, 393, doi:10.1051/aas:1996164, by way of
sep, K. Barbary 2016, doi:10.21105/joss.00058. Relative zero points from overlaps: N. Padmanabhan et al. 2008,
ApJ 674, 1217, doi:10.1086/524677. Mode by half samples: D. Bickel and R. Fruehwirth 2006, CSDA 50, 3500,
doi:10.1016/j.csda.2005.07.011.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpiimg.errors import BadInput

#: All exposures are brought to this zero point: a source of magnitude 27 has a flux of 1.
COMMON_ZERO_POINT = 27.0

#: Standard deviations per median absolute deviation, for normal noise; and magnitudes per relative error.
SIGMA_PER_MAD = 1.482602218505602
MAGNITUDES_PER_RELATIVE_ERROR = 2.5 / np.log(10)

#: No two measurements of a star are trusted to agree better than this (magnitudes): flat fields, colours.
FLOOR = 0.005

#: Nor is a star's ratio of aperture fluxes: the shape of stars varies over a frame.
RATIO_FLOOR = 0.01

#: The variance of a pixel's own width, as that of a squared FWHM: sums spread its flux over its area.
PIXEL_FWHM_SQUARED = 8 * np.log(2) / 12

#: Deviations beyond this many times the scatter are outliers.
CLIP = 4.0


# --- One frame: sky and stars -------------------------------------------------------------------------------


class Sky(NamedTuple):
    """The sky of a frame, in the frame's unit."""

    map: np.ndarray  # (h, w) float32
    level: float  # its median over the frame
    noise: float  # standard deviation of the pixels about it


class Settings(NamedTuple):
    """How stars are measured. Radii of apertures in units of the frame's FWHM."""

    threshold: float = 5.0  # of detection, in standard deviations of a pixel
    least_area: int = 5  # pixels above it
    small: float = 1.0
    large: float = 3.0
    least_snr: float = 20.0  # flux / error in the small aperture
    least_roundness: float = 0.6  # minor / major axis
    size_tolerance: float = 0.25  # of a star's FWHM about the frame's, relative
    faint_neighbour: float = 0.01  # of a star's flux: fainter ones leave it isolated
    fewest: int = 5  # stars for a FWHM or an aperture correction
    reach: float = 6.0  # of a source that is not sky, in its own semi-axes (standard deviations)


class Stars(NamedTuple):
    """Unsaturated point sources of a frame, in order of detection; arrays of one length, float64."""

    x: np.ndarray  # windowed centroid, pixels, 0 at the centre of the first
    y: np.ndarray
    flux: np.ndarray  # in the small aperture, unit of the frame
    flux_error: np.ndarray
    large_flux: np.ndarray  # in the large aperture
    large_flux_error: np.ndarray
    fwhm: np.ndarray  # pixels: twice the radius of half the large aperture's flux, less the pixel's width
    isolated: np.ndarray  # bool: nothing else, and nothing masked, in the large aperture


class FrameStars(NamedTuple):
    """What the stars of one frame say. NaN where there are too few."""

    stars: Stars
    fwhm: float  # pixels
    correction: float  # large / small aperture flux
    correction_error: float
    correction_count: int  # stars it is the median of


def clipped_median(values: np.ndarray, clip: float = 3.0) -> tuple[float, float]:
    """Return the median and standard deviation of values, clipped about the median until nothing changes.

    NaN for no values.
    """
    kept = np.sort(np.asarray(values, np.float64), axis=None)
    if not kept.size:
        return np.nan, np.nan
    while True:
        centre, reach = np.median(kept), clip * kept.std()
        # Rounding must not reject equal values.
        inside = np.abs(kept - centre) <= max(reach, 1e-12 * abs(centre))
        if inside.all():
            return float(centre), float(kept.std())
        kept = kept[inside]


def sky_background(image: np.ndarray, masked: np.ndarray, mesh: int = 64, filter_size: int = 3) -> Sky:
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

    Returns
    -------
    Sky

    Raises
    ------
    BadInput
        No pixel is left.
    """
    import sep

    masked = masked | ~np.isfinite(image)
    if masked.all():
        raise BadInput("all pixels are masked or not finite: there is no sky to measure")
    if min(image.shape) < 2 * mesh:
        level, noise = clipped_median(image[~masked])
        return Sky(np.full(image.shape, level, np.float32), level, noise)
    image = np.where(masked, np.float32(0), image)
    background = sep.Background(image, mask=masked, bw=mesh, bh=mesh, fw=filter_size, fh=filter_size)
    sky = background.back(dtype=np.float32)
    # It is smooth: some of its pixels have the median of all.
    return Sky(sky, float(np.median(sky[::8, ::8])), float(background.globalrms))


def _extract(image, variance, masked, settings):
    """Detect sources with sep, in its order; with buffers as large as it takes."""
    import sep

    limits = {
        "pixel buffer full": (sep.get_extract_pixstack, sep.set_extract_pixstack, max(image.size, 300_000)),
        "deblending overflow": (sep.get_sub_object_limit, sep.set_sub_object_limit, 100_000),
    }
    before = [(put, get()) for get, put, _ in limits.values()]
    try:
        while True:
            try:
                return sep.extract(
                    image, settings.threshold, var=variance, mask=masked, minarea=settings.least_area
                )
            except Exception as error:
                # sep has no exceptions of its own: the message tells.
                full = [limit for says, limit in limits.items() if says in str(error)]
                if not full or full[0][0]() >= full[0][2]:
                    raise
                get, put, most = full[0]
                put(min(4 * get(), most))
    finally:
        for put, value in before:
            put(value)


def detect_sources(
    image: np.ndarray,
    variance: np.ndarray,
    masked: np.ndarray,
    settings: Settings = Settings(),  # noqa: B008 (immutable)
) -> np.ndarray:
    """Detect the sources of a frame without its sky: sep's structured array of objects, in sep's order.

    Image, variance and mask are those of :func:`measure_stars`.
    """
    return _extract(*_known(image, variance, masked), settings)


def source_pixels(objects: np.ndarray, shape: tuple[int, int], reach: float = Settings().reach) -> np.ndarray:
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
    kept = np.sort(values)
    if not kept.size:
        return np.nan
    while kept.size > 2:
        half = (kept.size + 1) // 2
        start = int(np.argmin(kept[half - 1 :] - kept[: kept.size - half + 1]))
        kept = kept[start : start + half]
    return float(kept.mean())


def frame_fwhm(sizes: np.ndarray, tolerance: float, fewest: int) -> float:
    """Return the FWHM of a frame: the median about the mode, since galaxies are larger and hits smaller.

    `sizes` are FWHM of round, isolated sources; NaN where fewer than `fewest` lie within `tolerance` of the
    mode, relative.
    """
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    centre = half_sample_mode(sizes)
    for _ in range(2):
        near = sizes[np.abs(sizes - centre) <= tolerance * centre] if sizes.size else sizes
        if near.size < fewest:
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
    settings: Settings = Settings(),  # noqa: B008 (immutable)
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
    settings : Settings
    objects : structured array, optional
        What :func:`detect_sources` found; it is called if this is not given.

    Returns
    -------
    FrameStars
        With no stars, and NaN, where fewer than `settings.fewest` round sources agree on a FWHM.

    Notes
    -----
    The aperture correction is the median ratio of the fluxes of isolated stars, weighted by what their noise
    and RATIO_FLOOR allow, so that many faint stars do not blur what the bright ones tell. It turns a star's
    small flux into its total one (:func:`magnitudes`).
    """
    image, variance, unknown = _known(image, variance, masked)
    if objects is None:
        objects = _extract(image, variance, unknown, settings)
    single = (objects["flag"] == 0) & (objects["b"] >= settings.least_roundness * objects["a"])
    tolerance, fewest = settings.size_tolerance, settings.fewest

    # Moments above the threshold are too small a measure, but good enough for a first aperture.
    bright = single & (objects["flux"] >= np.median(objects["flux"][single])) if single.any() else single
    fwhm = frame_fwhm(2.355 * np.sqrt(objects["a"] * objects["b"])[bright], tolerance, fewest)
    if np.isfinite(fwhm):
        stars, whole = _measure_apertures(image, variance, objects, unknown | saturated, fwhm, settings)
        bright = whole & single & (stars.flux > settings.least_snr * stars.flux_error)
        fwhm = frame_fwhm(stars.fwhm[bright & stars.isolated], tolerance, fewest)
    if not np.isfinite(fwhm):
        return FrameStars(Stars(*np.zeros((7, 0)), np.zeros(0, dtype=bool)), np.nan, np.nan, np.nan, 0)
    stars, whole = _measure_apertures(image, variance, objects, unknown | saturated, fwhm, settings)
    bright = whole & single & (stars.flux > settings.least_snr * stars.flux_error)
    chosen = bright & (np.abs(stars.fwhm - fwhm) <= tolerance * fwhm)
    stars = Stars(*(field[chosen] for field in stars))
    return FrameStars(stars, fwhm, *_aperture_correction(stars, fewest))


def measure_frame(
    image: np.ndarray,
    variance: np.ndarray,
    masked: np.ndarray,
    saturated: np.ndarray,
    settings: Settings = Settings(),  # noqa: B008 (immutable)
    mesh: int = 64,
    filter_size: int = 3,
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

    Returns
    -------
    Sky, FrameStars

    Raises
    ------
    BadInput
        All pixels are masked, saturated, or not finite.
    """
    unusable = masked | saturated | ~np.isfinite(image)
    sky = sky_background(image, unusable, mesh, filter_size)
    objects = detect_sources(image - sky.map, variance, masked, settings)
    unusable |= source_pixels(objects, image.shape, settings.reach)
    if not unusable.all():
        sky = sky_background(image, unusable, mesh, filter_size)
    return sky, measure_stars(image - sky.map, variance, masked, saturated, settings, objects)


def _measure_apertures(image, variance, objects, unusable, fwhm, settings):
    """Measure all detections. Return them, and which have a small aperture that is whole."""
    import sep

    small, large = settings.small * fwhm, settings.large * fwhm
    x, y, _ = sep.winpos(image, objects["x"], objects["y"], fwhm / 2.355, mask=unusable)
    # Beside a neighbour a windowed centroid may run away.
    astray = ~(np.hypot(x - objects["x"], y - objects["y"]) < fwhm / 2)
    x, y = np.where(astray, objects["x"], x), np.where(astray, objects["y"], y)
    aperture = {"var": variance, "mask": unusable, "subpix": 0}
    flux, error, flags = sep.sum_circle(image, x, y, small, **aperture)
    large_flux, large_error, large_flags = sep.sum_circle(image, x, y, large, **aperture)
    half_light, _ = sep.flux_radius(image, x, y, np.full(x.shape, large), 0.5, mask=unusable, subpix=5)
    alone = _isolated(x, y, flux, large + small, settings.faint_neighbour) & (large_flags == 0)
    size = np.sqrt(np.maximum((2 * half_light) ** 2 - PIXEL_FWHM_SQUARED, 0))
    return Stars(x, y, flux, error, large_flux, large_error, size, alone), flags == 0


def _aperture_correction(stars, fewest):
    """Return the median ratio of large to small flux of isolated stars, its error and their number."""
    flux, large_flux = stars.flux[stars.isolated], stars.large_flux[stars.isolated]
    if flux.size < fewest:
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


def magnitudes(
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
    known = np.where(flux > 0, flux, np.nan)
    return zero_point - 2.5 * np.log10(known * correction), MAGNITUDES_PER_RELATIVE_ERROR * (error / known)


def flux_scale(zero_point: float) -> float:
    """Return the factor that brings pixels of `zero_point` to the common one; variances take its square."""
    return float(10 ** (0.4 * (COMMON_ZERO_POINT - zero_point)))


# --- Many exposures: matches and zero points ----------------------------------------------------------------


class Catalogue(NamedTuple):
    """Stars on the sky: those of an exposure, or of a reference; arrays of one length, float64."""

    ra: np.ndarray  # degrees, ICRS
    dec: np.ndarray
    magnitude: np.ndarray
    error: np.ndarray  # of the magnitude


class Pairs(NamedTuple):
    """Exposures that share stars: first < second, in the order of these; arrays of one length."""

    first: np.ndarray  # int
    second: np.ndarray
    difference: np.ndarray  # mean magnitude of the first minus that of the second
    weight: np.ndarray  # 1 / variance of the difference, magnitudes^-2
    count: np.ndarray  # stars it is the mean of


class Solution(NamedTuple):
    """Zero points of exposures relative to those of their group."""

    offsets: np.ndarray  # (exposures,) magnitudes to add; their mean over a group is 0; NaN: unsolved
    groups: np.ndarray  # (exposures,) int, in the order of their first exposures; -1: unsolved
    errors: np.ndarray  # (exposures,) standard deviation of an offset, magnitudes
    used: np.ndarray  # (pairs,) bool: not an outlier


def _unit_vectors(ra, dec):
    """Return points of the unit sphere, (n, 3), for coordinates in degrees."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def _chord(degrees):
    """Return the distance through the unit sphere of two points this far apart on it."""
    return 2 * np.sin(np.radians(degrees) / 2)


class _Sky:
    """A catalogue with its search tree and its extent."""

    def __init__(self, catalogue: Catalogue):
        from scipy.spatial import cKDTree

        known = np.isfinite(catalogue.magnitude) & np.isfinite(catalogue.error)
        self.catalogue = Catalogue(*(np.asarray(field, np.float64)[known] for field in catalogue))
        self.points = _unit_vectors(self.catalogue.ra, self.catalogue.dec)
        self.tree = cKDTree(self.points)
        self.centre = self.points.mean(axis=0) if len(self.points) else np.zeros(3)
        self.extent = np.linalg.norm(self.points - self.centre, axis=1).max(initial=0.0)

    def match(self, other: _Sky, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of mutual nearest neighbours within `radius` (arcsec), ours ascending."""
        reach = _chord(radius / 3600)
        apart = np.linalg.norm(self.centre - other.centre)
        if not len(self.points) or not len(other.points) or apart > self.extent + other.extent + reach:
            return np.zeros(0, int), np.zeros(0, int)
        distance, nearest = other.tree.query(self.points)
        near = np.flatnonzero(distance <= reach)
        _, back = self.tree.query(other.points[nearest[near]])
        mutual = back == near
        return near[mutual], nearest[near[mutual]]


def match_stars(first: Catalogue, second: Catalogue, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Match the stars of two catalogues by place: mutual nearest neighbours within a radius.

    Stars without a finite magnitude and error are left out.

    Parameters
    ----------
    first, second : Catalogue
    radius : float
        Arcseconds.

    Returns
    -------
    (n,) int, (n,) int
        Indices into `first`, ascending, and into `second`; no star occurs twice.
    """
    ones, others = (np.flatnonzero(np.isfinite(c.magnitude) & np.isfinite(c.error)) for c in (first, second))
    i, j = _Sky(first).match(_Sky(second), radius)
    return ones[i], others[j]


def robust_mean(values: np.ndarray, errors: np.ndarray) -> tuple[float, float, int]:
    """Return the weighted mean of values clipped about the median, its error, and how many are left.

    Values further from the mean than CLIP times their scatter, or CLIP times their own error where that is
    more, are left out. The error grows with the scatter where that is more than the errors say. NaN for no
    values.
    """
    weights = 1 / errors**2
    kept = np.ones(len(values), dtype=bool)
    centre = np.median(values) if len(values) else np.nan
    for _ in range(10):
        if not kept.any():
            return np.nan, np.nan, 0
        scatter = SIGMA_PER_MAD * np.median(np.abs(values[kept] - centre))
        inside = np.abs(values - centre) <= CLIP * np.maximum(scatter, errors)
        centre = np.average(values[inside], weights=weights[inside]) if inside.any() else np.nan
        if np.array_equal(inside, kept):
            break
        kept = inside
    count = int(kept.sum())
    excess = np.sum(weights[kept] * (values[kept] - centre) ** 2) / max(count - 1, 1)
    return float(centre), float(np.sqrt(max(excess, 1.0) / weights[kept].sum())), count


def _difference(one, other, radius):
    """Return the mean magnitude difference of two catalogues' common stars, its error, and their number."""
    i, j = one.match(other, radius)
    values = one.catalogue.magnitude[i] - other.catalogue.magnitude[j]
    errors = np.sqrt(one.catalogue.error[i] ** 2 + other.catalogue.error[j] ** 2 + FLOOR**2)
    return robust_mean(values, errors)


def compare_exposures(exposures: Sequence[Catalogue], radius: float = 1.0, fewest: int = 3) -> Pairs:
    """Compare the magnitudes of the stars that exposures of one band share, for all pairs that share enough.

    Parameters
    ----------
    exposures : sequence of Catalogue
        Instrumental magnitudes, aperture correction included.
    radius : float
        Of a match, in arcseconds.
    fewest : int
        Matched stars, outliers left out, that a pair needs.

    Returns
    -------
    Pairs
    """
    skies = [_Sky(exposure) for exposure in exposures]
    found = []
    for i, one in enumerate(skies):
        for j in range(i + 1, len(skies)):
            difference, error, count = _difference(one, skies[j], radius)
            if count >= fewest:
                found.append((i, j, difference, error**-2, count))
    columns = list(zip(*found, strict=True)) or [()] * 5
    types = (int, int, float, float, int)
    return Pairs(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))


def zero_points(
    first: np.ndarray, second: np.ndarray, difference: np.ndarray, weight: np.ndarray, exposures: int
) -> Solution:
    """Solve for the zero points that make the exposures of one band agree, by robust least squares.

    Parameters
    ----------
    first, second : (pairs,) int
        The two exposures of each pair, 0 to `exposures` - 1.
    difference : (pairs,) float64
        Magnitude of the same stars in the first minus that in the second.
    weight : (pairs,) float64
        1 / variance of the difference, magnitudes^-2.
    exposures : int
        How many there are.

    Returns
    -------
    Solution
        Each group of exposures that pairs connect has offsets of mean 0. An exposure in no pair, or only in
        pairs that are outliers, is unsolved, and does not disturb the others.

    Raises
    ------
    ValueError
        Exposures out of range or paired with themselves, or weights that are not positive and finite.

    Notes
    -----
    Minimises the sum of weight x (difference - (offset of second - offset of first))^2. Pairs that disagree
    are first weighed down (Huber's weights, iterated), then those beyond CLIP times the scatter of all, or of
    what their weights say where that is more, are dropped. Where a pair alone connects two parts, nothing
    contradicts it. Errors take pairs as independent, though those of one exposure share the noise of its
    stars; so none is below that of half the variance of the exposure's best pair.
    """
    first, second = np.asarray(first, int), np.asarray(second, int)
    difference, weight = np.asarray(difference, np.float64), np.asarray(weight, np.float64)
    _validate_pairs(first, second, difference, weight, exposures)
    share = np.ones(len(first))
    for _ in range(50):
        offsets, _, _ = _solve(first, second, difference, weight * share, exposures)
        deviation = np.abs(difference - (offsets[second] - offsets[first])) * np.sqrt(weight)
        scatter = max(1.0, SIGMA_PER_MAD * float(np.median(deviation))) if len(deviation) else 1.0
        # Huber: as least squares within 1.345 deviations, as least absolute values beyond.
        before, share = share, np.minimum(1.0, 1.345 * scatter / np.maximum(deviation, 1e-12))
        if np.allclose(before, share, rtol=1e-3, atol=0):
            break
    used = deviation <= CLIP * scatter if len(first) else np.zeros(0, dtype=bool)
    kept = (values[used] for values in (first, second, difference, weight))
    return Solution(*_solve(*kept, exposures), used)


def _validate_pairs(first, second, difference, weight, exposures):
    if not first.shape == second.shape == difference.shape == weight.shape or first.ndim != 1:
        raise ValueError(
            f"pairs need four arrays of one length, not of shapes "
            f"{first.shape}, {second.shape}, {difference.shape} and {weight.shape}"
        )
    if len(first) and (min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= exposures):
        raise ValueError(f"pairs name exposures outside 0 to {exposures - 1}")
    if np.any(first == second):
        raise ValueError(f"exposure {first[first == second][0]} is paired with itself")
    if not np.all(np.isfinite(difference) & np.isfinite(weight) & (weight > 0)):
        raise ValueError("differences must be finite, weights positive and finite")


def _connected(first, second, exposures):
    """Return group numbers in the order of their first members; -1 for exposures in no pair."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first)), (first, second)), shape=(exposures, exposures))
    _, labels = connected_components(graph, directed=False)
    paired = np.zeros(exposures, dtype=bool)
    paired[first] = paired[second] = True
    groups = np.full(exposures, -1)
    _, start, label = np.unique(labels[paired], return_index=True, return_inverse=True)
    groups[paired] = np.argsort(np.argsort(start))[label]
    return groups


def _solve(first, second, difference, weight, exposures):
    """Solve the normal equations group by group: offsets, groups and errors."""
    groups = _connected(first, second, exposures)
    offsets, errors = np.full((2, exposures), np.nan)
    for group in range(groups.max(initial=-1) + 1):
        members = np.flatnonzero(groups == group)
        pairs = groups[first] == group
        i, j = np.searchsorted(members, first[pairs]), np.searchsorted(members, second[pairs])
        n, w = len(members), weight[pairs]
        # Sums in the order of the pairs.
        ends, flow = np.concatenate([i, j]), np.concatenate([-w, w]) * np.tile(difference[pairs], 2)
        right = np.bincount(ends, flow, minlength=n)
        between = np.bincount(i * n + j, w, minlength=n * n).reshape(n, n)
        between += between.T
        laplacian = np.diag(between.sum(axis=1)) - between
        # A constant added to all offsets changes no difference: this term decides it, and nothing else.
        scale = np.trace(laplacian) / n**2
        inverse = np.linalg.inv(laplacian + scale)
        offsets[members] = inverse @ right
        offsets[members] -= offsets[members].mean()
        best = np.zeros(n)
        np.maximum.at(best, np.concatenate([i, j]), np.concatenate([w, w]))
        errors[members] = np.sqrt(np.maximum(np.diag(inverse) - 1 / (scale * n**2), 1 / (2 * best)))
    return offsets, groups, errors


def reference_zero_point(
    stars: Catalogue, reference: Catalogue, radius: float = 1.0, fewest: int = 3
) -> tuple[float, float, int]:
    """Return the zero point of an exposure from a reference catalogue, its error, and how many stars agree.

    Parameters
    ----------
    stars : Catalogue
        Instrumental magnitudes, aperture correction included.
    reference : Catalogue
        Magnitudes in the exposure's band; colour terms are not applied.
    radius : float
        Of a match, in arcseconds.
    fewest : int
        Matched stars, outliers left out, below which zero point and error are NaN.
    """
    value, error, count = _difference(_Sky(reference), _Sky(stars), radius)
    return (value, error, count) if count >= fewest else (np.nan, np.nan, count)
