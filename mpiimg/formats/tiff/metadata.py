"""What TIFF files say of their axes and of the sizes of pixels: OME-XML, ImageJ's tables, tifffile's JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from mpiimg.formats.attributes import as_json
from mpiimg.formats.space import Affine, Space, space_from
from mpiimg.formats.units import affine_of_sizes, seconds

#: Key of what our own files say beside what others know; namespace of the annotation in OME-XML.
OWN = "mpiimg"


@dataclass(frozen=True)
class Description:
    """What a file says of an image.

    Parameters
    ----------
    axes : tuple of str
    shape : tuple of int
    space : Space or None
    attrs : dict
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    space: Space | None
    attrs: dict[str, Any]


def described(tiff, number: int, series) -> Description:
    """Return what a file says of an image.

    Parameters
    ----------
    tiff : tifffile.TiffFile
    number : int
        Of the image among those of the file.
    series : tifffile.TiffPageSeries
        The image itself, or a level of its pyramid.
    """
    axes, shape = _distinct(series.axes.lower()), tuple(series.shape)
    if tiff.is_ome and series.kind == "ome":
        space, attrs, own = _of_ome(tiff.ome_metadata, number)
    elif series.kind == "imagej":
        space, attrs, own = _of_imagej(tiff)
    elif series.kind == "shaped":
        space, attrs, own = _of_shaped(tiff, number)
    else:
        description = str(tiff.pages.first.description or "")
        space, attrs, own = None, ({"description": description} if description else {}), {}
    said = own.get("axes"), own.get("shape")
    # Of an image that something else has changed since, our own words are not believed.
    if all(isinstance(one, list) for one in said) and [n for n in said[1] if n != 1] == [
        n for n in shape if n != 1
    ]:
        axes, shape = tuple(map(str, said[0])), tuple(map(int, said[1]))
    colours = getattr(series.keyframe.photometric, "name", "")
    if colours not in ("", "MINISBLACK", "RGB", "YCBCR"):
        # Pixels are as they are stored: numbers of colours in a palette, or the less the brighter.
        attrs["photometric"] = colours.lower()
    if "space" in own:
        space = space_from(own["space"])
    return Description(axes, shape, _of_level(space, axes, tiff.series[number], series), attrs)


def _distinct(letters: str) -> tuple[str, ...]:
    """Return names of axes; the second q is q2."""
    return tuple(
        letter if letter not in letters[:place] else f"{letter}{letters[:place].count(letter) + 1}"
        for place, letter in enumerate(letters)
    )


def _of_level(space: Space | None, axes: tuple[str, ...], whole, level) -> Space | None:
    """Return the space of a level of a pyramid, whose pixels stand for several of the first one each."""
    if space is None or whole is level or len(whole.shape) != len(level.shape):
        return space
    for axis, full, n in zip(axes, whole.shape, level.shape, strict=True):
        if full != n and axis in space.axes and isinstance(space, Affine):
            space = space.coarsened(axis, full / n)
    return space


def _of_ome(text: str, number: int) -> tuple[Space | None, dict[str, Any], Mapping[str, Any]]:
    try:
        root = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError:
        return None, {}, {}
    images = [one for one in root if _tag(one) == "Image"]
    if number >= len(images):
        return None, {}, {}
    image = images[number]
    pixels = next((one for one in image if _tag(one) == "Pixels"), None)
    if pixels is None:
        return None, {}, {}
    sizes = {
        axis: (
            _number(pixels.get(f"PhysicalSize{axis.upper()}")),
            pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm"),
        )
        for axis in "xyz"
    }
    step = seconds(_number(pixels.get("TimeIncrement")), pixels.get("TimeIncrementUnit", "s"))
    attrs: dict[str, Any] = {"name": image.get("Name")} if image.get("Name") else {}
    channels = [one.get("Name") for one in pixels if _tag(one) == "Channel"]
    if any(channels):
        attrs["channels"] = channels
    own: dict[str, Any] = {}
    for one in root.iter():
        if _tag(one) == "MapAnnotation" and one.get("Namespace") == OWN:
            own |= {
                item.get("K"): json.loads(item.text or "null") for item in one.iter() if _tag(item) == "M"
            }
    return affine_of_sizes(sizes, step), {**attrs, **(own.get("attrs") or {})}, own


def _tag(element) -> str:
    return element.tag.rpartition("}")[2]


def _number(text: str | None) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _of_imagej(tiff) -> tuple[Space | None, dict[str, Any], Mapping[str, Any]]:
    """ImageJ has the pixels per unit in the resolution of the first page, and the rest in its own table."""
    table = tiff.imagej_metadata or {}
    page, unit = tiff.pages.first, str(table.get("unit", "pixel")).replace("\\u00B5", "µ")
    sizes = {}
    for axis, tag in (("x", "XResolution"), ("y", "YResolution")):
        above, below = page.tags[tag].value if tag in page.tags else (0, 0)
        sizes[axis] = (below / above if above and below else None, unit)
    sizes["z"] = (_number(table.get("spacing")), unit)
    step = _number(table.get("finterval"))
    attrs = {key: plain for key, value in table.items() if (plain := as_json(value)) is not None}
    if unit in ("pixel", "pixels", "") or not table.get("unit"):
        return None, attrs, {}
    return affine_of_sizes(sizes, step), attrs, {}


def _of_shaped(tiff, number: int) -> tuple[Space | None, dict[str, Any], Mapping[str, Any]]:
    """tifffile's own description of an image: shape, axes, and whatever whoever wrote it has added."""
    tables = tiff.shaped_metadata or ()
    table = dict(tables[number]) if number < len(tables) else {}
    own = table.pop(OWN, None)
    attrs = {key: as_json(value) for key, value in table.items() if key not in ("shape", "axes")}
    own = own if isinstance(own, Mapping) else {}
    return None, {**attrs, **(own.get("attrs") or {})}, own
