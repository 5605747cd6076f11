"""Images in and out: streams into arrays, arrays into compressed NIfTI files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.inputs import stream_input
from mpiimg.engine.needs import At, Chunk, Need, Part
from mpiimg.engine.stage import Compute, Found, Reduce, Sink, Stages, Stream
from mpiimg.formats.gz import deflated_bytes, gzip_head, gzip_part, gzip_tail
from mpiimg.neuro.nifti import Image, Voxels, output_header
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


def inflate(voxels: Voxels) -> Stream:
    """Read a .nii.gz front to back on one rank; each chunk goes to its owner while the next one inflates."""
    array = voxels.array
    grid = slice_grid(array.shape, np.dtype(array.dtype).itemsize)
    return stream_input(voxels, grid, ("inflate", float(array.nbytes)))


def lay_out(source: Array, written: Array) -> Compute:
    """Declare a copy chunk by chunk, voxels as they are; the axes may lie in another order in the source."""
    order = [source.axes.index(axis) for axis in written.axes]
    grid = slice_grid(written.shape, np.dtype(written.dtype).itemsize)
    if source.axes[0] != written.axes[0]:
        # Where the volumes of a voxel lie together, all of them are read at once.
        sizes = dict(zip(written.axes, written.shape, strict=True))
        depth = sizes["z"]
        grid = ChunkGrid("z", (depth,), (max(1, min(depth, CHUNK_BYTES * depth // written.nbytes)),))
    return Compute(
        f"copy-{written.name}",
        grid,
        reads=(Part(source),),
        writes=(written,),
        work=lambda chunk, block: (np.ascontiguousarray(block.transpose(order)),),
        parameters={},
    )


def brought_in(voxels: Voxels) -> Stages[None]:
    """Yield how an image becomes an array of the run, where ranks cannot read it as it lies in the file."""
    if not voxels.parallel:
        yield inflate(voxels)
    elif voxels.array.name != voxels.name:
        yield lay_out(voxels.array, voxels.laid_out)


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


def count_nonfinite(image: Image, array: Array) -> Reduce[int] | None:
    """Count NaN and infinite voxels, and warn of them; nothing to do for integers without scaling."""
    if np.dtype(image.native).kind != "f":
        return None

    def finish(rows):
        count = int(rows.sum())
        text = f"{image.path}: {count} voxels are NaN or infinite, and are taken as 0"
        return Found(count, warnings=(text,) if count else ())

    return Reduce(
        f"check-{array.name}",
        slice_grid(array.shape, np.dtype(array.dtype).itemsize),
        reads=(Part(array),),
        # Where scaled, a large value overflows.
        work=lambda chunk, block: np.count_nonzero(~np.isfinite(image.scaled(block))),
        row=((), "int64"),
        finish=finish,
        parameters={},
        expected=0,
    )


def unpack(mask: Array, packed: Array, written: Array) -> Compute:
    """Lay voxels in a mask out as an image again, 0 outside the mask.

    Parameters
    ----------
    mask : Array
        (z, y, x), not 0 inside.
    packed : Array
        (volumes, n) voxels in the mask, with their packing.
    written : Array
        (volumes, z, y, x).
    """

    def work(chunk, mask_block, voxels):
        out = np.zeros((1, *mask_block.shape), packed.dtype)
        out[0][mask_block != 0] = voxels[0]
        return (out,)

    return Compute(
        f"unpack-{written.name}",
        slice_grid(written.shape, np.dtype(packed.dtype).itemsize),
        reads=(Part(mask), Part(packed)),
        writes=(written,),
        work=work,
        parameters={},
    )


def write_packed(file: str, image: Image, mask: Array, packed: Array, rows: Sequence[int]) -> Sink:
    """Write rows of an array of masked voxels as a float32 NIfTI image, 0 outside the mask.

    Parameters
    ----------
    file : str
        Its name, below the folder of results.
    image : Image
        Whose space it is in.
    mask : Array
        (z, y, x), not 0 inside.
    packed : Array
        (rows, n) voxels in the mask, with their packing.
    rows : sequence of int
        Those that make the volumes of the image, in this order; a single one makes a 3-D image.
    """
    components = len(rows) if len(rows) > 1 else None

    def box(chunk: Chunk):
        row = rows[chunk.bounds.get("v", (0, 1))[0]]
        return ((row, row + 1), packed.part({"z": chunk.bounds["z"]})[1])

    def work(chunk, mask_block, voxels):
        out = np.zeros(mask_block.shape, "float32")
        out[mask_block != 0] = voxels[0]
        return out

    return write_dense(file, image, (Part(mask), At(packed, box)), work, components, "float32")


def write_dense(
    file: str, image: Image, reads: tuple[Need, ...], work: Callable, components: int | None, dtype: str
) -> Sink:
    """Write what `work(chunk, *blocks)` returns for runs of slices as a NIfTI in the space of `image`.

    Parameters
    ----------
    file : str
        Its name, below the folder of results.
    image : Image
    reads : tuple of Need
    work : callable
        Returns voxels of the shape of the chunk.
    components : int or None
        Volumes of the file; None makes a 3-D image.
    dtype : str
        NumPy's name of the type that is written, little-endian.
    """
    shape = image.shape[-3:] if components is None else (components, *image.shape[-3:])
    grid = slice_grid(shape, np.dtype(dtype).itemsize)
    little = np.dtype(dtype).newbyteorder("<")

    def compress(chunk, *blocks):
        return gzip_part(np.ascontiguousarray(work(chunk, *blocks), dtype=little).tobytes())

    def head():
        return gzip_head(output_header(image, components, dtype, f"mpiimg {__version__}"))

    largest = grid.block[-1] * image.shape[-2] * image.shape[-1] * little.itemsize
    return Sink(
        f"write-{file}",
        grid,
        reads=reads,
        work=compress,
        file=file,
        head=head,
        tail=gzip_tail,
        chunk_bytes=deflated_bytes(largest),
        # The voxels, their bytes, and these compressed; and as much for whoever makes the voxels.
        scratch=5 * largest,
        cost=("deflate", float(np.prod(shape)) * little.itemsize),
    )


def sidecar(inherited: Mapping[str, Any] = MappingProxyType({}), **fields) -> bytes:
    """Return the JSON that stands beside an image; `inherited` is what holds for it as for its source.

    Every image lies in the space of its source, as the scanner made it: "orig" to BIDS.
    """
    said = {"SpatialReference": "orig", **fields, "GeneratedBy": f"mpiimg {__version__}"}
    inherited = {name: value for name, value in inherited.items() if name not in said}
    return json.dumps({**said, **inherited}, indent=2).encode() + b"\n"


def sidecar_name(file: str) -> str:
    """Return the name of the JSON that stands beside an image."""
    return file.removesuffix(".nii.gz") + ".json"
