"""Lengths that a user gives in pixels, or on the sky in arcsec."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mpiimg.engine.parameters import number_in
from mpiimg.errors import BadInput

#: Pixels that the side of a mesh may have.
MESH_LIMITS = (8, 8192)

#: Pixels that the radius of an aperture may have.
RADIUS_LIMITS = (0.5, 500.0)

#: Meshes that are given on the sky have sides of a multiple of so many pixels, and no less than the other:
#: those of one camera, whose scale varies over its field, are then alike; and in coarse pixels none is eaten
#: by the light of a single star.
MESH_STEP, MIN_MESH = 8, 32

_LENGTH = re.compile(r"(.*?)\s*(arcsec|pixels?|pix)?", re.DOTALL)


@dataclass(frozen=True)
class Length:
    """A length in arcsec, where it is on the sky, or in pixels."""

    value: float
    on_sky: bool

    def __str__(self) -> str:
        return f"{self.value:g} {'arcsec' if self.on_sky else 'pixels'}"

    def pixels(self, scale: float) -> float:
        """Return how many pixels it has where one is `scale` arcseconds wide."""
        return self.value / scale if self.on_sky else self.value


def length_of(text: str | float, place: str) -> Length:
    """Return the length that a text means: 17arcsec, or 64, which is in pixels.

    Parameters
    ----------
    text : str or float
    place : str
        The option, for messages.

    Raises
    ------
    BadInput
        It is none, or not above 0.
    """
    number, unit = _LENGTH.fullmatch(str(text).strip()).groups()
    value = number_in(number)
    if value is None or not 0 < value < math.inf:
        raise BadInput(f"{place} {text}: give pixels, as 64, or a length on the sky, as 17arcsec")
    return Length(float(value), unit == "arcsec")


def mesh_of(text: str | float, place: str) -> Length:
    """Return the side of a mesh as :func:`length_of` does, having held it to what a mesh may be.

    Raises
    ------
    BadInput
        It is no length, or pixels beyond MESH_LIMITS or in fractions.
    """
    side = length_of(text, place)
    low, high = MESH_LIMITS
    if not side.on_sky and not (low <= side.value <= high and side.value == round(side.value)):
        raise BadInput(f"{place} {text}: is no whole number of pixels between {low} and {high}")
    return side


def apertures_of(text: str, place: str) -> tuple[Length, Length]:
    """Return the radii of a small and a large aperture that a text means: 4,10 or 1.5arcsec,4arcsec.

    Raises
    ------
    BadInput
        They are not two lengths, both in pixels or both on the sky, the small one first, or pixels beyond
        RADIUS_LIMITS.
    """
    parts = text.split(",")
    if len(parts) != 2:
        raise BadInput(f"{place} {text}: give two radii, as 4,10 or 1.5arcsec,4arcsec")
    small, large = (length_of(part, place) for part in parts)
    if small.on_sky != large.on_sky or not small.value < large.value:
        raise BadInput(f"{place} {text}: give the small radius first, and both in pixels or both in arcsec")
    if not small.on_sky:
        aperture_pixels((small, large), 1.0, f"{place} {text}")
    return small, large


def aperture_pixels(radii: tuple[Length, Length], scale: float, place: str) -> tuple[float, float]:
    """Return radii in pixels of `scale` arcseconds.

    Raises
    ------
    BadInput
        One is beyond RADIUS_LIMITS.
    """
    small, large = (radius.pixels(scale) for radius in radii)
    low, high = RADIUS_LIMITS
    if not (low <= small and large <= high):
        raise BadInput(
            f"{place}: radii of {small:.3g} and {large:.3g} pixels of the tract; "
            f"give some between {low:g} and {high:g} pixels"
        )
    return small, large


def mesh_pixels(side: Length, scale: float) -> int:
    """Return the side of a mesh in pixels of `scale` arcseconds."""
    if not side.on_sky:
        return round(side.value)
    pixels = MESH_STEP * round(side.pixels(scale) / MESH_STEP)
    return min(max(pixels, MIN_MESH), MESH_LIMITS[1])
