"""Strips of patches: the exposures that meet one, on top of each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mpiimg.astro.fits.maskplanes import bits, no_data
from mpiimg.astro.sky.layout import Layout, Strip
from mpiimg.engine.array import Ragged
from mpiimg.engine.boxes import Box, box_shape, box_size
from mpiimg.engine.needs import Pieces

#: An input with one of these carries no light of the sky.
EXCLUDED = ("NO_DATA", "BAD", "SAT", "EDGE")


def empty_strip(box: Box, variance_ls: bool = False) -> tuple[np.ndarray, ...]:
    """Return the planes of a strip that no exposure reaches, (rows, columns), as PatchPlanes has them."""
    shape = box_shape(box)
    more = (np.full(shape, np.inf, np.float32),) if variance_ls else ()
    return (*no_data(shape), np.zeros(shape, np.int16), *more)


def stacked(
    layout: Layout,
    strip: Strip,
    blocks: Sequence[Sequence[np.ndarray]],
    lost: Collection[int] = (),
) -> tuple[np.ndarray, ...]:
    """Lay the warps that meet a strip on top of each other; what one does not reach is NO_DATA.

    Parameters
    ----------
    layout : Layout
    strip : Strip
    blocks : sequence of sequences of (1, rows, columns)
        By plane, image, variance, mask and perhaps `variance_ls`: what :meth:`Layout.strip_inputs` names of
        each warp.
    lost : collection of int
        Footprints that are left out: they hold no data.

    Returns
    -------
    image, variance, mask, and perhaps variance_ls : (warps, rows, columns) float32, float32, int32, float32
    """
    (top, bottom), (left, right) = strip.box
    shape = (len(strip.footprints), bottom - top, right - left)
    planes = (*no_data(shape), np.full(shape, np.inf, np.float32))[: len(blocks)]
    for k, (number, (y0, y1)) in enumerate(zip(strip.footprints, strip.rows, strict=True)):
        if number in lost:
            continue
        x0, x1 = layout.footprints[number].box[1]
        part = (k, slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        for plane, pieces in zip(planes, blocks, strict=True):
            plane[part] = pieces[k][0]
    return planes


def exclude(
    mask: np.ndarray,
    layout: Layout,
    strip: Strip,
    artifacts: Sequence[np.ndarray],
    lost: Collection[int] = (),
) -> np.ndarray:
    """Mark the pixels of stacked exposures that are artifacts, as REJECTED.

    Parameters
    ----------
    mask : (warps, rows, columns) int32
        As :func:`stacked` returns it; changed.
    layout : Layout
    strip : Strip
    artifacts : sequence of (1, rows, columns) uint8
        Of each warp, not 0 where it is left out.
    lost : collection of int

    Returns
    -------
    (rows, columns) bool
        Where any exposure has one.
    """
    (top, _), (left, _) = strip.box
    anywhere = np.zeros(mask.shape[1:], bool)
    # What other programs have rejected elsewhere is none of these.
    mask &= np.int32(~bits("REJECTED"))
    pairs = zip(strip.footprints, strip.rows, artifacts, strict=True)
    for k, (number, (y0, y1), (pixels,)) in enumerate(pairs):
        if number in lost or not pixels.any():
            continue
        x0, x1 = layout.footprints[number].box[1]
        part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        mask[k][part] |= (pixels != 0) * np.int32(bits("REJECTED"))
        anywhere[part] |= pixels != 0
    return anywhere


def refuse_overflow(planes: Sequence[np.ndarray]) -> None:
    """Refuse a strip whose image or variances are no numbers where its mask does not say so.

    Raises
    ------
    ValueError
        Numbers of its exposures are so large, or so small, that they left the range of float32.
    """
    image, variance, mask, _, *more = planes
    finite = np.logical_and.reduce([np.isfinite(plane) for plane in (image, variance, *more)])
    wrong = ((mask & bits("NO_DATA")) == 0) & ~finite
    if wrong.any():
        raise ValueError(f"{np.count_nonzero(wrong)} pixels with data are beyond the range of float32")


def strip_needs(layout: Layout, arrays: Sequence[Ragged]) -> tuple[Pieces, ...]:
    """Return what the work on a strip reads of these planes of the warps."""
    return tuple(Pieces(array, layout.strip_inputs) for array in arrays)


def strip_weights(layout: Layout) -> tuple[int, ...]:
    """Return the work in each strip: its own pixels, and as many for each warp that meets it."""
    return tuple((1 + len(strip.footprints)) * box_size(strip.box) for strip in layout.strips)


def stack_bytes(layout: Layout, planes: int = 3) -> int:
    """Return the bytes of the largest stack of so many planes that a strip is made from."""
    return (
        4 * planes * max((len(strip.footprints) * box_size(strip.box) for strip in layout.strips), default=0)
    )
