"""Brain masks as the steps of a subject share them, and how the voxels inside are numbered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mpiimg.engine.array import Array, Packing
from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.needs import Need, Part, Rows
from mpiimg.engine.stage import Found, Reduce
from mpiimg.errors import BadInput
from mpiimg.neuro.images import finite
from mpiimg.neuro.nifti import Image

#: z-blocks of an image: enough of them to keep ranks busy, thick enough that halos cost little.
MAX_SLABS = 16


@dataclass(frozen=True)
class Mask:
    """Which voxels lie inside the brain.

    Parameters
    ----------
    array : Array
        (z, y, x) uint8, 1 inside and 0 outside.
    offsets : tuple of int
        Where the voxels of each slice begin among all that lie inside, and their number at the end.
    about : mapping
        What sidecars say of it: how it was made, and its size.
    file : Image, optional
        The file of a mask that the user gave.
    result : str
        Name of the file of one that a function of the user's has made.
    """

    array: Array
    offsets: tuple[int, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    file: Image | None = None
    result: str = ""

    @property
    def voxels(self) -> int:
        """The number of voxels inside."""
        return self.offsets[-1]

    @property
    def packing(self) -> Packing:
        """How the axis n of voxels inside follows the slices."""
        return Packing("n", "z", self.offsets)


class Counts(NamedTuple):
    """What is counted of a mask.

    Parameters
    ----------
    offsets : tuple of int
        Those of :class:`Mask`.
    with_signal : int, optional
        Voxels of the image that are not 0, inside or not; None where nobody looked.
    faces : tuple of int
        Voxels inside on each face of the field: first and last along z, y and x.
    """

    offsets: tuple[int, ...]
    with_signal: int | None
    faces: tuple[int, ...]


class Signal(NamedTuple):
    """One volume of an image by which it is told where there is signal.

    Parameters
    ----------
    need : Need
        What is read of it.
    values : callable
        Called as values(block); returns the values (z, y, x).
    """

    need: Need
    values: Callable[[np.ndarray], np.ndarray]


class Brain(NamedTuple):
    """A mask as a method finds it.

    Parameters
    ----------
    mask : Array
        (z, y, x) uint8.
    about : mapping
        What sidecars say of the method.
    signal : Signal
        Where the image is not 0.
    is_everything : bool
        The mask holds all voxels that are not 0, since there is no background.
    """

    mask: Array
    about: Mapping[str, Any]
    signal: Signal
    is_everything: bool = False


def signal_of(image: Image, dwi: Array) -> Signal:
    """Return the first volume of an image, whose values `dwi` holds: (V, z, y, x) or (z, y, x)."""
    if "v" in dwi.axes:
        return Signal(Rows(dwi, (0,)), lambda block: finite(image.scaled(block[0])))
    return Signal(Part(dwi), lambda block: finite(image.scaled(block)))


def slabs(depth: int) -> ChunkGrid:
    """Return the z-blocks that masks are computed in."""
    return ChunkGrid("z", (depth,), (blocks_along(depth, MAX_SLABS, thinnest=2),))


def volume(image: Image, name: str, dtype: str) -> Array:
    """Describe an array of one value per voxel."""
    return Array(name, "zyx", image.shape[-3:], dtype)


def count_voxels(mask: Array, where: str, signal: Signal | None = None) -> Reduce[Counts]:
    """Declare how voxels are counted slice by slice: counts weigh the chunks that follow, and number voxels.

    Parameters
    ----------
    mask : Array
        (z, y, x) uint8.
    where : str
        The mask's name in messages.
    signal : Signal, optional
        Where the image is not 0.

    Returns
    -------
    Reduce
        Its end raises BadInput where no voxel is inside.
    """
    depth, height, width = mask.shape
    grid = slabs(depth)
    thickness = grid.block[0]

    def work(chunk, block, *others):
        row = np.zeros(thickness + 5, np.int64)
        row[: len(block)] = np.count_nonzero(block, axis=(1, 2))
        for number, face in enumerate((block[:, 0], block[:, -1], block[:, :, 0], block[:, :, -1])):
            row[thickness + number] = np.count_nonzero(face)
        if signal is not None:
            row[-1] = np.count_nonzero(signal.values(*others))
        return row

    def finish(rows):
        counts = rows[:, :thickness].ravel()[:depth]
        if not counts.any():
            raise BadInput(f"{where} is empty: no voxel of it is inside; give another with --mask")
        offsets = tuple(np.concatenate(([0], np.cumsum(counts))).tolist())
        sides = rows[:, thickness:].sum(axis=0).tolist()
        faces = (int(counts[0]), int(counts[-1]), *sides[:4])
        return Found(Counts(offsets, sides[4] if signal is not None else None, faces))

    offsets = tuple(height * width * z for z in range(depth + 1))
    return Reduce(
        "mask-voxels",
        grid,
        reads=(Part(mask), *((signal.need,) if signal is not None else ())),
        work=work,
        row=((thickness + 5,), "int64"),
        finish=finish,
        parameters={},
        expected=Counts(offsets, offsets[-1], (0,) * 6),
    )
