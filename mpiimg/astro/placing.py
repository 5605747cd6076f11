"""How exposures are laid on a tract: which patches each meets, once it is known that it can lie there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.sky.footprints import misplaced, place_of
from mpiimg.astro.sky.layout import Footprint, Layout, Patch
from mpiimg.astro.sky.tract import MAX_DEGREES, Tract
from mpiimg.astro.sky.wcs import footprint, footprint_box, middle_pixel, parse_wcs
from mpiimg.astro.survey import unit_names
from mpiimg.engine.boxes import intersection
from mpiimg.errors import BadInput

#: Footprints of a survey, at most: every rank holds them all.
MAX_FOOTPRINTS = 5_000_000


#: Arcseconds that a pixel of a tract may have.
PIXEL_SCALES = (0.005, 60.0)


class Placed(NamedTuple):
    """Exposures that can lie where they say."""

    exposures: list[ExposureRef]
    outlines: list[tuple[np.ndarray, np.ndarray]]
    pixel_scale: float  # of the tract, arcseconds
    notes: tuple[str, ...]  # how that was found
    wrong: list[tuple[str, str]]  # (name, reason) of the others


def with_places(
    exposures: Sequence[ExposureRef], pixel_scale: float | None, anywhere: bool, strict: bool
) -> Placed:
    """Return the exposures that can lie where they say, with the scale of the tract.

    Parameters
    ----------
    exposures : sequence of ExposureRef
    pixel_scale : float, optional
        Of the tract, arcseconds; None for the :func:`usual_scale` of all these exposures.
    anywhere : bool
        The place of the tract is given, so that exposures may lie far from the others.
    strict : bool
        One that cannot lie there ends the run.

    Raises
    ------
    BadInput
        One cannot and `strict` is set, or none can.
    """
    outlines, sizes = [], []
    for ref in exposures:
        wcs = parse_wcs(ref.wcs)
        outlines.append(footprint(wcs, ref.shape))
        sizes.append(middle_pixel(wcs, ref.shape))
    scale = usual_scale(sizes) if pixel_scale is None else pixel_scale
    places = [place_of(outline, ref.shape) for ref, outline in zip(exposures, outlines, strict=True)]
    reasons = misplaced(places, scale, None if anywhere else MAX_DEGREES)
    names = unit_names(exposures)
    wrong = [(names[n], f"{exposures[n].image.path}: {reason}") for n, reason in sorted(reasons.items())]
    left = [number for number in range(len(exposures)) if number not in reasons]
    if wrong and (strict or not left):
        raise BadInput(wrong[0][1])
    notes = () if pixel_scale is not None else (_said(scale, [sizes[n] for n in left]),)
    return Placed([exposures[n] for n in left], [outlines[n] for n in left], scale, notes, wrong)


def usual_scale(sizes: Sequence[float]) -> float:
    """Return the pixel scale of a tract whose inputs have pixels of these sizes, arcseconds.

    It is their median, of an even number the smaller of the two in the middle, since what lies between two
    cameras is neither's; rounded to 0.001, and below 0.1 to two digits.

    Raises
    ------
    BadInput
        It is no size of a pixel on the sky.
    """
    finite = [size for size in sizes if math.isfinite(size)]
    median = statistics.median_low(finite) if finite else math.nan
    low, high = PIXEL_SCALES
    if not low <= median <= high:
        raise BadInput(
            f"pixels of the exposures are {median:.3g} arcsec wide, and those of a tract are between {low:g} "
            f"and {high:g}; check their WCS, or give --pixel-scale"
        )
    return round(median, 3) if median >= 0.1 else float(f"{median:.2g}")


def _said(scale: float, sizes: Sequence[float]) -> str:
    spread = f"{min(sizes):.4g}" if len(sizes) == 1 else f"{min(sizes):.4g} to {max(sizes):.4g}"
    return (
        f"pixels of the tract are {scale:g} arcsec wide, as in the middle of most exposures ({spread}); "
        "--pixel-scale gives another size"
    )


def lay_out(exposures: Sequence[ExposureRef], tract: Tract):
    """Return the layout, the exposures that meet the tract, and (name, reason) of those that do not."""
    meeting, outside, reached = [], [], []
    for name, ref in zip(unit_names(exposures), exposures, strict=True):
        try:
            boxes, reason = _boxes(ref, tract), "does not meet the tract"
        except BadInput as error:
            boxes, reason = [], str(error)
        if boxes:
            meeting.append(ref)
            reached.append(boxes)
        else:
            outside.append((name, f"{ref.image.path}: {reason}"))
    count = sum(map(len, reached))
    if count > MAX_FOOTPRINTS:
        raise BadInput(
            f"the exposures meet {count} patches of {tract.patch} pixels, and {MAX_FOOTPRINTS} are the most; "
            "give a larger --patch, or process them in groups"
        )
    patches, number = patches_of(
        ((ref.band, index) for ref, boxes in zip(meeting, reached, strict=True) for index, _ in boxes), tract
    )
    footprints = tuple(
        Footprint(exposure, number[ref.band, index], box)
        for exposure, (ref, boxes) in enumerate(zip(meeting, reached, strict=True))
        for index, box in boxes
    )
    return Layout(tuple(ref.shape for ref in meeting), patches, footprints), meeting, outside


def _boxes(ref: ExposureRef, tract: Tract):
    """Return the patches that an exposure meets, by index, and the box of tract pixels that it can reach."""
    wcs = parse_wcs(ref.wcs)
    touched = tract.touched(wcs, ref.shape)
    if not touched:
        return []
    reach = footprint_box(wcs, ref.shape, tract.wcs)
    boxes = ((index, intersection(tract.outer(index), reach)) for index in touched)
    return [(index, box) for index, box in boxes if box is not None]


def patches_of(keys: Iterable[tuple[str, tuple[int, int]]], tract: Tract):
    """Return patches by band and place, and the number of each (band, index)."""
    ordered = sorted(set(keys), key=lambda key: (key[0], tract.order(key[1])))
    patches = tuple(Patch(band, index, tract.outer(index), tract.inner(index)) for band, index in ordered)
    return patches, {key: number for number, key in enumerate(ordered)}
