"""Cosmic rays found and repaired by L.A.Cosmic, as astroscrappy does it with separable medians.

What the search in cosmic_search.py finds is replaced by the median of its good neighbours, and the search is
repeated: later iterations look only at cells near a value that has changed.

References
----------
P. G. van Dokkum, "Cosmic-ray rejection by Laplacian edge detection", PASP 113, 1420 (2001). C. McCully et
al., astroscrappy 1.3. The network for the median of seven is N. Devillard's, that for nine J. L. Smith's.
"""

from __future__ import annotations

import numpy as np

from mpiimg.astro.kernels.cosmic_search import (
    CELL,
    HALO,
    TILE_CELLS,
    ZERO,
    Frame,
    Limits,
    mark,
    median_of_7,
    search,
)
from mpiimg.kernels.jit import kernel

#: Repaired values come from within this many pixels.
REACH = 2

#: A saturated pixel belongs to a star where the median about it exceeds saturation over this.
STAR_CONTRAST = 10.0


# --- Repair -------------------------------------------------------------------------------------------------


@kernel
def _median_of_neighbours(plane, frame, y, x, values):
    """Return the lower median of the good, not struck pixels of 5 x 5, and whether there is one."""
    n = 0
    for j in range(y - REACH, y + REACH + 1):
        for i in range(x - REACH, x + REACH + 1):
            if not (frame.bad[j, i] or frame.struck[j, i]):
                k = n
                while k > 0 and values[k - 1] > plane[j, i]:
                    values[k] = values[k - 1]
                    k -= 1
                values[k] = plane[j, i]
                n += 1
    return values[max(n - 1, 0) // 2], n > 0


@kernel
def _repair(frame, levels, new, dirty):
    """Repair what is struck in new cells and about them; mark the cells that changed values matter to.

    Nothing is struck within 3 pixels of the frame's edge: there :func:`_separable_median` leaves the ratio
    as it is, and the difference is 0. So all windows lie in the frame.

    Returns the number of pixels without a good neighbour, which take the levels of image and variance.
    """
    ny, nx = frame.image.shape
    values = np.zeros((2 * REACH + 1) ** 2, np.float32)
    alone = 0
    for row in range(new.shape[0]):
        for column in range(new.shape[1]):
            if not new[row, column]:
                continue
            for y in range(max(row * CELL - REACH, 0), min((row + 1) * CELL + REACH, ny)):
                for x in range(max(column * CELL - REACH, 0), min((column + 1) * CELL + REACH, nx)):
                    if frame.struck[y, x]:
                        value, some = _median_of_neighbours(frame.image, frame, y, x, values)
                        spread, _ = _median_of_neighbours(frame.variance, frame, y, x, values)
                        if not some:
                            value, spread = levels
                            alone += 1
                        if value != frame.image[y, x] or spread != frame.variance[y, x]:
                            frame.image[y, x] = value
                            frame.variance[y, x] = spread
                            mark(dirty, y, x, HALO)
    return alone


# --- What is bad from the start -----------------------------------------------------------------------------


@kernel
def _find_stars(image, saturation, star, out):
    """Set `out` at saturated pixels about which the separable median of 7 x 7 is above `star`."""
    ny, nx = image.shape
    middle = np.empty(7, np.float32)
    for y in range(ny):
        saturated = 0
        for x in range(nx):
            saturated += image[y, x] >= saturation
        for x in range(nx if saturated else 0):
            if image[y, x] >= saturation:
                value = image[y, x]
                if 3 <= y < ny - 3 and 3 <= x < nx - 3:
                    for j in range(7):
                        r = image[y - 3 + j, x - 3 : x + 4]
                        middle[j] = median_of_7(r[0], r[1], r[2], r[3], r[4], r[5], r[6])
                    m = middle
                    value = median_of_7(m[0], m[1], m[2], m[3], m[4], m[5], m[6])
                out[y, x] = value > star


@kernel
def _dilate(source, reach, out):
    """Set `out` within `reach` of set pixels, without the corners where `reach` is 2.

    Pixels nearer than that to the edge are set only if they were.
    """
    ny, nx = source.shape
    for y in range(ny):
        some = False
        for x in range(nx):
            some |= source[y, x]
        for x in range(nx if some else 0):
            if source[y, x]:
                out[y, x] = True
                for j in range(max(y - reach, reach), min(y + reach + 1, ny - reach)):
                    for i in range(max(x - reach, reach), min(x + reach + 1, nx - reach)):
                        if abs(j - y) + abs(i - x) < 4:
                            out[j, i] = True


def _grow(mask, reach):
    out = np.zeros_like(mask)
    _dilate(mask, reach, out)
    return out


def _bad_pixels(image, mask, saturation):
    """Return the mask grown by a pixel, with the saturated stars grown by four."""
    bad = np.zeros(image.shape, bool) if mask is None else _grow(mask, 1)
    stars = np.zeros(image.shape, bool)
    _find_stars(image, saturation, np.float32(float(saturation) / STAR_CONTRAST), stars)
    return bad | _grow(_grow(stars, 2), 2)


@kernel
def _gather(plane, bad, low, high, between):
    """Collect good values in [low, high], as many as fit; return how many are good, below, and within."""
    good, below, n = 0, 0, 0
    last = between.size - 1
    for y in range(plane.shape[0]):
        values, useless = plane[y], bad[y]
        for x in range(values.size):
            good += not useless[x]
            below += (values[x] < low) & (not useless[x])
        for x in range(values.size):
            # Stored in any case, and kept or not: a branch would often be mispredicted.
            between[min(n, last)] = values[x]
            n += (low <= values[x]) & (values[x] <= high) & (not useless[x])
    return good, below, n


def _lower_median(plane, bad):
    """Return the lower median of the good pixels, 0 if there are none.

    A sample of the pixels says between which values it lies; if it errs, all are sorted.
    """
    sample = np.sort(plane[::29, ::31][~bad[::29, ::31]])
    if sample.size:
        low, high = sample[int(0.48 * sample.size)], sample[int(0.52 * sample.size)]
        between = np.empty(plane.size // 4 + 1, np.float32)
        good, below, n = _gather(plane, bad, low, high, between)
        rank = (good - 1) // 2 - below
        if 0 <= rank < n < between.size:
            return np.partition(between[:n], rank)[rank]
    values = plane[~bad]
    rank = (values.size - 1) // 2
    return np.partition(values, rank)[rank] if values.size else ZERO


# --- What the stage calls -----------------------------------------------------------------------------------


def detect_cosmics(
    image: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    variance: np.ndarray | None = None,
    gain: float = 1.0,
    readnoise: float,
    satlevel: float,
    sigclip: float = 4.5,
    sigfrac: float = 0.3,
    objlim: float = 5.0,
    iterations: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the pixels of an exposure that cosmic rays struck, and repair them.

    Parameters
    ----------
    image : (ny, nx) array
        The exposure with its sky, in counts; float32 is worked in. On a frame without its sky, and without
        `variance`, the noise is underestimated and much of the frame flagged.
    mask : (ny, nx) bool array, optional
        Pixels that are bad already; they, and the pixels next to them, are neither flagged nor used.
    variance : (ny, nx) array, optional
        In squared counts. Without it the variance is image x gain + readnoise**2, in electrons.
    gain : float
        Electrons per count.
    readnoise : float
        In electrons.
    satlevel : float
        In electrons; infinity for none. Stars with pixels from there up are left alone.
    sigclip : float
        Laplacian of a struck pixel over the noise, at least.
    sigfrac : float
        For the neighbours of a struck pixel, `sigclip` is multiplied by this.
    objlim : float
        Laplacian over fine structure, at least: higher spares the cores of sharp stars.
    iterations : int
        Times that the frame is searched at most; it ends when nothing new is found.

    Returns
    -------
    struck : (ny, nx) bool array
        The pixels found. Within 3 of the frame's edge none is.
    cleaned : (ny, nx) float32 array
        The image in counts, each struck pixel replaced by the lower median of the good ones of 5 x 5 about
        it, or by that of all good pixels where there are none. Other pixels are image x gain / gain.

    Raises
    ------
    ValueError
        If shapes do not fit together, or a parameter is out of its range.

    Notes
    -----
    Same decisions, to the last pixel, as astroscrappy 1.3's ``detect_cosmics(image, inmask=mask,
    invar=variance, sepmed=True, cleantype="medmask", fsmode="median", niter=iterations, ...)``, and the same
    values. A pixel that is not finite in image or variance, which astroscrappy has no answer for, is masked;
    its neighbours see the level of the good pixels in its place, and it comes out as it came in.
    """
    image, mask, variance = _validated_planes(image, mask, variance)
    _validate_parameters(gain, readnoise, satlevel, sigclip, sigfrac, objlim, iterations)
    original = image
    image, mask, variance = _without_infinities(image, mask, variance)

    gain, readnoise, saturation = np.float32(gain), np.float32(readnoise), np.float32(satlevel)
    own = variance is not None
    electrons = image * gain
    spread = variance * (gain * gain) if own else electrons
    bad = _bad_pixels(electrons, mask, saturation)
    frame = Frame(electrons, spread, bad, np.zeros(image.shape, bool))
    limits = Limits(
        np.float32(sigclip),
        np.float32(sigfrac) * np.float32(sigclip),
        np.float32(objlim),
        ZERO if own else readnoise * readnoise,
    )

    def levels():
        level = _lower_median(image, bad) * gain
        return level, _lower_median(variance, bad) * (gain * gain) if own else level

    _iterate(frame, limits, levels, iterations)
    cleaned = electrons
    cleaned /= gain
    if original is not image:
        unknown = ~np.isfinite(original)
        cleaned[unknown] = original[unknown]
    return frame.struck, cleaned


def _iterate(frame, limits, levels, iterations):
    """Search and repair; `levels` are worked out only when a pixel has no good neighbour."""
    dirty = np.ones([-(-n // CELL) for n in frame.image.shape], bool)
    fill = None
    for _ in range(iterations):
        new = np.zeros_like(dirty)
        search(frame, limits, dirty, TILE_CELLS, new)
        if not new.any():
            break
        dirty[:] = False
        if _repair(frame, fill or (ZERO, ZERO), new, dirty) and fill is None:
            fill = levels()
            _repair(frame, fill, new, dirty)


def _without_infinities(image, mask, variance):
    """Mask the pixels that are not finite, and give them the level of the others."""
    planes = [plane for plane in (image, variance) if plane is not None]
    if all(np.isfinite(plane).all() for plane in planes):
        return image, mask, variance
    unknown = np.any([~np.isfinite(plane) for plane in planes], axis=0)
    mask = unknown if mask is None else mask | unknown
    planes = [np.where(np.isfinite(plane), plane, _lower_median(plane, mask)) for plane in planes]
    return planes[0], mask, planes[1] if variance is not None else None


def _validated_planes(image, mask, variance):
    image = np.ascontiguousarray(image, np.float32)
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"image must be (y, x), with pixels: got shape {image.shape}")
    if mask is not None:
        mask = np.ascontiguousarray(mask, bool)
    if variance is not None:
        variance = np.ascontiguousarray(variance, np.float32)
    for name, plane in (("mask", mask), ("variance", variance)):
        if plane is not None and plane.shape != image.shape:
            raise ValueError(f"{name} must have the image's shape {image.shape}: got {plane.shape}")
    return image, mask, variance


def _validate_parameters(gain, readnoise, satlevel, sigclip, sigfrac, objlim, iterations):
    for name, value in (("gain", gain), ("satlevel", satlevel), ("sigclip", sigclip)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0: got {value}")
    for name, value in (("readnoise", readnoise), ("sigfrac", sigfrac), ("objlim", objlim)):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative: got {value}")
    if not np.all(np.isfinite([gain, readnoise, sigclip, sigfrac, objlim])):
        raise ValueError("gain, readnoise, sigclip, sigfrac and objlim must be finite")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1: got {iterations}")


def precompile() -> None:
    """Call the kernels on a frame with a hit, and one without a good pixel about it."""
    image = np.random.default_rng(0).normal(100, 10, (40, 48)).astype(np.float32)
    image[20, 20] += 1000
    bad = np.zeros(image.shape, dtype=bool)
    bad[5, 5:8] = True
    # Masks grow by one; such a hit is repaired in another way.
    image[30, 30] += 1000
    bad[27:34, 27:34] = True
    bad[29:32, 29:32] = False
    variance = np.full(image.shape, 100, np.float32)
    detect_cosmics(image, mask=bad, variance=variance, gain=1.0, readnoise=0.0, satlevel=9e3)
