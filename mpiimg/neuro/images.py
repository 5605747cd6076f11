"""Images in and out: streams into arrays, arrays into compressed NIfTI files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.stage import Chunk, Need, Stage, reduction
from mpiimg.engine.stores import Array
from mpiimg.neuro.nifti import Image, gzip_member, output_header, stream
from mpiimg.version import __version__

#: Bytes in a chunk that is read or compressed: large enough to compress well, small enough to hold many.
CHUNK_BYTES = 4 << 20


def slice_grid(shape: Sequence[int], itemsize: int) -> ChunkGrid:
    """Cut an image of (rows, z, y, x) or (z, y, x) voxels into runs of slices, in the order of the file."""
    *rows, depth, height, width = shape
    thickness = max(1, min(depth, CHUNK_BYTES // (height * width * itemsize)))
    if rows:
        return ChunkGrid("vz", (rows[0], depth), (1, thickness))
    return ChunkGrid("z", (depth,), (thickness,))


def inflate(image: Image, name: str) -> Stage:
    """Read a .nii.gz front to back on one rank; each chunk goes to its owner while the next one inflates."""
    array = image.array(name)
    grid = slice_grid(image.shape, np.dtype(image.dtype).itemsize)

    def blocks():
        boxes = (stage.output_box(array, stage.chunk(number)) for number in range(len(grid)))
        return stream(image, boxes)

    stage = Stage(
        f"read-{name}",
        "source",
        grid,
        writes=(array,),
        blocks=blocks,
        parameters={"identity": image.identity, "sample": image.sample},
        cost=("inflate", float(array.nbytes)),
    )
    return stage


def copy(image: Image, source: Array, name: str) -> Stage:
    """Copy an image chunk by chunk into an array, voxels as they are."""
    grid = slice_grid(image.shape, np.dtype(image.dtype).itemsize)
    return Stage(
        f"copy-{name}",
        "map",
        grid,
        (Need(source),),
        (image.array(name),),
        lambda chunk, block: (block,),
    )


def finite(values: np.ndarray) -> np.ndarray:
    """Return `values` with NaN and infinities as 0: they carry no signal, and count as background."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    return np.where(np.isfinite(values), values, values.dtype.type(0))


def value_bytes(image: Image) -> int:
    """Return the bytes that each value of :func:`finite` takes while `image` is scaled; 0 without a copy."""
    if image.slope == 1 and image.inter == 0:
        return np.dtype(image.native).itemsize + 1 if np.dtype(image.native).kind == "f" else 0
    return 8 + 4 + 1


def count_nonfinite(image: Image, array: Array) -> Stage | None:
    """Count NaN and infinite voxels, and warn of them; nothing to do for integers without scaling."""
    if np.dtype(image.native).kind != "f":
        return None

    def partial(chunk, block):
        return np.count_nonzero(~np.isfinite(block))

    def finish(rows):
        count = int(rows.sum())
        if not count:
            return {"nonfinite_voxels": 0}
        return {
            "nonfinite_voxels": count,
            "warnings": [f"{image.path}: {count} voxels are NaN or infinite, and are taken as 0"],
        }

    grid = slice_grid(array.shape, np.dtype(array.dtype).itemsize)
    return reduction(f"check-{array.name}", grid, (Need(array),), partial, ((), "int64"), finish)


def write_packed(
    name: str,
    image: Image,
    mask: Array,
    packed: Array,
    offsets: tuple[int, ...],
    rows: Sequence[int],
) -> Stage:
    """Write rows of an array of masked voxels as a float32 NIfTI image, 0 outside the mask.

    Parameters
    ----------
    name : of the file
    mask : (z, y, x), not 0 inside
    packed : (rows, n) voxels in the mask
    offsets : where each slice begins in n
    rows : that make the volumes of the image, in this order; a single one makes a 3-D image
    """
    components = len(rows) if len(rows) > 1 else None

    def place(chunk: Chunk):
        bounds = chunk.bounds
        row = rows[bounds.get("v", (0, 1))[0]]
        first, last = (offsets[z] for z in bounds["z"])
        return (((row, row + 1), (first, last)),)

    def work(chunk, mask_block, voxels):
        out = np.zeros(mask_block.shape, "float32")
        out[mask_block != 0] = voxels[0][0]
        return out

    return write_dense(name, image, (Need(mask), Need(packed, place=place)), work, components, "float32")


def unpack(image: Image, mask: Array, packed: Array, offsets: tuple[int, ...], name: str) -> Stage:
    """Lay voxels in a mask out as an image again, 0 outside the mask.

    Parameters
    ----------
    image : whose space it is
    mask : (z, y, x), not 0 inside
    packed : (rows, n) voxels in the mask
    offsets : where each slice begins in n
    name : of the array written, (rows, z, y, x)
    """
    shape = (packed.shape[0], *image.shape[-3:])

    def work(chunk, mask_block, voxels):
        out = np.zeros((1, *mask_block.shape), packed.dtype)
        out[0][mask_block != 0] = voxels[0][0]
        return (out,)

    def place(chunk: Chunk):
        return ((chunk.bounds["v"], tuple(offsets[z] for z in chunk.bounds["z"])),)

    return Stage(
        f"unpack-{name}",
        "map",
        slice_grid(shape, np.dtype(packed.dtype).itemsize),
        (Need(mask), Need(packed, place=place)),
        (Array(name, "vzyx", shape, packed.dtype),),
        work,
    )


def write_dense(
    name: str, image: Image, reads: tuple[Need, ...], work: Callable, components: int | None, dtype: str
) -> Stage:
    """Write what `work(chunk, *blocks)` returns for runs of slices as a NIfTI in the space of `image`."""
    shape = image.shape[-3:] if components is None else (components, *image.shape[-3:])
    grid = slice_grid(shape, np.dtype(dtype).itemsize)
    little = np.dtype(dtype).newbyteorder("<")

    def compress(chunk, *blocks):
        return gzip_member(np.ascontiguousarray(work(chunk, *blocks), dtype=little).tobytes())

    def head():
        return gzip_member(output_header(image, components, dtype, f"mpiimg {__version__}"))

    largest = grid.block[-1] * image.shape[-2] * image.shape[-1] * little.itemsize
    return Stage(
        f"write-{name}",
        "sink",
        grid,
        reads,
        work=compress,
        output=name,
        head=head,
        output_bytes=largest,
        # The voxels, their bytes, and these compressed; and as much for whoever makes the voxels.
        scratch=5 * largest,
        cost=("deflate", float(np.prod(shape)) * little.itemsize),
    )


def sidecar(**fields) -> bytes:
    """Return the JSON that stands beside an image."""
    return json.dumps({**fields, "GeneratedBy": f"mpiimg {__version__}"}, indent=2).encode() + b"\n"
