"""Strips of patches: the exposures that meet one, on top of each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mpiimg.astro.fits.maskplanes import bits, no_data
from mpiimg.astro.sky.layout import Layout, Planes, Strip
from mpiimg.engine.boxes import Box, box_shape, box_size
from mpiimg.engine.needs import Pieces

#: An input with one of these carries no light of the sky.
EXCLUDED = ("NO_DATA", "BAD", "SAT", "EDGE")


def empty_strip(box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image, variance, mask and number of exposures of a strip that none reaches, (rows, columns)."""
    shape = box_shape(box)
    return (*no_data(shape), np.zeros(shape, np.int16))


def stacked(
    layout: Layout,
    strip: Strip,
    images: Sequence[np.ndarray],
    variances: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    lost: Collection[int] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay the warps that meet a strip on top of each other; what one does not reach is NO_DATA.

    Parameters
    ----------
    layout : Layout
    strip : Strip
    images, variances, masks : sequence of (1, rows, columns)
        What :meth:`Layout.strip_inputs` names of each warp.
    lost : collection of int
        Footprints that are left out: they hold no data.

    Returns
    -------
    image, variance, mask : (warps, rows, columns) float32, float32, int32
    """
    (top, bottom), (left, right) = strip.box
    planes = no_data((len(strip.footprints), bottom - top, right - left))
    for k, (number, (y0, y1)) in enumerate(zip(strip.footprints, strip.rows, strict=True)):
        if number in lost:
            continue
        x0, x1 = layout.footprints[number].box[1]
        part = (k, slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        for plane, blocks in zip(planes, (images, variances, masks), strict=True):
            plane[part] = blocks[k][0]
    return planes


def refuse_overflow(planes: Sequence[np.ndarray]) -> None:
    """Refuse a strip whose image or variance is no number where its mask does not say so.

    Raises
    ------
    ValueError
        Numbers of its exposures are so large, or so small, that they left the range of float32.
    """
    image, variance, mask = planes[:3]
    wrong = ((mask & bits("NO_DATA")) == 0) & ~(np.isfinite(image) & np.isfinite(variance))
    if wrong.any():
        raise ValueError(f"{np.count_nonzero(wrong)} pixels with data are beyond the range of float32")


def strip_needs(layout: Layout, warps: Planes) -> tuple[Pieces, ...]:
    """Return what the work on a strip reads of the warps."""
    return tuple(Pieces(array, layout.strip_inputs) for array in warps)


def strip_weights(layout: Layout) -> tuple[int, ...]:
    """Return the work in each strip: its own pixels, and as many for each warp that meets it."""
    return tuple((1 + len(strip.footprints)) * box_size(strip.box) for strip in layout.strips)


def stack_bytes(layout: Layout) -> int:
    """Return the bytes of the largest stack that a strip is made from."""
    return 12 * max((len(strip.footprints) * box_size(strip.box) for strip in layout.strips), default=0)
