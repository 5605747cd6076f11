"""The stages of a user's function over an image: on z-blocks, whole volumes, or z-blocks of series."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.arrays import call_stages, own_reductions
from mpiimg.arrays.graph import F, OfRun, digest
from mpiimg.arrays.identity import Identity
from mpiimg.arrays.lower import Costs, Lowering
from mpiimg.arrays.reducing import reduced_by
from mpiimg.arrays.stored import Call, OutputOf
from mpiimg.arrays.types_of import Types
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, ChunkGrid, blocks_along
from mpiimg.engine.codec import decode
from mpiimg.engine.needs import Chunk
from mpiimg.engine.record_index import RecordsOf
from mpiimg.engine.stage import Compute, Records, Stages
from mpiimg.functions.function import Function
from mpiimg.functions.partials import Fields
from mpiimg.functions.results import Refused, checked_result, jsonable
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


def output(function: Function, image: Image, name: str, components: int | None, dtype: str) -> Array:
    """Describe the array that a function fills; None stands for one component."""
    if function.declared.over != "voxels":
        return Array(name, image.axes, image.shape, dtype)
    if components is None:
        return Array(name, "zyx", image.shape[-3:], dtype)
    return Array(name, "vzyx", (components, *image.shape[-3:]), dtype)


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


@dataclass(frozen=True)
class OnBlocks:
    """A user's function as the primitives call it, on blocks of one image and of others.

    Parameters
    ----------
    image : Image
        The image whose voxels the first block holds.
    function : Function
    context : mapping
        What the function may ask for, bounds and mask apart.
    others : sequence of Image
        Further images that it reads.
    results : sequence of (str, int or None)
        Type of each of its results, and values per voxel.
    fields : Fields, optional
        Those of its partial results, if it is an aggregate.
    """

    image: Image
    function: Function
    context: Mapping[str, Any]
    others: tuple[Image, ...] = ()
    results: tuple[tuple[str, int | None], ...] = ()
    fields: Fields | None = None

    def __call__(self, *blocks: np.ndarray, block_info: Mapping[str, Any]) -> Any:
        stored = [block.T for block in blocks]
        box = tuple(block_info[axis] for axis in ("t", "z", "y", "x") if axis in block_info)
        values, context = presented(self.image, self.function, box, stored, self.context, self.others)
        result = self.function(*values, **context)
        if self.fields is not None:
            return self.fields.unpack(self.fields.pack(result))
        sides = [stop - start for start, stop in box[:-4:-1]]
        checked = [
            checked_result(self.function, one, (*sides, *([] if count is None else [count])), dtype)
            for one, (dtype, count) in zip(
                one_by_one(self.function, result, len(self.results)), self.results, strict=True
            )
        ]
        return tuple(checked) if len(checked) > 1 else checked[0]


def called(
    on_blocks: OnBlocks, source: Array, name: str, mask: Array | None, others: Sequence[Array]
) -> Call:
    """Return the call of a function on blocks of an image; its chunks follow from the image's shape alone."""
    image, function = on_blocks.image, on_blocks.function
    over = function.declared.over
    series = len(image.shape) == 4
    nodes = [_node(source, "t")]
    nodes += [_node(one, f"t{n}" if over == "voxels" else "t") for n, one in enumerate(others)]
    nodes += [_node(mask, "t")] if mask is not None else []
    known = _provenance(image, function, on_blocks.context, on_blocks.others)
    return Call(
        function=on_blocks,
        identity=Identity(digest(known), True, ""),
        name=name,
        inputs=tuple(nodes),
        each=("t",) if series and over != "voxels" else (),
        whole=("x", "y", *(axis for node in nodes for axis in node.axes[3:] if over == "voxels")),
        depth={"z": function.declared.halo} if function.declared.halo else {},
        outputs=tuple(_output(image, over, count, dtype) for dtype, count in on_blocks.results),
        chunks={"z": grid(image, function).block[-1]},
        block_info=True,
        order=F,
        label=name,
    )


def _node(array: Array, volumes: str) -> OfRun:
    """Return voxels of a run as an array whose axes are x y z and, of a series, `volumes`."""
    axes = ("x", "y", "z", volumes)[: len(array.shape)]
    named = Array(array.name, axes[::-1], array.shape, array.dtype)
    return OfRun(
        axes=axes,
        shape=array.shape[::-1],
        dtype=np.dtype(array.dtype).str,
        order=F,
        label=array.name,
        array=named,
    )


