"""A user's function over an image as a step of a chain."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Stage, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput
from mpiimg.functions.function import Function
from mpiimg.functions.image_stages import OnBlocks, TrialResult, aggregate, apply, output
from mpiimg.functions.wiring import IMAGE, MASK, Wiring
from mpiimg.neuro.given_masks import take_given
from mpiimg.neuro.images import sidecar, write_dense
from mpiimg.neuro.mask_checks import checked_mask
from mpiimg.neuro.masks import volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.subject import Subject, dense, gradients_of, mask_of

#: A function that reads the image, and whose result has no name.
ALONE = Wiring()


@dataclass(frozen=True)
class FunctionParameters:
    """Where the result of a function goes.

    Parameters
    ----------
    target : str
        The name of its file; empty for one that follows from the image's name and `label`.
    label : str
        A label as BIDS has them: letters and digits.
    """

    target: str = ""
    label: str = "result"


@dataclass(frozen=True)
class FunctionResult:
    """What a function made of an image.

    Parameters
    ----------
    image : Image
        The image of the chain before it.
    arrays : tuple of Array
        The results of a function.
    value : object
        The result of an aggregate, once it has run.
    """

    image: Image
    arrays: tuple[Array, ...] = ()
    value: Any = None


def image_step(function: Function, name: str, known: Mapping[str, Any], wiring: Wiring = ALONE) -> Step:
    """Return the step that a user's function over an image is.

    Parameters
    ----------
    function : Function
    name : str
    known : mapping
        What earlier trials told.
    wiring : Wiring
        What it reads and gives.
    """
    fields = {"mask": "mask", "bvals": "gradients", "bvecs": "gradients"}
    takes = {fields[key] for key in function.requires & fields.keys()}
    may_take = {fields[key] for key in function.wants & fields.keys()} - takes
    takes |= {MASK} & set(wiring.reads)
    image = (IMAGE,) if IMAGE in wiring.reads else ()
    return Step(
        name=name,
        summary=f"The function {function.origin.name} of {function.origin.where}.",
        takes=(*image, *sorted(takes)),
        gives=tuple(one for one in wiring.gives if one in (IMAGE, MASK)) if wiring.gives else (IMAGE,),
        may_take=tuple(sorted(may_take - takes)),
        parameters=FunctionParameters,
        inspect=functools.partial(_inspect, function, known, wiring),
        stages=functools.partial(_stages, function, name, wiring),
        outputs=tuple(
            Output(
                of="result",
                stage=functools.partial(_write, function, wiring, number),
                documents=functools.partial(_documents, function, wiring, number),
            )
            for number in range(wiring.results)
        ),
        source=function.provenance(),
    )


def _inspect(
    function: Function, known: Mapping[str, Any], wiring: Wiring, subject: Subject, p: FunctionParameters
) -> Inspection:
    """Try a function on a little of the images that it will be called on."""
    from mpiimg.functions.trial import try_function

    context, masked = _context(function, subject), _is_masked(function, subject)
    images = [image for image, _ in _sources(function, wiring, subject)]
    origins = [_origin(name, image, subject) for name, image in zip(wiring.reads, images, strict=True)]
    trial, key = try_function(
        *(images[0], function, context, masked, origins[0], known),
        others=list(zip(images[1:], origins[1:], strict=True)),
        results=wiring.results,
    )
    warnings = function.warnings
    if trial.fields is None:
        warnings += _checked(function, wiring, subject, _shapes(function, images[0], trial))
    baseline = function.libraries + trial.libraries
    return Inspection(trial, warnings, baseline, {key: trial.as_json()})


def _sources(function: Function, wiring: Wiring, subject: Subject) -> list[tuple[Image, Array | None]]:
    """Return the images that a function is called on, and their voxels.

    Raises
    ------
    BadInput
        They do not go together.
    """
    found = []
    for name in wiring.reads:
        if name == IMAGE:
            found.append((subject.image, subject.dwi))
        elif name == MASK:
            mask = mask_of(subject, function.name)
            found.append((shaped(subject.image, mask.array.shape, "uint8"), mask.array))
        else:
            found.append(subject.named[name])
    if function.declared.over != "voxels":
        first = found[0][0]
        for name, (image, _) in zip(wiring.reads, found, strict=True):
            if len(image.shape) == 4 and image.shape != first.shape:
                where = f"{function.origin.where}: {function.name}"
                raise BadInput(
                    f"{where}: is called on each volume of {wiring.reads[0]}, which has {_volumes(first)}, "
                    f'and {name} has {_volumes(image)}; say over = "voxels"'
                )
    return found


def _volumes(image: Image) -> str:
    return f"{image.shape[0]} values per voxel" if len(image.shape) == 4 else "one"


def _origin(name: str, image: Image, subject: Subject) -> Image | None:
    """Return the image on disk whose voxels stand for those of an image in a trial; None for a mask."""
    if name == MASK:
        return None
    is_file = name != IMAGE and image.path != subject.original.path
    return image if is_file else subject.original


def shaped(image: Image, shape: tuple[int, ...], dtype: str) -> Image:
    """Describe an image of another shape and type in the same space."""
    made = dataclasses.replace(image.made_of(dtype), shape=tuple(shape))
    made.__dict__["affine"] = image.affine
    return made


def _shapes(function: Function, image: Image, trial: TrialResult) -> list[tuple[int, ...]]:
    """Return the shapes of results."""
    return [output(function, image, "", components, dtype).shape for dtype, components in trial.results]


def _checked(
    function: Function, wiring: Wiring, subject: Subject, shapes: Sequence[tuple[int, ...]]
) -> tuple[str, ...]:
    """Look whether results can be what they are called; return what is to be said of one that has no name.

    Raises
    ------
    BadInput
        One cannot.
    """
    where = f"{function.origin.where}: {function.name}"
    for name, shape in zip(wiring.gives, shapes, strict=False):
        due = {IMAGE: subject.image.shape, MASK: subject.image.shape[-3:]}.get(name, shape)
        if shape != due:
            raise BadInput(
                f"{where}: gives {name}, which must be {_as_xyz(due)}, and returns {_as_xyz(shape)}; "
                "give it another name, or read and return something else (over)"
            )
    if wiring.gives or shapes[0] == subject.image.shape:
        return ()
    if not wiring.write:
        raise BadInput(
            f"{where}: says write = false, and its result, {_as_xyz(shapes[0])}, does not take the place of "
            'the image: give it a name by gives = ["NAME"], and read it by reads'
        )
    if wiring.later:
        return (
            f"{where}: its result, {_as_xyz(shapes[0])}, is written and passed by: {wiring.later} works on "
            'the image as it was before; gives = ["NAME"] lets later stages read it',
        )
    return ()


def _as_xyz(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[::-1]))


def _stages(
    function: Function, name: str, wiring: Wiring, subject: Subject, p: FunctionParameters, trial: TrialResult
) -> Stages[Subject]:
    if IMAGE in wiring.reads:
        subject = yield from dense(subject, "dense")
    context = _context(function, subject)
    mask = subject.mask if _is_masked(function, subject) else None
    (image, source), *others = _sources(function, wiring, subject)
    voxels = [array for _, array in others]
    results = () if trial.fields is not None else trial.results
    on_blocks = OnBlocks(image, function, context, tuple(one for one, _ in others), results, trial.fields)
    if trial.fields is not None:
        value = yield from aggregate(on_blocks, source, name, trial, mask, voxels)
        return dataclasses.replace(subject, result=FunctionResult(subject.image, value=value))
    arrays = [f"{name}-{given}" for given in wiring.gives] if wiring.results > 1 else [name]
    written = tuple(
        output(function, image, array, components, dtype)
        for array, (dtype, components) in zip(arrays, trial.results, strict=True)
    )
    yield apply(on_blocks, source, name, written, trial, mask, voxels)
    result = FunctionResult(subject.image, written)
    given = wiring.gives or ((IMAGE,) if written[0].shape == subject.image.shape else ())
    subject = dataclasses.replace(subject, result=result)
    for number, (called, array) in enumerate(zip(given, written, strict=False)):
        subject = yield from _given(subject, called, array, _file(function, wiring, number, subject, p))
    return subject


def _given(subject: Subject, name: str, array: Array, file: str) -> Stages[Subject]:
    """Yield what makes of a result what it is called; return what later stages know."""
    image = shaped(subject.image, array.shape, array.dtype)
    if name == IMAGE:
        # A result of the image's shape is the image that later steps work on.
        return dataclasses.replace(subject, image=image, dwi=array, packed=None, denoised=None)
    if name == MASK:
        mask = volume(subject.image, "mask", "uint8")
        where = f"the mask of {file}"
        yield from take_given(image, array, mask, where)
        made = yield from checked_mask(mask, subject.image, where, None)
        return dataclasses.replace(subject, mask=dataclasses.replace(made, result=file))
    return dataclasses.replace(subject, named=subject.named.with_one(name, image, array))


def _is_masked(function: Function, subject: Subject) -> bool:
    """Say whether a function is given the mask."""
    if "mask" in function.requires:
        mask_of(subject, function.name)
    return "mask" in function.wants and subject.mask is not None


def _context(function: Function, subject: Subject) -> dict[str, Any]:
    """Return what a function may ask for, bounds and mask apart."""
    context: dict[str, Any] = {"affine": np.array(subject.image.affine, dtype=np.float64)}
    gradients = subject.gradients
    if {"bvals", "bvecs"} & function.requires:
        gradients = gradients_of(subject)
    if gradients is not None:
        context |= {"bvals": np.array(gradients.bvals), "bvecs": np.array(gradients.bvecs)}
    return context


def _file(function: Function, wiring: Wiring, number: int, subject: Subject, p: FunctionParameters) -> str:
    """Return the name of the file of a result."""
    if p.target:
        return p.target
    label = wiring.labels[number] if wiring.labels else p.label
    if function.aggregate:
        return f"{subject.stem}_desc-{label}.json"
    if wiring.gives and wiring.gives[number] == MASK:
        return f"{subject.stem}_desc-{label}_mask.nii.gz"
    suffix = ""
    if subject.result is not None and len(subject.result.image.shape) == 4:
        same = subject.result.arrays[number].shape == subject.result.image.shape
        suffix = "_dwi" if same else "_dwimap"
    return f"{subject.stem}_desc-{label}{suffix}.nii.gz"


def _write(
    function: Function, wiring: Wiring, number: int, subject: Subject, p: FunctionParameters, folder: Path
) -> Stage | None:
    if function.aggregate:
        return None
    written, image = subject.result.arrays[number], subject.result.image
    components = written.shape[0] if len(written.axes) == 4 else None
    file = str(folder / _file(function, wiring, number, subject, p))
    return write_dense(file, image, (Part(written),), lambda chunk, block: block, components, written.dtype)


def _documents(
    function: Function, wiring: Wiring, number: int, subject: Subject, p: FunctionParameters
) -> dict[str, bytes]:
    from mpiimg.functions.trial import document

    file, origin = _file(function, wiring, number, subject, p), function.origin
    if function.aggregate:
        return {file: document(subject.result.value)}
    text = sidecar(
        Description=f"Result of {Path(origin.where).name}:{origin.name}", Function=function.described()
    )
    base = file.removesuffix(".nii.gz")
    files = {base + ".json": text}
    if not p.target and subject.result.arrays[number].shape == subject.result.image.shape:
        files |= {base + ending: data for ending, data in subject.gradient_files.items()}
    return files


def halo_report(subject: Subject, function: Function) -> str:
    """Say that the halo of a function is large enough.

    Raises
    ------
    BadInput
        It is not.
    """
    from mpiimg.functions.trial import check_halo

    masked = "mask" in function.wants and subject.mask_image is not None
    return check_halo(subject.original, function, _context(function, subject), masked)
