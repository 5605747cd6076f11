"""Sources on coadds: background, detection, places and shapes, patch by patch.

Background and extraction are sep's (Barbary 2016, doi:10.21105/joss.00058), the library form of
SExtractor (Bertin & Arnouts 1996, doi:10.1051/aas:1996164). Positions are tract pixels: x is a
column, y a row, and centres of pixels are integers. Boxes and origins are (rows, columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpiimg.astro import catalogue
from mpiimg.astro.photometry.apertures import AperturePlanes, measure_fluxes
from mpiimg.astro.photometry.extraction import TooManyParts, extract
from mpiimg.astro.photometry.filtered_noise import filtered_variance
from mpiimg.astro.photometry.masked_sky import masked_background

#: The filter that images are smoothed with before the threshold: SExtractor's default.conv.
FILTER = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))
FILTER_NAME = "default.conv (3x3: 1 2 1, 2 4 2, 1 2 1), plain convolution"

#: Parts that a blend may be split into, at most.
MAX_BLEND_PARTS = 16_384

#: sep's flags for a source split from a blend, and for a blend that was too much for its memory.
MERGED, OVERFLOW = 1, 4

#: Sigma of a Gaussian times this is its full width at half maximum.
FWHM_OF_SIGMA = 2 * np.sqrt(2 * np.log(2))

#: What sep takes as the variance of a pixel that says nothing.
_NO_WEIGHT = np.float32(1e30)


@dataclass(frozen=True)
class DetectionSettings:
    """How sources are found and measured.

    Parameters
    ----------
    threshold : float
        Above which pixels of the filtered image belong to a source, in standard deviations of
        `threshold_noise`.
    threshold_noise : str
        "filtered": of the filtered image; "pixel": sqrt(VARIANCE) of the pixel.
    min_area : int
        Pixels above the threshold.
    deblend : bool
        Split blends.
    levels, contrast : int, float
        Of deblending, as SExtractor's DEBLEND_NTHRESH and DEBLEND_MINCONT.
    radii : (float, float)
        Of the small and the large aperture, pixels.
    mesh : int
        Side of the meshes that the background is measured in, pixels.
    sky : str
        Of masked_sky.SKIES: how it is.
    widths : str
        "profile": widths of isophotes are brought to the FWHM of the stars; "isophotes": they stay.
    neighbours : str
        What pixels of other sources, and masked ones, count as:
        :func:`mpiimg.astro.photometry.apertures.measure_fluxes`.
    """

    threshold: float = 3.75
    threshold_noise: str = "filtered"
    min_area: int = 5
    deblend: bool = True
    levels: int = 32
    contrast: float = 0.005
    radii: tuple[float, float] = (4.0, 10.0)
    mesh: int = 64
    sky: str = "objects-masked"
    widths: str = "profile"
    neighbours: str = "symmetric"


def unusable(image: np.ndarray, variance: np.ndarray, mask: np.ndarray, excluded: int) -> np.ndarray:
    """Return which pixels say nothing: not finite, without variance, or in a plane of `excluded` (bits)."""
    finite = np.isfinite(image) & np.isfinite(variance) & (variance > 0)
    return ~finite | ((mask & excluded) != 0)


def mesh_background(
    image: np.ndarray,
    bad: np.ndarray,
    origin: tuple[int, int],
    mesh: int = 64,
    window: int = 3,
    sky: str = "plain",
) -> tuple[np.ndarray, float]:
    """Measure the background in meshes that lie alike for all patches of a tract.

    A mesh inside two patches gives both the same mode, to the bit. Between
    meshes sep draws splines along whole rows and columns, so that two patches
    agree the better the farther from their borders; see the test for how well.

    Parameters
    ----------
    image, bad : arrays
        (rows, columns) float32 and bool.
    origin : (int, int)
        Of the first pixel, in tract pixels.
    mesh : int
        Side of a mesh in pixels; borders lie at its multiples in the tract.
    window : int
        Side of the median filter over meshes, in meshes.
    sky : str
        Of masked_sky.SKIES: "objects-masked" masks objects before, where they leave enough.

    Returns
    -------
    background : (rows, columns) float32
        An image less than two meshes high or wide, or without a mesh half of whose pixels are good, takes one
        constant, the median clipped at 3 sigma; 0 if none is good.
    rms : float
        Of the noise about it, over the whole image.
    """
    import sep

    if bad.all():
        return np.zeros(image.shape, np.float32), 0.0
    before = [start % mesh for start in origin]
    padding = [(low, -(low + length) % mesh) for low, length in zip(before, image.shape, strict=True)]
    masked = np.pad(bad, padding, constant_values=True)
    rows, columns = (length // mesh for length in masked.shape)
    good = mesh**2 - masked.reshape(rows, mesh, columns, mesh).sum(axis=(1, 3))
    # sep leaves out a mesh with less than half of its pixels and fills it from others; with none, by 0.
    if min(image.shape) < 2 * mesh or good.max() < mesh**2 / 2:
        return _constant_background(image, bad)
    if sky == "objects-masked":
        measured = masked_background(image, bad, tuple(before), mesh, window)
        if measured is not None:
            return measured
    padded = np.pad(np.where(bad, np.float32(0), image).astype(np.float32), padding)
    measured = sep.Background(padded, mask=masked, bw=mesh, bh=mesh, fw=window, fh=window)
    inside = tuple(slice(low, low + length) for low, length in zip(before, image.shape, strict=True))
    return np.ascontiguousarray(measured.back(dtype=np.float32)[inside]), float(measured.globalrms)


def _constant_background(image, bad) -> tuple[np.ndarray, float]:
    from astropy.stats import sigma_clipped_stats

    _, median, deviation = sigma_clipped_stats(image[~bad].astype(np.float64), sigma=3, maxiters=10)
    return np.full(image.shape, median, np.float32), float(deviation)


def find_sources(
    image: np.ndarray,
    variance: np.ndarray,
    mask: np.ndarray,
    nimage: np.ndarray,
    sky: np.ndarray,
    origin: tuple[int, int],
    excluded: int,
    settings: DetectionSettings,
    ratio: float = 1.0,
    variance_ls: np.ndarray | None = None,
    together: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find and measure the sources of a patch.

    Parameters
    ----------
    image, variance, mask, nimage : arrays
        Planes of the coadd, (rows, columns) float32, float32, int32, int16.
    sky : (rows, columns) float32
        Background, which is subtracted.
    origin : (int, int)
        Of the first pixel, in tract pixels.
    excluded : int
        Bits of the mask whose pixels say nothing; saturated stars are to be found, so not SAT.
    settings : DetectionSettings
        Thresholds and apertures.
    ratio : float
        Variance of the filtered image over that of independent pixels:
        :func:`mpiimg.astro.photometry.filtered_noise.noise_ratio`.
    variance_ls : (rows, columns) float32, optional
        Variance for sums over many pixels, that errors of fluxes and of places are made of; VARIANCE without.
    together : (rows, columns) float32, optional
        The image of all bands (:func:`mpiimg.astro.photometry.combined.combined`), on which sources are found
        in place of this band's own, with the places and shapes that they have there. NaN without data.

    Returns
    -------
    table : (sources,) of catalogue.ROW_TYPE
        In the order that sep finds them, without sky positions, magnitudes and names; `parent` numbers the
        blends of the patch from 1, and is 0 outside them.
    segmentation : (rows, columns) int32
        Row of the table + 1, or 0.
    """
    bad = unusable(image, variance, mask, excluded)
    data = np.where(bad, np.float32(0), image - sky).astype(np.float32)
    noise = np.where(bad, _NO_WEIGHT, variance).astype(np.float32)
    limit = np.where(bad, _NO_WEIGHT, threshold_variance(variance, bad, settings, ratio)).astype(np.float32)
    if variance_ls is not None:
        noise = np.where(bad, _NO_WEIGHT, np.where(np.isfinite(variance_ls), variance_ls, variance))
        noise = noise.astype(np.float32)
    if together is None:
        objects, segmentation, overflow = _extract(data, limit, bad, settings, np.array(FILTER, np.float32))
        shown, hidden = data, bad
    else:
        hidden = ~np.isfinite(together)
        shown = np.where(hidden, np.float32(0), together)
        objects, segmentation, overflow = _extract(shown, np.ones_like(shown), hidden, settings, None)
        objects = _with_own_peaks(objects, data, segmentation)
    table = catalogue.new(len(objects))
    if not len(objects):
        return table, segmentation
    _shape(table, objects)
    table["flags"] |= OVERFLOW * overflow
    table["fwhm"] = _widths(data, segmentation, objects)
    widths = np.sqrt(objects["a"] * objects["b"])
    if together is None:
        widths = np.where(np.isfinite(table["fwhm"]), table["fwhm"] / FWHM_OF_SIGMA, widths)
    sigma = np.minimum(widths.astype(np.float64), settings.radii[1] / 4)
    x, y = _centre(objects, shown, hidden, sigma)
    table["x_err"], table["y_err"] = _errors(objects, (x, y), (data, noise, bad), limit, sigma)
    table["x"], table["y"] = x + origin[1], y + origin[0]
    planes = AperturePlanes(data, noise, bad, segmentation)
    detected = AperturePlanes(shown, np.ones_like(shown), hidden, segmentation)
    common = None if together is None else detected
    measure_fluxes(table, objects, x, y, planes, settings.radii, settings.neighbours, common)
    np.bitwise_or.at(table["mask_flags"], segmentation[segmentation > 0] - 1, mask[segmentation > 0])
    centre = tuple(
        np.clip(np.rint(place).astype(int), 0, length - 1)
        for place, length in zip((y, x), image.shape, strict=True)
    )
    table["background"], table["n_image"] = sky[centre], nimage[centre]
    table["parent"] = _blends(segmentation, len(objects))
    return table, segmentation


