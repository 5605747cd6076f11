"""How exposures are laid on a tract: which patches each meets, once it is known that it can lie there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.sky.footprints import misplaced, place_of
from mpiimg.astro.sky.layout import Footprint, Layout, Patch
from mpiimg.astro.sky.tract import MAX_DEGREES, Tract
from mpiimg.astro.sky.wcs import footprint, footprint_box, parse_wcs
from mpiimg.astro.survey import unit_names
from mpiimg.engine.boxes import intersection
from mpiimg.errors import BadInput

#: Footprints of a survey, at most: every rank holds them all.
MAX_FOOTPRINTS = 5_000_000


def with_places(exposures: Sequence[ExposureRef], pixel_scale: float, anywhere: bool, strict: bool):
    """Return the exposures that can lie where they say, their outlines, and (name, reason) of the others.

    Parameters
    ----------
    exposures : sequence of ExposureRef
    pixel_scale : float
        Of the tract, arcseconds.
    anywhere : bool
        The place of the tract is given, so that exposures may lie far from the others.
    strict : bool
        One that cannot lie there ends the run.

    Raises
    ------
    BadInput
        One cannot and `strict` is set, or none can.
    """
    outlines = [footprint(parse_wcs(ref.wcs), ref.shape) for ref in exposures]
    places = [place_of(outline, ref.shape) for ref, outline in zip(exposures, outlines, strict=True)]
    reasons = misplaced(places, pixel_scale, None if anywhere else MAX_DEGREES)
    names = unit_names(exposures)
    wrong = [(names[n], f"{exposures[n].image.path}: {reason}") for n, reason in sorted(reasons.items())]
    left = [number for number in range(len(exposures)) if number not in reasons]
    if wrong and (strict or not left):
        raise BadInput(wrong[0][1])
    return [exposures[n] for n in left], [outlines[n] for n in left], wrong


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
