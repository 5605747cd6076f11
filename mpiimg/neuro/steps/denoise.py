"""Non-local means, volume by volume, inside the mask."""

from __future__ import annotations

import numpy as np

from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.stage import Chunk, Need, Parameter, Stage, reflect
from mpiimg.engine.stores import Array
from mpiimg.neuro.images import finite, value_bytes, write_dense
from mpiimg.neuro.nifti import Image

PAPER = "Coupe et al. 2008, doi:10.1109/TMI.2007.906087; voxelwise ('classic') method of DIPY"

PARAMETERS = (
    Parameter("patch_radius", 1, "radius of the patches that are compared", int, "voxels", limits=(0, 10)),
    Parameter(
        "block_radius",
        5,
        "radius of the block that patches are looked for in",
        int,
        "voxels",
        limits=(1, 20),
    ),
    Parameter("gaussian", False, "the noise is Gaussian: leave out the Rician correction", bool),
    Parameter("residual", False, "also write the input minus the denoised image", bool),
)

#: z-blocks of a volume; each has a multiple of the four slices that the kernel works on at once.
BLOCKS, SLICES_AT_ONCE = 8, 4


def denoise(
    image: Image,
    dwi: Array,
    mask: Array,
    offsets: tuple[int, ...],
    sigma: np.ndarray,
    patch_radius: int,
    block_radius: int,
    rician: bool,
) -> Stage:
    """Declare the denoising of `dwi`; what is written are the masked voxels of every volume.

    Parameters
    ----------
    offsets : where the voxels of each slice begin in the array written
    sigma : (V or 1, nz or 1) noise level by volume or slice, image units
    """
    volumes, depth, height, width = image.shape
    thickness = blocks_along(-(-depth // SLICES_AT_ONCE), BLOCKS) * SLICES_AT_ONCE
    grid = ChunkGrid("vz", (volumes, depth), (1, min(thickness, depth)))
    sigma = np.broadcast_to(sigma, (volumes, depth))
    radius = block_radius
    rows, columns = (reflect(-radius, n + radius, n, edge=False) for n in (height, width))

    def work(chunk, block, mask_block):
        from mpiimg.neuro.kernels.nlmeans import nonlocal_means

        inside = mask_block != 0
        if not inside.any():
            return (np.empty((1, 0), np.float32),)
        (volume, _), (start, stop) = chunk.box
        slices = reflect(start - radius, stop + radius, depth, edge=False)
        values = finite(image.scaled(block[0])).astype(np.float32, copy=False)
        padded = values[np.ix_(slices - max(start - radius, 0), rows, columns)]
        out = nonlocal_means(padded, sigma[volume, slices], inside, patch_radius, block_radius, rician)
        return (out[inside][None],)

    slice_counts = np.diff(offsets)
    weights = [int(slice_counts[a:b].sum()) for _, (a, b) in map(grid.bounds, range(len(grid)))]
    return Stage(
        "denoise",
        "stencil",
        grid,
        (Need(dwi, {"z": radius}), Need(mask)),
        (Array("denoised", "vn", (volumes, offsets[-1]), "float32"),),
        work,
        {
            "sigma": sigma.tolist(),
            "patch_radius": patch_radius,
            "block_radius": block_radius,
            "rician": rician,
            "slope": image.slope,
            "inter": image.inter,
        },
        weights=tuple(weights),
        offsets=offsets,
        scratch=_scratch(image, min(thickness, depth), radius),
        cost=("nlmeans", float(sum(weights)) * (2 * (block_radius - patch_radius) + 1) ** 3),
    )


def _scratch(image: Image, thickness: int, radius: int) -> int:
    """Return the bytes of a chunk's values, of these mirrored at its edges, of its result, and of a tile."""
    height, width = image.shape[-2:]
    deep = thickness + 2 * radius
    values = deep * height * width * (4 + value_bytes(image))
    mirrored = deep * (height + 2 * radius) * (width + 2 * radius) * 4
    return values + mirrored + 2 * thickness * height * width * 4 + (2 << 20)


def write_noise(name: str, image: Image, sigma: np.ndarray) -> Stage:
    """Write the noise level as a 3-D map: the root mean square over volumes where it is by volume."""
    levels = np.broadcast_to(np.sqrt((np.asarray(sigma) ** 2).mean(axis=0)), image.shape[1:2])

    def work(chunk):
        start, stop = chunk.bounds["z"]
        return np.broadcast_to(levels[start:stop, None, None], (stop - start, *image.shape[2:]))

    return write_dense(name, image, (), work, None, "float32")


def write_residual(
    name: str, image: Image, dwi: Array, mask: Array, denoised: Array, offsets: tuple[int, ...]
) -> Stage:
    """Write input minus denoised inside the mask: structure in it is signal that denoising took away."""

    def place(chunk: Chunk):
        first, last = (offsets[z] for z in chunk.bounds["z"])
        return ((chunk.bounds["v"], (first, last)),)

    def work(chunk, block, mask_block, voxels):
        out = np.zeros(block.shape, np.float32)
        inside = mask_block != 0
        values = finite(image.scaled(block[0][inside]))
        out[0][inside] = values.astype(np.float32, copy=False) - voxels[0][0]
        return out

    reads = (Need(dwi), Need(mask), Need(denoised, place=place))
    return write_dense(name, image, reads, work, image.shape[0], "float32")
