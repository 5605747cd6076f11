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
from mpiimg.functions.results import Refused, checked_result
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
    more : tuple of (str, int or None)
        The same of further results.
    fields : Fields, optional
        Those of the partial results of an aggregate.
    seconds, scratch : float
        CPU time, and bytes that it takes at once, per item of the input.
    libraries : int
        Bytes that a rank takes when the function is called first, and keeps.
    """

    dtype: str = ""
    components: int | None = None
    more: tuple[tuple[str, int | None], ...] = ()
    fields: Fields | None = None
    seconds: float = 0.0
    scratch: float = 0.0
    libraries: int = 0

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> TrialResult:
        """Return what :meth:`as_json` made a mapping of."""
        fields = facts["fields"]
        entries = [(key, tuple(shape), dtype) for key, shape, dtype in fields or ()]
        more = tuple((dtype, components) for dtype, components in facts.get("more", ()))
        return cls(**{**facts, "more": more, "fields": None if fields is None else Fields(tuple(entries))})

    @property
    def results(self) -> tuple[tuple[str, int | None], ...]:
        """Type and components of every result."""
        return ((self.dtype, self.components), *self.more)

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
    image: Image,
    function: Function,
    box: Box,
    blocks: Sequence[np.ndarray],
    context: Mapping[str, Any],
    others: Sequence[Image] = (),
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return what a function sees of blocks in the order of the file: views with x first, and the context.

    Parameters
    ----------
    image : Image
    function : Function
    box : Box
        The block's in `image`, halo included.
    blocks : sequence of array
        Voxels of the image, of the others, and of the mask where the function takes it as a keyword.
    context : mapping
        What holds for all blocks.
    others : sequence of Image
        Further images that it reads.
    """
    images = (image, *others)
    values = [one.scaled(block) for one, block in zip(images, blocks, strict=False)]
    bounds = dict(zip("xyz", box[:-4:-1], strict=True))
    if len(image.shape) == 4:
        bounds["t"] = box[0]
    if function.declared.over != "voxels":
        values = [one[0] if one.ndim == 4 else one for one in values]
    block_context = {**context, "bounds": bounds}
    if len(blocks) > len(images):
        inside = (blocks[-1] != 0).T
        inside.flags.writeable = False
        block_context["mask"] = inside
    return [one.T for one in values], block_context


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


def reads(function: Function, sources: Sequence[Array], mask: Array | None) -> tuple[Need, ...]:
    """Return what a function reads for a chunk."""
    halo = {"z": function.declared.halo}
    return (*(Part(one, halo) for one in sources), *((Part(mask, halo),) if mask is not None else ()))


def one_by_one(function: Function, result: Any, count: int) -> tuple:
    """Return the results of a function that has so many.

    Raises
    ------
    Refused
        It returns another number of them.
    """
    if count == 1:
        return (result,)
    if not isinstance(result, tuple | list) or len(result) != count:
        found = f"{len(result)} of them" if isinstance(result, tuple | list) else type(result).__name__
        raise Refused(f"gives {count} results, and must return so many arrays in a tuple; it returns {found}")
    return tuple(result)


def apply(
    image: Image,
    source: Array,
    function: Function,
    name: str,
    written: Sequence[Array],
    trial: TrialResult,
    context: Mapping[str, Any],
    mask: Mask | None = None,
    others: Sequence[tuple[Image, Array]] = (),
) -> Compute:
    """Declare a function over all chunks of an image.

    Parameters
    ----------
    image : Image
        The image whose voxels `source` holds.
    written : sequence of Array
        As :func:`output` describes them.
    trial : TrialResult
        What its trial told.
    context : mapping
        What the function may ask for, bounds and mask apart.
    mask : Mask, optional
        Where the function takes it; its voxels weigh the chunks.
    others : sequence of (Image, Array)
        Further images that it reads.
    """
    sources = (source, *(array for _, array in others))
    needs, chunks = reads(function, sources, mask and mask.array), grid(image, function)
    images, over_voxels = [one for one, _ in others], function.declared.over == "voxels"

    def work(chunk: Chunk, *blocks):
        (box,) = needs[0].boxes(chunk)
        values, block_context = presented(image, function, box, blocks, context, images)
        results = one_by_one(function, function(*values, **block_context), len(written))
        return tuple(laid_out(chunk, box, result, one) for result, one in zip(results, written, strict=True))

    def laid_out(chunk: Chunk, box: Box, result: Any, one: Array) -> np.ndarray:
        components = one.shape[0] if len(one.axes) == 4 and over_voxels else None
        expected = result_shape(function, image, components, box_shape(box)[-3])
        result = checked_result(function, result, expected, one.dtype)
        start, stop = chunk.bounds["z"]
        inner = result[:, :, start - box[-3][0] : stop - box[-3][0]].T
        return inner[None] if inner.ndim < len(one.axes) else inner

    weights = None
    if mask is not None:
        bounds = [chunks.bounds(number)[-1] for number in range(len(chunks))]
        weights = tuple(1 + mask.offsets[stop] - mask.offsets[start] for start, stop in bounds)
    return Compute(
        name,
        chunks,
        reads=needs,
        writes=tuple(written),
        work=work,
        parameters=_provenance(image, function, context, images),
        weights=weights,
        **_takes(image, function, trial, sources),
    )


def aggregate(
    image: Image,
    source: Array,
    function: Function,
    name: str,
    trial: TrialResult,
    context: Mapping[str, Any],
    mask: Mask | None = None,
    others: Sequence[tuple[Image, Array]] = (),
) -> Reduce[Any]:
    """Declare an aggregate over all chunks of an image; its value is what the partial results come to.

    Parameters
    ----------
    trial : TrialResult
        What its trial told.
    context, mask, others
        As for :func:`apply`.
    """
    sources, images = (source, *(array for _, array in others)), [one for one, _ in others]
    needs, fields = reads(function, sources, mask and mask.array), trial.fields

    def work(chunk: Chunk, *blocks):
        (box,) = needs[0].boxes(chunk)
        values, block_context = presented(image, function, box, blocks, context, images)
        return fields.pack(function(*values, **block_context))

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
        parameters={**_provenance(image, function, context, images), "fields": fields.entries},
        **_takes(image, function, trial, sources),
    )


def _takes(image: Image, function: Function, trial: TrialResult, sources: Sequence[Array]) -> dict[str, Any]:
    """Return what a plan reckons with: what the trial took, and at least three times the input as scratch."""
    chunks, halo = grid(image, function), function.declared.halo
    largest = np.prod(image.shape[-2:]) * min(chunks.block[-1] + 2 * halo, image.shape[-3])
    if function.declared.over == "voxels":
        largest *= image.shape[0]
    items = np.prod(image.shape, dtype=np.float64)
    min_scratch = 3 * sum(np.dtype(one.dtype).itemsize for one in sources)
    return {
        "cost": ("second", trial.seconds * float(items)),
        "scratch": int(largest * max(min_scratch, 1.5 * trial.scratch)),
    }


def _provenance(
    image: Image, function: Function, context: Mapping[str, Any], others: Sequence[Image]
) -> dict[str, Any]:
    """Return what the result of a stage depends on, beside the voxels that it reads."""
    used = {key: np.asarray(context[key]).tolist() for key in sorted(function.wants & context.keys())}
    scaling = {"slope": image.slope, "inter": image.inter}
    if others:
        scaling["others"] = [[one.slope, one.inter] for one in others]
    return {**function.provenance(), "context": used, **scaling}
