"""Fluxes of sources in apertures: errors, aperture corrections, magnitudes.

Sums are sep's (Barbary 2016, doi:10.21105/joss.00058), Kron ellipses as SExtractor's (Bertin & Arnouts 1996,
doi:10.1051/aas:1996164).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.photometry.spread import deviation

#: Kron ellipse: radii a and b times max(2.5 Kron radii, 3.5), measured out to 6 (PHOT_AUTOPARAMS 2.5,3.5).
KRON_FACTOR, KRON_MIN, KRON_REACH = 2.5, 3.5, 6.0

#: sep's flag for an aperture in which something is masked, and ours for one of which more than this share is.
HAS_REPLACED, MOSTLY_REPLACED, MAX_REPLACED = 32, 256, 0.5

#: What sep takes as the variance of a pixel that says nothing.
_NO_WEIGHT = np.float32(1e30)

#: Neighbours of up to this share of a star's flux leave it good for the aperture correction.
FAINT = 0.005

#: Least empty apertures, or stars, that a factor is measured from.
MIN_APERTURES, MIN_STARS = 30, 5


class AperturePlanes(NamedTuple):
    """What fluxes are summed from, (rows, columns) each."""

    image: np.ndarray  # float32, without background, 0 where it says nothing
    variance: np.ndarray  # float32, that of sums over many pixels where it is known
    bad: np.ndarray  # bool: pixels that say nothing
    segmentation: np.ndarray  # int32: row of the table + 1, or 0


def measure_fluxes(
    table: np.ndarray,
    objects: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    planes: AperturePlanes,
    radii: Sequence[float],
    neighbours: str = "symmetric",
    detected: AperturePlanes | None = None,
) -> None:
    """Fill in fluxes in apertures and Kron ellipses.

    Parameters
    ----------
    table : (sources,) of catalogue.ROW_TYPE
    objects : structured array
        What sep has found.
    x, y : (sources,) float64
        Centres, pixels of the patch.
    planes : AperturePlanes
    radii : sequence of float
        Of the small and the large aperture, pixels.
    neighbours : str
        "symmetric": masked pixels and those of other sources count as the ones opposite the rounded centre,
        and as sky where those are no better; an aperture of which more than MAX_REPLACED is replaced has no
        flux. "mean": they count as the mean of the rest of the aperture.
    detected : AperturePlanes, optional
        What Kron radii are measured on: the image that all bands have in common; `planes` without.
    """
    a, b = objects["a"], objects["b"]
    # Rounding carries some angles beyond the quarter turn that sep accepts.
    theta = np.clip(objects["theta"], -np.pi / 2, np.pi / 2)
    measure = _mean_sums if neighbours == "mean" else _symmetric_sums
    circle = np.ones(len(x)), np.ones(len(x)), np.zeros(len(x))
    for name, radius in zip(("small", "large"), radii, strict=True):
        _fill(table, name, *measure(planes, x, y, circle, np.full(len(x), radius)))
    kron = _kron_radii(detected or planes, x, y, (a, b, theta), neighbours)
    factor = np.fmax(KRON_FACTOR * kron, KRON_MIN)
    _fill(table, "auto", *measure(planes, x, y, (a, b, theta), factor))


def _fill(table, name, flux, error, flag, share) -> None:
    table[f"flux_{name}"], table[f"flux_{name}_err"], table[f"replaced_{name}"] = flux, error, share
    table["flags"] |= flag.astype(np.int16)


def _sep_sums(planes, x, y, ellipse, factor, variance, **own):
    """Return sums over ellipses of `factor` times their axes, by the call of sep that is made for them."""
    import sep

    a, b, theta = ellipse
    if np.array_equal(a, b) and not theta.any():
        return sep.sum_circle(planes.image, x, y, factor * a, var=variance, subpix=0, **own)
    return sep.sum_ellipse(planes.image, x, y, a, b, theta, factor, var=variance, subpix=0, **own)


def _own(planes, sources):
    """Return how sep is told which pixels of an aperture are another's."""
    numbers = np.arange(1, sources + 1, dtype=np.int32)
    return {"mask": planes.bad, "segmap": planes.segmentation, "seg_id": numbers}


