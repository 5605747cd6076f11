"""Lengths that a user gives in pixels, or on the sky in arcsec."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mpiimg.engine.parameters import number_in
from mpiimg.errors import BadInput

#: Pixels that the side of a mesh may have.
MESH_LIMITS = (8, 8192)

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


def mesh_pixels(side: Length, scale: float) -> int:
    """Return the side of a mesh in pixels of `scale` arcseconds."""
    if not side.on_sky:
        return round(side.value)
    pixels = MESH_STEP * round(side.pixels(scale) / MESH_STEP)
    return min(max(pixels, MIN_MESH), MESH_LIMITS[1])
