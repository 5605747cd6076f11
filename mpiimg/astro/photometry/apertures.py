"""Fluxes of sources in apertures: errors, aperture corrections, magnitudes.

Sums are sep's (Barbary 2016, doi:10.21105/joss.00058), Kron ellipses as SExtractor's (Bertin & Arnouts 1996,
doi:10.1051/aas:1996164).
"""

from __future__ import annotations

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD, ZERO_POINT

#: Kron ellipse: radii a and b times max(2.5 Kron radii, 3.5), measured out to 6 (PHOT_AUTOPARAMS 2.5,3.5).
KRON_FACTOR, KRON_MIN, KRON_REACH = 2.5, 3.5, 6.0

#: Least empty apertures, or stars, that a factor is measured from.
MIN_APERTURES, MIN_STARS = 30, 5


def measure_fluxes(table, objects, x, y, planes, radii) -> None:
    """Fill in fluxes in apertures and Kron ellipses; pixels of neighbours count as the mean of the others."""
    import sep

    data, noise, bad, segmentation = planes
    a, b = objects["a"], objects["b"]
    # Rounding carries some angles beyond the quarter turn that sep accepts.
    theta = np.clip(objects["theta"], -np.pi / 2, np.pi / 2)
    own = {"mask": bad, "segmap": segmentation, "seg_id": np.arange(1, len(objects) + 1, dtype=np.int32)}
    for name, radius in zip(("small", "large"), radii, strict=True):
        flux, error, flag = sep.sum_circle(data, x, y, radius, var=noise, subpix=0, **own)
        table[f"flux_{name}"], table[f"flux_{name}_err"] = flux, error
        table["flags"] |= flag.astype(np.int16)
    kron, _ = sep.kron_radius(data, x, y, a, b, theta, KRON_REACH, **own)
    factor = np.fmax(KRON_FACTOR * kron, KRON_MIN)
    flux, error, flag = sep.sum_ellipse(data, x, y, a, b, theta, factor, var=noise, subpix=0, **own)
    table["flux_auto"], table["flux_auto_err"] = flux, error
    table["flags"] |= flag.astype(np.int16)


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
    return float(SIGMA_PER_MAD * np.median(np.abs(ratio - np.median(ratio))))


def scale_errors(table: np.ndarray, factor: float) -> np.ndarray:
    """Return the sources with the errors of all fluxes times `factor`, of :func:`noise_correction`."""
    table = table.copy()
    for name in ("small", "large", "auto"):
        table[f"flux_{name}_err"] *= np.float32(factor)
    return table


def aperture_correction(table: np.ndarray, saturated: int, radius: float) -> float:
    """Return the flux in the large aperture over that in the small one, of bright, isolated stars.

    Parameters
    ----------
    saturated : int
        Bits of the mask whose stars are left out.
    radius : float
        Of the large aperture, pixels; a star is isolated when no source is within twice that.

    Returns
    -------
    float
        The median over stars with 50 times their error, no flag, and a width within 20 % of the median of
        such sources; NaN with fewer than 5.
    """
    from scipy.spatial import cKDTree

    with np.errstate(invalid="ignore"):
        good = (table["flags"] == 0) & (table["mask_flags"] & saturated == 0) & np.isfinite(table["fwhm"])
        good &= table["flux_large"] > 50 * table["flux_large_err"]
    if good.sum() < MIN_STARS:
        return float("nan")
    place = np.column_stack((table["x"], table["y"]))
    distance, _ = cKDTree(place).query(place, k=2)
    good &= distance[:, 1] > 2 * radius
    width = np.median(table["fwhm"][good]) if good.any() else np.nan
    good &= np.abs(table["fwhm"] - width) < 0.2 * width
    if good.sum() < MIN_STARS:
        return float("nan")
    return float(np.median(table["flux_large"][good].astype(float) / table["flux_small"][good]))


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
