"""Pixels of apertures that are masked or another source's, replaced by those opposite the source's centre.

Method: MASK_TYPE CORRECT of E. Bertin and S. Arnouts 1996, A&AS 117, 393, doi:10.1051/aas:1996164.
"""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel

#: Pixels on the border of an aperture are cut into so many parts along each axis.
PARTS = 8


@kernel
def _foreign(j, i, bad, segmentation, label):
    """Tell whether pixel (j, i) is not the source's to have: outside, masked, or of another source."""
    if j < 0 or i < 0 or j >= bad.shape[0] or i >= bad.shape[1] or bad[j, i]:
        return True
    return segmentation[j, i] != 0 and segmentation[j, i] != label


@kernel
def _share_inside(dx, dy, shape, limit):
    """Return the share of the pixel at (dx, dy) from the centre that lies in the ellipse."""
    cxx, cyy, cxy = shape
    # Far from the border no part needs to be looked at: a pixel reaches 0.71 from its centre.
    r = np.sqrt(cxx * dx * dx + cyy * dy * dy + cxy * dx * dy)
    reach = 0.7072 * np.sqrt(cxx + cyy)
    edge = np.sqrt(limit)
    if r + reach <= edge:
        return 1.0
    if r - reach >= edge:
        return 0.0
    inside = 0
    for k in range(PARTS):
        y = dy + (k + 0.5) / PARTS - 0.5
        for m in range(PARTS):
            x = dx + (m + 0.5) / PARTS - 0.5
            inside += cxx * x * x + cyy * y * y + cxy * x * y <= limit
    return inside / PARTS**2


@kernel
def _half_sides(shape, limit, rows, columns):
    """Return half the height and width of a box about an ellipse, no larger than the image."""
    cxx, cyy, cxy = shape
    scale = limit / (cxx * cyy - cxy * cxy / 4)
    half_y, half_x = np.sqrt(cxx * scale), np.sqrt(cyy * scale)
    return int(min(half_y, float(rows))) + 2, int(min(half_x, float(columns))) + 2


@kernel
def replacements(planes, x, y, shapes, limits, sky_variance):
    """Return what replacing pixels adds to sums over ellipses.

    A pixel outside the image, masked, or of another source counts as the one opposite the rounded centre;
    where that is such a pixel too, as sky: 0, with the sky's variance.

    Parameters
    ----------
    planes : (float32, float32, bool, int32) arrays, (rows, columns)
        Image without background and its variance, both 0 where masked; what is masked; segmentation.
    x, y : (sources,) float64
        Centres; source k is number k + 1 of the segmentation.
    shapes : (sources, 3) float64
        cxx, cyy, cxy: inside is where cxx dx^2 + cyy dy^2 + cxy dx dy is at most its limit.
    limits : (sources,) float64
    sky_variance : float

    Returns
    -------
    (sources, 4) float64
        What is added to the sum, and to its variance; the area replaced, and whether any lies outside.
    """
    image, variance, bad, segmentation = planes
    rows, columns = image.shape
    out = np.zeros((len(x), 4))
    for n in range(len(x)):
        cxx, cyy, cxy = shapes[n]
        if not limits[n] > 0:
            continue
        half_y, half_x = _half_sides((cxx, cyy, cxy), limits[n], rows, columns)
        middle_x, middle_y = int(np.rint(x[n])), int(np.rint(y[n]))
        for j in range(middle_y - half_y, middle_y + half_y + 1):
            for i in range(middle_x - half_x, middle_x + half_x + 1):
                if not _foreign(j, i, bad, segmentation, n + 1):
                    continue
                share = _share_inside(i - x[n], j - y[n], (cxx, cyy, cxy), limits[n])
                if share == 0.0:
                    continue
                value, noise = 0.0, sky_variance
                other_j, other_i = 2 * middle_y - j, 2 * middle_x - i
                if not _foreign(other_j, other_i, bad, segmentation, n + 1):
                    value, noise = float(image[other_j, other_i]), float(variance[other_j, other_i])
                if 0 <= j < rows and 0 <= i < columns:
                    value -= image[j, i]
                    noise -= variance[j, i]
                else:
                    out[n, 3] = 1.0
                out[n, 0] += share * value
                out[n, 1] += share * noise
                out[n, 2] += share
    return out


@kernel
def kron_radii(planes, x, y, shapes, reach):
    """Return Kron radii, in units of the axes, over ellipses of `reach`, pixels replaced; 0 without light.

    Parameters as in :func:`replacements`.
    """
    image, _, bad, segmentation = planes
    out = np.zeros(len(x))
    for n in range(len(x)):
        cxx, cyy, cxy = shapes[n]
        half_y, half_x = _half_sides((cxx, cyy, cxy), reach * reach, image.shape[0], image.shape[1])
        middle_x, middle_y = int(np.rint(x[n])), int(np.rint(y[n]))
        moment = total = 0.0
        for j in range(middle_y - half_y, middle_y + half_y + 1):
            for i in range(middle_x - half_x, middle_x + half_x + 1):
                dx, dy = i - x[n], j - y[n]
                square = cxx * dx * dx + cyy * dy * dy + cxy * dx * dy
                if square > reach * reach:
                    continue
                value = 0.0
                if not _foreign(j, i, bad, segmentation, n + 1):
                    value = float(image[j, i])
                else:
                    other_j, other_i = 2 * middle_y - j, 2 * middle_x - i
                    if not _foreign(other_j, other_i, bad, segmentation, n + 1):
                        value = float(image[other_j, other_i])
                moment += np.sqrt(square) * value
                total += value
        if moment > 0 and total > 0:
            out[n] = moment / total
    return out


def precompile() -> None:
    """Compile the kernels for the types that detection calls them with."""
    image = np.zeros((2, 2), np.float32)
    planes = image, image, image > 0, np.zeros((2, 2), np.int32)
    place, shapes = np.zeros(1), np.ones((1, 3))
    replacements(planes, place, place, shapes, np.ones(1), 1.0)
    kron_radii(planes, place, place, shapes, 1.0)