def threshold_variance(
    variance: np.ndarray, bad: np.ndarray, settings: DetectionSettings, ratio: float
) -> np.ndarray:
    """Return the variance whose root the threshold is in units of; of pixels that say nothing anything.

    Parameters
    ----------
    variance, bad : arrays
        (rows, columns) float32 and bool.
    settings : DetectionSettings
    ratio : float
        As :func:`find_sources` has it.
    """
    if settings.threshold_noise == "filtered":
        return filtered_variance(variance, bad) * np.float32(ratio)
    return variance


def _with_own_peaks(objects, data, segmentation):
    """Return objects that were found on another image with the peaks that they have on this one."""
    from scipy.ndimage import maximum

    objects = objects.copy()
    if len(objects):
        objects["peak"] = maximum(data, segmentation, np.arange(1, len(objects) + 1))
    return objects


def _extract(data, variance, bad, settings, kernel):
    """Return what sep finds, the segmentation, and whether a blend has more parts than sep can number.

    The threshold is in units of the root of `variance`. A patch with such a blend is gone through again
    without deblending.
    """
    how = {
        "filter_kernel": kernel,
        "filter_type": "conv",
        "segmentation_map": True,
    }
    numbers = data, settings.threshold, variance, bad, settings.min_area, MAX_BLEND_PARTS
    contrast = settings.contrast if settings.deblend else 1.0
    try:
        objects, segmentation = extract(
            *numbers, deblend_nthresh=settings.levels, deblend_cont=contrast, **how
        )
        overflow = False
    except TooManyParts:
        objects, segmentation = extract(*numbers, deblend_nthresh=1, deblend_cont=1.0, **how)
        overflow = True
    return objects, np.asarray(segmentation, np.int32), overflow


