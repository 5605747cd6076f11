"""A user's function over an image: on z-blocks of volumes, whole volumes, or the series of voxels."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.engine.boxes import Box, ChunkGrid, blocks_along, box_shape
from mpiimg.engine.stage import Chunk, Need, Stage, reduction
from mpiimg.engine.stores import Array
from mpiimg.functions.declare import Function, Refused, held_to
from mpiimg.neuro.images import CHUNK_BYTES
from mpiimg.neuro.nifti import Image

#: z-blocks of a volume, at most.
BLOCKS = 8

#: Halos that a block is thick at least, since a halo is worked on twice: where volumes are chunks too, and
#: in a single volume.
HALOS = (8, 2)


@dataclass(frozen=True)
class Fields:
    """How a partial result lies in a row of bytes.

    Parameters
    ----------
    entries : (key, shape, dtype) of each array of a dict; one with key None for an array alone
    """

    entries: tuple[tuple[str | None, tuple[int, ...], str], ...]

    @classmethod
    def of(cls, value: Any) -> Fields:
        """Return how `value` lies in a row.

        Raises
        ------
        Refused : it is no array of numbers, nor a dict of them
        """
        found = []
        for key, array in _items(value):
            if array.dtype.kind not in "biufc" or not (key is None or isinstance(key, str)):
                raise Refused("partial returns numbers: an array, or a dict of arrays by name")
            found.append((key, array.shape, array.dtype.str))
        return cls(tuple(found))

    def pack(self, value: Any) -> np.ndarray:
        """Return `value` as a row of bytes.

        Raises
        ------
        Refused : its keys, shapes or types are others
        """
        found = Fields.of(value)
        if found != self:
            raise Refused(f"partial returns {found} for this block, and returned {self} for another")
        return np.frombuffer(b"".join(array.tobytes() for _, array in _items(value)), np.uint8)

    def unpack(self, row: np.ndarray) -> Any:
        """Return the value that lies in a row of bytes."""
        found, data, start = {}, row.tobytes(), 0
        for key, shape, dtype in self.entries:
            count = int(np.prod(shape, dtype=np.int64))
            found[key] = np.frombuffer(data, dtype, count, start).reshape(shape).copy()
            start += found[key].nbytes
        return found.get(None, found)

    @property
    def nbytes(self) -> int:
        return sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for _, shape, dtype in self.entries
        )

    def __str__(self) -> str:
        texts = [f"{key or ''} {dtype[1:]}{list(shape)}".strip() for key, shape, dtype in self.entries]
        return ", ".join(texts)


def _items(value: Any) -> list[tuple[str | None, np.ndarray]]:
    pairs = value.items() if isinstance(value, dict) else [(None, value)]
    return [(key, np.ascontiguousarray(array).reshape(np.shape(array))) for key, array in pairs]


@dataclass(frozen=True)
class Tried:
    """What the trial of a function tells of its results, and of what it takes.

    Parameters
    ----------
    dtype : in which results are kept
    components : values a voxel; None for one
    fields : of the partial results of an aggregate
    seconds, scratch : CPU time, and bytes that it takes at once, for each item of the input
    libraries : bytes that a rank takes when the function is called first, and keeps
    """

    dtype: str = ""
    components: int | None = None
    fields: Fields | None = None
    seconds: float = 0.0
    scratch: float = 0.0
    libraries: int = 0


def grid(image: Image, function: Function) -> ChunkGrid:
    """Cut an image into the chunks that a function is called on; they follow from the image's shape alone."""
    *volumes, depth, height, width = image.shape
    over, halo = function.declared.over, function.declared.halo
    if over == "voxels":
        series = volumes[0] * height * width * np.dtype(image.dtype).itemsize
        thickness = min(max(1, CHUNK_BYTES // series), blocks_along(depth, BLOCKS))
        thickness = max(thickness, halo)
    else:
        thinnest = halo * HALOS[not volumes] if over == "slabs" else depth
        thickness = blocks_along(depth, BLOCKS, thinnest=max(1, thinnest))
    thickness = min(function.declared.slices or thickness, depth)
    if over == "voxels" or not volumes:
        return ChunkGrid("z", (depth,), (thickness,))
    return ChunkGrid("vz", (volumes[0], depth), (1, thickness))


def presented(
    image: Image, function: Function, box: Box, blocks: Sequence[np.ndarray], context: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return what a function sees of blocks in the order of the file, as views: x first, and the context.

    Parameters
    ----------
    box : of the block in `image`, halo included
    blocks : voxels of the image, and of the mask where the function wants it
    context : what holds for all blocks
    """
    values = image.scaled(blocks[0])
    bounds = dict(zip("xyz", box[:-4:-1], strict=True))
    if len(image.shape) == 4:
        bounds["t"] = box[0]
    if values.ndim == 4 and function.declared.over != "voxels":
        values = values[0]
    known = {**context, "bounds": bounds}
    if len(blocks) > 1:
        inside = (blocks[1] != 0).T
        inside.flags.writeable = False
        known["mask"] = inside
    return values.T, known


def result_shape(function: Function, image: Image, components: int | None, slices: int) -> tuple[int, ...]:
    """Return the shape of a result for a block of so many slices; components None is one value a voxel."""
    depth_last = (*image.shape[:-3:-1], slices)
    if function.declared.over != "voxels" or components is None:
        return depth_last
    return (*depth_last, components)


def output(function: Function, image: Image, name: str, components: int | None, dtype: str) -> Array:
    """Describe the array that a function fills; components None is one value a voxel, for voxels."""
    if function.declared.over != "voxels":
        return Array(name, image.axes, image.shape, dtype)
    if components is None:
        return Array(name, "zyx", image.shape[-3:], dtype)
    return Array(name, "vzyx", (components, *image.shape[-3:]), dtype)


def reads(image: Image, function: Function, source: Array, mask: Array | None) -> tuple[Need, ...]:
    """Return what a function reads for a chunk."""
    halo = {"z": function.declared.halo}
    return (Need(source, halo), *((Need(mask, halo),) if mask is not None else ()))


def apply(
    image: Image,
    source: Array,
    function: Function,
    written: Array,
    tried: Tried,
    context: Mapping[str, Any],
    mask: Array | None = None,
    offsets: tuple[int, ...] | None = None,
) -> Stage:
    """Declare a function over all chunks of an image.

    Parameters
    ----------
    image : that `source` holds the voxels of
    written : as :func:`output` describes it
    tried : what its trial told
    context : what the function may ask for, bounds and mask apart
    mask : (z, y, x), where the function wants it
    offsets : where the voxels of each slice of the mask begin, if they were counted: they weigh the chunks
    """
    needs, chunks = reads(image, function, source, mask), grid(image, function)
    components = written.shape[0] if len(written.axes) == 4 and function.declared.over == "voxels" else None

    def work(chunk: Chunk, *blocks):
        (box,) = needs[0].boxes(chunk)
        values, known = presented(image, function, box, blocks, context)
        expected = result_shape(function, image, components, box_shape(box)[-3])
        result = held_to(function, function(values, **known), expected, written.dtype)
        start, stop = chunk.bounds["z"]
        inner = result[:, :, start - box[-3][0] : stop - box[-3][0]].T
        return (inner[None] if inner.ndim < len(written.axes) else inner,)

    weights = None
    if mask is not None and offsets is not None:
        bounds = [chunks.bounds(number)[-1] for number in range(len(chunks))]
        weights = tuple(1 + offsets[stop] - offsets[start] for start, stop in bounds)
    return Stage(
        written.name,
        "stencil" if function.declared.halo else "map",
        chunks,
        needs,
        (written,),
        work,
        _provenance(image, function, context),
        weights=weights,
        **_takes(image, function, tried, source),
    )


def aggregate(
    image: Image,
    source: Array,
    function: Function,
    name: str,
    tried: Tried,
    context: Mapping[str, Any],
    mask: Array | None = None,
) -> Stage:
    """Declare an aggregate over all chunks of an image; what it comes to is found under `name`.

    Parameters
    ----------
    tried : what its trial told
    context, mask : as for :func:`apply`
    """
    needs, fields = reads(image, function, source, mask), tried.fields

    def partial(chunk: Chunk, *blocks):
        (box,) = needs[0].boxes(chunk)
        values, known = presented(image, function, box, blocks, context)
        return fields.pack(function(values, **known))

    def finish(rows):
        merged = functools.reduce(function.merge, map(fields.unpack, rows))
        return {name: function.finish(merged)}

    parameters = {**_provenance(image, function, context), "fields": fields.entries}
    chunks = grid(image, function)
    takes = _takes(image, function, tried, source)
    return reduction(name, chunks, needs, partial, ((fields.nbytes,), "uint8"), finish, parameters, **takes)


def _takes(image: Image, function: Function, tried: Tried, source: Array) -> dict[str, Any]:
    """Return what a plan reckons with: what the trial took, and room for three times the input at least."""
    chunks, halo = grid(image, function), function.declared.halo
    largest = np.prod(image.shape[-2:]) * min(chunks.block[-1] + 2 * halo, image.shape[-3])
    if function.declared.over == "voxels":
        largest *= image.shape[0]
    everything = np.prod(image.shape, dtype=np.float64)
    least = 3 * np.dtype(source.dtype).itemsize
    return {
        "cost": ("second", tried.seconds * float(everything)),
        "scratch": int(largest * max(least, 1.5 * tried.scratch)),
    }


def _provenance(image: Image, function: Function, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the result of a stage depends on, beside the voxels that it reads."""
    asked = {key: np.asarray(context[key]).tolist() for key in sorted(function.wants & context.keys())}
    return {**function.provenance(), "context": asked, "slope": image.slope, "inter": image.inter}