def _output(image: Image, over: str, components: int | None, dtype: str) -> OutputOf:
    sides = image.shape[:-4:-1]
    if over == "voxels":
        axes, shape = ("x", "y", "z"), sides
        more = () if components is None else (components,)
        return OutputOf((*axes, *("c" for _ in more)), (*axes, *("c" for _ in more)), (*shape, *more), dtype)
    axes = ("x", "y", "z", "t")[: len(image.shape)]
    return OutputOf(("x", "y", "z"), axes, image.shape[::-1], dtype)


def apply(
    on_blocks: OnBlocks,
    source: Array,
    name: str,
    written: Sequence[Array],
    trial: TrialResult,
    mask: Mask | None = None,
    others: Sequence[Array] = (),
) -> Compute:
    """Declare a function over all chunks of an image.

    Parameters
    ----------
    on_blocks : OnBlocks
    source : Array
        The voxels of its image.
    name : str
        Of the stage.
    written : sequence of Array
        As :func:`output` describes them.
    trial : TrialResult
        What its trial told.
    mask : Mask, optional
        Where the function takes it; its voxels weigh the chunks.
    others : sequence of Array
        The voxels of further images.
    """
    call = called(on_blocks, source, name, mask and mask.array, others)
    lowering = _lowering(call, name)
    for number, one in enumerate(written):
        lowering.names[f"{call.key}-{number}" if len(written) > 1 else call.key] = one.name
    chunks = call_stages.call_grid(call, lowering.types)
    weights = None
    if mask is not None:
        bounds = [chunks.bounds(number)[-1] for number in range(len(chunks))]
        weights = tuple(1 + mask.offsets[stop] - mask.offsets[start] for start, stop in bounds)
    stage = call_stages.stage_of(lowering, call, chunks, weights)
    sources = (source, *others)
    about = _about(on_blocks, trial, sources)
    return dataclasses.replace(stage, name=name, **about)


def aggregate(
    on_blocks: OnBlocks,
    source: Array,
    name: str,
    trial: TrialResult,
    mask: Mask | None = None,
    others: Sequence[Array] = (),
) -> Stages[Any]:
    """Yield the stages of an aggregate over all chunks of an image; return what partial results come to.

    Parameters
    ----------
    As for :func:`apply`.
    """
    function, about = on_blocks.function, _about(on_blocks, trial, (source, *others))
    call = called(on_blocks, source, name, mask and mask.array, others)
    reduced = reduced_by(call, functools.partial(_merged, function), None, call.axes)._node
    lowering = _lowering(call, name)
    lowering.costs[reduced.key] = Costs(returned=trial.fields.nbytes)
    stages, value = own_reductions.partials(lowering, reduced), None
    while True:
        try:
            stage = stages.send(value)
        except StopIteration as end:
            index, _ = end.value
            break
        first = call.key in lowering.names and stage.name == lowering.names[call.key]
        value = yield dataclasses.replace(stage, **about) if first else stage

    def finished(chunk: Chunk, records: Sequence[np.ndarray]):
        (record,) = records
        yield 0, (), jsonable(function.finish(decode(record)))

    ends = yield Records(
        f"finish-{name}",
        ChunkGrid(("#",), (1,), (1,)),
        reads=(RecordsOf(index.array, lambda chunk: [0]),),
        work=finished,
        parameters=about["parameters"],
        scratch=PARTIALS_AT_ONCE * trial.fields.nbytes,
    )
    return ends.facts[0] if len(ends) else None


def _merged(function: Function, partials: Sequence[Any]) -> Any:
    """Return partial results merged in their order."""
    return functools.reduce(function.merge, partials)


def _lowering(call: Call, name: str) -> Lowering:
    made = {node.key: node.array for node in call.inputs}
    return Lowering(Types(), costs={}, names={call.key: name}, made=made)


def _about(on_blocks: OnBlocks, trial: TrialResult, sources: Sequence[Array]) -> dict[str, Any]:
    """Return what a stage says of a function: its provenance, its cost, and what it takes at once."""
    image, function = on_blocks.image, on_blocks.function
    known = _provenance(image, function, on_blocks.context, on_blocks.others)
    if trial.fields is not None:
        known["fields"] = trial.fields.entries
    return {"parameters": known, **_takes(image, function, trial, sources)}


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
