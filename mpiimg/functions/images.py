"""A user's function over an image as a step of a chain."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Stage, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.functions.function import Function
from mpiimg.functions.image_stages import TrialResult, aggregate, apply, output
from mpiimg.neuro.images import sidecar, write_dense
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.subject import Subject, dense, gradients_of, mask_of


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
        The image that it was called on.
    array : Array, optional
        The result of a function.
    value : object
        The result of an aggregate, once it has run.
    """

    image: Image
    array: Array | None = None
    value: Any = None


def image_step(function: Function, name: str, known: Mapping[str, Any]) -> Step:
    """Return the step that a user's function over an image is; `known` is what earlier trials told."""
    fields = {"mask": "mask", "bvals": "gradients", "bvecs": "gradients"}
    takes = {fields[key] for key in function.requires & fields.keys()}
    may_take = {fields[key] for key in function.wants & fields.keys()} - takes
    return Step(
        name=name,
        summary=f"The function {function.origin.name} of {function.origin.where}.",
        takes=("image", *sorted(takes)),
        gives=("image",),
        may_take=tuple(sorted(may_take)),
        parameters=FunctionParameters,
        inspect=functools.partial(_inspect, function, known),
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


def _inspect(
    function: Function, known: Mapping[str, Any], subject: Subject, p: FunctionParameters
) -> Inspection:
    """Try a function on a little of the image that it will be called on."""
    from mpiimg.functions.trial import try_function

    context, masked = _context(function, subject), _is_masked(function, subject)
    trial, key = try_function(subject.image, function, context, masked, subject.original, known)
    baseline = function.libraries + trial.libraries
    return Inspection(trial, function.warnings, baseline, {key: trial.as_json()})


def _stages(
    function: Function, name: str, subject: Subject, p: FunctionParameters, trial: TrialResult
) -> Stages[Subject]:
    subject = yield from dense(subject, "dense")
    context = _context(function, subject)
    mask = subject.mask if _is_masked(function, subject) else None
    if trial.fields is not None:
        value = yield aggregate(subject.image, subject.dwi, function, name, trial, context, mask)
        return dataclasses.replace(subject, result=FunctionResult(subject.image, value=value))
    written = output(function, subject.image, name, trial.components, trial.dtype)
    yield apply(subject.image, subject.dwi, function, written, trial, context, mask)
    result = FunctionResult(subject.image, written)
    if written.shape != subject.image.shape:
        return dataclasses.replace(subject, result=result)
    # A result of the image's shape is the image that later steps work on.
    image = subject.image.made_of(trial.dtype)
    return dataclasses.replace(subject, image=image, dwi=written, result=result)


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
        Description=f"Result of {Path(origin.where).name}:{origin.name}", Function=function.described()
    )
    base = file.removesuffix(".nii.gz")
    files = {base + ".json": text}
    if not p.target and subject.result.array.shape == subject.result.image.shape:
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
