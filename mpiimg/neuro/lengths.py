"""Lengths that a user gives in mm or in voxels, and how long the voxels of an image are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.parameters import number_in
from mpiimg.formats.nifti.header import parse_header
from mpiimg.neuro.nifti import Image

_WORDS = re.compile(r"(?P<number>.*?) ?(?P<unit>mm|vox|voxels?)?", re.ASCII)

#: In mm, by the code of the unit in a NIfTI header: metres and microns. All others are mm, or unknown.
_MM = {1: 1000.0, 3: 1e-3}


@dataclass(frozen=True)
class Length:
    """A length along each axis.

    Parameters
    ----------
    number : float
    unit : {"mm", "voxels"}
    """

    number: float
    unit: str

    def __str__(self):
        return f"{self.number:.12g}" + ("mm" if self.unit == "mm" else "")

    def in_voxels(self, sizes: Sequence[float]) -> tuple[int, ...]:
        """Return it in whole voxels, the nearest number along each axis of voxels of these sizes in mm."""
        if self.unit == "voxels":
            return (int(self.number),) * len(sizes)
        return tuple(math.floor(self.number / size + 0.5) for size in sizes)


@dataclass(frozen=True)
class LengthForm:
    """What a length that a user gives must look like: the `form` of a parameter.

    Parameters
    ----------
    voxels, mm : int, float
        The largest that makes sense in either unit.
    words : tuple of str
        That stand for a length which depends on the image.
    """

    voxels: int
    mm: float
    words: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        """Return the length as it is kept: 8mm, 4, or a word.

        Raises
        ------
        ValueError
            It is none, or too large.
        """
        if text.strip().lower() in self.words:
            return text.strip().lower()
        return str(self.read(text))

    def read(self, text: str) -> Length:
        """Return the length that a text names; a number alone is in voxels.

        Raises
        ------
        ValueError
            It is none, or too large.
        """
        matched = _WORDS.fullmatch(text.strip().lower())
        number = number_in(matched["number"]) if matched else None
        unit = "mm" if matched and matched["unit"] == "mm" else "voxels"
        if number is None or (unit == "voxels" and not float(number).is_integer()):
            words = "".join(f"{word}, " for word in self.words)
            raise ValueError(f"must be {words}a length as 8mm, or a whole number of voxels as 4")
        most = getattr(self, unit)
        if not 0 <= number <= most:
            raise ValueError(f"is not between 0 and {most:g} {unit}")
        return Length(float(number), unit)


def voxel_sizes(image: Image) -> tuple[float, float, float]:
    """Return the extents of a voxel in mm along z, y and x."""
    scale = _MM.get(int(parse_header(image.header)["xyzt_units"]) & 7, 1.0)
    sizes = np.sqrt((image.affine[:3, :3] ** 2).sum(axis=0)) * scale
    return tuple(float(f"{size:.6g}") for size in sizes[::-1])
