"""A user's function over an image as a step: on z-blocks of volumes, whole volumes, or series of voxels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, ChunkGrid, blocks_along, box_shape
from mpiimg.engine.stage import Chunk, Compute, Found, Need, Part, Reduce, Stage, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.functions.declare import Function, Refused, held_to
from mpiimg.neuro.images import CHUNK_BYTES, sidecar, write_dense
from mpiimg.neuro.masks import Mask
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.subject import Subject, dense, gradients_of, mask_of

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


def reads(function: Function, source: Array, mask: Array | None) -> tuple[Need, ...]:
    """Return what a function reads for a chunk."""
    halo = {"z": function.declared.halo}
    return (Part(source, halo), *((Part(mask, halo),) if mask is not None else ()))


def apply(
    image: Image,
    source: Array,
    function: Function,
    written: Array,
    tried: Tried,
    context: Mapping[str, Any],
    mask: Mask | None = None,
) -> Compute:
    """Declare a function over all chunks of an image.

    Parameters
    ----------
    image : Image
        That `source` holds the voxels of.
    written : Array
        As :func:`output` describes it.
    tried : Tried
        What its trial told.
    context : mapping
        What the function may ask for, bounds and mask apart.
    mask : Mask, optional
        Where the function wants it; its voxels weigh the chunks.
    """
    needs, chunks = reads(function, source, mask and mask.array), grid(image, function)
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
        **_takes(image, function, tried, source),
    )


def aggregate(
    image: Image,
    source: Array,
    function: Function,
    name: str,
    tried: Tried,
    context: Mapping[str, Any],
    mask: Mask | None = None,
) -> Reduce[Any]:
    """Declare an aggregate over all chunks of an image; its value is what it comes to.

    Parameters
    ----------
    tried : Tried
        What its trial told.
    context, mask
        As for :func:`apply`.
    """
    needs, fields = reads(function, source, mask and mask.array), tried.fields

    def work(chunk: Chunk, *blocks):
        (box,) = needs[0].boxes(chunk)
        values, known = presented(image, function, box, blocks, context)
        return fields.pack(function(values, **known))

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
        parameters={**_provenance(image, function, context), "fields": fields.entries},
        **_takes(image, function, tried, source),
    )


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


# --- The step ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FunctionParameters:
    """Where the result of a function goes.

    Parameters
    ----------
    target : str
        Name of its file; empty for one that follows from the image's name and `label`.
    label : str
        As BIDS has labels.
    """

    target: str = ""
    label: str = "result"


@dataclass(frozen=True)
class Result:
    """What a function made of an image.

    Parameters
    ----------
    image : Image
        That it was called on.
    array : Array, optional
        Of a function.
    value : object
        Of an aggregate, once it is known.
    """

    image: Image
    array: Array | None = None
    value: Any = None


def step_of(function: Function, name: str) -> Step:
    """Return the step that a user's function over an image is."""
    fields = {"mask": "mask", "bvals": "gradients", "bvecs": "gradients"}
    takes = {fields[key] for key in function.requires & fields.keys()}
    may_take = {fields[key] for key in function.wants & fields.keys()} - takes
    return Step(
        name=name,
        domain="neuro",
        summary=f"The function {function.origin.name} of {function.origin.where}.",
        takes=("image", *sorted(takes)),
        gives=("image",),
        may_take=tuple(sorted(may_take)),
        parameters=FunctionParameters,
        inspect=functools.partial(_inspect, function),
        stages=functools.partial(_stages, function, name),
        outputs=(
            Output(
                of="result",
                stage=functools.partial(_write, function),
                documents=functools.partial(_documents, function),
            ),
        ),
        source=function.provenance(),
    )


def _inspect(function: Function, subject: Subject, p: FunctionParameters) -> Inspection:
    """Try a function on a little of the image that it will be called on."""
    from mpiimg.functions.trial import try_function

    context, masked = _context(function, subject), _is_masked(function, subject)
    tried = try_function(subject.image, function, context, masked, subject.original)
    return Inspection(tried, baseline=function.libraries + tried.libraries)


def _stages(
    function: Function, name: str, subject: Subject, p: FunctionParameters, tried: Tried
) -> Stages[Subject]:
    subject = yield from dense(subject, "dense")
    context = _context(function, subject)
    mask = subject.mask if _is_masked(function, subject) else None
    if tried.fields is not None:
        value = yield aggregate(subject.image, subject.dwi, function, name, tried, context, mask)
        return dataclasses.replace(subject, result=Result(subject.image, value=value))
    written = output(function, subject.image, name, tried.components, tried.dtype)
    yield apply(subject.image, subject.dwi, function, written, tried, context, mask)
    result = Result(subject.image, written)
    if written.shape != subject.image.shape:
        return dataclasses.replace(subject, result=result)
    # What has the shape of the image is the image that later steps work on.
    image = subject.image.made_of(tried.dtype)
    return dataclasses.replace(subject, image=image, dwi=written, result=result)


def _is_masked(function: Function, subject: Subject) -> bool:
    """Say whether a function is given the mask."""
    if "mask" in function.requires:
        mask_of(subject, function.name)
    return "mask" in function.wants and subject.mask is not None


def _context(function: Function, subject: Subject) -> dict[str, Any]:
    """Return what a function may ask for, bounds and mask apart."""
    known: dict[str, Any] = {"affine": np.array(subject.image.affine, dtype=np.float64)}
    gradients = subject.gradients
    if {"bvals", "bvecs"} & function.requires:
        gradients = gradients_of(subject)
    if gradients is not None:
        known |= {"bvals": np.array(gradients.bvals), "bvecs": np.array(gradients.bvecs)}
    return known


def _file(function: Function, subject: Subject, p: FunctionParameters) -> str:
    """Return the name of the file of a result."""
    if p.target:
        return p.target
    stem, result = subject.stem, subject.result
    if function.aggregate:
        return f"{stem}_desc-{p.label}.json"
    image = result.image
    suffix = "" if len(image.shape) == 3 else "_dwi" if result.array.shape == image.shape else "_dwimap"
    return f"{stem}_desc-{p.label}{suffix}.nii.gz"


def _write(function: Function, subject: Subject, p: FunctionParameters, folder: Path) -> Stage | None:
    if function.aggregate:
        return None
    written, image = subject.result.array, subject.result.image
    components = written.shape[0] if len(written.axes) == 4 else None
    file = str(folder / _file(function, subject, p))
    return write_dense(file, image, (Part(written),), lambda chunk, block: block, components, written.dtype)


def _documents(function: Function, subject: Subject, p: FunctionParameters) -> dict[str, bytes]:
    from mpiimg.functions.trial import document

    file, origin = _file(function, subject, p), function.origin
    if function.aggregate:
        return {file: document(subject.result.value)}
    text = sidecar(
        Description=f"Result of {Path(origin.where).name}:{origin.name}", Function=function.provenance()
    )
    base = file.removesuffix(".nii.gz")
    files = {base + ".json": text}
    if not p.target and subject.result.array.shape == subject.result.image.shape:
        files |= {base + ending: data for ending, data in subject.companions.items()}
    return files


def halo_report(subject: Subject, function: Function) -> str:
    """Say whether the halo of a function is enough.

    Raises
    ------
    BadInput
        It is not.
    """
    from mpiimg.functions.trial import check_halo

    masked = "mask" in function.wants and subject.mask_image is not None
    return check_halo(subject.original, function, _context(function, subject), masked)
