"""Whether exposures lie where they can: a layout is bounded by what their pixels can cover.

A wrong card of a WCS makes a frame of the whole sky, or puts it on the other side of it. Such an exposure is
told from the others before patches are laid out, since it would reach millions of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mpiimg.astro.sky.wcs import ARCSEC, directions

#: Times that pixels of an exposure may be wider, or narrower, than those of the tract.
MAX_SCALE_RATIO = 30.0

#: Likewise than the pixels of most exposures.
MAX_RATIO_TO_OTHERS = 10.0

#: Exposures that tell what is usual, at least.
MIN_OTHERS = 3


class Place(NamedTuple):
    """Where a frame lies on the sky."""

    toward: np.ndarray  # (3,) unit vector to its middle; NaN where it has none
    scale: float  # arcseconds per pixel, from its edge; NaN likewise


def place_of(outline: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]) -> Place:
    """Return where a frame lies.

    Parameters
    ----------
    outline : (ra, dec)
        Degrees, points around the frame, as :func:`mpiimg.astro.sky.wcs.footprint` gives them.
    shape : (int, int)
        Rows and columns.
    """
    points = directions(*map(np.ravel, outline))
    middle = points.mean(axis=1)
    length = float(np.linalg.norm(middle))
    if not (np.isfinite(points).all() and length > 0):
        return Place(np.full(3, np.nan), math.nan)
    toward = middle / length
    # By the chord, since the arc cosine knows no small angles.
    furthest = float(np.linalg.norm(points - toward[:, None], axis=0).max())
    reach = 2 * math.degrees(math.asin(min(1.0, furthest / 2)))
    return Place(toward, reach * ARCSEC / (math.hypot(*shape) / 2))


def misplaced(places: Sequence[Place], pixel_scale: float, max_degrees: float | None) -> Mapping[int, str]:
    """Return which exposures cannot lie where their headers say, and why.

    Parameters
    ----------
    places : sequence of Place
    pixel_scale : float
        Of the tract, arcseconds.
    max_degrees : float, optional
        From the middle of all exposures, at most; None where the tract is given.
    """
    reasons: dict[int, str] = {}
    scales = np.array([place.scale for place in places], np.float64)
    finite = np.isfinite(scales)
    for number in np.flatnonzero(~finite).tolist():
        reasons[number] = "its edge has no place on the sky; check its WCS"
    usual = float(np.median(scales[finite])) if finite.sum() >= MIN_OTHERS else math.nan
    for number in np.flatnonzero(finite).tolist():
        scale = float(scales[number])
        if not math.isnan(usual) and _differ(scale, usual, MAX_RATIO_TO_OTHERS):
            reasons[number] = (
                f"its pixels are {scale:.3g} arcsec wide, those of the others {usual:.3g}; check its WCS"
            )
        elif _differ(scale, pixel_scale, MAX_SCALE_RATIO):
            reasons[number] = (
                f"its pixels are {scale:.3g} arcsec wide, those of the tract {pixel_scale:.3g}; check its "
                "WCS, or give --pixel-scale"
            )
    left = [number for number in range(len(places)) if number not in reasons]
    if max_degrees is not None and len(left) >= MIN_OTHERS:
        toward = np.array([places[number].toward for number in left])
        middle = np.median(toward, axis=0)
        middle /= np.linalg.norm(middle) or 1.0
        away = np.degrees(np.arccos(np.clip(toward @ middle, -1, 1)))
        for number, degrees in zip(left, away.tolist(), strict=True):
            if not degrees <= max_degrees:
                reasons[number] = (
                    f"lies {degrees:.0f} degrees from the middle of all exposures, and a tract reaches "
                    f"{max_degrees:g}; check its WCS, or give --center or --tract"
                )
    return reasons


def _differ(one: float, other: float, ratio: float) -> bool:
    return not other / ratio <= one <= other * ratio
