"""What OME-Zarr (NGFF) says of images: axes with types, levels of resolution, scales and translations.

Versions 0.1 to 0.5 are read, and 0.5 is written: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.interface import ResultArray
from mpiimg.formats.space import Affine
from mpiimg.formats.units import IN_NGFF, affine_of_sizes, seconds

#: Axes of images that were written before axes had names.
_BEFORE = ("t", "c", "z", "y", "x")

#: Types of axes by the names that they have here; others have none.
TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}

VERSION = "0.5"


@dataclass(frozen=True)
class Image:
    """One level of an image.

    Parameters
    ----------
    path : str
        Of its array, below the group.
    axes : tuple of str
    space : Affine or None
        Scale and translation of this level.
    attrs : dict
        What else the group says, such as colours of channels.
    """

    path: str
    axes: tuple[str, ...]
    space: Affine | None
    attrs: dict[str, Any]


def is_image(attrs: Mapping[str, Any]) -> bool:
    """Say whether a group with these attributes is an image."""
    return bool(_multiscales(attrs))


def _multiscales(attrs: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    ome = attrs.get("ome")
    said = ome.get("multiscales") if isinstance(ome, Mapping) else None
    said = said or attrs.get("multiscales")
    return said if isinstance(said, list) and said and isinstance(said[0], Mapping) else ()


def image(folder: Path, attrs: Mapping[str, Any], level: int = 0, path: str | None = None) -> Image:
    """Return what a group says of one level of its image.

    Parameters
    ----------
    folder : Path
        Of the group, for messages.
    attrs : mapping
        Its attributes.
    level : int
        0 for the full resolution.
    path : str, optional
        In place of it: the path of its array.

    Raises
    ------
    BadInput
        There is no such level, or the metadata are not those of an image.
    """
    said = _multiscales(attrs)[0]
    try:
        datasets = said["datasets"]
        paths = [str(one["path"]) for one in datasets]
        if path is not None:
            level = paths.index(path) if path in paths else -1
        if not 0 <= level < len(paths):
            raise BadInput(f"{folder}: has no level {path or level}; there are {', '.join(paths)}")
        units = {}
        if "axes" in said:
            given = [one if isinstance(one, Mapping) else {"name": one} for one in said["axes"]]
            axes = tuple(str(one["name"]) for one in given)
            units = {str(one["name"]): one.get("unit") for one in given}
        else:
            axes = _BEFORE
        scale, translation = _placed(said, datasets[level], len(axes))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadInput(f"{folder}: its metadata are not those of an OME-Zarr image ({error!r})") from None
    ome = attrs.get("ome") if isinstance(attrs.get("ome"), Mapping) else {}
    rest = {
        key: value
        for key, value in {**attrs, **ome}.items()
        if key not in ("ome", "multiscales", "version", "mpiimg")
    }
    if said.get("name"):
        rest["name"] = said["name"]
    return Image(paths[level], axes, _space(axes, units, scale, translation), rest)


def _placed(
    said: Mapping[str, Any], dataset: Mapping[str, Any], count: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return scale and translation of a level: its own, then those of all levels."""
    scale, translation, found = np.ones(count), np.zeros(count), False
    for transformations in (dataset.get("coordinateTransformations"), said.get("coordinateTransformations")):
        for one in transformations or ():
            if one.get("type") == "scale" and "scale" in one:
                factor = np.array(one["scale"], dtype=float)
                scale, translation, found = scale * factor, translation * factor, True
            elif one.get("type") == "translation" and "translation" in one:
                translation, found = translation + np.array(one["translation"], dtype=float), True
    if scale.shape != (count,) or translation.shape != (count,):
        raise ValueError("scales and axes differ in number")
    return (scale if found and np.isfinite(scale).all() else None), translation


def _space(axes, units, scale, translation) -> Affine | None:
    if scale is None:
        return None
    by_axis = dict(zip(axes, zip(scale.tolist(), translation.tolist(), strict=True), strict=True))
    sizes = {axis: (by_axis[axis][0], units.get(axis)) for axis in "xyz" if axis in by_axis}
    if not sizes:
        return None
    step = first = None
    if "t" in by_axis:
        step = seconds(by_axis["t"][0], units.get("t"))
        first = seconds(by_axis["t"][1], units.get("t"))
    return affine_of_sizes(sizes, step, {axis: by_axis[axis][1] for axis in sizes}, first or 0.0)


# --- Written ----------------------------------------------------------------------------------------------


def order(result: ResultArray) -> tuple[str, ...]:
    """Return the axes of an array in the order that OME-Zarr wants: time, then channels, then space.

    Raises
    ------
    BadInput
        They are none of an image: that has two or three of z, y, x, and t and one more at most.
    """
    space = tuple(axis for axis in "zyx" if axis in result.axes)
    others = tuple(axis for axis in result.axes if axis not in (*space, "t"))
    if not {"y", "x"} <= {*space} or len(others) > 1:
        raise BadInput(
            f"{result.name}: an image of OME-Zarr has y and x, and z, t and one more axis at most, and the "
            f"array has {' '.join(result.axes)}; rename them, or write .zarr"
        )
    return (*(("t",) if "t" in result.axes else ()), *others, *space)


def metadata(result: ResultArray, axes: tuple[str, ...], path: str) -> dict[str, Any]:
    """Return the attributes of the group of an image of one level.

    Scale and translation are those of its affine. What they cannot say, as that axes are turned, is left to
    the attributes of the array: then the scale is the size of voxels, and there is no translation.
    """
    scale, translation, units = {}, {}, {}
    space = result.space
    if isinstance(space, Affine):
        matrix = np.array(space.matrix)
        lengths = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
        straight = math.isclose(np.abs(matrix[:3, :3]).sum(), np.abs(np.diag(matrix)[:3]).sum(), rel_tol=1e-6)
        for column, axis in enumerate(space.axes):
            scale[axis] = float(matrix[column, column] if straight else lengths[column])
            if straight and "xyz".find(axis) == column:
                translation[axis] = float(matrix[column, 3])
            units[axis] = IN_NGFF.get(space.units[0])
        for axis, step, first in space.steps:
            scale[axis], translation[axis] = step, first
            units[axis] = _TIMES.get(space.units[1]) if axis == "t" else None
    said = []
    for axis in axes:
        one = {"name": axis, "type": TYPES.get(axis), "unit": units.get(axis)}
        said.append({key: value for key, value in one.items() if value})
    transformations: list[dict[str, Any]] = [
        {"type": "scale", "scale": [scale.get(axis) or 1.0 for axis in axes]}
    ]
    moved = [translation.get(axis, 0.0) for axis in axes]
    if any(moved):
        transformations.append({"type": "translation", "translation": moved})
    multiscale = {
        "name": str(result.attrs.get("name") or Path(result.name).name.removesuffix(".ome.zarr")),
        "axes": said,
        "datasets": [{"path": path, "coordinateTransformations": transformations}],
    }
    return {"ome": {"version": VERSION, "multiscales": [multiscale]}}


_TIMES = {"sec": "second", "msec": "millisecond", "usec": "microsecond"}
