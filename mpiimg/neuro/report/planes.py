"""Slices of a head as they are looked at: right to the right, front or top upward, in rows of a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from mpiimg.report.drawing import INK
from mpiimg.report.page import Picture

#: Pixels across a picture, between its slices, above a row for its name, and beside it for a bar of colours.
WIDTH, GAP, HEADING, BAR = 1400, 4, 30, 110

#: Colour of the border of a mask, and of what is no part of a slice.
OUTLINE, EMPTY = (255, 176, 0), (255, 255, 255)

#: Ends of each axis, at its low and its high end.
ENDS = {"R": "LR", "L": "LR", "A": "PA", "P": "PA", "S": "IS", "I": "IS"}


class Plane(NamedTuple):
    """A slice: its values with the first row below, the letters left, right, below and above, its aspect."""

    values: np.ndarray
    letters: str
    aspect: float


@dataclass(frozen=True)
class Row:
    """A row of slices.

    Parameters
    ----------
    name : str
        What stands above it.
    planes : sequence of Plane
        Of one number a voxel, or of red, green and blue from 0 to 1.
    low, high : float
        The values of the first and the last colour.
    colours : str
        Matplotlib's name of the map of colours.
    unit : str
        Of the numbers at a bar of colours; without it there is no bar.
    """

    name: str
    planes: Sequence[Plane]
    low: float = 0.0
    high: float = 1.0
    colours: str = "gray"
    unit: str = ""


def oriented(parts: Sequence[np.ndarray], affine: np.ndarray) -> list[Plane]:
    """Turn slices so that right, front and top are where a reader expects them.

    Parameters
    ----------
    parts : sequence of (slices, rows, columns, ...)
        Across z, y and x: their rows and columns are y and x, z and x, z and y.
    affine : (4, 4) array
        Of the image.
    """
    import nibabel

    codes = nibabel.aff2axcodes(affine)
    zooms = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0))
    return [
        _turned(values, codes[across], codes[up], zooms[up] / zooms[across])
        for part, (across, up) in zip(parts, ((0, 1), (0, 2), (1, 2)), strict=True)
        for values in part
    ]


def _turned(values: np.ndarray, across: str, up: str, aspect: float) -> Plane:
    if up in "LR" or (up in "AP" and across in "SI"):
        values, across, up, aspect = values.swapaxes(0, 1), up, across, 1 / aspect
    if across in "LPI":
        values = values[:, ::-1]
    if up in "LPI":
        values = values[::-1]
    return Plane(values, ENDS[across] + ENDS[up], float(aspect))


def difference(planes: Sequence[Plane], others: Sequence[Plane]) -> list[Plane]:
    """Return slices minus others."""
    return [Plane(one.values - two.values, *one[1:]) for one, two in zip(planes, others, strict=True)]


def values_inside(planes: Sequence[Plane], inside: Sequence[Plane] = ()) -> np.ndarray:
    """Return the values of slices where a mask is not 0; all of them without one, or where it is 0."""
    values = np.concatenate([plane.values.ravel() for plane in planes])
    if inside:
        chosen = np.concatenate([plane.values.ravel() > 0 for plane in inside])
        values = values[chosen] if chosen.any() else values
    return np.nan_to_num(values)


def white(planes: Sequence[Plane], inside: Sequence[Plane] = ()) -> float:
    """Return the white of slices: what all but one in 200 voxels of the mask stay below."""
    return float(max(np.percentile(values_inside(planes, inside), 99.5), 1e-30))


# --- Drawing ----------------------------------------------------------------------------------------------


def draw_rows(rows: Sequence[Row], alt: str, caption: str, outline: Sequence[Plane] = ()) -> Picture:
    """Draw rows of slices one below the other; all have slices of the same planes.

    Parameters
    ----------
    rows : sequence of Row
    alt, caption : str
        Of the picture.
    outline : sequence of Plane
        A mask of the same planes, whose border is drawn.
    """
    from PIL import Image, ImageDraw

    first = rows[0].planes
    across = WIDTH - (BAR if any(row.unit for row in rows) else 0)
    wide = (across - GAP * (len(first) - 1)) // len(first)
    talls = [_tall(plane, wide) for plane in first]
    step = HEADING + max(talls) + GAP
    picture = Image.new("RGB", (WIDTH, step * len(rows)), EMPTY)
    pen = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        top = number * step
        pen.text((2, top + 5), row.name, INK, _font(16))
        for column, (plane, tall) in enumerate(zip(row.planes, talls, strict=True)):
            left = column * (wide + GAP)
            mask = outline[column].values > 0 if outline else None
            picture.paste(_drawn(plane, row, (wide, tall), mask), (left, top + HEADING))
            _write_letters(pen, plane.letters, left, top + HEADING, wide, tall)
        if row.unit:
            _draw_bar(picture, pen, row, WIDTH - BAR + 12, top + HEADING, max(talls))
    return Picture(_png(picture), alt, caption)


def _tall(plane: Plane, wide: int) -> int:
    rows, columns = plane.values.shape[:2]
    return max(round(wide * min(max(rows * plane.aspect / columns, 0.1), 2.5)), 1)


def _drawn(plane: Plane, row: Row, size: tuple[int, int], mask: np.ndarray | None):
    """Return a slice as an image of some size, its first row below."""
    from PIL import Image

    image = Image.fromarray(_coloured(plane.values, row)[::-1])
    shrinks = size[0] < image.width or size[1] < image.height
    image = image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST)
    if mask is not None:
        large = Image.fromarray(np.uint8(mask[::-1]) * 255).resize(size, Image.Resampling.NEAREST)
        inside = np.pad(np.asarray(large) > 0, 2)
        # Two pixels wide, so that it is seen at any width of the page.
        border = inside & ~_eroded(inside)
        pixels = np.array(image)
        pixels[border[2:-2, 2:-2]] = OUTLINE
        image = Image.fromarray(pixels)
    return image


def _eroded(inside: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    return binary_erosion(inside, iterations=2)


def _coloured(values: np.ndarray, row: Row) -> np.ndarray:
    """Return colours, (rows, columns, 3) uint8."""
    if values.ndim == 3:
        return np.uint8(np.clip(np.nan_to_num(values), 0, 1) * 255)
    span = (row.high - row.low) or 1.0
    place = np.clip((np.nan_to_num(values) - row.low) / span, 0, 1) * 255
    return _table(row.colours)[np.rint(place).astype(np.uint8)]


@cache
def _table(name: str) -> np.ndarray:
    """Return a map of colours, (256, 3) uint8."""
    import matplotlib

    return matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]


@cache
def _font(size: int):
    import matplotlib
    from PIL import ImageFont

    # That of Pillow knows no raised digits.
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _write_letters(pen, letters: str, left: int, top: int, wide: int, tall: int) -> None:
    places = ((8, tall / 2), (wide - 8, tall / 2), (wide / 2, tall - 10), (wide / 2, 10))
    for letter, (x, y) in zip(letters, places, strict=True):
        pen.text(
            (left + x, top + y), letter, "white", _font(13), anchor="mm", stroke_width=1, stroke_fill=INK
        )


def _draw_bar(picture, pen, row: Row, left: int, top: int, tall: int) -> None:
    """Draw the colours of a row with the numbers of their ends and middle."""
    from PIL import Image

    ramp = np.repeat(_table(row.colours)[::-1][:, None], 14, axis=1)
    picture.paste(Image.fromarray(ramp).resize((14, tall)), (left, top))
    for share in (0.0, 0.5, 1.0):
        value = row.low + share * (row.high - row.low)
        y = top + 8 + (1 - share) * (tall - 16)
        pen.text((left + 20, y), f"{value:.3g}", INK, _font(13), anchor="lm")
    pen.text((left, top - 12), row.unit, INK, _font(13), anchor="lm")


def _png(picture) -> bytes:
    """Return a picture as PNG, in grey where it has no colours."""
    red, green, blue = picture.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        picture = red
    data = io.BytesIO()
    picture.save(data, format="png", optimize=False)
    return data.getvalue()
