"""The stages of a user's function over an image: on z-blocks, whole volumes, or z-blocks of series."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, ChunkGrid, blocks_along, box_shape
from mpiimg.engine.needs import Chunk, Need, Part
from mpiimg.engine.stage import Compute, Found, Reduce
from mpiimg.functions.function import Function
from mpiimg.functions.partials import Fields
from mpiimg.functions.results import checked_result
from mpiimg.neuro.images import CHUNK_BYTES
from mpiimg.neuro.masks import Mask
from mpiimg.neuro.nifti import Image

#: z-blocks of a volume, at most.
MAX_BLOCKS = 8

#: A block is at least this many halos thick, since a halo is worked on twice: where volumes are chunks too,
#: and in a single volume.
MIN_HALOS = (8, 2)


#: Partial results that lie in memory at once while all are merged: a row's bytes, its arrays, what is merged
#: so far, and what comes of it.
PARTIALS_AT_ONCE = 4


@dataclass(frozen=True)
class TrialResult:
    """What the trial of a function tells of its results, and of what it takes.

    Parameters
    ----------
    dtype : str
        The type that results are written in.
    components : int, optional
        Values per voxel; None for one.
    fields : Fields, optional
        Those of the partial results of an aggregate.
    seconds, scratch : float
        CPU time, and bytes that it takes at once, per item of the input.
    libraries : int
        Bytes that a rank takes when the function is called first, and keeps.
    """

    dtype: str = ""
    components: int | None = None
    fields: Fields | None = None
    seconds: float = 0.0
    scratch: float = 0.0
    libraries: int = 0

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> TrialResult:
        """Return what :meth:`as_json` made a mapping of."""
        fields = facts["fields"]
        entries = [(key, tuple(shape), dtype) for key, shape, dtype in fields or ()]
        return cls(**{**facts, "fields": None if fields is None else Fields(tuple(entries))})

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {**vars(self), "fields": None if self.fields is None else list(self.fields.entries)}


def grid(image: Image, function: Function) -> ChunkGrid:
    """Cut an image into the chunks that a function is called on; they follow from the image's shape alone."""
    *volumes, depth, height, width = image.shape
    over, halo = function.declared.over, function.declared.halo
    if over == "voxels":
        series = volumes[0] * height * width * np.dtype(image.dtype).itemsize
        thickness = min(max(1, CHUNK_BYTES // series), blocks_along(depth, MAX_BLOCKS))
        thickness = max(thickness, halo)
    else:
        thinnest = halo * MIN_HALOS[not volumes] if over == "slabs" else depth
        thickness = blocks_along(depth, MAX_BLOCKS, thinnest=max(1, thinnest))
    thickness = min(function.declared.slices or thickness, depth)
    if over == "voxels" or not volumes:
        return ChunkGrid("z", (depth,), (thickness,))
    return ChunkGrid("vz", (volumes[0], depth), (1, thickness))


def presented(
    image: Image, function: Function, box: Box, blocks: Sequence[np.ndarray], context: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return what a function sees of blocks in the order of the file: a view with x first, and the context.

    Parameters
    ----------
    image : Image
    function : Function
    box : Box
        The block's in `image`, halo included.
    blocks : sequence of array
        Voxels of the image, and of the mask where the function takes it.
    context : mapping
        What holds for all blocks.
    """
    values = image.scaled(blocks[0])
    bounds = dict(zip("xyz", box[:-4:-1], strict=True))
    if len(image.shape) == 4:
        bounds["t"] = box[0]
    if values.ndim == 4 and function.declared.over != "voxels":
        values = values[0]
    block_context = {**context, "bounds": bounds}
    if len(blocks) > 1:
        inside = (blocks[1] != 0).T
        inside.flags.writeable = False
        block_context["mask"] = inside
    return values.T, block_context


def result_shape(function: Function, image: Image, components: int | None, slices: int) -> tuple[int, ...]:
    """Return the shape of a result for a block of so many slices; None stands for one component."""
    depth_last = (*image.shape[:-3:-1], slices)
    if function.declared.over != "voxels" or components is None:
        return depth_last
    return (*depth_last, components)


def output(function: Function, image: Image, name: str, components: int | None, dtype: str) -> Array:
    """Describe the array that a function fills; None stands for one component."""
    if function.declared.over != "voxels":
        return Array(name, image.axes, image.shape, dtype)
    if components is None:
        return Array(name, "zyx", image.shape[-3:], dtype)
    return Array(name, "vzyx", (components, *image.shape[-3:]), dtype)


def reads(function: Function, source: Array, mask: Array | None) -> tuple[Need, ...]:
    """Return what a function reads for a chunk."""
    halo = {"z": function.declared.halo}
    return (Part(source, halo), *((Part(mask, halo),) if mask is not None else ()))


def apply(
    image: Image,
    source: Array,
    function: Function,
    written: Array,
    trial: TrialResult,
    context: Mapping[str, Any],
    mask: Mask | None = None,
) -> Compute:
    """Declare a function over all chunks of an image.

    Parameters
    ----------
    image : Image
        The image whose voxels `source` holds.
    written : Array
        As :func:`output` describes it.
    trial : TrialResult
        What its trial told.
    context : mapping
        What the function may ask for, bounds and mask apart.
    mask : Mask, optional
        Where the function takes it; its voxels weigh the chunks.
    """
    needs, chunks = reads(function, source, mask and mask.array), grid(image, function)
    components = written.shape[0] if len(written.axes) == 4 and function.declared.over == "voxels" else None

    def work(chunk: Chunk, *blocks):
        (box,) = needs[0].boxes(chunk)
        values, block_context = presented(image, function, box, blocks, context)
        expected = result_shape(function, image, components, box_shape(box)[-3])
        result = checked_result(function, function(values, **block_context), expected, written.dtype)
        start, stop = chunk.bounds["z"]
        inner = result[:, :, start - box[-3][0] : stop - box[-3][0]].T
        return (inner[None] if inner.ndim < len(written.axes) else inner,)

    weights = None
    if mask is not None:
        bounds = [chunks.bounds(number)[-1] for number in range(len(chunks))]
        weights = tuple(1 + mask.offsets[stop] - mask.offsets[start] for start, stop in bounds)
    return Compute(
        written.name,
        chunks,
        reads=needs,
        writes=(written,),
        work=work,
        parameters=_provenance(image, function, context),
        weights=weights,
        **_takes(image, function, trial, source),
    )


def aggregate(
    image: Image,
    source: Array,
    function: Function,
    name: str,
    trial: TrialResult,
    context: Mapping[str, Any],
    mask: Mask | None = None,
) -> Reduce[Any]:
    """Declare an aggregate over all chunks of an image; its value is what the partial results come to.

    Parameters
    ----------
    trial : TrialResult
        What its trial told.
    context, mask
        As for :func:`apply`.
    """
    needs, fields = reads(function, source, mask and mask.array), trial.fields

    def work(chunk: Chunk, *blocks):
        (box,) = needs[0].boxes(chunk)
        values, block_context = presented(image, function, box, blocks, context)
        return fields.pack(function(values, **block_context))

    def finish(rows):
        merged = functools.reduce(function.merge, map(fields.unpack, rows))
        return Found(function.finish(merged))

    return Reduce(
        name,
        grid(image, function),
        reads=needs,
        work=work,
        row=((fields.nbytes,), "uint8"),
        finish=finish,
        finish_bytes=PARTIALS_AT_ONCE * fields.nbytes,
        parameters={**_provenance(image, function, context), "fields": fields.entries},
        **_takes(image, function, trial, source),
    )


def _takes(image: Image, function: Function, trial: TrialResult, source: Array) -> dict[str, Any]:
    """Return what a plan reckons with: what the trial took, and at least three times the input as scratch."""
    chunks, halo = grid(image, function), function.declared.halo
    largest = np.prod(image.shape[-2:]) * min(chunks.block[-1] + 2 * halo, image.shape[-3])
    if function.declared.over == "voxels":
        largest *= image.shape[0]
    items = np.prod(image.shape, dtype=np.float64)
    min_scratch = 3 * np.dtype(source.dtype).itemsize
    return {
        "cost": ("second", trial.seconds * float(items)),
        "scratch": int(largest * max(min_scratch, 1.5 * trial.scratch)),
    }


def _provenance(image: Image, function: Function, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the result of a stage depends on, beside the voxels that it reads."""
    used = {key: np.asarray(context[key]).tolist() for key in sorted(function.wants & context.keys())}
    return {**function.provenance(), "context": used, "slope": image.slope, "inter": image.inter}
