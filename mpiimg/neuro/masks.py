"""Brain masks as the steps of a subject share them, and how the voxels inside are numbered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpiimg.engine.array import Array, Packing
from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Compute, Found, Reduce
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
    threshold : float, optional
        Otsu's threshold of a mask that was computed, in image units.
    file : Image, optional
        The file of a mask that the user gave.
    result : str
        Name of the file of one that a function of the user's has made.
    """

    array: Array
    offsets: tuple[int, ...]
    threshold: float | None = None
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


def slabs(depth: int) -> ChunkGrid:
    """Return the z-blocks that masks are computed in."""
    return ChunkGrid("z", (depth,), (blocks_along(depth, MAX_SLABS, thinnest=2),))


def volume(image: Image, name: str, dtype: str) -> Array:
    """Describe an array of one value per voxel."""
    return Array(name, "zyx", image.shape[-3:], dtype)


def take_given(image: Image, voxels: Array, mask: Array) -> Compute:
    """Declare how a mask that somebody else made is taken: what is not 0 is inside.

    Parameters
    ----------
    image : Image
        Whose values `voxels` holds.
    voxels : Array
        (z, y, x).
    mask : Array
        (z, y, x) uint8, written.
    """
    return Compute(
        "mask-in",
        slabs(image.shape[-3]),
        reads=(Part(voxels),),
        writes=(mask,),
        work=lambda chunk, block: (finite(image.scaled(block)) != 0,),
        parameters={"slope": image.slope, "inter": image.inter},
    )


def count_voxels(mask: Array, where: str) -> Reduce[tuple[int, ...]]:
    """Declare how voxels are counted slice by slice: counts weigh the chunks that follow, and number voxels.

    Parameters
    ----------
    mask : Array
        (z, y, x) uint8.
    where : str
        The mask's name in messages.

    Returns
    -------
    Reduce
        Its value are the offsets of :class:`Mask`. Its end raises BadInput where no voxel is inside.
    """
    depth, height, width = mask.shape
    grid = slabs(depth)
    thickness = grid.block[0]

    def work(chunk, block):
        counts = np.zeros(thickness, np.int64)
        counts[: len(block)] = np.count_nonzero(block, axis=(1, 2))
        return counts

    def finish(rows):
        counts = rows.ravel()[:depth]
        if not counts.any():
            raise BadInput(f"{where} is empty: no voxel of it is inside; give another with --mask")
        return Found(tuple(np.concatenate(([0], np.cumsum(counts))).tolist()))

    return Reduce(
        "mask-voxels",
        grid,
        reads=(Part(mask),),
        work=work,
        row=((thickness,), "int64"),
        finish=finish,
        parameters={},
        expected=tuple(height * width * z for z in range(depth + 1)),
    )