def _shape(table, objects) -> None:
    """Fill in what sep's extract has measured."""
    table["a"], table["b"], table["theta"] = objects["a"], objects["b"], np.degrees(objects["theta"])
    for name, of_sep in (("peak", "peak"), ("npix", "npix"), ("flags", "flag")):
        table[name] = objects[of_sep]


def _centre(objects, image, bad, sigma):
    """Return x and y of sources, pixels of the patch.

    Gaussian-windowed centroids (SExtractor's XWIN_IMAGE), whose noise comes
    near to the least possible. A member of a blend, a source next to pixels
    without data, and one whose window wanders off keep the barycentre of
    their own pixels. The window is `sigma` wide.
    """
    import sep

    x, y, flag = sep.winpos(image, objects["x"], objects["y"], sigma, mask=bad)
    good = (flag == 0) & (np.hypot(x - objects["x"], y - objects["y"]) < 1) & (objects["flag"] & MERGED == 0)
    return np.where(good, x, objects["x"]), np.where(good, y, objects["y"])


def _errors(objects, places, planes, limit, sigma):
    """Return errors of x and y, from the image, its noise, and what of it says nothing.

    `limit` is the variance that sep has taken for that of pixels.
    """
    _, noise, _ = planes
    variances = _window_variances(*places, sigma, planes)
    own = np.rint(objects["y"]).astype(int), np.rint(objects["x"]).astype(int)
    plain = np.array((objects["errx2"], objects["erry2"])) * (noise[own] / limit[own])
    return np.sqrt(np.fmax(variances, plain))