def _mean_sums(planes, x, y, ellipse, factor):
    variance = np.where(planes.bad, _NO_WEIGHT, planes.variance)
    sums = _sep_sums(planes, x, y, ellipse, factor, variance, **_own(planes, len(x)))
    return *sums, np.full(len(x), np.nan)


def _symmetric_sums(planes, x, y, ellipse, factor):
    """Return fluxes, their errors, flags, and which share of each ellipse has been replaced."""
    from mpiimg.astro.kernels.replaced import replacements

    variance = np.where(planes.bad, np.float32(0), planes.variance)
    flux, error, flag = _sep_sums(planes, x, y, ellipse, factor, variance)
    good = planes.variance[::4, ::4][~planes.bad[::4, ::4]]
    sky = float(np.median(good)) if good.size else 0.0
    shapes = _coefficients(*ellipse)
    held = planes.image, variance, planes.bad, planes.segmentation
    added = replacements(held, x, y, shapes, factor.astype(np.float64) ** 2, sky)
    area = np.pi * factor**2 * ellipse[0] * ellipse[1]
    share = added[:, 2] / area
    flux, error = flux + added[:, 0], np.sqrt(np.fmax(error**2 + added[:, 1], 0))
    lost = share > MAX_REPLACED
    flag = flag | np.where(share > 0, HAS_REPLACED, 0) | np.where(lost, MOSTLY_REPLACED, 0)
    return np.where(lost, np.nan, flux), np.where(lost, np.nan, error), flag, share


def _coefficients(a, b, theta) -> np.ndarray:
    """Return cxx, cyy and cxy of ellipses, (sources, 3) float64, as SExtractor has them."""
    a, b, theta = (np.asarray(values, np.float64) for values in (a, b, theta))
    cosine, sine = np.cos(theta), np.sin(theta)
    cxx = cosine**2 / a**2 + sine**2 / b**2
    cyy = sine**2 / a**2 + cosine**2 / b**2
    return np.stack((cxx, cyy, 2 * cosine * sine * (1 / a**2 - 1 / b**2)), axis=1)


def _kron_radii(planes, x, y, ellipse, neighbours):
    import sep

    from mpiimg.astro.kernels.replaced import kron_radii

    if neighbours == "mean":
        return sep.kron_radius(planes.image, x, y, *ellipse, KRON_REACH, **_own(planes, len(x)))[0]
    held = planes.image, planes.variance, planes.bad, planes.segmentation
    return kron_radii(held, x, y, _coefficients(*ellipse), KRON_REACH)


def noise_correction(
    image: np.ndarray, variance: np.ndarray, bad: np.ndarray, segmentation: np.ndarray, radius: float
) -> float:
    """Return noise in empty apertures over what VARIANCE predicts: card NOISCORR.

    Resampling correlates the noise of neighbours, so that it adds up faster
    or slower in an aperture than that of single pixels says.

    Parameters
    ----------
    image : (rows, columns) float32
        Less its background.
    variance, bad, segmentation : arrays
        (rows, columns) float32, bool and int32.
    radius : float
        Of the apertures, pixels. They stand on a lattice, side by side, where within another `radius` no
        source and no bad pixel is.

    Returns
    -------
    float
        Factor for errors of fluxes, from the median absolute deviation; 1 with fewer than 30 empty apertures.
    """
    import sep
    from scipy.ndimage import maximum_filter

    taken = maximum_filter(segmentation > 0, size=2 * int(np.ceil(radius)) + 1) | bad
    step = int(np.ceil(2 * radius)) + 1
    y, x = (
        grid.ravel().astype(float)
        for grid in np.mgrid[step : image.shape[0] : step, step : image.shape[1] : step]
    )
    data = np.where(bad, np.float32(0), image).astype(np.float32)
    noise = np.where(bad, np.float32(1), variance).astype(np.float32)
    flux, error, flag = sep.sum_circle(data, x, y, radius, var=noise, mask=taken, subpix=0)
    empty = flag == 0
    if empty.sum() < MIN_APERTURES:
        return 1.0
    ratio = flux[empty] / error[empty]
    return deviation(ratio)


