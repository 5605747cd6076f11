"""Exposures that share band, visit and sensor: told apart by a card that differs, or found to be copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.fits.reading import read_pixels

#: Copies of an exposure differ by less than this share of what neighbouring pixels do: by lossy compression.
SAME = 0.5

Twin = tuple[ExposureRef, ExposureRef]


def told_apart(exposures: Sequence[ExposureRef]) -> tuple[list[ExposureRef], list[Twin]]:
    """Give exposures of which no two have one band, visit and sensor.

    Those of one visit that have a sensor twice are told apart by the first card that differs, such as EXPNUM
    where VISIT is 0 in all; where none does, their pixels are compared, and what is no copy has its path
    for a visit.

    Returns
    -------
    exposures : list of ExposureRef
    twins : list of (ExposureRef, ExposureRef)
        Copies, each with the one that it is a copy of.
    """
    visits: dict[tuple[str, str], list[ExposureRef]] = defaultdict(list)
    for ref in exposures:
        visits[ref.band, ref.visit].append(ref)
    apart, twins = [], []
    for refs in visits.values():
        cards = tuple(dict.fromkeys(card for ref in refs for card, _ in ref.distinguish))
        kept, copies = _split(refs, cards)
        apart += kept
        twins += copies
    counts = Counter((ref.band, ref.visit, ref.sensor) for ref in apart)
    return [
        replace(ref, visit=str(ref.image.path)) if counts[ref.band, ref.visit, ref.sensor] > 1 else ref
        for ref in apart
    ], twins


def _split(refs: Sequence[ExposureRef], cards: Sequence[str]) -> tuple[list[ExposureRef], list[Twin]]:
    """Split the exposures of a visit by the first card that differs, and what comes of that by the next."""
    if max(Counter(ref.sensor for ref in refs).values()) == 1:
        return list(refs), []
    for number, card in enumerate(cards):
        groups: dict[str, list[ExposureRef]] = defaultdict(list)
        for ref in refs:
            groups[dict(ref.distinguish).get(card, ref.visit)].append(ref)
        if len(groups) == 1:
            continue
        kept, twins = [], []
        for value, group in groups.items():
            one, copies = _split([replace(ref, visit=value) for ref in group], cards[number + 1 :])
            kept += one
            twins += copies
        return kept, twins
    return _without_copies(refs)


def _without_copies(refs: Sequence[ExposureRef]) -> tuple[list[ExposureRef], list[Twin]]:
    kept, twins = [], []
    for ref in refs:
        same = (one for one in kept if one.sensor == ref.sensor and _are_copies(one, ref))
        first = next(same, None)
        if first is None:
            kept.append(ref)
        else:
            twins.append((ref, first))
    return kept, twins


def _are_copies(one: ExposureRef, other: ExposureRef) -> bool:
    """Say whether two exposures have the same pixels, but for what lossy compression makes of them."""
    if one.shape != other.shape:
        return False
    if one.image == other.image:
        return True
    with np.errstate(all="ignore"):
        a, b = (read_pixels(ref.image, ref.shape, verify=False).astype(np.float64) for ref in (one, other))
        if np.array_equal(a, b, equal_nan=True):
            return True
        between, noise = np.nanmedian(np.abs(a - b)), np.nanmedian(np.abs(np.diff(a, axis=1)))
    return bool(between < SAME * noise)
