"""Noise level by voxel, from a map that somebody else made."""

from __future__ import annotations

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Compute, Found, Reduce, Stages, Stream
from mpiimg.errors import BadInput
from mpiimg.neuro.images import finite
from mpiimg.neuro.masks import Mask, slabs, volume
from mpiimg.neuro.nifti import Image, Voxels
from mpiimg.neuro.subject import Noise

#: Voxels whose median is taken, at most about: of larger maps every second, third and so on.
MAX_VOXELS = 1 << 21


def map_level(image: Image, sigma_image: Image, mask: Mask | None) -> Stages[Noise]:
    """Yield the reading of a map; where it is not above 0, its median takes the place of a level.

    Parameters
    ----------
    image : Image
        The series.
    sigma_image : Image
        The map, in the same space and unit.
    mask : Mask, optional
        Inside which the median is taken, and gaps are warned about.
    """
    read, sigma = sigma_image.array("sigma-map"), volume(image, "sigma", "float32")
    yield _reading(Voxels(sigma_image, read.name))
    level = yield _median(sigma_image, read, mask)
    yield _filled(sigma_image, read, level, sigma)
    return Noise(None, "map", level, {}, sigma)


def _reading(voxels: Voxels) -> Stream:
    """Read the map on one rank: it is small, and no input of the chain's source."""
    array = voxels.array
    grid = slabs(array.shape[0])

    def blocks():
        boxes = (array.part({"z": bounds}) for (bounds,) in map(grid.bounds, range(len(grid))))
        if not voxels.parallel:
            yield from voxels.blocks(boxes)
            return
        reader = voxels.open()
        try:
            for box in boxes:
                yield reader.read(box)
        finally:
            reader.close()

    return Stream(
        f"read-{array.name}",
        grid,
        array=array,
        blocks=blocks,
        parameters={"identity": voxels.identity, "sample": voxels.sample},
    )


def _median(sigma_image: Image, read: Array, mask: Mask | None) -> Reduce[float]:
    """Find the median of the levels above 0, inside the mask where there is one."""
    depth, height, width = read.shape
    grid = slabs(depth)
    voxels = grid.block[0] * height * width
    stride = -(-depth * height * width // MAX_VOXELS)
    reported = -(-voxels // stride)

    def work(chunk, block, mask_block=None):
        values = _levels(sigma_image, block)
        inside = values[mask_block != 0] if mask_block is not None else values.ravel()
        good = inside[inside > 0]
        row = np.full(reported + 1, np.nan, np.float32)
        row[: len(good[::stride])], row[-1] = good[::stride], len(inside) - len(good)
        return row

    def finish(rows):
        levels, gaps = rows[:, :-1], int(rows[:, -1].sum(dtype=np.float64))
        levels = levels[np.isfinite(levels)]
        if not len(levels):
            raise BadInput(f"{sigma_image.path}: no voxel of this map of the noise level is above 0")
        level = float(np.median(levels))
        where = "" if mask is None else " inside the mask"
        text = (
            f"{sigma_image.path}: {gaps} voxels{where} are not above 0; they take the median of the "
            f"others, {level:.4g}"
        )
        return Found(level, warnings=(text,) if gaps else ())

    return Reduce(
        "sigma-median",
        grid,
        reads=(Part(read), *(() if mask is None else (Part(mask.array),))),
        work=work,
        row=((reported + 1,), "float32"),
        finish=finish,
        finish_bytes=3 * 4 * reported * len(grid),
        parameters={"slope": sigma_image.slope, "inter": sigma_image.inter, "stride": stride},
        expected=1.0,
    )


def _filled(sigma_image: Image, read: Array, level: float, sigma: Array) -> Compute:
    """Declare the levels as they are used: those that are not above 0 replaced."""

    def work(chunk, block):
        values = _levels(sigma_image, block)
        return (np.where(values > 0, values, np.float32(level)),)

    return Compute(
        "sigma",
        slabs(read.shape[0]),
        reads=(Part(read),),
        writes=(sigma,),
        work=work,
        parameters={"level": level, "slope": sigma_image.slope, "inter": sigma_image.inter},
    )


def _levels(sigma_image: Image, block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return finite(finite(sigma_image.scaled(block)).astype(np.float32, copy=False))