def scale_errors(table: np.ndarray, factor: float) -> np.ndarray:
    """Return the sources with the errors of all fluxes times `factor`, of :func:`noise_correction`."""
    table = table.copy()
    for name in ("small", "large", "auto"):
        table[f"flux_{name}_err"] *= np.float32(factor)
    return table


def aperture_correction(table: np.ndarray, saturated: int, radius: float, faint: float = 0.0) -> float:
    """Return the flux in the large aperture over that in the small one, of bright, isolated stars.

    Parameters
    ----------
    saturated : int
        Bits of the mask whose stars are left out.
    radius : float
        Of the large aperture, pixels; a star is isolated when no source is within twice that.
    faint : float
        Sources of up to this share of a star's flux leave it isolated, and so does what is replaced of its
        apertures up to that share; 0: none do.

    Returns
    -------
    float
        The median over stars with 50 times their error, no flag, and a width within 20 % of the median of
        such sources; NaN with fewer than 5.
    """
    with np.errstate(invalid="ignore"):
        good = clean(table, faint) & (table["mask_flags"] & saturated == 0) & np.isfinite(table["fwhm"])
        good &= table["flux_large"] > 50 * table["flux_large_err"]
    if good.sum() < MIN_STARS:
        return float("nan")
    good &= alone(table, 2 * radius, faint)
    width = np.median(table["fwhm"][good]) if good.any() else np.nan
    good &= np.abs(table["fwhm"] - width) < 0.2 * width
    if good.sum() < MIN_STARS:
        return float("nan")
    return float(np.median(table["flux_large"][good].astype(float) / table["flux_small"][good]))


def clean(table: np.ndarray, faint: float) -> np.ndarray:
    """Return which sources have no flag, or only that up to a share `faint` of an aperture is replaced."""
    if not faint:
        return table["flags"] == 0
    replaced = np.fmax(table["replaced_small"], table["replaced_large"])
    return (table["flags"] & ~HAS_REPLACED == 0) & ~(replaced > faint)


def alone(table: np.ndarray, radius: float, faint: float) -> np.ndarray:
    """Return which sources have no other within a radius of more than `faint` times their flux; 0: none."""
    from scipy.spatial import cKDTree

    near = cKDTree(np.column_stack((table["x"], table["y"]))).query_pairs(radius, output_type="ndarray")
    flux = np.nan_to_num(table["flux_small"].astype(np.float64))
    lonely = np.ones(len(table), bool)
    for one, other in (near.T, near[:, ::-1].T):
        lonely[one[(flux[other] > faint * flux[one]) | (not faint)]] = False
    return lonely


def ab_magnitudes(
    flux: np.ndarray, error: np.ndarray, correction: float = 1.0, zero_point: float = ZERO_POINT
) -> tuple[np.ndarray, np.ndarray]:
    """Return AB magnitudes and their errors; NaN where the flux is not positive.

    Parameters
    ----------
    flux, error : (sources,) arrays
    correction : float
        Total flux over this flux.
    zero_point : float
        Magnitude of a flux of 1.
    """
    flux = np.where(np.asarray(flux) > 0, flux, np.nan).astype(np.float64)
    return zero_point - 2.5 * np.log10(flux * correction), 2.5 / np.log(10) * np.asarray(error) / flux


def add_magnitudes(table: np.ndarray, correction: float = 1.0) -> np.ndarray:
    """Return the sources with magnitudes; `correction` brings the small aperture up to the large one."""
    table = table.copy()
    for name in ("small", "large", "auto"):
        factor = correction if name == "small" else 1.0
        pair = ab_magnitudes(table[f"flux_{name}"], table[f"flux_{name}_err"], factor)
        table[f"mag_{name}"], table[f"mag_{name}_err"] = pair
    return table