def _window_variances(x, y, sigma, planes):
    """Return variances of windowed centroids, 4 sum(w^2 var dx^2) / sum(w I)^2, as SExtractor's ERRX2_WIN."""
    data, noise, bad = planes
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    total, spread = np.zeros(len(x)), np.zeros((2, len(x)))
    reach = int(np.ceil(4 * sigma.max()))
    for dy, dx in np.ndindex(2 * reach + 1, 2 * reach + 1):
        j, i = row + dy - reach, column + dx - reach
        inside = (j >= 0) & (j < data.shape[0]) & (i >= 0) & (i < data.shape[1])
        j, i = j * inside, i * inside
        off_x, off_y = i - x, j - y
        square = (off_x**2 + off_y**2) / sigma**2
        weight = np.exp(-square / 2) * (inside & (square < 16) & ~bad[j, i])
        total += weight * data[j, i]
        spread += weight**2 * noise[j, i] * np.stack((off_x**2, off_y**2))
    return np.where(total > 0, 4 * spread / np.where(total > 0, total, 1) ** 2, np.nan)


def _widths(data, segmentation, objects) -> np.ndarray:
    """Return full widths at half maximum from the area inside isophotes, as SExtractor's FWHM_IMAGE.

    Inside a Gaussian's isophote at level I lies an area of 2 pi sigma^2 ln(peak / I): a line is
    fitted to the areas at all pixels above a quarter of the peak. NaN with fewer than 4 pixels.
    """
    inside = segmentation > 0
    source, value = segmentation[inside] - 1, data[inside].astype(np.float64)
    core = (value > 0.25 * objects["peak"][source]) & (value > 0)
    source, value = source[core], value[core]
    order = np.lexsort((-value, source))
    source, level = source[order], np.log(value[order])
    count = np.bincount(source, minlength=len(objects))
    area = np.arange(len(source)) - (np.cumsum(count) - count)[source] + 0.5

    def mean(values):
        return np.bincount(source, values, len(objects)) / count

    with np.errstate(divide="ignore", invalid="ignore"):
        off_level = level - mean(level)[source]
        slope = mean(off_level * area) / mean(off_level**2)
        return np.where(count >= 4, FWHM_OF_SIGMA * np.sqrt(-slope / (2 * np.pi)), np.nan)


def _blends(segmentation, sources: int) -> np.ndarray:
    """Return the number of the blend that each source was split from, from 1; 0 where it was alone."""
    from scipy.ndimage import label

    islands, _ = label(segmentation > 0, structure=np.ones((3, 3), bool))
    inside = segmentation > 0
    island = np.zeros(sources, np.int64)
    island[segmentation[inside] - 1] = islands[inside]
    return np.where(np.bincount(island)[island] > 1, island, 0)
